//! The state of one connection, without sockets or clocks: who waits for what, and what waits to be
//! written.
//!
//! Calls that end a wait return the waker instead of calling it, so that nobody is woken under the
//! lock.

mod filter;
mod pending_requests;
mod stream_body;
#[cfg(test)]
#[path = "test_support.rs"]
mod tests;
mod write_queue;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::task::Waker;

use bytes::Bytes;

pub use filter::{ByteFilter, CloseNotify, FilterOutput};
pub(crate) use filter::{FilterChain, FilterPair};
pub use pending_requests::MergedBlockMeta;
pub(crate) use pending_requests::{PendingRequests, RequestKey, Response, StreamStart};
pub use stream_body::StreamBody;
pub(crate) use stream_body::{BodySender, body_channel};
pub(crate) use write_queue::{Batch, BulkMessage, DiscardedFrames, WriteQueue};

use crate::buffer::ManagedBuffer;
use crate::error::{ErrorKind, TransportError};
use crate::protocol::{MAX_FRAME_PAYLOAD, MergedBlockMetaRequest, Message};

/// Chunk and stream requests of the peer that wait for their turn; with more, the peer is no longer
/// read.
const MAX_PENDING_BULK: usize = 4096;
/// The same in bytes of their stream names.
const MAX_PENDING_NAMES: usize = 1 << 20;

/// A request of the peer that is served by the stream manager, in arrival order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BulkRequest {
    Chunk { stream_id: i64, chunk_index: i32 },
    Stream { stream_id: String },
}

impl BulkRequest {
    fn name_length(&self) -> usize {
        match self {
            Self::Chunk { .. } => 0,
            Self::Stream { stream_id } => stream_id.len(),
        }
    }
}

/// How the driver is to end the connection.
#[derive(Debug, Clone)]
pub(crate) enum CloseRequest {
    /// Write what is queued first.
    AfterFlush(TransportError),
    Immediate(TransportError),
}

pub(crate) struct Session {
    peer: SocketAddr,
    pub(crate) requests: PendingRequests,
    pub(crate) outgoing: WriteQueue,
    /// The peer's requests for the stream manager, oldest first.
    pending_bulk: VecDeque<(BulkRequest, bool)>,
    pending_names: usize,
    /// A task is working on `pending_bulk`.
    bulk_server_runs: bool,
    /// It has taken a request that is not answered yet.
    bulk_in_hand: bool,
    /// How many of the peer's requests were answered by handlers.
    pub(crate) responded: u64,
    /// A request was registered since the driver last looked at the clock.
    pub(crate) has_new_request: bool,
    /// Client bootstraps are running.
    pub(crate) bootstrapping: bool,
    filtered: bool,
    /// Filters that the driver has yet to take up.
    pub(crate) seal_filter: Option<Box<dyn ByteFilter>>,
    pub(crate) open_filter: Option<Box<dyn ByteFilter>>,
    closing: Option<CloseRequest>,
    closed: Option<TransportError>,
    /// Set while the driver sleeps.
    driver: Option<Waker>,
    /// Waiting for room in the write queue.
    capacity_wakers: Vec<Waker>,
}

impl Session {
    pub(crate) fn new(peer: SocketAddr, outgoing: WriteQueue) -> Self {
        Self {
            peer,
            requests: PendingRequests::default(),
            outgoing,
            pending_bulk: VecDeque::new(),
            pending_names: 0,
            bulk_server_runs: false,
            bulk_in_hand: false,
            responded: 0,
            bootstrapping: false,
            filtered: false,
            seal_filter: None,
            open_filter: None,
            has_new_request: false,
            closing: None,
            closed: None,
            driver: None,
            capacity_wakers: Vec::new(),
        }
    }

    fn check_open(&self) -> Result<(), TransportError> {
        match (&self.closed, &self.closing) {
            (Some(error), _)
            | (None, Some(CloseRequest::AfterFlush(error) | CloseRequest::Immediate(error))) => {
                Err(error.clone())
            }
            (None, None) => Ok(()),
        }
    }

