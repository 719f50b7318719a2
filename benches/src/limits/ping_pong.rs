//! The limit of latency: one frame at a time.

use std::net::SocketAddr;
use std::time::Instant;

use bench_protocol::{Case, Job, Sample};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{connect, put_frame};
use crate::load::{Client, Meter};
use crate::process::unsupported;

/// Writes one frame and reads its echo before it writes the next one.
#[derive(Debug)]
pub struct PingPong(TcpStream);

impl PingPong {
    /// Connects to the server at `address`.
    ///
    /// # Errors
    /// Fails if the connection cannot be opened.
    pub async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self(connect(address).await?))
    }
}

impl Client for PingPong {
    async fn run(&mut self, job: Job) -> anyhow::Result<Sample> {
        if job.case != Case::Echo || job.connections * job.tasks * job.window != 1 {
            return Err(unsupported(job.case));
        }
        let mut message = Vec::new();
        put_frame(&mut message, 7, &vec![7; job.bytes]);
        let mut response = vec![0; message.len()];
        let start = Instant::now();
        let mut meter = Meter::new(&job);
        while let Some(operation) = meter.begin() {
            self.0.write_all(&message).await?;
            self.0.read_exact(&mut response).await?;
            meter.end(operation)?;
        }
        Ok(meter.sample(start.elapsed()))
    }
}
