//! Keeps each request to the peer until its future has polled the result.
//!
//! Responses to RPCs, uploads and merged-meta requests are matched by id, to chunk requests by
//! stream and index, to stream requests by order, as in Spark's `TransportResponseHandler`. A
//! cancelled chunk or stream request leaves a *tombstone*, because the peer still responds to it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::task::{Context, Poll, Waker};

use slab::Slab;

use super::response::{RequestResult, Response};
use super::stream_body::{BodySender, body_channel};
use crate::error::TransportError;

/// Key of one request: a slot of the slab and a generation.
///
/// The generation prevents a late response from completing a newer request in the same slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestKey {
    slot: u32,
    generation: u32,
}

impl RequestKey {
    /// Returns the request id on the wire, which is positive as in Spark.
    pub(crate) fn id(self) -> i64 {
        i64::from(self.generation) << 32 | i64::from(self.slot)
    }

    fn from_id(id: i64) -> Self {
        Self { slot: id as u32, generation: (id >> 32) as u32 }
    }
}

#[derive(Debug)]
struct PendingRequest {
    generation: u32,
    kind: RequestKind,
    state: RequestState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RequestKind {
    /// An RPC, an upload or a merged-meta request: responses have its id.
    Rpc,
    Fetch,
    Stream,
}

#[derive(Debug)]
enum RequestState {
    /// The request has no response yet. The waker is set once its future was polled.
    Pending(Option<Waker>),
    /// The request has a result, which its future has not polled yet.
    Done(RequestResult),
}

/// What the connection must do with the body of a stream response.
#[derive(Debug)]
pub(crate) enum StreamStart {
    /// Send the body to the caller and wake the waker.
    Receive(BodySender, Option<Waker>),
    /// Discard the body: the request was cancelled.
    Discard,
    /// Close the connection: no stream request is pending.
    Unsolicited,
}

/// The requests of one connection that this side has sent.
#[derive(Debug, Default)]
pub(crate) struct PendingRequests {
    slots: Slab<PendingRequest>,
    last_generation: u32,
    /// Number of pending RPCs, uploads and merged-meta requests.
    pending_rpcs: usize,
    /// Pending chunk requests by stream id and chunk index.
    ///
    /// A key whose request was removed from its slot is a tombstone.
    fetches: HashMap<(i64, i32), RequestKey>,
    /// Pending stream requests in the order of sending, with tombstones.
    streams: VecDeque<RequestKey>,
    /// The body of a stream response is arriving; set by the driver.
    pub(crate) is_receiving_stream: bool,
    /// A request was cancelled since the last tick of the idle timer.
    pub(crate) has_cancelled: bool,
}

impl PendingRequests {
    fn insert(&mut self, kind: RequestKind) -> RequestKey {
        self.last_generation = (self.last_generation + 1) & 0x7fff_ffff;
        let generation = self.last_generation;
        let state = RequestState::Pending(None);
        let slot = self.slots.insert(PendingRequest { generation, kind, state });
        // A slab with 2^32 entries of this size does not fit into memory.
        RequestKey { slot: slot as u32, generation }
    }

    /// Registers an RPC, an upload or a merged-meta request.
    pub(super) fn register_rpc(&mut self) -> RequestKey {
        self.pending_rpcs += 1;
        self.insert(RequestKind::Rpc)
    }

    /// Registers a chunk request; returns `None` if this chunk already has an entry.
    ///
    /// The entry may be a tombstone: a cancelled chunk cannot be requested before its response.
    pub(super) fn register_fetch(
        &mut self,
        stream_id: i64,
        chunk_index: i32,
    ) -> Option<RequestKey> {
        if self.fetches.contains_key(&(stream_id, chunk_index)) {
            return None;
        }
        let key = self.insert(RequestKind::Fetch);
        self.fetches.insert((stream_id, chunk_index), key);
        Some(key)
    }

    pub(super) fn register_stream(&mut self) -> RequestKey {
        let key = self.insert(RequestKind::Stream);
        self.streams.push_back(key);
        key
    }

    /// Returns the number of pending requests.
    ///
    /// Tombstones and the arriving stream are included, as in
    /// `TransportResponseHandler.numOutstandingRequests`.
    pub(crate) fn len(&self) -> usize {
        self.pending_rpcs
            + self.fetches.len()
            + self.streams.len()
            + usize::from(self.is_receiving_stream)
    }

    fn get(&self, key: RequestKey) -> Option<&PendingRequest> {
        self.slots.get(key.slot as usize).filter(|request| request.generation == key.generation)
    }

    fn get_mut(&mut self, key: RequestKey) -> Option<&mut PendingRequest> {
        self.slots.get_mut(key.slot as usize).filter(|request| request.generation == key.generation)
    }

    /// Polls for the result of a request, and removes the request with its result.
    ///
    /// Completes with `None` if the request was polled to completion or cancelled before.
    pub(crate) fn poll(
        &mut self,
        key: RequestKey,
        context: &Context<'_>,
    ) -> Poll<Option<RequestResult>> {
        let Some(request) = self.get_mut(key) else {
            return Poll::Ready(None);
        };
        if let RequestState::Pending(waker) = &mut request.state {
            match waker {
                Some(registered) => registered.clone_from(context.waker()),
                None => *waker = Some(context.waker().clone()),
            }
            return Poll::Pending;
        }
        match self.slots.remove(key.slot as usize).state {
            RequestState::Done(result) => Poll::Ready(Some(result)),
            RequestState::Pending(_) => Poll::Ready(None),
        }
    }

