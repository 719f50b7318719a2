//! The limit of echoes beside large bodies, over plain tokio.
//!
//! A request is either the length of a body, which the server sends from a file, or a zero followed
//! by the 64 bytes to echo. A response begins with the same 8 bytes as its request.

use std::collections::VecDeque;
use std::fs::File;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bench_protocol::{Case, Job, Sample, Until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::bulk::send_file;
use super::{connect, listen};
use crate::Chunks;
use crate::load::{Client, Meter};
use crate::process::unsupported;

/// An echo request, and its response: the zero and 64 bytes.
const ECHO: [u8; 72] = [0; 72];

/// Starts a server that sends regions of a file with `sendfile`, and echoes between them.
///
/// # Errors
/// Fails if the server cannot listen.
pub async fn serve_mixed(chunks: Chunks) -> anyhow::Result<SocketAddr> {
    let file = Arc::new(File::open(&chunks.path)?);
    listen(move |stream| serve(stream, Arc::clone(&file), chunks.clone())).await
}

async fn serve(stream: TcpStream, file: Arc<File>, chunks: Chunks) -> std::io::Result<()> {
    let (mut read, mut write) = stream.into_split();
    let (sender, mut requests) = unbounded_channel();
    tokio::spawn(async move {
        while let Ok(size) = read.read_u64().await {
            if size == 0 {
                read.read_exact(&mut [0; ECHO.len() - 8]).await?;
            }
            let _ = sender.send(size);
        }
        std::io::Result::Ok(())
    });
    let (mut bodies, mut index) = (VecDeque::new(), 0);
    loop {
        let request =
            if bodies.is_empty() { requests.recv().await } else { requests.try_recv().ok() };
        match (request, bodies.pop_front()) {
            (Some(size), body) => {
                bodies.extend(body);
                bodies.extend((size > 0).then_some(size));
                if size == 0 {
                    write.write_all(&ECHO).await?;
                }
            }
            (None, Some(size)) => {
                write.write_u64(size).await?;
                send_file(write.as_ref(), &file, chunks.offset(size, index), size).await?;
                index += 1;
            }
            (None, None) => return Ok(()),
        }
    }
}

/// Makes echoes, one at a time, while it fetches bodies.
#[derive(Debug)]
pub struct Mixed(SocketAddr);

impl Mixed {
    /// Creates a client that connects to the server at `address` for each job.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self(address)
    }
}

impl Client for Mixed {
    async fn run(&mut self, job: Job) -> anyhow::Result<Sample> {
        let (echo_sender, mut echoes) = unbounded_channel();
        let (read, write) = connect(self.0).await?.into_split();
        let fetching = MixedConnection {
            read,
            write: Arc::new(Mutex::new(write)),
            echoes: echo_sender.clone(),
        };
        let write = match job.case {
            Case::EchoBesideFetch => Arc::clone(&fetching.write),
            Case::EchoApartFromFetch => {
                let (read, write) = connect(self.0).await?.into_split();
                let write = Arc::new(Mutex::new(write));
                let mut echoing =
                    MixedConnection { read, write: Arc::clone(&write), echoes: echo_sender };
                tokio::spawn(async move { while echoing.read_response(&mut []).await.is_ok() {} });
                write
            }
            other => return Err(unsupported(other)),
        };
        let mut meter =
            Meter::new(&Job { until: Until::Operations(u64::MAX), ..Job::new(Case::Echo) });
        let mut fetches = tokio::spawn(fetching.fetch(job));
        loop {
            let start = meter.begin().flatten();
            write.lock().await.write_all(&ECHO).await?;
            tokio::select! {
                _ = echoes.recv() => meter.end(start)?,
                fetched = &mut fetches => {
                    let latency = meter.sample(Default::default()).latency;
                    return Ok(Sample { latency, ..fetched?? });
                }
            }
        }
    }
}

struct MixedConnection {
    read: OwnedReadHalf,
    write: Arc<Mutex<OwnedWriteHalf>>,
    /// Receives a message for each echo response.
    echoes: UnboundedSender<()>,
}

impl MixedConnection {
    /// Reads one response, and returns whether it was a body.
    async fn read_response(&mut self, body: &mut [u8]) -> anyhow::Result<bool> {
        let is_body = self.read.read_u64().await? > 0;
        if is_body {
            self.read.read_exact(body).await?;
        } else {
            self.read.read_exact(&mut [0; ECHO.len() - 8]).await?;
            self.echoes.send(())?;
        }
        Ok(is_body)
    }

    async fn fetch(mut self, job: Job) -> anyhow::Result<Sample> {
        let mut body = vec![1; job.bytes];
        let start = Instant::now();
        let mut meter = Meter::new(&job);
        let mut pending = 0;
        loop {
            while pending < job.window && meter.begin().is_some() {
                self.write.lock().await.write_u64(job.bytes as u64).await?;
                pending += 1;
            }
            if pending == 0 {
                return Ok(meter.sample(start.elapsed()));
            }
            if self.read_response(&mut body).await? {
                pending -= 1;
                meter.end(None)?;
            }
        }
    }
}
