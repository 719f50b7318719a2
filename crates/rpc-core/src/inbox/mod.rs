//! The queue of one endpoint.

mod batch;
mod state;

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use futures::future::BoxFuture;
use network_common::ConnectionId;
use tokio::sync::futures::OwnedNotified;
use tokio::time::Instant;

pub(crate) use batch::Batch;
use batch::Done;
use state::{Counts, Released, State};

use crate::address::{RpcAddress, RpcEndpointAddress};
use crate::ask::About;
use crate::credit::Volume;
use crate::endpoint_ref::RpcEndpointRef;
use crate::error::{ErrorKind, RpcError};
use crate::limits::{InboxConf, Overflow};
use crate::link::{Link, Receiver};
use crate::metrics::{EndpointSnapshot, Histogram};
use crate::origin::Origin;
use crate::post::Mailbox;
use crate::running::{EndpointId, discard};
use crate::sync::Mutex;

/// A queue that keeps its buffer while parked only up to this many items.
const KEEP: usize = 64;

/// So many refusals of messages wait at most to be told to an endpoint: unlike connections, a peer has any number of them.
const MAX_UNDELIVERED: u16 = 1024;

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
    /// How long messages took. There with the first that was measured.
    processing: Mutex<Option<Box<Histogram>>>,
    about: Arc<About>,
    conf: Arc<InboxConf>,
}

/// What has become of messages, for the report of a shutdown.
pub(crate) struct Ending {
    pub(crate) handled: u64,
    pub(crate) late: u64,
    pub(crate) held: u64,
    /// The endpoint has been stopped, to the end of its `on_stop`.
    pub(crate) ended: bool,
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
    pub(crate) fn new(about: About, conf: Arc<InboxConf>) -> Arc<Self> {
        let (state, processing) = (Mutex::new(State::new()), Mutex::default());
        Arc::new(Self { state, processing, about: Arc::new(about), conf })
    }

    pub(crate) fn address(&self) -> &RpcEndpointAddress {
        &self.about.address
    }

    pub(crate) fn id(&self) -> EndpointId {
        EndpointId::of(&self.about)
    }

    pub(crate) fn make_ref(self: &Arc<Self>) -> RpcEndpointRef<M>
    where
        M: Send + 'static,
    {
        RpcEndpointRef::local(Arc::clone(&self.about), Arc::clone(self) as _)
    }

    /// Appends what `build` makes, which may be nothing. Gives the connection if that opened an account for it, which
    /// [`Receiver::disconnected`] closes.
    pub(crate) fn append(
        &self,
        origin: Origin,
        build: impl FnOnce() -> Option<M>,
    ) -> Result<Option<Arc<Link>>, RpcError> {
        let (mut dropped, mut grant, mut opened) = (None, None, None);
        let bytes = origin.bytes::<M>();
        let mut state = self.state.lock();
        if let Some(closed) = state.closed {
            state.counts.late += 1;
            return Err(self.closed(closed));
        }
        let mut expected = false;
        if let Some(link) = origin.link() {
            let is_new;
            (is_new, expected) = state.open_account(link.id(), &self.conf.windows);
            opened = is_new.then(|| Arc::clone(link));
        }
        if !expected && !state.held.fits(self.conf.limit) {
            match self.conf.overflow {
                // If nothing is taken out, all is in hand.
                Overflow::DropOldest => dropped = state.take_oldest(),
                Overflow::Refuse => {}
            }
            if dropped.is_none() {
                state.counts.refused += 1;
                return Err(self.full());
            }
            state.counts.dropped += 1;
        }
        let Some(message) = build() else { return Ok(opened) };
        state.held.add(Volume::message(bytes));
        if let Some(link) = origin.link() {
            grant = state.receive(link.id(), bytes).map(|more| (Arc::clone(link), more));
        }
        let parked = state.parked.take();
        // While the loop is parked it has nothing else to do, so the clock can be spared.
        if parked.is_none() && state.queue.is_empty() {
            state.queued_since = Some(Instant::now());
        }
        state.queue.push_back(Item::Message { message, origin });
        drop(state);
        if let Some(loop_) = parked {
            loop_.wake();
        }
        if let Some((link, more)) = grant {
            link.grant(self.address().name(), more);
        }
        if let Some((message, origin)) = dropped {
            tracing::warn!(endpoint = %self.address(), "the inbox is full: its oldest message is dropped");
            discard(origin.ask_id(), message, &self.full());
            self.drop_volume(&origin);
        }
        Ok(opened)
    }

    /// A message that was in the queue no longer counts.
    fn drop_volume(&self, origin: &Origin) {
        let volume = Volume::message(origin.bytes::<M>());
        let mut state = self.state.lock();
        let Some(link) = origin.link() else { return state.held.remove(volume) };
        let done = Done { volume, link: Arc::clone(link) };
        let grants = state.release(done, self.conf.limit, &self.conf.windows).into_iter().collect();
        drop(state);
        self.tell(Released { room: None, grants });
    }

