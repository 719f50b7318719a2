//! [`LinkOptions`]: latency and bandwidth from one host to another.

use std::ops::RangeInclusive;
use std::time::Duration;

/// The latency and the bandwidth from one host of a simulation to another.
///
/// The default is a random latency of 0 to 2 ms for each write, and no limit of bandwidth.
///
/// ```
/// use std::time::Duration;
/// use network_common::sim::{LinkOptions, Simulation};
///
/// let simulation = Simulation::new(1);
/// let far = LinkOptions::new().latency(Duration::from_millis(40)..=Duration::from_millis(60));
/// simulation.set_link([10, 0, 0, 1], [10, 0, 0, 2], far.bandwidth(1 << 20));
/// ```
#[derive(Clone, Debug)]
pub struct LinkOptions {
    latency: RangeInclusive<Duration>,
    bandwidth: Option<u64>,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self { latency: Duration::ZERO..=Duration::from_millis(2), bandwidth: None }
    }
}

impl LinkOptions {
    /// Returns the default options.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the range of the time that bytes need from one end to the other.
    ///
    /// Each write gets a random latency of the range. Bytes never overtake earlier ones.
    #[must_use]
    pub fn latency(mut self, range: RangeInclusive<Duration>) -> Self {
        self.latency = range;
        self
    }

    /// Limits each connection to this many bytes per second, at least 1.
    #[must_use]
    pub fn bandwidth(mut self, bytes_per_second: u64) -> Self {
        self.bandwidth = Some(bytes_per_second.max(1));
        self
    }

    /// Returns a random latency of the range, in whole microseconds.
    pub(super) fn random_latency(&self, random: &mut fastrand::Rng) -> Duration {
        let micros = |duration: &Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let (min, max) = (micros(self.latency.start()), micros(self.latency.end()));
        Duration::from_micros(if min < max { random.u64(min..=max) } else { min })
    }

    /// Returns how long the sender is busy with `count` bytes.
    pub(super) fn transmission_time(&self, count: usize) -> Duration {
        transmission_time(count, self.bandwidth)
    }
}

/// Returns the time for `count` bytes at a rate in bytes per second; `None` is no limit.
pub(super) fn transmission_time(count: usize, rate: Option<u64>) -> Duration {
    rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(count as f64 / rate as f64))
}
