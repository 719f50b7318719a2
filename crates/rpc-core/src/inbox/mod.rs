//! The queue of one endpoint.

mod batch;
mod erased_inbox;
mod state;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;

pub(crate) use batch::Batch;
pub(crate) use erased_inbox::ErasedInbox;
use state::{InboxState, MessageCounts};

use crate::address::{RpcAddress, RpcEndpointAddress};
use crate::ask::EndpointInfo;
use crate::ask::{ActorId, decode_request, reject_message};
use crate::endpoint::InboxHandle;
use crate::endpoint::RpcEndpointRef;
use crate::endpoint::{IncomingRequest, RpcMessage};
use crate::error::{ErrorKind, RpcError};
use crate::limits::{CreditLimits, InboxConf, OverflowPolicy, Volume};
use crate::message_metadata::{MessageCaller, MessageMetadata};
use crate::method::{is_of_service, split};
use crate::metrics::{EndpointSnapshot, Histogram};
use crate::peer::{InboundMessage, RouteTarget, TargetRoutes};
use crate::sync::{Mutex, Notify};

/// A queue that keeps its buffer while parked only up to this many items.
const MAX_KEPT_CAPACITY: usize = 64;

/// So many refusals of messages wait at most to be told to an endpoint: unlike connections, a peer
/// has any number of them.
const MAX_UNDELIVERED: u16 = 1024;

/// What an endpoint is to do. Starting is not among it: a loop begins with it.
pub(crate) enum InboxItem<M> {
    Message { message: M, metadata: MessageMetadata },
    Event(ConnectionEvent),
    Stop,
}

/// What befell a connection, or a message that went over it.
#[derive(Clone, Debug)]
pub(crate) enum ConnectionEvent {
    Connected(RpcAddress),
    Disconnected(RpcAddress),
    NetworkError(RpcError, RpcAddress),
    Undelivered(RpcError, RpcAddress),
}

/// Many put in, one loop takes out: everything at once, so the lock is taken twice per batch and
/// not per message.
///
/// A message counts against the limits until it has been handled, so what the loop has in hand
/// counts too.
pub(crate) struct Inbox<M> {
    state: Mutex<InboxState<M>>,
    /// How long messages took. There with the first that was measured.
    processing: Mutex<Option<Box<Histogram>>>,
    about: Arc<EndpointInfo>,
    conf: Arc<InboxConf>,
    /// Present with the first route.
    routes: OnceLock<Box<TargetRoutes>>,
    is_stopped: AtomicBool,
}

/// What has become of messages, for the report of a shutdown.
pub(crate) struct StopCounts {
    pub(crate) handled: u64,
    pub(crate) late: u64,
    pub(crate) held: u64,
    /// The endpoint has been stopped, to the end of its `on_stop`.
    pub(crate) ended: bool,
}

/// Why nothing goes in any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopCause {
    EndpointStopped,
    EnvStopped,
    /// The loop's task was dropped, as happens when its runtime shuts down.
    RuntimeStopped,
}

impl<M> Inbox<M> {
    pub(crate) fn new(about: EndpointInfo, conf: Arc<InboxConf>) -> Arc<Self> {
        let (state, processing) = (Mutex::new(InboxState::new()), Mutex::default());
        let (routes, is_stopped) = (OnceLock::new(), AtomicBool::new(false));
        Arc::new(Self { state, processing, about: Arc::new(about), conf, routes, is_stopped })
    }

    pub(crate) fn address(&self) -> &RpcEndpointAddress {
        &self.about.address
    }

    pub(crate) fn id(&self) -> ActorId {
        ActorId::of(&self.about)
    }

    pub(crate) fn make_ref(self: &Arc<Self>) -> RpcEndpointRef<M>
    where
        M: Send + 'static,
    {
        RpcEndpointRef::local(Arc::clone(&self.about), Arc::clone(self) as _)
    }

    /// Returns the credit of all messages held to their senders.
    fn detach_routes(&self) {
        self.is_stopped.store(true, Ordering::Release);
        if let Some(routes) = self.routes.get() {
            routes.detach_all();
        }
    }

    /// The loop has ended: takes nothing more and fails what is left, by dropping it after the door
    /// is shut.
    pub(crate) fn close_and_fail(&self) {
        let mut state = self.state.lock();
        let closed = *state.closed.get_or_insert(StopCause::RuntimeStopped);
        let left = std::mem::take(&mut state.queue);
        // The waker keeps an isolated endpoint's threads.
        let (_parked, room) = (state.parked.take(), state.room_awaited.take());
        drop(state);
        if let Some(room) = room {
            room.notify_waiters();
        }
        self.detach_routes();
        self.discard(left, closed);
    }

