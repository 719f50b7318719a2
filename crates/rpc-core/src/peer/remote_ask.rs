//! Asks of a peer, and which of them it has cancelled.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Poll, Waker};

use bytes::Bytes;
use foldhash::HashMap;
use network_common::RpcResponseCallback;
use tokio::time::Instant;

use super::connection::PeerConnection;
use crate::error::RpcError;
use crate::sync::Mutex;
use crate::wire;

/// One ask of a peer: what its context responds with.
pub(crate) struct RemoteAsk {
    pub(crate) key: RemoteAskKey,
    pub(crate) connection: Arc<PeerConnection>,
    /// Taken by the response.
    callback: Option<RpcResponseCallback>,
}

/// Names an ask of a peer, also after its context has responded.
#[derive(Clone, Copy)]
pub(crate) struct RemoteAskKey {
    /// Unique in this process.
    pub(crate) id: u64,
    request_id: i64,
    pub(crate) deadline: Option<Instant>,
}

impl RemoteAskKey {
    /// Whether the caller still waits, as far as is known here.
    pub(crate) fn is_pending(&self, connection: &PeerConnection) -> bool {
        !connection.cancelled.contains(self.request_id)
            && self.deadline.is_none_or(|deadline| Instant::now() < deadline)
    }
}

impl RemoteAsk {
    /// Boxed, because messages, which carry it, are moved often.
    pub(crate) fn new(
        callback: RpcResponseCallback,
        connection: &Arc<PeerConnection>,
        deadline: Option<Instant>,
    ) -> Box<Self> {
        // Odd, because the ids of local asks are addresses.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(2, Ordering::Relaxed);
        let key = RemoteAskKey { id, request_id: callback.request_id(), deadline };
        Box::new(Self { key, connection: Arc::clone(connection), callback: Some(callback) })
    }

    /// Completes when the caller has cancelled or its connection has ended. The deadline is not
    /// part of it.
    pub(crate) async fn cancelled(&self) {
        poll_fn(|cx| self.connection.cancelled.poll(self.key.request_id, cx.waker())).await;
    }

    /// Sends what an endpoint responded. Too large a response becomes a failure.
    pub(crate) fn respond(mut self, response: Bytes) -> Result<(), RpcError> {
        let checked =
            wire::check_size("the response", response.len(), self.connection.shared.max_message);
        self.send(match &checked {
            Ok(()) => response,
            Err(error) => wire::encode_rejection(error),
        });
        checked
    }

    /// No endpoint received the request.
    pub(crate) fn reject(mut self, error: &RpcError) {
        self.send(wire::encode_rejection(error));
    }

    fn send(&mut self, response: Bytes) {
        if let Some(callback) = self.callback.take() {
            callback.reply(response);
        }
    }
}

impl Drop for RemoteAsk {
    fn drop(&mut self) {
        self.connection.cancelled.remove_wakers(self.key.request_id);
    }
}

/// The requests of one connection that its peer has cancelled.
///
/// A request id has the slot of the request at the caller in its lower half, and the generation of
/// the slot in its upper half. A slot is used again only when its request has ended, so a
/// cancellation also covers all earlier generations, and one entry for each slot is enough: no
/// cancellation is lost, and the caller's pending requests bound the memory.
#[derive(Default)]
pub(super) struct CancelledRequests {
    /// False until the first cancellation, so that most connections need no lock.
    is_used: AtomicBool,
    /// The number of entries in `wakers`.
    waiting: AtomicUsize,
    state: Mutex<CancelState>,
}

#[derive(Default)]
struct CancelState {
    generation_by_slot: HashMap<u32, u32>,
    /// Of contexts that wait for their cancellation, by request.
    wakers: HashMap<i64, Vec<Waker>>,
    is_closed: bool,
}

/// The most slots of one connection: 1 048 576, more than a peer of this crate uses.
const MAX_SLOTS: usize = 1 << 20;

fn split_id(request_id: i64) -> (u32, u32) {
    (request_id as u32, (request_id >> 32) as u32)
}

impl CancelState {
    fn contains(&self, request_id: i64) -> bool {
        let (slot, generation) = split_id(request_id);
        let cancelled = self.generation_by_slot.get(&slot);
        self.is_closed || cancelled.is_some_and(|cancelled| *cancelled >= generation)
    }
}

impl CancelledRequests {
    fn contains(&self, request_id: i64) -> bool {
        self.is_used.load(Ordering::Acquire) && self.state.lock().contains(request_id)
    }

    fn poll(&self, request_id: i64, waker: &Waker) -> Poll<()> {
        let mut state = self.state.lock();
        if state.contains(request_id) {
            return Poll::Ready(());
        }
        let wakers = state.wakers.entry(request_id).or_default();
        if !wakers.iter().any(|other| other.will_wake(waker)) {
            wakers.push(waker.clone());
        }
        self.waiting.store(state.wakers.len(), Ordering::Release);
        Poll::Pending
    }

    /// The peer cancelled a request. False if it has cancelled more than it can have pending.
    pub(super) fn add(&self, request_id: i64) -> bool {
        let (slot, generation) = split_id(request_id);
        let mut state = self.state.lock();
        self.is_used.store(true, Ordering::Release);
        let cancelled = state.generation_by_slot.entry(slot).or_insert(generation);
        *cancelled = generation.max(*cancelled);
        let is_bounded = state.generation_by_slot.len() <= MAX_SLOTS;
        drop(state);
        self.remove_wakers(request_id).into_iter().for_each(Waker::wake);
        is_bounded
    }

    /// The connection has ended.
    pub(super) fn add_all(&self) {
        let mut state = self.state.lock();
        self.is_used.store(true, Ordering::Release);
        state.is_closed = true;
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_values().flatten().for_each(Waker::wake);
    }

    fn remove_wakers(&self, request_id: i64) -> Vec<Waker> {
        if self.waiting.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        let mut state = self.state.lock();
        let wakers = state.wakers.remove(&request_id);
        self.waiting.store(state.wakers.len(), Ordering::Release);
        wakers.unwrap_or_default()
    }
}
