//! Routes to the endpoints of one peer: their numbers, credit and queues. Without I/O except
//! for pushing to the connection it is given.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use network_common::{RpcFuture, TransportClient};
use slab::Slab;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::connection::PeerConnection;
use super::credit::SendCredit;
use super::outbound::stale_incarnation_error;
use super::pool::PeerPool;
use crate::error::{ErrorKind, RpcError};
use crate::limits::Volume;
use crate::sync::Notify;
use crate::wire::proto::notice::Notice;
use crate::wire::{EncodedMessage, proto};

/// The most routes without a ref that stay open, for the next ref to the same endpoint.
const MAX_UNUSED: usize = 64;
/// After so many failures to push a message, its route is flushed later.
const MAX_FAILURES: u32 = 3;
/// The number of sweeps without a message after which a route is idle.
const IDLE_SWEEPS: u8 = 2;

#[derive(Default)]
pub(super) struct RouteTable {
    pub(super) routes: Slab<Route>,
    by_endpoint: HashMap<Arc<str>, usize>,
    /// The slots of the routes that have a number: their key plus 1.
    numbers: Slab<usize>,
    /// Messages in all queues.
    pub(super) queued: usize,
    unused: usize,
    /// Some queue waits for a number.
    is_number_awaited: bool,
    /// While messages are queued the pool lives without refs, and with it its connections.
    pool: Option<Arc<PeerPool>>,
}

/// A route to one endpoint.
pub(super) struct Route {
    endpoint: Arc<str>,
    number: RouteNumber,
    credit: SendCredit,
    /// Messages that wait for a connection, for the peer's Hello, for a number or for credit.
    queue: VecDeque<QueuedMessage>,
    volume: Volume,
    /// Notified when the queue has capacity again.
    capacity: Arc<Notify>,
    /// Some ask in the queue may be cancelled.
    has_cancelled: bool,
    refs: usize,
    idle_sweeps: u8,
    /// Which credit a message waited for since the last push.
    blocked_by: u8,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum RouteNumber {
    Unopened,
    Open(u32),
    /// CloseRoute has been sent, and no reply has arrived.
    Closing(u32),
}

pub(super) struct QueuedMessage {
    pub(super) message: EncodedMessage,
    /// The incarnation that the ref is bound to, or 0.
    pub(super) incarnation: u64,
    /// `None` for a one-way message.
    pub(super) caller: Option<QueuedResult>,
    pub(super) deadline: Option<Instant>,
}

/// Reports to the caller of a queued ask that it was sent, or why not.
pub(super) type QueuedResult = oneshot::Sender<Result<RpcFuture, RpcError>>;

/// Messages that will not be sent, with the reason. They are failed without a lock.
#[derive(Default)]
pub(super) struct UnsentMessages(pub(super) Vec<(QueuedMessage, Option<RpcError>)>);

impl RouteTable {
    /// Returns the slot of the route to `endpoint`, for one more ref.
    pub(super) fn add_ref(&mut self, endpoint: &str) -> (usize, Arc<Notify>) {
        let slot = match self.by_endpoint.get(endpoint) {
            Some(slot) => *slot,
            None => {
                let endpoint: Arc<str> = endpoint.into();
                let slot = self.routes.insert(Route::new(&endpoint));
                self.by_endpoint.insert(endpoint, slot);
                self.unused += 1;
                slot
            }
        };
        let route = &mut self.routes[slot];
        self.unused -= usize::from(route.refs == 0);
        route.refs += 1;
        (slot, Arc::clone(&route.capacity))
    }

    pub(super) fn remove_ref(&mut self, slot: usize, connection: Option<&Arc<PeerConnection>>) {
        let route = &mut self.routes[slot];
        route.refs -= 1;
        if route.refs > 0 {
            return;
        }
        self.unused += 1;
        if !self.remove_unused(slot)
            && self.unused > MAX_UNUSED
            && let Some(connection) = connection
        {
            self.routes[slot].close(connection);
        }
    }

    /// Removes a route that has no ref, no message and no number.
    fn remove_unused(&mut self, slot: usize) -> bool {
        let is_unused = self.routes.get(slot).is_some_and(|route| {
            route.refs == 0 && route.queue.is_empty() && route.number == RouteNumber::Unopened
        });
        if is_unused {
            let route = self.routes.remove(slot);
            self.by_endpoint.remove(&route.endpoint);
            self.unused -= 1;
        }
        is_unused
    }

