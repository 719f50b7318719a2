//! Resolves the address of a peer and opens a socket to it; called by the client factory.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};

use super::lookup::lookup;
use super::{IoStream, MemoryNetwork, socket_options};
use crate::address::PeerAddress;
use crate::conf::TransportConf;

/// The time after which the next address is tried as well (RFC 8305, section 5).
const NEXT_ATTEMPT_DELAY: Duration = Duration::from_millis(250);

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
        return network.connect(address.host(), address.port()).map(IoStream::Memory);
    }
    dial_any(lookup(address).await?, conf).await.map(IoStream::Tcp)
}

/// Connects to one of several addresses of a host, as RFC 8305 ("Happy Eyeballs") describes.
///
/// The families alternate. The next address is tried when an attempt fails, or 250 ms after the
/// last one started. The first connection wins; the other attempts are dropped.
async fn dial_any(addresses: Vec<SocketAddr>, conf: &TransportConf) -> io::Result<TcpStream> {
    let mut untried = alternate_families(addresses);
    let mut attempts = FuturesUnordered::new();
    let mut last_error = io::Error::new(io::ErrorKind::NotFound, "no address to connect to");
    loop {
        match untried.pop_front() {
            Some(address) => attempts.push(dial_one(address, conf)),
            None if attempts.is_empty() => return Err(last_error),
            None => {}
        }
        tokio::select! {
            biased;
            Some(result) = attempts.next() => match result {
                Ok(stream) => return Ok(stream),
                Err(error) => last_error = error,
            },
            () = tokio::time::sleep(NEXT_ATTEMPT_DELAY), if !untried.is_empty() => {}
        }
    }
}

/// Orders addresses so that the families alternate, beginning with the family of the first one.
fn alternate_families(addresses: Vec<SocketAddr>) -> VecDeque<SocketAddr> {
    let is_first_ipv4 = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let (first, second): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv4() == is_first_ipv4);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut ordered = VecDeque::new();
    loop {
        let pair = [first.next(), second.next()];
        if pair == [None, None] {
            return ordered;
        }
        ordered.extend(pair.into_iter().flatten());
    }
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
