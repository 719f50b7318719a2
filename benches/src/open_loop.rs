//! The open loop: requests at a fixed rate, independent of the responses.
//!
//! Request n is due n spacings after the start. Its latency counts from its due time, even if the
//! caller could send it only later. So a stall counts for every request that it delays (no
//! coordinated omission).

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bench_protocol::{Job, Sample, Until};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hdrhistogram::Histogram;
use rustix::time::{self, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::io::unix::AsyncFd;

use crate::load::{Request, Target, latency};

/// The minimum time between two wake-ups of the caller, which then sends all due requests.
///
/// tokio's timer has a granularity of 1 ms, which would hide every latency below it. A spinning
/// thread would occupy one of two cores. A timerfd is exact to some microseconds, and wakes the
/// thread that also reads the responses. The limit exists because each wake-up costs a few
/// microseconds of CPU.
const TICK: Duration = Duration::from_micros(100);

/// The maximum number of requests in flight.
///
/// The caller delays further requests, and the delay counts as latency.
const MAX_IN_FLIGHT: u64 = 4096;

/// The requests of a job by their due times, and their latencies.
#[derive(Debug)]
pub struct Schedule {
    timer: AsyncFd<rustix::fd::OwnedFd>,
    start: Instant,
    /// The time between two wake-ups.
    tick_nanos: u64,
    /// The number of requests that become due in one tick.
    requests_per_tick: u64,
    /// The number of requests of the job.
    total: u64,
    sent: u64,
    completed: u64,
    latency: Histogram<u64>,
}

impl Schedule {
    /// Starts the schedule of `job`.
    ///
    /// # Errors
    /// Fails if the job has no rate or no duration, or if the timer cannot be created.
    pub fn start(job: &Job) -> anyhow::Result<Self> {
        let rate = job.rate.context("a job of the open loop needs a rate")?;
        let Until::Millis(millis) = job.until else {
            anyhow::bail!("a job of the open loop needs a duration");
        };
        // A multiple of the spacing, so that a request is due exactly when the timer fires.
        let requests_per_tick = (TICK.as_secs_f64() * rate).ceil().max(1.0);
        let tick = Duration::from_secs_f64(requests_per_tick / rate);
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let (tv_sec, tv_nsec) = (tick.as_secs() as i64, tick.subsec_nanos().into());
        let interval = Timespec { tv_sec, tv_nsec };
        let every_tick = Itimerspec { it_interval: interval, it_value: interval };
        // This is read before the timer starts, so that the timer never fires before a due time.
        let start = Instant::now();
        time::timerfd_settime(&timer, TimerfdTimerFlags::empty(), &every_tick)?;
        #[allow(deprecated, reason = "its successor is unsafe; an owned descriptor stays open")]
        let timer = AsyncFd::new(timer)?;
        Ok(Self {
            timer,
            start,
            tick_nanos: tick.as_nanos() as u64,
            requests_per_tick: requests_per_tick as u64,
            total: (rate * millis as f64 / 1e3) as u64,
            sent: 0,
            completed: 0,
            latency: Histogram::new(3)?,
        })
    }

    fn due_time(&self, number: u64) -> Instant {
        self.start + Duration::from_nanos(number * self.tick_nanos / self.requests_per_tick)
    }

    /// Returns whether all requests have a response.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.completed == self.total
    }

    /// Returns the due times of the requests to be sent now; pending while no request is due.
    ///
    /// # Errors
    /// Fails if the timer fails.
    pub fn poll_due(&mut self, context: &mut Context<'_>) -> Poll<anyhow::Result<Vec<Instant>>> {
        loop {
            let (now, mut due) = (Instant::now(), Vec::new());
            while self.sent < self.total
                && self.sent - self.completed < MAX_IN_FLIGHT
                && self.due_time(self.sent) <= now
            {
                due.push(self.due_time(self.sent));
                self.sent += 1;
            }
            if !due.is_empty() {
                return Poll::Ready(Ok(due));
            }
            if self.sent == self.total || self.sent - self.completed == MAX_IN_FLIGHT {
                // Only a response can change this state.
                return Poll::Pending;
            }
            ready!(self.poll_timer(context))?;
        }
    }

    fn poll_timer(&self, context: &mut Context<'_>) -> Poll<anyhow::Result<()>> {
        let mut guard = ready!(self.timer.poll_read_ready(context))?;
        // The count of expirations is ignored, because the due times depend on the clock only.
        match rustix::io::read(&self.timer, &mut [0; 8]) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => guard.clear_ready(),
            Err(error) => return Poll::Ready(Err(error.into())),
        }
        Poll::Ready(Ok(()))
    }

    /// Records the response to the request that was due at `due`.
    ///
    /// # Errors
    /// Fails if the latency exceeds the range of the histogram.
    pub fn complete(&mut self, due: Instant) -> anyhow::Result<()> {
        self.completed += 1;
        Ok(self.latency.record(u64::try_from(due.elapsed().as_nanos())?)?)
    }

    /// Returns the figures of the job.
    #[must_use]
    pub fn sample(&self) -> Sample {
        Sample {
            operations: self.completed,
            seconds: self.start.elapsed().as_secs_f64(),
            latency: latency(&self.latency),
        }
    }
}

