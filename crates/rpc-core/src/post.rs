//! How a ref reaches an inbox or an outbox without knowing either.

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::call_context::Origin;
use crate::error::RpcError;

/// The inbox of an endpoint of this environment.
pub(crate) trait Mailbox<M>: Send + Sync {
    /// Appends what `build` makes. It is called under the inbox's lock and only if the inbox takes the message, so
    /// a refused request is still the caller's.
    fn post(&self, origin: Origin, build: &mut dyn FnMut() -> Option<M>) -> Result<(), RpcError>;
}

/// The way to one other environment.
pub(crate) trait Wire: Send + Sync {
    /// Queues an envelope, to be sent in the order of these calls.
    fn send(&self, envelope: Bytes) -> Result<(), RpcError>;

    /// The same, and the answer's envelope. Queues when called; dropping the future frees its waiter.
    fn ask(&self, envelope: Bytes) -> BoxFuture<'static, Result<Bytes, RpcError>>;
}
