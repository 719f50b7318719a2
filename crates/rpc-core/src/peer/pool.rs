//! Other environments by address: connecting to them, and the end of a connection.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use futures::future::join_all;
use network_common::{ConnectionId, RpcFuture, TransportClientFactory, TransportError};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::connection::{Connections, PeerConnection, PeerShared};
use super::route_table::{RouteTable, UnsentMessages};
use crate::address::RpcAddress;
use crate::error::{ErrorKind, RpcError};
use crate::limits::Volume;
use crate::metrics::PeerSnapshot;
use crate::sync::{Mutex, MutexGuard, Notify};
use crate::wire::proto;
use crate::wire::proto::notice::Notice;

/// How long messages fail after the Hello of their peer was rejected.
const REJECTION_TIME: Duration = Duration::from_secs(5);
/// How often idle routes are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// All environments that this one sends to. Each [`Peer`] lives as long as a ref to one of its
/// endpoints or its connection. Refs and queued messages keep the pool alive, and the pool keeps
/// the connections open.
pub(crate) struct PeerPool {
    peers: Mutex<PeersByAddress>,
    factory: TransportClientFactory,
    connections: Arc<Connections>,
    /// The limits of the queue of one route.
    pub(super) limits: Volume,
    /// Closes idle routes. Started with the first connection.
    sweeper: OnceLock<AbortOnDropHandle<()>>,
}

#[derive(Default)]
struct PeersByAddress {
    /// With the connection that the peer opened, if it does not listen.
    by_address: HashMap<(RpcAddress, Option<ConnectionId>), Weak<Peer>>,
    /// At this size, entries of dropped peers are removed.
    prune_at: usize,
    is_stopped: bool,
}

impl PeersByAddress {
    fn live(&self) -> Vec<Arc<Peer>> {
        self.by_address.values().filter_map(Weak::upgrade).collect()
    }

    fn add(&mut self, peer: &Arc<Peer>, connection: Option<ConnectionId>) {
        if self.by_address.len() >= self.prune_at {
            self.by_address.retain(|_, peer| peer.strong_count() > 0);
            self.prune_at = 16.max(2 * self.by_address.len());
        }
        self.by_address.insert((peer.address.clone(), connection), Arc::downgrade(peer));
    }
}

impl PeerPool {
    /// `limits`: of the queue of one route.
    pub(crate) fn new(
        factory: TransportClientFactory,
        connections: Arc<Connections>,
        limits: Volume,
    ) -> Arc<Self> {
        Arc::new(Self {
            peers: Mutex::default(),
            factory,
            connections,
            limits,
            sweeper: OnceLock::new(),
        })
    }

    /// The environment at `address`.
    pub(crate) fn peer(&self, address: &RpcAddress) -> Arc<Peer> {
        let mut peers = self.peers.lock();
        let known = peers.by_address.get(&(address.clone(), None)).and_then(Weak::upgrade);
        if let Some(peer) = known {
            return peer;
        }
        let phase = if peers.is_stopped { ConnectPhase::Stopped } else { ConnectPhase::Idle };
        let peer = Peer::new(address, &self.connections.shared, phase, false);
        peers.add(&peer, None);
        peer
    }

    /// The environment at the other end of `connection`, which does not listen: it is reached over
    /// this connection only. `None` if that has ended.
    pub(crate) fn connected_peer(
        self: &Arc<Self>,
        connection: &Arc<PeerConnection>,
    ) -> Option<Arc<Peer>> {
        if let Some(peer) = connection.route_owner() {
            return Some(peer);
        }
        let mut peers = self.peers.lock();
        let is_stopped = peers.is_stopped;
        let peer = connection.set_route_owner(|| {
            let phase = if is_stopped {
                ConnectPhase::Stopped
            } else {
                ConnectPhase::Connected(Arc::clone(connection))
            };
            Peer::new(&connection.socket, &self.connections.shared, phase, true)
        })?;
        if peer.is_bound {
            peers.add(&peer, Some(connection.client.id()));
        }
        drop(peers);
        self.start_sweeping();
        Some(peer)
    }

    /// The state of every peer, by address.
    pub(crate) fn snapshot(&self) -> Vec<PeerSnapshot> {
        let live = self.peers.lock().live();
        let mut all: Vec<_> = live.iter().map(|peer| peer.snapshot()).collect();
        all.sort_by(|one, other| one.address.cmp(&other.address));
        all
    }

