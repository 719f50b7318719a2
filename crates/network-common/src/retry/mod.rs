//! Repetition of failed operations: [`RetryPolicy`], its schedule, and the budget of a peer.

mod budget;
#[cfg(test)]
mod retry_tests;

pub use budget::RetryBudget;

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

/// Defines how often and when a failed operation is repeated. It is a plain value.
///
/// The wait before attempt `n + 1` is `first_wait * factor^(n - 1)`, at most `max_wait`. With
/// jitter it is a random time between zero and that ("full jitter"), so that the clients of a
/// server that restarts do not all return at once. [`run`](Self::run) executes the policy.
///
/// | property | default |
/// |---|---|
/// | [`attempts`](Self::attempts), the first one included | 3 |
/// | [`first_wait`](Self::first_wait) | 100 ms |
/// | [`factor`](Self::factor) | 2 |
/// | [`max_wait`](Self::max_wait) | 10 s |
/// | [`jitter`](Self::jitter) | on |
/// | [`total_timeout`](Self::total_timeout) | none |
///
/// ```
/// use std::time::Duration;
/// use network_common::{
///     NoOpRpcHandler, RetryPolicy, TransportConf, TransportContext, TransportError,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), TransportError> {
/// # let context = TransportContext::new(TransportConf::new("rpc"), NoOpRpcHandler::new());
/// # let server = context.create_server("127.0.0.1:0").await?;
/// # let address = server.local_addr();
/// # let factory = context.create_client_factory();
/// let policy = RetryPolicy::new().attempts(5).total_timeout(Duration::from_secs(20));
/// let client = policy
///     .run(|_| factory.create_client(address), TransportError::is_retryable)
///     .await?;
/// # Ok(())
/// # }
/// ```
///
/// The rules of Spark's `RetryingBlockTransferor` (`spark.<module>.io.maxRetries` more attempts,
/// `spark.<module>.io.retryWait` apart):
///
/// ```
/// # use network_common::{RetryPolicy, TransportConf};
/// # let conf = TransportConf::new("shuffle");
/// let policy = RetryPolicy::new()
///     .attempts(1 + conf.max_retries())
///     .first_wait(conf.retry_wait())
///     .max_wait(conf.retry_wait())
///     .factor(1.0)
///     .jitter(false);
/// assert_eq!(policy.wait_after(1), policy.wait_after(3));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    attempts: u32,
    first_wait: Duration,
    factor: f64,
    max_wait: Duration,
    has_jitter: bool,
    total_timeout: Option<Duration>,
}

