//! The task of one connection: one poll reads, calls handlers, writes and checks timers.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use tokio::task::{AbortHandle, yield_now};
use tokio::time::Sleep;

use super::idle_timer::IdleTimer;
use super::reader::Reader;
use super::resources::{ConnectionResources, ReportedGauges};
use super::writer::Writer;
use super::{TLS_ALERT, catch_panic, socket_error};
use crate::budget::{ConnectionAccount, Reservation};
use crate::client::{SharedConnection, TransportClient};
use crate::error::{ErrorKind, TransportError};
use crate::handler::RpcHandler;
use crate::net::IoStream;
use crate::session::{CloseRequest, Session, WriteQueue};

/// The I/O half of one connection, from the connected socket to its end.
pub(crate) struct ConnectionDriver {
    pub(super) shared: Arc<SharedConnection>,
    /// The handle that handlers receive.
    pub(super) client: TransportClient,
    pub(super) handler: Arc<dyn RpcHandler>,
    pub(super) resources: Arc<ConnectionResources>,
    pub(super) reader: Reader,
    pub(super) writer: Writer,
    pub(super) idle_timer: Option<IdleTimer>,
    /// The last poll has written everything.
    pub(super) has_flushed: bool,
    /// Set when the connection starts to close.
    pub(super) flush_deadline: Option<Pin<Box<Sleep>>>,
    pub(super) gauges: ReportedGauges,
    /// Counts the buffers of the reader and the writer in the budget.
    pub(super) buffers: Reservation,
    /// The bulk server task, which is aborted when the connection closes.
    pub(super) bulk_server: Option<AbortHandle>,
    /// `RpcHandler::on_connected` was called.
    pub(super) is_announced: bool,
    pub(super) is_closed: bool,
}