    /// Waits up to `timeout` until the queues are sent, fails the rest and all new messages, and
    /// closes the connections. Returns how many messages were not sent.
    pub(crate) async fn stop(&self, timeout: Duration) -> u64 {
        let live = {
            let mut peers = self.peers.lock();
            peers.is_stopped = true;
            peers.live()
        };
        let flushed = join_all(live.iter().map(|peer| peer.wait_flushed()));
        let _ = tokio::time::timeout(timeout, flushed).await;
        let unsent = live
            .iter()
            .map(|peer| peer.fail(ConnectPhase::Stopped, &peer.stopped_error(), |_| true));
        let unsent = unsent.sum();
        if let Some(sweeper) = self.sweeper.get() {
            sweeper.abort();
        }
        self.factory.close();
        unsent
    }

    /// Starts the task that closes idle routes, once.
    fn start_sweeping(self: &Arc<Self>) {
        self.sweeper.get_or_init(|| {
            let task = self.connections.shared.runtime.spawn(Self::sweep(Arc::downgrade(self)));
            AbortOnDropHandle::new(task)
        });
    }

    async fn sweep(pool: Weak<Self>) {
        loop {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            let Some(pool) = pool.upgrade() else { return };
            let live = pool.peers.lock().live();
            live.iter().for_each(|peer| peer.sweep());
        }
    }
}

/// Another environment: its connection, and the routes to its endpoints.
///
/// Messages that are queued while there is no connection are sent once it is established. If it
/// cannot be made, or ends, all queued messages fail, and the next message connects again (Spark's
/// `Outbox`). Nothing is sent twice.
pub(crate) struct Peer {
    pub(super) address: RpcAddress,
    shared: Arc<PeerShared>,
    /// The peer opened its connection itself and does not listen, so that its end is final.
    is_bound: bool,
    pub(super) state: Mutex<PeerState>,
    /// All queues are empty.
    flushed: Notify,
}

pub(super) struct PeerState {
    pub(super) phase: ConnectPhase,
    pub(super) routes: RouteTable,
    /// A task waits for capacity in the connection's write queue, and flushes then.
    is_blocked: bool,
}

pub(super) enum ConnectPhase {
    /// Never connected, or the connection failed.
    Idle,
    /// A task connects. Messages are queued.
    Connecting,
    /// Messages are pushed to the connection by their senders, as credit allows.
    Connected(Arc<PeerConnection>),
    /// The peer's Hello was rejected and its connection closed. Messages fail until then; later
    /// ones connect again.
    Rejected(RpcError, Instant),
    /// The only connection has ended.
    Lost,
    Stopped,
}

impl ConnectPhase {
    pub(super) fn connection(&self) -> Option<&Arc<PeerConnection>> {
        match self {
            Self::Connected(connection) => Some(connection),
            Self::Idle | Self::Connecting | Self::Rejected(..) | Self::Lost | Self::Stopped => None,
        }
    }

    fn has_connection(&self, id: ConnectionId) -> bool {
        self.connection().is_some_and(|connection| connection.client.id() == id)
    }
}

