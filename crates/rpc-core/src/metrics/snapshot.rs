//! The state of an environment at one time.

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
    /// The registered endpoints, by name.
    pub endpoints: Vec<EndpointSnapshot>,
    /// The other environments to which it sends messages, by address.
    pub peers: Vec<PeerSnapshot>,
    /// The number of pending asks.
    pub pending_asks: u64,
    /// The bytes of queued and active messages from the network, in all inboxes.
    pub inbox_bytes: u64,
    /// The bytes of the routes that other environments opened.
    ///
    /// A route counts 256 bytes and the name of the endpoint. The limit is a quarter of
    /// `spark.rpc.inbox.maxTotalBytes`.
    pub route_bytes: u64,
    /// The number of one-way messages of this environment that peers rejected.
    pub undelivered: u64,
    /// The counts of the connections that peers made to this environment.
    pub server: MetricsSnapshot,
    /// The counts of the connections that this environment made.
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
    /// The time since the oldest message was queued, or began to delay the messages behind it.
    ///
    /// Zero if the endpoint keeps up.
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
    /// They are sampled: all calls that awaited something, and 1 of 16 of the others. So
    /// [`count`](Histogram::count) is less than `handled`.
    pub processing: Histogram,
}

/// The messages that are queued for one other environment.
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
    /// Is true if there is a connection.
    pub connected: bool,
    /// The number of its endpoints that have a queue here.
    ///
    /// These are the endpoints of existing refs, and at most 64 others.
    pub endpoints: u64,
    /// The number of messages that are queued for a connection or for credit.
    pub queued: u64,
    /// The bytes of these messages.
    pub queued_bytes: u64,
}
