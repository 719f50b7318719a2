//! The peers of an environment by address, and the task that connects to one of them.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use futures::future::join_all;
use network_common::{ConnectionId, TransportClientFactory, TransportError};
use tokio_util::task::AbortOnDropHandle;

use super::connection::{PeerConnection, RouteOwner};
use super::connections::Connections;
use super::peer_state::{ConnectPhase, Peer};
use crate::address::RpcAddress;
use crate::error::RpcError;
use crate::limits::Volume;
use crate::metrics::PeerSnapshot;
use crate::sync::Mutex;

/// The interval at which idle routes are closed: after 2 to 3 intervals without a message.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// The peers to which this environment sends, and the factory of the connections to them.
///
/// The refs to the endpoints of a [`Peer`] and its connection keep the peer alive. Refs and queued
/// messages keep the pool alive. Dropping the pool closes its connections.
pub(crate) struct PeerPool {
    peers: Mutex<PeersByAddress>,
    factory: TransportClientFactory,
    connections: Arc<Connections>,
    /// The most that the queue of one route holds.
    pub(super) limits: Volume,
    /// The task that closes idle routes. It starts with the first connection.
    sweeper: OnceLock<AbortOnDropHandle<()>>,
}

/// The state of a connection has a handle of the connection, so it does not end by itself.
impl Drop for PeerPool {
    fn drop(&mut self) {
        self.factory.close();
    }
}

#[derive(Default)]
struct PeersByAddress {
    /// The key has a connection only if the peer does not listen. Its address is then that of the
    /// socket.
    by_address: BTreeMap<(RpcAddress, Option<ConnectionId>), Weak<Peer>>,
    /// At this size, entries of dropped peers are removed.
    prune_at: usize,
    is_stopped: bool,
}

impl PeersByAddress {
    /// Returns the peers that still exist.
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

/// Downcasts a route owner to [`Peer`], the only type that implements [`RouteOwner`].
fn into_peer(owner: Arc<dyn RouteOwner>) -> Option<Arc<Peer>> {
    (owner as Arc<dyn Any + Send + Sync>).downcast().ok()
}

impl PeerPool {
    /// Creates a pool. `limits` is the most that the queue of one route holds.
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

    /// Returns the peer at `address`, a new one if none exists.
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

    /// Returns the peer at the other end of `connection`, a new one if none exists.
    ///
    /// A new peer is bound to the connection: it does not listen, so it can be reached over this
    /// connection only. Returns `None` if the connection has ended.
    pub(crate) fn connected_peer(
        self: &Arc<Self>,
        connection: &Arc<PeerConnection>,
    ) -> Option<Arc<Peer>> {
        if let Some(owner) = connection.route_owner() {
            return into_peer(owner);
        }
        let mut peers = self.peers.lock();
        let is_stopped = peers.is_stopped;
        let owner = connection.set_route_owner(|| {
            let phase = if is_stopped {
                ConnectPhase::Stopped
            } else {
                ConnectPhase::Connected(Arc::clone(connection))
            };
            Peer::new(&connection.socket, &self.connections.shared, phase, true)
        })?;
        let peer = into_peer(owner)?;
        // False if `Peer::on_connected` has set the owner meanwhile.
        if peer.is_bound {
            peers.add(&peer, Some(connection.client.id()));
        }
        drop(peers);
        self.start_sweeping();
        Some(peer)
    }

    /// Returns the state of every peer, sorted by address.
    pub(crate) fn snapshot(&self) -> Vec<PeerSnapshot> {
        let live = self.peers.lock().live();
        let mut all: Vec<_> = live.iter().map(|peer| peer.snapshot()).collect();
        all.sort_by(|one, other| one.address.cmp(&other.address));
        all
    }

    /// Flushes the queues for at most `timeout`, then closes all connections.
    ///
    /// Fails the messages that are still queued and all new ones. Returns the number of messages
    /// that were not sent.
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

    /// Starts the task that closes idle routes, unless it has been started.
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

/// A task that connects to a peer.
///
/// A peer is in the phase [`ConnectPhase::Connecting`] only while such a task exists.
pub(super) struct ConnectTask(Option<(Arc<PeerPool>, Arc<Peer>)>);

impl ConnectTask {
    /// Spawns the task.
    pub(super) fn start(pool: &Arc<PeerPool>, peer: &Arc<Peer>) {
        let task = Self(Some((Arc::clone(pool), Arc::clone(peer))));
        pool.connections.shared.runtime.spawn(task.run());
    }

    async fn run(mut self) {
        let Some((pool, peer)) = &self.0 else { return };
        if let Err(error) = Self::connect(pool, peer).await {
            peer.on_connect_failed(&RpcError::from_transport(error, &peer.address));
        }
        // Another task may be connecting the peer again. `drop` must not fail its messages.
        self.0 = None;
    }

    async fn connect(pool: &Arc<PeerPool>, peer: &Arc<Peer>) -> Result<(), TransportError> {
        let address = (peer.address.host(), peer.address.port());
        let client = pool.factory.create_client(address).await?;
        let connection = pool.connections.add(&client);
        if !connection.is_some_and(|connection| peer.on_connected(&connection)) {
            // It has ended; or the peer has made itself the owner by a message before its Hello.
            client.close();
            return Err(client.closed().await);
        }
        pool.start_sweeping();
        Ok(())
    }
}

/// Fails the queued messages if the runtime drops the task before it has finished.
impl Drop for ConnectTask {
    fn drop(&mut self) {
        if let Some((_, peer)) = self.0.take() {
            peer.fail(ConnectPhase::Idle, &peer.runtime_stopped_error(), |phase| {
                matches!(phase, ConnectPhase::Connecting)
            });
        }
    }
}
