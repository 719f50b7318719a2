//! The state of one connection, without sockets or clocks.
//!
//! [`Session`] holds the pending requests, the peer's bulk requests and the write queue. Clients
//! and response callbacks change it under one lock; the connection's driver does the I/O. Methods
//! that complete a request return its waker, because no waker may be called under the lock.

mod batch;
mod bulk_message;
mod bulk_requests;
mod filter;
mod pending_requests;
mod response;
mod stream_body;
#[cfg(test)]
#[path = "test_support.rs"]
mod tests;
mod write_queue;

use std::net::SocketAddr;
use std::task::Waker;

use bytes::Bytes;

pub(crate) use batch::Batch;
pub(crate) use bulk_message::BulkMessage;
pub(crate) use bulk_requests::{BulkRequest, BulkRequests, QueuedBulkRequest};
pub use filter::{ByteFilter, CloseNotify, FilterOutput};
pub(crate) use filter::{FilterChain, FilterPair};
pub(crate) use pending_requests::{PendingRequests, RequestKey, StreamStart};
pub use response::MergedBlockMeta;
pub(crate) use response::Response;
pub use stream_body::StreamBody;
pub(crate) use stream_body::{BodySender, body_channel};
pub(crate) use write_queue::{DiscardedFrames, WriteQueue};

use crate::budget::Reservation;
use crate::buffer::ManagedBuffer;
use crate::error::{ErrorKind, TransportError};
use crate::protocol::{MAX_FRAME_PAYLOAD, MAX_STREAM_ID, MergedBlockMetaRequest, Message};

/// No header in front of a body is longer than this number of bytes.
const MAX_FIXED_HEADER: u64 = 64;

/// A request to close the connection, with the error of pending requests.
#[derive(Debug, Clone)]
pub(crate) enum CloseRequest {
    /// Write the queued frames first.
    AfterFlush(TransportError),
    Immediate(TransportError),
}

/// The state of one connection.
pub(crate) struct Session {
    peer: SocketAddr,
    /// Requests to the peer.
    pub(crate) requests: PendingRequests,
    pub(crate) outgoing: WriteQueue,
    /// Requests of the peer for the stream manager.
    pub(crate) bulk_requests: BulkRequests,
    /// Counts the bulk requests in the budget.
    bulk_requests_held: Reservation,
    /// Number of responses to RPCs, uploads and merged-meta requests of the peer.
    pub(crate) responded: u64,
    /// A request was registered since the last tick of the idle timer.
    pub(crate) has_new_request: bool,
    /// Client bootstraps are running.
    pub(crate) is_bootstrapping: bool,
    /// The peer's handshake waits for its permit.
    pub(crate) is_handshake_queued: bool,
    has_filters: bool,
    /// Filters that the driver has not installed yet.
    pub(crate) seal_filter: Option<Box<dyn ByteFilter>>,
    pub(crate) open_filter: Option<Box<dyn ByteFilter>>,
    close_request: Option<CloseRequest>,
    /// Set once the connection is closed.
    close_reason: Option<TransportError>,
    /// Set while the driver sleeps.
    driver_waker: Option<Waker>,
    /// Tasks that wait for capacity of the write queue.
    capacity_wakers: Vec<Waker>,
}

impl Session {
    pub(crate) fn new(peer: SocketAddr, outgoing: WriteQueue) -> Self {
        Self {
            peer,
            requests: PendingRequests::default(),
            bulk_requests_held: outgoing.new_reservation(),
            outgoing,
            bulk_requests: BulkRequests::default(),
            responded: 0,
            has_new_request: false,
            is_bootstrapping: false,
            is_handshake_queued: false,
            has_filters: false,
            seal_filter: None,
            open_filter: None,
            close_request: None,
            close_reason: None,
            driver_waker: None,
            capacity_wakers: Vec::new(),
        }
    }

    fn check_open(&self) -> Result<(), TransportError> {
        match (&self.close_reason, &self.close_request) {
            (Some(error), _)
            | (None, Some(CloseRequest::AfterFlush(error) | CloseRequest::Immediate(error))) => {
                // The request that is being checked was not sent.
                Err(error.clone().retryable())
            }
            (None, None) => Ok(()),
        }
    }

    /// Checks that a request with `in_frame` bytes of body in its frame can be queued.
    ///
    /// # Errors
    /// The connection is closed or closing, the body exceeds the frame limit, or the write queue
    /// has no capacity.
    fn check_request(&self, operation: &str, in_frame: usize) -> Result<(), TransportError> {
        self.check_open()?;
        if in_frame as u64 + MAX_FIXED_HEADER > MAX_FRAME_PAYLOAD {
            return Err(TransportError::new(
                ErrorKind::Limit,
                format!(
                    "{operation} of {in_frame} bytes to {} exceeds the frame limit of \
                     {MAX_FRAME_PAYLOAD} bytes; upload it as a stream",
                    self.peer
                ),
            )
            .with_peer(self.peer));
        }
        self.outgoing.check_capacity(operation, self.peer)
    }