impl Peer {
    fn new(
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
                is_blocked: false,
            }),
            flushed: Notify::new(),
        })
    }

    /// The state, unless messages to the peer fail. A connection whose end has not been handled yet
    /// is dropped first, so that only the messages queued before fail with it.
    pub(super) fn lock_usable(&self) -> Result<MutexGuard<'_, PeerState>, RpcError> {
        loop {
            let state = self.state.lock();
            let ended = match &state.phase {
                ConnectPhase::Connected(connection) if !connection.client.is_active() => {
                    connection.client.id()
                }
                ConnectPhase::Lost => return Err(self.closed_error()),
                ConnectPhase::Stopped => return Err(self.stopped_error()),
                ConnectPhase::Rejected(error, until) if Instant::now() < *until => {
                    return Err(error.clone());
                }
                _ => return Ok(state),
            };
            drop(state);
            self.on_disconnected(ended);
        }
    }

    pub(super) fn remove_ref(&self, slot: usize) {
        let PeerState { phase, routes, .. } = &mut *self.state.lock();
        routes.remove_ref(slot, phase.connection());
    }

    /// The connection is established. False if it has ended already.
    fn on_connected(self: &Arc<Self>, connection: &Arc<PeerConnection>) -> bool {
        let owner = connection.set_route_owner(|| Arc::clone(self));
        if !owner.is_some_and(|owner| Arc::ptr_eq(&owner, self)) {
            return false;
        }
        // Before any message: the peer rejects those of unknown senders.
        connection.send_hello();
        {
            let mut state = self.state.lock();
            // An end that comes later finds the connection in the phase.
            if !connection.client.is_active() {
                return false;
            }
            if matches!(state.phase, ConnectPhase::Connecting) {
                state.phase = ConnectPhase::Connected(Arc::clone(connection));
            }
        }
        // The peer's Hello may have arrived already.
        self.on_hello(connection);
        true
    }

    /// The Hello of the peer has arrived, so that messages of bound refs can be sent.
    pub(super) fn on_hello(self: &Arc<Self>, connection: &Arc<PeerConnection>) {
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

    /// The state, unless `connection` is one before the present one.
    fn lock_connected(&self, connection: &PeerConnection) -> Option<MutexGuard<'_, PeerState>> {
        let state = self.state.lock();
        state.phase.has_connection(connection.client.id()).then_some(state)
    }

    pub(crate) fn on_credit(self: &Arc<Self>, connection: &PeerConnection, credit: &proto::Credit) {
        let Some(mut state) = self.lock_connected(connection) else { return };
        if let Some(slot) = state.routes.on_credit(credit) {
            // If the route stays open, others that wait for its number must evict another one.
            self.flush(state, Some(slot).filter(|_| !credit.keeps_open));
        }
    }

    pub(crate) fn on_route_closed(self: &Arc<Self>, connection: &PeerConnection, number: u32) {
        let Some(mut state) = self.lock_connected(connection) else { return };
        if let Some(slots) = state.routes.on_route_closed(number) {
            self.flush(state, slots);
        }
    }

    /// The name of the endpoint that a route leads to.
    pub(crate) fn endpoint(&self, number: u32) -> Option<Arc<str>> {
        self.state.lock().routes.endpoint(number)
    }

    /// Sends the queues as far as credit allows: of all routes, or of one. Under the lock, so
    /// that no sender that finds a queue empty overtakes it.
    fn flush(self: &Arc<Self>, mut guard: MutexGuard<'_, PeerState>, slot: Option<usize>) {
        let mut unsent = UnsentMessages::default();
        let PeerState { phase, routes, is_blocked } = &mut *guard;
        if let ConnectPhase::Connected(connection) = phase
            && !*is_blocked
            && !routes.flush(slot, connection, &mut unsent)
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
        let (is_flushed, pool) = (routes.queued == 0, routes.release_pool());
        drop(guard);
        drop(pool);
        if is_flushed {
            self.flushed.notify_waiters();
        }
        self.fail_unsent(unsent, None);
    }

    /// Changes to `next` from any phase that is `from`, and fails all queued messages. Returns
    /// how many these were.
    fn fail(
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
        let (unsent, _pool) = (state.routes.reset(), state.routes.release_pool());
        drop(state);
        self.flushed.notify_waiters();
        self.fail_unsent(unsent, Some(error))
    }

    /// Fails messages that were accepted and are not sent. Messages without a reason of their own
    /// fail with `error`. Returns how many there were, without cancelled asks.
    fn fail_unsent(&self, unsent: UnsentMessages, error: Option<&RpcError>) -> u64 {
        let (mut asks, mut one_way) = (0_u64, 0_u64);
        for (queued, reason) in unsent.0 {
            let reported = reason.is_some();
            let Some(error) = reason.or_else(|| error.cloned()) else { continue };
            match queued.caller {
                Some(caller) => asks += u64::from(caller.send(Err(error)).is_ok()),
                None if reported => {
                    one_way += 1;
                    self.shared.report_undelivered(error, self.address.clone());
                }
                None => one_way += 1,
            }
        }
        if let (1.., Some(error)) = (one_way, error) {
            tracing::warn!(%error, messages = one_way, "one-way messages were lost");
        }
        asks + one_way
    }

    /// Waits until all queues are empty.
    async fn wait_flushed(&self) {
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

    /// Why a request to this peer failed.
    pub(super) fn request_error(&self, error: TransportError) -> RpcError {
        match &self.state.lock().phase {
            ConnectPhase::Rejected(rejection, _) => rejection.clone(),
            _ => RpcError::from_transport(error, &self.address),
        }
    }

    /// The caller of a queued ask no longer waits.
    pub(super) fn on_queued_cancelled(self: &Arc<Self>, slot: usize) {
        let mut state = self.state.lock();
        if state.routes.on_cancelled(slot) {
            self.flush(state, Some(slot));
        }
    }

    pub(super) fn on_disconnected(&self, id: ConnectionId) {
        let next = if self.is_bound { ConnectPhase::Lost } else { ConnectPhase::Idle };
        self.fail(next, &self.closed_error(), |phase| phase.has_connection(id));
    }

    /// Notifies the peer that the caller of a request no longer waits, if no response has arrived.
    pub(super) fn cancel(&self, response: &RpcFuture) {
        let Some((client, request_id)) = response.pending_request() else { return };
        let connection = self.state.lock().phase.connection().cloned();
        // On another connection the request has ended with its own.
        if let Some(connection) =
            connection.filter(|connection| connection.client.id() == client.id())
        {
            connection.send_notice(Notice::Cancel(proto::Cancel { request_id }));
        }
    }

    /// Closes idle routes.
    fn sweep(&self) {
        let PeerState { phase, routes, .. } = &mut *self.state.lock();
        if let ConnectPhase::Connected(connection) = phase {
            routes.sweep(connection);
        }
    }

    fn snapshot(&self) -> PeerSnapshot {
        let state = self.state.lock();
        let Volume { messages, bytes } = state.routes.volume();
        PeerSnapshot {
            address: self.address.clone(),
            connected: state
                .phase
                .connection()
                .is_some_and(|connection| connection.client.is_active()),
            endpoints: state.routes.routes.len() as u64,
            queued: messages,
            queued_bytes: bytes,
        }
    }

    fn closed_error(&self) -> RpcError {
        let text = format!("Connection from {} closed", self.address);
        RpcError::new(ErrorKind::Network, text).with_peer(&self.address)
    }

    pub(super) fn runtime_error(&self) -> RpcError {
        let text = format!("the runtime shut down before {} was connected", self.address);
        RpcError::new(ErrorKind::Stopped, text).with_peer(&self.address)
    }

    fn stopped_error(&self) -> RpcError {
        let text = format!(
            "Message to {} is dropped because Outbox is stopped: RpcEnv already stopped.",
            self.address
        );
        RpcError::new(ErrorKind::Stopped, text).with_peer(&self.address)
    }
}

