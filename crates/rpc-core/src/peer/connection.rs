//! The RPC-level state of one connection to another environment, and the types that refer to it and
//! that it refers to. Their methods are in the file of each type.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use bytes::Bytes;
use foldhash::HashMap;
use network_common::{ConnectionId, RpcResponseCallback, TransportClient, log_limited};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::cancelled::CancelledRequests;
use super::credit::RecvCredit;
use super::notices::{NoticeOutcome, NoticeQueue};
use crate::address::RpcAddress;
use crate::error::{ErrorKind, RpcError};
use crate::limits::{ByteLimit, CreditLimits, Volume};
use crate::sync::Mutex;
use crate::wire::proto::notice::Notice;
use crate::wire::{MessageHeader, VERSIONS, encode_notice, proto};

/// The state that all connections of an environment share.
pub(crate) struct PeerShared {
    /// The bytes of all messages from the network, and of all events, that are not handled yet.
    pub(crate) budget: Arc<ByteLimit>,
    /// The most bytes of one message or response.
    pub(crate) max_message: usize,
    /// The most routes in one direction of one connection.
    pub(crate) max_routes: u32,
    /// The bytes of all routes that peers have opened.
    pub(crate) route_budget: ByteLimit,
    /// The tokens of the retry budget of each peer.
    pub(crate) retry_budget: u32,
    pub(crate) runtime: Handle,
    /// The process run of this environment.
    pub(crate) incarnation: u64,
    /// The advertised address. Empty until the environment listens.
    pub(crate) address: OnceLock<RpcAddress>,
    /// The number of one-way messages of this environment that peers rejected.
    pub(crate) undelivered: AtomicU64,
    /// Reports such a message to the endpoints of this environment.
    pub(crate) on_undelivered: Box<dyn Fn(RpcError, RpcAddress) + Send + Sync>,
}

impl PeerShared {
    /// Counts and reports a one-way message that a peer rejected or that was never sent.
    pub(crate) fn report_undelivered(&self, error: RpcError, peer: RpcAddress) {
        log_limited!(|suppressed| tracing::warn!(suppressed, %peer,
            error = %format_args!("{error:#}"),
            "one-way message was not delivered"));
        self.undelivered.fetch_add(1, Ordering::Relaxed);
        (self.on_undelivered)(error, peer);
    }
}

/// The identity of a peer, from its Hello.
pub(super) struct PeerIdentity {
    pub(super) incarnation: u64,
    /// The advertised address. `None` if the peer does not listen.
    pub(super) address: Option<RpcAddress>,
    /// The most routes that may be opened to the peer over the connection.
    pub(super) max_routes: u32,
    /// Is true if the peer opened the connection.
    pub(super) is_accepted: bool,
}

/// The RPC-level state of one connection.
///
/// It owns the state of both directions. `inbound` has its methods for routes that the peer opened.
pub(crate) struct PeerConnection {
    pub(super) client: TransportClient,
    /// The address of the other end of the socket.
    pub(crate) socket: RpcAddress,
    pub(crate) shared: Arc<PeerShared>,
    /// Set by the peer's Hello. An error if the Hello was rejected.
    pub(super) identity: OnceLock<Result<PeerIdentity, RpcError>>,
    pub(super) hello_sent: OnceLock<()>,
    notices: Mutex<NoticeQueue>,
    pub(super) cancelled: CancelledRequests,
    pub(super) inbound: Mutex<InboundRoutes>,
    /// The owner of the routes that this environment opened over the connection. It lives as long
    /// as the connection, since the peer counts these routes as long.
    owner: Mutex<Option<Arc<dyn RouteOwner>>>,
}