    /// Cancels a request; returns its result if there is one.
    ///
    /// The caller must drop the result outside the lock of the session. A pending chunk or stream
    /// request leaves a tombstone.
    pub(crate) fn cancel(&mut self, key: RequestKey) -> Option<RequestResult> {
        self.get(key)?;
        let request = self.slots.remove(key.slot as usize);
        match request.state {
            RequestState::Done(result) => Some(result),
            RequestState::Pending(_) => {
                self.has_cancelled = true;
                self.pending_rpcs -= usize::from(request.kind == RequestKind::Rpc);
                None
            }
        }
    }

    /// Sets the result of a request and returns the waker to wake.
    ///
    /// Discards `result` if the request was cancelled or already has a result.
    fn complete(&mut self, key: RequestKey, result: RequestResult) -> Option<Waker> {
        let request = self.get_mut(key)?;
        match std::mem::replace(&mut request.state, RequestState::Done(result)) {
            RequestState::Pending(waker) => waker,
            done @ RequestState::Done(_) => {
                request.state = done;
                None
            }
        }
    }

    /// Returns whether an RPC, upload or merged-meta request with this id is pending.
    pub(crate) fn is_rpc_pending(&self, id: i64) -> bool {
        self.get(RequestKey::from_id(id)).is_some_and(|request| {
            request.kind == RequestKind::Rpc && matches!(request.state, RequestState::Pending(_))
        })
    }

    /// Returns whether a request for this chunk is pending; a tombstone is not.
    pub(crate) fn is_chunk_pending(&self, stream_id: i64, chunk_index: i32) -> bool {
        let key = self.fetches.get(&(stream_id, chunk_index));
        key.is_some_and(|key| self.get(*key).is_some())
    }

    /// Completes an RPC, an upload or a merged-meta request.
    ///
    /// Returns the waker to wake, or the result as `Err` if no such request is pending.
    pub(crate) fn complete_rpc(
        &mut self,
        id: i64,
        result: RequestResult,
    ) -> Result<Option<Waker>, RequestResult> {
        if !self.is_rpc_pending(id) {
            return Err(result);
        }
        self.pending_rpcs -= 1;
        Ok(self.complete(RequestKey::from_id(id), result))
    }

    /// Completes a chunk request or removes its tombstone.
    ///
    /// Returns the waker to wake, or the result as `Err` if this chunk has no entry.
    pub(crate) fn complete_fetch(
        &mut self,
        stream_id: i64,
        chunk_index: i32,
        result: RequestResult,
    ) -> Result<Option<Waker>, RequestResult> {
        match self.fetches.remove(&(stream_id, chunk_index)) {
            Some(key) => Ok(self.complete(key, result)),
            None => Err(result),
        }
    }

    /// Completes the oldest stream request with a body of `length` bytes.
    ///
    /// Requests are matched by order; `stream_id` is not compared.
    pub(crate) fn start_stream(&mut self, stream_id: &str, length: u64) -> StreamStart {
        let Some(key) = self.streams.pop_front() else {
            return StreamStart::Unsolicited;
        };
        if self.get(key).is_none() {
            return StreamStart::Discard;
        }
        let (sender, body) = body_channel(stream_id.to_owned(), length);
        StreamStart::Receive(sender, self.complete(key, Ok(Response::Stream(Box::new(body)))))
    }

    /// Fails the oldest stream request or removes its tombstone.
    ///
    /// Returns the waker to wake, or the error as `Err` if there is neither.
    pub(crate) fn fail_stream(
        &mut self,
        error: TransportError,
    ) -> Result<Option<Waker>, TransportError> {
        match self.streams.pop_front() {
            Some(key) => Ok(self.complete(key, Err(error))),
            None => Err(error),
        }
    }

    /// Fails the requests that have no response yet; the connection stays open.
    ///
    /// Chunk and stream requests leave tombstones. Returns the number of requests.
    pub(crate) fn fail_unanswered(
        &mut self,
        error: impl FnOnce(usize) -> TransportError,
        wakers: &mut Vec<Waker>,
    ) -> usize {
        let is_pending =
            |request: &PendingRequest| matches!(request.state, RequestState::Pending(_));
        let count = self.slots.iter().filter(|(_, request)| is_pending(request)).count();
        if count == 0 {
            return 0;
        }
        let error = error(count);
        for (_, request) in self.slots.iter_mut().filter(|(_, request)| is_pending(request)) {
            let failed = RequestState::Done(Err(error.clone()));
            if let RequestState::Pending(waker) = std::mem::replace(&mut request.state, failed) {
                wakers.extend(waker);
            }
        }
        self.pending_rpcs = 0;
        count
    }

    /// Fails all pending requests: chunk requests first, then RPCs, then streams.
    ///
    /// The order is that of `TransportResponseHandler.failOutstandingRequests`. The wakers to wake
    /// are appended to `wakers`. Results that are not polled yet are kept.
    pub(super) fn fail_all(&mut self, error: &TransportError, wakers: &mut Vec<Waker>) {
        // Sorted, so that a simulation can be repeated.
        let fetches: BTreeMap<_, _> = self.fetches.drain().collect();
        let streams = std::mem::take(&mut self.streams);
        let rpcs: Vec<RequestKey> = self
            .slots
            .iter()
            .filter(|(_, request)| request.kind == RequestKind::Rpc)
            .map(|(slot, request)| RequestKey { slot: slot as u32, generation: request.generation })
            .collect();
        for key in fetches.into_values().chain(rpcs).chain(streams) {
            wakers.extend(self.complete(key, Err(error.clone())));
        }
        self.pending_rpcs = 0;
        self.is_receiving_stream = false;
    }
}