impl RetryPolicy {
    /// Returns the default policy.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            attempts: 3,
            first_wait: Duration::from_millis(100),
            factor: 2.0,
            max_wait: Duration::from_secs(10),
            has_jitter: true,
            total_timeout: None,
        }
    }

    /// Sets the maximal number of attempts, the first one included; 0 means 1.
    #[must_use]
    pub const fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// Sets the wait after the first failed attempt.
    #[must_use]
    pub const fn first_wait(mut self, wait: Duration) -> Self {
        self.first_wait = wait;
        self
    }

    /// Sets the factor from one wait to the next; 1 makes all waits equal.
    ///
    /// A factor below 1, or one that is not a number, is used as 1.
    #[must_use]
    pub const fn factor(mut self, factor: f64) -> Self {
        self.factor = factor;
        self
    }

    /// Sets the longest wait. It also limits the first one.
    #[must_use]
    pub const fn max_wait(mut self, wait: Duration) -> Self {
        self.max_wait = wait;
        self
    }

    /// Sets whether a wait is a random time from zero to its full length.
    #[must_use]
    pub const fn jitter(mut self, has_jitter: bool) -> Self {
        self.has_jitter = has_jitter;
        self
    }

    /// Sets the time for all attempts and the waits between them.
    ///
    /// No attempt begins after it. It does not end an attempt that has begun, which gets the
    /// remaining time in [`RetryAttempt::remaining`].
    #[must_use]
    pub const fn total_timeout(mut self, timeout: Duration) -> Self {
        self.total_timeout = Some(timeout);
        self
    }

    /// Shortens the total timeout to `timeout`, if it is longer or not set.
    #[must_use]
    pub fn limit_total_timeout(mut self, timeout: Duration) -> Self {
        self.total_timeout = Some(self.total_timeout.map_or(timeout, |own| own.min(timeout)));
        self
    }

    /// Returns the wait after the `failed`-th attempt has failed, a random one with jitter.
    #[must_use]
    pub fn wait_after(&self, failed: u32) -> Duration {
        // Not `clamp`, which keeps NaN. The product may be infinite, and is then the longest wait.
        let factor = if self.factor > 1.0 { self.factor } else { 1.0 };
        let power = i32::try_from(failed.saturating_sub(1)).unwrap_or(i32::MAX);
        let full = self.first_wait.as_secs_f64() * factor.powi(power);
        let full = Duration::try_from_secs_f64(full).unwrap_or(Duration::MAX).min(self.max_wait);
        if self.has_jitter { full.mul_f64(fastrand::f64()) } else { full }
    }

    /// Starts the schedule of one operation. Its first attempt begins now.
    #[must_use]
    pub fn start(&self) -> RetrySchedule {
        let timeout = self.total_timeout;
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        RetrySchedule { policy: self.clone(), number: 1, deadline }
    }

    /// Calls `attempt` until its future succeeds or must not be repeated.
    ///
    /// `may_repeat` is called once for each error, also for that of the last attempt. So it is also
    /// the place to count failures in a [`RetryBudget`]. Waits use the clock of tokio.
    ///
    /// # Errors
    /// The error of the last attempt.
    ///
    /// # Cancel safety
    /// Dropping the future drops the current attempt, and no other one begins.
    pub async fn run<T, E, A>(
        &self,
        mut attempt: impl FnMut(RetryAttempt) -> A,
        mut may_repeat: impl FnMut(&E) -> bool,
    ) -> Result<T, E>
    where
        A: Future<Output = Result<T, E>>,
    {
        let mut schedule = self.start();
        loop {
            let error = match attempt(schedule.attempt()).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if !may_repeat(&error) {
                return Err(error);
            }
            let Some(wait) = schedule.next_wait() else { return Err(error) };
            tokio::time::sleep(wait).await;
        }
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::new()
    }
}

/// One attempt of an operation that a [`RetryPolicy`] repeats.
///
/// ```
/// use network_common::RetryPolicy;
///
/// let first = RetryPolicy::new().start().attempt();
/// assert_eq!((first.number, first.remaining), (1, None));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryAttempt {
    /// The number of the attempt; the first one is 1.
    pub number: u32,
    /// The remaining part of the total timeout; `None` if the policy has none.
    ///
    /// An attempt uses it as its own timeout if that is longer.
    pub remaining: Option<Duration>,
}

/// The attempts of one operation, for loops that wait in their own way.
///
/// [`RetryPolicy::run`] is the usual loop.
///
/// ```
/// use std::time::Duration;
/// use network_common::RetryPolicy;
///
/// let mut schedule = RetryPolicy::new().attempts(2).jitter(false).start();
/// assert_eq!(schedule.next_wait(), Some(Duration::from_millis(100)));
/// assert_eq!(schedule.attempt().number, 2);
/// assert_eq!(schedule.next_wait(), None);
/// ```
#[derive(Clone, Debug)]
pub struct RetrySchedule {
    policy: RetryPolicy,
    number: u32,
    deadline: Option<Instant>,
}

impl RetrySchedule {
    /// Returns the current attempt.
    #[must_use]
    pub fn attempt(&self) -> RetryAttempt {
        let remaining = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
        RetryAttempt { number: self.number, remaining: self.deadline.map(remaining) }
    }

    /// Counts the current attempt as failed, and returns the wait before the next one.
    ///
    /// Returns `None` if there is no next one: all attempts have failed, or the wait would end
    /// after the total timeout.
    pub fn next_wait(&mut self) -> Option<Duration> {
        if self.number >= self.policy.attempts {
            return None;
        }
        let wait = self.policy.wait_after(self.number);
        if self.attempt().remaining.is_some_and(|remaining| wait >= remaining) {
            return None;
        }
        self.number += 1;
        Some(wait)
    }
}
