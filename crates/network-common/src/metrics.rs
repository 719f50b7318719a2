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
    pub(crate) requests_in_flight: AtomicU64,
    pub(crate) requests_being_served: AtomicU64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    pub(crate) queued_bytes: AtomicU64,
    pub(crate) chunks_in_transfer: AtomicU64,
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
    pub requests_in_flight: u64,
    /// Requests received that have no answer yet.
    pub requests_being_served: u64,
    /// Bytes read from sockets.
    pub bytes_in: u64,
    /// Bytes written to sockets.
    pub bytes_out: u64,
    /// Bytes of memory waiting to be written.
    pub queued_bytes: u64,
    /// Chunks and streams asked for by peers and not yet sent.
    pub chunks_in_transfer: u64,
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

    pub(crate) fn failed(&self, error: &TransportError) {
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
            requests_in_flight: value(&self.requests_in_flight),
            requests_being_served: value(&self.requests_being_served),
            bytes_in: value(&self.bytes_in),
            bytes_out: value(&self.bytes_out),
            queued_bytes: value(&self.queued_bytes),
            chunks_in_transfer: value(&self.chunks_in_transfer),
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
    pub fn named(&self) -> Vec<(String, u64)> {
        let values = self.snapshot();
        let mut named: Vec<_> = [
            ("connections", values.connections),
            ("connectionsTotal", values.connections_total),
            ("requestsInFlight", values.requests_in_flight),
            ("requestsBeingServed", values.requests_being_served),
            ("bytesIn", values.bytes_in),
            ("bytesOut", values.bytes_out),
            ("queuedBytes", values.queued_bytes),
            ("chunksInTransfer", values.chunks_in_transfer),
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
pub(crate) fn report(gauge: &AtomicU64, last: &mut u64, now: u64) {
    if *last != now {
        // Wrapping: a gauge is the sum of its connections' differences.
        gauge.fetch_add(now.wrapping_sub(*last), Ordering::Relaxed);
        *last = now;
    }
}
