//! Counters of one context, cheap enough to be always on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{ErrorKind, TransportError};

/// What a context's connections do, seen from its two sides.
///
/// Clones and the context share the counters. Reading is cheap; the numbers of one
/// [`snapshot`](SideMetrics::snapshot) are not taken at one instant.
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

    /// Connections that this context's servers accepted.
    pub fn server(&self) -> &Arc<SideMetrics> {
        &self.server
    }

    /// Connections that this context's client factories opened.
    pub fn client(&self) -> &Arc<SideMetrics> {
        &self.client
    }
}

/// The counters of one side.
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
    failures: [AtomicU64; ErrorKind::ALL.len()],
}

/// The values of one side's counters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MetricsSnapshot {
    /// Open connections.
    pub connections: u64,
    /// Connections ever opened.
    pub connections_total: u64,
    /// Requests sent that have no answer yet.
    pub pending_requests: u64,
    /// Requests received that have no answer yet.
    pub active_requests: u64,
    /// Bytes read from sockets.
    pub received_bytes: u64,
    /// Bytes written to sockets.
    pub sent_bytes: u64,
    /// Bytes of memory waiting to be written.
    pub write_queue_bytes: u64,
    /// Chunks and streams asked for by peers and not yet sent.
    pub chunks_being_transferred: u64,
    /// Bytes of files that the kernel moved to the socket.
    pub sendfile_bytes: u64,
    /// Bytes of files that passed through memory on their way to the socket.
    pub copied_file_bytes: u64,
    /// Body bytes that came from the socket, or out of a cipher, straight into the body's own
    /// buffer.
    pub direct_body_bytes: u64,
    /// Connections and connection attempts that ended with an error, by kind.
    pub failures: Vec<(ErrorKind, u64)>,
}

impl SideMetrics {
    /// `<module>-server` or `<module>-client`: the prefix Spark gives the names of this side's
    /// metrics (transport 13).
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(crate) fn count_failure(&self, error: &TransportError) {
        if let Some(position) = ErrorKind::ALL.iter().position(|kind| *kind == error.kind()) {
            self.failures[position].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The values now.
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
            failures: ErrorKind::ALL
                .into_iter()
                .zip(&self.failures)
                .map(|(kind, counter)| (kind, value(counter)))
                .filter(|(_, count)| *count > 0)
                .collect(),
        }
    }

    /// The values now, each under its full name, as `shuffle-server.connections`.
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

/// Moves a gauge from what this connection last reported to `now`.
pub(crate) fn update_gauge(gauge: &AtomicU64, last: &mut u64, now: u64) {
    if *last != now {
        // Wrapping: a gauge is the sum of its connections' differences.
        gauge.fetch_add(now.wrapping_sub(*last), Ordering::Relaxed);
        *last = now;
    }
}
