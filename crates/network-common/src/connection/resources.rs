//! Objects that the connections of one side of a context share, and their gauges.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::budget::ByteBudget;
use crate::buffer::BufferPool;
use crate::client::SharedConnection;
use crate::conf::TransportConf;
use crate::metrics::{SideMetrics, update_gauge};
use crate::net::MemoryNetwork;
use crate::protocol::FrameLimits;

/// Configuration, metrics and buffers of all connections of one side of a context.
#[derive(Debug)]
pub(crate) struct ConnectionResources {
    pub(crate) conf: Arc<TransportConf>,
    pub(crate) metrics: Arc<SideMetrics>,
    pub(crate) pool: Arc<BufferPool>,
    pub(crate) budget: ByteBudget,
    pub(super) frame_limits: Arc<FrameLimits>,
    pub(super) write_queue_setting: Arc<str>,
    /// The settings allow `sendfile`.
    pub(super) can_sendfile: bool,
    /// Connections without pending requests are closed after the idle timeout.
    pub(super) close_idle: bool,
    /// The network of tests; `None` is the network of the system.
    pub(crate) network: Option<MemoryNetwork>,
}

impl ConnectionResources {
    pub(crate) fn new(
        conf: Arc<TransportConf>,
        metrics: Arc<SideMetrics>,
        pool: Arc<BufferPool>,
        budget: ByteBudget,
        close_idle: bool,
        network: Option<MemoryNetwork>,
    ) -> Self {
        let frame_limits = Arc::new(FrameLimits {
            max_request: conf.max_request_size(),
            max_request_setting: conf.setting_name("io.maxRequestSize"),
        });
        let write_queue_setting = conf.setting_name("io.maxWriteQueueSize").into();
        let can_sendfile = conf.can_send_files_natively();
        Self {
            conf,
            metrics,
            pool,
            budget,
            frame_limits,
            write_queue_setting,
            can_sendfile,
            close_idle,
            network,
        }
    }

    pub(super) fn count_sent(&self, shared: &SharedConnection, count: usize) {
        self.metrics.sent_bytes.fetch_add(count as u64, Ordering::Relaxed);
        shared.account.sent_bytes.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(super) fn count_received(&self, shared: &SharedConnection, count: usize) {
        self.metrics.received_bytes.fetch_add(count as u64, Ordering::Relaxed);
        shared.account.received_bytes.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// The values that one connection contributes to the gauges of its side.
#[derive(Debug, Default)]
pub(super) struct ReportedGauges {
    pending_requests: u64,
    active_requests: u64,
    write_queue_bytes: u64,
}

impl ReportedGauges {
    /// Replaces the reported values by new ones.
    pub(super) fn report(
        &mut self,
        metrics: &SideMetrics,
        pending_requests: u64,
        active_requests: u64,
        write_queue_bytes: u64,
    ) {
        update_gauge(&metrics.pending_requests, &mut self.pending_requests, pending_requests);
        update_gauge(&metrics.active_requests, &mut self.active_requests, active_requests);
        update_gauge(&metrics.write_queue_bytes, &mut self.write_queue_bytes, write_queue_bytes);
    }
}
