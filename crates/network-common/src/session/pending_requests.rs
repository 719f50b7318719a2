//! Requests this side has outstanding, and who is told what (transport 6).

use std::collections::{HashMap, VecDeque};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use roaring::RoaringBitmap;
use slab::Slab;

use super::StreamBody;
use super::stream_body::{BodySender, body_channel};
use crate::error::{BoxError, TransportError};
use crate::protocol::read_bitmaps;

/// The answer to [`merged_block_meta`](crate::TransportClient::merged_block_meta).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MergedBlockMeta {
    /// Number of chunks of the merged block, which is the number of bitmaps in the body.
    pub num_chunks: i32,
    /// One bitmap per chunk, back to back.
    pub body: Bytes,
}

impl MergedBlockMeta {
    /// The bitmaps: which map outputs each chunk holds.
    ///
    /// # Errors
    /// When the body is not `num_chunks` bitmaps in RoaringBitmap's portable format.
    pub fn bitmaps(&self) -> Result<Vec<RoaringBitmap>, BoxError> {
        Ok(read_bitmaps(&self.body, usize::try_from(self.num_chunks)?)?)
    }
}

/// A successful answer.
#[derive(Debug)]
pub(crate) enum Response {
    Body(Bytes),
    MergedBlockMeta(MergedBlockMeta),
    /// Boxed: there is room for an answer in each request that waits.
    Stream(Box<StreamBody>),
}

impl Response {
    pub(crate) fn into_body(self) -> Option<Bytes> {
        if let Self::Body(body) = self { Some(body) } else { None }
    }

    pub(crate) fn into_meta(self) -> Option<MergedBlockMeta> {
        if let Self::MergedBlockMeta(meta) = self { Some(meta) } else { None }
    }

    pub(crate) fn into_stream(self) -> Option<StreamBody> {
        if let Self::Stream(body) = self { Some(*body) } else { None }
    }
}

pub(crate) type RequestResult = Result<Response, TransportError>;

/// Names one request; its id on the wire. Generations keep a late answer from meeting a newer
/// request in the same place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestKey {
    slot: u32,
    generation: u32,
}

impl RequestKey {
    /// Positive, as ids drawn by Spark are.
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
    Rpc,
    Fetch,
    Stream,
}

#[derive(Debug)]
enum RequestState {
    Waiting(Option<Waker>),
    Done(RequestResult),
}

/// What becomes of an announced stream body.
#[derive(Debug)]
pub(crate) enum StreamStart {
    /// Feed it; the asker is to be woken.
    Feed(BodySender, Option<Waker>),
    /// Its asker has gone.
    Skip,
    /// There was no such request.
    Unsolicited,
}

#[derive(Debug, Default)]
pub(crate) struct PendingRequests {
    slots: Slab<PendingRequest>,
    generation: u32,
    /// Unanswered RPCs, uploads and merged-meta requests.
    rpcs: usize,
    /// Unanswered fetches. A ticket whose request is gone is a tombstone: the wire cannot cancel
    /// it.
    fetches: HashMap<(i64, i32), RequestKey>,
    /// Unanswered stream requests in the order they were sent, with tombstones.
    streams: VecDeque<RequestKey>,
    /// The body of an answered stream request is still arriving.
    pub(crate) is_receiving_stream: bool,
}

impl PendingRequests {
    fn insert(&mut self, kind: RequestKind) -> RequestKey {
        self.generation = (self.generation + 1) & 0x7fff_ffff;
        let generation = self.generation;
        let place = self.slots.insert(PendingRequest {
            generation,
            kind,
            state: RequestState::Waiting(None),
        });
        // A slab cannot reach 2^32 entries of this size.
        RequestKey { slot: place as u32, generation }
    }

    /// A request that is answered by id.
    pub(super) fn register_rpc(&mut self) -> RequestKey {
        self.rpcs += 1;
        self.insert(RequestKind::Rpc)
    }

    /// `None` when this chunk is already outstanding.
    pub(super) fn register_fetch(
        &mut self,
        stream_id: i64,
        chunk_index: i32,
    ) -> Option<RequestKey> {
        if self.fetches.contains_key(&(stream_id, chunk_index)) {
            return None;
        }
        let ticket = self.insert(RequestKind::Fetch);
        self.fetches.insert((stream_id, chunk_index), ticket);
        Some(ticket)
    }

    pub(super) fn register_stream(&mut self) -> RequestKey {
        let ticket = self.insert(RequestKind::Stream);
        self.streams.push_back(ticket);
        ticket
    }

    /// Everything that is unanswered, tombstones included, as Spark counts it.
    pub(crate) fn len(&self) -> usize {
        self.rpcs + self.fetches.len() + self.streams.len() + usize::from(self.is_receiving_stream)
    }

    fn get(&mut self, ticket: RequestKey) -> Option<&mut PendingRequest> {
        self.slots
            .get_mut(ticket.slot as usize)
            .filter(|request| request.generation == ticket.generation)
    }