    fn discard(&self, items: VecDeque<InboxItem<M>>, why: StopCause) {
        for item in items {
            if let InboxItem::Message { message, metadata } = item {
                reject_message(metadata.ask_id(), message, &self.stopped_error(why));
            }
        }
    }

    /// Has `waker` woken by the next item; false if there is one already. `spare` is an empty
    /// buffer to go on with.
    pub(crate) fn park(&self, waker: &Waker, spare: &mut VecDeque<InboxItem<M>>) -> bool {
        let mut state = self.state.lock();
        if !state.queue.is_empty() {
            return false;
        }
        if (state.queue.capacity() < spare.capacity() && spare.capacity() <= MAX_KEPT_CAPACITY)
            || state.queue.capacity() > MAX_KEPT_CAPACITY
        {
            std::mem::swap(&mut state.queue, spare);
        }
        if state.queue.capacity() > MAX_KEPT_CAPACITY {
            state.queue = VecDeque::new();
        }
        match &mut state.parked {
            Some(parked) => parked.clone_from(waker),
            None => state.parked = Some(waker.clone()),
        }
        true
    }

    /// The handling of a message has taken so long.
    pub(crate) fn record_duration(&self, time: Duration) {
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
    pub(crate) fn mark_stopped(&self) {
        self.state.lock().ended = true;
    }

    fn stopped_error(&self, closed: StopCause) -> RpcError {
        let text = match closed {
            StopCause::EndpointStopped => {
                format!("the endpoint {} has been stopped", self.address())
            }
            StopCause::EnvStopped => {
                format!("RpcEnv already stopped: {} takes no more messages", self.address())
            }
            StopCause::RuntimeStopped => {
                format!("the runtime that ran the endpoint {} has shut down", self.address())
            }
        };
        RpcError::new(ErrorKind::Stopped, text).with_peer(self.address())
    }

    fn full_error(&self) -> RpcError {
        let text = format!("the inbox of {} is full: {}", self.address(), self.conf.limit_text());
        RpcError::new(ErrorKind::Limit, text).with_peer(self.address()).retryable()
    }
}

impl<M: Send> InboxHandle<M> for Inbox<M> {
    fn post(
        &self,
        metadata: MessageMetadata,
        build: &mut dyn FnMut() -> Option<M>,
    ) -> Result<(), RpcError> {
        let mut dropped = None;
        let volume = Volume::message(metadata.bytes::<M>());
        let mut state = self.state.lock();
        if let Some(closed) = state.closed {
            state.counts.rejected_after_stop += 1;
            drop(state);
            return Err(self.stopped_error(closed));
        }
        if !state.held.fits(self.conf.limit)
            && !metadata.permit.as_ref().is_some_and(|permit| permit.is_covered)
        {
            match self.conf.overflow {
                // None if all messages are being handled.
                OverflowPolicy::DropOldest => dropped = state.take_oldest(),
                OverflowPolicy::Reject => {}
            }
            if dropped.is_none() {
                state.counts.refused += 1;
                drop(state);
                return Err(self.full_error());
            }
            state.counts.dropped += 1;
        }
        let Some(message) = build() else { return Ok(()) };
        state.held.add(volume);
        let parked = state.parked.take();
        // While the loop is parked it has nothing else to do, so the clock can be spared.
        if parked.is_none() && state.queue.is_empty() {
            state.queued_since = Some(Instant::now());
        }
        state.queue.push_back(InboxItem::Message { message, metadata });
        drop(state);
        if let Some(loop_) = parked {
            loop_.wake();
        }
        if let Some((message, metadata)) = dropped {
            tracing::warn!(endpoint = %self.address(), "the inbox is full: its oldest message is dropped");
            reject_message(metadata.ask_id(), message, &self.full_error());
            self.state.lock().held.remove(Volume::message(metadata.bytes::<M>()));
        }
        Ok(())
    }

    fn wait_for_capacity(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let room = {
                let mut state = self.state.lock();
                let full = state.closed.is_none() && !state.held.fits(self.conf.limit);
                // Made under the lock: it hears of every call of `notify_waiters` from then on.
                let room = || Arc::clone(state.room_awaited.get_or_insert_default());
                full.then(room).map(Notify::notified_owned)
            };
            if let Some(room) = room {
                room.await;
            }
        })
    }
}

