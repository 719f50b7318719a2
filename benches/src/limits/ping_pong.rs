//! Raw ping-pong.

use std::net::SocketAddr;
use std::time::Instant;

use bench_protocol::{Case, Job, Sample};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{connect, put_frame};
use crate::load::{Client, Pace};
use crate::process::cannot;

/// Writes a message, reads as much, and so on.
#[derive(Debug)]
pub struct PingPong(TcpStream);

impl PingPong {
    /// With the server at `address`.
    ///
    /// # Errors
    /// When it cannot connect.
    pub async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self(connect(address).await?))
    }
}

impl Client for PingPong {
    async fn run(&mut self, job: Job) -> anyhow::Result<Sample> {
        if job.case != Case::Echo || job.connections * job.tasks * job.window != 1 {
            return Err(cannot(job.case));
        }
        let mut message = Vec::new();
        put_frame(&mut message, 7, &vec![7; job.bytes]);
        let mut answer = vec![0; message.len()];
        let begun = Instant::now();
        let mut pace = Pace::new(&job);
        while let Some(begun) = pace.begin() {
            self.0.write_all(&message).await?;
            self.0.read_exact(&mut answer).await?;
            pace.end(begun)?;
        }
        Ok(pace.sample(begun.elapsed()))
    }
}
