//! Routes that a peer opened: the receiver's side of flow control, and what each leads to.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use foldhash::HashMap;
use network_common::ConnectionId;

use super::connection::{PeerConnection, PeerShared};
use super::credit::RecvCredit;
use super::remote_ask::RemoteAsk;
use crate::error::{ErrorKind, RpcError, no_reply_error};
use crate::limits::{ByteBudget, CreditLimits, Volume};
use crate::sync::Mutex;
use crate::wire::proto::notice::Notice;
use crate::wire::{MessageHeader, proto};

/// The most bytes of the names of all open routes of a connection.
const MAX_NAME_BYTES: usize = 1 << 20;
/// What one route costs beside its name, as the budget counts it.
const ROUTE_BYTES: u64 = 256;
/// The number of routes with short names that every connection may open, even when the routes of
/// others hold the whole budget.
const GUARANTEED_ROUTES: usize = 8;

/// What a route leads to: an endpoint's inbox.
pub(crate) trait RouteTarget: Send + Sync {
    /// Whether the endpoint has been stopped, so that another one may have its name.
    fn is_stopped(&self) -> bool;
    /// How large the windows of routes to it may be.
    fn credit_limits(&self) -> &CreditLimits;
    /// The routes that lead to it.
    fn routes(&self) -> &TargetRoutes;
    /// The volume of the messages that it holds.
    fn held(&self) -> Volume;
    /// Decodes and enqueues a message. `message.ask` is left in place if that fails before
    /// the ask has been handed to a context.
    fn deliver(self: Arc<Self>, message: &mut InboundMessage<'_>) -> Result<(), RpcError>;
}

/// A message that arrived over a route, not yet decoded.
pub(crate) struct InboundMessage<'a> {
    pub(crate) header: MessageHeader<'a>,
    /// The header's slices are parts of it.
    pub(crate) frame: &'a Bytes,
    pub(crate) connection: &'a Arc<PeerConnection>,
    /// `None` for a one-way message.
    pub(crate) ask: Option<Box<RemoteAsk>>,
    /// Moves to the inbox with the message.
    pub(crate) permit: Option<MessagePermit>,
}

/// A request whose context was never made gets a response, too.
impl Drop for InboundMessage<'_> {
    fn drop(&mut self) {
        if let Some(ask) = self.ask.take() {
            ask.reject(&no_reply_error());
        }
    }
}

/// The routes that lead to one endpoint, and the credit that their senders hold together.
#[derive(Default)]
pub(crate) struct TargetRoutes {
    outstanding_messages: AtomicU64,
    outstanding_bytes: AtomicU64,
    routes: Mutex<HashMap<(ConnectionId, u32), AttachedRoute>>,
}

type AttachedRoute = (Weak<PeerConnection>, RouteKey);

/// Names a route of a connection for as long as it leads to the same target. Numbers are reused,
/// epochs are not.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct RouteKey {
    number: u32,
    epoch: u32,
}

impl TargetRoutes {
    fn outstanding(&self) -> Volume {
        let messages = self.outstanding_messages.load(Ordering::Relaxed);
        Volume::new(messages, self.outstanding_bytes.load(Ordering::Relaxed))
    }

    /// Replaces the credit of one route in the sum.
    fn change(&self, before: Volume, after: Volume) {
        for (sum, before, after) in [
            (&self.outstanding_messages, before.messages, after.messages),
            (&self.outstanding_bytes, before.bytes, after.bytes),
        ] {
            // Wraps where the sum decreases.
            sum.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
        }
    }

    /// The endpoint has stopped: its senders get back the credit of all messages that it holds,
    /// so that their next message reaches its successor, or fails because there is none.
    pub(crate) fn detach_all(&self) {
        let routes = std::mem::take(&mut *self.routes.lock());
        for (connection, key) in routes.into_values() {
            if let Some(connection) = connection.upgrade() {
                connection.detach(key);
            }
        }
    }
}

/// The routes that the peer of one connection has opened, by their number.
#[derive(Default)]
pub(crate) struct InboundRoutes {
    routes: HashMap<u32, InboundRoute>,
    by_name: HashMap<Arc<str>, u32>,
    name_bytes: usize,
    next_epoch: u32,
}

