//! The requests of one connection that its peer has cancelled.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Poll, Waker};

use foldhash::HashMap;

use crate::sync::Mutex;

/// The most slots of one connection: 1 048 576.
///
/// A peer of this crate has fewer pending requests. Beyond that the connection is closed.
const MAX_SLOTS: usize = 1 << 20;
/// The largest generation of a request; after it, the caller begins again at 0.
const MAX_GENERATION: u32 = i32::MAX as u32;

/// The cancelled requests of one connection, by the slot in their id.
///
/// The lower half of a request id is the caller's slot of the request, and the upper half is the
/// generation of the slot. The caller reuses a slot only after its request has ended, so a
/// cancellation also covers all earlier generations. One entry for each slot is therefore enough.
/// The number of slots at the caller limits the memory.
#[derive(Default)]
pub(super) struct CancelledRequests {
    /// Is false until the first cancellation, so that `contains` rarely takes the lock.
    is_used: AtomicBool,
    /// The number of entries in `wakers`.
    waker_count: AtomicUsize,
    state: Mutex<CancelState>,
}

#[derive(Default)]
struct CancelState {
    /// The newest cancelled generation of each slot.
    generation_by_slot: HashMap<u32, u32>,
    /// The newest generation of all requests that were checked or cancelled.
    newest_generation: Option<u32>,
    /// The tasks that await the cancellation of a request, by request id.
    wakers: BTreeMap<i64, Vec<Waker>>,
    is_closed: bool,
}

/// Splits a request id into its slot and the generation of the slot.
fn split_id(request_id: i64) -> (u32, u32) {
    (request_id as u32, (request_id >> 32) as u32)
}

impl CancelState {
    fn contains(&mut self, request_id: i64) -> bool {
        let (slot, generation) = split_id(request_id);
        self.on_generation(generation);
        let newest = self.generation_by_slot.get(&slot);
        self.is_closed || newest.is_some_and(|newest| *newest >= generation)
    }

    /// Discards the cancellations when the generations have begun again at 0.
    ///
    /// They do so after 2^31 requests of the connection. The cancelled requests have ended by then,
    /// but their generations are larger than those of new requests.
    fn on_generation(&mut self, generation: u32) {
        let newest = *self.newest_generation.get_or_insert(generation);
        // A request that is older than the newest one does not count.
        if generation.wrapping_sub(newest) & MAX_GENERATION > MAX_GENERATION / 2 {
            return;
        }
        if generation < newest {
            self.generation_by_slot.clear();
        }
        self.newest_generation = Some(generation);
    }
}

impl CancelledRequests {
    /// Returns whether the peer has cancelled this request, or the connection has ended.
    pub(super) fn contains(&self, request_id: i64) -> bool {
        self.is_used.load(Ordering::Acquire) && self.state.lock().contains(request_id)
    }

    /// Polls for the cancellation of a request, which wakes `waker`.
    pub(super) fn poll(&self, request_id: i64, waker: &Waker) -> Poll<()> {
        let mut state = self.state.lock();
        if state.contains(request_id) {
            return Poll::Ready(());
        }
        let wakers = state.wakers.entry(request_id).or_default();
        if !wakers.iter().any(|other| other.will_wake(waker)) {
            wakers.push(waker.clone());
        }
        self.waker_count.store(state.wakers.len(), Ordering::Release);
        Poll::Pending
    }

    /// Marks a request as cancelled.
    ///
    /// Returns false if the peer has cancelled requests in more than [`MAX_SLOTS`] slots. The
    /// caller then closes the connection.
    pub(super) fn add(&self, request_id: i64) -> bool {
        let (slot, generation) = split_id(request_id);
        let mut state = self.state.lock();
        self.is_used.store(true, Ordering::Release);
        state.on_generation(generation);
        let newest = state.generation_by_slot.entry(slot).or_insert(generation);
        *newest = generation.max(*newest);
        let is_bounded = state.generation_by_slot.len() <= MAX_SLOTS;
        drop(state);
        self.remove_wakers(request_id).into_iter().for_each(Waker::wake);
        is_bounded
    }

    /// Marks all requests as cancelled, because the connection has ended.
    pub(super) fn add_all(&self) {
        let mut state = self.state.lock();
        self.is_used.store(true, Ordering::Release);
        state.is_closed = true;
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        wakers.into_values().flatten().for_each(Waker::wake);
    }

    /// Removes and returns the wakers of a request that was cancelled or has ended.
    pub(super) fn remove_wakers(&self, request_id: i64) -> Vec<Waker> {
        if self.waker_count.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        let mut state = self.state.lock();
        let wakers = state.wakers.remove(&request_id);
        self.waker_count.store(state.wakers.len(), Ordering::Release);
        wakers.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request_id(slot: u32, generation: u32) -> i64 {
        i64::from(generation) << 32 | i64::from(slot)
    }

    #[test]
    fn cancellation_covers_earlier_generations_of_its_slot_only() {
        let cancelled = CancelledRequests::default();
        assert!(cancelled.add(request_id(1, 7)));
        assert!(cancelled.contains(request_id(1, 7)) && cancelled.contains(request_id(1, 3)));
        assert!(!cancelled.contains(request_id(1, 8)) && !cancelled.contains(request_id(2, 7)));
    }

    #[test]
    fn cancellation_ends_when_generations_begin_again() {
        let cancelled = CancelledRequests::default();
        assert!(cancelled.add(request_id(1, MAX_GENERATION - 100)));
        // Another slot reaches the end of the generations.
        assert!(!cancelled.contains(request_id(2, MAX_GENERATION)));
        assert!(!cancelled.contains(request_id(1, 0)), "a new request is not cancelled");
        assert!(cancelled.add(request_id(3, 1)));
        // A handler of an old request is still running.
        assert!(!cancelled.contains(request_id(2, MAX_GENERATION)));
        assert!(cancelled.contains(request_id(3, 1)), "the cancellation was not discarded");
        assert!(cancelled.add(request_id(1, 5)));
        assert!(cancelled.contains(request_id(1, 5)) && !cancelled.contains(request_id(1, 6)));
    }
}
