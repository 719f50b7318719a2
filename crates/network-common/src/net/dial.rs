//! Resolves the address of a peer and opens a socket to it; called by the client factory.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::{TcpSocket, TcpStream, lookup_host};

use super::{IoStream, MemoryNetwork, socket_options};
use crate::address::PeerAddress;
use crate::conf::TransportConf;

/// A name resolution that takes longer is logged as a warning.
const SLOW_LOOKUP: Duration = Duration::from_secs(2);

/// Connects to the first of the resolved addresses that accepts; they are tried in turn.
///
/// # Errors
/// The name does not resolve; or the error of the last address.
pub(crate) async fn dial(
    address: &PeerAddress,
    conf: &TransportConf,
    network: Option<&MemoryNetwork>,
) -> io::Result<IoStream> {
    let (host, port) = (address.unbracketed_host(), address.port());
    if let Some(network) = network {
        return network.connect(host, port).map(IoStream::Memory);
    }
    let started = Instant::now();
    let resolved = lookup_host((host, port)).await?;
    if started.elapsed() > SLOW_LOOKUP {
        tracing::warn!(peer = %address, took = ?started.elapsed(), "slow name resolution");
    }
    let mut last_error = io::Error::new(io::ErrorKind::NotFound, "the name resolves to no address");
    for address in resolved {
        match dial_one(address, conf).await {
            Ok(stream) => return Ok(IoStream::Tcp(stream)),
            Err(error) => last_error = error,
        }
    }
    Err(last_error)
}

async fn dial_one(address: SocketAddr, conf: &TransportConf) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket_options::configure_new(&socket, conf)?;
    let stream = socket.connect(address).await?;
    socket_options::configure_connected(&stream, conf, true)?;
    Ok(stream)
}
