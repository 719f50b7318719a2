//! [`ShuffleService`], the external shuffle service.

mod error;
mod handler;
mod pending;
mod requests;
mod stream_blocks;
mod streams;
mod sweep;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use network_common::auth::SecretKeyHolder;
use network_common::{TransportConf, TransportContext, TransportServer};
use tokio_util::task::AbortOnDropHandle;

pub use self::error::ServiceError;
use self::handler::{ConnectionHandler, ExternalBlockHandler};
use self::pending::PendingRequests;
use self::requests::Requests;
use self::streams::BlockStreams;
use crate::conf::ShuffleServiceConf;
use crate::metrics::{ServiceMetrics, ServiceMetricsSnapshot};
use crate::registry::ExecutorRegistry;
use crate::resolver::{BlockResolver, DirectoryCleaner, KeptFiles};
use crate::secrets::WatchedSecrets;

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
    cleaner: DirectoryCleaner,
    fetch_rdd_enabled: bool,
    metrics: Arc<ServiceMetrics>,
    _sweeper: Option<AbortOnDropHandle<()>>,
}

impl ShuffleService {
    /// Starts a service that listens on the address of `conf`.
    ///
    /// `transport` has the settings of connections. With `spark.authenticate`, the secrets of
    /// applications are those of `secrets`, or those of `conf` if it is `None`; an application
    /// reads only its own blocks.
    ///
    /// # Errors
    /// The address cannot be bound; the secrets cannot be read; the settings of authentication or
    /// TLS cannot be used; or the store of registrations cannot be used and is required.
    pub async fn start(
        conf: &ShuffleServiceConf,
        transport: TransportConf,
        secrets: Option<Arc<dyn SecretKeyHolder>>,
    ) -> Result<Self, ServiceError> {
        let metrics = Arc::new(ServiceMetrics::default());
        let registry = Arc::new(open_registry(conf, &metrics).await?);
        let resolver =
            Arc::new(BlockResolver::new(conf, Arc::clone(&registry), Arc::clone(&metrics)));
        let max_streams = conf.max_open_streams_size();
        let requests = Requests {
            registry: Arc::clone(&registry),
            resolver: Arc::clone(&resolver),
            metrics: Arc::clone(&metrics),
        };
        let pending = PendingRequests::new(conf.max_pending_requests(), Arc::clone(&metrics));
        let handler = ExternalBlockHandler {
            streams: BlockStreams::new(Arc::clone(&resolver), Arc::clone(&metrics), max_streams),
            requests: Arc::new(requests),
            pending: Arc::new(pending),
            metrics: Arc::clone(&metrics),
        };
        let handler = ConnectionHandler(Arc::new(handler));
        let authenticate = transport.authenticate();
        // As in Spark's ExternalShuffleService, an idle executor connects again.
        let mut context = TransportContext::new(transport, handler).close_idle_connections(true);
        if authenticate {
            let secrets = match secrets {
                Some(secrets) => secrets,
                None => open_secrets(conf).await?,
            };
            context = context.with_auth(NO_APP, secrets)?;
        }
        let server = context.create_server((conf.host(), conf.port())).await?;
        let sweeper = conf.application_timeout().map(|timeout| {
            AbortOnDropHandle::new(tokio::spawn(sweep::sweep(Arc::clone(&registry), timeout)))
        });
        Ok(Self {
            server,
            context,
            registry,
            resolver,
            cleaner: DirectoryCleaner::start(),
            fetch_rdd_enabled: conf.fetch_rdd_enabled(),
            metrics,
            _sweeper: sweeper,
        })
    }

    /// Returns the address that the service listens on, with the port that the system chose.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// Returns the counters of the service.
    #[must_use]
    pub fn metrics(&self) -> ServiceMetricsSnapshot {
        snapshot(&self.metrics, &self.registry, &self.resolver)
    }

    /// Returns the counters of the connections.
    #[must_use]
    pub fn transport_metrics(&self) -> network_common::TransportMetrics {
        self.context.metrics()
    }

    /// Removes an application that has ended (Spark's `applicationRemoved`).
    ///
    /// With `clean_up`, its directories are deleted in the background; directories whose names do
    /// not begin with `blockmgr-` are not Spark's and stay.
    ///
    /// # Errors
    /// The change cannot be stored, and `spark.shuffle.service.db.required` is set; the application
    /// is removed until the service is restarted.
    ///
    /// # Cancel safety
    /// If the future is dropped, the application may be removed only until a restart.
    pub async fn application_removed(
        &self,
        app_id: &str,
        clean_up: bool,
    ) -> Result<(), ServiceError> {
        let (executors, stored) = self.registry.remove_application(app_id);
        if clean_up {
            executors.into_iter().for_each(|one| self.cleaner.clean(one, KeptFiles::None));
        }
        Ok(stored.await?)
    }

    /// Deletes the files of an ended executor that the service does not serve.
    ///
    /// Corresponds to Spark's `executorRemoved`. The executor stays registered. Shuffle files stay,
    /// and with `spark.shuffle.service.fetch.rdd.enabled` also cached partitions.
    pub fn executor_removed(&self, app_id: &str, exec_id: &str) {
        if let Ok(executor) = self.registry.executor(app_id, exec_id) {
            self.cleaner.clean(executor, KeptFiles::Served { rdds: self.fetch_rdd_enabled });
        }
    }

    /// Stops listening, waits for active requests, and closes the connections.
    ///
    /// Connections with requests that are still active after `timeout` are closed at once.
    ///
    /// # Cancel safety
    /// Dropping the future closes all connections at once.
    pub async fn close(self, timeout: Duration) -> ShutdownReport {
        let Self { server, registry, resolver, metrics, .. } = self;
        let closed_early = server.close(timeout).await;
        registry.close().await;
        ShutdownReport { closed_early, metrics: snapshot(&metrics, &registry, &resolver) }
    }
}

/// The report on a service that was closed.
///
/// ```
/// use network_shuffle::ShutdownReport;
///
/// fn is_clean(report: &ShutdownReport) -> bool {
///     report.closed_early == 0
/// }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// The number of connections that were closed with active requests.
    pub closed_early: usize,
    /// The last values of the counters.
    pub metrics: ServiceMetricsSnapshot,
}

fn snapshot(
    metrics: &ServiceMetrics,
    registry: &ExecutorRegistry,
    resolver: &BlockResolver,
) -> ServiceMetricsSnapshot {
    let mut values = metrics.snapshot();
    values.registered_executors = registry.executor_count();
    values.index_cache_bytes = resolver.index_cache_bytes();
    values
}

async fn open_secrets(conf: &ShuffleServiceConf) -> Result<Arc<dyn SecretKeyHolder>, ServiceError> {
    let source = conf.secret_source().map_err(|text| ServiceError::Secrets(text.into()))?;
    let secrets = WatchedSecrets::open(source).await;
    Ok(Arc::new(secrets.map_err(|error| ServiceError::Secrets(error.into()))?))
}

async fn open_registry(
    conf: &ShuffleServiceConf,
    metrics: &Arc<ServiceMetrics>,
) -> Result<ExecutorRegistry, ServiceError> {
    let (conf, metrics) = (conf.clone(), Arc::clone(metrics));
    let open = move || ExecutorRegistry::open(&conf, metrics);
    match tokio::task::spawn_blocking(open).await {
        Ok(registry) => Ok(registry?),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

impl fmt::Debug for ShuffleService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShuffleService").field("server", &self.server).finish_non_exhaustive()
    }
}
