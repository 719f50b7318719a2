//! Accepting connections.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpSocket, ToSocketAddrs, lookup_host};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::client::{ConnectionId, SharedConnection};
use crate::connection::{ConnectionDriver, ConnectionResources, Handshaker};
use crate::error::{ErrorKind, TransportError};
use crate::handler::{RpcHandler, TransportServerBootstrap};
use crate::net::{IoStream, MemoryListener, socket_options};
use crate::session::CloseRequest;

/// How long accepting rests after an error such as "too many open files", which would otherwise
/// come again at once.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// Listens, and serves the connections it accepts (transport 7).
///
/// Dropping it stops listening and closes its connections at once; [`close`](Self::close) lets them
/// finish.
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
    open: HashMap<ConnectionId, Weak<SharedConnection>>,
    /// No new ones: one that was just being accepted is dropped.
    closed: bool,
}

impl TransportServer {
    pub(crate) async fn bind(
        address: impl ToSocketAddrs,
        resources: Arc<ConnectionResources>,
        security: Option<Arc<dyn Handshaker>>,
        handler: Arc<dyn RpcHandler>,
        bootstraps: Vec<Arc<dyn TransportServerBootstrap>>,
    ) -> Result<Self, TransportError> {
        let listener = listen(address, &resources).await.map_err(|(address, error)| {
            TransportError::new(ErrorKind::Bind, format!("cannot listen on {address}: {error}"))
                .with_source(error)
        })?;
        let address = listener.local_addr().map_err(|error| {
            TransportError::new(ErrorKind::Bind, format!("cannot listen: {error}"))
                .with_source(error)
        })?;
        let tasks = TaskTracker::new();
        let connections = Mutex::default();
        let inner =
            Arc::new(ServerInner { resources, security, handler, bootstraps, connections, tasks });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&inner)));
        Ok(Self { address, accept_task: accepting, inner })
    }

    /// The address it listens on, with the real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Stops listening, lets what was asked before be answered, and closes the connections; those
    /// that are not finished after `deadline` are cut. New requests of connected peers fail
    /// meanwhile. Returns how many connections were cut.
    ///
    /// Dropping the future cuts them all.
    pub async fn close(mut self, deadline: Duration) -> usize {
        self.accept_task.abort();
        // When it has ended the port is free.
        let _ = (&mut self.accept_task).await;
        self.inner.stop_accepting(SharedConnection::drain);
        self.inner.tasks.close();
        if tokio::time::timeout(deadline, self.inner.tasks.wait()).await.is_ok() {
            return 0;
        }
        let cut = self.inner.close_all();
        self.inner.tasks.wait().await;
        cut
    }
}

impl Drop for TransportServer {
    fn drop(&mut self) {
        self.accept_task.abort();
        self.inner.close_all();
    }
}

impl ServerInner {
    /// No new connections, and `each` of the open ones is told.
    fn stop_accepting(&self, each: impl Fn(&SharedConnection)) -> usize {
        let open: Vec<_> = {
            let mut connections = self.connections.lock();
            connections.closed = true;
            connections.open.values().filter_map(Weak::upgrade).collect()
        };
        open.iter().for_each(|shared| each(shared));
        open.len()
    }

    fn close_all(&self) -> usize {
        self.stop_accepting(|shared| {
            shared.close(CloseRequest::Immediate(TransportError::closed(shared.peer)))
        })
    }

    fn spawn_connection(self: &Arc<Self>, stream: IoStream, peer: SocketAddr) {
        let mut connection = match self.set_up_connection(stream, peer) {
            Ok(connection) => connection,
            Err(error) => {
                tracing::warn!(%peer, %error, "connection refused");
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
        let inner = Arc::clone(self);
        let span = tracing::debug_span!("connection", %peer, side = "server");
        self.tasks.spawn(
            async move {
                let secured = match &inner.security {
                    Some(security) => connection.handshake(&**security, &peer.into()).await,
                    None => Ok(()),
                };
                match secured {
                    Ok(()) => connection.run().await,
                    Err(error) => {
                        if error.kind() != ErrorKind::Closed {
                            inner.resources.metrics.count_failure(&error);
                        }
                        connection.abort_handshake(&error).await;
                    }
                }
                inner.connections.lock().open.remove(&id);
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
            TransportError::new(
                ErrorKind::Io,
                format!("setting up the connection from {peer} failed: {error}"),
            )
            .with_peer(peer)
            .with_source(error)
        };
        if let IoStream::Tcp(stream) = &stream {
            socket_options::configure_connected(stream, conf, conf.tcp_keep_alive())
                .map_err(io_error)?;
        }
        let mut connection =
            ConnectionDriver::new(stream, Arc::clone(&self.handler), Arc::clone(&self.resources))
                .map_err(io_error)?;
        for bootstrap in &self.bootstraps {
            let handler = Arc::clone(connection.handler());
            let bootstrapped = || bootstrap.do_bootstrap(connection.client(), handler);
            // A panic is an error like any other: it must not end the accept loop.
            let bootstrapped = catch_unwind(AssertUnwindSafe(bootstrapped));
            let handler =
                bootstrapped.unwrap_or_else(|_| Err("it panicked".into())).map_err(|error| {
                    TransportError::new(
                        ErrorKind::Bootstrap,
                        format!("bootstrap for {peer} failed: {error}"),
                    )
                    .with_peer(peer)
                    .with_source(error)
                })?;
            connection.set_handler(handler);
        }
        Ok(connection)
    }
}

impl std::fmt::Debug for ServerInner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("connections", &self.connections).finish_non_exhaustive()
    }
}

async fn accept(mut listener: Listener, inner: Arc<ServerInner>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => inner.spawn_connection(stream, peer),
            Err(error) => {
                // A connection that was reset while it waited, or no file descriptors left: neither
                // ends the server.
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

/// Where connections arrive.
enum Listener {
    Tcp(TcpListener),
    Memory(MemoryListener),
}

impl Listener {
    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr(),
            Self::Memory(listener) => Ok(listener.address),
        }
    }

    async fn accept(&mut self) -> std::io::Result<(IoStream, SocketAddr)> {
        match self {
            Self::Tcp(listener) => {
                listener.accept().await.map(|(stream, peer)| (IoStream::Tcp(stream), peer))
            }
            Self::Memory(listener) => {
                let stream = listener.accept().await?;
                let peer = stream.peer;
                Ok((IoStream::Memory(stream), peer))
            }
        }
    }
}

/// Listens on the first of the resolved addresses that works.
async fn listen(
    address: impl ToSocketAddrs,
    resources: &ConnectionResources,
) -> Result<Listener, (String, std::io::Error)> {
    let addresses =
        lookup_host(address).await.map_err(|error| ("the given address".to_owned(), error))?;
    let mut failure = None;
    for address in addresses {
        let listen = || {
            if let Some(network) = &resources.network {
                return network.listen(address).map(Listener::Memory);
            }
            let socket =
                if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            socket_options::configure_new(&socket, &resources.conf)?;
            // On Windows it would let two servers share a port.
            #[cfg(not(windows))]
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            socket.listen(resources.conf.backlog()).map(Listener::Tcp)
        };
        match listen() {
            Ok(listener) => return Ok(listener),
            Err(error) => failure = Some((address.to_string(), error)),
        }
    }
    Err(failure.unwrap_or_else(|| {
        ("the given address".to_owned(), std::io::Error::other("it resolves to nothing"))
    }))
}
