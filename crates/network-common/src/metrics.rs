//! [`TransportMetrics`]: the counters of one context, which are always enabled.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{ErrorKind, TransportError};

/// The counters of a context's connections, for its servers and its clients.
///
/// Clones and the context share the counters. Reading them is cheap. The values of one
/// [`snapshot`](SideMetrics::snapshot) are not read at the same instant.
///
/// ```
/// use network_common::{NoOpRpcHandler, TransportConf, TransportContext};
///
/// let context = TransportContext::new(TransportConf::new("rpc"), NoOpRpcHandler::new());
/// let metrics = context.metrics();
/// assert_eq!(metrics.server().prefix(), "rpc-server");
/// assert_eq!(metrics.client().snapshot().pending_requests, 0);
/// ```
#[derive(Debug, Clone)]
pub struct TransportMetrics {
    server: Arc<SideMetrics>,
    client: Arc<SideMetrics>,
}

impl TransportMetrics {
    pub(crate) fn new(module: &str) -> Self {
        let side = |name| {
            Arc::new(SideMetrics { prefix: format!("{module}-{name}"), ..Default::default() })
        };
        Self { server: side("server"), client: side("client") }
    }

    /// Returns the counters of the connections that this context's servers accepted.
    #[must_use]
    pub fn server(&self) -> &Arc<SideMetrics> {
        &self.server
    }

    /// Returns the counters of the connections that this context's client factories opened.
    #[must_use]
    pub fn client(&self) -> &Arc<SideMetrics> {
        &self.client
    }
}

/// The counters of one side of a context; see [`TransportMetrics`].
#[derive(Debug, Default)]
pub struct SideMetrics {
    prefix: String,
    pub(crate) connections: AtomicU64,
    pub(crate) connections_total: AtomicU64,
    pub(crate) pending_requests: AtomicU64,
    pub(crate) active_requests: AtomicU64,
    pub(crate) received_bytes: AtomicU64,
    pub(crate) sent_bytes: AtomicU64,
    pub(crate) write_queue_bytes: AtomicU64,
    pub(crate) chunks_being_transferred: AtomicU64,
    pub(crate) sendfile_bytes: AtomicU64,
    pub(crate) copied_file_bytes: AtomicU64,
    pub(crate) direct_body_bytes: AtomicU64,
    pub(crate) held_bytes: AtomicU64,
    pub(crate) refused_messages: AtomicU64,
    pub(crate) closed_for_budget: AtomicU64,
    failures: [AtomicU64; ErrorKind::ALL.len()],
}

/// The values of the counters of one side; see [`SideMetrics::snapshot`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MetricsSnapshot {
    /// The number of open connections.
    pub connections: u64,
    /// The number of connections ever opened or accepted.
    pub connections_total: u64,
    /// The number of sent requests without a response.
    pub pending_requests: u64,
    /// The number of received requests without a response.
    pub active_requests: u64,
    /// The number of bytes read from sockets.
    pub received_bytes: u64,
    /// The number of bytes written to sockets.
    pub sent_bytes: u64,
    /// The number of bytes in the write queues; file bodies do not count.
    pub write_queue_bytes: u64,
    /// The number of chunks and streams that peers requested and that are not sent yet.
    pub chunks_being_transferred: u64,
    /// The number of bytes of files that the kernel sent to the socket (`sendfile`).
    pub sendfile_bytes: u64,
    /// The number of bytes of files that were copied through memory to the socket.
    pub copied_file_bytes: u64,
    /// The number of body bytes that were received or decrypted directly into the body's buffer.
    pub direct_body_bytes: u64,
    /// The number of bytes that the connections hold of their [`ByteBudget`](crate::ByteBudget).
    pub held_bytes: u64,
    /// The number of requests and responses of peers that were refused because of the budget.
    pub refused_messages: u64,
    /// The number of connections that were closed because of the budget.
    pub closed_for_budget: u64,
    /// The number of connections and connection attempts that ended with an error, by kind.
    pub failures: Vec<(ErrorKind, u64)>,
}

impl SideMetrics {
    /// Returns `<module>-server` or `<module>-client`, the prefix of this side's metrics in Spark.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Counts a connection or connection attempt that ended with `error`.
    pub(crate) fn count_failure(&self, error: &TransportError) {
        if let Some(position) = ErrorKind::ALL.iter().position(|kind| *kind == error.kind()) {
            self.failures[position].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the current values.
    #[must_use]
    pub fn snapshot(&self) -> MetricsSnapshot {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        MetricsSnapshot {
            connections: value(&self.connections),
            connections_total: value(&self.connections_total),
            pending_requests: value(&self.pending_requests),
            active_requests: value(&self.active_requests),
            received_bytes: value(&self.received_bytes),
            sent_bytes: value(&self.sent_bytes),
            write_queue_bytes: value(&self.write_queue_bytes),
            chunks_being_transferred: value(&self.chunks_being_transferred),
            sendfile_bytes: value(&self.sendfile_bytes),
            copied_file_bytes: value(&self.copied_file_bytes),
            direct_body_bytes: value(&self.direct_body_bytes),
            held_bytes: value(&self.held_bytes),
            refused_messages: value(&self.refused_messages),
            closed_for_budget: value(&self.closed_for_budget),
            failures: ErrorKind::ALL
                .into_iter()
                .zip(&self.failures)
                .map(|(kind, counter)| (kind, value(counter)))
                .filter(|(_, count)| *count > 0)
                .collect(),
        }
    }

    /// Returns the current values with their full names, such as `shuffle-server.connections`.
    #[must_use]
    pub fn named_values(&self) -> Vec<(String, u64)> {
        let values = self.snapshot();
        let mut named: Vec<_> = [
            ("connections", values.connections),
            ("connectionsTotal", values.connections_total),
            ("pendingRequests", values.pending_requests),
            ("activeRequests", values.active_requests),
            ("receivedBytes", values.received_bytes),
            ("sentBytes", values.sent_bytes),
            ("writeQueueBytes", values.write_queue_bytes),
            ("chunksBeingTransferred", values.chunks_being_transferred),
            ("sendfileBytes", values.sendfile_bytes),
            ("copiedFileBytes", values.copied_file_bytes),
            ("directBodyBytes", values.direct_body_bytes),
            ("heldBytes", values.held_bytes),
            ("refusedMessages", values.refused_messages),
            ("closedForBudget", values.closed_for_budget),
        ]
        .map(|(name, value)| (format!("{}.{name}", self.prefix), value))
        .into();
        let failures = values.failures.into_iter();
        named.extend(
            failures.map(|(kind, count)| (format!("{}.failures.{kind:?}", self.prefix), count)),
        );
        named
    }
}

/// Changes a gauge by the difference between the value last reported and `now`.
pub(crate) fn update_gauge(gauge: &AtomicU64, last: &mut u64, now: u64) {
    if *last != now {
        // A negative difference wraps; the sum over all connections is right.
        gauge.fetch_add(now.wrapping_sub(*last), Ordering::Relaxed);
        *last = now;
    }
}
