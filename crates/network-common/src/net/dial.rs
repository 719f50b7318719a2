//! Resolves the address of a peer and opens a socket to it; called by the client factory.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};

use super::happy_eyeballs::dial_any;
use super::lookup::lookup;
use super::{IoStream, MemoryNetwork, socket_options};
use crate::address::PeerAddress;
use crate::conf::TransportConf;

/// Connects to the first of the resolved addresses that accepts.
///
/// # Errors
/// The name does not resolve; or the error of the address that failed last.
pub(crate) async fn dial(
    address: &PeerAddress,
    conf: &TransportConf,
    network: Option<&MemoryNetwork>,
) -> io::Result<IoStream> {
    if let Some(network) = network {
        return network.connect(address).await;
    }
    let dial_one = |address| dial_one(address, conf);
    dial_any(lookup(address).await?, dial_one).await.map(IoStream::Tcp)
}

async fn dial_one(address: SocketAddr, conf: &TransportConf) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket_options::configure_new(&socket, conf)?;
    let stream = socket.connect(address).await?;
    reject_self_connect(&stream)?;
    socket_options::configure_connected(&stream, conf, true)?;
    Ok(stream)
}

/// Fails if the socket is connected to itself, which means that no server listens.
///
/// TCP permits this if the system chooses the port of the peer as local port (simultaneous open).
fn reject_self_connect(stream: &TcpStream) -> io::Result<()> {
    if stream.local_addr()? != stream.peer_addr()? {
        return Ok(());
    }
    // Without lingering, so that a server can bind the port at once.
    SockRef::from(stream).set_linger(Some(Duration::ZERO))?;
    let text = "no server listens there: the socket was connected to itself";
    Err(io::Error::new(io::ErrorKind::ConnectionRefused, text))
}

#[cfg(test)]
#[path = "dial_tests.rs"]
mod tests;
