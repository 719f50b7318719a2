//! One connection to another environment, with the RPC-level state that belongs to it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use foldhash::HashMap;
use network_common::{ConnectionId, TransportClient};
use tokio::runtime::Handle;

use super::inbound::InboundRoutes;
use super::notices::NoticeQueue;
use super::pool::Peer;
use super::remote_ask::CancelledRequests;
use crate::address::RpcAddress;
use crate::error::{ErrorKind, RpcError};
use crate::limits::ByteBudget;
use crate::sync::{Mutex, RwLock};
use crate::wire::proto::notice::Notice;
use crate::wire::{VERSIONS, proto};

/// What all connections of an environment share.
pub(crate) struct PeerShared {
    pub(crate) budget: ByteBudget,
    /// The most bytes of one message or response.
    pub(crate) max_message: usize,
    pub(crate) max_routes: u32,
    /// For the routes that peers open.
    pub(crate) route_budget: ByteBudget,
    pub(crate) runtime: Handle,
    /// Identifies this run of this environment.
    pub(crate) incarnation: u64,
    /// Where this environment listens, once it does.
    pub(crate) address: OnceLock<RpcAddress>,
    /// One-way messages of this environment that no endpoint received.
    pub(crate) undelivered: AtomicU64,
    /// Reports such a message to the endpoints of this environment.
    pub(crate) on_undelivered: Box<dyn Fn(RpcError, RpcAddress) + Send + Sync>,
}

impl PeerShared {
    pub(crate) fn report_undelivered(&self, error: RpcError, peer: RpcAddress) {
        tracing::warn!(%error, "one-way message undelivered");
        self.undelivered.fetch_add(1, Ordering::Relaxed);
        (self.on_undelivered)(error, peer);
    }
}

/// All open connections of an environment, whichever side opened them.
pub(crate) struct Connections {
    by_id: RwLock<HashMap<ConnectionId, Arc<PeerConnection>>>,
    pub(crate) shared: Arc<PeerShared>,
}

impl Connections {
    pub(crate) fn new(shared: Arc<PeerShared>) -> Arc<Self> {
        Arc::new(Self { by_id: RwLock::default(), shared })
    }

    /// The state of the connection of `client`, new or existing. `None` if it has ended: under
    /// the lock, so that [`remove`](Self::remove) finds every entry.
    pub(crate) fn add(&self, client: &TransportClient) -> Option<Arc<PeerConnection>> {
        let mut by_id = self.by_id.write();
        if !client.is_active() {
            return None;
        }
        let new = || Arc::new(PeerConnection::new(client, &self.shared));
        Some(Arc::clone(by_id.entry(client.id()).or_insert_with(new)))
    }

    pub(crate) fn get(&self, client: &TransportClient) -> Option<Arc<PeerConnection>> {
        self.by_id.read().get(&client.id()).cloned()
    }

    /// The connection has ended.
    pub(crate) fn remove(&self, client: &TransportClient) -> Option<Arc<PeerConnection>> {
        let connection = self.by_id.write().remove(&client.id())?;
        connection.on_closed();
        Some(connection)
    }

    /// The latest open connection to that incarnation.
    pub(crate) fn of_incarnation(&self, incarnation: u64) -> Option<Arc<PeerConnection>> {
        let by_id = self.by_id.read();
        let open = by_id.values().filter(|connection| {
            connection.incarnation() == Some(incarnation) && connection.client.is_active()
        });
        open.max_by_key(|connection| connection.client.id()).cloned()
    }

    /// Waits until every connection that is open now has ended.
    pub(crate) async fn closed(&self) {
        let clients: Vec<_> =
            self.by_id.read().values().map(|connection| connection.client.clone()).collect();
        for client in clients {
            client.closed().await;
        }
    }

