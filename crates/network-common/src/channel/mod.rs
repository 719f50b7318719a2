//! The driver of one connection: the only place that does socket I/O.
//!
//! One task reads, dispatches and writes, so that answers to requests that came together leave
//! together. Only bodies in files that are not cached (blocking threads), the stream manager and
//! uploads (tasks that live while there is work) run beside it.

mod clock;
mod file;
mod handshake;
mod reading;
mod sendfile;
mod serve;
pub(crate) mod socket;
mod stream;
mod writing;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::task::{AbortHandle, yield_now};
use tokio::time::{Instant, timeout_at};

use self::clock::IdleClock;
pub(crate) use self::handshake::Security;
#[cfg(feature = "tls")]
pub(crate) use self::handshake::{Handshake, Secured};
use self::reading::Reader;
pub(crate) use self::stream::Stream;
use self::writing::Writer;
use crate::buffer::BufferPool;
use crate::client::{Shared, TransportClient};
use crate::conf::TransportConf;
use crate::error::{BoxError, ErrorKind, TransportError};
use crate::handler::RpcHandler;
use crate::metrics::{SideMetrics, report};
use crate::network::MemoryNetwork;
use crate::protocol::FrameLimits;
use crate::session::{Closing, Outgoing, Session};

/// How long what is queued may take to be written when a connection is closed.
const FLUSH_LIMIT: Duration = Duration::from_secs(10);
/// How long a closed connection is still read, so that the peer gets our last words instead of a
/// reset.
const LINGER_LIMIT: Duration = Duration::from_secs(1);

/// What all connections of one side of a context share.
#[derive(Debug)]
pub(crate) struct Resources {
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

impl Resources {
    pub(crate) fn new(
        conf: Arc<TransportConf>,
        metrics: Arc<SideMetrics>,
        pool: Arc<BufferPool>,
        close_idle: bool,
        network: Option<MemoryNetwork>,
    ) -> Self {
        let limits = Arc::new(FrameLimits {
            max_request: conf.max_request_size(),
            max_request_setting: conf.key("maxRequestSize"),
        });
        let write_queue_setting = conf.key("maxWriteQueueSize").into();
        let native_file_transfer = conf.native_file_transfer();
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

    fn wrote(&self, shared: &Shared, count: usize) {
        self.metrics.bytes_out.fetch_add(count as u64, Ordering::Relaxed);
        shared.moved(count);
    }

    fn read(&self, shared: &Shared, count: usize) {
        self.metrics.bytes_in.fetch_add(count as u64, Ordering::Relaxed);
        shared.moved(count);
    }
}

/// One connection before and while it is driven.
pub(crate) struct Connection {
    shared: Arc<Shared>,
    /// Handed to handlers.
    client: TransportClient,
    handler: Arc<dyn RpcHandler>,
    resources: Arc<Resources>,
    reader: Reader,
    writer: Writer,
    clock: Option<IdleClock>,
    flush: Option<std::pin::Pin<Box<tokio::time::Sleep>>>,
    reported: Reported,
    /// The task that asks the stream manager, which ends with the connection.
    bulk_server: Option<AbortHandle>,
    /// The handler knows of it.
    begun: bool,
    ended: bool,
}

/// What this connection last added to the gauges.
#[derive(Debug, Default)]
struct Reported {
    in_flight: u64,
    being_served: u64,
    queued: u64,
}

impl Connection {
    /// Takes over a connected socket. Nothing is read or written before [`run`](Self::run). Boxed:
    /// every future that it is moved through would have room for another copy.
    pub(crate) fn new(
        stream: Stream,
        handler: Arc<dyn RpcHandler>,
        resources: Arc<Resources>,
    ) -> std::io::Result<Box<Self>> {
        let (peer, local) = stream.addresses()?;
        let conf = &resources.conf;
        let outgoing =
            Outgoing::new(conf.max_write_queue_size(), Arc::clone(&resources.write_queue_setting));
        let shared = Arc::new(Shared::new(Session::new(peer, outgoing), peer, local));
        let (read_half, write_half) = stream.into_split();
        resources.metrics.connections.fetch_add(1, Ordering::Relaxed);
        resources.metrics.connections_total.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Self {
            client: TransportClient::reverse(Arc::clone(&shared)),
            reader: Reader::new(read_half, &resources),
            writer: Writer::new(write_half, Arc::clone(&shared), Arc::clone(&resources)),
            clock: conf.connection_timeout().map(IdleClock::new),
            flush: None,
            reported: Reported::default(),
            bulk_server: None,
            begun: false,
            ended: false,
            shared,
            handler,
            resources,
        }))
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
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
        self.begun = true;
        guarded("channel_active", || self.handler.channel_active(&self.client));
        let error = std::future::poll_fn(|context| self.poll(context)).await;
        self.end(&error);
        if error.kind() == ErrorKind::Closed || self.writer.is_sealed() {
            self.linger().await;
        }
    }

