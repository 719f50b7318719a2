//! The pool of outgoing connections.

mod connector;
mod pool_slot;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use self::connector::Connector;
use self::pool_slot::PoolSlot;
use crate::address::PeerAddress;
use crate::client::TransportClient;
use crate::connection::{ConnectionResources, Handshaker};
use crate::error::{ErrorKind, TransportError};
use crate::handler::{RpcHandler, TransportClientBootstrap};

/// Opens connections and shares them: at most `spark.<module>.io.numConnectionsPerPeer` per address
/// (transport 4).
///
/// Cheap to clone. Its pooled connections are closed by [`close`](Self::close), or when the last
/// clone is dropped; unmanaged ones belong to their caller.
#[derive(Clone)]
pub struct TransportClientFactory(Arc<FactoryInner>);

struct FactoryInner {
    connector: Arc<Connector>,
    /// `None` once closed.
    pools: Mutex<Option<HashMap<PeerAddress, Arc<Pool>>>>,
}

/// The connections to one address.
struct Pool {
    slots: Vec<PoolSlot>,
    last_failure: Mutex<Option<Instant>>,
}

impl Pool {
    /// Whether it holds a connection, an attempt, or a failure that is younger than `window`.
    fn is_occupied(&self, window: Duration) -> bool {
        self.last_failure.lock().is_some_and(|last| last.elapsed() < window)
            || self.slots.iter().any(PoolSlot::is_occupied)
    }
}

impl TransportClientFactory {
    pub(crate) fn new(
        resources: Arc<ConnectionResources>,
        security: Result<Option<Arc<dyn Handshaker>>, TransportError>,
        handler: Arc<dyn RpcHandler>,
        bootstraps: Vec<Arc<dyn TransportClientBootstrap>>,
    ) -> Self {
        let connector = Arc::new(Connector::new(resources, security, handler, bootstraps));
        Self(Arc::new(FactoryInner { connector, pools: Mutex::new(Some(HashMap::new())) }))
    }

    /// A connection to `address` from the pool: one of its slots, drawn at random, which is
    /// connected first if it is empty or its connection has ended.
    ///
    /// Callers that meet in one slot share one attempt and its outcome; a slow address or slot does
    /// not hold up others. Cancel safe: the attempt goes on for those who still wait.
    ///
    /// # Errors
    /// [`Connect`](ErrorKind::Connect), [`ConnectTimeout`](ErrorKind::ConnectTimeout): naming the
    /// address. [`Tls`](ErrorKind::Tls): TLS could not be agreed on. [`Config`](ErrorKind::Config):
    /// its settings cannot be used. [`Bootstrap`](ErrorKind::Bootstrap): a bootstrap failed.
    /// [`Closed`](ErrorKind::Closed): the factory is closed.
    pub async fn create_client(
        &self,
        address: impl Into<PeerAddress>,
    ) -> Result<TransportClient, TransportError> {
        self.get(address.into(), false).await
    }

    /// The same, but fails at once, with kind [`FastFail`](ErrorKind::FastFail), if connecting to
    /// this address has failed less than 95 % of `spark.<module>.io.retryWait` ago.
    ///
    /// # Errors
    /// Those of [`create_client`](Self::create_client) too.
    pub async fn create_client_fast_fail(
        &self,
        address: impl Into<PeerAddress>,
    ) -> Result<TransportClient, TransportError> {
        self.get(address.into(), true).await
    }

    /// A connection of the caller's own: not pooled, closed when its last handle is dropped. Cancel
    /// safe.
    ///
    /// # Errors
    /// Those of [`create_client`](Self::create_client).
    pub async fn create_unmanaged_client(
        &self,
        address: impl Into<PeerAddress>,
    ) -> Result<TransportClient, TransportError> {
        let address = address.into();
        if self.0.pools.lock().is_none() {
            return Err(closed_error(&address));
        }
        self.0.connector.connect(&address).await
    }

    /// Closes the pooled connections. Later calls fail; attempts under way are closed as soon as
    /// they succeed.
    pub fn close(&self) {
        self.0.close();
    }

    async fn get(
        &self,
        address: PeerAddress,
        fast_fail: bool,
    ) -> Result<TransportClient, TransportError> {
        let pool = self.pool(&address)?;
        // A lone slot needs no dice.
        let slot = match pool.slots.len() {
            1 => 0,
            count => rand::random_range(0..count),
        };
        if let Some(client) = pool.slots[slot].active_client() {
            return Ok(client);
        }
        if fast_fail {
            self.check_fast_fail(&pool, &address)?;
        }
        let (connector, for_failures) = (Arc::clone(&self.0.connector), Arc::clone(&pool));
        let target = address.clone();
        let connected = pool.slots[slot]
            .connect(move || async move {
                let result = connector.connect(&target).await;
                match &result {
                    Ok(_) => *for_failures.last_failure.lock() = None,
                    // A bootstrap that fails says nothing about the address.
                    Err(error) if error.kind() == ErrorKind::Bootstrap => {}
                    Err(_) => *for_failures.last_failure.lock() = Some(Instant::now()),
                }
                result
            })
            .await?;
        if self.0.pools.lock().is_none() {
            connected.close();
            return Err(closed_error(&address));
        }
        Ok(connected)
    }

    fn pool(&self, address: &PeerAddress) -> Result<Arc<Pool>, TransportError> {
        let mut pools = self.0.pools.lock();
        let pools = pools.as_mut().ok_or_else(|| closed_error(address))?;
        if let Some(pool) = pools.get(address) {
            return Ok(Arc::clone(pool));
        }
        if pools.len() == pools.capacity() {
            // Before it grows: addresses that are gone must not add up.
            let window = self.0.connector.retry_wait();
            pools.retain(|_, pool| Arc::strong_count(pool) > 1 || pool.is_occupied(window));
        }
        let slots =
            (0..self.0.connector.connections_per_peer()).map(|_| PoolSlot::default()).collect();
        let pool = Arc::new(Pool { slots, last_failure: Mutex::new(None) });
        pools.insert(address.clone(), Arc::clone(&pool));
        Ok(pool)
    }

    fn check_fast_fail(&self, pool: &Pool, address: &PeerAddress) -> Result<(), TransportError> {
        let window: Duration = self.0.connector.retry_wait().mul_f64(0.95);
        let failed = pool.last_failure.lock().map(|last| last.elapsed());
        match failed {
            Some(elapsed) if elapsed < window => Err(TransportError::new(
                ErrorKind::FastFail,
                format!(
                    "Connecting to {address} failed in the last {} ms, fail this connection directly",
                    window.as_millis()
                ),
            )
            .with_peer(address)),
            _ => Ok(()),
        }
    }
}

impl FactoryInner {
    fn close(&self) {
        let pools = self.pools.lock().take();
        for pool in pools.into_iter().flat_map(HashMap::into_values) {
            pool.slots.iter().for_each(PoolSlot::close);
        }
    }
}

impl Drop for FactoryInner {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for TransportClientFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pools = self.0.pools.lock().as_ref().map(HashMap::len);
        f.debug_struct("TransportClientFactory").field("addresses", &pools).finish()
    }
}

fn closed_error(address: &PeerAddress) -> TransportError {
    TransportError::new(
        ErrorKind::Closed,
        format!("cannot connect to {address}: the client factory is closed"),
    )
    .with_peer(address)
}
