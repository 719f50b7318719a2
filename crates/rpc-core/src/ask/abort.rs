//! `AbortHandle`, with which an application fails a pending ask.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::task::Context;

use futures::task::AtomicWaker;

use crate::address::RpcEndpointAddress;
use crate::error::{BoxError, ErrorKind, RpcError};

/// Aborts one [`AskFuture`](crate::AskFuture) from any thread.
///
/// [`AskFuture::abort_handle`](crate::AskFuture::abort_handle) creates it. Clones are cheap and
/// abort the same ask. A handle does not keep the ask alive.
///
/// ```
/// # use rpc_core::{AskFuture, ErrorKind};
/// # async fn example(mut ask: AskFuture<u32>) {
/// let abort = ask.abort_handle();
/// let task = tokio::spawn(ask);
/// abort.abort("the stage was cancelled");
/// let error = task.await.expect("the task runs").unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Aborted);
/// # }
/// ```
#[derive(Clone)]
pub struct AbortHandle(Arc<AbortState>);

struct AbortState {
    endpoint: RpcEndpointAddress,
    error: OnceLock<RpcError>,
    /// Wakes the task that polls the ask.
    caller: AtomicWaker,
}

impl AbortHandle {
    pub(super) fn new(endpoint: &RpcEndpointAddress) -> Self {
        Self(Arc::new(AbortState {
            endpoint: endpoint.clone(),
            error: OnceLock::new(),
            caller: AtomicWaker::new(),
        }))
    }

    /// Fails the ask at once with [`ErrorKind::Aborted`].
    ///
    /// `cause` becomes the [`source`](std::error::Error::source) of the error. Later calls have no
    /// effect, nor has a call after the ask has completed. The request may still be executed; its
    /// response is discarded. The counterpart in Spark is `AbortableRpcFuture.abort`.
    pub fn abort(&self, cause: impl Into<BoxError>) {
        let endpoint = &self.0.endpoint;
        let error = RpcError::new(ErrorKind::Aborted, format!("the ask to {endpoint} was aborted"))
            .with_peer(endpoint)
            .with_source(cause);
        if self.0.error.set(error).is_ok() {
            self.0.caller.wake();
        }
    }

    /// Returns the error if the ask was aborted. Registers the waker of `cx` for `abort`.
    pub(super) fn poll_aborted(&self, cx: &Context<'_>) -> Option<RpcError> {
        self.0.caller.register(cx.waker());
        self.0.error.get().cloned()
    }
}

impl fmt::Debug for AbortHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AbortHandle").field("endpoint", &self.0.endpoint).finish_non_exhaustive()
    }
}
