//! The types of a snapshot of an environment, its endpoints and its peers.

use std::time::Duration;

use network_common::MetricsSnapshot;

use super::Histogram;
use crate::address::RpcAddress;

/// The state of an environment, from [`RpcEnv::snapshot`](crate::RpcEnv::snapshot).
///
/// The numbers are not all taken at the same instant.
///
/// ```
/// use rpc_core::EnvSnapshot;
///
/// /// Returns the endpoint with the oldest unfinished message.
/// fn slowest(snapshot: &EnvSnapshot) -> Option<&str> {
///     let slowest = snapshot.endpoints.iter().max_by_key(|endpoint| endpoint.lag)?;
///     Some(&slowest.name)
/// }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EnvSnapshot {
    /// The name that was given to the builder.
    pub name: String,
    /// The address of the environment; `None` in client mode.
    pub address: Option<RpcAddress>,
    /// The registered endpoints, sorted by name.
    pub endpoints: Vec<EndpointSnapshot>,
    /// The environments to which this one sends messages, sorted by address.
    pub peers: Vec<PeerSnapshot>,
    /// The number of pending asks.
    pub pending_asks: u64,
    /// The bytes of queued and active messages from the network, and of connection events, in all
    /// inboxes.
    pub inbox_bytes: u64,
    /// The memory that is charged for the routes that other environments opened, in bytes.
    ///
    /// A route is charged 256 bytes plus the length of the endpoint's name. The limit is a quarter
    /// of `spark.rpc.inbox.maxTotalBytes`.
    pub route_bytes: u64,
    /// The number of one-way messages of this environment that peers rejected.
    pub undelivered: u64,
    /// The transport metrics of the connections that peers opened.
    pub server: MetricsSnapshot,
    /// The transport metrics of the connections that this environment opened.
    pub client: MetricsSnapshot,
}

/// The state of one endpoint; all counts begin with its registration.
///
/// ```
/// use rpc_core::EndpointSnapshot;
///
/// fn is_slow(endpoint: &EndpointSnapshot) -> bool {
///     endpoint.processing.quantile(0.99).as_millis() > 100
/// }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EndpointSnapshot {
    /// The name under which it is registered.
    pub name: String,
    /// The number of queued and active messages.
    pub held: u64,
    /// The bytes of these messages, as the limits count them.
    pub held_bytes: u64,
    /// The time for which the endpoint has been behind. Zero if it keeps up.
    ///
    /// It counts from the time when the oldest unfinished messages were queued behind other work.
    /// If there was no such work, it counts from the start of the first handler that awaited.
    pub lag: Duration,
    /// The number of messages that were handled, successfully or not.
    pub handled: u64,
    /// The number of handled messages whose `receive` returned an error or panicked.
    pub failed: u64,
    /// The number of messages that were rejected because the inbox was full.
    pub rejected: u64,
    /// The number of messages that were dropped in favor of newer ones.
    ///
    /// See [`OverflowPolicy`](crate::OverflowPolicy).
    pub dropped: u64,
    /// The number of asks that were cancelled or past their deadline before they were handled.
    pub expired: u64,
    /// The durations of `receive`.
    ///
    /// The histogram contains all calls that were pending at least once, and 1 of 16 of the others.
    /// Therefore [`count`](Histogram::count) is usually less than `handled`.
    pub processing: Histogram,
}

/// The connection to one other environment, and the messages that are queued for it.
///
/// ```
/// use rpc_core::PeerSnapshot;
///
/// fn describe(peer: &PeerSnapshot) -> String {
///     format!("{} (connected: {}): {} messages queued", peer.address, peer.connected, peer.queued)
/// }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PeerSnapshot {
    /// The address of the other environment.
    pub address: RpcAddress,
    /// Is true if the connection is established.
    pub connected: bool,
    /// The number of the peer's endpoints to which this environment has a route.
    ///
    /// These are the endpoints of existing refs, endpoints with queued messages, and at most 64
    /// others whose route stays open for the next ref.
    pub endpoints: u64,
    /// The number of messages that are queued until there is a connection or credit.
    pub queued: u64,
    /// The bytes of these messages.
    pub queued_bytes: u64,
    /// The number of failed asks that were not repeated, because too many to the peer had failed.
    ///
    /// The limit is `spark.rpc.retry.budget`.
    pub refused_retries: u64,
}
