//! The driver of one connection: the only code that reads from and writes to its socket.
//!
//! One task per connection ([`ConnectionDriver`]) reads, calls handlers and writes, so responses to
//! requests of one read leave in one write. Servers and client factories create it. Other tasks run
//! only for calls of the stream manager, for uploads, and for files outside of the page cache.

mod bulk_server;
mod close;
mod driver;
mod file_body;
mod handshake;
mod idle_timer;
mod poll_read;
mod reader;
mod requests;
mod resources;
mod responses;
mod sealer;
mod sendfile;
mod upload;
mod writer;

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use futures::FutureExt;

pub(crate) use self::driver::ConnectionDriver;
pub(crate) use self::handshake::Handshaker;
#[cfg(feature = "tls")]
pub(crate) use self::handshake::{Handshake, HandshakeOutput};
pub(crate) use self::resources::ConnectionResources;
use crate::client::SharedConnection;
use crate::error::{BoxError, ErrorKind, TransportError};
use crate::protocol::ProtocolError;

/// How long what is queued may take to be written when a connection is closed.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a closed connection is still read, so that the peer gets our last words instead of a
/// reset.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);

/// What all connections of one side of a context share.
#[derive(Debug)]
pub(crate) struct ConnectionResources {
    pub(crate) conf: Arc<TransportConf>,
    pub(crate) metrics: Arc<SideMetrics>,
    pub(crate) pool: Arc<BufferPool>,
    pub(crate) limits: Arc<FrameLimits>,
    pub(crate) write_queue_setting: Arc<str>,
    pub(crate) native_file_transfer: bool,
    pub(crate) close_idle: bool,
    /// Instead of the system's.
    pub(crate) network: Option<MemoryNetwork>,
}

impl ConnectionResources {
    pub(crate) fn new(
        conf: Arc<TransportConf>,
        metrics: Arc<SideMetrics>,
        pool: Arc<BufferPool>,
        close_idle: bool,
        network: Option<MemoryNetwork>,
    ) -> Self {
        let limits = Arc::new(FrameLimits {
            max_request: conf.max_request_size(),
            max_request_setting: conf.setting_name("io.maxRequestSize"),
        });
        let write_queue_setting = conf.setting_name("io.maxWriteQueueSize").into();
        let native_file_transfer = conf.can_send_files_natively();
        Self {
            conf,
            metrics,
            pool,
            limits,
            write_queue_setting,
            native_file_transfer,
            close_idle,
            network,
        }
    }

    fn count_sent(&self, shared: &SharedConnection, count: usize) {
        self.metrics.sent_bytes.fetch_add(count as u64, Ordering::Relaxed);
        shared.count_io_bytes(count);
    }

    fn count_received(&self, shared: &SharedConnection, count: usize) {
        self.metrics.received_bytes.fetch_add(count as u64, Ordering::Relaxed);
        shared.count_io_bytes(count);
    }
}

/// One connection before and while it is driven.
pub(crate) struct ConnectionDriver {
    shared: Arc<SharedConnection>,
    /// Handed to handlers.
    client: TransportClient,
    handler: Arc<dyn RpcHandler>,
    resources: Arc<ConnectionResources>,
    reader: Reader,
    writer: Writer,
    clock: Option<IdleTimer>,
    flush_deadline: Option<std::pin::Pin<Box<tokio::time::Sleep>>>,
    reported: ReportedGauges,
    /// The task that asks the stream manager, which ends with the connection.
    bulk_server: Option<AbortHandle>,
    /// The handler knows of it.
    is_announced: bool,
    is_closed: bool,
}

/// What this connection last added to the gauges.
#[derive(Debug, Default)]
struct ReportedGauges {
    in_flight: u64,
    being_served: u64,
    queued: u64,
}