struct InboundRoute {
    endpoint: Arc<str>,
    credit: RecvCredit,
    /// `None` while no endpoint has the name.
    target: Option<Weak<dyn RouteTarget>>,
    epoch: u32,
}

impl InboundRoute {
    fn target(&self) -> Option<Arc<dyn RouteTarget>> {
        self.target.as_ref()?.upgrade()
    }

    /// Changes the credit, and with it the sum of the target.
    fn change_credit<T>(
        &mut self,
        target: Option<&dyn RouteTarget>,
        change: impl FnOnce(&mut RecvCredit) -> T,
    ) -> T {
        let before = self.credit.outstanding();
        let result = change(&mut self.credit);
        if let Some(target) = target {
            target.routes().change(before, self.credit.outstanding());
        }
        result
    }
}

impl InboundRoutes {
    fn find(&mut self, key: RouteKey) -> Option<&mut InboundRoute> {
        self.routes.get_mut(&key.number).filter(|route| route.epoch == key.epoch)
    }

    fn new_epoch(&mut self) -> u32 {
        self.next_epoch = self.next_epoch.wrapping_add(1);
        self.next_epoch
    }

    fn open(&mut self, number: u32, endpoint: &str, shared: &PeerShared) -> Result<(), RpcError> {
        let rejected = |why: String| {
            let text = format!("route {number} to {endpoint:.200} cannot be opened: {why}");
            Err(RpcError::new(ErrorKind::Limit, text))
        };
        if number == 0 || number > shared.max_routes {
            return rejected(format!(
                "routes have numbers from 1 to {} (spark.rpc.maxRoutesPerConnection)",
                shared.max_routes
            ));
        }
        if self.routes.contains_key(&number) {
            return rejected("the number is in use".to_owned());
        }
        if self.by_name.contains_key(endpoint) {
            return rejected("another route leads to this endpoint".to_owned());
        }
        if self.name_bytes + endpoint.len() > MAX_NAME_BYTES {
            return rejected(format!(
                "the names of all routes of a connection may have {MAX_NAME_BYTES} bytes"
            ));
        }
        let bytes = ROUTE_BYTES + endpoint.len() as u64;
        if self.routes.len() < GUARANTEED_ROUTES && endpoint.len() <= ROUTE_BYTES as usize {
            shared.route_budget.reserve(bytes);
        } else if !shared.route_budget.try_reserve(bytes) {
            return Err(budget_error("routes", &shared.route_budget));
        }
        let endpoint: Arc<str> = endpoint.into();
        self.name_bytes += endpoint.len();
        self.by_name.insert(Arc::clone(&endpoint), number);
        let epoch = self.new_epoch();
        let route = InboundRoute { endpoint, credit: RecvCredit::new(), target: None, epoch };
        self.routes.insert(number, route);
        Ok(())
    }

    fn close(&mut self, number: u32, shared: &PeerShared) -> Option<InboundRoute> {
        let route = self.routes.remove(&number)?;
        self.by_name.remove(&route.endpoint);
        self.name_bytes -= route.endpoint.len();
        shared.route_budget.release(ROUTE_BYTES + route.endpoint.len() as u64);
        Some(route)
    }
}

/// What an endpoint could still grant to anyone.
fn free_capacity(target: &dyn RouteTarget) -> Volume {
    target.credit_limits().inbox.minus(target.held()).minus(target.routes().outstanding())
}

#[cold]
fn budget_error(what: &str, budget: &ByteBudget) -> RpcError {
    let text = format!(
        "{what} hold all of the {} bytes that this environment has for them (spark.rpc.inbox.maxTotalBytes)",
        budget.limit
    );
    RpcError::new(ErrorKind::Limit, text).retryable()
}

