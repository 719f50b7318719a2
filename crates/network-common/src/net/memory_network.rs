//! A network without sockets, for tests.

use std::collections::HashMap;
use std::fmt;
use std::io;
#[cfg(feature = "sim")]
use std::net::IpAddr;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::mpsc;

#[cfg(feature = "sim")]
use super::happy_eyeballs::dial_any;
use super::io_stream::IoStream;
use super::memory_stream::MemoryStream;
use crate::address::PeerAddress;
#[cfg(feature = "sim")]
use crate::sim::{SimHost, SimListener, Simulation};

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
pub struct MemoryNetwork(NetworkKind);

#[derive(Clone)]
enum NetworkKind {
    Plain(Arc<Mutex<Table>>),
    #[cfg(feature = "sim")]
    Simulated(SimHost),
}

impl Default for NetworkKind {
    fn default() -> Self {
        Self::Plain(Arc::default())
    }
}

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

    /// Listens on the first of the addresses of a host that is free; port 0 selects a free port.
    ///
    /// # Errors
    /// Kind `AddrInUse` if another listener has the address and port; kind `NotFound` if the name
    /// does not resolve.
    pub(crate) fn listen(&self, address: &PeerAddress) -> io::Result<MemoryListener> {
        match &self.0 {
            NetworkKind::Plain(table) => Table::listen(table, resolve(address)?),
            #[cfg(feature = "sim")]
            NetworkKind::Simulated(host) => {
                let mut listener = Err(io::ErrorKind::NotFound.into());
                for address in host.lookup(address)? {
                    listener = host.listen(address).map(MemoryListener::Simulated);
                    if listener.is_ok() {
                        break;
                    }
                }
                listener
            }
        }
    }

    /// Connects to a server of this network.
    ///
    /// # Errors
    /// Kind `NotFound` if the host does not resolve, `ConnectionRefused` if there is no server.
    pub(crate) async fn connect(&self, address: &PeerAddress) -> io::Result<IoStream> {
        match &self.0 {
            NetworkKind::Plain(table) => table.lock().connect(resolve(address)?),
            #[cfg(feature = "sim")]
            NetworkKind::Simulated(host) => {
                let dialled = dial_any(host.lookup(address)?, |address| host.connect(address));
                dialled.await.map(IoStream::Sim)
            }
        }
    }
}

/// Returns the address of a host of a plain network, which has no names but `localhost`.
fn resolve(address: &PeerAddress) -> io::Result<SocketAddr> {
    if address.host() == "localhost" {
        return Ok(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port()));
    }
    address.as_socket_addr().ok_or_else(|| {
        let host = address.host();
        let message = format!("a MemoryNetwork resolves IP addresses and localhost, not '{host}'");
        io::Error::new(io::ErrorKind::NotFound, message)
    })
}

impl Table {
    fn listen(this: &Mutex<Self>, mut address: SocketAddr) -> io::Result<MemoryListener> {
        let mut table = this.lock();
        if address.port() == 0 {
            address.set_port(table.next_port());
        }
        // A dropped listener leaves its entry in the table.
        if table.listeners.get(&address).is_some_and(|accepted| !accepted.is_closed()) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let (accepted, incoming) = mpsc::unbounded_channel();
        table.listeners.insert(address, accepted);
        Ok(MemoryListener::Plain { address, incoming })
    }

    fn connect(&mut self, server_addr: SocketAddr) -> io::Result<IoStream> {
        let client_addr = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.next_port());
        let (client_out, server_in) = tokio::io::duplex(BUFFER_BYTES);
        let (server_out, client_in) = tokio::io::duplex(BUFFER_BYTES);
        let server_end = MemoryStream {
            incoming: server_in,
            outgoing: server_out,
            local: server_addr,
            peer: client_addr,
        };
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        self.listeners
            .get(&server_addr)
            .ok_or_else(refused)?
            .send(server_end)
            .map_err(|_| refused())?;
        Ok(IoStream::Memory(MemoryStream {
            incoming: client_in,
            outgoing: client_out,
            local: client_addr,
            peer: server_addr,
        }))
    }

    fn next_port(&mut self) -> u16 {
        self.assigned_ports = self.assigned_ports.checked_add(1).unwrap_or(1);
        // 32 768 is the first ephemeral port of Linux. The ports repeat after 32 768 calls.
        32_768 | self.assigned_ports
    }
}

impl fmt::Debug for MemoryNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listeners = match &self.0 {
            NetworkKind::Plain(table) => Some(table.lock().listeners.len()),
            #[cfg(feature = "sim")]
            NetworkKind::Simulated(_) => None,
        };
        f.debug_struct("MemoryNetwork").field("listeners", &listeners).finish()
    }
}

/// Accepts the connections to one address; dropping the listener frees the address.
#[derive(Debug)]
pub(crate) enum MemoryListener {
    Plain {
        address: SocketAddr,
        incoming: mpsc::UnboundedReceiver<MemoryStream>,
    },
    #[cfg(feature = "sim")]
    Simulated(SimListener),
}

impl MemoryListener {
    /// Returns the address with the port that was chosen.
    pub(crate) fn address(&self) -> SocketAddr {
        match self {
            Self::Plain { address, .. } => *address,
            #[cfg(feature = "sim")]
            Self::Simulated(listener) => listener.address,
        }
    }

    /// Returns the server's end of the next connection.
    pub(crate) async fn accept(&mut self) -> io::Result<IoStream> {
        let accepted = match self {
            Self::Plain { incoming, .. } => incoming.recv().await.map(IoStream::Memory),
            #[cfg(feature = "sim")]
            Self::Simulated(listener) => listener.incoming.recv().await.map(IoStream::Sim),
        };
        accepted.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

#[cfg(feature = "sim")]
impl Simulation {
    /// Returns the network as the host with this address uses it.
    ///
    /// A host can listen on its own address and on `0.0.0.0`. Loopback addresses lead to itself.
    #[must_use]
    pub fn network(&self, host: impl Into<IpAddr>) -> MemoryNetwork {
        MemoryNetwork(NetworkKind::Simulated(self.host(host.into())))
    }
}
