//! The limit with perfect batches: one task per connection makes all calls.

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
use crate::load::{Client, Meter};
use crate::open_loop::Schedule;
use crate::process::unsupported;

/// Completes all responses of a read, each through a oneshot, and sends new requests in one write.
#[derive(Debug)]
pub struct Batched(SocketAddr);

impl Batched {
    /// Creates a client of the server at `address`, without a connection.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self(address)
    }
}

impl Client for Batched {
    async fn run(&mut self, job: Job) -> anyhow::Result<Sample> {
        if job.case != Case::Echo || job.tasks != 1 {
            return Err(unsupported(job.case));
        }
        if job.rate.is_some() {
            return tokio::spawn(echo_at_rate(connect(self.0).await?, job)).await?;
        }
        let mut streams = Vec::new();
        for _ in 0..job.connections {
            streams.push(connect(self.0).await?);
        }
        let start = Instant::now();
        let tasks: Vec<_> = Meter::split(&job, job.connections)
            .zip(streams)
            .map(|(meter, stream)| tokio::spawn(echo(stream, job, meter)))
            .collect();
        let mut total = Meter::new(&job);
        for task in tasks {
            total.merge(&task.await??)?;
        }
        Ok(total.sample(start.elapsed()))
    }
}

async fn echo(mut stream: TcpStream, job: Job, mut meter: Meter) -> anyhow::Result<Meter> {
    let message = vec![7; job.bytes];
    let mut read = ReadBuffer::new();
    let (mut requests, mut next_id) = (Vec::new(), 0);
    let mut pending = VecDeque::new();
    let mut completed = Vec::new();
    loop {
        while pending.len() < job.window
            && let Some(start) = meter.begin()
        {
            let (sender, receiver) = oneshot::channel::<Bytes>();
            pending.push_back((start, sender, receiver));
            put_frame(&mut requests, next_id, &message);
            next_id += 1;
        }
        if pending.is_empty() {
            return Ok(meter);
        }
        stream.write_all(&requests).await?;
        requests.clear();
        let count = stream.read(read.unfilled()).await?;
        anyhow::ensure!(count > 0, "the server has closed the connection");
        read.on_read(count, |_, body| {
            if let Some((start, sender, receiver)) = pending.pop_front() {
                // This cannot fail, because the receiver still exists.
                let _ = sender.send(Bytes::copy_from_slice(body));
                completed.push((start, receiver));
            }
        });
        for (start, receiver) in completed.drain(..) {
            receiver.await?;
            meter.end(start)?;
        }
    }
}

/// Sends all due requests in one write, and completes all responses of a read.
async fn echo_at_rate(mut stream: TcpStream, job: Job) -> anyhow::Result<Sample> {
    let message = vec![7; job.bytes];
    let mut read = ReadBuffer::new();
    let (mut requests, mut next_id) = (Vec::new(), 0);
    let mut pending = VecDeque::new();
    let mut completed = Vec::new();
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
        match stream.try_read(read.unfilled()) {
            Ok(0) => anyhow::bail!("the server has closed the connection"),
            Ok(count) => read.on_read(count, |_, body| {
                if let Some((due, sender, receiver)) = pending.pop_front() {
                    // This cannot fail, because the receiver still exists.
                    let _ = sender.send(Bytes::copy_from_slice(body));
                    completed.push((due, receiver));
                }
            }),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        for (due, receiver) in completed.drain(..) {
            receiver.await?;
            schedule.complete(due)?;
        }
    }
    Ok(schedule.sample())
}
