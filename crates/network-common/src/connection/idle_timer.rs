//! The idle and request timeout of transport 8, read at a coarse tick so that no message costs a
//! look at the clock.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// Ticks per timeout: the limit fires at most this fraction of it late.
const TICKS: u32 = 4;

#[derive(Debug)]
pub(super) struct IdleTimer {
    timeout: Duration,
    tick: Pin<Box<Sleep>>,
    /// When bytes were last seen to have moved, and how many there had been.
    last_io: Instant,
    moved: u64,
    /// When a request was last seen to have been registered; `None`: never, so it is always
    /// overdue.
    last_request: Option<Instant>,
}

impl IdleTimer {
    pub(super) fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            tick: Box::pin(sleep(timeout / TICKS)),
            last_io: Instant::now(),
            moved: 0,
            last_request: None,
        }
    }

    /// `Ready` once per tick; whether the connection is overdue then: neither did bytes move nor
    /// was a request registered for the whole timeout. `observe` tells the bytes moved so far and
    /// whether a request was registered since it was last called.
    pub(super) fn poll_expired(
        &mut self,
        context: &mut Context<'_>,
        observe: impl FnOnce() -> (u64, bool),
    ) -> Poll<bool> {
        if self.tick.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        let now = Instant::now();
        self.tick.as_mut().reset(now + self.timeout / TICKS);
        let (moved, requested) = observe();
        if moved != self.moved {
            self.moved = moved;
            self.last_io = now;
        }
        if requested {
            self.last_request = Some(now);
        }
        let passed = |since: Instant| now.duration_since(since) >= self.timeout;
        Poll::Ready(passed(self.last_io) && self.last_request.is_none_or(passed))
    }
}
