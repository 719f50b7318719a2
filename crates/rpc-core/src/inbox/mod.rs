//! The queue of one endpoint, from which its message loop takes batches.

mod batch;
mod erased_inbox;
mod item;
mod reservation;
mod state;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::Duration;

use futures::future::BoxFuture;

pub(crate) use batch::Batch;
pub(crate) use erased_inbox::ErasedInbox;
pub(crate) use item::{ConnectionEvent, InboxItem};
use state::{InboxState, MessageCounts};
pub(crate) use state::{StopCause, StopCounts};

use crate::address::RpcEndpointAddress;
use crate::ask::{
    ActorId, EndpointInfo, HandlerKey, current_message_handler, decode_request, reject_message,
};
use crate::endpoint::{InboxHandle, IncomingRequest, RpcEndpointRef, RpcMessage};
use crate::error::{ErrorKind, RpcError};
use crate::limits::{CreditLimits, InboxConf, ReservedBytes, Volume};
use crate::message_metadata::{MessageCaller, MessageMetadata};
use crate::method::{is_of_service, split_path};
use crate::metrics::{EndpointSnapshot, Histogram};
use crate::peer::{InboundMessage, RouteTarget, TargetRoutes};
use crate::peer_text::peer_name;
use crate::sync::Mutex;

/// A queue keeps a buffer for at most this many items while its loop is parked.
const MAX_KEPT_CAPACITY: usize = 64;

/// The most events of the kind [`ConnectionEvent::Undelivered`] in a queue.
///
/// Without a limit, a peer could fill the memory with them.
const MAX_UNDELIVERED: u16 = 1024;

/// A queue with many senders and one message loop.
///
/// The loop takes all queued items at once, so it does not lock the state for every message. A
/// message counts against the limits until it has been handled.
pub(crate) struct Inbox<M> {
    state: Mutex<InboxState<M>>,
    /// The durations of handlers. `None` before the first measurement.
    processing: Mutex<Option<Box<Histogram>>>,
    info: Arc<EndpointInfo>,
    conf: Arc<InboxConf>,
    /// Set by the first route from a peer.
    routes: OnceLock<Box<TargetRoutes>>,
    /// Is set soon after `stop_cause`, and is read without the lock.
    is_stopped: AtomicBool,
}

impl<M> Inbox<M> {
    pub(crate) fn new(info: EndpointInfo, conf: Arc<InboxConf>) -> Arc<Self> {
        let (state, processing) = (Mutex::new(InboxState::new()), Mutex::default());
        let (routes, is_stopped) = (OnceLock::new(), AtomicBool::new(false));
        Arc::new(Self { state, processing, info: Arc::new(info), conf, routes, is_stopped })
    }

    pub(crate) fn address(&self) -> &RpcEndpointAddress {
        &self.info.address
    }

    /// Identifies the endpoint among all actors of the process.
    pub(crate) fn id(&self) -> ActorId {
        ActorId::of(&self.info)
    }

    pub(crate) fn make_ref(self: &Arc<Self>) -> RpcEndpointRef<M>
    where
        M: Send + 'static,
    {
        RpcEndpointRef::local(Arc::clone(&self.info), Arc::clone(self) as _)
    }

    /// Marks the inbox as stopped for remote senders, and detaches their routes.
    ///
    /// This returns the credit of all held messages. See [`TargetRoutes::detach_all`].
    fn detach_routes(&self) {
        self.is_stopped.store(true, Ordering::Release);
        if let Some(routes) = self.routes.get() {
            routes.detach_all();
        }
    }

    /// Closes the inbox and fails the queued asks, because the loop has ended.
    ///
    /// The inbox closes first, so that a sender whose ask fails cannot enqueue another message.
    pub(crate) fn close_and_fail(&self) {
        let mut state = self.state.lock();
        let cause = *state.stop_cause.get_or_insert(StopCause::Runtime);
        state.is_closed = true;
        let items = std::mem::take(&mut state.queue);
        // The waker is dropped, because it keeps the threads of an isolated endpoint alive.
        let (_parked, waiters) = (state.parked_loop.take(), state.capacity_waiters.take());
        drop(state);
        if let Some(waiters) = waiters {
            waiters.notify_waiters();
        }
        self.detach_routes();
        self.fail_items(items, cause);
    }

