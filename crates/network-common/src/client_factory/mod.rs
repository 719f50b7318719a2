//! [`TransportClientFactory`]: the pool of outgoing connections.

mod connector;
mod pool_slot;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use self::connector::Connector;
use self::pool_slot::PoolSlot;
use crate::address::{IntoPeerAddress, PeerAddress};
use crate::client::TransportClient;
use crate::connection::{ConnectionResources, Handshaker};
use crate::error::{ErrorKind, TransportError};
use crate::handler::{RpcHandler, TransportClientBootstrap};

/// Opens connections and pools them (Spark's `TransportClientFactory`).
///
/// The pool holds at most `spark.<module>.io.numConnectionsPerPeer` connections per address.
/// Cloning is cheap. [`close`](Self::close) closes the pooled connections. Dropping the last clone
/// ends the pooling only: each connection stays open as long as a [`TransportClient`], request or
/// body of it lives. An [unmanaged](Self::create_unmanaged_client) connection belongs to its
/// caller.
///
/// The factory repeats no attempt, as in Spark, where the block fetcher does
/// (`spark.<module>.io.maxRetries`). A [`RetryPolicy`](crate::RetryPolicy) repeats the errors that
/// are [retryable](TransportError::is_retryable): connecting that failed or timed out, fast-fail,
/// and handshakes that were cut. Settings, addresses, and secrets that are wrong are not repeated.
///
/// ```
/// use network_common::{NoOpRpcHandler, TransportConf, TransportContext};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), network_common::TransportError> {
/// let context = TransportContext::new(TransportConf::new("rpc"), NoOpRpcHandler::new());
/// let server = context.create_server("127.0.0.1:0").await?;
/// let factory = context.create_client_factory();
/// let first = factory.create_client(server.local_addr()).await?;
/// let second = factory.create_client(("127.0.0.1", server.local_addr().port())).await?;
/// assert_eq!(first.id(), second.id(), "one connection per address by default");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct TransportClientFactory(Arc<FactoryInner>);

struct FactoryInner {
    connector: Arc<Connector>,
    /// `None` after `close`.
    pools: Mutex<Option<HashMap<PeerAddress, Arc<Pool>>>>,
}

/// The connections to one address.
struct Pool {
    slots: Vec<PoolSlot>,
    /// When the last attempt failed; `None` after a successful one.
    last_failure: Mutex<Option<Instant>>,
}

impl Pool {
    /// Returns whether there is a connection, an attempt, or a failure within `window`.
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

    /// Returns a pooled connection to `address`; connects first if its slot has none.
    ///
    /// The address has one slot per connection that its pool may hold; one is selected at random.
    /// Callers that select the same slot share one connection attempt and its result. Other slots
    /// and addresses do not wait for it.
    ///
    /// # Errors
    /// - [`InvalidAddress`](ErrorKind::InvalidAddress): the text is not of the form `host:port`.
    /// - [`Connect`](ErrorKind::Connect), [`ConnectTimeout`](ErrorKind::ConnectTimeout),
    ///   [`Io`](ErrorKind::Io): no connection could be opened.
    /// - [`Tls`](ErrorKind::Tls): the TLS handshake failed.
    /// - [`Config`](ErrorKind::Config): the settings of TLS cannot be used.
    /// - [`Bootstrap`](ErrorKind::Bootstrap): a bootstrap failed.
    /// - [`Closed`](ErrorKind::Closed): the factory is closed.
    ///
    /// # Cancel safety
    /// Cancel safe. The attempt continues in the background, for the other callers and the pool.
    pub async fn create_client(
        &self,
        address: impl IntoPeerAddress,
    ) -> Result<TransportClient, TransportError> {
        self.get_or_connect(address.into_peer_address()?, false).await
    }

    /// Does the same as [`create_client`](Self::create_client), but fails fast after a failure.
    ///
    /// Fails without an attempt if the last one to this address failed less than 95 % of
    /// `spark.<module>.io.retryWait` ago.
    ///
    /// # Errors
    /// [`FastFail`](ErrorKind::FastFail), or as [`create_client`](Self::create_client).
    ///
    /// # Cancel safety
    /// Cancel safe, as [`create_client`](Self::create_client).
    pub async fn create_client_fast_fail(
        &self,
        address: impl IntoPeerAddress,
    ) -> Result<TransportClient, TransportError> {
        self.get_or_connect(address.into_peer_address()?, true).await
    }

    /// Opens a connection that is not pooled; it is closed when its last handle is dropped.
    ///
    /// # Errors
    /// As [`create_client`](Self::create_client).
    ///
    /// # Cancel safety
    /// Cancel safe: dropping the future closes the connection.
    pub async fn create_unmanaged_client(
        &self,
        address: impl IntoPeerAddress,
    ) -> Result<TransportClient, TransportError> {
        let address = address.into_peer_address()?;
        if self.0.pools.lock().is_none() {
            return Err(closed_error(&address));
        }
        self.0.connector.connect(&address).await
    }

    /// Closes the pooled connections.
    ///
    /// Later calls of the `create_` methods fail. A connection that is being opened is closed when
    /// the attempt has succeeded.
    pub fn close(&self) {
        let pools = self.0.pools.lock().take();
        // Sorted, so that a simulation can be repeated.
        let pools: BTreeMap<_, _> = pools.into_iter().flatten().collect();
        for pool in pools.into_values() {
            pool.slots.iter().for_each(PoolSlot::close);
        }
    }

    async fn get_or_connect(
        &self,
        address: PeerAddress,
        fast_fail: bool,
    ) -> Result<TransportClient, TransportError> {
        let pool = self.pool(&address)?;
        let slot = match pool.slots.len() {
            1 => 0,
            count => fastrand::usize(0..count),
        };
        if let Some(client) = pool.slots[slot].active_client() {
            return Ok(client);
        }
        if fast_fail {
            self.check_fast_fail(&pool, &address)?;
        }
        let (connector, attempt_pool) = (Arc::clone(&self.0.connector), Arc::clone(&pool));
        let target = address.clone();
        let client = pool.slots[slot]
            .connect(move || async move {
                let result = connector.connect(&target).await;
                match &result {
                    Ok(_) => *attempt_pool.last_failure.lock() = None,
                    // The address itself accepted the connection.
                    Err(error) if error.kind() == ErrorKind::Bootstrap => {}
                    Err(_) => *attempt_pool.last_failure.lock() = Some(Instant::now()),
                }
                result
            })
            .await?;
        if self.0.pools.lock().is_none() {
            client.close();
            return Err(closed_error(&address));
        }
        Ok(client)
    }

    /// Returns the pool of `address`, which is created if necessary.
    fn pool(&self, address: &PeerAddress) -> Result<Arc<Pool>, TransportError> {
        let mut pools = self.0.pools.lock();
        let pools = pools.as_mut().ok_or_else(|| closed_error(address))?;
        if let Some(pool) = pools.get(address) {
            return Ok(Arc::clone(pool));
        }
        if pools.len() == pools.capacity() {
            // Before the map grows, the pools of addresses that are no longer used are removed.
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
        let since_failure = pool.last_failure.lock().map(|last| last.elapsed());
        match since_failure {
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