    /// Handles the Hello of a peer. Returns [`PeerConnection::announced_address`].
    pub(crate) fn on_hello(
        &self,
        connection: &Arc<PeerConnection>,
        hello: &proto::Hello,
    ) -> Result<Option<RpcAddress>, RpcError> {
        {
            // Exclusive, so that of two peers with one incarnation the second finds the first.
            let by_id = self.by_id.write();
            if connection.identity.get().is_some() {
                let text = format!("{} sent more than one Hello", connection.address());
                return Err(RpcError::new(ErrorKind::Decode, text));
            }
            let is_accepted = connection.hello_sent.get().is_none();
            let checked = check_hello(&by_id, connection, hello, is_accepted);
            // Before others find the peer by its incarnation, and send it messages.
            connection.send_hello();
            let (incarnation, max_routes) = (hello.incarnation, hello.max_routes);
            let _ = connection.identity.set(checked.map(|address| PeerIdentity {
                incarnation,
                address,
                max_routes,
                is_accepted,
            }));
        }
        if let Some(peer) = connection.route_owner() {
            peer.on_hello(connection);
        }
        connection.check_identity()?;
        Ok(connection.announced_address().cloned())
    }
}

/// Returns where the peer listens.
fn check_hello(
    by_id: &HashMap<ConnectionId, Arc<PeerConnection>>,
    connection: &PeerConnection,
    hello: &proto::Hello,
    is_accepted: bool,
) -> Result<Option<RpcAddress>, RpcError> {
    let socket = &connection.socket;
    let rejected = |text: String| RpcError::new(ErrorKind::Rejected, text).with_peer(socket);
    let (min, max) = VERSIONS;
    if hello.min_version > max || hello.max_version < min {
        return Err(rejected(format!(
            "{socket} speaks versions {} to {} of the protocol of rpc-core, and this environment \
             speaks versions {min} to {max}",
            hello.min_version, hello.max_version
        )));
    }
    if hello.incarnation == 0 {
        return Err(rejected(format!("the Hello of {socket} has no incarnation")));
    }
    // On a connection that this environment opened, the client id is its own.
    let id = connection.client.client_id().filter(|_| is_accepted);
    let is_claimed = |other: &PeerConnection| {
        other
            .known_identity()
            .is_some_and(|other| other.incarnation == hello.incarnation && other.is_accepted)
            && other.client.is_active()
            && other.client.client_id() != id
    };
    if id.is_some() && by_id.values().any(|other| is_claimed(other)) {
        return Err(rejected(format!(
            "{socket} claims an incarnation that a peer with another identity has"
        )));
    }
    match hello.address.as_str() {
        "" => Ok(None),
        address => address.parse().map(Some).map_err(|error: RpcError| {
            rejected(format!("the Hello of {socket} has no valid address: {error}"))
        }),
    }
}

/// What a peer says about itself.
struct PeerIdentity {
    incarnation: u64,
    /// Where it listens.
    address: Option<RpcAddress>,
    /// How many routes may be opened to it.
    max_routes: u32,
    /// The peer opened the connection.
    is_accepted: bool,
}

/// The RPC-level state of one connection.
pub(crate) struct PeerConnection {
    pub(super) client: TransportClient,
    /// The address of the other end of the socket.
    pub(crate) socket: RpcAddress,
    pub(crate) shared: Arc<PeerShared>,
    /// From the peer's Hello. An error if the peer cannot be talked to.
    identity: OnceLock<Result<PeerIdentity, RpcError>>,
    hello_sent: OnceLock<()>,
    pub(super) notices: Mutex<NoticeQueue>,
    pub(super) cancelled: CancelledRequests,
    pub(super) inbound: Mutex<InboundRoutes>,
    /// Who owns the routes that this environment opened over the connection. It lives as long as
    /// the connection, since the peer counts these routes as long.
    owner: Mutex<Option<Arc<Peer>>>,
}

