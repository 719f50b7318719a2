//! The routes to the endpoints of one peer: refs, numbers and credit. The only I/O is to push to
//! the given connection. Queues are in `route_queue`.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use slab::Slab;

use super::connection::PeerConnection;
use super::credit::SendCredit;
use super::route::{FlushOutcome, Route, RouteNumber, stale_incarnation_error};
use crate::error::{ErrorKind, RpcError};
use crate::limits::Volume;
use crate::sync::Notify;
use crate::wire::proto::notice::Notice;
use crate::wire::{EncodedMessage, proto};

/// The most routes without a ref that stay open, for the next ref to the same endpoint.
const MAX_UNUSED: usize = 64;
/// The number of sweeps without a message after which a route is idle.
const IDLE_SWEEPS: u8 = 2;

/// The routes to the endpoints of one peer.
#[derive(Default)]
pub(super) struct RouteTable {
    pub(super) routes: Slab<Route>,
    by_endpoint: HashMap<Arc<str>, usize>,
    /// The slots of the routes that have a number. The number is the key plus 1.
    numbers: Slab<usize>,
    /// The number of messages in all queues.
    pub(super) queued: usize,
    /// The number of routes without a ref.
    unused: usize,
    /// Is true if a queue waits for a free number.
    is_number_awaited: bool,
    /// The pool, while messages are queued. It keeps the connections open when no ref exists.
    /// Type-erased, because the pool is above this file.
    pub(super) keep_alive: Option<Arc<dyn Any + Send + Sync>>,
}

impl RouteTable {
    /// Adds a ref to the route to `endpoint`.
    ///
    /// Returns its slot, and what is notified when its queue has capacity again.
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

    /// Removes a ref. Without refs, a route is removed, or closed if too many are unused.
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

    /// Removes a route if it has no ref, no message and no number. Returns whether it did.
    pub(super) fn remove_unused(&mut self, slot: usize) -> bool {
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

    /// Returns whether the next message of a route can be pushed to `connection` now.
    ///
    /// That is the first message of its queue if `is_queued`, otherwise a new one. A message that
    /// cannot be pushed is queued.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Stopped`] if the peer is another process run than `incarnation`,
    /// [`ErrorKind::Limit`] if all numbers are in use.
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

    /// Closes a route without a ref, or else an idle one, to free its number. Returns false.
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
                let (limit, peer) = (connection.max_routes(), connection.address());
                let text = format!(
                    "all {limit} routes to {peer} are in use (the lower one of \
                     spark.rpc.maxRoutesPerConnection of both environments)"
                );
                return Err(RpcError::new(ErrorKind::Limit, text).with_peer(peer));
            };
            route.close(connection);
        }
        Ok(false)
    }

    /// Completes a message that [`can_push`](Self::can_push) allows, and pushes it by `push`.
    ///
    /// `push` also returns whether the message was sent. The route changes only if it was.
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

    /// Adds credit that the peer granted. Returns the slot of the route.
    pub(super) fn on_credit(&mut self, credit: &proto::Credit) -> Option<usize> {
        let slot = self.slot(credit.route)?;
        let route = &mut self.routes[slot];
        if route.number == RouteNumber::Closing(credit.route) {
            // Credit that the peer granted before it read CloseRoute was returned by CloseRoute.
            if !credit.keeps_open {
                return None;
            }
            route.number = RouteNumber::Open(credit.route);
        }
        route.credit.add(Volume::new(credit.messages, credit.bytes));
        Some(slot)
    }

    /// Frees the number of a route that the peer closed or did not open.
    ///
    /// Returns which queues must be flushed: that of one route, or all (`Some(None)`).
    pub(super) fn on_route_closed(&mut self, number: u32) -> Option<Option<usize>> {
        let slot = self.slot(number)?;
        self.numbers.remove(number as usize - 1);
        let route = &mut self.routes[slot];
        route.number = RouteNumber::Unopened;
        route.credit = SendCredit::new();
        self.remove_unused(slot);
        Some(Some(slot).filter(|_| !std::mem::take(&mut self.is_number_awaited)))
    }

    /// Returns the slot of the route with this number.
    fn slot(&self, number: u32) -> Option<usize> {
        self.numbers.get((number as usize).checked_sub(1)?).copied()
    }

    /// Returns the name of the endpoint that a route leads to.
    pub(super) fn endpoint(&self, number: u32) -> Option<Arc<str>> {
        Some(Arc::clone(&self.routes[self.slot(number)?].endpoint))
    }

    /// The number of routes.
    pub(super) fn len(&self) -> usize {
        self.routes.len()
    }

    /// Closes the routes that have been idle for [`IDLE_SWEEPS`], so that the peer can grant their
    /// credit to others. The next message opens such a route again.
    pub(super) fn sweep(&mut self, connection: &Arc<PeerConnection>) {
        for (_, route) in &mut self.routes {
            route.idle_sweeps = route.idle_sweeps.saturating_add(1);
            if route.idle_sweeps > IDLE_SWEEPS && route.is_open_and_empty() {
                route.close(connection);
            }
        }
        // Queued messages wait for a notice of the peer. If its host has restarted, only a write
        // detects that. Routes have numbers from 1, so the peer ignores this one.
        if self.queued > 0 {
            connection.send_notice(Notice::Credit(proto::Credit::default()));
        }
    }

    /// Resets all numbers and credit, because the connection has ended. Returns the queues.
    pub(super) fn reset(&mut self) -> FlushOutcome {
        let mut outcome = FlushOutcome::default();
        for (_, route) in &mut self.routes {
            outcome.unsent.extend(route.queue.drain(..).map(|queued| (queued, None)));
            route.volume = Volume::default();
            route.credit = SendCredit::new();
            route.number = RouteNumber::Unopened;
            outcome.emptied.push(Arc::clone(&route.capacity));
        }
        self.numbers.clear();
        let slots: Vec<usize> = self.routes.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            self.remove_unused(slot);
        }
        self.queued = 0;
        outcome
    }
}
