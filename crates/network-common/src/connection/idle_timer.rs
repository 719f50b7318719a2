//! The idle timeout of a connection, which is also the timeout of its pending requests.
//!
//! The timer reads the clock four times per timeout instead of once per message. So it fires after
//! 1 to 1.25 times the timeout.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use super::ConnectionDriver;
use crate::error::{ErrorKind, TransportError};
use crate::session::CloseRequest;

/// Number of ticks per timeout.
const TICKS_PER_TIMEOUT: u32 = 4;

#[derive(Debug)]
pub(super) struct IdleTimer {
    timeout: Duration,
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
    fn poll_expired(
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

impl ConnectionDriver {
    /// Closes the connection after the idle timeout.
    ///
    /// The rules are those of `TransportChannelHandler.userEventTriggered`. Completes with the
    /// error of pending requests. A connection without pending requests is closed only on the sides
    /// that close idle connections.
    pub(super) fn poll_idle_timer(&mut self, context: &mut Context<'_>) -> Poll<TransportError> {
        let Some(timer) = &mut self.idle_timer else {
            return Poll::Pending;
        };
        let shared = &self.shared;
        loop {
            let is_expired = std::task::ready!(timer.poll_expired(context, || {
                let has_new_request = std::mem::take(&mut shared.session.lock().has_new_request);
                (shared.moved.load(Ordering::Relaxed), has_new_request)
            }));
            if !is_expired {
                continue;
            }
            let mut session = shared.session.lock();
            let pending = session.requests.len();
            if session.has_new_request || (pending == 0 && !self.resources.close_idle) {
                continue;
            }
            let (peer, timeout) = (shared.peer, timer.timeout);
            let setting = self.resources.conf.setting_name("io.connectionTimeout");
            let error = if pending > 0 {
                let text = format!(
                    "Connection to {peer} has been quiet for {timeout:?} while {pending} requests \
                     are pending. This timeout is controlled by {setting}"
                );
                TransportError::new(ErrorKind::Timeout, text).with_peer(peer)
            } else {
                TransportError::closed(peer)
            };
            // Under the same lock, so that no request is registered before the close.
            session.close(CloseRequest::Immediate(error.clone()));
            drop(session);
            if pending > 0 {
                tracing::warn!(
                    %peer,
                    ?timeout,
                    pending,
                    setting,
                    "closing a quiet connection with pending requests"
                );
            } else {
                tracing::debug!(%peer, ?timeout, setting, "closing an idle connection");
            }
            return Poll::Ready(error);
        }
    }
}
