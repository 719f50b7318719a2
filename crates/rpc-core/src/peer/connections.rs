//! All connections of an environment, and the check of the Hello that each peer sends.

use std::collections::BTreeMap;
use std::sync::Arc;

use foldhash::HashMap;
use network_common::{ConnectionId, TransportClient};

use super::connection::{PeerConnection, PeerIdentity, PeerShared};
use crate::address::RpcAddress;
use crate::error::{ErrorKind, RpcError};
use crate::sync::RwLock;
use crate::wire::{VERSIONS, proto};

/// All open connections of an environment, whichever side opened them.
pub(crate) struct Connections {
    by_id: RwLock<HashMap<ConnectionId, Arc<PeerConnection>>>,
    pub(crate) shared: Arc<PeerShared>,
}

impl Connections {
    pub(crate) fn new(shared: Arc<PeerShared>) -> Arc<Self> {
        Arc::new(Self { by_id: RwLock::default(), shared })
    }

    /// Returns the RPC-level state of the connection `client`, and creates it if needed.
    ///
    /// Returns `None` if the connection has ended. This is checked under the lock, so that
    /// [`remove`](Self::remove) finds every entry.
    pub(crate) fn add(&self, client: &TransportClient) -> Option<Arc<PeerConnection>> {
        let mut by_id = self.by_id.write();
        if !client.is_active() {
            return None;
        }
        let new = || Arc::new(PeerConnection::new(client, &self.shared));
        Some(Arc::clone(by_id.entry(client.id()).or_insert_with(new)))
    }

    /// Returns the RPC-level state of the connection `client`, if that is open.
    pub(crate) fn get(&self, client: &TransportClient) -> Option<Arc<PeerConnection>> {
        self.by_id.read().get(&client.id()).cloned()
    }

    /// Removes a connection that has ended.
    ///
    /// Fails its queued messages, closes its routes, and cancels the requests of the peer.
    pub(crate) fn remove(&self, client: &TransportClient) -> Option<Arc<PeerConnection>> {
        let connection = self.by_id.write().remove(&client.id())?;
        connection.on_closed();
        Some(connection)
    }

    /// Returns the newest open connection to the process run `incarnation`.
    pub(crate) fn of_incarnation(&self, incarnation: u64) -> Option<Arc<PeerConnection>> {
        let by_id = self.by_id.read();
        let open = by_id.values().filter(|connection| {
            connection.incarnation() == Some(incarnation) && connection.client.is_active()
        });
        open.max_by_key(|connection| connection.client.id()).cloned()
    }

    /// Waits until every connection that is open now has ended.
    pub(crate) async fn closed(&self) {
        // Sorted, so that a simulation can be repeated.
        let clients: BTreeMap<_, _> = {
            let by_id = self.by_id.read();
            by_id.iter().map(|(id, connection)| (*id, connection.client.clone())).collect()
        };
        for client in clients.into_values() {
            client.closed().await;
        }
    }

    /// Handles the Hello of a peer: stores its identity, or the reason why it was rejected.
    ///
    /// If the peer opened the connection, returns the address at which the peer listens.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Decode`] for a second Hello, [`ErrorKind::Rejected`] for one that is not valid.
    pub(crate) fn on_hello(
        &self,
        connection: &Arc<PeerConnection>,
        hello: &proto::Hello,
    ) -> Result<Option<RpcAddress>, RpcError> {
        {
            // The write lock serializes Hellos. If two peers send the same incarnation, the check
            // of the second one finds the identity of the first one.
            let by_id = self.by_id.write();
            if connection.identity.get().is_some() {
                let text = format!("{} sent more than one Hello", connection.address());
                return Err(RpcError::new(ErrorKind::Decode, text));
            }
            let is_accepted = connection.client.is_accepted();
            let checked = check_hello(&by_id, connection, hello, is_accepted);
            // Sent before `identity` is set, because other tasks may then send messages.
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

/// Checks a Hello. Returns the address at which the peer listens.
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
            "{socket} supports versions {} to {} of the protocol of rpc-core, and this environment \
             supports versions {min} to {max}",
            hello.min_version, hello.max_version
        )));
    }
    if hello.incarnation == 0 {
        return Err(rejected(format!("the Hello of {socket} has no incarnation")));
    }
    // If this environment opened the connection, the client id is that of this environment.
    let id = connection.client.client_id().filter(|_| is_accepted);
    let is_claimed = |other: &PeerConnection| {
        other.known_identity().is_some_and(|identity| {
            identity.incarnation == hello.incarnation && identity.is_accepted
        }) && other.client.is_active()
            && other.client.client_id() != id
    };
    if id.is_some() && by_id.values().any(|other| is_claimed(other)) {
        return Err(rejected(format!(
            "{socket} claims the incarnation of a peer that has another client id"
        )));
    }
    match hello.address.as_str() {
        "" => Ok(None),
        address => address.parse().map(Some).map_err(|error: RpcError| {
            rejected(format!("the Hello of {socket} has no valid address: {error}"))
        }),
    }
}
