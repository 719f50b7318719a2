//! The limit of large bodies: `sendfile`, or writes from memory, into one reused buffer.
//!
//! A request has 8 bytes and contains the length of the body that the server sends back.

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
use crate::load::{Client, Meter};
use crate::process::unsupported;

/// Starts a server that sends regions of a file with `sendfile`.
///
/// If the highest bit of a request is set, the server writes the body from memory.
///
/// # Errors
/// Fails if the server cannot listen.
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
            send_file(&stream, &file, chunks.offset(size, index), size).await?;
        }
    }
    Ok(())
}

pub(super) async fn send_file(
    stream: &TcpStream,
    file: &File,
    mut position: u64,
    mut remaining: u64,
) -> std::io::Result<()> {
    while remaining > 0 {
        let send = || {
            let count = usize::try_from(remaining).unwrap_or(usize::MAX);
            Ok(rustix::fs::sendfile(stream.as_fd(), file.as_fd(), Some(&mut position), count)?)
        };
        match stream.async_io(Interest::WRITABLE, send).await? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            sent => remaining -= sent as u64,
        }
    }
    Ok(())
}

/// Requests bodies on one connection, with `window` requests in flight.
#[derive(Debug)]
pub struct RawChunks {
    stream: TcpStream,
    body: Vec<u8>,
}

impl RawChunks {
    /// Connects to the server at `address`.
    ///
    /// # Errors
    /// Fails if the connection cannot be opened.
    pub async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self { stream: connect(address).await?, body: Vec::new() })
    }
}

impl Client for RawChunks {
    async fn run(&mut self, job: Job) -> anyhow::Result<Sample> {
        let request = match job.case {
            Case::FetchFile => job.bytes as u64,
            Case::FetchMemory => job.bytes as u64 | FROM_MEMORY,
            other => return Err(unsupported(other)),
        };
        self.body.resize(job.bytes, 1);
        let start = Instant::now();
        let mut meter = Meter::new(&job);
        let mut pending = 0;
        loop {
            while pending < job.window && meter.begin().is_some() {
                self.stream.write_u64(request).await?;
                pending += 1;
            }
            if pending == 0 {
                return Ok(meter.sample(start.elapsed()));
            }
            self.stream.read_exact(&mut self.body).await?;
            pending -= 1;
            meter.end(None)?;
        }
    }
}