    /// Whether the next message of a route can be pushed to `connection` now: the first of its
    /// queue if `is_queued`, otherwise a new one. If not, it has to wait in the queue.
    pub(super) fn can_push(
        &mut self,
        slot: usize,
        connection: &Arc<PeerConnection>,
        incarnation: u64,
        is_queued: bool,
    ) -> Result<bool, RpcError> {
        let route = &mut self.routes[slot];
        if incarnation != 0 {
            match connection.incarnation() {
                Some(other) if other != incarnation => {
                    return Err(stale_incarnation_error(&route.endpoint, connection.address()));
                }
                Some(_) => {}
                None => return Ok(false),
            }
        }
        if !is_queued && !route.queue.is_empty() {
            return Ok(false);
        }
        match route.number {
            RouteNumber::Closing(_) => Ok(false),
            _ if !route.credit.has_credit() => {
                route.blocked_by = route.credit.blocked_by();
                Ok(false)
            }
            RouteNumber::Open(_) => Ok(true),
            RouteNumber::Unopened if self.numbers.len() < connection.max_routes() as usize => {
                Ok(true)
            }
            RouteNumber::Unopened => self.evict(connection),
        }
    }

    /// Closes a route without a ref, or else an idle one, to free its number.
    #[cold]
    fn evict(&mut self, connection: &Arc<PeerConnection>) -> Result<bool, RpcError> {
        self.is_number_awaited = true;
        let is_closing = |route: &Route| matches!(route.number, RouteNumber::Closing(_));
        if !self.routes.iter().any(|(_, route)| is_closing(route)) {
            let evictable = self.routes.iter_mut().map(|(_, route)| route).filter(|route| {
                let is_idle = route.refs == 0 || route.idle_sweeps >= IDLE_SWEEPS;
                is_idle && route.is_open_and_empty()
            });
            let Some(route) = evictable.min_by_key(|route| route.refs.min(1)) else {
                let text = format!(
                    "all {} routes to {} are in use (spark.rpc.maxRoutesPerConnection, here or there)",
                    connection.max_routes(),
                    connection.address()
                );
                return Err(RpcError::new(ErrorKind::Limit, text).with_peer(connection.address()));
            };
            route.close(connection);
        }
        Ok(false)
    }

    /// Completes a message that [`can_push`](Self::can_push) allows, and pushes it by `push`,
    /// which also returns whether that succeeded. The route changes only if it did.
    pub(super) fn push<T>(
        &mut self,
        slot: usize,
        mut message: EncodedMessage,
        push: impl FnOnce(Bytes) -> (T, bool),
    ) -> T {
        let route = &mut self.routes[slot];
        let (number, opens) = match route.number {
            RouteNumber::Open(number) | RouteNumber::Closing(number) => (number, false),
            RouteNumber::Unopened => (self.numbers.vacant_key() as u32 + 1, true),
        };
        message.set_route(number);
        if opens {
            message.open_route(&route.endpoint);
        }
        let len = message.len();
        let (result, is_sent) = push(message.freeze());
        if is_sent {
            route.credit.consume(len);
            route.idle_sweeps = 0;
            if opens {
                route.number = RouteNumber::Open(number);
                self.numbers.insert(slot);
            }
        }
        result
    }

    /// Whether the queue of a route is full, without cancelled asks.
    pub(super) fn is_full(&mut self, slot: usize, limits: Volume) -> bool {
        if !self.routes[slot].volume.is_below(limits) {
            self.remove_cancelled(slot);
        }
        !self.routes[slot].volume.is_below(limits)
    }

    /// Queues a message; `pool` lives until it is sent.
    pub(super) fn enqueue(&mut self, slot: usize, queued: QueuedMessage, pool: &Arc<PeerPool>) {
        let route = &mut self.routes[slot];
        route.volume.add(Volume::message(queued.message.len() as u64));
        route.queue.push_back(queued);
        self.pool.get_or_insert_with(|| Arc::clone(pool));
        self.queued += 1;
    }

    /// Sends the queue of one route, or of all, as far as numbers and credit allow; false if the
    /// connection's write queue is full before that.
    pub(super) fn flush(
        &mut self,
        slot: Option<usize>,
        connection: &Arc<PeerConnection>,
        unsent: &mut UnsentMessages,
    ) -> bool {
        if let Some(slot) = slot {
            return self.flush_route(slot, connection, unsent);
        }
        if self.queued == 0 {
            return true;
        }
        let slots: Vec<usize> = self.routes.iter().map(|(slot, _)| slot).collect();
        slots.into_iter().all(|slot| self.flush_route(slot, connection, unsent))
    }

