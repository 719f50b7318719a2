//! [`PendingRequests`]: limits the requests of a connection that wait for the disk.

use std::collections::HashMap;
use std::sync::Arc;

use network_common::ConnectionId;
use parking_lot::Mutex;

use crate::metrics::{ServiceMetrics, add, subtract};
use crate::request_error::RequestError;

/// Counts the requests of each connection that wait for the disk.
pub(super) struct PendingRequests {
    counts: Mutex<HashMap<ConnectionId, usize>>,
    max: usize,
    metrics: Arc<ServiceMetrics>,
}

/// One pending request; dropping it ends the request.
pub(super) struct PendingRequest {
    requests: Arc<PendingRequests>,
    connection: ConnectionId,
}

impl PendingRequests {
    pub(super) fn new(max: usize, metrics: Arc<ServiceMetrics>) -> Self {
        Self { counts: Mutex::default(), max, metrics }
    }

    /// Counts a request, or fails it if its connection has too many.
    pub(super) fn start(
        self: &Arc<Self>,
        connection: ConnectionId,
    ) -> Result<PendingRequest, RequestError> {
        let mut counts = self.counts.lock();
        let count = counts.entry(connection).or_default();
        if *count >= self.max {
            return Err(RequestError::illegal_state(format!(
                "this connection has {count} pending requests; the limit is \
                 spark.shuffle.service.maxPendingRequestsPerConnection"
            )));
        }
        *count += 1;
        add(&self.metrics.pending_requests, 1);
        Ok(PendingRequest { requests: Arc::clone(self), connection })
    }
}

impl Drop for PendingRequest {
    fn drop(&mut self) {
        subtract(&self.requests.metrics.pending_requests, 1);
        let mut counts = self.requests.counts.lock();
        if let Some(count) = counts.get_mut(&self.connection) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.connection);
            }
        }
    }
}
