//! The end of a connection: idle timeout, flush deadline, notifications, lingering close.

use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::time::{Instant, sleep, timeout_at};

use super::{ConnectionDriver, catch_panic};
use crate::error::{ErrorKind, TransportError};
use crate::session::CloseRequest;

/// The timeout of writing the queued frames of a closing connection.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);
/// The timeout of the lingering close.
///
/// The connection is read for at most this time, so that the peer gets pending output instead of a
/// reset.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);

impl ConnectionDriver {
    /// Returns the reason of a requested close instead of `error`.
    ///
    /// An error while the connection is closing is of no interest to the callers.
    pub(super) fn prefer_close_reason(&self, error: TransportError) -> TransportError {
        match self.shared.session.lock().close_request() {
            Some(CloseRequest::AfterFlush(reason) | CloseRequest::Immediate(reason)) => {
                reason.clone()
            }
            None => error,
        }
    }

    /// Starts the deadline of the flush, unless it is started.
    pub(super) fn start_flush_deadline(&mut self) {
        self.flush_deadline.get_or_insert_with(|| Box::pin(sleep(FLUSH_TIMEOUT)));
    }

    /// Returns whether the flush has exceeded its deadline; registers the waker if not.
    pub(super) fn is_flush_overdue(&mut self, context: &mut Context<'_>) -> bool {
        let deadline = self.flush_deadline.as_mut();
        deadline.is_some_and(|deadline| deadline.as_mut().poll(context).is_ready())
    }

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
                (shared.io_bytes.load(Ordering::Relaxed), has_new_request)
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

    /// Closes the connection and reports it.
    ///
    /// The order is `on_network_error`, failures of pending requests, release hooks, and last
    /// `connection_terminated` and `on_disconnected` as in
    /// `TransportRequestHandler.channelInactive`.
    pub(super) fn close_with(&mut self, error: &TransportError) {
        self.is_closed = true;
        self.shared.deactivate();
        let (handler, client) = (&self.handler, &self.client);
        if error.kind() == ErrorKind::Closed {
            tracing::debug!(peer = %self.shared.peer, "connection closed");
        } else {
            tracing::warn!(
                peer = %self.shared.peer,
                error = %format_args!("{error:#}"),
                "connection closed after an error"
            );
            // The server or client factory counts the failures of handshakes.
            if self.is_announced {
                self.resources.metrics.count_failure(error);
                catch_panic("RpcHandler::on_network_error", || {
                    handler.on_network_error(error, client)
                });
            }
        }
        let mut wakers = Vec::new();
        let mut session = self.shared.session.lock();
        let queued_chunks = session.bulk_requests.len() as u64;
        let discarded_frames = session.close_with(error.clone(), &mut wakers);
        drop(session);
        let metrics = &self.resources.metrics;
        metrics.chunks_being_transferred.fetch_sub(queued_chunks, Ordering::Relaxed);
        wakers.into_iter().for_each(Waker::wake);
        self.shared.state_notify.notify_waiters();
        self.reader.on_close(error);
        catch_panic("ManagedBuffer::on_release", || drop(discarded_frames));
        catch_panic("ManagedBuffer::on_release", || self.writer.discard());
        if let Some(bulk_server) = self.bulk_server.take() {
            bulk_server.abort();
        }
        // Also if the handshake failed: a bootstrap may have registered streams before it.
        catch_panic("StreamManager::connection_terminated", || {
            handler.stream_manager().connection_terminated(client)
        });
        if self.is_announced {
            catch_panic("RpcHandler::on_disconnected", || handler.on_disconnected(client));
        }
        metrics.connections.fetch_sub(1, Ordering::Relaxed);
        self.gauges.report(metrics, 0, 0, 0);
    }

    /// Ends the sending direction and reads until the peer does the same.
    ///
    /// Closing a socket with unread bytes would reset the connection, and the peer could lose what
    /// it has not read yet.
    pub(super) async fn linger(&mut self) {
        let deadline = Instant::now() + LINGER_TIMEOUT;
        let _ = timeout_at(deadline, self.writer.shutdown()).await;
        let mut discarded = vec![0; 4096];
        while let Ok(Ok(1..)) = timeout_at(deadline, self.reader.io.read(&mut discarded)).await {}
    }
}

/// Closes a connection whose task was dropped by the runtime.
///
/// Without it the pending requests would never complete.
impl Drop for ConnectionDriver {
    fn drop(&mut self) {
        if !self.is_closed {
            self.close_with(&TransportError::closed(self.shared.peer));
        }
    }
}
