//! The receiver's side of routes: counts received messages, grants credit, and closes routes.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::connection::{
    InboundRoute, InboundRoutes, MessagePermit, PeerConnection, RouteKey, RouteTarget,
};
use super::credit::RecvCredit;
use super::inbound_routes::budget_error;
use crate::error::{ErrorKind, RpcError};
use crate::limits::Volume;
use crate::wire::proto::notice::Notice;
use crate::wire::{self, MessageHeader, proto};

/// Returns the volume for which the endpoint can still grant credit to its senders.
fn free_capacity(target: &dyn RouteTarget) -> Volume {
    target.credit_limits().inbox.minus(target.held()).minus(target.routes().outstanding())
}

impl PeerConnection {
    /// Counts a message on its route. Opens the route first if the message names an endpoint.
    ///
    /// Returns the target of the route, and the permit of the message. `look_up` finds an endpoint
    /// by name. It is called without a lock.
    ///
    /// # Errors
    ///
    /// The reason why no endpoint receives the message. If the message was counted, its credit has
    /// been returned.
    pub(crate) fn receive(
        self: &Arc<Self>,
        header: &MessageHeader<'_>,
        bytes: u64,
        look_up: impl FnOnce(&str) -> Result<Arc<dyn RouteTarget>, RpcError>,
    ) -> Result<(Arc<dyn RouteTarget>, MessagePermit), RpcError> {
        let mut inbound = self.inbound.lock();
        if !header.endpoint.is_empty() {
            self.open_inbound(&mut inbound, header)?;
        }
        let Some(route) = inbound.by_number.get_mut(&header.route) else {
            let text = format!("no route {} has been opened over this connection", header.route);
            return Err(RpcError::new(ErrorKind::Rejected, text));
        };
        // `Err` is the reason why no endpoint has the name.
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
        let Some((route, target)) = inbound.by_number.get_mut(&header.route).zip(target) else {
            return Err(RpcError::new(ErrorKind::Network, "the connection has ended"));
        };
        let is_covered = route.credit.has_outstanding();
        let live_target = target.as_ref().ok().map(|target| &**target);
        let mut granting = None;
        let granted = route.change_credit(live_target, |credit| {
            let granted = live_target.filter(|_| header.blocked_by != 0).and_then(|target| {
                granting = Some(target.routes().granting.lock());
                let routes = target.routes().count();
                let (free, limits) = (free_capacity(target), target.credit_limits());
                credit.on_sender_blocked(header.blocked_by, free, limits, routes)
            });
            credit.on_received(bytes);
            granted
        });
        drop(granting);
        let key = RouteKey { number: header.route, epoch: route.epoch };
        self.send_credit(key.number, granted);
        drop(inbound);
        if !self.shared.budget.try_reserve(bytes) {
            // A permit would also return the bytes, which are not reserved.
            self.release(key, Volume::message(bytes));
            return Err(budget_error("messages from the network", &self.shared.budget));
        }
        let permit = MessagePermit::new(Arc::clone(self), key, bytes, is_covered);
        // If there is no target, dropping the permit returns the credit.
        Ok((target?, permit))
    }

    /// Counts a message as received and handled, because the transport has refused it.
    ///
    /// A message that would have opened the route has not done so.
    pub(crate) fn refuse(self: &Arc<Self>, route: u32, bytes: u64) {
        let mut inbound = self.inbound.lock();
        let Some(found) = inbound.by_number.get_mut(&route) else {
            self.send_notice(Notice::RouteClosed(proto::RouteClosed { route }));
            return;
        };
        let key = RouteKey { number: route, epoch: found.epoch };
        let target = found.target();
        found.change_credit(target.as_deref(), |credit| credit.on_received(bytes));
        // Unlocks before `target` is dropped, because it may be the last reference to an inbox.
        drop(inbound);
        self.release(key, Volume::message(bytes));
    }

    /// Notifies the peer of a one-way message that no endpoint receives.
    pub(crate) fn send_undelivered(self: &Arc<Self>, route: u32, path: &str, error: &RpcError) {
        self.send_notice(Notice::Undelivered(proto::Undelivered {
            route,
            path: format!("{path:.400}"),
            failure: Some(wire::rejection(error)),
        }));
    }

    /// Opens the route that a message names.
    ///
    /// Otherwise notifies the peer that the number of the route is free, unless it is in use.
    fn open_inbound(
        self: &Arc<Self>,
        inbound: &mut InboundRoutes,
        header: &MessageHeader<'_>,
    ) -> Result<(), RpcError> {
        let (shared, route) = (&self.shared, header.route);
        let opened = self.check_identity().and_then(|()| {
            inbound.open(route, header.endpoint, shared.max_routes, &shared.route_budget)
        });
        if opened.is_err() && !inbound.by_number.contains_key(&route) {
            self.send_notice(Notice::RouteClosed(proto::RouteClosed { route }));
        }
        opened
    }

