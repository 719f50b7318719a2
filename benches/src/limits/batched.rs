//! The batched limit: one task a connection, which knows all that is to be done.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::task::Poll;
use std::time::Instant;

use bench_protocol::{Case, Job, Sample};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::{ReadBuffer, connect, put_frame};
use crate::load::{Client, Pace};
use crate::open_loop::Schedule;
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
        if job.rate.is_some() {
            return tokio::spawn(echo_at_rate(connect(self.0).await?, job)).await?;
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

/// Sends with one write all requests that are due, and takes all answers that a read brought.
async fn echo_at_rate(mut stream: TcpStream, job: Job) -> anyhow::Result<Sample> {
    let message = vec![7; job.bytes];
    let mut read = ReadBuffer::new();
    let (mut requests, mut next_id) = (Vec::new(), 0);
    let mut pending = VecDeque::new();
    let mut answered = Vec::new();
    let mut schedule = Schedule::start(&job)?;
    while !schedule.is_complete() {
        let due = poll_fn(|context| {
            if let Poll::Ready(due) = schedule.poll_due(context)? {
                return Poll::Ready(anyhow::Ok(due));
            }
            stream.poll_read_ready(context).map_ok(|()| Vec::new()).map_err(Into::into)
        })
        .await?;
        for due in due {
            let (sender, receiver) = oneshot::channel::<Bytes>();
            pending.push_back((due, sender, receiver));
            put_frame(&mut requests, next_id, &message);
            next_id += 1;
        }
        stream.write_all(&requests).await?;
        requests.clear();
        match stream.try_read(read.space()) {
            Ok(0) => anyhow::bail!("the server has closed the connection"),
            Ok(count) => read.frames(count, |_, body| {
                if let Some((due, sender, receiver)) = pending.pop_front() {
                    // The receiver is in the list.
                    let _ = sender.send(Bytes::copy_from_slice(body));
                    answered.push((due, receiver));
                }
            }),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        for (due, receiver) in answered.drain(..) {
            receiver.await?;
            schedule.complete(due)?;
        }
    }
    Ok(schedule.sample())
}
