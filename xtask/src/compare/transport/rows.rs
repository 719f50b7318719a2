//! The rows of Spark's `NettyTransportBenchmark` (SPARK-56240), suite by suite.

use bench_protocol::{IoMode, TransportCall, TransportJob};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// The length of each file.
pub(super) const FILE: usize = 16 * MIB;
/// The number of files.
pub(super) const FILES: usize = 100;

/// A row and its job.
pub(super) struct TransportRow {
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    pub(super) job: TransportJob,
}

impl TransportRow {
    /// Returns the share of the raw limit that satisfies goal N1.
    pub(super) fn share_of_limit(&self) -> f64 {
        if self.id == "transport-1-1k" { 0.9 } else { 0.95 }
    }

    /// Returns whether the rate is reported in bytes instead of calls.
    pub(super) fn is_bulk(&self) -> bool {
        self.job.bytes >= MIB
    }
}

/// Returns all rows in Spark's order.
pub(super) fn rows() -> Vec<TransportRow> {
    let rpc = TransportJob {
        call: TransportCall::Rpc,
        bytes: KIB,
        calls: 20_000,
        connections: 1,
        callers: 1,
        at_once: false,
        io_mode: IoMode::Auto,
        server_threads: 4,
        keeps_transport: true,
    };
    let row = |id, title, job| TransportRow { id, title, job };
    let latency = |id, title, bytes, calls| row(id, title, TransportJob { bytes, calls, ..rpc });
    let of_clients = |count, job| TransportJob { connections: count, callers: count, ..job };
    let clients = |id, title, count| row(id, title, of_clients(count, rpc));
    // Spark creates the server and the client factory of suites 3, 4 and 8 for each repetition.
    let fresh = TransportJob { keeps_transport: false, ..rpc };
    let mode = |id, title, io_mode| {
        let job = TransportJob { bytes: 64 * KIB, io_mode, ..fresh };
        row(id, title, of_clients(8, job))
    };
    let threads = |id, title, server_threads| {
        let job = TransportJob { server_threads, ..fresh };
        row(id, title, of_clients(16, job))
    };
    let connections = |id, title, connections| {
        let job = TransportJob { bytes: MIB, calls: 5000, connections, callers: 4, ..rpc };
        row(id, title, job)
    };
    let burst = |id, title, bytes| {
        let job = TransportJob { bytes, calls: 5000, at_once: true, ..rpc };
        row(id, title, job)
    };
    let large = |id, title, count| {
        let job = TransportJob { bytes: FILE, calls: 100, ..rpc };
        row(id, title, of_clients(count, job))
    };
    let blocks = |id, title, count, io_mode| {
        let job = TransportJob { call: TransportCall::Chunk, bytes: FILE, calls: FILES, ..fresh };
        row(id, title, of_clients(count, TransportJob { at_once: true, io_mode, ..job }))
    };
    vec![
        latency("transport-1-1k", "1 latency, 5000 x 1 KiB", KIB, 5000),
        latency("transport-1-64k", "1 latency, 5000 x 64 KiB", 64 * KIB, 5000),
        latency("transport-1-1m", "1 latency, 1000 x 1 MiB", MIB, 1000),
        latency("transport-1-16m", "1 latency, 100 x 16 MiB", 16 * MIB, 100),
        clients("transport-2-1", "2 concurrent, 1 client", 1),
        clients("transport-2-4", "2 concurrent, 4 clients", 4),
        clients("transport-2-8", "2 concurrent, 8 clients", 8),
        clients("transport-2-16", "2 concurrent, 16 clients", 16),
        mode("transport-3-nio", "3 I/O mode NIO", IoMode::Nio),
        mode("transport-3-auto", "3 I/O mode AUTO", IoMode::Auto),
        threads("transport-4-2", "4 server threads, 2", 2),
        threads("transport-4-4", "4 server threads, 4", 4),
        threads("transport-4-8", "4 server threads, 8", 8),
        threads("transport-4-16", "4 server threads, 16", 16),
        threads("transport-4-32", "4 server threads, 32", 32),
        connections("transport-5-1", "5 connections, 1", 1),
        connections("transport-5-2", "5 connections, 2", 2),
        connections("transport-5-4", "5 connections, 4", 4),
        burst("transport-6-1k", "6 burst, 1 KiB", KIB),
        burst("transport-6-64k", "6 burst, 64 KiB", 64 * KIB),
        burst("transport-6-1m", "6 burst, 1 MiB", MIB),
        large("transport-7-1", "7 large bodies, 1 caller", 1),
        large("transport-7-4", "7 large bodies, 4 callers", 4),
        blocks("transport-8-nio-1", "8 file blocks, NIO, 1 client", 1, IoMode::Nio),
        blocks("transport-8-nio-4", "8 file blocks, NIO, 4 clients", 4, IoMode::Nio),
        blocks("transport-8-auto-1", "8 file blocks, AUTO, 1 client", 1, IoMode::Auto),
        blocks("transport-8-auto-4", "8 file blocks, AUTO, 4 clients", 4, IoMode::Auto),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_and_connections_share_all_calls_evenly() {
        for TransportRow { id, job, .. } in rows() {
            assert_eq!(job.calls % job.callers, 0, "{id}");
            assert_eq!(job.callers % job.connections, 0, "{id}");
        }
    }
}
