//! The idle timeout of a connection, which is also the timeout of its pending requests.
//!
//! The timer reads the clock four times per timeout instead of once per message. So it fires after
//! 1 to 1.25 times the timeout.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// Number of ticks per timeout.
const TICKS_PER_TIMEOUT: u32 = 4;
/// Number of timeouts for which new requests can delay the timeout of the pending ones.
const MAX_DELAYED_TIMEOUTS: u32 = 2;

#[derive(Debug)]
pub(super) struct IdleTimer {
    pub(super) timeout: Duration,
    tick: Pin<Box<Sleep>>,
    received_bytes: u64,
    sent_bytes: u64,
    /// Tick that has last noticed received bytes, or that this side does not read.
    last_received: Instant,
    /// Tick that has last noticed sent bytes.
    last_sent: Instant,
    /// Tick that has last noticed sent bytes of a long transfer.
    last_transfer: Instant,
    /// Tick that has last noticed a new request; `None` before the first one.
    last_request: Option<Instant>,
    /// Tick since which requests are pending and no byte was received; `None` without requests.
    unanswered_since: Option<Instant>,
    /// Tick that has noticed a cancelled request; `None` if bytes were received since.
    cancelled_since: Option<Instant>,
    /// Tick since which this side does not read.
    paused_since: Option<Instant>,
}

/// The state of a connection at a tick.
pub(super) struct Observation {
    pub(super) received_bytes: u64,
    pub(super) sent_bytes: u64,
    /// Bytes are being written that the socket does not accept at once.
    pub(super) is_writing: bool,
    /// Requests of this side have no response yet.
    pub(super) has_pending: bool,
    /// A request was registered since the last tick.
    pub(super) has_new_request: bool,
    /// A request was cancelled since the last tick.
    pub(super) has_cancelled: bool,
    /// This side does not read, because its own code does not take what it has read.
    pub(super) is_paused: bool,
}

/// The conditions that have lasted for the whole timeout.
#[derive(Debug, Default)]
pub(super) struct Elapsed {
    /// No byte was sent or received, and no request made.
    pub(super) is_idle: bool,
    /// The peer has sent nothing since the last request, or for two timeouts of pending requests.
    pub(super) is_silent: bool,
    /// The peer has sent nothing since a request that was cancelled.
    pub(super) is_silent_since_cancel: bool,
    /// This side has read nothing.
    pub(super) is_paused: bool,
}

impl IdleTimer {
    pub(super) fn new(timeout: Duration) -> Self {
        let now = Instant::now();
        Self {
            timeout,
            tick: Box::pin(sleep(timeout / TICKS_PER_TIMEOUT)),
            received_bytes: 0,
            sent_bytes: 0,
            last_received: now,
            last_sent: now,
            last_transfer: now,
            last_request: None,
            unanswered_since: None,
            cancelled_since: None,
            paused_since: None,
        }
    }

    /// Completes at each tick; returns the conditions that have lasted for the timeout.
    pub(super) fn poll_tick(
        &mut self,
        context: &mut Context<'_>,
        observe: impl FnOnce() -> Observation,
    ) -> Poll<Elapsed> {
        ready!(self.tick.as_mut().poll(context));
        let now = Instant::now();
        self.tick.as_mut().reset(now + self.timeout / TICKS_PER_TIMEOUT);
        Poll::Ready(self.update(now, &observe()))
    }

    fn update(&mut self, now: Instant, observed: &Observation) -> Elapsed {
        if observed.has_new_request {
            self.last_request = Some(now);
        }
        if observed.has_cancelled && self.cancelled_since.is_none() {
            self.cancelled_since = Some(now);
        }
        let mut is_alive = observed.is_paused;
        if observed.sent_bytes != self.sent_bytes {
            self.sent_bytes = observed.sent_bytes;
            self.last_sent = now;
            if observed.is_writing {
                self.last_transfer = now;
                is_alive = true;
            }
        }
        let has_received = observed.received_bytes != self.received_bytes;
        self.received_bytes = observed.received_bytes;
        if has_received || !observed.is_paused {
            self.paused_since = None;
        }
        if observed.is_paused {
            self.paused_since.get_or_insert(now);
        }
        if has_received || observed.is_paused {
            self.last_received = now;
            self.cancelled_since = None;
            is_alive = true;
        }
        if is_alive || !observed.has_pending {
            self.unanswered_since = None;
        }
        if observed.has_pending {
            self.unanswered_since.get_or_insert(now);
        }
        let has_elapsed = |since: Instant| now.duration_since(since) >= self.timeout;
        let is_request_old = self.last_request.is_none_or(has_elapsed);
        // Otherwise steady requests would keep a dead connection open.
        let max_delay = self.timeout.saturating_mul(MAX_DELAYED_TIMEOUTS);
        let is_unanswered =
            self.unanswered_since.is_some_and(|since| now.duration_since(since) >= max_delay);
        let is_quiet = has_elapsed(self.last_received) && has_elapsed(self.last_transfer);
        Elapsed {
            is_idle: is_quiet && has_elapsed(self.last_sent) && is_request_old,
            is_silent: is_quiet && (is_request_old || is_unanswered),
            is_silent_since_cancel: is_quiet && self.cancelled_since.is_some_and(has_elapsed),
            is_paused: self.paused_since.is_some_and(has_elapsed) && is_request_old,
        }
    }
}
