//! [`MemoryStream`], one end of an in-memory connection.

use std::net::SocketAddr;

use tokio::io::DuplexStream;

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