    fn fail_items(&self, items: VecDeque<InboxItem<M>>, cause: StopCause) {
        for item in items {
            if let InboxItem::Message { message, metadata } = item {
                reject_message(metadata.ask_id(), message, &self.stopped_error(cause));
            }
        }
    }

    /// Registers the waker of the loop. Returns false if the queue already has an item.
    ///
    /// `spare` is an empty buffer. The queue keeps the larger of the two buffers that does not
    /// exceed [`MAX_KEPT_CAPACITY`]. The caller drops the other one.
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
        match &mut state.parked_loop {
            Some(parked) => parked.clone_from(waker),
            None => state.parked_loop = Some(waker.clone()),
        }
        true
    }

    /// Records the duration of a handler, and logs a slow one.
    pub(crate) fn record_duration(&self, duration: Duration) {
        self.processing.lock().get_or_insert_default().record(duration);
        if duration >= self.conf.slow_threshold {
            tracing::warn!(
                endpoint = %self.address(),
                ?duration,
                threshold = ?self.conf.slow_threshold,
                setting = "spark.rpc.slowMessageThreshold",
                "a handler was slow"
            );
        }
    }

    /// Records that the endpoint's `on_stop` has returned.
    pub(crate) fn mark_stopped(&self) {
        self.state.lock().has_stopped = true;
    }

    /// Returns whether the loop was dropped before `on_stop` returned, as by a runtime that ends.
    pub(crate) fn is_abandoned(&self) -> bool {
        let state = self.state.lock();
        state.is_closed && !state.has_stopped
    }

    fn stopped_error(&self, cause: StopCause) -> RpcError {
        let address = self.address();
        let text = match cause {
            StopCause::Endpoint => format!("the endpoint {address} has been stopped"),
            StopCause::Env => {
                format!("RpcEnv already stopped: {address} accepts no more messages")
            }
            StopCause::Runtime => {
                format!("the tokio runtime of the endpoint {address} has shut down")
            }
        };
        RpcError::new(ErrorKind::Stopped, text).with_peer(address)
    }

    fn self_wait_error(&self) -> RpcError {
        let text = format!(
            "deadlock: a handler of {} waits for capacity of its own inbox, which is full until \
             this handler ends: use `send`, or `send_wait` in a spawned task; {}",
            self.address(),
            self.conf.limit_text()
        );
        RpcError::new(ErrorKind::Deadlock, text).with_peer(self.address())
    }

    fn full_error(&self) -> RpcError {
        let text = format!("the inbox of {} is full: {}", self.address(), self.conf.limit_text());
        RpcError::new(ErrorKind::Limit, text).with_peer(self.address()).mark_retryable()
    }
}

impl<M: Send> InboxHandle<M> for Inbox<M> {
    fn post(
        &self,
        metadata: MessageMetadata,
        build: &mut dyn FnMut() -> Option<M>,
    ) -> Result<(), RpcError> {
        // A message within its route's credit is accepted in any case: its capacity was granted.
        let is_covered = metadata.permit.as_ref().is_some_and(|permit| permit.is_covered);
        let reserved = self.reserve(Volume::message(metadata.bytes::<M>()), is_covered)?;
        if let Some(message) = build() {
            reserved.push(message, metadata);
        }
        Ok(())
    }

    fn wait_for_capacity(&self) -> BoxFuture<'_, Result<(), RpcError>> {
        Box::pin(async {
            let mut waiting = WaitingHandler { inbox: self, handler: None };
            let notified = {
                let mut state = self.state.lock();
                if state.stop_cause.is_some() || state.held.is_below(self.conf.limit) {
                    return Ok(());
                }
                if self.id().is_current_endpoint() {
                    waiting.handler = current_message_handler();
                    waiting.handler.inspect(|handler| state.add_waiting_handler(*handler));
                    if self.id().is_blocked_by_current() || state.is_blocked_by_handlers() {
                        drop(state);
                        return Err(self.self_wait_error());
                    }
                }
                // Made under the lock, so that it receives every later `notify_waiters`.
                Arc::clone(state.capacity_waiters.get_or_insert_default()).notified_owned()
            };
            notified.await;
            drop(waiting);
            Ok(())
        })
    }
}

/// A handler of an endpoint that waits for capacity of the endpoint's own inbox.
struct WaitingHandler<'a, M> {
    inbox: &'a Inbox<M>,
    /// `None` if it is not registered in the state of the inbox.
    handler: Option<HandlerKey>,
}

