//! [`Listener`], the listening socket of a server.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

use super::lookup::lookup;
use super::{IoStream, MemoryListener, MemoryNetwork, socket_options};
use crate::address::{PeerAddress, canonical};
use crate::conf::TransportConf;

/// A listening TCP socket, or a listener of a [`MemoryNetwork`].
pub(crate) enum Listener {
    Tcp(TcpListener),
    Memory(MemoryListener),
}

impl Listener {
    /// Listens on the first of the resolved addresses that can be bound.
    ///
    /// # Errors
    /// The name does not resolve; or the error of the last address.
    pub(crate) async fn bind(
        address: &PeerAddress,
        conf: &TransportConf,
        network: Option<&MemoryNetwork>,
    ) -> io::Result<Self> {
        if let Some(network) = network {
            return network.listen(address).map(Self::Memory);
        }
        let mut last_error =
            io::Error::new(io::ErrorKind::NotFound, "the name resolves to no address");
        for address in lookup(address).await? {
            match listen(address, conf) {
                Ok(listener) => return Ok(Self::Tcp(listener)),
                Err(error) => last_error = error,
            }
        }
        Err(last_error)
    }

    /// Returns the bound address with the port that the system chose.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr(),
            Self::Memory(listener) => Ok(listener.address()),
        }
    }

    /// Accepts the next connection; returns it with the address of its peer.
    pub(crate) async fn accept(&mut self) -> io::Result<(IoStream, SocketAddr)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((IoStream::Tcp(stream), canonical(peer)))
            }
            Self::Memory(listener) => {
                let stream = listener.accept().await?;
                let (peer, _) = stream.addresses()?;
                Ok((stream, peer))
            }
        }
    }
}

fn listen(address: SocketAddr, conf: &TransportConf) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket_options::configure_new(&socket, conf)?;
    // On Windows the option would let two servers share a port.
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(conf.backlog())
}
