//! The limits: programs of plain tokio that do the same work as the two crates.

mod batched;
mod bulk;
#[cfg(feature = "security")]
mod cipher;
mod echo_server;
mod local;
mod mixed;
mod ping_pong;
mod smallest;
mod suites;
mod timer;

pub use batched::Batched;
pub use bulk::{RawChunks, serve_chunks};
#[cfg(feature = "security")]
pub use cipher::Cipher;
pub use echo_server::serve_echo;
pub use local::Channel;
pub use mixed::{Mixed, serve_mixed};
pub use ping_pong::PingPong;
pub use smallest::Smallest;
pub use suites::RawSuites;
pub use timer::Timer;

use std::net::SocketAddr;

use bytes::BufMut;
use tokio::net::{TcpListener, TcpStream};

/// The length of a frame header, which equals that of an RPC in Spark's format.
///
/// The fields are the frame length, the message type, the request id and the body length.
const HEADER: usize = 21;

fn put_frame(out: &mut Vec<u8>, id: u64, body: &[u8]) {
    out.put_u64((HEADER + body.len()) as u64);
    out.put_u8(3);
    out.put_u64(id);
    out.put_u32(body.len() as u32);
    out.put_slice(body);
}

/// Calls `on_frame` with the id and body of each complete frame, and returns their total length.
fn for_each_frame(bytes: &[u8], mut on_frame: impl FnMut(u64, &[u8])) -> usize {
    let mut position = 0;
    while let Some((header, _)) = bytes[position..].split_first_chunk::<HEADER>() {
        let field = |from: usize| u64::from_be_bytes(std::array::from_fn(|i| header[from + i]));
        let Some(body) = bytes.get(position + HEADER..position + field(0) as usize) else { break };
        on_frame(field(9), body);
        position += HEADER + body.len();
    }
    position
}

/// A buffer that holds the bytes of incomplete frames between reads.
struct ReadBuffer {
    bytes: Vec<u8>,
    filled: usize,
}

impl ReadBuffer {
    fn new() -> Self {
        Self { bytes: vec![0; 256 << 10], filled: 0 }
    }

    /// Returns the part of the buffer for the next read.
    fn unfilled(&mut self) -> &mut [u8] {
        &mut self.bytes[self.filled..]
    }

    /// Adds the `count` bytes that were read, and calls `on_frame` with each complete frame.
    fn on_read(&mut self, count: usize, on_frame: impl FnMut(u64, &[u8])) {
        self.filled += count;
        let complete = for_each_frame(&self.bytes[..self.filled], on_frame);
        self.bytes.copy_within(complete..self.filled, 0);
        self.filled -= complete;
    }
}

async fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Listens on a free port, and runs `serve` in a task for each connection.
async fn listen<S, F>(serve: S) -> anyhow::Result<SocketAddr>
where
    S: Fn(TcpStream) -> F + Send + 'static,
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if stream.set_nodelay(true).is_ok() {
                tokio::spawn(serve(stream));
            }
        }
    });
    Ok(address)
}
