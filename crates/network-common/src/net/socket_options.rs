//! The options that servers and client factories set on TCP sockets.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};

use crate::conf::TransportConf;

/// The idle time after which keepalive probes are sent.
///
/// On Linux `TCP_USER_TIMEOUT`, if it is set, decides when the connection then fails.
const KEEPALIVE_TIME: Duration = Duration::from_secs(60);
/// The time between two keepalive probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Sets the options that must be set before listening or connecting.
///
/// These are the buffer sizes, from which the TCP handshake derives the window scale.
pub(crate) fn configure_new(socket: &TcpSocket, conf: &TransportConf) -> io::Result<()> {
    let to_u32 = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
    if let Some(bytes) = conf.receive_buffer() {
        socket.set_recv_buffer_size(to_u32(bytes))?;
    }
    if let Some(bytes) = conf.send_buffer() {
        socket.set_send_buffer_size(to_u32(bytes))?;
    }
    Ok(())
}

/// Sets the options of a connected socket.
///
/// Clients always set `keep_alive`, servers with `spark.<m>.io.enableTcpKeepAlive`.
pub(crate) fn configure_connected(
    stream: &TcpStream,
    conf: &TransportConf,
    keep_alive: bool,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    if keep_alive {
        let times = TcpKeepalive::new().with_time(KEEPALIVE_TIME).with_interval(KEEPALIVE_INTERVAL);
        socket.set_tcp_keepalive(&times)?;
    }
    // Not by default: Linux applies it also to a peer that is alive and does not read. Other
    // systems have no such option; their own retransmission limit applies.
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(conf.tcp_user_timeout())?;
    #[cfg(not(target_os = "linux"))]
    let _ = conf;
    Ok(())
}
