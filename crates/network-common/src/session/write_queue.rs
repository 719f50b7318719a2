//! The frames of one connection that are not written yet, and the limit of their bytes.
//!
//! The queue has two lanes. The control lane holds encoded frames with small bodies or bodies in
//! memory; the bulk lane holds chunks, streams and uploads. Control frames overtake queued bulk
//! messages. Each lane keeps its order.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;

use super::BulkMessage;
use super::batch::{Batch, BatchAccounting};
use crate::budget::{Reservation, STEP};
use crate::buffer::Content;
use crate::error::{ErrorKind, TransportError};
use crate::protocol::Message;

/// Bulk bodies in memory are written together up to this number of bytes.
///
/// A control frame therefore waits for at most this number of bytes or for one body.
const MAX_GATHERED_BODIES: usize = 256 << 10;
/// Number of queued bulk messages at which no further body is requested.
const MAX_BULK_MESSAGES: usize = 64;

/// The frames that a closed connection does not write.
///
/// Dropped outside the lock of the session, because release hooks of bodies run on drop.
#[must_use]
#[derive(Debug)]
pub(crate) struct DiscardedFrames {
    _batches: [Batch; 2],
    _bulk: VecDeque<BulkMessage>,
}

/// The write queue of one connection.
#[derive(Debug)]
pub(crate) struct WriteQueue {
    /// Control frames queued before filters were installed: sent first, unsealed.
    unsealed: Option<Batch>,
    control: Batch,
    bulk: VecDeque<BulkMessage>,
    /// Bytes of memory in both lanes and in the batch that is being written.
    queued_bytes: u64,
    /// Number of those bytes that belong to responses.
    response_bytes: u64,
    limit: u64,
    limit_setting: Arc<str>,
    /// Counts `queued_bytes` in the budget.
    held: Reservation,
}

impl WriteQueue {
    /// Creates an empty queue with a limit in bytes and the name of its setting.
    pub(crate) fn new(limit: u64, limit_setting: Arc<str>, held: Reservation) -> Self {
        Self {
            unsealed: None,
            control: Batch::default(),
            bulk: VecDeque::new(),
            queued_bytes: 0,
            response_bytes: 0,
            limit,
            limit_setting,
            held,
        }
    }

    /// Checks that a request can be queued.
    ///
    /// Admits one request over the limit, so that a large request can always make progress.
    pub(super) fn check_capacity(
        &self,
        operation: &str,
        peer: SocketAddr,
    ) -> Result<(), TransportError> {
        if self.has_capacity() {
            return Ok(());
        }
        let queued = self.queued_bytes;
        let limit = match queued < self.limit {
            true => self.held.account().budget.limit_text(),
            false => format!("{} allows {}", self.limit_setting, self.limit),
        };
        let text = format!(
            "{operation} to {peer} rejected: the write queue holds {queued} bytes, {limit}"
        );
        Err(TransportError::new(ErrorKind::Limit, text).with_peer(peer).retryable())
    }

    pub(crate) fn has_capacity(&self) -> bool {
        self.queued_bytes < self.limit && !self.is_over_budget(self.queued_bytes)
    }

    /// Returns whether responses alone reach the limit.
    pub(super) fn is_response_limit_reached(&self) -> bool {
        self.response_bytes >= self.limit
    }

    /// Returns whether the peer must read responses before its next requests, because the budget
    /// is exhausted.
    pub(crate) fn holds_back_requests(&self) -> bool {
        self.is_over_budget(self.response_bytes)
    }

    /// Returns whether the budget is exhausted, and `bytes` of this connection are a part of it.
    fn is_over_budget(&self, bytes: u64) -> bool {
        bytes >= STEP && self.held.account().budget.is_exhausted()
    }

    /// Returns a reservation of the connection for what is queued elsewhere.
    pub(super) fn new_reservation(&self) -> Reservation {
        self.held.account().unread()
    }

    /// Counts the queued bytes in the budget exactly.
    ///
    /// Otherwise differences of less than 64 KiB are not counted.
    pub(crate) fn count_held(&mut self) {
        self.held.set(self.queued_bytes);
    }

    /// Returns whether the stream manager may be asked for another body.
    pub(crate) fn can_queue_body(&self) -> bool {
        self.bulk.len() < MAX_BULK_MESSAGES && !self.is_response_limit_reached()
    }

    /// Returns the number of bytes that count against the limit.
    pub(crate) fn queued(&self) -> u64 {
        self.queued_bytes
    }