    /// Checks that a request may be queued: open, within the frame, within the write queue.
    fn check_request(&self, operation: &str, in_frame: usize) -> Result<(), TransportError> {
        self.check_open()?;
        // 64: more than any header in front of the body.
        if in_frame as u64 + 64 > MAX_FRAME_PAYLOAD {
            return Err(TransportError::new(
                ErrorKind::Limit,
                format!(
                    "{operation} of {in_frame} bytes to {} does not fit into a frame of at most {MAX_FRAME_PAYLOAD} bytes: \
                     upload it as a stream",
                    self.peer
                ),
            )
            .with_peer(self.peer));
        }
        self.outgoing.check_capacity(operation, self.peer)
    }

    /// Queues an RPC. What is not taken of `body`, here and below, is the caller's to drop outside
    /// the lock.
    pub(crate) fn send_rpc(&mut self, body: &mut Bytes) -> Result<RequestKey, TransportError> {
        self.check_request("RPC", body.len())?;
        let ticket = self.requests.register_rpc();
        self.outgoing
            .push_control(&Message::RpcRequest { request_id: ticket.id(), body: () }, body);
        self.has_new_request = true;
        Ok(ticket)
    }

    /// Queues a message that is never answered.
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
        let Some(ticket) = self.requests.register_fetch(stream_id, chunk_index) else {
            return Err(TransportError::new(
                ErrorKind::Refused,
                format!(
                    "chunk {chunk_index} of stream {stream_id} is already being fetched from {}",
                    self.peer
                ),
            )
            .with_peer(self.peer));
        };
        self.outgoing.push_control(
            &Message::ChunkFetchRequest { stream_id, chunk_index },
            &mut Bytes::new(),
        );
        self.has_new_request = true;
        Ok(ticket)
    }

    /// Queues a stream request. One lock covers both queues, so that their orders agree.
    pub(crate) fn stream(&mut self, stream_id: &str) -> Result<RequestKey, TransportError> {
        self.check_request("stream request", stream_id.len())?;
        let ticket = self.requests.register_stream();
        self.outgoing.push_control(
            &Message::StreamRequest { stream_id: stream_id.to_owned() },
            &mut Bytes::new(),
        );
        self.has_new_request = true;
        Ok(ticket)
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
                "an upload is limited to 2^63-1 bytes",
            ));
        };
        let ticket = self.requests.register_rpc();
        let meta = std::mem::take(meta);
        let message = Message::UploadStream { request_id: ticket.id(), meta, byte_count };
        self.outgoing.push_bulk(BulkMessage { message, body: data.clone(), upload: Some(ticket) });
        self.has_new_request = true;
        Ok(ticket)
    }

    /// Queues a request for merged block meta.
    pub(crate) fn merged_block_meta(
        &mut self,
        mut request: MergedBlockMetaRequest,
    ) -> Result<RequestKey, TransportError> {
        self.check_request("merged block meta request", request.app_id.len())?;
        let ticket = self.requests.register_rpc();
        request.request_id = ticket.id();
        self.outgoing.push_control(&Message::MergedBlockMetaRequest(request), &mut Bytes::new());
        self.has_new_request = true;
        Ok(ticket)
    }

    /// Queues an answer to an RPC. Answers are never refused: the peer is not read while too many
    /// wait.
    pub(crate) fn respond(&mut self, message: &Message<()>, body: &mut Bytes) {
        self.responded += 1;
        if self.closed.is_none() {
            self.outgoing.push_control(message, body);
        }
    }

    /// Queues an answer with a body for the bulk lane; gives it back when it is too late.
    pub(crate) fn respond_bulk(&mut self, item: BulkMessage) -> Option<BulkMessage> {
        if self.closed.is_some() {
            return Some(item);
        }
        self.outgoing.push_bulk(item);
        None
    }

    /// Queues the answer to the request for the stream manager that was taken last.
    pub(crate) fn answer_bulk_request(&mut self, item: BulkMessage) -> Option<BulkMessage> {
        self.bulk_in_hand = false;
        self.respond_bulk(item)
    }

    /// A request for the stream manager, or one that is to be `refused` when its turn has come;
    /// whether somebody must be set to work on the queue.
    pub(crate) fn push_bulk_request(&mut self, request: BulkRequest, refused: bool) -> bool {
        self.pending_names += request.name_length();
        self.pending_bulk.push_back((request, refused));
        !std::mem::replace(&mut self.bulk_server_runs, true)
    }

    /// The oldest request for the stream manager; `None`: there is none, and whoever asks stops
    /// working.
    pub(crate) fn pop_bulk_request(&mut self) -> Option<(BulkRequest, bool)> {
        let request = self.pending_bulk.pop_front();
        self.pending_names -= request.as_ref().map_or(0, |(request, _)| request.name_length());
        self.bulk_server_runs = request.is_some();
        self.bulk_in_hand = request.is_some();
        request
    }

    /// How many requests for the stream manager wait.
    pub(crate) fn bulk_requests(&self) -> usize {
        self.pending_bulk.len()
    }

    /// Whether the peer's bytes must wait: until it has read more of its answers, or, after the
    /// answer to a client bootstrap, until that has decided what they mean.
    pub(crate) fn should_pause_reading(&self) -> bool {
        self.is_awaiting_bootstrap()
            || self.outgoing.answers_over_limit()
            || self.pending_bulk.len() >= MAX_PENDING_BULK
            || self.pending_names >= MAX_PENDING_NAMES
    }

    /// Whether a client bootstrap is to go on: filters may be about to come.
    pub(crate) fn is_awaiting_bootstrap(&self) -> bool {
        self.bootstrapping && !self.filtered && self.requests.len() == 0
    }

    /// Whether chunks or streams are being prepared for the peer, or anything waits to be written.
    pub(crate) fn has_pending_output(&self) -> bool {
        self.bulk_in_hand || !self.pending_bulk.is_empty() || !self.outgoing.is_drained()
    }

    /// All bytes from here on, in both directions, pass through these filters; control frames that
    /// are queued already are not sealed. False if there are filters.
    pub(crate) fn install_filters(
        &mut self,
        FilterPair { seal_filter: seal, open_filter: open }: FilterPair,
    ) -> bool {
        if self.filtered {
            return false;
        }
        self.filtered = true;
        self.outgoing.mark_unsealed();
        self.seal_filter = Some(seal);
        self.open_filter = Some(open);
        true
    }

    /// Asks the driver to end the connection; the first wish counts, but a flush can become
    /// immediate.
    pub(crate) fn close(&mut self, closing: CloseRequest) {
        if matches!(
            (&self.closing, &closing),
            (None, _) | (Some(CloseRequest::AfterFlush(_)), CloseRequest::Immediate(_))
        ) {
            self.closing = Some(closing);
        }
    }

    pub(crate) fn closing(&self) -> Option<&CloseRequest> {
        self.closing.as_ref()
    }

    pub(crate) fn is_open(&self) -> bool {
        self.closed.is_none() && self.closing.is_none()
    }

    pub(crate) fn close_reason(&self) -> Option<&TransportError> {
        self.closed.as_ref()
    }

    /// The connection is gone: everything outstanding fails, in the order of transport 6.
    pub(crate) fn close_with(
        &mut self,
        error: TransportError,
        wakers: &mut Vec<Waker>,
    ) -> DiscardedFrames {
        self.requests.fail_all(&error, wakers);
        let unwritten = self.outgoing.clear();
        self.pending_bulk = VecDeque::new();
        self.pending_names = 0;
        self.closed = Some(error);
        wakers.append(&mut self.capacity_wakers);
        unwritten
    }

    /// The driver is at work: no need to wake it.
    pub(crate) fn clear_driver_waker(&mut self) {
        self.driver = None;
    }

    /// The driver goes to sleep.
    pub(crate) fn set_driver_waker(&mut self, waker: Waker) {
        self.driver = Some(waker);
    }

    /// The sleeping driver's waker; to be called, outside the lock, by whoever gave it work.
    #[must_use]
    pub(crate) fn take_driver_waker(&mut self) -> Option<Waker> {
        self.driver.take()
    }

    /// Remembers who waits for room in the write queue; the end of the connection wakes them too.
    pub(crate) fn register_capacity_waker(&mut self, waker: &Waker) {
        if !self.capacity_wakers.iter().any(|known| known.will_wake(waker)) {
            self.capacity_wakers.push(waker.clone());
        }
    }

    /// Called when something was written.
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
            .field("outstanding", &self.requests.len())
            .field("queued_bytes", &self.outgoing.queued())
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}