impl<M: RpcMessage> ErasedInbox for Inbox<M> {
    fn services(&self) -> &'static [&'static str] {
        M::SERVICES
    }

    fn message_type(&self) -> &'static str {
        std::any::type_name::<M>()
    }

    fn stop_counts(&self) -> StopCounts {
        let state = self.state.lock();
        let MessageCounts { handled, rejected_after_stop: late, .. } = state.counts;
        StopCounts { handled, late, held: state.held.messages, ended: state.ended }
    }

    fn snapshot(&self) -> EndpointSnapshot {
        let processing = self.processing.lock().as_deref().cloned().unwrap_or_default();
        let state = self.state.lock();
        let oldest = state.in_hand_since.or(state.queued_since);
        let MessageCounts { handled, failed, refused, dropped, expired, rejected_after_stop: _ } =
            state.counts;
        EndpointSnapshot {
            name: self.address().name().to_owned(),
            held: state.held.messages,
            held_bytes: state.held.bytes,
            lag: oldest.map(|since| since.elapsed()).unwrap_or_default(),
            handled,
            failed,
            rejected: refused,
            dropped,
            expired,
            processing,
        }
    }

    /// Events of connections are few and bypass the limits; of messages that were refused so many
    /// wait and no more.
    fn post_event(&self, event: ConnectionEvent) {
        let mut state = self.state.lock();
        let too_many = match event {
            ConnectionEvent::Undelivered(..) => {
                state.undelivered = state.undelivered.saturating_add(1);
                state.undelivered > MAX_UNDELIVERED
            }
            ConnectionEvent::Connected(_)
            | ConnectionEvent::Disconnected(_)
            | ConnectionEvent::NetworkError(..) => false,
        };
        // An endpoint that has stopped is told nothing more.
        if state.closed.is_none() && !too_many {
            state.queue.push_back(InboxItem::Event(event));
            let parked = state.parked.take();
            drop(state);
            if let Some(loop_) = parked {
                loop_.wake();
            }
        }
    }

    /// Takes nothing more; what is queued is handled, then the endpoint's `on_stop` runs. Only the
    /// first call counts.
    fn stop(&self, why: StopCause) {
        let mut state = self.state.lock();
        if state.closed.is_none() {
            state.closed = Some(why);
            state.queue.push_back(InboxItem::Stop);
            let (parked, room) = (state.parked.take(), state.room_awaited.take());
            drop(state);
            if let Some(loop_) = parked {
                loop_.wake();
            }
            if let Some(room) = room {
                room.notify_waiters();
            }
            self.detach_routes();
        }
    }
}

impl<M: RpcMessage> RouteTarget for Inbox<M> {
    fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Acquire)
    }

    fn credit_limits(&self) -> &CreditLimits {
        &self.conf.credit
    }

    fn routes(&self) -> &TargetRoutes {
        self.routes.get_or_init(Box::default)
    }

    fn held(&self) -> Volume {
        self.state.lock().held
    }

    fn deliver(self: Arc<Self>, inbound: &mut InboundMessage<'_>) -> Result<(), RpcError> {
        let path = inbound.header.path;
        if !M::SERVICES.iter().any(|service| is_of_service(path, service)) {
            return Err(service_mismatch(self.address(), &[split(path).0], M::SERVICES));
        }
        let span =
            self.about.asks.tracer.arrived(self.address().name(), inbound.header.traceparent);
        let caller = inbound.ask.as_ref().map(|ask| MessageCaller::Remote(ask.key));
        let metadata = MessageMetadata { caller, permit: inbound.permit.take(), span };
        let ask = metadata.ask_id();
        let mut message = Some(decode_request(ask, || M::decode(IncomingRequest::new(inbound)))?);
        let appended = self.post(metadata, &mut || message.take());
        if let (Err(why), Some(message)) = (&appended, message) {
            reject_message(ask, message, why);
        }
        appended
    }
}

pub(crate) fn service_mismatch(
    endpoint: &RpcEndpointAddress,
    wanted: &[&str],
    served: &[&str],
) -> RpcError {
    let served =
        if served.is_empty() { "local messages only".to_owned() } else { served.join(", ") };
    // Both are cut: a peer may name any number of services.
    let text =
        format!("the endpoint {endpoint} serves {served:.500}, not {:.500}", wanted.join(", "));
    RpcError::new(ErrorKind::ServiceMismatch, text).with_peer(endpoint)
}
