//! One peer: its connection phase, the routes to its endpoints, and the messages queued for it.

use std::sync::Arc;
use std::time::Duration;

use network_common::{
    ConnectionId, RetryBudget, RetryPolicy, RpcFuture, TransportError, log_limited,
};
use tokio::time::Instant;

use super::connection::{PeerConnection, PeerShared, RouteOwner};
use super::route::FlushOutcome;
use super::route_table::RouteTable;
use crate::address::RpcAddress;
use crate::error::{ErrorKind, RpcError};
use crate::limits::Volume;
use crate::metrics::PeerSnapshot;
use crate::sync::{Mutex, MutexGuard, Notify};
use crate::wire::proto;
use crate::wire::proto::notice::Notice;

/// After a rejected Hello, messages fail for 5 s before a new connection is attempted.
const REJECTION_TIME: Duration = Duration::from_secs(5);

/// After a failed connection attempt, messages fail for at most 50 ms, doubled up to 500 ms.
const RECONNECT: RetryPolicy =
    RetryPolicy::new().first_wait(Duration::from_millis(50)).max_wait(Duration::from_millis(500));

/// Another environment: its connection, and the routes to its endpoints.
///
/// Messages that are queued while there is no connection are sent once it is established. If the
/// connection cannot be established, or ends, all queued messages fail, and the next message
/// connects again (Spark's `Outbox`). Nothing is sent twice.
///
/// After a failed attempt to connect, messages fail without another one for up to 500 ms, so that
/// many asks to a dead peer do not become as many attempts.
pub(crate) struct Peer {
    pub(super) address: RpcAddress,
    shared: Arc<PeerShared>,
    /// Is true if the peer opened its connection itself and does not listen. Then no other
    /// connection can replace this one.
    pub(super) is_bound: bool,
    pub(super) state: Mutex<PeerState>,
    /// Limits the repetitions of failed asks, for all refs to this peer.
    pub(super) retry_budget: RetryBudget,
    /// Notified when all queues are empty.
    flushed: Notify,
}

/// The state of a peer under its lock.
pub(super) struct PeerState {
    pub(super) phase: ConnectPhase,
    pub(super) routes: RouteTable,
    /// The number of failed connection attempts since the last successful one.
    failed_connects: u32,
    /// Is true if a task waits for capacity in the connection's write queue. It flushes the queues.
    is_blocked: bool,
}

/// The phase of the connection to a peer.
pub(super) enum ConnectPhase {
    /// Never connected, or the connection failed.
    Idle,
    /// A task connects. Messages are queued.
    Connecting,
    /// The last connection attempt failed. Messages fail with its error until the deadline. Later
    /// ones connect again.
    Unreachable(RpcError, Instant),
    /// Messages are pushed to the connection by their senders, as credit allows.
    Connected(Arc<PeerConnection>),
    /// The peer's Hello was rejected and its connection closed. Messages fail with the error until
    /// the deadline. Later ones connect again.
    Rejected(RpcError, Instant),
    /// The only connection has ended. Messages fail.
    Lost,
    /// The environment has been shut down. Messages fail.
    Stopped,
}

impl ConnectPhase {
    /// Returns the connection, if it is established.
    pub(super) fn connection(&self) -> Option<&Arc<PeerConnection>> {
        match self {
            Self::Connected(connection) => Some(connection),
            Self::Idle | Self::Connecting | Self::Unreachable(..) => None,
            Self::Rejected(..) | Self::Lost | Self::Stopped => None,
        }
    }

    /// Returns whether a message starts a connection attempt.
    pub(super) fn is_disconnected(&self) -> bool {
        matches!(self, Self::Idle | Self::Unreachable(..) | Self::Rejected(..))
    }

    fn has_connection(&self, id: ConnectionId) -> bool {
        self.connection().is_some_and(|connection| connection.client.id() == id)
    }
}

