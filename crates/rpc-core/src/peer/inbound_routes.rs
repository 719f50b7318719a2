//! The table of the routes that the peer of one connection has opened.

use std::sync::Arc;

use super::connection::{InboundRoute, InboundRoutes, RouteKey, RouteTarget};
use super::credit::RecvCredit;
use crate::error::{ErrorKind, RpcError};
use crate::limits::ByteLimit;
use crate::peer_text::peer_name;

/// The most bytes that the endpoint names of the open routes of one connection have: 1 MiB.
const MAX_NAME_BYTES: usize = 1 << 20;
/// The number of bytes that the budget counts for one route in addition to its name.
const ROUTE_BYTES: u64 = 256;
/// The number of routes with short names that every connection may open, even when the routes of
/// others hold the whole budget.
const GUARANTEED_ROUTES: usize = 8;

impl InboundRoute {
    /// Returns the target, if its inbox still exists.
    pub(super) fn target(&self) -> Option<Arc<dyn RouteTarget>> {
        self.target.as_ref()?.upgrade()
    }

    /// Changes the credit of the route, and updates the outstanding credit of its target.
    pub(super) fn change_credit<T>(
        &mut self,
        target: Option<&dyn RouteTarget>,
        change: impl FnOnce(&mut RecvCredit) -> T,
    ) -> T {
        let before = self.credit.outstanding();
        let result = change(&mut self.credit);
        if let Some(target) = target {
            target.routes().replace_outstanding(before, self.credit.outstanding());
        }
        result
    }
}

impl InboundRoutes {
    /// Returns the route, unless it was closed or its target has changed.
    pub(super) fn find(&mut self, key: RouteKey) -> Option<&mut InboundRoute> {
        self.by_number.get_mut(&key.number).filter(|route| route.epoch == key.epoch)
    }

    /// Returns the next epoch. Epochs repeat only after 2^32 changes of a target.
    pub(super) fn new_epoch(&mut self) -> u32 {
        self.next_epoch = self.next_epoch.wrapping_add(1);
        self.next_epoch
    }

    /// Adds a route to the endpoint of this name. The route has no target yet.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Limit`] if the number is not valid or in use, if another route leads to the
    /// endpoint, or if the names of the routes are too long together. It is retryable if the
    /// budget is exhausted.
    pub(super) fn open(
        &mut self,
        number: u32,
        endpoint: &str,
        max_routes: u32,
        budget: &ByteLimit,
    ) -> Result<(), RpcError> {
        let fail = |why: String| {
            let endpoint = peer_name(endpoint);
            let text = format!("route {number} to {endpoint} cannot be opened: {why}");
            Err(RpcError::new(ErrorKind::Limit, text))
        };
        if number == 0 || number > max_routes {
            return fail(format!(
                "routes have numbers from 1 to {max_routes} (spark.rpc.maxRoutesPerConnection)"
            ));
        }
        if self.by_number.contains_key(&number) {
            return fail("the number is in use".to_owned());
        }
        if self.by_name.contains_key(endpoint) {
            return fail("another route leads to this endpoint".to_owned());
        }
        if self.name_bytes + endpoint.len() > MAX_NAME_BYTES {
            return fail(format!(
                "the names of all routes of a connection may have at most {MAX_NAME_BYTES} bytes"
            ));
        }
        let bytes = ROUTE_BYTES + endpoint.len() as u64;
        if self.by_number.len() < GUARANTEED_ROUTES && endpoint.len() <= ROUTE_BYTES as usize {
            budget.reserve(bytes);
        } else if !budget.try_reserve(bytes) {
            return Err(budget_error("routes", budget));
        }
        let endpoint: Arc<str> = endpoint.into();
        self.name_bytes += endpoint.len();
        self.by_name.insert(Arc::clone(&endpoint), number);
        let epoch = self.new_epoch();
        let route = InboundRoute { endpoint, credit: RecvCredit::new(), target: None, epoch };
        self.by_number.insert(number, route);
        Ok(())
    }

    /// Removes a route and returns its bytes to the budget.
    pub(super) fn close(&mut self, number: u32, budget: &ByteLimit) -> Option<InboundRoute> {
        let route = self.by_number.remove(&number)?;
        self.by_name.remove(&route.endpoint);
        self.name_bytes -= route.endpoint.len();
        budget.release(ROUTE_BYTES + route.endpoint.len() as u64);
        Some(route)
    }
}

/// Returns the error for an exhausted budget. `what` names what the budget is for.
#[cold]
pub(super) fn budget_error(what: &str, budget: &ByteLimit) -> RpcError {
    let text = format!("no further {what} are accepted: {}", budget.limit_text());
    RpcError::new(ErrorKind::Limit, text).mark_retryable()
}
