//! Queues the peer's chunk and stream requests until the stream manager serves them.
//!
//! The driver pushes requests; the task `connection::bulk_server` pops them in arrival order.

use std::collections::VecDeque;

/// Number of queued requests at which the connection stops reading.
const MAX_QUEUED: usize = 4096;
/// Number of bytes in the names of queued stream requests at which the connection stops reading.
const MAX_NAME_BYTES: usize = 1 << 20;

/// A request of the peer that the stream manager serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BulkRequest {
    /// A chunk of a stream that is registered under a number.
    Chunk { stream_id: i64, chunk_index: i32 },
    /// A whole stream by name; Spark calls the name a stream id, too.
    Stream { stream_id: String },
}

impl BulkRequest {
    fn name_len(&self) -> usize {
        match self {
            Self::Chunk { .. } => 0,
            Self::Stream { stream_id } => stream_id.len(),
        }
    }
}

/// A queued request, or one that the server rejects.
#[derive(Debug)]
pub(crate) struct QueuedBulkRequest {
    pub(crate) request: BulkRequest,
    /// The text of the failure, if the stream manager is not called.
    pub(crate) rejection: Option<String>,
}

/// The queue of one connection's bulk requests.
#[derive(Debug, Default)]
pub(crate) struct BulkRequests {
    queue: VecDeque<QueuedBulkRequest>,
    name_bytes: usize,
    /// A bulk server task is running, which pops requests until the queue is empty.
    is_served: bool,
    /// The request that was popped last has no response yet.
    has_active: bool,
    /// The estimated size of the next response in memory; `None` before the first one.
    size_estimate: Option<u64>,
}

impl BulkRequests {
    /// Queues a request; returns whether the caller must start a bulk server task.
    pub(crate) fn push(&mut self, request: BulkRequest, rejection: Option<String>) -> bool {
        self.name_bytes += request.name_len();
        self.queue.push_back(QueuedBulkRequest { request, rejection });
        !std::mem::replace(&mut self.is_served, true)
    }

    /// Returns whether the queue is empty; the bulk server task then ends.
    pub(crate) fn end_if_empty(&mut self) -> bool {
        self.is_served = !self.queue.is_empty();
        !self.is_served
    }

    /// Pops the oldest request.
    pub(crate) fn pop(&mut self) -> Option<QueuedBulkRequest> {
        let queued = self.queue.pop_front();
        self.name_bytes -= queued.as_ref().map_or(0, |queued| queued.request.name_len());
        self.has_active = queued.is_some();
        queued
    }

    /// Called when the response to the request that was popped last is queued.
    ///
    /// `size` is the number of bytes of memory that it holds.
    pub(super) fn on_responded(&mut self, size: u64) {
        self.has_active = false;
        // Follows larger responses at once, and smaller ones slowly.
        let estimate = self.size_estimate.unwrap_or_default();
        self.size_estimate = Some(size.max(estimate - estimate / 8));
    }

    /// Returns the estimated size of the next response, or `None` before the first one.
    pub(crate) fn size_estimate(&self) -> Option<u64> {
        self.size_estimate
    }

    /// Returns the bytes of memory of the queued requests.
    pub(super) fn memory_size(&self) -> u64 {
        (self.name_bytes + self.queue.len() * size_of::<QueuedBulkRequest>()) as u64
    }

    /// Returns the number of queued requests, without the active one.
    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Returns whether the queue has reached its limit of requests or of bytes.
    pub(crate) fn is_full(&self) -> bool {
        self.queue.len() >= MAX_QUEUED || self.name_bytes >= MAX_NAME_BYTES
    }

    /// Returns whether no request is queued or active.
    pub(super) fn is_idle(&self) -> bool {
        !self.has_active && self.queue.is_empty()
    }

    /// Discards the queued requests and frees their memory.
    ///
    /// The active request stays active.
    pub(super) fn clear(&mut self) {
        self.queue = VecDeque::new();
        self.name_bytes = 0;
    }
}
