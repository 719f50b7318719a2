//! The idle timeout of a connection, which is also the timeout of its pending requests.
//!
//! The timer reads the clock four times per timeout instead of once per message. So it fires after
//! 1 to 1.25 times the timeout.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// Number of ticks per timeout.
const TICKS_PER_TIMEOUT: u32 = 4;

#[derive(Debug)]
pub(super) struct IdleTimer {
    pub(super) timeout: Duration,
    tick: Pin<Box<Sleep>>,
    /// Tick that has last noticed sent or received bytes.
    last_io: Instant,
    /// Number of bytes sent and received until then.
    io_bytes: u64,
    /// Tick that has last noticed a new request; `None` before the first one.
    last_request: Option<Instant>,
}

impl IdleTimer {
    pub(super) fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            tick: Box::pin(sleep(timeout / TICKS_PER_TIMEOUT)),
            last_io: Instant::now(),
            io_bytes: 0,
            last_request: None,
        }
    }

    /// Completes at each tick; returns whether the connection is idle.
    ///
    /// It is if the timeout has elapsed without I/O and without new requests. `observe` returns the
    /// number of bytes sent and received so far, and whether a request was registered since its
    /// last call.
    pub(super) fn poll_expired(
        &mut self,
        context: &mut Context<'_>,
        observe: impl FnOnce() -> (u64, bool),
    ) -> Poll<bool> {
        if self.tick.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        let now = Instant::now();
        self.tick.as_mut().reset(now + self.timeout / TICKS_PER_TIMEOUT);
        let (io_bytes, has_new_request) = observe();
        if io_bytes != self.io_bytes {
            self.io_bytes = io_bytes;
            self.last_io = now;
        }
        if has_new_request {
            self.last_request = Some(now);
        }
        let has_elapsed = |since: Instant| now.duration_since(since) >= self.timeout;
        Poll::Ready(has_elapsed(self.last_io) && self.last_request.is_none_or(has_elapsed))
    }
}
