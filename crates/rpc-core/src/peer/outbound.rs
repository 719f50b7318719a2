//! The handle of a ref on the route to an endpoint of another environment.

use std::sync::Arc;

use bytes::Bytes;
use network_common::{RetryBudget, TransportClient};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::peer_state::{ConnectPhase, Peer, PeerState};
use super::pool::{ConnectTask, PeerPool};
use super::reply::{RemoteReplyFuture, RemoteReplyState};
use super::route::{QueuedMessage, QueuedResult, push_ask};
use crate::error::{ErrorKind, RpcError};
use crate::limits::Volume;
use crate::sync::Notify;
use crate::timeout::RpcTimeout;
use crate::wire::EncodedMessage;

/// A route to one endpoint of a peer, shared by all clones of a ref.
///
/// Messages are sent in the order of the calls.
pub(crate) struct OutboundRoute {
    pool: Arc<PeerPool>,
    peer: Arc<Peer>,
    /// The slot of the route in the peer's table.
    slot: usize,
    /// Notified when the queue of the route has capacity again.
    capacity: Arc<Notify>,
    /// The incarnation that the ref is bound to, or 0.
    incarnation: u64,
}

impl PeerPool {
    /// Returns the route of `peer` to `endpoint`.
    ///
    /// `incarnation` is the process run that the ref is bound to, or 0.
    pub(crate) fn route(
        self: &Arc<Self>,
        peer: Arc<Peer>,
        endpoint: &str,
        incarnation: u64,
    ) -> OutboundRoute {
        let (slot, capacity) = peer.state.lock().routes.add_ref(endpoint);
        OutboundRoute { pool: Arc::clone(self), peer, slot, capacity, incarnation }
    }
}

impl OutboundRoute {
    /// Sends a one-way message, or queues it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Limit`] if the queue of the route is full, otherwise the reason why the peer
    /// cannot be reached.
    pub(crate) fn send(&self, message: EncodedMessage) -> Result<(), RpcError> {
        let push = |client: &TransportClient, frame| {
            let sent = client.send(frame);
            let is_sent = sent.is_ok();
            (sent, is_sent)
        };
        let sent = self.push(message, None, push, || (None, Ok(())))?;
        sent.map_err(|error| RpcError::from_transport(error, &self.peer.address))
    }

    /// Sends an ask, or queues it. Dropping the future cancels the ask.
    ///
    /// # Errors
    ///
    /// The same as those of [`send`](Self::send).
    pub(crate) fn ask(
        &self,
        mut message: EncodedMessage,
        timeout: &RpcTimeout,
        deadline: Option<Instant>,
    ) -> Result<RemoteReplyFuture, RpcError> {
        message.set_timeout(timeout.duration());
        let state = self.push(
            message,
            deadline,
            |client, frame| {
                let (future, is_sent) = push_ask(client, frame);
                (RemoteReplyState::Sent(future), is_sent)
            },
            || {
                let (result, receiver) = oneshot::channel();
                (Some(result), RemoteReplyState::Queued(receiver, self.slot))
            },
        )?;
        Ok(RemoteReplyFuture { state, peer: Arc::clone(&self.peer) })
    }

    /// Pushes a message to the connection by `push`, or queues it if that is not possible now.
    ///
    /// A queued ask is reported to its caller by the sender that `queue` returns.
    fn push<T>(
        &self,
        mut message: EncodedMessage,
        deadline: Option<Instant>,
        push: impl FnOnce(&TransportClient, Bytes) -> (T, bool),
        queue: impl FnOnce() -> (Option<QueuedResult>, T),
    ) -> Result<T, RpcError> {
        let (slot, incarnation) = (self.slot, self.incarnation);
        let mut guard = self.peer.lock_usable()?;
        let PeerState { phase, routes, .. } = &mut *guard;
        if let ConnectPhase::Connected(connection) = phase
            && routes.can_push(slot, connection, incarnation, false)?
        {
            return Ok(routes.push(slot, message, |frame| push(&connection.client, frame)));
        }
        if routes.is_full(slot, self.pool.limits) {
            return Err(self.full_error());
        }
        message.detach();
        let (caller, queued) = queue();
        routes.enqueue(slot, QueuedMessage { message, incarnation, caller, deadline }, &self.pool);
        if phase.is_disconnected() {
            *phase = ConnectPhase::Connecting;
            // Without the lock: a runtime that has shut down drops the task at once, and the task
            // then fails the queue.
            drop(guard);
            ConnectTask::start(&self.pool, &self.peer);
        }
        Ok(queued)
    }

    /// Returns the retry budget of the peer.
    pub(crate) fn retry_budget(&self) -> &RetryBudget {
        &self.peer.retry_budget
    }

    #[cold]
    fn full_error(&self) -> RpcError {
        let (peer, Volume { messages, bytes }) = (&self.peer.address, self.pool.limits);
        let text = format!(
            "the queue to an endpoint at {peer} is full: its limits are {messages} messages \
             (spark.rpc.route.maxQueuedMessages) and {bytes} bytes (spark.rpc.route.maxQueuedBytes)"
        );
        RpcError::new(ErrorKind::Limit, text).with_peer(peer).mark_retryable()
    }

    /// Waits until the queue may have capacity again, or the peer fails all messages.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect on the route.
    pub(crate) async fn wait_for_capacity(&self) {
        let mut notified = std::pin::pin!(self.capacity.notified());
        notified.as_mut().enable();
        let (is_full, client, keep_alive) = {
            let mut state = self.peer.state.lock();
            let is_full = state.routes.is_full(self.slot, self.pool.limits);
            let client = state.phase.connection().map(|connection| connection.client.clone());
            (is_full, client, state.routes.release_keep_alive())
        };
        drop(keep_alive);
        match client {
            _ if is_full => notified.await,
            // The write queue of the connection may be full instead.
            Some(client) => drop(client.ready().await),
            None => {}
        }
    }
}

impl Drop for OutboundRoute {
    fn drop(&mut self) {
        self.peer.remove_ref(self.slot);
    }
}