    /// Queues a message in the control lane; see [`Batch::push`] for `body`.
    pub(super) fn push_control(&mut self, message: &Message<()>, body: &mut Bytes) {
        let before = self.control.response_bytes();
        self.queued_bytes += self.control.push(message, body.len() as u64, body);
        self.response_bytes += self.control.response_bytes() - before;
        self.held.update(self.queued_bytes);
    }

    /// Queues a message in the bulk lane.
    pub(super) fn push_bulk(&mut self, bulk: BulkMessage) {
        self.queued_bytes += bulk.memory_size();
        self.response_bytes += if bulk.message.is_request() { 0 } else { bulk.memory_size() };
        self.bulk.push_back(bulk);
        self.held.update(self.queued_bytes);
    }

    fn pop_bulk(&mut self) -> Option<BulkMessage> {
        let bulk = self.bulk.pop_front()?;
        let size = bulk.memory_size();
        self.queued_bytes = self.queued_bytes.saturating_sub(size);
        let response = if bulk.message.is_request() { 0 } else { size };
        self.response_bytes = self.response_bytes.saturating_sub(response);
        Some(bulk)
    }

    /// Marks the queued control frames as not to be sealed.
    pub(super) fn mark_unsealed(&mut self) {
        if !self.control.is_empty() {
            self.unsealed = Some(std::mem::take(&mut self.control));
        }
    }

    /// Returns whether no unsealed frame is queued: the next batch must be sealed.
    pub(crate) fn unsealed_is_written(&self) -> bool {
        self.unsealed.is_none()
    }

    /// Returns whether no frame is queued or being written.
    pub(super) fn is_drained(&self) -> bool {
        self.queued_bytes == 0 && self.is_empty(true)
    }

    /// Returns whether no frame is queued.
    ///
    /// Without `bodies` only control frames count.
    pub(crate) fn is_empty(&self, bodies: bool) -> bool {
        self.unsealed.is_none() && self.control.is_empty() && (!bodies || self.bulk.is_empty())
    }

    /// Moves the next frames into `batch`, which must be empty.
    ///
    /// These are all control frames and, with `bodies`, the next bulk messages in memory.
    pub(crate) fn fill_batch(&mut self, batch: &mut Batch, bodies: bool) {
        if let Some(unsealed) = self.unsealed.take() {
            *batch = unsealed;
            return;
        }
        std::mem::swap(&mut self.control, batch);
        let mut gathered = 0;
        while let Some(bulk) = self.bulk.front().filter(|_| bodies)
            && let Some(size) = bulk.memory_body_len()
            && (gathered == 0 || gathered + size <= MAX_GATHERED_BODIES)
            && let Some(bulk) = self.pop_bulk()
        {
            let is_response = !bulk.message.is_request();
            let added = batch.push_bulk(bulk);
            self.queued_bytes += added;
            self.response_bytes += if is_response { added } else { 0 };
            gathered += size.max(1);
        }
    }

    /// Pops the next bulk message if its body is in a file.
    pub(crate) fn pop_file_body(&mut self) -> Option<BulkMessage> {
        match self.bulk.front()?.body.content() {
            Content::File(_) => self.pop_bulk(),
            Content::Memory(_) => None,
        }
    }

    /// Subtracts the bytes of a batch that was written or discarded.
    pub(crate) fn on_batch_written(&mut self, accounting: &BatchAccounting) {
        self.queued_bytes = self.queued_bytes.saturating_sub(accounting.queued_bytes);
        self.response_bytes = self.response_bytes.saturating_sub(accounting.response_bytes);
        self.held.update(self.queued_bytes);
    }

    /// Discards all queued frames and the batch that is being written.
    pub(super) fn clear(&mut self) -> DiscardedFrames {
        let discarded = self.discard_control();
        self.queued_bytes = 0;
        self.response_bytes = 0;
        self.held.set(0);
        DiscardedFrames { _bulk: std::mem::take(&mut self.bulk), ..discarded }
    }

    /// Discards the queued frames of the control lane.
    ///
    /// They have no release hooks, which must run on the task of their connection.
    pub(super) fn discard_control(&mut self) -> DiscardedFrames {
        let unsealed = self.unsealed.take().unwrap_or_default();
        let control = std::mem::take(&mut self.control);
        for batch in [&unsealed, &control] {
            self.on_batch_written(&batch.accounting());
        }
        DiscardedFrames { _batches: [unsealed, control], _bulk: VecDeque::new() }
    }
}
