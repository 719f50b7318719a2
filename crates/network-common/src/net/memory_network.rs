//! A network without sockets, for tests.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;

/// The buffer capacity of each direction of a connection, similar to socket buffers.
const BUFFER_BYTES: usize = 256 << 10;

/// An in-memory network inside this process, for tests.
///
/// Servers and clients on it use no sockets and no TCP ports, so tests can use tokio's paused time.
/// Frames and limits are the same as over TCP. Files are read into memory instead of sent with
/// `sendfile`.
///
/// A server may listen on any IP address and port. The host name `localhost` is `127.0.0.1`; other
/// names do not resolve. Clones share one network.
///
/// ```
/// # use network_common::{MemoryNetwork, NoOpRpcHandler, TransportConf, TransportContext};
/// # use network_common::TransportError;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), TransportError> {
/// let network = MemoryNetwork::new();
/// let context = TransportContext::new(TransportConf::new("test"), NoOpRpcHandler::new())
///     .memory_network(&network);
/// let server = context.create_server("10.0.0.1:7337").await?;
/// let factory = context.create_client_factory();
/// let client = factory.create_client(("10.0.0.1", 7337)).await?;
/// assert!(client.is_active());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct MemoryNetwork(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    /// The sender of accepted streams to each listener.
    listeners: HashMap<SocketAddr, mpsc::UnboundedSender<MemoryStream>>,
    /// Number of ephemeral ports assigned so far; starts again at 1 after 65 535.
    assigned_ports: u16,
}

impl MemoryNetwork {
    /// Creates a network without servers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Listens on `address`; port 0 selects the next ephemeral port.
    ///
    /// # Errors
    /// Kind `AddrInUse` if another listener has the address and port.
    pub(crate) fn listen(&self, mut address: SocketAddr) -> io::Result<MemoryListener> {
        let mut table = self.0.lock();
        if address.port() == 0 {
            address.set_port(table.next_port());
        }
        // A dropped listener leaves its entry in the table.
        if table.listeners.get(&address).is_some_and(|accepted| !accepted.is_closed()) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let (accepted, incoming) = mpsc::unbounded_channel();
        table.listeners.insert(address, accepted);
        Ok(MemoryListener { address, incoming })
    }

    /// Connects to a server of this network.
    ///
    /// # Errors
    /// Kind `NotFound` if `host` does not resolve, `ConnectionRefused` if no server listens there.
    pub(crate) fn connect(&self, host: &str, port: u16) -> io::Result<MemoryStream> {
        let host = if host == "localhost" { "127.0.0.1" } else { host };
        let ip: IpAddr = host.parse().map_err(|_| {
            let message =
                format!("a MemoryNetwork resolves IP addresses and localhost, not '{host}'");
            io::Error::new(io::ErrorKind::NotFound, message)
        })?;
        let server_addr = SocketAddr::new(ip, port);
        let mut table = self.0.lock();
        let client_addr = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), table.next_port());
        let (client_out, server_in) = tokio::io::duplex(BUFFER_BYTES);
        let (server_out, client_in) = tokio::io::duplex(BUFFER_BYTES);
        let server_end = MemoryStream {
            incoming: server_in,
            outgoing: server_out,
            local: server_addr,
            peer: client_addr,
        };
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        table
            .listeners
            .get(&server_addr)
            .ok_or_else(refused)?
            .send(server_end)
            .map_err(|_| refused())?;
        Ok(MemoryStream {
            incoming: client_in,
            outgoing: client_out,
            local: client_addr,
            peer: server_addr,
        })
    }
}

impl Table {
    fn next_port(&mut self) -> u16 {
        self.assigned_ports = self.assigned_ports.checked_add(1).unwrap_or(1);
        // 32 768 is the first ephemeral port of Linux. The ports repeat after 32 768 calls.
        32_768 | self.assigned_ports
    }
}

impl fmt::Debug for MemoryNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryNetwork").field("listeners", &self.0.lock().listeners.len()).finish()
    }
}

/// Accepts the connections to one address; dropping the listener frees the address.
#[derive(Debug)]
pub(crate) struct MemoryListener {
    pub(crate) address: SocketAddr,
    incoming: mpsc::UnboundedReceiver<MemoryStream>,
}

impl MemoryListener {
    /// Returns the server's end of the next connection.
    pub(crate) async fn accept(&mut self) -> io::Result<MemoryStream> {
        self.incoming.recv().await.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

/// One end of an in-memory connection, with a separate stream for each direction.
///
/// Either direction can therefore end while the other one continues.
#[derive(Debug)]
pub(crate) struct MemoryStream {
    pub(crate) incoming: DuplexStream,
    pub(crate) outgoing: DuplexStream,
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
}