    fn flush_route(
        &mut self,
        slot: usize,
        connection: &Arc<PeerConnection>,
        unsent: &mut UnsentMessages,
    ) -> bool {
        let mut failures = 0;
        while let Some(queued) = self.routes.get(slot).and_then(|route| route.queue.front()) {
            let (is_cancelled, incarnation) = (queued.is_cancelled(), queued.incarnation);
            let can_push = if is_cancelled {
                Ok(true)
            } else {
                self.can_push(slot, connection, incarnation, true)
            };
            if matches!(can_push, Ok(false)) {
                break;
            }
            let client = &connection.client;
            match client.ready().now_or_never() {
                Some(Ok(())) => {}
                // The end of the connection fails the queues.
                Some(Err(_)) => break,
                None => return false,
            }
            let Some(queued) = self.pop(slot) else { break };
            match can_push {
                Err(error) => unsent.0.push((queued, Some(error))),
                Ok(_) if is_cancelled => {}
                Ok(_) => {
                    if let Err(queued) = self.push_queued(slot, queued, client) {
                        self.put_back(slot, queued);
                        // The write queue has become full, or the connection has ended. A message
                        // that fails for another reason must not be tried forever.
                        failures += 1;
                        if failures > MAX_FAILURES {
                            return false;
                        }
                        continue;
                    }
                }
            }
            self.routes[slot].capacity.notify_waiters();
        }
        self.remove_unused(slot);
        true
    }

    /// The pool that the queues kept alive, if they are empty. It is dropped without a lock, as
    /// much may be dropped with it.
    pub(super) fn release_pool(&mut self) -> Option<Arc<PeerPool>> {
        self.pool.take_if(|_| self.queued == 0)
    }

    /// Takes the first message out of a queue.
    fn pop(&mut self, slot: usize) -> Option<QueuedMessage> {
        let route = &mut self.routes[slot];
        let queued = route.queue.pop_front()?;
        route.volume.remove(Volume::message(queued.message.len() as u64));
        self.queued -= 1;
        Some(queued)
    }

    /// Undoes [`pop`](Self::pop).
    fn put_back(&mut self, slot: usize, queued: QueuedMessage) {
        let route = &mut self.routes[slot];
        route.volume.add(Volume::message(queued.message.len() as u64));
        route.queue.push_front(queued);
        self.queued += 1;
    }

    /// Pushes a message from a queue. Gives it back if it was not sent.
    fn push_queued(
        &mut self,
        slot: usize,
        queued: QueuedMessage,
        client: &TransportClient,
    ) -> Result<(), QueuedMessage> {
        let QueuedMessage { mut message, incarnation, caller, deadline } = queued;
        let (len, blocked_by) = (message.len(), std::mem::take(&mut self.routes[slot].blocked_by));
        if blocked_by != 0 {
            message.set_blocked_by(blocked_by);
        }
        if let Some(deadline) = deadline {
            message.set_timeout(deadline.saturating_duration_since(Instant::now()));
        }
        let mut kept = Bytes::new();
        let (future, is_sent) = self.push(slot, message, |frame| {
            kept = frame.clone();
            let (future, is_sent) = match caller {
                Some(_) => {
                    let (future, is_sent) = push_ask(client, frame);
                    (Some(future), is_sent)
                }
                None => (None, client.send(frame).is_ok()),
            };
            ((future, is_sent), is_sent)
        });
        if is_sent {
            if let Some((caller, future)) = caller.zip(future) {
                let _ = caller.send(Ok(future));
            }
            return Ok(());
        }
        self.routes[slot].blocked_by = blocked_by;
        let message = EncodedMessage::restore(kept, len, deadline.is_some());
        Err(QueuedMessage { message, incarnation, caller, deadline })
    }

    /// The peer granted credit. Returns the slot of the route.
    pub(super) fn on_credit(&mut self, credit: &proto::Credit) -> Option<usize> {
        let slot = self.slot(credit.route)?;
        let route = &mut self.routes[slot];
        if route.number == RouteNumber::Closing(credit.route) {
            // Credit that was granted before the peer read CloseRoute has been returned by it.
            if !credit.keeps_open {
                return None;
            }
            route.number = RouteNumber::Open(credit.route);
        }
        route.credit.add(Volume::new(credit.messages, credit.bytes));
        Some(slot)
    }

    /// The number is free: the peer closed the route, or rejected its opening. Returns which
    /// queue is to be flushed: that of one route, or all.
    pub(super) fn on_route_closed(&mut self, number: u32) -> Option<Option<usize>> {
        let slot = self.slot(number)?;
        self.numbers.remove(number as usize - 1);
        let route = &mut self.routes[slot];
        route.number = RouteNumber::Unopened;
        route.credit = SendCredit::new();
        self.remove_unused(slot);
        Some(Some(slot).filter(|_| !std::mem::take(&mut self.is_number_awaited)))
    }

