//! What an environment tells about itself.

use std::sync::atomic::Ordering;

use super::RpcEnv;
use crate::metrics::EnvSnapshot;

impl RpcEnv {
    /// The state of this environment now: queues, counts, times. Cheap enough for every few
    /// seconds; it takes each endpoint's lock for a moment.
    ///
    /// Of endpoints only those that are registered are in it.
    #[must_use]
    pub fn snapshot(&self) -> EnvSnapshot {
        let inner = &self.inner;
        let shared = &inner.connections.shared;
        EnvSnapshot {
            name: inner.name.clone(),
            address: inner.address.clone(),
            endpoints: inner.dispatcher.snapshot(),
            peers: inner.peers.snapshot(),
            pending_asks: inner.asks.pending.load(Ordering::Relaxed) as u64,
            inbox_bytes: shared.budget.used(),
            route_bytes: shared.route_budget.used(),
            undelivered: shared.undelivered.load(Ordering::Relaxed),
            server: inner.transport.server().snapshot(),
            client: inner.transport.client().snapshot(),
        }
    }
}
