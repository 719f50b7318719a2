//! The limit of Spark's `NettyTransportBenchmark`: plain tokio, with both ends in one process.

use std::borrow::Cow;
use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use bench_protocol::{TransportCall, TransportJob, TransportSample};
use bytes::BufMut;
use futures::future::try_join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::Runtime;

use super::bulk::send_file;
use super::{HEADER, connect, listen, put_frame};
use crate::ours::Callers;
use crate::process::Stopwatch;

/// The length of a response to an RPC: a header and 8 bytes.
const RESPONSE: usize = HEADER + 8;

/// The length from which a body bypasses the buffer that collects small frames.
const LARGE: usize = 64 << 10;

/// The maximum number of bytes that one read or write of small frames moves.
const BATCH: usize = 256 << 10;

/// The size of a page of memory.
const PAGE: usize = 4096;

/// Runs the rows of the benchmark with one task or thread per connection and no API.
#[derive(Debug)]
pub struct RawSuites {
    runtime: Runtime,
    callers: Callers,
    files: Arc<[Arc<File>]>,
    /// The server of the latest row.
    server: Option<(TransportJob, SocketAddr)>,
}

impl RawSuites {
    /// Creates a runtime with tokio's defaults. Chunk i is the whole of `files[i]`.
    ///
    /// # Errors
    /// Fails if a file cannot be opened or the runtime cannot be created.
    pub fn new(callers: Callers, files: Vec<PathBuf>) -> anyhow::Result<Self> {
        let files = files.into_iter().map(|path| Ok(Arc::new(File::open(path)?)));
        let files = files.collect::<anyhow::Result<_>>()?;
        Ok(Self { runtime: Runtime::new()?, callers, files, server: None })
    }

    /// Runs one repetition.
    ///
    /// The measured time does not contain the set-up of the connections and a first call on each.
    ///
    /// # Errors
    /// Fails if a call fails.
    pub fn run(&mut self, job: TransportJob) -> anyhow::Result<TransportSample> {
        let address = match self.server {
            Some((served, address)) if served == job => address,
            _ => self.runtime.block_on(self.serve(job))?,
        };
        self.server = Some((job, address));
        let connections = self.runtime.block_on(connections(address, job))?;
        let stopwatch = Stopwatch::start();
        let count = job.calls / job.connections;
        let window = if job.at_once { count } else { job.callers.div_ceil(job.connections) };
        let calls = connections
            .into_iter()
            .enumerate()
            .map(|(index, connection)| connection.calls(index * count, count, window));
        match self.callers {
            Callers::Tasks => self.runtime.block_on(async {
                let tasks = calls.map(tokio::spawn).collect::<Vec<_>>();
                for result in try_join_all(tasks).await? {
                    result?;
                }
                anyhow::Ok(())
            }),
            Callers::Threads => thread::scope(|scope| {
                let runtime = &self.runtime;
                let threads = calls.map(|calls| scope.spawn(move || runtime.block_on(calls)));
                for caller in threads.collect::<Vec<_>>() {
                    caller.join().map_err(|_| anyhow::anyhow!("a caller panicked"))??;
                }
                Ok(())
            }),
        }?;
        Ok(stopwatch.stop())
    }

    async fn serve(&self, job: TransportJob) -> anyhow::Result<SocketAddr> {
        match job.call {
            TransportCall::Rpc => serve_rpcs(job.bytes).await,
            TransportCall::Chunk => serve_files(Arc::clone(&self.files), job.bytes).await,
        }
    }
}

/// Opens the connections of `job` and calls once on each.
async fn connections(address: SocketAddr, job: TransportJob) -> anyhow::Result<Vec<RawConnection>> {
    let mut connections = Vec::new();
    for _ in 0..job.connections {
        connections.push(RawConnection::open(address, job).await?);
    }
    Ok(connections)
}

