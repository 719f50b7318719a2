//! Giving an ask up before its time limit.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::task::Context;

use futures::task::AtomicWaker;

use crate::address::RpcEndpointAddress;
use crate::error::{BoxError, ErrorKind, RpcError};

/// Gives up the [`Ask`](crate::Ask) that made it, from any thread and wherever the ask has gone
/// since. Cheap to clone.
///
/// Nothing holds the ask back: it may end, or be dropped, while there are handles on it.
#[derive(Clone)]
pub struct AbortHandle(Arc<AbortState>);

struct AbortState {
    of: RpcEndpointAddress,
    error: OnceLock<RpcError>,
    asker: AtomicWaker,
}

impl AbortHandle {
    pub(crate) fn new(of: &RpcEndpointAddress) -> Self {
        Self(Arc::new(AbortState {
            of: of.clone(),
            error: OnceLock::new(),
            asker: AtomicWaker::new(),
        }))
    }

    /// Fails the ask at once with [`ErrorKind::Aborted`], with `cause` as the source (`rpc 6`).
    /// Only the first call counts; once the ask has ended, none does.
    ///
    /// The ask's task is woken and frees everything that waited for the answer. The request may be
    /// handled all the same; an answer to it is dropped.
    pub fn abort(&self, cause: impl Into<BoxError>) {
        let cause = cause.into();
        let text = format!("the ask of {} was aborted: {cause}", self.0.of);
        let error =
            RpcError::new(ErrorKind::Aborted, text).with_peer(&self.0.of).with_source(cause);
        if self.0.error.set(error).is_ok() {
            self.0.asker.wake();
        }
    }

    /// The error if it has been aborted; if not, `cx` is woken when it is.
    pub(crate) fn poll_aborted(&self, cx: &Context<'_>) -> Option<RpcError> {
        self.0.asker.register(cx.waker());
        self.0.error.get().cloned()
    }
}

impl fmt::Debug for AbortHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AbortHandle").field("of", &self.0.of).finish_non_exhaustive()
    }
}
