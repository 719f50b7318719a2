//! Calls a contender in a closed loop: each task keeps a fixed number of calls in flight.

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
use crate::process::unsupported;

/// One in this number of operations is timed if the operations are short.
const CLOCK_INTERVAL: u64 = 64;

/// Runs the jobs of a measured process: the client or the server of a contender.
pub trait Client: Send + 'static {
    /// Runs one job.
    fn run(&mut self, job: Job) -> impl Future<Output = anyhow::Result<Sample>> + Send;
}

/// The parameters of one call.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Request {
    /// The kind of operation.
    pub case: Case,
    /// The body of the request; empty for fetches and streams.
    pub body: Bytes,
    /// The expected length of the response.
    pub size: usize,
}

impl Request {
    /// Returns the request of every call of `job`.
    #[must_use]
    pub fn new(job: &Job) -> Self {
        let sent = if matches!(job.case, Case::Echo | Case::Ask) { job.bytes } else { 0 };
        Self { case: job.case, body: vec![7; sent].into(), size: job.bytes }
    }
}

/// One connection of a contender.
pub trait Target: Clone + Send + Sync + 'static {
    /// The cases that this contender supports.
    const CASES: &'static [Case];
    /// `true` if [`call`](Self::call) queues the request before its future is polled.
    const IS_EAGER: bool;

    /// Connects to the server at `address`.
    fn connect(address: SocketAddr) -> impl Future<Output = anyhow::Result<Self>> + Send;

    /// Makes one call. Fails if the length of the response is not `request.size`.
    fn call(&self, request: &Request) -> impl Future<Output = anyhow::Result<()>> + Send + 'static;
}

/// A [`Client`] that calls a server over a pool of connections.
#[derive(Debug)]
pub struct CallClient<T> {
    address: SocketAddr,
    connections: Vec<T>,
}

impl<T: Target> CallClient<T> {
    /// Creates a client of the server at `address`, without a connection.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self { address, connections: Vec::new() }
    }

    /// Returns `count` connections, and opens those that do not exist yet.
    ///
    /// # Errors
    /// Fails if a connection cannot be opened.
    pub async fn connections(&mut self, count: usize) -> anyhow::Result<&[T]> {
        while self.connections.len() < count {
            self.connections.push(T::connect(self.address).await?);
        }
        Ok(&self.connections[..count])
    }
}

impl<T: Target> Client for CallClient<T> {
    async fn run(&mut self, job: Job) -> anyhow::Result<Sample> {
        if !T::CASES.contains(&job.case) {
            return Err(unsupported(job.case));
        }
        run(self.connections(job.connections).await?, &job).await
    }
}

/// Runs `job` with `job.tasks` tasks on each of `targets`.
///
/// # Errors
/// Fails if a call fails.
pub async fn run<T: Target>(targets: &[T], job: &Job) -> anyhow::Result<Sample> {
    if job.rate.is_some() {
        let target = targets.first().context("an open loop needs a connection")?.clone();
        // A spawned task runs on a worker thread, as the tasks of a closed loop do.
        return tokio::spawn(open_loop::run(target, *job)).await?;
    }
    let request = Request::new(job);
    let start = Instant::now();
    let meters = Meter::split(job, targets.len() * job.tasks);
    let tasks: Vec<_> = meters
        .zip(targets.iter().cycle())
        .map(|(meter, target)| {
            tokio::spawn(run_task(target.clone(), request.clone(), job.window, meter))
        })
        .collect();
    let mut total = Meter::new(job);
    for task in tasks {
        total.merge(&task.await??)?;
    }
    Ok(total.sample(start.elapsed()))
}