/// Calls `target` at the rate of `job`.
///
/// # Errors
/// Fails if a call fails.
pub async fn run<T: Target>(target: T, job: Job) -> anyhow::Result<Sample> {
    let (request, schedule) = (Request::new(&job), Schedule::start(&job)?);
    if T::IS_EAGER {
        let in_flight =
            InOrder { queue: VecDeque::new(), first: Box::pin(None), first_due: schedule.start };
        drive(schedule, in_flight, || target.call(&request)).await
    } else {
        let in_flight = Unordered { calls: FuturesUnordered::new(), timed: with_due_time };
        drive(schedule, in_flight, || target.call(&request)).await
    }
}

async fn with_due_time<F: Future<Output = anyhow::Result<()>>>(
    due: Instant,
    call: F,
) -> anyhow::Result<Instant> {
    call.await.map(|()| due)
}

/// The poll budget: after this number of iterations, other tasks of the thread run.
const POLL_BUDGET: usize = 8;

async fn drive<F: Future<Output = anyhow::Result<()>>>(
    mut schedule: Schedule,
    mut in_flight: impl InFlight<F>,
    call: impl Fn() -> F,
) -> anyhow::Result<Sample> {
    poll_fn(|context| {
        for _ in 0..POLL_BUDGET {
            let mut is_idle = true;
            if let Poll::Ready(due) = schedule.poll_due(context)? {
                is_idle = false;
                due.into_iter().for_each(|due| in_flight.push(due, call()));
            }
            while let Poll::Ready(Some(due)) = in_flight.poll_next(context)? {
                is_idle = false;
                schedule.complete(due)?;
            }
            if schedule.is_complete() {
                return Poll::Ready(anyhow::Ok(()));
            }
            if is_idle {
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await?;
    Ok(schedule.sample())
}

/// The calls in flight, with the due times of their requests.
trait InFlight<F> {
    fn push(&mut self, due: Instant, call: F);

    /// Returns the due time of a request whose response was received; `None` if none is in flight.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<anyhow::Result<Option<Instant>>>;
}

/// Polls only the oldest call, as one connection responds in the order of the calls.
///
/// So a call needs no allocation and no entry in a queue of woken tasks.
struct InOrder<F> {
    queue: VecDeque<(Instant, F)>,
    first: Pin<Box<Option<F>>>,
    first_due: Instant,
}

impl<F: Future<Output = anyhow::Result<()>>> InFlight<F> for InOrder<F> {
    fn push(&mut self, due: Instant, call: F) {
        self.queue.push_back((due, call));
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<anyhow::Result<Option<Instant>>> {
        if self.first.is_none() {
            let Some((due, call)) = self.queue.pop_front() else { return Poll::Ready(Ok(None)) };
            self.first_due = due;
            self.first.set(Some(call));
        }
        if let Some(call) = self.first.as_mut().as_pin_mut() {
            ready!(call.poll(context))?;
        }
        self.first.set(None);
        Poll::Ready(Ok(Some(self.first_due)))
    }
}

/// Polls the calls whose wakers were called.
struct Unordered<F, T> {
    calls: FuturesUnordered<F>,
    /// Adds the due time to the output of a call.
    timed: T,
}

impl<C, F, T> InFlight<C> for Unordered<F, T>
where
    F: Future<Output = anyhow::Result<Instant>>,
    T: Fn(Instant, C) -> F,
{
    fn push(&mut self, due: Instant, call: C) {
        self.calls.push((self.timed)(due, call));
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<anyhow::Result<Option<Instant>>> {
        self.calls.poll_next_unpin(context).map(Option::transpose)
    }
}

#[cfg(test)]
mod tests {
    use bench_protocol::Case;

    use super::*;

    #[tokio::test]
    async fn latency_of_late_request_counts_from_its_due_time() {
        let until = Until::Millis(20);
        let job = Job { rate: Some(1000.0), until, ..Job::new(Case::Echo) };
        let mut schedule = Schedule::start(&job).unwrap();
        // The caller stalls until all requests are due.
        std::thread::sleep(Duration::from_millis(30));
        let due = poll_fn(|context| schedule.poll_due(context)).await.unwrap();
        assert_eq!(due.len(), 20);
        due.into_iter().for_each(|due| schedule.complete(due).unwrap());
        assert!(schedule.is_complete());
        let latency = schedule.sample().latency.unwrap();
        assert!(latency.p50 > 15_000.0 && latency.max > 29_000.0, "{latency:?}");
    }
}
