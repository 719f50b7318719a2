//! The queue of one endpoint.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::task::Waker;

use futures::future::BoxFuture;
use network_common::ConnectionId;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::address::{RpcAddress, RpcEndpointAddress};
use crate::call_context::discard;
use crate::credit::{Account, Volume, Windows};
use crate::error::{ErrorKind, RpcError};
use crate::limits::{InboxLimits, Overflow};
use crate::link::Link;
use crate::origin::Origin;
use crate::post::Mailbox;

/// A queue that keeps its buffer while parked only up to this many items.
const KEEP: usize = 64;

/// What an endpoint is to do. Starting is not among it: a loop begins with it.
pub(crate) enum Item<M> {
    Message { message: M, origin: Origin },
    Event(Event),
    Stop,
}

/// What befell a connection, or a message that went over it.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Connected(RpcAddress),
    Disconnected(RpcAddress),
    NetworkError(RpcError, RpcAddress),
    Undelivered(RpcError, RpcAddress),
}

/// Many put in, one loop takes out: everything at once, so the lock is taken twice per batch and not per message.
///
/// A message counts against the limits until it has been handled, so what the loop has in hand counts too.
pub(crate) struct Inbox<M> {
    state: Mutex<State<M>>,
    address: RpcEndpointAddress,
    limits: InboxLimits,
    windows: Windows,
    /// There is room again.
    room: Notify,
}

struct State<M> {
    queue: VecDeque<Item<M>>,
    /// Of messages, queued or in hand.
    held: Volume,
    /// What the accounts may still send.
    promised: Volume,
    /// Of the connections that messages came over.
    accounts: HashMap<ConnectionId, Account>,
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

enum Refusal {
    Closed(Closed),
    Full,
}

impl<M> Inbox<M> {
    pub(crate) fn new(address: RpcEndpointAddress, limits: InboxLimits) -> Self {
        let state = State {
            queue: VecDeque::new(),
            held: Volume::default(),
            promised: Volume::default(),
            accounts: HashMap::new(),
            parked: None,
            closed: None,
        };
        let windows = Windows::of(limits.volume);
        Self { state: Mutex::new(state), address, limits, windows, room: Notify::new() }
    }

    pub(crate) fn address(&self) -> &RpcEndpointAddress {
        &self.address
    }

    /// Appends what `build` makes, which may be nothing.
    fn append(&self, origin: Origin, build: impl FnOnce() -> Option<M>) -> Result<(), Refusal> {
        let (mut dropped, mut grant) = (None, None);
        let mut state = self.state.lock();
        if let Some(closed) = state.closed {
            return Err(Refusal::Closed(closed));
        }
        let bytes = origin.bytes::<M>();
        let expected = match origin.link() {
            Some(link) => state.expects(link.id(), &self.windows),
            None => false,
        };
        if !expected && !state.held.fits(self.limits.volume) {
            match self.limits.overflow {
                Overflow::Refuse => return Err(Refusal::Full),
                Overflow::DropOldest => match state.take_oldest() {
                    Some(oldest) => dropped = Some(oldest),
                    // All is in hand.
                    None => return Err(Refusal::Full),
                },
            }
        }
        let Some(message) = build() else { return Ok(()) };
        state.held.add(Volume::message(bytes));
        if let Some(link) = origin.link() {
            grant = state.receive(link.id(), bytes).map(|more| (Arc::clone(link), more));
        }
        state.queue.push_back(Item::Message { message, origin });
        let parked = state.parked.take();
        drop(state);
        if let Some(loop_) = parked {
            loop_.wake();
        }
        if let Some((link, more)) = grant {
            link.grant(self.address.name(), more);
        }
        if let Some((message, origin)) = dropped {
            tracing::warn!(endpoint = %self.address, "the inbox is full: its oldest message is dropped");
            discard(origin.ask_id(), message, &self.full());
            self.release([Done::of::<M>(&origin)]);
        }
        Ok(())
    }

