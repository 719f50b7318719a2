//! Connections to other environments: the peer's identity, numbered routes in both directions with
//! their credit, notices, and asks that travel over a connection.
//!
//! [`PeerPool`] and [`OutboundRoute`] send, [`PeerConnection`] receives. Neither knows inboxes: a
//! route that a peer opened leads to a [`RouteTarget`]. ARCHITECTURE.md, "Routes", lists the files.

mod cancelled;
mod connection;
mod connections;
mod credit;
mod inbound;
mod inbound_routes;
mod message_permit;
mod notices;
mod outbound;
mod peer_state;
mod pool;
mod remote_ask;
mod reply;
mod route;
mod route_queue;
mod route_table;
mod route_target;

pub(crate) use connection::{
    InboundMessage, MessagePermit, PeerConnection, PeerShared, RemoteAsk, RemoteAskKey,
    RouteTarget, TargetRoutes,
};
pub(crate) use connections::Connections;
pub(crate) use message_permit::ReleasedVolume;
pub(crate) use outbound::OutboundRoute;
pub(crate) use pool::PeerPool;
pub(crate) use reply::RemoteReplyFuture;
pub(crate) use route::stale_incarnation_error;
