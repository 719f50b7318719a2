//! The byte stream of one connection: a TCP socket, or a stream of a
//! [`MemoryNetwork`](crate::MemoryNetwork).

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::memory_stream::MemoryStream;
use crate::address::canonical;
#[cfg(feature = "sim")]
use crate::sim::{SimReadHalf, SimStream, SimWriteHalf};

/// A connected byte stream.
#[derive(Debug)]
pub(crate) enum IoStream {
    Tcp(TcpStream),
    Memory(MemoryStream),
    #[cfg(feature = "sim")]
    Sim(SimStream),
}

impl IoStream {
    /// Returns the addresses of the peer and of this end.
    pub(crate) fn addresses(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        match self {
            Self::Tcp(stream) => {
                Ok((canonical(stream.peer_addr()?), canonical(stream.local_addr()?)))
            }
            Self::Memory(stream) => Ok((stream.peer, stream.local)),
            #[cfg(feature = "sim")]
            Self::Sim(stream) => stream.addresses(),
        }
    }

    pub(crate) fn into_split(self) -> (ReadHalf, WriteHalf) {
        match self {
            Self::Tcp(stream) => {
                let (read, write) = stream.into_split();
                (ReadHalf::Tcp(read), WriteHalf::Tcp(write))
            }
            Self::Memory(stream) => {
                (ReadHalf::Memory(stream.incoming), WriteHalf::Memory(stream.outgoing))
            }
            #[cfg(feature = "sim")]
            Self::Sim(stream) => {
                let (read, write) = stream.into_split();
                (ReadHalf::Sim(read), WriteHalf::Sim(write))
            }
        }
    }
}

/// The receiving half of a byte stream.
pub(crate) enum ReadHalf {
    Tcp(OwnedReadHalf),
    Memory(DuplexStream),
    #[cfg(feature = "sim")]
    Sim(SimReadHalf),
}

impl AsyncRead for ReadHalf {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(half) => Pin::new(half).poll_read(context, buffer),
            Self::Memory(half) => Pin::new(half).poll_read(context, buffer),
            #[cfg(feature = "sim")]
            Self::Sim(half) => Pin::new(half).poll_read(context, buffer),
        }
    }
}

/// The sending half of a byte stream; dropping it ends the sending direction.
pub(crate) enum WriteHalf {
    Tcp(OwnedWriteHalf),
    Memory(DuplexStream),
    #[cfg(feature = "sim")]
    Sim(SimWriteHalf),
}

impl WriteHalf {
    /// Returns the socket to which the kernel can send files, or `None` in memory.
    pub(crate) fn socket(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(half) => Some(half.as_ref()),
            Self::Memory(_) => None,
            #[cfg(feature = "sim")]
            Self::Sim(_) => None,
        }
    }
}

impl AsyncWrite for WriteHalf {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(half) => Pin::new(half).poll_write(context, bytes),
            Self::Memory(half) => Pin::new(half).poll_write(context, bytes),
            #[cfg(feature = "sim")]
            Self::Sim(half) => Pin::new(half).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(half) => Pin::new(half).poll_write_vectored(context, slices),
            Self::Memory(half) => Pin::new(half).poll_write_vectored(context, slices),
            #[cfg(feature = "sim")]
            Self::Sim(half) => Pin::new(half).poll_write_vectored(context, slices),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(half) => Pin::new(half).poll_flush(context),
            Self::Memory(half) => Pin::new(half).poll_flush(context),
            #[cfg(feature = "sim")]
            Self::Sim(half) => Pin::new(half).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(half) => Pin::new(half).poll_shutdown(context),
            Self::Memory(half) => Pin::new(half).poll_shutdown(context),
            #[cfg(feature = "sim")]
            Self::Sim(half) => Pin::new(half).poll_shutdown(context),
        }
    }
}