    /// Replaces the target of a route, unless `target` has stopped.
    fn attach(
        self: &Arc<Self>,
        inbound: &mut InboundRoutes,
        number: u32,
        target: &Arc<dyn RouteTarget>,
    ) {
        let epoch = inbound.new_epoch();
        let Some(route) = inbound.by_number.get_mut(&number).filter(|_| !target.is_stopped())
        else {
            return;
        };
        self.leave_target(number, route);
        route.epoch = epoch;
        route.target = Some(Arc::downgrade(target));
        target.routes().attach(self, RouteKey { number, epoch });
        let granted = route.credit.restart(Some(target.credit_limits()));
        // The new target must accept messages for the credit that the sender already holds.
        target.routes().replace_outstanding(Volume::default(), route.credit.outstanding());
        self.send_credit(number, granted);
    }

    /// Removes the target of a route, because the endpoint has stopped.
    ///
    /// The credit stays in the target's sum, which a stopped endpoint no longer uses.
    pub(super) fn detach(self: &Arc<Self>, key: RouteKey) {
        let mut inbound = self.inbound.lock();
        let epoch = inbound.new_epoch();
        let Some(route) = inbound.find(key) else { return };
        route.epoch = epoch;
        route.target = None;
        let granted = route.credit.restart(None);
        self.send_credit(key.number, granted);
    }

    /// Counts messages as handled. Grants credit if half of a window is free.
    pub(super) fn release(self: &Arc<Self>, key: RouteKey, done: Volume) {
        let mut inbound = self.inbound.lock();
        let Some(route) = inbound.find(key) else { return };
        let target = route.target();
        let target = target.as_deref();
        let mut granting = None;
        let free = || {
            let target = target?;
            granting = Some(target.routes().granting.lock());
            Some((free_capacity(target), target.credit_limits()))
        };
        let granted = route.change_credit(target, |credit| credit.on_handled(done, free));
        drop(granting);
        self.send_credit(key.number, granted);
        // Unlocks before `target` is dropped, because it may be the last reference to an inbox.
        drop(inbound);
    }

    /// Notifies the sender of a route of the granted credit.
    ///
    /// The caller holds the lock of the routes, because the route may be closed and its number
    /// reused once the lock is released.
    fn send_credit(self: &Arc<Self>, route: u32, granted: Option<Volume>) {
        if let Some(Volume { messages, bytes }) = granted {
            let credit = proto::Credit { route, messages, bytes, keeps_open: false };
            self.send_notice(Notice::Credit(credit));
        }
    }

    /// Handles CloseRoute: closes the route, or keeps it open if messages are unhandled.
    ///
    /// CloseRoute returns all credit that the sender holds. The reply grants new credit if the
    /// route stays open.
    pub(crate) fn on_close_route(self: &Arc<Self>, number: u32) {
        let mut inbound = self.inbound.lock();
        let Some(route) = inbound.by_number.get_mut(&number) else { return };
        if route.credit.has_unhandled() {
            let target = route.target();
            let granted = route.change_credit(target.as_deref(), RecvCredit::on_credit_returned);
            // The peer needs a reply even if nothing is granted.
            let Volume { messages, bytes } = granted.unwrap_or_default();
            let credit = proto::Credit { route: number, messages, bytes, keeps_open: true };
            self.send_notice(Notice::Credit(credit));
        } else if let Some(route) = inbound.close(number, &self.shared.route_budget) {
            self.leave_target(number, &route);
            self.send_notice(Notice::RouteClosed(proto::RouteClosed { route: number }));
        }
    }

    /// Removes a route from the list of its target, and its credit from the sum.
    fn leave_target(&self, number: u32, route: &InboundRoute) {
        if let Some(target) = route.target() {
            target.routes().replace_outstanding(route.credit.outstanding(), Volume::default());
            target.routes().remove(self.client.id(), number);
        }
    }

    /// Closes all routes of the peer, because the connection has ended.
    pub(super) fn close_inbound(&self) {
        let mut inbound = self.inbound.lock();
        // Sorted, so that a simulation can be repeated.
        let numbers: BTreeSet<u32> = inbound.by_number.keys().copied().collect();
        for number in numbers {
            if let Some(route) = inbound.close(number, &self.shared.route_budget) {
                self.leave_target(number, &route);
            }
        }
    }
}