    fn slot(&self, number: u32) -> Option<usize> {
        self.numbers.get((number as usize).checked_sub(1)?).copied()
    }

    /// The name of the endpoint that a route leads to.
    pub(super) fn endpoint(&self, number: u32) -> Option<Arc<str>> {
        Some(Arc::clone(&self.routes[self.slot(number)?].endpoint))
    }

    /// Closes the routes that have been idle for some sweeps: the peer can grant their credit to
    /// others. Their refs open them again.
    pub(super) fn sweep(&mut self, connection: &Arc<PeerConnection>) {
        for (_, route) in &mut self.routes {
            route.idle_sweeps = route.idle_sweeps.saturating_add(1);
            if route.idle_sweeps > IDLE_SWEEPS && route.is_open_and_empty() {
                route.close(connection);
            }
        }
    }

    /// Removes cancelled asks from a queue.
    fn remove_cancelled(&mut self, slot: usize) {
        let route = &mut self.routes[slot];
        if !std::mem::take(&mut route.has_cancelled) {
            return;
        }
        let (before, volume) = (route.queue.len(), &mut route.volume);
        route.queue.retain(|queued| {
            let is_cancelled = queued.is_cancelled();
            if is_cancelled {
                volume.remove(Volume::message(queued.message.len() as u64));
            }
            !is_cancelled
        });
        self.queued -= before - route.queue.len();
    }

    pub(super) fn remove_all_cancelled(&mut self) {
        let slots: Vec<usize> = self.routes.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            self.remove_cancelled(slot);
            self.remove_unused(slot);
        }
    }

    /// An ask in a queue is cancelled. Returns whether it was the first, so that it no longer
    /// blocks the others.
    pub(super) fn on_cancelled(&mut self, slot: usize) -> bool {
        let Some(route) = self.routes.get_mut(slot) else { return false };
        route.has_cancelled = true;
        route.capacity.notify_waiters();
        let before = route.queue.len();
        while self.routes[slot].queue.front().is_some_and(QueuedMessage::is_cancelled) {
            self.pop(slot);
        }
        let is_unblocked = self.routes[slot].queue.len() < before;
        self.remove_unused(slot);
        is_unblocked
    }

    /// The volume of all queues.
    pub(super) fn volume(&self) -> Volume {
        let mut all = Volume::default();
        self.routes.iter().for_each(|(_, route)| all.add(route.volume));
        all
    }

    /// The connection has ended, and with it all numbers and credit. Takes out the queues.
    pub(super) fn reset(&mut self) -> UnsentMessages {
        let mut unsent = UnsentMessages::default();
        for (_, route) in &mut self.routes {
            unsent.0.extend(route.queue.drain(..).map(|queued| (queued, None)));
            route.volume = Volume::default();
            route.credit = SendCredit::new();
            route.number = RouteNumber::Unopened;
            route.capacity.notify_waiters();
        }
        self.numbers.clear();
        let slots: Vec<usize> = self.routes.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            self.remove_unused(slot);
        }
        self.queued = 0;
        unsent
    }
}

impl Route {
    fn new(endpoint: &Arc<str>) -> Self {
        Self {
            endpoint: Arc::clone(endpoint),
            number: RouteNumber::Unopened,
            credit: SendCredit::new(),
            queue: VecDeque::new(),
            volume: Volume::default(),
            capacity: Arc::default(),
            has_cancelled: false,
            refs: 0,
            idle_sweeps: 0,
            blocked_by: 0,
        }
    }

    fn is_open_and_empty(&self) -> bool {
        matches!(self.number, RouteNumber::Open(_)) && self.queue.is_empty()
    }

    /// Asks the peer to close the route. Nothing is sent over it before the reply.
    fn close(&mut self, connection: &Arc<PeerConnection>) {
        if let (true, RouteNumber::Open(route)) = (self.queue.is_empty(), self.number) {
            self.number = RouteNumber::Closing(route);
            // All of it is returned; a reply that keeps the route open grants anew.
            self.credit = SendCredit::none();
            connection.send_notice(Notice::CloseRoute(proto::CloseRoute { route }));
        }
    }
}

/// Sends an ask. Also returns whether it was sent; if not, the future reports why.
pub(super) fn push_ask(client: &TransportClient, frame: Bytes) -> (RpcFuture, bool) {
    let future = client.send_rpc(frame);
    let is_sent = future.pending_request().is_some();
    (future, is_sent)
}

impl QueuedMessage {
    fn is_cancelled(&self) -> bool {
        self.caller.as_ref().is_some_and(oneshot::Sender::is_closed)
    }
}
