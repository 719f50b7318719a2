//! [`Histogram`], the durations of one endpoint's handler.

use std::time::Duration;

const BUCKETS: usize = 40;

/// A histogram of durations.
///
/// The bounds of its buckets are powers of two of a microsecond.
///
/// ```
/// use rpc_core::Histogram;
///
/// let processing = Histogram::default();
/// assert_eq!(processing.count(), 0);
/// assert!(processing.quantile(0.99).is_zero());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; BUCKETS],
    sum: Duration,
    max: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], sum: Duration::ZERO, max: Duration::ZERO }
    }
}

impl Histogram {
    pub(crate) fn record(&mut self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = (u64::BITS - micros.leading_zeros()) as usize;
        self.counts[bucket.min(BUCKETS - 1)] += 1;
        self.sum = self.sum.saturating_add(duration);
        self.max = self.max.max(duration);
    }

    /// Returns the number of durations.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Returns the sum of the durations.
    #[must_use]
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// Returns the longest duration.
    #[must_use]
    pub fn max(&self) -> Duration {
        self.max
    }

    /// Returns an upper bound of the quantile `quantile`, a number from 0 to 1.
    ///
    /// The bound is at most twice the true value, and at most the longest duration. It is zero if
    /// there are no durations.
    #[must_use]
    pub fn quantile(&self, quantile: f64) -> Duration {
        let rank = (quantile.clamp(0.0, 1.0) * self.count() as f64).ceil() as u64;
        let mut below = 0;
        for (bound, count) in self.buckets() {
            below += count;
            if below >= rank {
                return bound.min(self.max);
            }
        }
        self.max
    }

    /// Returns the exclusive upper bound of each bucket and the number of durations in it.
    ///
    /// The number does not contain those of smaller buckets.
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> {
        self.counts
            .iter()
            .enumerate()
            .map(|(power, count)| (Duration::from_micros(1 << power), *count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_bounds() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.count(), histogram.quantile(0.5)), (0, Duration::ZERO));
        for micros in 1..=1000 {
            histogram.record(Duration::from_micros(micros));
        }
        assert_eq!(histogram.count(), 1000);
        assert_eq!(histogram.sum(), Duration::from_micros(500_500));
        for (quantile, exact) in [(0.01, 10), (0.5, 500), (0.99, 990), (1.0, 1000)] {
            let exact = Duration::from_micros(exact);
            let bound = histogram.quantile(quantile);
            assert!(bound >= exact && bound <= 2 * exact, "{quantile}: {bound:?}");
        }
        assert_eq!(histogram.max(), Duration::from_millis(1));
        histogram.record(Duration::MAX);
        histogram.record(Duration::ZERO);
        assert_eq!(histogram.buckets().map(|(_, count)| count).sum::<u64>(), 1002);
    }
}
