//! A network without sockets.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;

/// Bytes on their way in one direction of a connection, as a socket's buffers would hold them.
const IN_FLIGHT: usize = 256 << 10;

/// A network inside this process, for tests: what is on it reaches each other without sockets,
/// ports of the machine, or waiting for the system, and so also in tokio's paused time. All else is
/// as over TCP: the same frames, the same limits.
///
/// Addresses are IP addresses, any that the test likes; `localhost` is `127.0.0.1`. Files are not
/// sent by the kernel.
///
/// ```
/// # use network_common::{MemoryNetwork, NoOpRpcHandler, TransportConf, TransportContext, TransportError};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), TransportError> {
/// let network = MemoryNetwork::new();
/// let context = TransportContext::new(TransportConf::new("test"), NoOpRpcHandler::new()).memory_network(&network);
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
    listeners: HashMap<SocketAddr, mpsc::UnboundedSender<MemoryStream>>,
    /// Ephemeral ports given out so far.
    ports: u16,
}

impl MemoryNetwork {
    /// One with nothing on it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    pub(crate) fn listen(&self, mut address: SocketAddr) -> io::Result<MemoryListener> {
        let mut table = self.0.lock();
        if address.port() == 0 {
            address.set_port(table.next_port());
        }
        // Of a listener that is gone the entry may be left.
        if table.listeners.get(&address).is_some_and(|listener| !listener.is_closed()) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let (listener, incoming) = mpsc::unbounded_channel();
        table.listeners.insert(address, listener);
        Ok(MemoryListener { address, incoming })
    }

    pub(crate) fn connect(&self, host: &str, port: u16) -> io::Result<MemoryStream> {
        let host = if host == "localhost" { "127.0.0.1" } else { host };
        let ip: IpAddr = host.parse().map_err(|_| {
            io::Error::new(io::ErrorKind::NotFound, "a network in memory knows IP addresses only")
        })?;
        let server = SocketAddr::new(ip, port);
        let mut table = self.0.lock();
        let client = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), table.next_port());
        let (requests, served) = tokio::io::duplex(IN_FLIGHT);
        let (answers, answered) = tokio::io::duplex(IN_FLIGHT);
        let theirs =
            MemoryStream { incoming: served, outgoing: answers, local: server, peer: client };
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        table.listeners.get(&server).ok_or_else(refused)?.send(theirs).map_err(|_| refused())?;
        Ok(MemoryStream { incoming: answered, outgoing: requests, local: client, peer: server })
    }
}

impl Table {
    fn next_port(&mut self) -> u16 {
        self.ports = self.ports.checked_add(1).unwrap_or(1);
        // Where systems begin with ephemeral ports.
        32_768 | self.ports
    }
}

impl fmt::Debug for MemoryNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryNetwork").field("listeners", &self.0.lock().listeners.len()).finish()
    }
}

/// Where connections to one address arrive. Dropped, it frees the address.
#[derive(Debug)]
pub(crate) struct MemoryListener {
    pub(crate) address: SocketAddr,
    incoming: mpsc::UnboundedReceiver<MemoryStream>,
}

impl MemoryListener {
    pub(crate) async fn accept(&mut self) -> io::Result<MemoryStream> {
        self.incoming.recv().await.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

/// One end of a connection: a pipe for each direction, so that each ends for itself.
#[derive(Debug)]
pub(crate) struct MemoryStream {
    pub(crate) incoming: DuplexStream,
    pub(crate) outgoing: DuplexStream,
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
}
