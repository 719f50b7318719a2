//! [`TransportServer`]: accepts connections and starts their drivers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::address::PeerAddress;
use crate::client::{ConnectionId, SharedConnection};
use crate::connection::{ConnectionDriver, ConnectionResources, Handshaker};
use crate::error::{ErrorKind, TransportError};
use crate::handler::{RpcHandler, TransportServerBootstrap};
use crate::log_limit::log_limited;
use crate::net::{IoStream, Listener, socket_options};
use crate::peer_text::LogText;
use crate::session::CloseRequest;

/// The wait after a failed accept. Without it, "too many open files" would repeat in a busy loop.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// Listens on one address and serves the connections it accepts (Spark's `TransportServer`).
///
/// Dropping it stops listening and closes its connections at once. [`close`](Self::close) lets
/// their active requests end first.
///
/// ```
/// use std::time::Duration;
///
/// use network_common::{NoOpRpcHandler, TransportConf, TransportContext};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), network_common::TransportError> {
/// let context = TransportContext::new(TransportConf::new("rpc"), NoOpRpcHandler::new());
/// let server = context.create_server("127.0.0.1:0").await?;
/// assert_ne!(server.local_addr().port(), 0);
/// let closed_early = server.close(Duration::from_secs(5)).await;
/// assert_eq!(closed_early, 0);
/// # Ok(())
/// # }
/// ```
#[must_use = "the server stops when it is dropped"]
#[derive(Debug)]
pub struct TransportServer {
    address: SocketAddr,
    accept_task: JoinHandle<()>,
    inner: Arc<ServerInner>,
}

struct ServerInner {
    resources: Arc<ConnectionResources>,
    security: Option<Arc<dyn Handshaker>>,
    handler: Arc<dyn RpcHandler>,
    bootstraps: Vec<Arc<dyn TransportServerBootstrap>>,
    connections: Mutex<OpenConnections>,
    tasks: TaskTracker,
}

#[derive(Debug, Default)]
struct OpenConnections {
    open: BTreeMap<ConnectionId, Weak<SharedConnection>>,
    /// New connections are dropped.
    closed: bool,
}

impl TransportServer {
    pub(crate) async fn bind(
        address: PeerAddress,
        resources: Arc<ConnectionResources>,
        security: Option<Arc<dyn Handshaker>>,
        handler: Arc<dyn RpcHandler>,
        bootstraps: Vec<Arc<dyn TransportServerBootstrap>>,
    ) -> Result<Self, TransportError> {
        let bind_error = |error: std::io::Error| {
            let message = format!("the server cannot listen on {address}");
            TransportError::new(ErrorKind::Bind, message).with_source(error)
        };
        let network = resources.network.as_ref();
        let listener =
            Listener::bind(&address, &resources.conf, network).await.map_err(bind_error)?;
        let local_address = listener.local_addr().map_err(bind_error)?;
        let tasks = TaskTracker::new();
        let connections = Mutex::default();
        let inner =
            Arc::new(ServerInner { resources, security, handler, bootstraps, connections, tasks });
        let accept_task = tokio::spawn(accept_connections(listener, Arc::clone(&inner)));
        Ok(Self { address: local_address, accept_task, inner })
    }

    /// Returns the address that the server listens on, with the port that the system chose.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Stops listening, waits for active requests, and closes the connections.
    ///
    /// New requests of connected peers fail meanwhile. Connections with requests that are still
    /// active after `timeout` are closed at once; returns how many these are.
    ///
    /// # Cancel safety
    /// Dropping the future closes all connections at once.
    pub async fn close(mut self, timeout: Duration) -> usize {
        self.accept_task.abort();
        // The port is free when the task has ended.
        let _ = (&mut self.accept_task).await;
        self.inner.stop_accepting(SharedConnection::drain);
        self.inner.tasks.close();
        if tokio::time::timeout(timeout, self.inner.tasks.wait()).await.is_ok() {
            return 0;
        }
        let closed_early = self.inner.close_all();
        self.inner.tasks.wait().await;
        closed_early
    }
}

impl Drop for TransportServer {
    fn drop(&mut self) {
        self.accept_task.abort();
        self.inner.close_all();
    }
}

