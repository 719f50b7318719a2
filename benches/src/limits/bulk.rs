//! Raw bodies: a request of eight bytes, an answer of as many bytes as it says, into a buffer that
//! is used again.

use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use bench_protocol::{Case, Job, Sample};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;

use super::{connect, listen};
use crate::Chunks;
use crate::load::{Client, Pace};
use crate::process::cannot;

/// Serves regions of a file by `sendfile`, or writes them from memory, which the request's highest
/// bit asks for.
///
/// # Errors
/// When it cannot listen.
pub async fn serve_chunks(chunks: Chunks) -> anyhow::Result<SocketAddr> {
    let file = Arc::new(File::open(&chunks.path)?);
    listen(move |stream| serve(stream, Arc::clone(&file), chunks.clone())).await
}

const FROM_MEMORY: u64 = 1 << 63;

async fn serve(mut stream: TcpStream, file: Arc<File>, chunks: Chunks) -> std::io::Result<()> {
    let mut memory = Vec::new();
    for index in 0.. {
        let Ok(request) = stream.read_u64().await else { break };
        let size = request & !FROM_MEMORY;
        if request & FROM_MEMORY != 0 {
            memory.resize(size as usize, 7);
            stream.write_all(&memory).await?;
        } else {
            send_file(&stream, &file, chunks.start(size, index), size).await?;
        }
    }
    Ok(())
}

pub(super) async fn send_file(
    stream: &TcpStream,
    file: &File,
    mut position: u64,
    mut left: u64,
) -> std::io::Result<()> {
    while left > 0 {
        let send = || {
            let most = usize::try_from(left).unwrap_or(usize::MAX);
            Ok(rustix::fs::sendfile(stream.as_fd(), file.as_fd(), Some(&mut position), most)?)
        };
        match stream.async_io(Interest::WRITABLE, send).await? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            sent => left -= sent as u64,
        }
    }
    Ok(())
}

/// Asks for bodies, `window` at a time.
#[derive(Debug)]
pub struct RawChunks {
    stream: TcpStream,
    body: Vec<u8>,
}

impl RawChunks {
    /// Of the server at `address`.
    ///
    /// # Errors
    /// When it cannot connect.
    pub async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self { stream: connect(address).await?, body: Vec::new() })
    }
}

impl Client for RawChunks {
    async fn run(&mut self, job: Job) -> anyhow::Result<Sample> {
        let request = match job.case {
            Case::FetchFile => job.bytes as u64,
            Case::FetchMemory => job.bytes as u64 | FROM_MEMORY,
            other => return Err(cannot(other)),
        };
        self.body.resize(job.bytes, 1);
        let begun = Instant::now();
        let mut pace = Pace::new(&job);
        let mut asked = 0;
        loop {
            while asked < job.window && pace.begin().is_some() {
                self.stream.write_u64(request).await?;
                asked += 1;
            }
            if asked == 0 {
                return Ok(pace.sample(begun.elapsed()));
            }
            self.stream.read_exact(&mut self.body).await?;
            asked -= 1;
            pace.end(None)?;
        }
    }
}