impl Peer {
    pub(super) fn new(
        address: &RpcAddress,
        shared: &Arc<PeerShared>,
        phase: ConnectPhase,
        is_bound: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            address: address.clone(),
            shared: Arc::clone(shared),
            is_bound,
            state: Mutex::new(PeerState {
                phase,
                routes: RouteTable::default(),
                failed_connects: 0,
                is_blocked: false,
            }),
            retry_budget: RetryBudget::new(shared.retry_budget),
            flushed: Notify::new(),
        })
    }

    /// Locks the state, unless messages to the peer fail in its phase.
    ///
    /// A connection whose end has not been handled yet is dropped first, so that only the messages
    /// queued before fail with it.
    pub(super) fn lock_usable(&self) -> Result<MutexGuard<'_, PeerState>, RpcError> {
        loop {
            let state = self.state.lock();
            let ended = match &state.phase {
                ConnectPhase::Connected(connection) if !connection.client.is_active() => {
                    connection.client.id()
                }
                ConnectPhase::Lost => return Err(self.closed_error()),
                ConnectPhase::Stopped => return Err(self.stopped_error()),
                ConnectPhase::Unreachable(error, until) | ConnectPhase::Rejected(error, until)
                    if Instant::now() < *until =>
                {
                    return Err(error.clone());
                }
                _ => return Ok(state),
            };
            drop(state);
            self.on_disconnected(ended);
        }
    }

    /// Returns the process run of the peer, if it is connected and its Hello was accepted.
    pub(crate) fn incarnation(&self) -> Option<u64> {
        self.state.lock().phase.connection()?.incarnation()
    }

    /// Removes one ref to the route in `slot`.
    pub(super) fn remove_ref(&self, slot: usize) {
        let PeerState { phase, routes, .. } = &mut *self.state.lock();
        routes.remove_ref(slot, phase.connection());
    }

    /// Makes an established connection the one of this peer. Returns false if it has ended.
    pub(super) fn on_connected(self: &Arc<Self>, connection: &Arc<PeerConnection>) -> bool {
        let owner = connection.set_route_owner(|| Arc::clone(self) as _);
        if !owner.is_some_and(|owner| std::ptr::addr_eq(&raw const *owner, &raw const **self)) {
            return false;
        }
        // Before any message, because a peer rejects messages that arrive before the Hello.
        connection.send_hello();
        {
            let mut state = self.state.lock();
            // If the connection ends after this check, `on_disconnected` finds it in the phase.
            if !connection.client.is_active() {
                return false;
            }
            if matches!(state.phase, ConnectPhase::Connecting) {
                state.phase = ConnectPhase::Connected(Arc::clone(connection));
                state.failed_connects = 0;
            }
        }
        // The peer's Hello may have arrived already.
        Arc::clone(self).on_hello(connection);
        true
    }

    /// Fails the queued messages after a failed connection attempt, and later ones for a while.
    pub(super) fn on_connect_failed(&self, error: &RpcError) {
        let wait = {
            let mut state = self.state.lock();
            state.failed_connects = state.failed_connects.saturating_add(1);
            RECONNECT.wait_after(state.failed_connects)
        };
        let next = ConnectPhase::Unreachable(error.clone(), Instant::now() + wait);
        self.fail(next, error, |phase| matches!(phase, ConnectPhase::Connecting));
    }

    /// Locks the state, if `connection` is the current connection.
    fn lock_connected(&self, connection: &PeerConnection) -> Option<MutexGuard<'_, PeerState>> {
        let state = self.state.lock();
        state.phase.has_connection(connection.client.id()).then_some(state)
    }

    /// Sends the queued messages of one route, or of all, as far as credit allows.
    ///
    /// It keeps the lock, so that no new message overtakes a queued one.
    fn flush(self: &Arc<Self>, mut guard: MutexGuard<'_, PeerState>, slot: Option<usize>) {
        let mut outcome = FlushOutcome::default();
        let PeerState { phase, routes, is_blocked, .. } = &mut *guard;
        if let ConnectPhase::Connected(connection) = phase
            && !*is_blocked
            && !routes.flush(slot, connection, &mut outcome)
        {
            *is_blocked = true;
            let (client, peer) = (connection.client.clone(), Arc::downgrade(self));
            self.shared.runtime.spawn(async move {
                // If the connection ends instead, the queues fail with it.
                let _ = client.ready().await;
                if let Some(peer) = peer.upgrade() {
                    let mut state = peer.state.lock();
                    state.is_blocked = false;
                    peer.flush(state, None);
                }
            });
        }
        let (is_flushed, keep_alive) = (routes.queued == 0, routes.release_keep_alive());
        drop(guard);
        drop(keep_alive);
        if is_flushed {
            self.flushed.notify_waiters();
        }
        self.notify_senders(outcome, None);
    }

    /// Fails all queued messages and changes to the phase `next`, if the phase matches `from`.
    ///
    /// Returns the number of failed messages.
    pub(super) fn fail(
        &self,
        next: ConnectPhase,
        error: &RpcError,
        from: impl FnOnce(&ConnectPhase) -> bool,
    ) -> u64 {
        let mut state = self.state.lock();
        if !from(&state.phase) {
            return 0;
        }
        let _before = std::mem::replace(&mut state.phase, next);
        let (outcome, _keep_alive) = (state.routes.reset(), state.routes.release_keep_alive());
        drop(state);
        self.flushed.notify_waiters();
        self.notify_senders(outcome, Some(error))
    }

    /// Notifies the senders of messages that were taken out of the queues.
    ///
    /// `error` is for unsent messages without a reason. Returns the number of unsent messages,
    /// without cancelled asks.
    fn notify_senders(&self, outcome: FlushOutcome, error: Option<&RpcError>) -> u64 {
        outcome.emptied.iter().for_each(|capacity| capacity.notify_waiters());
        for (caller, response) in outcome.sent {
            // The caller may have cancelled the ask while it was sent.
            if let Err(Ok(response)) = caller.send(Ok(response)) {
                self.cancel(&response);
            }
        }
        let (mut asks, mut one_way) = (0_u64, 0_u64);
        for (queued, reason) in outcome.unsent {
            let is_reported = reason.is_some();
            let Some(error) = reason.or_else(|| error.cloned()) else { continue };
            match queued.caller {
                Some(caller) => asks += u64::from(caller.send(Err(error)).is_ok()),
                None if is_reported => {
                    one_way += 1;
                    self.shared.report_undelivered(error, self.address.clone());
                }
                None => one_way += 1,
            }
        }
        if let (1.., Some(error)) = (one_way, error) {
            log_limited!(
                |suppressed| tracing::warn!(suppressed, error = %format_args!("{error:#}"),
                messages = one_way,
                "queued one-way messages were discarded")
            );
        }
        asks + one_way
    }

    /// Waits until all queues are empty.
    pub(super) async fn wait_flushed(&self) {
        let mut flushed = std::pin::pin!(self.flushed.notified());
        flushed.as_mut().enable();
        let has_queued = {
            let mut state = self.state.lock();
            state.routes.remove_all_cancelled();
            state.routes.queued > 0
        };
        if has_queued {
            flushed.await;
        }
    }

    /// Returns the error of a request that failed on the connection.
    pub(super) fn request_error(&self, error: TransportError) -> RpcError {
        match &self.state.lock().phase {
            ConnectPhase::Rejected(rejection, _) => rejection.clone(),
            _ => RpcError::from_transport(error, &self.address),
        }
    }

    /// Handles the cancellation of an ask in the queue of the route in `slot`.
    pub(super) fn on_queued_cancelled(self: &Arc<Self>, slot: usize) {
        let mut state = self.state.lock();
        let Some((is_unblocked, capacity)) = state.routes.on_cancelled(slot) else { return };
        if is_unblocked {
            self.flush(state, Some(slot));
        } else {
            drop(state);
        }
        capacity.notify_waiters();
    }

    /// Notifies the peer that a request is cancelled, if it is still pending.
    pub(super) fn cancel(&self, response: &RpcFuture) {
        let Some((client, request_id)) = response.pending_request() else { return };
        let connection = self.state.lock().phase.connection().cloned();
        // If the peer has another connection by now, the request has failed with its own.
        if let Some(connection) =
            connection.filter(|connection| connection.client.id() == client.id())
        {
            connection.send_notice(Notice::Cancel(proto::Cancel { request_id }));
        }
    }

    /// Closes idle routes.
    pub(super) fn sweep(&self) {
        let PeerState { phase, routes, .. } = &mut *self.state.lock();
        if let ConnectPhase::Connected(connection) = phase {
            routes.sweep(connection);
        }
    }

    /// Returns the state of the peer, for [`RpcEnv::snapshot`](crate::RpcEnv::snapshot).
    pub(super) fn snapshot(&self) -> PeerSnapshot {
        let state = self.state.lock();
        let Volume { messages, bytes } = state.routes.volume();
        PeerSnapshot {
            address: self.address.clone(),
            connected: state
                .phase
                .connection()
                .is_some_and(|connection| connection.client.is_active()),
            endpoints: state.routes.len() as u64,
            queued: messages,
            queued_bytes: bytes,
            refused_retries: self.retry_budget.refused(),
        }
    }

    /// Returns the error when the connection has ended (Spark's text).
    fn closed_error(&self) -> RpcError {
        let text = format!("Connection from {} closed", self.address);
        RpcError::new(ErrorKind::Network, text).with_peer(&self.address)
    }

    /// Returns the error when the task that connects was dropped with its runtime.
    pub(super) fn runtime_stopped_error(&self) -> RpcError {
        let text = format!("the runtime shut down before {} was connected", self.address);
        RpcError::new(ErrorKind::Stopped, text).with_peer(&self.address)
    }

    /// Returns the error when the environment has been shut down (Spark's text in `Outbox.send`).
    pub(super) fn stopped_error(&self) -> RpcError {
        let text = format!(
            "Message to {} is dropped because Outbox is stopped: RpcEnv already stopped.",
            self.address
        );
        RpcError::new(ErrorKind::Stopped, text).with_peer(&self.address)
    }
}