    /// The outcome, once: the request is gone afterwards.
    pub(crate) fn poll(
        &mut self,
        ticket: RequestKey,
        context: &Context<'_>,
    ) -> Poll<Option<RequestResult>> {
        let Some(request) = self.get(ticket) else {
            return Poll::Ready(None);
        };
        if let RequestState::Waiting(waker) = &mut request.state {
            match waker {
                Some(known) => known.clone_from(context.waker()),
                None => *waker = Some(context.waker().clone()),
            }
            return Poll::Pending;
        }
        match self.slots.remove(ticket.slot as usize).state {
            RequestState::Done(outcome) => Poll::Ready(Some(outcome)),
            RequestState::Waiting(_) => Poll::Ready(None),
        }
    }

    /// Nobody waits for it any more; yields an outcome that came too late. Fetches and streams
    /// leave their tombstone.
    pub(crate) fn cancel(&mut self, ticket: RequestKey) -> Option<RequestResult> {
        self.get(ticket)?;
        let request = self.slots.remove(ticket.slot as usize);
        match request.state {
            RequestState::Done(outcome) => Some(outcome),
            RequestState::Waiting(_) => {
                self.rpcs -= usize::from(request.kind == RequestKind::Rpc);
                None
            }
        }
    }

    fn complete(&mut self, ticket: RequestKey, outcome: RequestResult) -> Option<Waker> {
        let request = self.get(ticket)?;
        match std::mem::replace(&mut request.state, RequestState::Done(outcome)) {
            RequestState::Waiting(waker) => waker,
            done @ RequestState::Done(_) => {
                request.state = done;
                None
            }
        }
    }

    /// Whether an answer with this id is awaited.
    pub(crate) fn is_rpc_pending(&self, id: i64) -> bool {
        let ticket = RequestKey::from_id(id);
        self.slots.get(ticket.slot as usize).is_some_and(|request| {
            request.generation == ticket.generation
                && request.kind == RequestKind::Rpc
                && matches!(request.state, RequestState::Waiting(_))
        })
    }

    /// Whether this chunk is awaited by somebody.
    pub(crate) fn is_chunk_pending(&self, stream_id: i64, chunk_index: i32) -> bool {
        self.fetches.get(&(stream_id, chunk_index)).is_some_and(|ticket| {
            self.slots
                .get(ticket.slot as usize)
                .is_some_and(|request| request.generation == ticket.generation)
        })
    }

    /// `Err` when nobody waits for this id: the answer is late, or was never asked for.
    pub(crate) fn complete_rpc(
        &mut self,
        id: i64,
        outcome: RequestResult,
    ) -> Result<Option<Waker>, RequestResult> {
        if !self.is_rpc_pending(id) {
            return Err(outcome);
        }
        self.rpcs -= 1;
        Ok(self.complete(RequestKey::from_id(id), outcome))
    }

    /// `Err` when this chunk was not asked for.
    pub(crate) fn complete_fetch(
        &mut self,
        stream_id: i64,
        chunk_index: i32,
        outcome: RequestResult,
    ) -> Result<Option<Waker>, RequestResult> {
        match self.fetches.remove(&(stream_id, chunk_index)) {
            Some(ticket) => Ok(self.complete(ticket, outcome)),
            None => Err(outcome),
        }
    }

    /// The oldest stream request is answered with a body of `length` bytes.
    pub(crate) fn start_stream(&mut self, stream_id: &str, length: u64) -> StreamStart {
        let Some(ticket) = self.streams.pop_front() else {
            return StreamStart::Unsolicited;
        };
        if self.get(ticket).is_none() {
            return StreamStart::Skip;
        }
        let (writer, body) = body_channel(stream_id.to_owned(), length);
        StreamStart::Feed(writer, self.complete(ticket, Ok(Response::Stream(Box::new(body)))))
    }

    /// `Err` when no stream was asked for.
    pub(crate) fn fail_stream(
        &mut self,
        error: TransportError,
    ) -> Result<Option<Waker>, TransportError> {
        match self.streams.pop_front() {
            Some(ticket) => Ok(self.complete(ticket, Err(error))),
            None => Err(error),
        }
    }

    /// Fails fetches, RPCs and queued streams, in this order.
    pub(super) fn fail_all(&mut self, error: &TransportError, wakers: &mut Vec<Waker>) {
        let fetches: Vec<RequestKey> = self.fetches.drain().map(|(_, ticket)| ticket).collect();
        let streams = std::mem::take(&mut self.streams);
        let rpcs: Vec<RequestKey> = self
            .slots
            .iter()
            .filter(|(_, request)| request.kind == RequestKind::Rpc)
            .map(|(place, request)| RequestKey {
                slot: place as u32,
                generation: request.generation,
            })
            .collect();
        for ticket in fetches.into_iter().chain(rpcs).chain(streams) {
            wakers.extend(self.complete(ticket, Err(error.clone())));
        }
        self.rpcs = 0;
        self.is_receiving_stream = false;
    }
}
