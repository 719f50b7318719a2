//! Fetches and streams of large bodies over network-common.

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

use crate::load::{Meter, Request, Target};

/// The sign of a requested size for bodies that the server has in memory.
pub(super) const MEMORY: i64 = -1;

/// Fetches one chunk per call, in the order of their indices.
#[derive(Clone, Debug)]
pub struct FetchTarget {
    client: TransportClient,
    size: i64,
    next_index: Arc<AtomicU32>,
}

impl FetchTarget {
    /// Creates a target that fetches chunks of `size` bytes; a negative size means from memory.
    #[must_use]
    pub fn new(client: TransportClient, size: i64) -> Self {
        Self { client, size, next_index: Arc::default() }
    }

    fn next_index(&self) -> u32 {
        // An index is sent as an `i32`, and must not be negative.
        self.next_index.fetch_add(1, Ordering::Relaxed) & (i32::MAX as u32)
    }
}

impl Target for FetchTarget {
    const CASES: &'static [Case] = &[Case::FetchFile, Case::FetchMemory];
    const IS_EAGER: bool = true;

    async fn connect(_: SocketAddr) -> anyhow::Result<Self> {
        anyhow::bail!("this target is created from a connection")
    }

    fn call(&self, request: &Request) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
        let chunk = self.client.fetch_chunk(self.size, self.next_index() as i32);
        let size = request.size;
        async move {
            anyhow::ensure!(chunk.await?.len() == size, "the chunk has a wrong length");
            Ok(())
        }
    }
}

/// Reads one stream per call, piece by piece.
#[derive(Clone, Debug)]
pub struct StreamTarget(FetchTarget);

impl StreamTarget {
    /// Creates a target that reads streams of `size` bytes; a negative size means from memory.
    #[must_use]
    pub fn new(client: TransportClient, size: i64) -> Self {
        Self(FetchTarget::new(client, size))
    }
}

impl Target for StreamTarget {
    const CASES: &'static [Case] = &[Case::StreamFile, Case::StreamMemory];
    const IS_EAGER: bool = true;

    async fn connect(_: SocketAddr) -> anyhow::Result<Self> {
        anyhow::bail!("this target is created from a connection")
    }

    fn call(&self, request: &Request) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
        let name = format!("{}_{}", self.0.size, self.0.next_index());
        let (stream, size) = (self.0.client.stream(&name), request.size);
        async move {
            let mut body = stream.await?;
            let mut read = 0;
            while let Some(piece) = body.next_piece().await {
                read += piece?.len();
            }
            anyhow::ensure!(read == size, "the stream has a wrong length");
            Ok(())
        }
    }
}

/// The maximum number of pieces of a stream that are written together.
const MAX_PIECES: usize = 16;

/// Reads streams, and writes the received pieces of each into a file.
pub(super) async fn to_file(client: &TransportClient, job: &Job) -> anyhow::Result<Sample> {
    let mut file = OutputFile::new()?;
    let mut meter = Meter::new(job);
    let mut pending = VecDeque::new();
    let start = Instant::now();
    let mut index = 0;
    loop {
        while pending.len() < job.window && meter.begin().is_some() {
            pending.push_back(client.stream(&format!("{}_{index}", job.bytes)));
            index += 1;
        }
        let Some(stream) = pending.pop_front() else { return Ok(meter.sample(start.elapsed())) };
        let mut pieces = stream.await?.ready_chunks(MAX_PIECES);
        while let Some(pieces) = pieces.next().await {
            file.write(pieces.into_iter().collect::<Result<_, _>>()?)?;
        }
        meter.end(None)?;
    }
}

/// Fetches chunks into memory, and writes each complete chunk into a file.
pub(super) async fn then_write(client: &TransportClient, job: &Job) -> anyhow::Result<Sample> {
    let mut file = OutputFile::new()?;
    let mut meter = Meter::new(job);
    let mut pending = VecDeque::new();
    let start = Instant::now();
    let mut index = 0;
    loop {
        while pending.len() < job.window && meter.begin().is_some() {
            pending.push_back(client.fetch_chunk(i64::try_from(job.bytes)?, index));
            index += 1;
        }
        let Some(chunk) = pending.pop_front() else { return Ok(meter.sample(start.elapsed())) };
        file.write(vec![chunk.await?])?;
        meter.end(None)?;
    }
}

/// A file of 256 MiB that is overwritten from its start again and again.
///
/// It stays in the page cache, so the speed of the disk is not measured.
struct OutputFile {
    file: File,
    remaining: usize,
}

impl OutputFile {
    const LENGTH: usize = 256 << 20;

    fn new() -> anyhow::Result<Self> {
        let file = NamedTempFile::new().context("the output file cannot be created")?;
        // This allocates the pages of the file before the measurement begins.
        write_file(file.path(), Self::LENGTH)?;
        Ok(Self { file: file.into_file(), remaining: Self::LENGTH })
    }

    fn write(&mut self, pieces: Vec<Bytes>) -> io::Result<()> {
        block_in_place(|| {
            for piece in pieces {
                if self.remaining < piece.len() {
                    self.file.seek(SeekFrom::Start(0))?;
                    self.remaining = Self::LENGTH;
                }
                self.remaining -= piece.len();
                self.file.write_all(&piece)?;
            }
            Ok(())
        })
    }
}
