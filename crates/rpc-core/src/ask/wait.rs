//! Waits for an ask on a thread that may block.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use tokio::time::Instant;

use super::AskFuture;
use super::deadline_timer::TICK;
use crate::error::RpcError;

/// Unparks the thread that waits.
struct ThreadWaker(Thread);

impl Wake for ThreadWaker {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl<T> AskFuture<T> {
    /// Blocks this thread until the ask has ended.
    ///
    /// The thread has a timer of its own, because the deadline timer is a task of the
    /// environment's runtime, which may have no thread that drives it.
    pub(crate) fn wait(mut self) -> Result<T, RpcError> {
        let waker = Waker::from(Arc::new(ThreadWaker(thread::current())));
        let mut cx = Context::from_waker(&waker);
        let mut limit = self.deadline;
        loop {
            if let Poll::Ready(result) = Pin::new(&mut self).poll(&mut cx) {
                return result;
            }
            let Some(until) = limit else {
                thread::park();
                continue;
            };
            let now = Instant::now();
            if now < until {
                thread::park_timeout(until - now);
            } else if limit == self.deadline && now > until + TICK {
                // The process was suspended: the reply may be in the socket already.
                limit = Some(now + TICK);
            } else {
                return Err(self.timeout_error().mark_as_result());
            }
        }
    }
}
