//! How a ref reaches an inbox whose type it does not know.

use futures::future::BoxFuture;

use crate::error::RpcError;
use crate::message_metadata::MessageMetadata;

/// The inbox of an endpoint of this environment.
pub(crate) trait InboxHandle<M>: Send + Sync {
    /// Appends the message that `build` makes. `build` is called under the inbox's lock and only
    /// if the inbox accepts the message, so that a rejected request is still the caller's.
    fn post(
        &self,
        metadata: MessageMetadata,
        build: &mut dyn FnMut() -> Option<M>,
    ) -> Result<(), RpcError>;

    /// Completes when the inbox may have capacity again, or is closed.
    fn wait_for_capacity(&self) -> BoxFuture<'_, ()>;
}
