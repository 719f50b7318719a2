//! The load on the actors of every library: one-way messages and asks.

use std::sync::Arc;
use std::time::Instant;

use bench_protocol::{Case, Job, Sample};
use bytes::Bytes;
use futures::TryFutureExt;

use crate::load::{Client, Meter, Request, Target, run};
use crate::process::unsupported;

/// The state of a measured actor: a count of its messages and a check of their order.
#[derive(Debug, Default)]
pub struct Received {
    count: u64,
    /// The last sequence number of each producer. Empty until the first message.
    last_sequences: Vec<u64>,
    is_out_of_order: bool,
}

impl Received {
    /// Counts a message. Sequence numbers of a producer begin at 1.
    pub fn record(&mut self, producer: u32, sequence: u64) {
        let producer = producer as usize;
        if producer >= self.last_sequences.len() {
            self.last_sequences.resize(producer + 1, 0);
        }
        self.is_out_of_order |= sequence <= self.last_sequences[producer];
        self.last_sequences[producer] = sequence;
        self.count += 1;
    }

    /// Returns the count and whether each producer's messages were in order. Resets both.
    pub fn report(&mut self) -> (u64, bool) {
        let report = (self.count, !self.is_out_of_order);
        self.last_sequences.fill(0);
        (self.count, self.is_out_of_order) = (0, false);
        report
    }
}

/// A reference to an actor whose state is [`Received`].
pub trait Actor: Clone + Send + Sync + 'static {
    /// `true` if [`ask`](Self::ask) queues the message before its future is polled.
    const IS_EAGER: bool;

    /// Sends a one-way message. Waits if the mailbox is bounded and full.
    fn send(
        &self,
        producer: u32,
        sequence: u64,
        body: &Bytes,
    ) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Asks the actor for its [`Received::report`].
    fn ask(&self) -> impl Future<Output = anyhow::Result<(u64, bool)>> + Send + 'static;
}

/// Sends one-way messages to `actors`, and then asks each actor for its count.
///
/// Each of `job.connections` has `job.tasks` producers, and each producer sends to the actors of
/// its connection in turn. `actors` is ordered by connection.
///
/// # Errors
/// Fails if a message was lost or received out of order.
pub async fn run_sends<A: Actor>(actors: &[A], job: &Job) -> anyhow::Result<Sample> {
    let start = Instant::now();
    let body = Bytes::from(vec![7; job.bytes]);
    let actors_per_connection = actors.len() / job.connections;
    let connections: Vec<Arc<[A]>> = actors.chunks(actors_per_connection).map(Arc::from).collect();
    let producers: Vec<_> = Meter::split(job, job.connections * job.tasks)
        .zip(connections.iter().cycle())
        .zip(0..)
        .map(|((mut meter, actors), producer)| {
            let (actors, body) = (Arc::clone(actors), body.clone());
            tokio::spawn(async move {
                let mut sequence = 0;
                while meter.begin().is_some() {
                    let actor = &actors[sequence as usize % actors.len()];
                    sequence += 1;
                    actor.send(producer, sequence, &body).await?;
                    meter.end(None)?;
                }
                anyhow::Ok(meter)
            })
        })
        .collect();
    let mut total = Meter::new(job);
    for producer in producers {
        total.merge(&producer.await??)?;
    }
    let mut received = 0;
    for actor in actors {
        let (count, in_order) = actor.ask().await?;
        anyhow::ensure!(in_order, "an actor received messages out of order");
        received += count;
    }
    let sample = total.sample(start.elapsed());
    anyhow::ensure!(
        received == sample.operations,
        "the actors received {received} of {} messages",
        sample.operations
    );
    Ok(sample)
}

/// A [`Client`] whose actors are in its own process.
#[derive(Debug)]
pub struct LocalActors<A, F> {
    start: F,
    actors: Vec<A>,
}

impl<A: Actor, F: FnMut() -> anyhow::Result<A> + Send + 'static> LocalActors<A, F> {
    /// Creates the client. `start` starts one actor.
    pub fn new(start: F) -> Self {
        Self { start, actors: Vec::new() }
    }
}

impl<A: Actor, F: FnMut() -> anyhow::Result<A> + Send + 'static> Client for LocalActors<A, F> {
    async fn run(&mut self, job: Job) -> anyhow::Result<Sample> {
        while self.actors.len() < job.population {
            self.actors.push((self.start)()?);
        }
        let actors = &self.actors[..job.population];
        match job.case {
            Case::Send => run_sends(actors, &job).await,
            Case::Ask => {
                run(&actors.iter().cloned().map(ActorTarget).collect::<Vec<_>>(), &job).await
            }
            // The actors exist now. `cargo xtask compare` measures their memory.
            Case::Hold => Ok(Sample::default()),
            other => Err(unsupported(other)),
        }
    }
}

/// A [`Target`] that asks an actor.
#[derive(Clone)]
struct ActorTarget<A>(A);

impl<A: Actor> Target for ActorTarget<A> {
    const CASES: &'static [Case] = &[Case::Ask];
    const IS_EAGER: bool = A::IS_EAGER;

    async fn connect(_: std::net::SocketAddr) -> anyhow::Result<Self> {
        anyhow::bail!("local actors have no connection")
    }

    fn call(&self, _: &Request) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
        // An async block would store the awaited future twice.
        self.0.ask().map_ok(drop)
    }
}