impl ConnectionDriver {
    /// Creates the driver of a connected socket.
    ///
    /// The driver reads and writes only in [`run`](Self::run). Boxed, because every future that
    /// moves a driver would otherwise contain a copy of it.
    pub(crate) fn new(
        stream: IoStream,
        is_accepted: bool,
        handler: Arc<dyn RpcHandler>,
        resources: Arc<ConnectionResources>,
    ) -> std::io::Result<Box<Self>> {
        let (peer, local) = stream.addresses()?;
        let conf = &resources.conf;
        let account = ConnectionAccount::new(&resources.budget, &resources.metrics, peer);
        let write_queue = WriteQueue::new(
            conf.max_write_queue_size(),
            Arc::clone(&resources.write_queue_setting),
            account.unread(),
        );
        let session = Session::new(peer, write_queue);
        let shared = SharedConnection::new(session, account, (peer, local), is_accepted);
        let shared = Arc::new(shared);
        shared.register_in_budget();
        let (read_half, write_half) = stream.into_split();
        resources.metrics.connections.fetch_add(1, Ordering::Relaxed);
        resources.metrics.connections_total.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Self {
            client: TransportClient::accepted(Arc::clone(&shared)),
            reader: Reader::new(read_half, &resources, &shared.account),
            writer: Writer::new(write_half, Arc::clone(&shared), Arc::clone(&resources)),
            idle_timer: conf.connection_timeout().map(IdleTimer::new),
            has_flushed: true,
            flush_deadline: None,
            gauges: ReportedGauges::default(),
            buffers: shared.account.unread(),
            bulk_server: None,
            is_announced: false,
            is_closed: false,
            shared,
            handler,
            resources,
        }))
    }

    pub(crate) fn shared(&self) -> &Arc<SharedConnection> {
        &self.shared
    }

    pub(crate) fn client(&self) -> &TransportClient {
        &self.client
    }

    pub(crate) fn handler(&self) -> &Arc<dyn RpcHandler> {
        &self.handler
    }

    /// Replaces the handler; bootstraps call this before [`run`](Self::run).
    pub(crate) fn set_handler(&mut self, handler: Arc<dyn RpcHandler>) {
        self.handler = handler;
    }

    /// Runs the connection until it is closed.
    pub(crate) async fn run(mut self: Box<Self>) {
        self.is_announced = true;
        catch_panic("RpcHandler::on_connected", || self.handler.on_connected(&self.client));
        let error = std::future::poll_fn(|context| self.poll(context)).await;
        self.close_with(&error);
        let is_tls_refused = error.kind() == ErrorKind::Tls && !self.writer.has_filter();
        if is_tls_refused && self.shared.account.sent_bytes.load(Ordering::Relaxed) == 0 {
            // Fails if the peer has gone.
            let _ = self.writer.write_raw(&TLS_ALERT).await;
        }
        if error.kind() == ErrorKind::Closed || self.writer.has_filter() || is_tls_refused {
            self.linger().await;
        }
    }

    /// Polls the connection; completes with the reason to close it.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<TransportError> {
        self.shared.session.lock().clear_driver_waker();
        self.reader.reset_read_budget();
        loop {
            let close_request = self.shared.session.lock().close_request().cloned();
            if let Some(CloseRequest::Immediate(error)) = close_request {
                return Poll::Ready(error);
            }
            let has_read = match self.poll_read(context) {
                Poll::Ready(Err(error)) => return Poll::Ready(self.prefer_close_reason(error)),
                Poll::Ready(Ok(())) => true,
                Poll::Pending => false,
            };
            let has_flushed = match self.writer.poll_write(context) {
                Poll::Ready(Err(error)) => {
                    let error =
                        socket_error(self.shared.peer, "writing to", error, &self.resources.conf);
                    return Poll::Ready(self.prefer_close_reason(error));
                }
                Poll::Ready(Ok(())) => true,
                Poll::Pending => false,
            };
            self.has_flushed = has_flushed;
            if let Poll::Ready(error) = self.poll_idle_timer(context) {
                return Poll::Ready(error);
            }
            if has_read && has_flushed && self.reader.has_unprocessed() {
                continue;
            }
            // The budget is spent: other tasks of this thread run before the next poll.
            if has_read {
                context.waker().wake_by_ref();
            } else if self.writer.is_budget_spent {
                // Deferred until the runtime has polled its sockets. To wake at once could start an
                // idle worker thread instead, although there is no new event.
                let _ = std::pin::pin!(yield_now()).poll(context);
            }
            let mut session = self.shared.session.lock();
            if has_read && session.is_open() {
                return Poll::Pending;
            }
            let close_request = session.close_request().cloned();
            if has_flushed && session.outgoing.is_empty(true) && !self.writer.is_sending_file() {
                let is_drained = self.reader.received_requests == session.responded
                    && !session.has_pending_output()
                    && !self.reader.is_receiving();
                if let Some(CloseRequest::AfterFlush(error)) = close_request {
                    return Poll::Ready(error);
                }
                if self.shared.is_draining() && is_drained {
                    return Poll::Ready(TransportError::closed(self.shared.peer));
                }
            } else if has_flushed || (close_request.is_some() && self.flush_deadline.is_none()) {
                // A frame was queued since the write, or the flush has no deadline yet.
                drop(session);
                if close_request.is_some() {
                    self.start_flush_deadline();
                }
                if self.is_flush_overdue(context) {
                    return Poll::Ready(TransportError::closed(self.shared.peer));
                }
                continue;
            }
            // Anything that changed under the lock meanwhile would not wake this task.
            let budget = &self.resources.budget;
            let waits_for_budget = session.outgoing.holds_back_requests()
                && budget.wake_when_available(context.waker());
            let can_resume_reading = self.reader.is_paused
                && !waits_for_budget
                && !session.should_pause_for_connection();
            let can_write_control =
                self.writer.can_write_control() && !session.outgoing.is_empty(false);
            if can_resume_reading
                || can_write_control
                || matches!(session.close_request(), Some(CloseRequest::Immediate(_)))
            {
                continue;
            }
            self.gauges.report(
                &self.resources.metrics,
                session.requests.len() as u64,
                self.reader.received_requests.saturating_sub(session.responded),
                session.outgoing.queued(),
            );
            session.count_held();
            self.buffers.set((self.reader.buffer_size() + self.writer.buffer_size()) as u64);
            session.set_driver_waker(context.waker().clone());
            drop(session);
            if self.resources.budget.is_nearly_used() {
                self.resources.budget.start_monitor();
                self.resources.budget.close_largest_if_exceeded();
            }
            if self.is_flush_overdue(context) {
                return Poll::Ready(TransportError::closed(self.shared.peer));
            }
            return Poll::Pending;
        }
    }
}
