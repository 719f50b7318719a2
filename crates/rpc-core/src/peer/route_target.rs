//! The methods of `TargetRoutes`, the routes that lead to one endpoint.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use network_common::ConnectionId;

use super::connection::{PeerConnection, RouteKey, TargetRoutes};
use crate::limits::Volume;

impl TargetRoutes {
    /// Returns the sum of the credit that the senders hold.
    pub(super) fn outstanding(&self) -> Volume {
        let messages = self.outstanding_messages.load(Ordering::Relaxed);
        Volume::new(messages, self.outstanding_bytes.load(Ordering::Relaxed))
    }

    /// Replaces the credit of one route in the sum.
    pub(super) fn replace_outstanding(&self, before: Volume, after: Volume) {
        for (sum, before, after) in [
            (&self.outstanding_messages, before.messages, after.messages),
            (&self.outstanding_bytes, before.bytes, after.bytes),
        ] {
            // The difference wraps if it is negative, and so does the addition.
            sum.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
        }
    }

    /// Returns the number of routes that lead to the endpoint.
    pub(super) fn count(&self) -> u64 {
        self.routes.lock().len() as u64
    }

    /// Adds a route.
    pub(super) fn attach(&self, connection: &Arc<PeerConnection>, key: RouteKey) {
        let entry = (Arc::downgrade(connection), key);
        self.routes.lock().insert((connection.client.id(), key.number), entry);
    }

    /// Removes the route with this number and connection.
    pub(super) fn remove(&self, connection: ConnectionId, number: u32) {
        self.routes.lock().remove(&(connection, number));
    }

    /// Detaches all routes, because the endpoint has stopped.
    ///
    /// Senders get back the credit of all messages that the endpoint holds. Their next message
    /// reaches the next endpoint of the same name, or fails if there is none.
    pub(crate) fn detach_all(&self) {
        let routes = std::mem::take(&mut *self.routes.lock());
        for (connection, key) in routes.into_values() {
            if let Some(connection) = connection.upgrade() {
                connection.detach(key);
            }
        }
    }
}