/// Serves RPCs: reads each body into one buffer, and responds to all frames of a read in one write.
async fn serve_rpcs(bytes: usize) -> anyhow::Result<SocketAddr> {
    listen(move |stream| async move {
        let (read, mut write) = stream.into_split();
        // `BufReader` does not copy a body that is longer than its buffer.
        let capacity = if bytes < LARGE { BATCH } else { PAGE };
        let mut read = BufReader::with_capacity(capacity, read);
        let mut body = vec![0; bytes];
        let mut responses = Vec::new();
        loop {
            let mut header = [0; HEADER];
            read.read_exact(&mut header).await?;
            read.read_exact(&mut body).await?;
            put_frame(&mut responses, 0, &[0; RESPONSE - HEADER]);
            if read.buffer().len() < HEADER + bytes {
                write.write_all(&responses).await?;
                responses.clear();
            }
        }
    })
    .await
}

/// Serves files with `sendfile`. A request has 8 bytes, which are the index of the file.
async fn serve_files(files: Arc<[Arc<File>]>, bytes: usize) -> anyhow::Result<SocketAddr> {
    listen(move |mut stream| {
        let files = Arc::clone(&files);
        async move {
            loop {
                let index = stream.read_u64().await?;
                let file = files.get(index as usize).ok_or(std::io::ErrorKind::NotFound)?;
                send_file(&stream, file, 0, bytes as u64).await?;
            }
        }
    })
    .await
}

struct RawConnection {
    read: OwnedReadHalf,
    write: OwnedWriteHalf,
    job: TransportJob,
    /// The frame of an RPC.
    frame: Vec<u8>,
    /// The buffer for the body of a chunk.
    body: Vec<u8>,
}

impl RawConnection {
    /// Connects and calls once.
    async fn open(address: SocketAddr, job: TransportJob) -> anyhow::Result<Self> {
        let stream: TcpStream = connect(address).await?;
        let (read, write) = stream.into_split();
        let (mut frame, mut body) = (Vec::new(), Vec::new());
        match job.call {
            TransportCall::Rpc => put_frame(&mut frame, 0, &vec![0; job.bytes]),
            TransportCall::Chunk => body.resize(job.bytes + PAGE, 0),
        }
        let mut connection = Self { read, write, job, frame, body };
        connection.call(0, 1, 1).await?;
        Ok(connection)
    }

    async fn calls(mut self, first: usize, count: usize, window: usize) -> anyhow::Result<()> {
        self.call(first, count, window).await
    }

    async fn call(&mut self, first: usize, count: usize, window: usize) -> anyhow::Result<()> {
        match self.job.call {
            TransportCall::Rpc => self.rpcs(count, window).await,
            TransportCall::Chunk => self.chunks(first, count).await,
        }
    }

    /// Keeps `window` RPCs pending until `count` are complete.
    async fn rpcs(&mut self, count: usize, window: usize) -> anyhow::Result<()> {
        let frame = &self.frame;
        if window < count || count == 1 {
            for _ in 0..window.min(count) {
                self.write.write_all(frame).await?;
            }
            for completed in 0..count {
                self.read.read_exact(&mut [0; RESPONSE]).await?;
                if completed + window < count {
                    self.write.write_all(frame).await?;
                }
            }
            return Ok(());
        }
        let batch = (BATCH / frame.len()).clamp(1, count);
        let frames = if batch == 1 { Cow::from(frame) } else { Cow::from(frame.repeat(batch)) };
        let send = async {
            for sent in (0..count).step_by(batch) {
                self.write.write_all(&frames[..frame.len() * batch.min(count - sent)]).await?;
            }
            anyhow::Ok(())
        };
        let receive = async {
            let mut responses = vec![0; RESPONSE * batch];
            for received in (0..count).step_by(batch) {
                let pending = batch.min(count - received);
                self.read.read_exact(&mut responses[..RESPONSE * pending]).await?;
            }
            Ok(())
        };
        tokio::try_join!(send, receive)?;
        Ok(())
    }

    /// Requests `count` files at once, and reads each into the same buffer.
    async fn chunks(&mut self, first: usize, count: usize) -> anyhow::Result<()> {
        let mut requests = Vec::new();
        for index in first..first + count {
            requests.put_u64(index as u64);
        }
        self.write.write_all(&requests).await?;
        // At some offsets within a page the kernel copies slowly, but not at its start.
        let start = self.body.as_ptr().align_offset(PAGE);
        for _ in 0..count {
            self.read.read_exact(&mut self.body[start..start + self.job.bytes]).await?;
        }
        Ok(())
    }
}
