//! The interface by which a local ref posts to an inbox.

use std::sync::Arc;

use futures::future::BoxFuture;

use crate::error::RpcError;
use crate::message_metadata::MessageMetadata;

/// An inbox that accepts messages of type `M`: an `Inbox<M>`, or a narrowed one.
pub(crate) trait InboxHandle<M>: Send + Sync {
    /// Appends the message that `build` makes.
    ///
    /// `build` runs without a lock, and only if the inbox accepts the message. The caller therefore
    /// still owns a rejected request.
    fn post(
        &self,
        metadata: MessageMetadata,
        build: &mut dyn FnMut() -> Option<M>,
    ) -> Result<(), RpcError>;

    /// Completes when the inbox may have capacity again, or is closed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Deadlock`](crate::ErrorKind::Deadlock) if the handler that this thread runs
    /// waits for its own endpoint.
    fn wait_for_capacity(&self) -> BoxFuture<'_, Result<(), RpcError>>;
}

/// Accepts messages of a part `N` of the message type `M`, for `RpcEndpointRef::narrow`.
pub(super) struct Narrowed<M>(pub(super) Arc<dyn InboxHandle<M>>);

impl<N, M: From<N>> InboxHandle<N> for Narrowed<M> {
    fn post(
        &self,
        metadata: MessageMetadata,
        build: &mut dyn FnMut() -> Option<N>,
    ) -> Result<(), RpcError> {
        self.0.post(metadata, &mut || build().map(M::from))
    }

    fn wait_for_capacity(&self) -> BoxFuture<'_, Result<(), RpcError>> {
        self.0.wait_for_capacity()
    }
}
