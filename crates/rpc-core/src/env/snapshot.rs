//! [`RpcEnv::snapshot`].

use std::sync::atomic::Ordering;

use super::RpcEnv;
use crate::metrics::EnvSnapshot;

impl RpcEnv {
    /// Returns the current queues, counts and durations of this environment.
    ///
    /// Contains the registered endpoints only. It is cheap enough to be called every few seconds;
    /// it locks the queue of each endpoint for a moment.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), rpc_core::RpcError> {
    /// # let env = rpc_core::RpcEnv::builder("doc").client_mode().start().await?;
    /// for endpoint in env.snapshot().endpoints {
    ///     println!("{}: {} messages queued or active", endpoint.name, endpoint.held);
    /// }
    /// # env.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn snapshot(&self) -> EnvSnapshot {
        let inner = &self.inner;
        let (shared, transport) = (&inner.connections.shared, inner.context.metrics());
        EnvSnapshot {
            name: inner.name.clone(),
            address: inner.address.clone(),
            endpoints: inner.dispatcher.snapshot(),
            peers: inner.peers.snapshot(),
            pending_asks: inner.asks.pending.load(Ordering::Relaxed) as u64,
            inbox_bytes: shared.budget.used(),
            route_bytes: shared.route_budget.used(),
            undelivered: shared.undelivered.load(Ordering::Relaxed),
            server: transport.server().snapshot(),
            client: transport.client().snapshot(),
        }
    }
}