impl<M> Drop for WaitingHandler<'_, M> {
    fn drop(&mut self) {
        if let Some(handler) = self.handler {
            self.inbox.state.lock().remove_waiting_handler(handler);
        }
    }
}

impl<M: RpcMessage> ErasedInbox for Inbox<M> {
    fn id(&self) -> ActorId {
        Self::id(self)
    }

    fn services(&self) -> &'static [&'static str] {
        M::SERVICES
    }

    fn message_type(&self) -> &'static str {
        std::any::type_name::<M>()
    }

    fn stop_counts(&self) -> StopCounts {
        let state = self.state.lock();
        let MessageCounts { handled, rejected_after_stop, .. } = state.counts;
        let (held, has_stopped) = (state.held.messages, state.has_stopped);
        StopCounts { handled, rejected_after_stop, held, has_stopped }
    }

    fn snapshot(&self) -> EndpointSnapshot {
        let processing = self.processing.lock().as_deref().cloned().unwrap_or_default();
        let state = self.state.lock();
        let oldest = state.busy_since.or(state.queued_since);
        let MessageCounts { handled, failed, rejected, dropped, expired, .. } = state.counts;
        EndpointSnapshot {
            name: self.address().name().to_owned(),
            held: state.held.messages,
            held_bytes: state.held.bytes,
            lag: oldest.map(|since| since.elapsed()).unwrap_or_default(),
            handled,
            failed,
            rejected,
            dropped,
            expired,
            processing,
        }
    }

    /// Enqueues an event, even if the inbox is full.
    ///
    /// Discards an undelivered-event beyond [`MAX_UNDELIVERED`], and all events after the stop.
    fn post_event(&self, event: ConnectionEvent, reserved: Arc<ReservedBytes>) {
        let mut state = self.state.lock();
        let is_over_limit = match event {
            ConnectionEvent::Undelivered(..) => {
                state.undelivered = state.undelivered.saturating_add(1);
                state.undelivered > MAX_UNDELIVERED
            }
            ConnectionEvent::Connected(_)
            | ConnectionEvent::Disconnected(_)
            | ConnectionEvent::NetworkError(..) => false,
        };
        if state.stop_cause.is_none() && !is_over_limit {
            state.queue.push_back(InboxItem::Event(event, reserved));
            let parked = state.parked_loop.take();
            drop(state);
            if let Some(parked) = parked {
                parked.wake();
            }
        }
    }

    fn stop(&self, cause: StopCause) {
        let mut state = self.state.lock();
        if state.stop_cause.is_none() {
            state.stop_cause = Some(cause);
            state.is_stop_due = true;
            let (parked, waiters) = (state.push_due_stop(), state.capacity_waiters.take());
            drop(state);
            if let Some(parked) = parked {
                parked.wake();
            }
            if let Some(waiters) = waiters {
                waiters.notify_waiters();
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
            return Err(service_mismatch_error(self.address(), &[split_path(path).0], M::SERVICES));
        }
        let caller = inbound.ask.as_ref().map(|ask| MessageCaller::Remote(ask.key));
        let mut metadata = MessageMetadata { caller, permit: inbound.permit.take(), span: None };
        let ask = metadata.ask_id();
        let decode = || {
            let (tracer, header) = (&self.info.asks.tracer, &inbound.header);
            metadata.span = tracer.start_remote_span(self.address().name(), header.traceparent);
            M::decode(IncomingRequest::new(inbound))
        };
        let mut message = Some(decode_request(ask, decode)?);
        let posted = self.post(metadata, &mut || message.take());
        if let (Err(error), Some(message)) = (&posted, message) {
            reject_message(ask, message, error);
        }
        posted
    }
}

/// Makes the error for a request or lookup of services that the endpoint does not have.
pub(crate) fn service_mismatch_error(
    endpoint: &RpcEndpointAddress,
    wanted: &[&str],
    served: &[&str],
) -> RpcError {
    let served =
        if served.is_empty() { "local messages only".to_owned() } else { served.join(", ") };
    let wanted = wanted.join(", ");
    let (served, wanted) = (peer_name(&served), peer_name(&wanted));
    let text =
        format!("the endpoint {} serves {served}, not {wanted}", peer_name(&endpoint.to_string()));
    RpcError::new(ErrorKind::ServiceMismatch, text).with_peer(endpoint)
}