impl PeerConnection {
    /// Counts a message on its route, opening the route first if the message says so. Returns
    /// where it leads and the permit that returns its credit. `look_up` finds an endpoint by
    /// name; no lock is held while it runs.
    pub(crate) fn receive(
        self: &Arc<Self>,
        header: &MessageHeader<'_>,
        bytes: u64,
        look_up: impl FnOnce(&str) -> Result<Arc<dyn RouteTarget>, RpcError>,
    ) -> Result<(Arc<dyn RouteTarget>, MessagePermit), RpcError> {
        let mut inbound = self.inbound.lock();
        if !header.endpoint.is_empty() {
            let opened = self
                .check_identity()
                .and_then(|()| inbound.open(header.route, header.endpoint, &self.shared));
            if let Err(error) = opened {
                if !inbound.routes.contains_key(&header.route) {
                    self.send_notice(Notice::RouteClosed(proto::RouteClosed {
                        route: header.route,
                    }));
                }
                return Err(error);
            }
        }
        let Some(route) = inbound.routes.get_mut(&header.route) else {
            let text = format!("no route {} has been opened over this connection", header.route);
            return Err(RpcError::new(ErrorKind::Rejected, text));
        };
        let mut target = route.target().filter(|target| !target.is_stopped()).map(Ok);
        if target.is_none() {
            let endpoint = Arc::clone(&route.endpoint);
            drop(inbound);
            let found = look_up(&endpoint);
            inbound = self.inbound.lock();
            if let Ok(found) = &found {
                self.attach(&mut inbound, header.route, found);
            }
            target = Some(found);
        }
        let Some((route, target)) = inbound.routes.get_mut(&header.route).zip(target) else {
            return Err(RpcError::new(ErrorKind::Network, "the connection has ended"));
        };
        let is_covered = route.credit.has_outstanding();
        let counted = target.as_ref().ok().map(|target| &**target);
        let more = route.change_credit(counted, |credit| {
            let more = counted.filter(|_| header.blocked_by != 0).and_then(|target| {
                let count = target.routes().routes.lock().len() as u64;
                credit.on_sender_blocked(
                    header.blocked_by,
                    free_capacity(target),
                    target.credit_limits(),
                    count,
                )
            });
            credit.on_received(bytes);
            more
        });
        let key = RouteKey { number: header.route, epoch: route.epoch };
        self.send_credit(key.number, more);
        drop(inbound);
        if !self.shared.budget.try_reserve(bytes) {
            self.release(key, Volume::message(bytes));
            return Err(budget_error("messages from the network", &self.shared.budget));
        }
        let (connection, bytes) = (Arc::clone(self), bytes as u32);
        let permit = MessagePermit { connection, key, bytes, is_covered, held: true };
        Ok((target?, permit))
    }

    /// Makes a route lead to `target` from now on.
    fn attach(
        self: &Arc<Self>,
        inbound: &mut InboundRoutes,
        number: u32,
        target: &Arc<dyn RouteTarget>,
    ) {
        let epoch = inbound.new_epoch();
        let Some(route) = inbound.routes.get_mut(&number).filter(|_| !target.is_stopped()) else {
            return;
        };
        let key = RouteKey { number, epoch };
        self.leave_target(number, route);
        route.epoch = epoch;
        route.target = Some(Arc::downgrade(target));
        let entry = (Arc::downgrade(self), key);
        target.routes().routes.lock().insert((self.client.id(), number), entry);
        let more = route.credit.restart(Some(target.credit_limits()));
        // The credit that the sender has already is the new target's to honor.
        target.routes().change(Volume::default(), route.credit.outstanding());
        self.send_credit(number, more);
    }

    /// The endpoint that a route leads to has stopped.
    fn detach(self: &Arc<Self>, key: RouteKey) {
        let mut inbound = self.inbound.lock();
        let epoch = inbound.new_epoch();
        let Some(route) = inbound.find(key) else { return };
        route.epoch = epoch;
        route.target = None;
        let more = route.credit.restart(None);
        self.send_credit(key.number, more);
    }

    /// Messages of a route have been handled.
    fn release(self: &Arc<Self>, key: RouteKey, done: Volume) {
        let mut inbound = self.inbound.lock();
        let Some(route) = inbound.find(key) else { return };
        let target = route.target();
        let target = target.as_deref();
        let free = || target.map(|target| (free_capacity(target), target.credit_limits()));
        let more = route.change_credit(target, |credit| credit.on_handled(done, free));
        self.send_credit(key.number, more);
        // The target may be the last reference to an inbox, which is dropped without a lock.
        drop(inbound);
    }