impl RouteOwner for Peer {
    fn on_hello(self: Arc<Self>, connection: &Arc<PeerConnection>) {
        match connection.rejected_hello() {
            Some(error) => {
                let id = connection.client.id();
                let rejected =
                    ConnectPhase::Rejected(error.clone(), Instant::now() + REJECTION_TIME);
                self.fail(rejected, error, |phase| phase.has_connection(id));
                // Pending requests fail with the connection.
                connection.client.close();
            }
            None => self.flush(self.state.lock(), None),
        }
    }

    fn on_credit(self: Arc<Self>, connection: &PeerConnection, credit: &proto::Credit) {
        let Some(mut state) = self.lock_connected(connection) else { return };
        if let Some(slot) = state.routes.on_credit(credit) {
            // If the route stays open, messages that wait for its number must evict another route,
            // so all queues are flushed.
            self.flush(state, Some(slot).filter(|_| !credit.keeps_open));
        }
    }

    fn on_route_closed(self: Arc<Self>, connection: &PeerConnection, number: u32) {
        let Some(mut state) = self.lock_connected(connection) else { return };
        if let Some(slots) = state.routes.on_route_closed(number) {
            self.flush(state, slots);
        }
    }

    fn on_disconnected(&self, id: ConnectionId) {
        let next = if self.is_bound { ConnectPhase::Lost } else { ConnectPhase::Idle };
        self.fail(next, &self.closed_error(), |phase| phase.has_connection(id));
    }

    fn endpoint(&self, number: u32) -> Option<Arc<str>> {
        self.state.lock().routes.endpoint(number)
    }
}