    /// Queues an RPC.
    ///
    /// Takes `body` only if it is not copied. The caller drops the rest outside the lock,
    /// because the owner of the bytes may run code on drop. The same holds for the bodies below.
    pub(crate) fn send_rpc(&mut self, body: &mut Bytes) -> Result<RequestKey, TransportError> {
        self.check_request("RPC", body.len())?;
        let key = self.requests.register_rpc();
        self.outgoing.push_control(&Message::RpcRequest { request_id: key.id(), body: () }, body);
        self.has_new_request = true;
        Ok(key)
    }

    /// Queues a one-way message.
    pub(crate) fn send_one_way(&mut self, body: &mut Bytes) -> Result<(), TransportError> {
        self.check_request("one-way message", body.len())?;
        self.outgoing.push_control(&Message::OneWayMessage { body: () }, body);
        Ok(())
    }

    /// Queues a chunk request.
    pub(crate) fn fetch_chunk(
        &mut self,
        stream_id: i64,
        chunk_index: i32,
    ) -> Result<RequestKey, TransportError> {
        self.check_request("chunk request", 0)?;
        let Some(key) = self.requests.register_fetch(stream_id, chunk_index) else {
            return Err(TransportError::new(
                ErrorKind::AlreadyPending,
                format!(
                    "a request for chunk {chunk_index} of stream {stream_id} is already pending \
                     at {}, maybe a cancelled one: fetch the chunk over another connection, or \
                     again when the first response has arrived",
                    self.peer
                ),
            )
            .with_peer(self.peer)
            .retryable());
        };
        self.outgoing.push_control(
            &Message::ChunkFetchRequest { stream_id, chunk_index },
            &mut Bytes::new(),
        );
        self.has_new_request = true;
        Ok(key)
    }

    /// Queues a stream request.
    ///
    /// Stream responses are matched by order, so registering and queueing share one lock.
    pub(crate) fn stream(&mut self, stream_id: &str) -> Result<RequestKey, TransportError> {
        self.check_request("stream request", stream_id.len())?;
        if stream_id.len() > MAX_STREAM_ID {
            let (length, peer) = (stream_id.len(), self.peer);
            let text = format!(
                "the id of a stream request to {peer} has {length} bytes; at most {MAX_STREAM_ID} \
                 are allowed"
            );
            return Err(TransportError::new(ErrorKind::Limit, text).with_peer(peer));
        }
        let key = self.requests.register_stream();
        self.outgoing.push_control(
            &Message::StreamRequest { stream_id: stream_id.to_owned() },
            &mut Bytes::new(),
        );
        self.has_new_request = true;
        Ok(key)
    }

    /// Queues an upload.
    pub(crate) fn upload(
        &mut self,
        meta: &mut Bytes,
        data: &ManagedBuffer,
    ) -> Result<RequestKey, TransportError> {
        self.check_request("upload header", meta.len())?;
        let Ok(byte_count) = i64::try_from(data.len()) else {
            return Err(TransportError::new(
                ErrorKind::Limit,
                format!(
                    "upload of {} bytes to {} exceeds the limit of 2^63-1 bytes",
                    data.len(),
                    self.peer
                ),
            )
            .with_peer(self.peer));
        };
        let key = self.requests.register_rpc();
        let meta = std::mem::take(meta);
        let message = Message::UploadStream { request_id: key.id(), meta, byte_count };
        self.outgoing.push_bulk(BulkMessage { message, body: data.clone(), upload: Some(key) });
        self.has_new_request = true;
        Ok(key)
    }

    /// Queues a request for merged block meta.
    pub(crate) fn merged_block_meta(
        &mut self,
        mut request: MergedBlockMetaRequest,
    ) -> Result<RequestKey, TransportError> {
        self.check_request("merged block meta request", request.app_id.len())?;
        let key = self.requests.register_rpc();
        request.request_id = key.id();
        self.outgoing.push_control(&Message::MergedBlockMetaRequest(request), &mut Bytes::new());
        self.has_new_request = true;
        Ok(key)
    }

    /// Queues a response in the control lane.
    ///
    /// Responses are queued over the limit, too: instead the driver stops reading requests.
    pub(crate) fn respond(&mut self, message: &Message<()>, body: &mut Bytes) {
        self.responded += 1;
        if !self.discards_output() {
            self.outgoing.push_control(message, body);
        }
    }

    /// Returns whether nothing is written any more.
    fn discards_output(&self) -> bool {
        self.close_reason.is_some()
            || matches!(self.close_request, Some(CloseRequest::Immediate(_)))
    }

    /// Queues a response in the bulk lane; returns it if the connection is closed.
    pub(crate) fn respond_bulk(&mut self, response: BulkMessage) -> Option<BulkMessage> {
        if self.discards_output() {
            return Some(response);
        }
        self.outgoing.push_bulk(response);
        None
    }

    /// Queues the response to the bulk request that was popped last.
    pub(crate) fn respond_bulk_request(&mut self, response: BulkMessage) -> Option<BulkMessage> {
        self.bulk_requests.on_responded(response.memory_size());
        self.respond_bulk(response)
    }