    /// Called under the lock of the routes: the number may be another route's afterwards.
    fn send_credit(self: &Arc<Self>, route: u32, more: Option<Volume>) {
        if let Some(Volume { messages, bytes }) = more {
            self.send_notice(Notice::Credit(proto::Credit {
                route,
                messages,
                bytes,
                keeps_open: false,
            }));
        }
    }

    /// The peer does not need a route any more.
    pub(crate) fn on_close_route(self: &Arc<Self>, number: u32) {
        let mut inbound = self.inbound.lock();
        let Some(route) = inbound.routes.get_mut(&number) else { return };
        if route.credit.has_unhandled() {
            let target = route.target();
            let more = route.change_credit(target.as_deref(), RecvCredit::on_credit_returned);
            // A grant of nothing is a reply, too.
            let Volume { messages, bytes } = more.unwrap_or_default();
            let credit = proto::Credit { route: number, messages, bytes, keeps_open: true };
            self.send_notice(Notice::Credit(credit));
        } else if let Some(route) = inbound.close(number, &self.shared) {
            self.leave_target(number, &route);
            self.send_notice(Notice::RouteClosed(proto::RouteClosed { route: number }));
        }
    }

    fn leave_target(&self, number: u32, route: &InboundRoute) {
        if let Some(target) = route.target() {
            target.routes().change(route.credit.outstanding(), Volume::default());
            target.routes().routes.lock().remove(&(self.client.id(), number));
        }
    }

    /// The connection has ended.
    pub(super) fn close_inbound(&self) {
        let mut inbound = self.inbound.lock();
        let numbers: Vec<u32> = inbound.routes.keys().copied().collect();
        for number in numbers {
            if let Some(route) = inbound.close(number, &self.shared) {
                self.leave_target(number, &route);
            }
        }
    }
}

/// One received message, counted in the credit of its route and in the budget of its
/// environment. Dropped, it returns both.
pub(crate) struct MessagePermit {
    pub(crate) connection: Arc<PeerConnection>,
    key: RouteKey,
    /// A frame has less than 4 GiB. The permit is small because it is moved with its message.
    bytes: u32,
    /// Whether the sender had credit, so that the inbox must accept the message.
    pub(crate) is_covered: bool,
    /// The credit has not been returned.
    held: bool,
}

impl MessagePermit {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.into()
    }

    /// The message has been handled. Adds its credit to `released`, to be returned with that of
    /// others.
    pub(crate) fn release_with(mut self, released: &mut ReleasedVolume) {
        self.held = false;
        released.add(&self);
    }
}

impl Drop for MessagePermit {
    fn drop(&mut self) {
        self.connection.shared.budget.release(self.bytes());
        if self.held {
            self.connection.release(self.key, Volume::message(self.bytes()));
        }
    }
}

/// The volume of messages that have been handled, by route. Consecutive messages of a route are
/// one entry.
#[derive(Default)]
pub(crate) struct ReleasedVolume(Vec<(Arc<PeerConnection>, RouteKey, Volume)>);

impl ReleasedVolume {
    fn add(&mut self, permit: &MessagePermit) {
        let volume = Volume::message(permit.bytes());
        match self.0.last_mut() {
            Some((connection, key, sum))
                if *key == permit.key && Arc::ptr_eq(connection, &permit.connection) =>
            {
                sum.add(volume);
            }
            _ => self.0.push((Arc::clone(&permit.connection), permit.key, volume)),
        }
    }

    pub(crate) fn total(&self) -> Volume {
        let mut total = Volume::default();
        self.0.iter().for_each(|(_, _, volume)| total.add(*volume));
        total
    }

    /// Returns the credit to the senders.
    pub(crate) fn return_credit(&mut self) {
        for (connection, key, volume) in self.0.drain(..) {
            connection.release(key, volume);
        }
    }
}