    /// Events are few and bypass the limits.
    pub(crate) fn post_event(&self, event: Event) {
        let mut state = self.state.lock();
        // An endpoint that has stopped is told nothing more.
        if state.closed.is_none() {
            state.queue.push_back(Item::Event(event));
            let parked = state.parked.take();
            drop(state);
            if let Some(loop_) = parked {
                loop_.wake();
            }
        }
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
            self.room.notify_waiters();
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
        self.room.notify_waiters();
        self.discard(left, closed);
    }

    fn discard(&self, items: VecDeque<Item<M>>, why: Closed) {
        for item in items {
            if let Item::Message { message, origin } = item {
                discard(origin.ask_id(), message, &self.closed(why));
            }
        }
    }

    /// The connection has ended, and with it its account.
    pub(crate) fn disconnected(&self, connection: ConnectionId) {
        let mut state = self.state.lock();
        if let Some(account) = state.accounts.remove(&connection) {
            state.promised.remove(account.promised());
        }
    }

    /// Messages have been handled: there is room for others, and credit for who sent them.
    fn release(&self, done: impl IntoIterator<Item = Done>) {
        let released = self.state.lock().release(done, self.limits.volume, &self.windows);
        self.tell(released);
    }

    fn tell(&self, released: Released) {
        if released.room {
            self.room.notify_waiters();
        }
        for (link, more) in released.grants {
            link.grant(self.address.name(), more);
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

    fn is_full(&self) -> bool {
        let state = self.state.lock();
        state.closed.is_none() && !state.held.fits(self.limits.volume)
    }

    fn closed(&self, closed: Closed) -> RpcError {
        let text = match closed {
            Closed::Endpoint => format!("the endpoint {} has been stopped", self.address),
            Closed::Env => format!("RpcEnv already stopped: {} takes no more messages", self.address),
            Closed::Runtime => format!("the runtime that ran the endpoint {} has shut down", self.address),
        };
        RpcError::new(ErrorKind::Stopped, text).with_peer(&self.address)
    }

    fn full(&self) -> RpcError {
        let text = format!("the inbox of {} is full: {}", self.address, self.limits);
        RpcError::new(ErrorKind::Limit, text).with_peer(&self.address).retryable()
    }
}

impl<M> State<M> {
    fn expects(&mut self, connection: ConnectionId, windows: &Windows) -> bool {
        let account = self.accounts.entry(connection).or_insert_with(|| {
            let account = Account::new(windows);
            self.promised.add(account.promised());
            account
        });
        account.expects()
    }

    fn receive(&mut self, connection: ConnectionId, bytes: u64) -> Option<Volume> {
        let account = self.accounts.get_mut(&connection)?;
        self.promised.remove(account.promised());
        let grant = account.receive(bytes);
        self.promised.add(account.promised());
        grant
    }

    fn release(
        &mut self,
        done: impl IntoIterator<Item = Done>,
        limit: Volume,
        windows: &Windows,
    ) -> Released {
        let was_full = !self.held.fits(limit);
        let mut grants = Vec::new();
        for done in done {
            self.held.remove(done.volume);
            let Some(link) = done.link else { continue };
            let Some(account) = self.accounts.get_mut(&link.id()) else { continue };
            let free = limit.minus(self.held).minus(self.promised);
            self.promised.remove(account.promised());
            grants.extend(account.handle(done.volume, free, windows).map(|more| (link, more)));
            self.promised.add(account.promised());
        }
        Released { room: was_full && self.held.fits(limit), grants }
    }

    /// Takes out the message that has waited longest.
    fn take_oldest(&mut self) -> Option<(M, Origin)> {
        let place = self.queue.iter().position(|item| matches!(item, Item::Message { .. }))?;
        match self.queue.remove(place)? {
            Item::Message { message, origin } => Some((message, origin)),
            Item::Event(_) | Item::Stop => None,
        }
    }
}

/// What is to be told, after the lock, when messages have been handled.
struct Released {
    /// There is room where there was none.
    room: bool,
    grants: Vec<(Arc<Link>, Volume)>,
}

/// Messages of one connection, or of this environment, that no longer count.
struct Done {
    volume: Volume,
    link: Option<Arc<Link>>,
}

impl Done {
    fn of<M>(origin: &Origin) -> Self {
        Self { volume: Volume::message(origin.bytes::<M>()), link: origin.link().cloned() }
    }

    fn is_of(&self, origin: &Origin) -> bool {
        match (&self.link, origin.link()) {
            (None, None) => true,
            (Some(mine), Some(its)) => Arc::ptr_eq(mine, its),
            _ => false,
        }
    }
}

/// What a loop has taken out and not handled yet. Dropped with the loop, it fails the askers in it.
pub(crate) struct Batch<M> {
    items: VecDeque<Item<M>>,
    /// Handled, and not yet given back to the inbox.
    done: Vec<Done>,
    count: usize,
    /// Gives back when so many are done.
    share: usize,
    inbox: Arc<Inbox<M>>,
}

impl<M> Batch<M> {
    pub(crate) fn new(inbox: &Arc<Inbox<M>>) -> Self {
        let share = (inbox.limits.volume.messages / 8).clamp(1, 64) as usize;
        Self { items: VecDeque::new(), done: Vec::new(), count: 0, share, inbox: Arc::clone(inbox) }
    }

    /// The next message whose asker still waits, or the next event.
    pub(crate) fn pop(&mut self) -> Option<Item<M>> {
        while let Some(item) = self.items.pop_front() {
            match item {
                Item::Message { message, origin } if !origin.waits() => {
                    discard(origin.ask_id(), message, &expired(&self.inbox.address));
                    self.done(&origin);
                }
                item => return Some(item),
            }
        }
        None
    }

    /// A message has been handled.
    pub(crate) fn done(&mut self, origin: &Origin) {
        match self.done.last_mut() {
            Some(last) if last.is_of(origin) => last.volume.add(Volume::message(origin.bytes::<M>())),
            _ => self.done.push(Done::of::<M>(origin)),
        }
        self.count += 1;
        if self.count >= self.share {
            self.give_back();
        }
    }

    /// Gives back what is done: at the latest when the loop is about to wait for something.
    pub(crate) fn give_back(&mut self) {
        if self.count > 0 {
            self.count = 0;
            self.inbox.release(self.done.drain(..));
        }
    }

    /// When all is handled: takes out what has come since. False if that is nothing.
    pub(crate) fn refill(&mut self) -> bool {
        let inbox = &self.inbox;
        let mut state = inbox.state.lock();
        std::mem::swap(&mut state.queue, &mut self.items);
        if self.count > 0 {
            self.count = 0;
            let released = state.release(self.done.drain(..), inbox.limits.volume, &inbox.windows);
            drop(state);
            inbox.tell(released);
        }
        !self.items.is_empty()
    }

    /// The buffer, to go on with.
    pub(crate) fn into_buffer(mut self) -> VecDeque<Item<M>> {
        std::mem::take(&mut self.items)
    }
}

impl<M> Drop for Batch<M> {
    fn drop(&mut self) {
        self.give_back();
        if !self.items.is_empty() {
            self.inbox.discard(std::mem::take(&mut self.items), Closed::Runtime);
        }
    }
}

/// What an asker would be told that no longer listens.
fn expired(endpoint: &RpcEndpointAddress) -> RpcError {
    let text = format!("the time of the request was over before its turn came at {endpoint}");
    RpcError::new(ErrorKind::Timeout, text).with_peer(endpoint)
}

impl<M: Send> Mailbox<M> for Inbox<M> {
    fn post(&self, origin: Origin, build: &mut dyn FnMut() -> Option<M>) -> Result<(), RpcError> {
        self.append(origin, build).map_err(|refusal| match refusal {
            Refusal::Closed(closed) => self.closed(closed),
            Refusal::Full => self.full(),
        })
    }

    fn room(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let mut room = std::pin::pin!(self.room.notified());
            room.as_mut().enable();
            if self.is_full() {
                room.await;
            }
        })
    }
}