    /// One turn of the driver. `Ready`: the connection ends for this reason.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<TransportError> {
        self.shared.session.lock().driver_runs();
        self.reader.begin_turn();
        loop {
            if let Some(Closing::Now(error)) = self.shared.session.lock().closing() {
                return Poll::Ready(error.clone());
            }
            let read = match self.poll_read(context) {
                Poll::Ready(Err(error)) => return Poll::Ready(self.first_reason(error)),
                Poll::Ready(Ok(())) => true,
                Poll::Pending => false,
            };
            let written = match self.writer.poll_write(context) {
                Poll::Ready(Err(error)) => {
                    let error = io_error(self.shared.peer, "writing to", error);
                    return Poll::Ready(self.first_reason(error));
                }
                Poll::Ready(Ok(())) => true,
                Poll::Pending => false,
            };
            if let Poll::Ready(error) = self.poll_clock(context) {
                return Poll::Ready(error);
            }
            if read && written && self.reader.has_part() {
                continue;
            }
            // There may be more to do; but others on this thread get their turn first.
            if read {
                context.waker().wake_by_ref();
            } else if self.writer.turn_over {
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
                let served = self.reader.received == session.answered
                    && !session.is_busy()
                    && !self.reader.is_receiving();
                if let Some(Closing::Flush(error)) = closing {
                    return Poll::Ready(error);
                }
                if draining && served {
                    return Poll::Ready(TransportError::closed(self.shared.peer));
                }
            } else if written || (closing.is_some() && self.flush.is_none()) {
                // Something was queued meanwhile, or the flush needs its deadline.
                drop(session);
                if closing.is_some() && self.flush.is_none() {
                    self.flush = Some(Box::pin(tokio::time::sleep(FLUSH_LIMIT)));
                }
                if self.flush_expired(context) {
                    return Poll::Ready(TransportError::closed(self.shared.peer));
                }
                continue;
            }
            let resumes = self.reader.paused && !session.peer_must_wait();
            let overtakes = self.writer.takes_control() && !session.outgoing.is_empty(false);
            if resumes || overtakes || matches!(session.closing(), Some(Closing::Now(_))) {
                continue;
            }
            let outstanding = session.requests.outstanding() as u64;
            let metrics = &self.resources.metrics;
            report(&metrics.requests_in_flight, &mut self.reported.in_flight, outstanding);
            let being_served = self.reader.received.saturating_sub(session.answered);
            report(&metrics.requests_being_served, &mut self.reported.being_served, being_served);
            report(&metrics.queued_bytes, &mut self.reported.queued, session.outgoing.queued());
            session.driver_sleeps(context.waker().clone());
            drop(session);
            if self.flush_expired(context) {
                return Poll::Ready(TransportError::closed(self.shared.peer));
            }
            return Poll::Pending;
        }
    }

    /// A connection that is being closed anyway does not end for what goes wrong meanwhile.
    fn first_reason(&self, error: TransportError) -> TransportError {
        match self.shared.session.lock().closing() {
            Some(Closing::Flush(reason) | Closing::Now(reason)) => reason.clone(),
            None => error,
        }
    }

    fn flush_expired(&mut self, context: &mut Context<'_>) -> bool {
        self.flush.as_mut().is_some_and(|limit| limit.as_mut().poll(context).is_ready())
    }

    /// The idle and request timeout of transport 8.
    fn poll_clock(&mut self, context: &mut Context<'_>) -> Poll<TransportError> {
        let Some(clock) = &mut self.clock else {
            return Poll::Pending;
        };
        let shared = &self.shared;
        loop {
            let overdue = std::task::ready!(clock.poll_overdue(context, || {
                let requested = std::mem::take(&mut shared.session.lock().requested);
                (shared.moved.load(Ordering::Relaxed), requested)
            }));
            if !overdue {
                continue;
            }
            let mut session = shared.session.lock();
            let outstanding = session.requests.outstanding();
            if session.requested || (outstanding == 0 && !self.resources.close_idle) {
                continue;
            }
            let (peer, timeout) =
                (shared.peer, self.resources.conf.connection_timeout().unwrap_or_default());
            let setting = self.resources.conf.key("connectionTimeout");
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
            session.close(Closing::Now(error.clone()));
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
    fn end(&mut self, error: &TransportError) {
        self.ended = true;
        self.shared.deactivate();
        let (handler, client) = (&self.handler, &self.client);
        if error.kind() == ErrorKind::Closed {
            tracing::debug!(peer = %self.shared.peer, "connection ended");
        } else {
            tracing::warn!(peer = %self.shared.peer, %error, "connection ended by an error");
            // One that has not begun fails as an attempt, which is counted where it was made.
            if self.begun {
                self.resources.metrics.failed(error);
                guarded("exception_caught", || handler.exception_caught(error, client));
            }
        }
        let mut wakers = Vec::new();
        let mut session = self.shared.session.lock();
        let unserved = session.bulk_requests() as u64;
        let unwritten = session.end(error.clone(), &mut wakers);
        drop(session);
        self.resources.metrics.chunks_in_transfer.fetch_sub(unserved, Ordering::Relaxed);
        wakers.into_iter().for_each(std::task::Waker::wake);
        self.shared.ended.notify_waiters();
        self.reader.end(error);
        guarded("on_release", || drop(unwritten));
        guarded("on_release", || self.writer.end());
        if let Some(server) = self.bulk_server.take() {
            server.abort();
        }
        if self.begun {
            guarded("connection_terminated", || {
                handler.stream_manager().connection_terminated(client)
            });
            guarded("channel_inactive", || handler.channel_inactive(client));
        }
        let metrics = &self.resources.metrics;
        metrics.connections.fetch_sub(1, Ordering::Relaxed);
        report(&metrics.requests_in_flight, &mut self.reported.in_flight, 0);
        report(&metrics.requests_being_served, &mut self.reported.being_served, 0);
        report(&metrics.queued_bytes, &mut self.reported.queued, 0);
    }

    /// Ends the sending direction and reads until the peer does the same: closing with unread data
    /// would reset the connection and could destroy what the peer has not read yet.
    async fn linger(&mut self) {
        let deadline = Instant::now() + LINGER_LIMIT;
        let _ = timeout_at(deadline, self.writer.shut()).await;
        let mut scrap = vec![0; 4096];
        while let Ok(Ok(1..)) = timeout_at(deadline, self.reader.half().read(&mut scrap)).await {}
    }
}

/// Reached without an end only when the runtime drops the task: nobody may wait for ever.
impl Drop for Connection {
    fn drop(&mut self) {
        if !self.ended {
            self.end(&TransportError::closed(self.shared.peer));
        }
    }
}

fn io_error(peer: SocketAddr, operation: &str, error: impl Into<BoxError>) -> TransportError {
    let error = error.into();
    TransportError::new(ErrorKind::Io, format!("{operation} {peer} failed: {error}"))
        .with_peer(peer)
        .with_source(error)
}

/// Calls user code that has nobody to report a panic to.
fn guarded(what: &str, call: impl FnOnce()) {
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).is_err() {
        tracing::error!(callback = what, "a callback of the RPC handler panicked");
    }
}
