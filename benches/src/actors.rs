//! The load that every actor gets, of whatever library: one-way messages and asks.

use std::sync::Arc;
use std::time::Instant;

use bench_protocol::{Case, Job, Sample};
use bytes::Bytes;
use futures::TryFutureExt;

use crate::load::{Client, Pace, Request, Target, run};
use crate::process::cannot;

/// The state of every measured actor.
#[derive(Debug, Default)]
pub struct Received {
    count: u64,
    /// By producer, the last sequence number. Empty while idle.
    last: Vec<u64>,
    disordered: bool,
}

impl Received {
    /// Counts a message. Sequence numbers of a producer begin at 1.
    pub fn take(&mut self, producer: u32, sequence: u64) {
        let producer = producer as usize;
        if producer >= self.last.len() {
            self.last.resize(producer + 1, 0);
        }
        self.disordered |= sequence <= self.last[producer];
        self.last[producer] = sequence;
        self.count += 1;
    }

    /// How many were counted, and whether each producer's came in their order; begins again.
    pub fn report(&mut self) -> (u64, bool) {
        let report = (self.count, !self.disordered);
        self.last.fill(0);
        (self.count, self.disordered) = (0, false);
        report
    }
}

/// A ref to an actor that holds [`Received`].
pub trait Actor: Clone + Send + Sync + 'static {
    /// [`Target::QUEUES`] of its asks.
    const QUEUES: bool;

    /// Sends a message. Waits if the mailbox is bounded and full.
    fn tell(
        &self,
        producer: u32,
        sequence: u64,
        body: &Bytes,
    ) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Asks for [`Received::report`].
    fn ask(&self) -> impl Future<Output = anyhow::Result<(u64, bool)>> + Send + 'static;
}

/// `job.tasks` producers on each of `job.connections` send to `actors` in turns; then each actor
/// tells what it got. `actors` are those of the first connection, then those of the next one and so
/// on.
///
/// # Errors
/// When something was lost or came out of order.
pub async fn send<A: Actor>(actors: &[A], job: &Job) -> anyhow::Result<Sample> {
    let begun = Instant::now();
    let body = Bytes::from(vec![7; job.bytes]);
    let each = actors.len() / job.connections;
    let shares: Vec<Arc<[A]>> = actors.chunks(each).map(Arc::from).collect();
    let producers: Vec<_> = Pace::share(job, job.connections * job.tasks)
        .zip(shares.iter().cycle())
        .zip(0..)
        .map(|((mut pace, actors), producer)| {
            let (actors, body) = (Arc::clone(actors), body.clone());
            tokio::spawn(async move {
                let mut sequence = 0;
                while pace.begin().is_some() {
                    let actor = &actors[sequence as usize % actors.len()];
                    sequence += 1;
                    actor.tell(producer, sequence, &body).await?;
                    pace.end(None)?;
                }
                anyhow::Ok(pace)
            })
        })
        .collect();
    let mut whole = Pace::new(job);
    for producer in producers {
        whole.add(&producer.await??)?;
    }
    let mut received = 0;
    for actor in actors {
        let (count, in_order) = actor.ask().await?;
        anyhow::ensure!(in_order, "messages overtook each other");
        received += count;
    }
    let sample = whole.sample(begun.elapsed());
    anyhow::ensure!(
        received == sample.operations,
        "{received} of {} messages arrived",
        sample.operations
    );
    Ok(sample)
}

/// Actors of one process, as a [`Client`].
#[derive(Debug)]
pub struct Local<A, F> {
    start: F,
    actors: Vec<A>,
}

impl<A: Actor, F: FnMut() -> anyhow::Result<A> + Send + 'static> Local<A, F> {
    /// `start` starts an actor.
    pub fn new(start: F) -> Self {
        Self { start, actors: Vec::new() }
    }
}

impl<A: Actor, F: FnMut() -> anyhow::Result<A> + Send + 'static> Client for Local<A, F> {
    async fn run(&mut self, job: Job) -> anyhow::Result<Sample> {
        while self.actors.len() < job.population {
            self.actors.push((self.start)()?);
        }
        let actors = &self.actors[..job.population];
        match job.case {
            Case::Send => send(actors, &job).await,
            Case::Ask => run(&actors.iter().cloned().map(Asked).collect::<Vec<_>>(), &job).await,
            Case::Hold => Ok(Sample::default()),
            other => Err(cannot(other)),
        }
    }
}

/// An actor as the target of asks.
#[derive(Clone)]
struct Asked<A>(A);

impl<A: Actor> Target for Asked<A> {
    const CASES: &'static [Case] = &[Case::Ask];
    const QUEUES: bool = A::QUEUES;

    async fn connect(_: std::net::SocketAddr) -> anyhow::Result<Self> {
        anyhow::bail!("a local actor")
    }

    fn call(&self, _: &Request) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
        // Not an async block, which would keep what it awaits twice.
        self.0.ask().map_ok(drop)
    }
}