impl ServerInner {
    /// Rejects new connections and calls `each` for the open ones; returns their number.
    fn stop_accepting(&self, each: impl Fn(&SharedConnection)) -> usize {
        let open: Vec<_> = {
            let mut connections = self.connections.lock();
            connections.closed = true;
            connections.open.values().filter_map(Weak::upgrade).collect()
        };
        open.iter().for_each(|shared| each(shared));
        open.len()
    }

    /// Closes all connections at once; returns their number.
    fn close_all(&self) -> usize {
        self.stop_accepting(|shared| {
            shared.close(CloseRequest::Immediate(TransportError::closed(shared.peer)))
        })
    }

    fn spawn_connection(self: &Arc<Self>, stream: IoStream, peer: SocketAddr) {
        let mut connection = match self.set_up_connection(stream, peer) {
            Ok(connection) => connection,
            Err(error) => {
                log_limited!(|suppressed| {
                    let error = LogText(&error);
                    tracing::warn!(
                        suppressed,
                        %peer,
                        %error,
                        "cannot set up an accepted connection"
                    );
                });
                self.resources.metrics.count_failure(&error);
                return;
            }
        };
        let id = connection.client().id();
        {
            let mut connections = self.connections.lock();
            if connections.closed {
                return;
            }
            connections.open.insert(id, Arc::downgrade(connection.shared()));
        }
        let entry = OpenEntry { inner: Arc::clone(self), id };
        let span = tracing::debug_span!("connection", %peer, side = "server");
        self.tasks.spawn(
            async move {
                let inner = &entry.inner;
                let handshake = match &inner.security {
                    Some(security) => connection.handshake(&**security, &peer.into()).await,
                    None => Ok(()),
                };
                match handshake {
                    Ok(()) => connection.run().await,
                    Err(error) => {
                        if error.kind() != ErrorKind::Closed {
                            inner.resources.metrics.count_failure(&error);
                        }
                        connection.abort_handshake(&error).await;
                    }
                }
            }
            .instrument(span),
        );
    }

    fn set_up_connection(
        &self,
        stream: IoStream,
        peer: SocketAddr,
    ) -> Result<Box<ConnectionDriver>, TransportError> {
        let conf = &self.resources.conf;
        let io_error = |error: std::io::Error| {
            TransportError::new(ErrorKind::Io, format!("cannot set up the connection from {peer}"))
                .with_peer(peer)
                .with_source(error)
        };
        if let IoStream::Tcp(stream) = &stream {
            socket_options::configure_connected(stream, conf, conf.tcp_keep_alive())
                .map_err(io_error)?;
        }
        let mut connection = ConnectionDriver::new(
            stream,
            true,
            Arc::clone(&self.handler),
            Arc::clone(&self.resources),
        )
        .map_err(io_error)?;
        for bootstrap in &self.bootstraps {
            let handler = Arc::clone(connection.handler());
            let do_bootstrap = || bootstrap.do_bootstrap(connection.client(), handler);
            // A panic must not end the accept loop.
            let result = catch_unwind(AssertUnwindSafe(do_bootstrap));
            let handler = result.unwrap_or_else(|_| Err("the bootstrap panicked".into())).map_err(
                |error| {
                    TransportError::new(
                        ErrorKind::Bootstrap,
                        format!("a bootstrap of the connection from {peer} failed"),
                    )
                    .with_peer(peer)
                    .with_source(error)
                },
            )?;
            connection.set_handler(handler);
        }
        Ok(connection)
    }
}

/// Removes a connection from the open ones when its task ends, also by a panic.
struct OpenEntry {
    inner: Arc<ServerInner>,
    id: ConnectionId,
}

impl Drop for OpenEntry {
    fn drop(&mut self) {
        self.inner.connections.lock().open.remove(&self.id);
    }
}

impl std::fmt::Debug for ServerInner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerInner")
            .field("connections", &self.connections)
            .finish_non_exhaustive()
    }
}

async fn accept_connections(mut listener: Listener, inner: Arc<ServerInner>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => inner.spawn_connection(stream, peer),
            Err(error) => {
                // Such as a connection that was reset before it was accepted, or no free file
                // descriptor. Neither ends the server.
                log_limited!(|suppressed| {
                    tracing::warn!(suppressed, %error, "the server cannot accept a connection");
                });
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}
