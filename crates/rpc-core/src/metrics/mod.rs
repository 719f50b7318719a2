//! What an environment tells about itself.

#[cfg(feature = "metrics")]
mod export;

use std::time::Duration;

use network_common::MetricsSnapshot;

use crate::address::RpcAddress;

/// The state of an environment, as [`RpcEnv::snapshot`](crate::RpcEnv::snapshot) finds it. Its
/// numbers are not all taken at one instant.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EnvSnapshot {
    /// The name given to the builder.
    pub name: String,
    /// Where it is reached; none in client mode.
    pub address: Option<RpcAddress>,
    /// Its registered endpoints, by name.
    pub endpoints: Vec<EndpointSnapshot>,
    /// The other environments that it sends to, by address.
    pub peers: Vec<PeerSnapshot>,
    /// Asks that wait for an answer.
    pub pending_asks: u64,
    /// Bytes of messages from the network that wait in inboxes or are being handled.
    pub inbox_bytes: u64,
    /// Bytes that the routes opened by other environments hold: 256 and the endpoint's name for
    /// each. The limit is a quarter of `spark.rpc.inbox.maxTotalBytes`.
    pub route_bytes: u64,
    /// One-way messages of this environment that others refused.
    pub undelivered: u64,
    /// What its connections carry: those that others made to it.
    pub server: MetricsSnapshot,
    /// And those that it made to others.
    pub client: MetricsSnapshot,
}

/// The state of one endpoint. Counts are since its registration.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EndpointSnapshot {
    /// The name it is registered under.
    pub name: String,
    /// Messages that wait or are being handled.
    pub held: u64,
    /// Their bytes, as the limits count them.
    pub held_bytes: u64,
    /// For how long the oldest of them has been waiting, or has kept others waiting. Zero if the
    /// endpoint keeps up.
    pub lag: Duration,
    /// Messages handled, whatever came of it.
    pub handled: u64,
    /// Of these, those whose `receive` returned an error or panicked.
    pub failed: u64,
    /// Messages that did not fit into the inbox.
    pub rejected: u64,
    /// Messages that were dropped to make room for newer ones.
    pub dropped: u64,
    /// Asks that nobody waited for any more when their turn came.
    pub expired: u64,
    /// How long `receive` took. All that waited for something are in it, of the others one in
    /// sixteen.
    pub processing: Histogram,
}

/// What waits to be sent to one other environment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PeerSnapshot {
    /// Where the other environment listens.
    pub address: RpcAddress,
    /// Whether there is a connection.
    pub connected: bool,
    /// Endpoints there that it has a queue for: those that refs lead to, and up to 64 others.
    pub endpoints: u64,
    /// Messages that wait for a connection or for credit.
    pub queued: u64,
    /// Their bytes.
    pub queued_bytes: u64,
}

/// What a shutdown did, as [`RpcEnv::shutdown`](crate::RpcEnv::shutdown) tells.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Each endpoint that was there when it began, by name.
    pub endpoints: Vec<EndpointReport>,
    /// Messages to other environments that could not be sent any more.
    pub unsent: u64,
    /// How long it took.
    pub duration: Duration,
    /// The shutdown has come to its end. If not, its runtime ended before, or it was awaited by an
    /// endpoint that it is to stop.
    pub is_complete: bool,
}

impl ShutdownReport {
    /// Whether everything that had been accepted was handled, or sent, and every `on_stop` ran.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.is_complete
            && self.unsent == 0
            && self.endpoints.iter().all(|endpoint| endpoint.stopped && endpoint.abandoned == 0)
    }
}

/// What a shutdown did to one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EndpointReport {
    /// The name it was registered under.
    pub name: String,
    /// Messages handled after the shutdown had begun.
    pub finished: u64,
    /// Messages that came after it had begun, and were refused.
    pub refused: u64,
    /// Messages that were waiting or being handled when time was up. Their askers have failed.
    pub abandoned: u64,
    /// Whether its `on_stop` has run to its end.
    pub stopped: bool,
}

const BUCKETS: usize = 40;

/// Durations, counted in buckets whose bounds are powers of two of a microsecond.
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
    pub(crate) fn record(&mut self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = (u64::BITS - micros.leading_zeros()) as usize;
        self.counts[bucket.min(BUCKETS - 1)] += 1;
        self.sum = self.sum.saturating_add(took);
        self.max = self.max.max(took);
    }

    /// How many durations it has seen.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Their sum.
    #[must_use]
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// The longest.
    #[must_use]
    pub fn max(&self) -> Duration {
        self.max
    }

    /// A bound below which the share `quantile` (0 to 1) of them lies: at most twice the true
    /// value, and never above the longest. Zero if it has seen none.
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

    /// Each bucket's upper bound, exclusive, and how many durations lie in it and not in the one
    /// before.
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
