//! The end of a connection: idle timeout, flush deadline, notifications, lingering close.

use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::time::{Instant, sleep, timeout_at};

use super::idle_timer::Observation;
use super::reader::{IncomingStream, Reader};
use super::{ConnectionDriver, catch_panic};
use crate::client::SharedConnection;
use crate::error::{ErrorKind, TransportError};
use crate::log_limit::log_limited;
use crate::peer_text::{LogText, peer_name};
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
    /// The rules are those of `TransportChannelHandler.userEventTriggered`, but a cancelled request
    /// counts until the peer sends a byte, and new requests delay the timeout at most once.
    /// Completes with the error of pending requests. An idle connection is closed only on the sides
    /// that close idle connections.
    pub(super) fn poll_idle_timer(&mut self, context: &mut Context<'_>) -> Poll<TransportError> {
        loop {
            let Some(timer) = &mut self.idle_timer else {
                return Poll::Pending;
            };
            let (shared, reader, writer) = (&self.shared, &self.reader, &self.writer);
            let (has_flushed, mut unread) = (self.has_flushed, None);
            let elapsed = ready!(timer.poll_tick(context, || {
                unread = unread_text(reader, shared);
                let mut session = shared.session.lock();
                Observation {
                    received_bytes: shared.account.received_bytes.load(Ordering::Relaxed),
                    sent_bytes: shared.account.sent_bytes.load(Ordering::Relaxed),
                    is_writing: !has_flushed || writer.is_sending_file(),
                    has_pending: session.requests.len() > 0,
                    has_new_request: std::mem::take(&mut session.has_new_request),
                    has_cancelled: std::mem::take(&mut session.requests.has_cancelled),
                    is_paused: unread.is_some(),
                }
            }));
            let (peer, timeout) = (shared.peer, timer.timeout);
            let setting = self.resources.conf.setting_name("io.connectionTimeout");
            if let Some(unread) = unread.filter(|_| elapsed.is_paused) {
                self.fail_requests_behind(&unread, timeout, &setting);
            }
            let is_serving = self.is_serving();
            let mut session = self.shared.session.lock();
            if session.has_new_request {
                continue;
            }
            let pending = session.requests.len();
            let quiet_error = |reason: std::fmt::Arguments<'_>| {
                let text = format!(
                    "Connection to {peer} has been quiet for {timeout:?} {reason}. This timeout is \
                     controlled by {setting}"
                );
                TransportError::new(ErrorKind::Timeout, text).with_peer(peer)
            };
            let error = if pending > 0 && elapsed.is_silent {
                quiet_error(format_args!("while {pending} requests are pending"))
            } else if elapsed.is_silent_since_cancel {
                quiet_error(format_args!("since requests were sent that were then cancelled"))
            } else if pending == 0 && elapsed.is_idle && self.resources.close_idle && !is_serving {
                TransportError::closed(peer)
            } else {
                continue;
            };
            // Under the same lock, so that no request is registered before the close.
            session.close(CloseRequest::Immediate(error.clone()));
            drop(session);
            if error.is_timeout() {
                log_limited!(|suppressed| {
                    tracing::warn!(
                        suppressed,
                        %peer,
                        ?timeout,
                        pending,
                        setting,
                        "closing a quiet connection with pending requests"
                    );
                });
            } else {
                tracing::debug!(%peer, ?timeout, setting, "closing an idle connection");
            }
            return Poll::Ready(error);
        }
    }

    /// Returns whether requests of the peer are active, or a handshake is.
    fn is_serving(&self) -> bool {
        let session = self.shared.session.lock();
        self.reader.received_requests != session.responded
            || session.has_pending_output()
            || session.is_bootstrapping
            || session.is_handshake_queued
            || self.reader.is_receiving()
            || self.writer.is_sending_file()
    }

    /// Fails the requests whose responses wait behind something that this side does not read.
    fn fail_requests_behind(&self, unread: &str, timeout: Duration, setting: &str) {
        let peer = self.shared.peer;
        let mut wakers = Vec::new();
        let error = |count: usize| {
            let text = format!(
                "{count} requests to {peer} have waited for {timeout:?} behind {unread}. This \
                 timeout is controlled by {setting}"
            );
            TransportError::new(ErrorKind::Timeout, text).with_peer(peer)
        };
        let failed = self.shared.session.lock().requests.fail_unanswered(error, &mut wakers);
        if failed > 0 {
            log_limited!(|suppressed| {
                let unread = LogText(unread);
                tracing::warn!(
                    suppressed,
                    %peer,
                    ?timeout,
                    failed,
                    %unread,
                    "failing requests behind an unread body"
                );
            });
        }
        wakers.into_iter().for_each(Waker::wake);
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
            let log = |suppressed: Option<u64>| {
                tracing::warn!(
                    suppressed,
                    peer = %self.shared.peer,
                    error = %LogText(error),
                    "connection closed after an error"
                );
            };
            // A peer that sends garbage must not hide failed authentications.
            match error.kind() {
                ErrorKind::Bootstrap => log_limited!(log),
                _ => log_limited!(log),
            }
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
        self.buffers.set(0);
        if let Some(bulk_server) = self.bulk_server.take() {
            bulk_server.abort();
        }
        // Also without the announcement, because a bootstrap may have registered streams.
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

/// Describes what this side has not taken, if it stops the reader.
fn unread_text(reader: &Reader, shared: &SharedConnection) -> Option<String> {
    if let Some(IncomingStream { sender, is_stream, stream_id, length }) = &reader.incoming {
        let unread = sender.unread_if_full()?;
        let body = if *is_stream {
            format!("stream '{}'", peer_name(stream_id))
        } else {
            "an upload".into()
        };
        return Some(format!(
            "the body of {body}, of which {unread} of {length} bytes are unread: read or drop \
             the body, or use another connection for one of them"
        ));
    }
    let session = shared.session.lock();
    session.bulk_requests.is_full().then(|| {
        let count = session.bulk_requests.len();
        format!("{count} requests of the peer that the stream manager has not served")
    })
}