    /// Events of connections are few and bypass the limits; of messages that were refused so many wait and no more.
    pub(crate) fn post_event(&self, event: Event) {
        let mut state = self.state.lock();
        let too_many = match event {
            Event::Undelivered(..) => {
                state.undelivered = state.undelivered.saturating_add(1);
                state.undelivered > MAX_UNDELIVERED
            }
            Event::Connected(_) | Event::Disconnected(_) | Event::NetworkError(..) => false,
        };
        // An endpoint that has stopped is told nothing more.
        if state.closed.is_none() && !too_many {
            state.queue.push_back(Item::Event(event));
            let parked = state.parked.take();
            drop(state);
            if let Some(loop_) = parked {
                loop_.wake();
            }
        }
    }

    /// The sender at the other end of `connection` has given its credit back.
    pub(crate) fn forgo(&self, connection: ConnectionId) {
        self.state.lock().forgo(connection);
    }

    /// Takes nothing more; what is queued is handled, then the endpoint's `on_stop` runs. Only the first call counts.
    pub(crate) fn stop(&self, why: Closed) {
        let mut state = self.state.lock();
        if state.closed.is_none() {
            state.closed = Some(why);
            state.queue.push_back(Item::Stop);
            let (parked, room) = (state.parked.take(), state.room_awaited.take());
            drop(state);
            if let Some(loop_) = parked {
                loop_.wake();
            }
            if let Some(room) = room {
                room.notify_waiters();
            }
        }
    }

    /// The loop has ended: takes nothing more and fails what is left, by dropping it after the door is shut.
    pub(crate) fn abandon(&self) {
        let mut state = self.state.lock();
        let closed = *state.closed.get_or_insert(Closed::Runtime);
        let left = std::mem::take(&mut state.queue);
        // The waker keeps an isolated endpoint's threads.
        let (_parked, room) = (state.parked.take(), state.room_awaited.take());
        drop(state);
        if let Some(room) = room {
            room.notify_waiters();
        }
        self.discard(left, closed);
    }

    fn discard(&self, items: VecDeque<Item<M>>, why: Closed) {
        for item in items {
            if let Item::Message { message, origin } = item {
                discard(origin.ask_id(), message, &self.closed(why));
            }
        }
    }

    /// To be called when messages have been handled: there is room for others, and credit for who sent them.
    fn tell(&self, released: Released) {
        if let Some(room) = released.room {
            room.notify_waiters();
        }
        for (link, more) in released.grants {
            link.grant(self.address().name(), more);
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

    /// The handling of a message has taken so long.
    pub(crate) fn took(&self, time: Duration) {
        self.processing.lock().get_or_insert_default().record(time);
        if time >= self.conf.slow {
            tracing::warn!(
                endpoint = %self.address(),
                ?time,
                setting = "spark.rpc.slowMessageThreshold",
                "handling a message took long"
            );
        }
    }

    /// The endpoint's `on_stop` has run.
    pub(crate) fn end(&self) {
        self.state.lock().ended = true;
    }

    pub(crate) fn ending(&self) -> Ending {
        let state = self.state.lock();
        let Counts { handled, late, .. } = state.counts;
        Ending { handled, late, held: state.held.messages, ended: state.ended }
    }

    pub(crate) fn snapshot(&self) -> EndpointSnapshot {
        let processing = self.processing.lock().as_deref().cloned().unwrap_or_default();
        let state = self.state.lock();
        let oldest = state.in_hand_since.or(state.queued_since);
        let Counts { handled, failed, refused, dropped, expired, late: _ } = state.counts;
        EndpointSnapshot {
            name: self.address().name().to_owned(),
            queued: state.held.messages,
            queued_bytes: state.held.bytes,
            lag: oldest.map(|since| since.elapsed()).unwrap_or_default(),
            handled,
            failed,
            refused,
            dropped,
            expired,
            processing,
        }
    }

    /// What tells who wants room that there is some; none if there is already, or never will be.
    fn await_room(&self) -> Option<OwnedNotified> {
        let mut state = self.state.lock();
        let full = state.closed.is_none() && !state.held.fits(self.conf.limit);
        // Made under the lock: it hears of every call of `notify_waiters` from then on.
        full.then(|| Arc::clone(state.room_awaited.get_or_insert_default()).notified_owned())
    }

    fn closed(&self, closed: Closed) -> RpcError {
        let text = match closed {
            Closed::Endpoint => format!("the endpoint {} has been stopped", self.address()),
            Closed::Env => format!("RpcEnv already stopped: {} takes no more messages", self.address()),
            Closed::Runtime => format!("the runtime that ran the endpoint {} has shut down", self.address()),
        };
        RpcError::new(ErrorKind::Stopped, text).with_peer(self.address())
    }

    fn full(&self) -> RpcError {
        let text = format!("the inbox of {} is full: {}", self.address(), self.conf.limit_text());
        RpcError::new(ErrorKind::Limit, text).with_peer(self.address()).retryable()
    }
}

impl<M: Send> Mailbox<M> for Inbox<M> {
    fn post(&self, origin: Origin, build: &mut dyn FnMut() -> Option<M>) -> Result<(), RpcError> {
        self.append(origin, build).map(drop)
    }

    fn room(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            if let Some(room) = self.await_room() {
                room.await;
            }
        })
    }
}

impl<M: Send> Receiver for Inbox<M> {
    fn disconnected(&self, connection: ConnectionId) {
        self.state.lock().close_account(connection);
    }
}
