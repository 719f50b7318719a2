//! network-common: bodies of many MiB.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::Context;
use bench_protocol::{Case, Job, Sample, write_file};
use bytes::Bytes;
use futures::StreamExt;
use network_common::TransportClient;
use tempfile::NamedTempFile;
use tokio::task::block_in_place;

use crate::load::{Pace, Request, Target};

/// The sign of sizes that are asked for out of memory.
pub(super) const MEMORY: i64 = -1;

/// Fetches chunks, one after the other.
#[derive(Clone, Debug)]
pub struct Fetch {
    client: TransportClient,
    size: i64,
    next: Arc<AtomicU32>,
}

impl Fetch {
    /// Of `size` bytes; negative: out of memory.
    #[must_use]
    pub fn new(client: TransportClient, size: i64) -> Self {
        Self { client, size, next: Arc::default() }
    }

    fn index(&self) -> u32 {
        // The highest bit would be the sign.
        self.next.fetch_add(1, Ordering::Relaxed) & (i32::MAX as u32)
    }
}

impl Target for Fetch {
    const CASES: &'static [Case] = &[Case::FetchFile, Case::FetchMemory];
    const QUEUES: bool = true;

    async fn connect(_: SocketAddr) -> anyhow::Result<Self> {
        anyhow::bail!("made from a connection")
    }

    fn call(&self, request: &Request) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
        let (chunk, size) = (self.client.fetch_chunk(self.size, self.index() as i32), request.size);
        async move {
            anyhow::ensure!(chunk.await?.len() == size, "a chunk of the wrong length");
            Ok(())
        }
    }
}

/// Reads streams, piece by piece.
#[derive(Clone, Debug)]
pub struct Stream(Fetch);

impl Stream {
    /// Of `size` bytes; negative: out of memory.
    #[must_use]
    pub fn new(client: TransportClient, size: i64) -> Self {
        Self(Fetch::new(client, size))
    }
}

impl Target for Stream {
    const CASES: &'static [Case] = &[Case::StreamFile, Case::StreamMemory];
    const QUEUES: bool = true;

    async fn connect(_: SocketAddr) -> anyhow::Result<Self> {
        anyhow::bail!("made from a connection")
    }

    fn call(&self, request: &Request) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
        let name = format!("{}_{}", self.0.size, self.0.index());
        let (stream, size) = (self.0.client.stream(&name), request.size);
        async move {
            let mut body = stream.await?;
            let mut read = 0;
            while let Some(piece) = body.next_piece().await {
                read += piece?.len();
            }
            anyhow::ensure!(read == size, "a stream of the wrong length");
            Ok(())
        }
    }
}

/// Pieces of a stream that are written at once, if so many have come.
const PIECES: usize = 16;

/// Streams into a file: what has come is written.
pub(super) async fn to_file(client: &TransportClient, job: &Job) -> anyhow::Result<Sample> {
    let mut file = Output::new()?;
    let mut pace = Pace::new(job);
    let mut waiting = VecDeque::new();
    let begun = Instant::now();
    let mut index = 0;
    loop {
        while waiting.len() < job.window && pace.begin().is_some() {
            waiting.push_back(client.stream(&format!("{}_{index}", job.bytes)));
            index += 1;
        }
        let Some(stream) = waiting.pop_front() else { return Ok(pace.sample(begun.elapsed())) };
        let mut pieces = stream.await?.ready_chunks(PIECES);
        while let Some(pieces) = pieces.next().await {
            file.write(pieces.into_iter().collect::<Result<_, _>>()?)?;
        }
        pace.end(None)?;
    }
}

/// Fetches chunks into memory and writes each when it is there.
pub(super) async fn then_write(client: &TransportClient, job: &Job) -> anyhow::Result<Sample> {
    let mut file = Output::new()?;
    let mut pace = Pace::new(job);
    let mut waiting = VecDeque::new();
    let begun = Instant::now();
    let mut index = 0;
    loop {
        while waiting.len() < job.window && pace.begin().is_some() {
            waiting.push_back(client.fetch_chunk(i64::try_from(job.bytes)?, index));
            index += 1;
        }
        let Some(chunk) = waiting.pop_front() else { return Ok(pace.sample(begun.elapsed())) };
        file.write(vec![chunk.await?])?;
        pace.end(None)?;
    }
}

/// A file of 256 MiB that is written over and over, so that the disk has no part in it.
struct Output {
    file: File,
    left: usize,
}

impl Output {
    const LENGTH: usize = 256 << 20;

    fn new() -> anyhow::Result<Self> {
        let file = NamedTempFile::new().context("a file to write to")?;
        // Its pages are there before the clock starts.
        write_file(file.path(), Self::LENGTH)?;
        Ok(Self { file: file.into_file(), left: Self::LENGTH })
    }

    fn write(&mut self, pieces: Vec<Bytes>) -> io::Result<()> {
        block_in_place(|| {
            for piece in pieces {
                if self.left < piece.len() {
                    self.file.seek(SeekFrom::Start(0))?;
                    self.left = Self::LENGTH;
                }
                self.left -= piece.len();
                self.file.write_all(&piece)?;
            }
            Ok(())
        })
    }
}
