//! [`ShuffleService`], the external shuffle service.

mod handler;
mod requests;
mod stream_blocks;
mod streams;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use network_common::auth::SecretKeyHolder;
use network_common::{TransportConf, TransportContext, TransportError, TransportServer};

use self::handler::ExternalBlockHandler;
use self::requests::Requests;
use self::streams::BlockStreams;
use crate::conf::ShuffleServiceConf;
use crate::metrics::{ServiceMetrics, ServiceMetricsSnapshot};
use crate::registry::ExecutorRegistry;
use crate::resolver::BlockResolver;

/// The application id that a server never sends.
const NO_APP: &str = "shuffle-service";

/// A running external shuffle service (Spark's `ExternalShuffleService`).
///
/// Executors register where their shuffle files are, and the service serves them, also when the
/// executors have ended. Dropping it closes all connections at once.
///
/// ```
/// use network_common::TransportConf;
/// use network_shuffle::{ShuffleService, ShuffleServiceConf};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), network_common::BoxError> {
/// let settings = [
///     ("spark.shuffle.service.host", "127.0.0.1"),
///     ("spark.shuffle.service.port", "0"),
///     ("spark.shuffle.service.db.enabled", "false"),
/// ];
/// let conf = ShuffleServiceConf::from_settings(settings)?;
/// let service = ShuffleService::start(&conf, TransportConf::new("shuffle"), None).await?;
/// assert_ne!(service.local_addr().port(), 0);
/// # Ok(())
/// # }
/// ```
#[must_use = "the service stops when it is dropped"]
pub struct ShuffleService {
    server: TransportServer,
    context: TransportContext,
    registry: Arc<ExecutorRegistry>,
    resolver: Arc<BlockResolver>,
    metrics: Arc<ServiceMetrics>,
}

impl ShuffleService {
    /// Starts a service that listens on the address of `conf`.
    ///
    /// `transport` has the settings of connections. With `spark.authenticate`, `secrets` provides
    /// the secret of each application; an application reads only its own blocks.
    ///
    /// # Errors
    /// The address cannot be bound, or the settings of authentication or TLS cannot be used.
    pub async fn start(
        conf: &ShuffleServiceConf,
        transport: TransportConf,
        secrets: Option<Arc<dyn SecretKeyHolder>>,
    ) -> Result<Self, TransportError> {
        let metrics = Arc::new(ServiceMetrics::default());
        let registry = Arc::new(ExecutorRegistry::new(conf));
        let resolver =
            Arc::new(BlockResolver::new(conf, Arc::clone(&registry), Arc::clone(&metrics)));
        let max_streams = conf.max_open_streams_size();
        let handler = ExternalBlockHandler {
            streams: BlockStreams::new(Arc::clone(&resolver), Arc::clone(&metrics), max_streams),
            requests: Arc::new(Requests { registry: Arc::clone(&registry) }),
            metrics: Arc::clone(&metrics),
        };
        let authenticate = transport.authenticate();
        let mut context = TransportContext::new(transport, handler);
        if let Some(secrets) = secrets.filter(|_| authenticate) {
            context = context.with_auth(NO_APP, secrets)?;
        }
        let server = context.create_server((conf.host(), conf.port())).await?;
        Ok(Self { server, context, registry, resolver, metrics })
    }

    /// Returns the address that the service listens on, with the port that the system chose.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// Returns the counters of the service.
    #[must_use]
    pub fn metrics(&self) -> ServiceMetricsSnapshot {
        let mut values = self.metrics.snapshot();
        values.registered_executors = self.registry.executor_count();
        values.index_cache_bytes = self.resolver.index_cache_bytes();
        values
    }

    /// Returns the counters of the connections.
    #[must_use]
    pub fn transport_metrics(&self) -> network_common::TransportMetrics {
        self.context.metrics()
    }

    /// Stops listening, waits for active requests, and closes the connections.
    ///
    /// Connections with requests that are still active after `timeout` are closed at once; returns
    /// how many these are.
    ///
    /// # Cancel safety
    /// Dropping the future closes all connections at once.
    pub async fn close(self, timeout: Duration) -> usize {
        self.server.close(timeout).await
    }
}

impl fmt::Debug for ShuffleService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShuffleService").field("server", &self.server).finish_non_exhaustive()
    }
}
