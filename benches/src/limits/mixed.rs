//! Bodies and echoes on one connection: a request is the length of a body, which is sent from a
//! file, or a zero and what is to be echoed; an answer begins like its request.

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
use crate::load::{Client, Pace};
use crate::process::cannot;

/// The zero and 64 bytes.
const ECHO: [u8; 72] = [0; 72];

/// Serves regions of a file by `sendfile`, and echoes before the next of them.
///
/// # Errors
/// When it cannot listen.
pub async fn serve_mixed(chunks: Chunks) -> anyhow::Result<SocketAddr> {
    let file = Arc::new(File::open(&chunks.path)?);
    listen(move |stream| serve(stream, Arc::clone(&file), chunks.clone())).await
}

async fn serve(stream: TcpStream, file: Arc<File>, chunks: Chunks) -> std::io::Result<()> {
    let (mut read, mut write) = stream.into_split();
    let (requests, mut requested) = unbounded_channel();
    tokio::spawn(async move {
        while let Ok(size) = read.read_u64().await {
            if size == 0 {
                read.read_exact(&mut [0; ECHO.len() - 8]).await?;
            }
            let _ = requests.send(size);
        }
        std::io::Result::Ok(())
    });
    let (mut bodies, mut index) = (VecDeque::new(), 0);
    loop {
        let request =
            if bodies.is_empty() { requested.recv().await } else { requested.try_recv().ok() };
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
                send_file(write.as_ref(), &file, chunks.start(size, index), size).await?;
                index += 1;
            }
            (None, None) => return Ok(()),
        }
    }
}

/// Echoes, one at a time, beside bodies.
#[derive(Debug)]
pub struct Mixed(SocketAddr);

impl Mixed {
    /// Connects to the server at `address`, for each job.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self(address)
    }
}

impl Client for Mixed {
    async fn run(&mut self, job: Job) -> anyhow::Result<Sample> {
        let (echoed, mut echoes) = unbounded_channel();
        let (read, write) = connect(self.0).await?.into_split();
        let fetching =
            Connection { read, write: Arc::new(Mutex::new(write)), echoed: echoed.clone() };
        let write = match job.case {
            Case::EchoBesideFetch => Arc::clone(&fetching.write),
            Case::EchoApartFromFetch => {
                let (read, write) = connect(self.0).await?.into_split();
                let write = Arc::new(Mutex::new(write));
                let mut echoing = Connection { read, write: Arc::clone(&write), echoed };
                tokio::spawn(async move { while echoing.answer(&mut []).await.is_ok() {} });
                write
            }
            other => return Err(cannot(other)),
        };
        let mut pace =
            Pace::new(&Job { until: Until::Operations(u64::MAX), ..Job::new(Case::Echo) });
        let mut fetching = tokio::spawn(fetching.fetch(job));
        loop {
            let begun = pace.begin().flatten();
            write.lock().await.write_all(&ECHO).await?;
            tokio::select! {
                _ = echoes.recv() => pace.end(begun)?,
                fetched = &mut fetching => {
                    return Ok(Sample { latency: pace.sample(Default::default()).latency, ..fetched?? });
                }
            }
        }
    }
}

struct Connection {
    read: OwnedReadHalf,
    write: Arc<Mutex<OwnedWriteHalf>>,
    echoed: UnboundedSender<()>,
}

impl Connection {
    /// Reads an answer, and whether it was a body.
    async fn answer(&mut self, body: &mut [u8]) -> anyhow::Result<bool> {
        let is_body = self.read.read_u64().await? > 0;
        if is_body {
            self.read.read_exact(body).await?;
        } else {
            self.read.read_exact(&mut [0; ECHO.len() - 8]).await?;
            self.echoed.send(())?;
        }
        Ok(is_body)
    }

    async fn fetch(mut self, job: Job) -> anyhow::Result<Sample> {
        let mut body = vec![1; job.bytes];
        let begun = Instant::now();
        let mut pace = Pace::new(&job);
        let mut asked = 0;
        loop {
            while asked < job.window && pace.begin().is_some() {
                self.write.lock().await.write_u64(job.bytes as u64).await?;
                asked += 1;
            }
            if asked == 0 {
                return Ok(pace.sample(begun.elapsed()));
            }
            if self.answer(&mut body).await? {
                asked -= 1;
                pace.end(None)?;
            }
        }
    }
}
