//! The queue of one endpoint.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use parking_lot::Mutex;

use crate::address::{RpcAddress, RpcEndpointAddress};
use crate::call_context::{Origin, discard};
use crate::error::{ErrorKind, RpcError};
use crate::post::Mailbox;

/// A queue that keeps its buffer while parked only up to this many items.
const KEEP: usize = 64;

/// What an endpoint is to do. Starting is not among it: a loop begins with it.
pub(crate) enum Item<M> {
    Message { message: M, origin: Origin },
    Event(Event),
    Stop,
}

/// What befell a connection.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Connected(RpcAddress),
    Disconnected(RpcAddress),
    NetworkError(RpcError, RpcAddress),
}

/// Many put in, one loop takes out: everything at once, so the lock is taken twice per batch and not per message.
pub(crate) struct Inbox<M> {
    state: Mutex<State<M>>,
    address: RpcEndpointAddress,
}

struct State<M> {
    queue: VecDeque<Item<M>>,
    /// The loop, if it waits for something to come.
    parked: Option<Waker>,
    closed: Option<Closed>,
}

/// Why nothing goes in any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closed {
    Endpoint,
    Env,
    /// The loop's task was dropped, as happens when its runtime shuts down.
    Runtime,
}

impl<M> Inbox<M> {
    pub(crate) fn new(address: RpcEndpointAddress) -> Self {
        let state = State { queue: VecDeque::new(), parked: None, closed: None };
        Self { state: Mutex::new(state), address }
    }

    pub(crate) fn address(&self) -> &RpcEndpointAddress {
        &self.address
    }

    /// Appends what `build` makes, which may be nothing.
    fn append(&self, build: impl FnOnce() -> Option<Item<M>>) -> Result<(), Closed> {
        let mut state = self.state.lock();
        if let Some(closed) = state.closed {
            return Err(closed);
        }
        let Some(item) = build() else { return Ok(()) };
        state.queue.push_back(item);
        let parked = state.parked.take();
        drop(state);
        if let Some(loop_) = parked {
            loop_.wake();
        }
        Ok(())
    }

    pub(crate) fn post_event(&self, event: Event) {
        // An endpoint that has stopped is told nothing more.
        let _ = self.append(|| Some(Item::Event(event)));
    }

    /// Takes nothing more; what is queued is handled, then the endpoint's `on_stop` runs. Only the first call counts.
    pub(crate) fn stop(&self, why: Closed) {
        let mut state = self.state.lock();
        if state.closed.is_none() {
            state.closed = Some(why);
            state.queue.push_back(Item::Stop);
            let parked = state.parked.take();
            drop(state);
            if let Some(loop_) = parked {
                loop_.wake();
            }
        }
    }

    /// The loop has ended: takes nothing more and fails what is left, by dropping it after the door is shut.
    pub(crate) fn abandon(&self) {
        let mut state = self.state.lock();
        let closed = *state.closed.get_or_insert(Closed::Runtime);
        let left = std::mem::take(&mut state.queue);
        // The waker keeps an isolated endpoint's threads.
        let _parked = state.parked.take();
        drop(state);
        self.discard(left, closed);
    }

    fn discard(&self, items: VecDeque<Item<M>>, why: Closed) {
        for item in items {
            if let Item::Message { message, origin } = item {
                discard(origin, message, &self.refusal(why));
            }
        }
    }

    /// Has `waker` woken by the next item; false if there is one already. `spare` is an empty buffer to go on with.
    pub(crate) fn park(&self, waker: &Waker, spare: &mut VecDeque<Item<M>>) -> bool {
        let mut state = self.state.lock();
        if !state.queue.is_empty() {
            return false;
        }
        if (state.queue.capacity() < spare.capacity() && spare.capacity() <= KEEP)
            || state.queue.capacity() > KEEP
        {
            std::mem::swap(&mut state.queue, spare);
        }
        if state.queue.capacity() > KEEP {
            state.queue = VecDeque::new();
        }
        match &mut state.parked {
            Some(parked) => parked.clone_from(waker),
            None => state.parked = Some(waker.clone()),
        }
        true
    }

    fn refusal(&self, closed: Closed) -> RpcError {
        let text = match closed {
            Closed::Endpoint => format!("the endpoint {} has been stopped", self.address),
            Closed::Env => format!("RpcEnv already stopped: {} takes no more messages", self.address),
            Closed::Runtime => format!("the runtime that ran the endpoint {} has shut down", self.address),
        };
        RpcError::new(ErrorKind::Stopped, text).with_peer(&self.address)
    }
}

/// What a loop has taken out and not handled yet. Dropped with the loop, it fails the askers in it.
pub(crate) struct Batch<M> {
    items: VecDeque<Item<M>>,
    inbox: Arc<Inbox<M>>,
}

impl<M> Batch<M> {
    pub(crate) fn new(inbox: &Arc<Inbox<M>>) -> Self {
        Self { items: VecDeque::new(), inbox: Arc::clone(inbox) }
    }

    pub(crate) fn pop(&mut self) -> Option<Item<M>> {
        self.items.pop_front()
    }

    /// When all is handled: takes out what has come since. False if that is nothing.
    pub(crate) fn refill(&mut self) -> bool {
        std::mem::swap(&mut self.inbox.state.lock().queue, &mut self.items);
        !self.items.is_empty()
    }

    /// The buffer, to go on with.
    pub(crate) fn into_buffer(mut self) -> VecDeque<Item<M>> {
        std::mem::take(&mut self.items)
    }
}

impl<M> Drop for Batch<M> {
    fn drop(&mut self) {
        if !self.items.is_empty() {
            self.inbox.discard(std::mem::take(&mut self.items), Closed::Runtime);
        }
    }
}

impl<M: Send> Mailbox<M> for Inbox<M> {
    fn post(&self, origin: Origin, build: &mut dyn FnMut() -> Option<M>) -> Result<(), RpcError> {
        self.append(|| build().map(|message| Item::Message { message, origin })).map_err(|c| self.refusal(c))
    }
}