/// Keeps `window` calls in flight until `meter` ends the job.
async fn run_task<T: Target>(
    target: T,
    request: Request,
    window: usize,
    mut meter: Meter,
) -> anyhow::Result<Meter> {
    if T::IS_EAGER {
        let mut pending = VecDeque::with_capacity(window);
        loop {
            while pending.len() < window
                && let Some(start) = meter.begin()
            {
                pending.push_back((start, target.call(&request)));
            }
            let Some((start, response)) = pending.pop_front() else { return Ok(meter) };
            response.await?;
            meter.end(start)?;
        }
    }
    let timed_call = |start| {
        let response = target.call(&request);
        async move { response.await.map(|()| start) }
    };
    let mut pending = FuturesUnordered::new();
    loop {
        while pending.len() < window
            && let Some(start) = meter.begin()
        {
            pending.push(timed_call(start));
        }
        let Some(response) = pending.next().await else { return Ok(meter) };
        meter.end(response?)?;
    }
}

/// Counts and times the operations of one task, and decides when the task stops.
#[derive(Debug)]
pub struct Meter {
    until: Until,
    start: Instant,
    /// One in this number of operations is timed.
    clock_interval: u64,
    is_finished: bool,
    begun: u64,
    completed: u64,
    latency: Histogram<u64>,
}

impl Meter {
    /// Creates the meter of a job that one task runs.
    #[must_use]
    pub fn new(job: &Job) -> Self {
        let is_each_timed = job.connections * job.tasks * job.window == 1 || job.bytes >= 64 << 10;
        #[allow(clippy::expect_used, reason = "a histogram supports 0 to 5 significant digits")]
        let latency = Histogram::new(3).expect("3 significant digits are supported");
        Self {
            until: job.until,
            start: Instant::now(),
            clock_interval: if is_each_timed { 1 } else { CLOCK_INTERVAL },
            is_finished: false,
            begun: 0,
            completed: 0,
            latency,
        }
    }

    /// Creates a meter for each of the `tasks` that share a job.
    pub fn split(job: &Job, tasks: usize) -> impl Iterator<Item = Self> + use<> {
        let job = *job;
        (0..tasks as u64).map(move |index| {
            let mut meter = Self::new(&job);
            if let Until::Operations(total) = job.until {
                let tasks = tasks as u64;
                meter.until = Until::Operations(total / tasks + u64::from(index < total % tasks));
            }
            meter
        })
    }

    /// Begins an operation. Returns `None` if the job has ended.
    ///
    /// The inner value is the current time if this operation is timed.
    pub fn begin(&mut self) -> Option<Option<Instant>> {
        let now = (self.begun.is_multiple_of(self.clock_interval)).then(Instant::now);
        self.is_finished = self.is_finished
            || match (self.until, now) {
                (Until::Operations(count), _) => self.begun >= count,
                (Until::Millis(millis), Some(now)) => {
                    now.duration_since(self.start) >= Duration::from_millis(millis)
                }
                (Until::Millis(_), None) => false,
            };
        if self.is_finished {
            return None;
        }
        self.begun += 1;
        Some(now)
    }

    /// Counts a completed operation, and records its latency if it was timed.
    ///
    /// # Errors
    /// Fails if the latency exceeds the range of the histogram.
    pub fn end(&mut self, start: Option<Instant>) -> anyhow::Result<()> {
        self.completed += 1;
        if let Some(start) = start {
            self.latency.record(u64::try_from(start.elapsed().as_nanos())?)?;
        }
        Ok(())
    }

    /// Adds the counts and latencies of another task.
    ///
    /// # Errors
    /// Fails if a latency exceeds the range of the histogram.
    pub fn merge(&mut self, other: &Self) -> anyhow::Result<()> {
        self.completed += other.completed;
        Ok(self.latency.add(&other.latency)?)
    }

    /// Returns the result of the job, which took `duration`.
    #[must_use]
    pub fn sample(&self, duration: Duration) -> Sample {
        let latency = latency(&self.latency);
        Sample { operations: self.completed, seconds: duration.as_secs_f64(), latency }
    }
}

/// Returns the percentiles of a histogram of nanoseconds; `None` if it is empty.
pub(crate) fn latency(histogram: &Histogram<u64>) -> Option<Latency> {
    let micros = |nanos: u64| nanos as f64 / 1e3;
    let at = |quantile| micros(histogram.value_at_quantile(quantile));
    (!histogram.is_empty()).then(|| Latency {
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p999: at(0.999),
        p9999: at(0.9999),
        max: micros(histogram.max()),
    })
}