impl ConnectionDriver {
    /// Takes over a connected socket. Nothing is read or written before [`run`](Self::run). Boxed:
    /// every future that it is moved through would have room for another copy.
    pub(crate) fn new(
        stream: IoStream,
        handler: Arc<dyn RpcHandler>,
        resources: Arc<ConnectionResources>,
    ) -> std::io::Result<Box<Self>> {
        let (peer, local) = stream.addresses()?;
        let conf = &resources.conf;
        let outgoing = WriteQueue::new(
            conf.max_write_queue_size(),
            Arc::clone(&resources.write_queue_setting),
        );
        let shared = Arc::new(SharedConnection::new(Session::new(peer, outgoing), peer, local));
        let (read_half, write_half) = stream.into_split();
        resources.metrics.connections.fetch_add(1, Ordering::Relaxed);
        resources.metrics.connections_total.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Self {
            client: TransportClient::accepted(Arc::clone(&shared)),
            reader: Reader::new(read_half, &resources),
            writer: Writer::new(write_half, Arc::clone(&shared), Arc::clone(&resources)),
            clock: conf.connection_timeout().map(IdleTimer::new),
            flush_deadline: None,
            reported: ReportedGauges::default(),
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

    /// Replaces the handler; for server bootstraps.
    pub(crate) fn set_handler(&mut self, handler: Arc<dyn RpcHandler>) {
        self.handler = handler;
    }

    /// Drives the connection to its end.
    pub(crate) async fn run(mut self: Box<Self>) {
        self.is_announced = true;
        catch_panic("RpcHandler::on_connected", || self.handler.on_connected(&self.client));
        let error = std::future::poll_fn(|context| self.poll(context)).await;
        self.close_with(&error);
        if error.kind() == ErrorKind::Closed || self.writer.is_sealed() {
            self.linger().await;
        }
    }

    /// One turn of the driver. `Ready`: the connection ends for this reason.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<TransportError> {
        self.shared.session.lock().clear_driver_waker();
        self.reader.reset_read_budget();
        loop {
            if let Some(CloseRequest::Immediate(error)) = self.shared.session.lock().closing() {
                return Poll::Ready(error.clone());
            }
            let read = match self.poll_read(context) {
                Poll::Ready(Err(error)) => return Poll::Ready(self.prefer_close_reason(error)),
                Poll::Ready(Ok(())) => true,
                Poll::Pending => false,
            };
            let written = match self.writer.poll_write(context) {
                Poll::Ready(Err(error)) => {
                    let error = io_error(self.shared.peer, "writing to", error);
                    return Poll::Ready(self.prefer_close_reason(error));
                }
                Poll::Ready(Ok(())) => true,
                Poll::Pending => false,
            };
            if let Poll::Ready(error) = self.poll_idle_timer(context) {
                return Poll::Ready(error);
            }
            if read && written && self.reader.has_unprocessed() {
                continue;
            }
            // There may be more to do; but others on this thread get their turn first.
            if read {
                context.waker().wake_by_ref();
            } else if self.writer.is_budget_spent {
                // Nobody was told anything. To be woken at once would set an idle thread in motion
                // for nothing, while nobody looks at the other sockets.
                let _ = std::pin::pin!(yield_now()).poll(context);
            }
            let mut session = self.shared.session.lock();
            if read && session.is_open() {
                return Poll::Pending;
            }
            let (closing, draining) = (session.closing().cloned(), self.shared.is_draining());
            if written && session.outgoing.is_empty(true) && !self.writer.is_sending_file() {
                let served = self.reader.received == session.responded
                    && !session.has_pending_output()
                    && !self.reader.is_receiving();
                if let Some(CloseRequest::AfterFlush(error)) = closing {
                    return Poll::Ready(error);
                }
                if draining && served {
                    return Poll::Ready(TransportError::closed(self.shared.peer));
                }
            } else if written || (closing.is_some() && self.flush_deadline.is_none()) {
                // Something was queued meanwhile, or the flush needs its deadline.
                drop(session);
                if closing.is_some() && self.flush_deadline.is_none() {
                    self.flush_deadline = Some(Box::pin(tokio::time::sleep(FLUSH_TIMEOUT)));
                }
                if self.flush_expired(context) {
                    return Poll::Ready(TransportError::closed(self.shared.peer));
                }
                continue;
            }
            let resumes = self.reader.paused && !session.should_pause_reading();
            let overtakes = self.writer.can_write_control() && !session.outgoing.is_empty(false);
            if resumes || overtakes || matches!(session.closing(), Some(CloseRequest::Immediate(_)))
            {
                continue;
            }
            let outstanding = session.requests.len() as u64;
            let metrics = &self.resources.metrics;
            update_gauge(&metrics.pending_requests, &mut self.reported.in_flight, outstanding);
            let being_served = self.reader.received.saturating_sub(session.responded);
            update_gauge(&metrics.active_requests, &mut self.reported.being_served, being_served);
            update_gauge(
                &metrics.write_queue_bytes,
                &mut self.reported.queued,
                session.outgoing.queued(),
            );
            session.set_driver_waker(context.waker().clone());
            drop(session);
            if self.flush_expired(context) {
                return Poll::Ready(TransportError::closed(self.shared.peer));
            }
            return Poll::Pending;
        }
    }

    /// A connection that is being closed anyway does not end for what goes wrong meanwhile.
    fn prefer_close_reason(&self, error: TransportError) -> TransportError {
        match self.shared.session.lock().closing() {
            Some(CloseRequest::AfterFlush(reason) | CloseRequest::Immediate(reason)) => {
                reason.clone()
            }
            None => error,
        }
    }

    fn flush_expired(&mut self, context: &mut Context<'_>) -> bool {
        self.flush_deadline.as_mut().is_some_and(|limit| limit.as_mut().poll(context).is_ready())
    }

    /// The idle and request timeout of transport 8.
    fn poll_idle_timer(&mut self, context: &mut Context<'_>) -> Poll<TransportError> {
        let Some(clock) = &mut self.clock else {
            return Poll::Pending;
        };
        let shared = &self.shared;
        loop {
            let overdue = std::task::ready!(clock.poll_expired(context, || {
                let requested = std::mem::take(&mut shared.session.lock().has_new_request);
                (shared.io_bytes.load(Ordering::Relaxed), requested)
            }));
            if !overdue {
                continue;
            }
            let mut session = shared.session.lock();
            let outstanding = session.requests.len();
            if session.has_new_request || (outstanding == 0 && !self.resources.close_idle) {
                continue;
            }
            let (peer, timeout) =
                (shared.peer, self.resources.conf.connection_timeout().unwrap_or_default());
            let setting = self.resources.conf.setting_name("io.connectionTimeout");
            let error = if outstanding > 0 {
                let text = format!(
                    "Connection to {peer} has been quiet for {timeout:?} while there are {outstanding} outstanding \
                     requests. This timeout is controlled by {setting}"
                );
                TransportError::new(ErrorKind::Timeout, text).with_peer(peer)
            } else {
                TransportError::closed(peer)
            };
            // Under the same lock: nobody who comes now gets a connection, or registers a request,
            // that ends at once.
            session.close(CloseRequest::Immediate(error.clone()));
            drop(session);
            if outstanding > 0 {
                tracing::warn!(%peer, ?timeout, outstanding, setting, "closing a quiet connection with outstanding requests");
            } else {
                tracing::debug!(%peer, ?timeout, setting, "closing an idle connection");
            }
            return Poll::Ready(error);
        }
    }

    /// Tells everybody, in the order of transport 6 and 8.
    fn close_with(&mut self, error: &TransportError) {
        self.is_closed = true;
        self.shared.deactivate();
        let (handler, client) = (&self.handler, &self.client);
        if error.kind() == ErrorKind::Closed {
            tracing::debug!(peer = %self.shared.peer, "connection ended");
        } else {
            tracing::warn!(peer = %self.shared.peer, %error, "connection ended by an error");
            // One that has not begun fails as an attempt, which is counted where it was made.
            if self.is_announced {
                self.resources.metrics.count_failure(error);
                catch_panic("RpcHandler::on_network_error", || {
                    handler.on_network_error(error, client)
                });
            }
        }
        let mut wakers = Vec::new();
        let mut session = self.shared.session.lock();
        let unserved = session.bulk_requests() as u64;
        let unwritten = session.close_with(error.clone(), &mut wakers);
        drop(session);
        self.resources.metrics.chunks_being_transferred.fetch_sub(unserved, Ordering::Relaxed);
        wakers.into_iter().for_each(std::task::Waker::wake);
        self.shared.closed_notify.notify_waiters();
        self.reader.end(error);
        catch_panic("on_release", || drop(unwritten));
        catch_panic("on_release", || self.writer.discard());
        if let Some(server) = self.bulk_server.take() {
            server.abort();
        }
        if self.is_announced {
            catch_panic("connection_terminated", || {
                handler.stream_manager().connection_terminated(client)
            });
            catch_panic("RpcHandler::on_disconnected", || handler.on_disconnected(client));
        }
        let metrics = &self.resources.metrics;
        metrics.connections.fetch_sub(1, Ordering::Relaxed);
        update_gauge(&metrics.pending_requests, &mut self.reported.in_flight, 0);
        update_gauge(&metrics.active_requests, &mut self.reported.being_served, 0);
        update_gauge(&metrics.write_queue_bytes, &mut self.reported.queued, 0);
    }

    /// Ends the sending direction and reads until the peer does the same: closing with unread data
    /// would reset the connection and could destroy what the peer has not read yet.
    async fn linger(&mut self) {
        let deadline = Instant::now() + LINGER_TIMEOUT;
        let _ = timeout_at(deadline, self.writer.shutdown()).await;
        let mut scrap = vec![0; 4096];
        while let Ok(Ok(1..)) = timeout_at(deadline, self.reader.io_mut().read(&mut scrap)).await {}
    }
}

/// Reached without an end only when the runtime drops the task: nobody may wait for ever.
impl Drop for ConnectionDriver {
    fn drop(&mut self) {
        if !self.is_closed {
            self.close_with(&TransportError::closed(self.shared.peer));
        }
    }
}

/// Creates the error of an I/O operation: "`operation` `peer` failed".
fn io_error(peer: SocketAddr, operation: &str, error: impl Into<BoxError>) -> TransportError {
    let error = error.into();
    TransportError::new(ErrorKind::Io, format!("{operation} {peer} failed: {error}"))
        .with_peer(peer)
        .with_source(error)
}

/// Creates the error of a peer that violates the protocol.
fn protocol_error(shared: &SharedConnection, error: ProtocolError) -> TransportError {
    let peer = shared.peer;
    TransportError::new(ErrorKind::Protocol, format!("malformed data from {peer}: {error}"))
        .with_peer(peer)
        .with_source(error)
}

/// Calls a user's callback; logs a panic, which has no caller to report it to.
fn catch_panic(callback: &str, call: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(call)).is_err() {
        tracing::error!(callback, "a callback panicked");
    }
}

/// Runs a user's future; turns a panic into an error.
async fn catch_panic_async<T>(
    code: impl Future<Output = Result<T, BoxError>>,
) -> Result<T, BoxError> {
    match AssertUnwindSafe(code).catch_unwind().await {
        Ok(result) => result,
        Err(_) => Err("the handler panicked".into()),
    }
}
