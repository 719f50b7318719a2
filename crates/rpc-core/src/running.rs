//! Which endpoint's handler this thread runs right now, so that one that waits for itself is noticed.

use std::cell::Cell;
use std::sync::Arc;

thread_local! {
    static RUNNING: Cell<Option<EndpointId>> = const { Cell::new(None) };
}

/// An endpoint of this process that handles one message at a time: the address of its inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EndpointId(usize);

impl EndpointId {
    pub(crate) fn of<I: ?Sized>(inbox: &Arc<I>) -> Self {
        Self(Arc::as_ptr(inbox).cast::<()>().addr())
    }

    /// Whether a handler of this endpoint is further up on this thread's stack.
    pub(crate) fn is_running(self) -> bool {
        RUNNING.get() == Some(self)
    }

    /// Says that handlers of this endpoint run on this thread until the guard is dropped.
    pub(crate) fn run(self) -> Running {
        // Polls nest where a handler blocks on a future, so what was there is put back.
        Running(RUNNING.replace(Some(self)))
    }
}

pub(crate) struct Running(Option<EndpointId>);

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.set(self.0);
    }
}
