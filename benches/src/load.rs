//! The load that every contender gets: the same loops around whatever its API makes a call.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use bench_protocol::{Case, Job, Latency, Sample, Until};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hdrhistogram::Histogram;

use crate::open_loop;
use crate::process::cannot;

/// Operations between two looks at the clock when there are many.
const BETWEEN_LOOKS: u64 = 64;

/// Does jobs.
pub trait Client: Send + 'static {
    /// Does one.
    fn run(&mut self, job: Job) -> impl Future<Output = anyhow::Result<Sample>> + Send;
}

/// What a call is about.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Request {
    /// What is done.
    pub case: Case,
    /// The body, if one goes along.
    pub body: Bytes,
    /// The length of what comes back.
    pub size: usize,
}

impl Request {
    /// That of a job.
    #[must_use]
    pub fn new(job: &Job) -> Self {
        let sent = if matches!(job.case, Case::Echo | Case::Ask) { job.bytes } else { 0 };
        Self { case: job.case, body: vec![7; sent].into(), size: job.bytes }
    }
}

/// One connection of a contender, and how it is called.
pub trait Target: Clone + Send + Sync + 'static {
    /// What it can do.
    const CASES: &'static [Case];
    /// A call is on its way when it is made, whether or not its future is polled.
    const QUEUES: bool;

    /// Connects to a server.
    fn connect(address: SocketAddr) -> impl Future<Output = anyhow::Result<Self>> + Send;

    /// Calls; fails if the answer has another length than asked for.
    fn call(&self, request: &Request) -> impl Future<Output = anyhow::Result<()>> + Send + 'static;
}

/// The [`Client`] of a [`Target`].
#[derive(Debug)]
pub struct Calls<T> {
    address: SocketAddr,
    open: Vec<T>,
}

impl<T: Target> Calls<T> {
    /// Will call the server at `address`.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self { address, open: Vec::new() }
    }

    /// So many connections; those that are not there yet are made.
    ///
    /// # Errors
    /// When one cannot be made.
    pub async fn connections(&mut self, count: usize) -> anyhow::Result<&[T]> {
        while self.open.len() < count {
            self.open.push(T::connect(self.address).await?);
        }
        Ok(&self.open[..count])
    }
}

impl<T: Target> Client for Calls<T> {
    async fn run(&mut self, job: Job) -> anyhow::Result<Sample> {
        if !T::CASES.contains(&job.case) {
            return Err(cannot(job.case));
        }
        run(self.connections(job.connections).await?, &job).await
    }
}

/// Calls `targets` as `job` says.
///
/// # Errors
/// When a call fails.
pub async fn run<T: Target>(targets: &[T], job: &Job) -> anyhow::Result<Sample> {
    if job.rate.is_some() {
        let target = targets.first().context("an open loop needs a connection")?.clone();
        // On a worker of its own choice, as the tasks of a closed loop.
        return tokio::spawn(open_loop::run(target, *job)).await?;
    }
    let request = Request::new(job);
    let begun = Instant::now();
    let paces = Pace::share(job, targets.len() * job.tasks);
    let tasks: Vec<_> = paces
        .zip(targets.iter().cycle())
        .map(|(pace, target)| tokio::spawn(call(target.clone(), request.clone(), job.window, pace)))
        .collect();
    let mut whole = Pace::new(job);
    for task in tasks {
        whole.add(&task.await??)?;
    }
    Ok(whole.sample(begun.elapsed()))
}

async fn call<T: Target>(
    target: T,
    request: Request,
    window: usize,
    mut pace: Pace,
) -> anyhow::Result<Pace> {
    if T::QUEUES {
        let mut waiting = VecDeque::with_capacity(window);
        loop {
            while waiting.len() < window
                && let Some(begun) = pace.begin()
            {
                waiting.push_back((begun, target.call(&request)));
            }
            let Some((begun, answer)) = waiting.pop_front() else { return Ok(pace) };
            answer.await?;
            pace.end(begun)?;
        }
    }
    let timed = |begun| {
        let answer = target.call(&request);
        async move { answer.await.map(|()| begun) }
    };
    let mut waiting = FuturesUnordered::new();
    loop {
        while waiting.len() < window
            && let Some(begun) = pace.begin()
        {
            waiting.push(timed(begun));
        }
        let Some(answer) = waiting.next().await else { return Ok(pace) };
        pace.end(answer?)?;
    }
}

/// Says when to stop, and keeps the figures of one task.
#[derive(Debug)]
pub struct Pace {
    until: Until,
    started: Instant,
    between_looks: u64,
    over: bool,
    begun: u64,
    ended: u64,
    latency: Histogram<u64>,
}

impl Pace {
    /// For a job that is done by one task.
    #[must_use]
    pub fn new(job: &Job) -> Self {
        let slow = job.connections * job.tasks * job.window == 1 || job.bytes >= 64 << 10;
        #[allow(clippy::expect_used, reason = "3 is a number of digits that a histogram can have")]
        let latency = Histogram::new(3).expect("3 digits");
        Self {
            until: job.until,
            started: Instant::now(),
            between_looks: if slow { 1 } else { BETWEEN_LOOKS },
            over: false,
            begun: 0,
            ended: 0,
            latency,
        }
    }

    /// For each of the `tasks` that a job is done by.
    pub fn share(job: &Job, tasks: usize) -> impl Iterator<Item = Self> + use<> {
        let job = *job;
        (0..tasks as u64).map(move |index| {
            let mut pace = Self::new(&job);
            if let Until::Operations(all) = job.until {
                let tasks = tasks as u64;
                pace.until = Until::Operations(all / tasks + u64::from(index < all % tasks));
            }
            pace
        })
    }

    /// Begins an operation, if there is to be another one. Gives the time if this one is to be
    /// timed.
    pub fn begin(&mut self) -> Option<Option<Instant>> {
        let now = (self.begun.is_multiple_of(self.between_looks)).then(Instant::now);
        self.over = self.over
            || match (self.until, now) {
                (Until::Operations(count), _) => self.begun >= count,
                (Until::Millis(millis), Some(now)) => {
                    now.duration_since(self.started) >= Duration::from_millis(millis)
                }
                (Until::Millis(_), None) => false,
            };
        if self.over {
            return None;
        }
        self.begun += 1;
        Some(now)
    }

    /// Ends an operation.
    ///
    /// # Errors
    /// When it took longer than a histogram holds.
    pub fn end(&mut self, begun: Option<Instant>) -> anyhow::Result<()> {
        self.ended += 1;
        if let Some(begun) = begun {
            self.latency.record(u64::try_from(begun.elapsed().as_nanos())?)?;
        }
        Ok(())
    }

    /// Takes another task's figures over.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn add(&mut self, other: &Self) -> anyhow::Result<()> {
        self.ended += other.ended;
        Ok(self.latency.add(&other.latency)?)
    }

    /// The sum of it.
    #[must_use]
    pub fn sample(&self, took: Duration) -> Sample {
        let latency = latency(&self.latency);
        Sample { operations: self.ended, seconds: took.as_secs_f64(), latency }
    }
}

/// Returns the points of a histogram of nanoseconds; `None` if it is empty.
pub(crate) fn latency(histogram: &Histogram<u64>) -> Option<Latency> {
    let micros = |nanos: u64| nanos as f64 / 1e3;
    let at = |share| micros(histogram.value_at_quantile(share));
    (!histogram.is_empty()).then(|| Latency {
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p999: at(0.999),
        p9999: at(0.9999),
        max: micros(histogram.max()),
    })
}
