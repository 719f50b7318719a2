//! The batched limit: one task a connection, which knows all that is to be done.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Instant;

use bench_protocol::{Case, Job, Sample};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::{ReadBuffer, connect, put_frame};
use crate::load::{Client, Pace};
use crate::process::cannot;

/// Takes all answers that a read brought, each through a oneshot, and asks anew with one write.
#[derive(Debug)]
pub struct Batched(SocketAddr);

impl Batched {
    /// With the server at `address`.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self(address)
    }
}

impl Client for Batched {
    async fn run(&mut self, job: Job) -> anyhow::Result<Sample> {
        if job.case != Case::Echo || job.tasks != 1 {
            return Err(cannot(job.case));
        }
        let mut streams = Vec::new();
        for _ in 0..job.connections {
            streams.push(connect(self.0).await?);
        }
        let begun = Instant::now();
        let tasks: Vec<_> = Pace::share(&job, job.connections)
            .zip(streams)
            .map(|(pace, stream)| tokio::spawn(echo(stream, job, pace)))
            .collect();
        let mut whole = Pace::new(&job);
        for task in tasks {
            whole.add(&task.await??)?;
        }
        Ok(whole.sample(begun.elapsed()))
    }
}

async fn echo(mut stream: TcpStream, job: Job, mut pace: Pace) -> anyhow::Result<Pace> {
    let message = vec![7; job.bytes];
    let mut read = ReadBuffer::new();
    let (mut requests, mut next_id) = (Vec::new(), 0);
    let mut waiting = VecDeque::new();
    let mut answered = Vec::new();
    loop {
        while waiting.len() < job.window
            && let Some(begun) = pace.begin()
        {
            let (sender, receiver) = oneshot::channel::<Bytes>();
            waiting.push_back((begun, sender, receiver));
            put_frame(&mut requests, next_id, &message);
            next_id += 1;
        }
        if waiting.is_empty() {
            return Ok(pace);
        }
        stream.write_all(&requests).await?;
        requests.clear();
        let count = stream.read(read.space()).await?;
        anyhow::ensure!(count > 0, "the server has gone");
        read.frames(count, |_, body| {
            if let Some((begun, sender, receiver)) = waiting.pop_front() {
                // Fails only without a receiver.
                let _ = sender.send(Bytes::copy_from_slice(body));
                answered.push((begun, receiver));
            }
        });
        for (begun, receiver) in answered.drain(..) {
            receiver.await?;
            pace.end(begun)?;
        }
    }
}
