//! The endpoint's side of the routes that peers opened: where a route leads, and which routes lead
//! there.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use foldhash::HashMap;
use network_common::ConnectionId;

use super::connection::PeerConnection;
use super::message_permit::{MessagePermit, RouteKey};
use super::remote_ask::RemoteAsk;
use crate::error::{RpcError, no_reply_error};
use crate::limits::{CreditLimits, Volume};
use crate::sync::Mutex;
use crate::wire::MessageHeader;

/// The destination of a route: the inbox of an endpoint.
pub(crate) trait RouteTarget: Send + Sync {
    /// Whether the endpoint has been stopped, so that another one may have its name.
    fn is_stopped(&self) -> bool;
    /// The limits of the credit windows of all routes to it.
    fn credit_limits(&self) -> &CreditLimits;
    /// The routes that lead to it.
    fn routes(&self) -> &TargetRoutes;
    /// The volume of its queued and active messages.
    fn held(&self) -> Volume;
    /// Decodes and enqueues a message.
    ///
    /// # Errors
    ///
    /// The reason why the message was rejected. `message.ask` is still present unless a call
    /// context has taken it.
    fn deliver(self: Arc<Self>, message: &mut InboundMessage<'_>) -> Result<(), RpcError>;
}

/// A message that arrived over a route and is not decoded yet.
pub(crate) struct InboundMessage<'a> {
    pub(crate) header: MessageHeader<'a>,
    /// The whole frame. The slices of the header are parts of it.
    pub(crate) frame: &'a Bytes,
    pub(crate) connection: &'a Arc<PeerConnection>,
    /// `None` for a one-way message.
    pub(crate) ask: Option<Box<RemoteAsk>>,
    /// Moves to the inbox with the message.
    pub(crate) permit: Option<MessagePermit>,
}

/// Fails an ask that no call context has taken, so that every request gets a response.
impl Drop for InboundMessage<'_> {
    fn drop(&mut self) {
        if let Some(ask) = self.ask.take() {
            ask.reject(&no_reply_error());
        }
    }
}

/// The routes that lead to one endpoint, and the sum of the credit that their senders hold.
#[derive(Default)]
pub(crate) struct TargetRoutes {
    outstanding_messages: AtomicU64,
    outstanding_bytes: AtomicU64,
    routes: Mutex<HashMap<(ConnectionId, u32), AttachedRoute>>,
}

type AttachedRoute = (Weak<PeerConnection>, RouteKey);

impl TargetRoutes {
    /// The credit that all senders hold together.
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
            // Wraps where the sum decreases.
            sum.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
        }
    }

    /// The number of routes that lead to the endpoint.
    pub(super) fn count(&self) -> u64 {
        self.routes.lock().len() as u64
    }

    /// Adds a route.
    pub(super) fn attach(&self, connection: &Arc<PeerConnection>, key: RouteKey) {
        let entry = (Arc::downgrade(connection), key);
        self.routes.lock().insert((connection.client.id(), key.number), entry);
    }

    /// Removes the route with this number of a connection.
    pub(super) fn remove(&self, connection: ConnectionId, number: u32) {
        self.routes.lock().remove(&(connection, number));
    }

    /// Detaches all routes, because the endpoint has stopped.
    ///
    /// Its senders get back the credit of all messages that it holds, so that their next message
    /// reaches its successor, or fails because there is none.
    pub(crate) fn detach_all(&self) {
        let routes = std::mem::take(&mut *self.routes.lock());
        for (connection, key) in routes.into_values() {
            if let Some(connection) = connection.upgrade() {
                connection.detach(key);
            }
        }
    }
}
