//! Connections to other environments: identity, numbered routes in both directions with their
//! credit, notices, and asks that travel over them.
//!
//! [`PeerPool`] and [`OutboundRoute`] send; [`PeerConnection`] receives. Neither knows inboxes:
//! a route that a peer opened leads to a [`RouteTarget`].

mod connection;
mod credit;
mod inbound;
mod notices;
mod outbound;
mod pool;
mod remote_ask;
mod reply;
mod route_table;

pub(crate) use connection::{Connections, PeerConnection, PeerShared};
pub(crate) use inbound::{
    InboundMessage, MessagePermit, ReleasedVolume, RouteTarget, TargetRoutes,
};
pub(crate) use outbound::{OutboundRoute, stale_incarnation_error};
pub(crate) use pool::PeerPool;
pub(crate) use remote_ask::{RemoteAsk, RemoteAskKey};
pub(crate) use reply::RemoteReplyFuture;