/// Connects to a peer. A peer is connecting only as long as such a task exists.
pub(super) struct ConnectTask(Option<(Arc<PeerPool>, Arc<Peer>)>);

impl ConnectTask {
    pub(super) fn start(pool: &Arc<PeerPool>, peer: &Arc<Peer>) {
        let task = Self(Some((Arc::clone(pool), Arc::clone(peer))));
        peer.shared.runtime.spawn(task.run());
    }

    async fn run(mut self) {
        let Some((pool, peer)) = &self.0 else { return };
        if let Err(error) = Self::connect(pool, peer).await {
            let error = RpcError::from_transport(error, &peer.address);
            peer.fail(ConnectPhase::Idle, &error, |phase| {
                matches!(phase, ConnectPhase::Connecting)
            });
        }
        // The peer may be connecting again already, by another task.
        self.0 = None;
    }

    async fn connect(pool: &Arc<PeerPool>, peer: &Arc<Peer>) -> Result<(), TransportError> {
        let address = (peer.address.unbracketed_host(), peer.address.port());
        let client = pool.factory.create_client(address).await?;
        let connection = pool.connections.add(&client);
        if !connection.is_some_and(|connection| peer.on_connected(&connection)) {
            return Err(client.closed().await);
        }
        pool.start_sweeping();
        Ok(())
    }
}

impl Drop for ConnectTask {
    fn drop(&mut self) {
        if let Some((_, peer)) = self.0.take() {
            peer.fail(ConnectPhase::Idle, &peer.runtime_error(), |phase| {
                matches!(phase, ConnectPhase::Connecting)
            });
        }
    }
}