    /// Returns whether the driver must not read further requests now.
    ///
    /// That is so while the peer does not read its responses, while its handshake is queued, and
    /// between the response to a client bootstrap and the next step of the bootstrap.
    pub(crate) fn should_pause_reading(&self) -> bool {
        self.should_pause_for_connection() || self.outgoing.holds_back_requests()
    }

    /// Returns whether the driver must not read, whatever other connections hold.
    pub(crate) fn should_pause_for_connection(&self) -> bool {
        self.is_awaiting_bootstrap()
            || self.is_handshake_queued
            || self.outgoing.is_response_limit_reached()
            || self.bulk_requests.is_full()
    }

    /// Returns whether a client bootstrap must continue before more bytes are decoded.
    ///
    /// The bootstrap may install filters, through which the following bytes must pass.
    pub(crate) fn is_awaiting_bootstrap(&self) -> bool {
        self.is_bootstrapping && !self.has_filters && self.requests.len() == 0
    }

    /// Returns whether bulk requests are queued or active, or frames are unwritten.
    pub(crate) fn has_pending_output(&self) -> bool {
        !self.bulk_requests.is_idle() || !self.outgoing.is_drained()
    }

    /// Installs filters for all following bytes in both directions.
    ///
    /// Control frames that are already queued are not sealed. Returns false, and changes nothing,
    /// if the connection has filters.
    pub(crate) fn install_filters(&mut self, filters: FilterPair) -> bool {
        if self.has_filters {
            return false;
        }
        self.has_filters = true;
        self.outgoing.mark_unsealed();
        self.seal_filter = Some(filters.seal_filter);
        self.open_filter = Some(filters.open_filter);
        true
    }

    /// Requests the driver to close the connection.
    ///
    /// The first request wins, except that `Immediate` replaces `AfterFlush`.
    pub(crate) fn close(&mut self, request: CloseRequest) {
        if matches!(
            (&self.close_request, &request),
            (None, _) | (Some(CloseRequest::AfterFlush(_)), CloseRequest::Immediate(_))
        ) {
            self.close_request = Some(request);
        }
    }

    /// Requests the driver to close the connection, and discards queued control frames now.
    ///
    /// The caller drops the returned frames outside the lock.
    pub(crate) fn close_now(&mut self, error: TransportError) -> DiscardedFrames {
        self.close(CloseRequest::Immediate(error));
        self.outgoing.discard_control()
    }

    pub(crate) fn close_request(&self) -> Option<&CloseRequest> {
        self.close_request.as_ref()
    }

    /// Returns whether the connection is neither closed nor closing.
    pub(crate) fn is_open(&self) -> bool {
        self.close_reason.is_none() && self.close_request.is_none()
    }

    /// Returns why the connection was closed, or `None` while it is not.
    pub(crate) fn close_reason(&self) -> Option<&TransportError> {
        self.close_reason.as_ref()
    }

    /// Marks the connection as closed and fails all pending requests.
    ///
    /// The caller drops the returned frames and calls the wakers outside the lock.
    pub(crate) fn close_with(
        &mut self,
        error: TransportError,
        wakers: &mut Vec<Waker>,
    ) -> DiscardedFrames {
        self.requests.fail_all(&error, wakers);
        let discarded = self.outgoing.clear();
        self.bulk_requests.clear();
        self.bulk_requests_held.set(0);
        self.close_reason = Some(error);
        wakers.append(&mut self.capacity_wakers);
        discarded
    }

    /// Called when the driver runs, so that changes of the session do not wake it.
    pub(crate) fn clear_driver_waker(&mut self) {
        self.driver_waker = None;
    }

    /// Counts what the connection holds for its peer in the budget.
    ///
    /// Called when the driver goes to sleep.
    pub(crate) fn count_held(&mut self) {
        self.outgoing.count_held();
        self.bulk_requests_held.set(self.bulk_requests.memory_size());
    }

    /// Called when the driver goes to sleep.
    pub(crate) fn set_driver_waker(&mut self, waker: Waker) {
        self.driver_waker = Some(waker);
    }

    /// Takes the waker of the sleeping driver; the caller calls it outside the lock.
    #[must_use]
    pub(crate) fn take_driver_waker(&mut self) -> Option<Waker> {
        self.driver_waker.take()
    }

    /// Registers a task that waits for capacity of the write queue.
    ///
    /// It is also woken when the connection closes.
    pub(crate) fn register_capacity_waker(&mut self, waker: &Waker) {
        if !self.capacity_wakers.iter().any(|known| known.will_wake(waker)) {
            self.capacity_wakers.push(waker.clone());
        }
    }

    /// Moves the capacity wakers to `wakers` if the write queue has capacity.
    pub(crate) fn take_capacity_wakers(&mut self, wakers: &mut Vec<Waker>) {
        if self.outgoing.has_capacity() {
            wakers.append(&mut self.capacity_wakers);
        }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("peer", &self.peer)
            .field("pending_requests", &self.requests.len())
            .field("write_queue_bytes", &self.outgoing.queued())
            .field("close_reason", &self.close_reason)
            .finish_non_exhaustive()
    }
}