/// The owner of the routes that this environment opened over a connection: a
/// [`Peer`](super::peer_state::Peer).
///
/// A trait, because the files of the sender's side are above this one.
pub(crate) trait RouteOwner: Any + Send + Sync {
    /// Handles the Hello of the peer.
    fn on_hello(self: Arc<Self>, connection: &Arc<PeerConnection>);
    /// Handles Credit: sends the messages that waited for it.
    fn on_credit(self: Arc<Self>, connection: &PeerConnection, credit: &proto::Credit);
    /// Handles RouteClosed: sends the messages that waited for a free number.
    fn on_route_closed(self: Arc<Self>, connection: &PeerConnection, number: u32);
    /// Fails all queued messages, because the connection has ended.
    fn on_disconnected(&self, id: ConnectionId);
    /// Returns the name of the endpoint that a route leads to.
    fn endpoint(&self, number: u32) -> Option<Arc<str>>;
}

/// The routes that the peer of one connection has opened, by their number.
#[derive(Default)]
pub(crate) struct InboundRoutes {
    pub(super) by_number: HashMap<u32, InboundRoute>,
    pub(super) by_name: HashMap<Arc<str>, u32>,
    pub(super) name_bytes: usize,
    pub(super) next_epoch: u32,
}

/// The receiver's state of one route.
pub(super) struct InboundRoute {
    pub(super) endpoint: Arc<str>,
    pub(super) credit: RecvCredit,
    /// `None` while no endpoint has the name.
    pub(super) target: Option<Weak<dyn RouteTarget>>,
    pub(super) epoch: u32,
}

/// Identifies a route of a connection for as long as it leads to the same target.
///
/// Numbers are reused, epochs are not.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct RouteKey {
    pub(super) number: u32,
    pub(super) epoch: u32,
}

/// One received message, counted in the credit of its route and in the budget of its environment.
///
/// Dropping the permit returns both.
pub(crate) struct MessagePermit {
    pub(crate) connection: Arc<PeerConnection>,
    pub(super) key: RouteKey,
    /// A frame has less than 4 GiB. The permit is small because it is moved with its message.
    pub(super) bytes: u32,
    /// Is true if the sender had credit, so that the inbox must accept the message.
    pub(crate) is_covered: bool,
    /// Is false once the credit has been added to a `ReleasedVolume`.
    pub(super) holds_credit: bool,
}

/// The destination of a route: the inbox of an endpoint.
pub(crate) trait RouteTarget: Send + Sync {
    /// Returns whether the endpoint has been stopped, so that another one may have its name.
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

/// The routes that lead to one endpoint, and the sum of the credit that their senders hold.
#[derive(Default)]
pub(crate) struct TargetRoutes {
    pub(super) outstanding_messages: AtomicU64,
    pub(super) outstanding_bytes: AtomicU64,
    /// Keeps two connections from granting the same free capacity of the inbox.
    pub(super) granting: Mutex<()>,
    pub(super) routes: Mutex<BTreeMap<(ConnectionId, u32), AttachedRoute>>,
}

pub(super) type AttachedRoute = (Weak<PeerConnection>, RouteKey);

/// One ask of a peer. The call context of the ask owns it and responds through it.
pub(crate) struct RemoteAsk {
    pub(crate) key: RemoteAskKey,
    pub(crate) connection: Arc<PeerConnection>,
    /// `None` after the response.
    pub(super) callback: Option<RpcResponseCallback>,
}

/// Identifies an ask of a peer, also after its context has responded.
#[derive(Clone, Copy)]
pub(crate) struct RemoteAskKey {
    /// Unique in this process.
    pub(crate) id: u64,
    pub(super) request_id: i64,
    pub(crate) deadline: Option<Instant>,
}

impl PeerConnection {
    pub(super) fn new(client: &TransportClient, shared: &Arc<PeerShared>) -> Self {
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

    /// Returns the addresses in connection events: that of the socket, and the announced one.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = &RpcAddress> {
        std::iter::once(&self.socket).chain(self.announced_address())
    }

    /// Returns the advertised address of the peer, if the peer opened the connection.
    ///
    /// Of a connection that this environment opened, endpoints know the address already.
    pub(super) fn announced_address(&self) -> Option<&RpcAddress> {
        let identity = self.known_identity()?;
        identity.address.as_ref().filter(|_| identity.is_accepted)
    }