impl PeerConnection {
    fn new(client: &TransportClient, shared: &Arc<PeerShared>) -> Self {
        Self {
            client: client.clone(),
            socket: client.peer_addr().into(),
            shared: Arc::clone(shared),
            identity: OnceLock::new(),
            hello_sent: OnceLock::new(),
            notices: Mutex::default(),
            cancelled: CancelledRequests::default(),
            inbound: Mutex::new(InboundRoutes::default()),
            owner: Mutex::default(),
        }
    }

    /// The addresses that endpoints are notified of: that of the socket, and the announced one.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = &RpcAddress> {
        std::iter::once(&self.socket).chain(self.announced_address())
    }

    /// Where the peer listens, if it opened the connection. Of a connection that this environment opened, they know it.
    fn announced_address(&self) -> Option<&RpcAddress> {
        let identity = self.known_identity()?;
        identity.address.as_ref().filter(|_| identity.is_accepted)
    }

    /// The advertised address, or else that of the socket.
    pub(crate) fn address(&self) -> &RpcAddress {
        self.known_identity().and_then(|identity| identity.address.as_ref()).unwrap_or(&self.socket)
    }

    pub(crate) fn incarnation(&self) -> Option<u64> {
        Some(self.known_identity()?.incarnation)
    }

    /// How many routes may be opened to the peer; this environment's own limit until the
    /// peer's Hello has arrived.
    pub(super) fn max_routes(&self) -> u32 {
        let limit = self.known_identity().map_or(u32::MAX, |identity| identity.max_routes);
        limit.min(self.shared.max_routes)
    }

    /// Returns the identity from the peer's Hello, if one has arrived and was accepted.
    fn known_identity(&self) -> Option<&PeerIdentity> {
        self.identity.get()?.as_ref().ok()
    }

    /// Checks that the peer has identified itself.
    pub(crate) fn check_identity(&self) -> Result<(), RpcError> {
        match self.identity.get() {
            Some(identity) => identity.as_ref().map(|_| ()).map_err(Clone::clone),
            None => {
                let text = format!("{} sent a message before its Hello", self.socket);
                Err(RpcError::new(ErrorKind::Rejected, text).with_peer(&self.socket))
            }
        }
    }

    /// Why the peer cannot be talked to, if its Hello was rejected.
    pub(super) fn rejected_hello(&self) -> Option<&RpcError> {
        self.identity.get()?.as_ref().err()
    }

    /// Sends this environment's Hello, once.
    pub(super) fn send_hello(self: &Arc<Self>) {
        if self.hello_sent.set(()).is_ok() {
            let address = self.shared.address.get().map(ToString::to_string).unwrap_or_default();
            self.send_notice(Notice::Hello(proto::Hello {
                min_version: VERSIONS.0,
                max_version: VERSIONS.1,
                features: 0,
                incarnation: self.shared.incarnation,
                address,
                max_routes: self.shared.max_routes,
            }));
        }
    }

    pub(crate) fn route_owner(&self) -> Option<Arc<Peer>> {
        self.owner.lock().clone()
    }

    /// Returns the owner of the routes over this connection, which is `new()` if there is none;
    /// `None` if the connection has ended.
    pub(super) fn set_route_owner(&self, new: impl FnOnce() -> Arc<Peer>) -> Option<Arc<Peer>> {
        let mut owner = self.owner.lock();
        // Under the lock, so that `on_closed` finds the owner.
        self.client.is_active().then(|| Arc::clone(owner.get_or_insert_with(new)))
    }

    /// A caller of the peer no longer waits.
    pub(crate) fn on_cancel(&self, request_id: i64) {
        if !self.cancelled.add(request_id) {
            tracing::warn!(peer = %self.socket, "closing a connection whose peer cancels without end");
            self.client.close();
        }
    }

    fn on_closed(&self) {
        let owner = self.owner.lock().take();
        if let Some(peer) = owner {
            peer.on_disconnected(self.client.id());
        }
        self.close_inbound();
        self.cancelled.add_all();
    }
}