    /// Returns the advertised address of the peer, or else that of the socket.
    pub(crate) fn address(&self) -> &RpcAddress {
        self.known_identity().and_then(|identity| identity.address.as_ref()).unwrap_or(&self.socket)
    }

    /// Returns the process run of the peer, if its Hello was accepted.
    pub(crate) fn incarnation(&self) -> Option<u64> {
        Some(self.known_identity()?.incarnation)
    }

    /// Returns the most routes that may be opened to the peer.
    ///
    /// Until the peer's Hello has arrived this is the limit of this environment.
    pub(super) fn max_routes(&self) -> u32 {
        let limit = self.known_identity().map_or(u32::MAX, |identity| identity.max_routes);
        limit.min(self.shared.max_routes)
    }

    /// Returns the identity of the peer, if its Hello has arrived and was accepted.
    pub(super) fn known_identity(&self) -> Option<&PeerIdentity> {
        self.identity.get()?.as_ref().ok()
    }

    /// Checks that the peer's Hello has arrived and was accepted.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Rejected`] if it has not arrived, or the reason why it was rejected.
    pub(crate) fn check_identity(&self) -> Result<(), RpcError> {
        match self.identity.get() {
            Some(identity) => identity.as_ref().map(|_| ()).map_err(Clone::clone),
            None => {
                let text = format!("{} sent a message before its Hello", self.socket);
                Err(RpcError::new(ErrorKind::Rejected, text).with_peer(&self.socket))
            }
        }
    }

    /// Returns the reason why the peer's Hello was rejected, if it was.
    pub(super) fn rejected_hello(&self) -> Option<&RpcError> {
        self.identity.get()?.as_ref().err()
    }

    /// Sends the Hello of this environment, unless it has been sent.
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

    /// Sends a notice, or queues it until the write queue has capacity.
    ///
    /// A notice is never dropped while the connection is open, as a lost grant of credit would
    /// block its route forever. A connection with too many queued notices is closed.
    pub(crate) fn send_notice(self: &Arc<Self>, notice: Notice) {
        let notice = encode_notice(notice);
        let outcome = self.notices.lock().send(notice, &self.client);
        match outcome {
            NoticeOutcome::Accepted => {}
            NoticeOutcome::FlushNeeded => {
                self.shared.runtime.spawn(Arc::clone(self).flush_notices());
            }
            NoticeOutcome::Overflow => {
                let peer = &self.socket;
                log_limited!(
                    |suppressed| tracing::warn!(suppressed, %peer, "connection closed: its peer does not read its notices")
                );
                self.client.close();
            }
        }
    }

    async fn flush_notices(self: Arc<Self>) {
        while self.client.ready().await.is_ok() {
            if self.notices.lock().flush(&self.client) {
                return;
            }
        }
    }

    /// Returns the owner of the routes over this connection, if there is one.
    pub(crate) fn route_owner(&self) -> Option<Arc<dyn RouteOwner>> {
        self.owner.lock().clone()
    }

    /// Returns the owner of the routes over this connection, which is `new()` if there is none.
    ///
    /// Returns `None` if the connection has ended.
    pub(super) fn set_route_owner(
        &self,
        new: impl FnOnce() -> Arc<dyn RouteOwner>,
    ) -> Option<Arc<dyn RouteOwner>> {
        let mut owner = self.owner.lock();
        // Under the lock, so that `on_closed` finds the owner.
        self.client.is_active().then(|| Arc::clone(owner.get_or_insert_with(new)))
    }

    /// Marks a request as cancelled by the peer.
    pub(crate) fn on_cancel(&self, request_id: i64) {
        if !self.cancelled.add(request_id) {
            let peer = &self.socket;
            log_limited!(
                |suppressed| tracing::warn!(suppressed, %peer, "connection closed: its peer cancelled too many requests")
            );
            self.client.close();
        }
    }

    /// Fails everything that depends on the connection, which has ended.
    pub(super) fn on_closed(&self) {
        let owner = self.owner.lock().take();
        if let Some(peer) = owner {
            peer.on_disconnected(self.client.id());
        }
        self.close_inbound();
        self.cancelled.add_all();
    }
}
