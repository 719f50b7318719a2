//! [`TransportContext`]: the settings and the handler that servers and clients share.

use std::fmt;
use std::sync::Arc;

use crate::address::IntoPeerAddress;
#[cfg(feature = "auth")]
use crate::auth::{self, AuthPolicy, SecretKeyHolder};
use crate::budget::ByteBudget;
use crate::buffer::BufferPool;
use crate::client_factory::TransportClientFactory;
use crate::conf::TransportConf;
use crate::connection::{ConnectionResources, Handshaker};
use crate::error::TransportError;
use crate::handler::{RpcHandler, TransportClientBootstrap, TransportServerBootstrap};
use crate::metrics::TransportMetrics;
use crate::net::MemoryNetwork;
use crate::server::TransportServer;
#[cfg(feature = "tls")]
use crate::tls::{LazyTlsContext, TlsContext};

/// Creates servers and client factories that share settings and a handler.
///
/// Corresponds to Spark's `TransportContext`. Cloning is cheap. Servers and factories outlive the
/// context.
///
/// ```
/// use network_common::{NoOpRpcHandler, TransportConf, TransportContext};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), network_common::TransportError> {
/// let context = TransportContext::new(TransportConf::new("rpc"), NoOpRpcHandler::new());
/// let server = context.create_server("localhost:0").await?;
/// let factory = context.create_client_factory();
/// let client = factory.create_client(server.local_addr()).await?;
/// assert!(client.is_active());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct TransportContext {
    conf: Arc<TransportConf>,
    handler: Arc<dyn RpcHandler>,
    metrics: TransportMetrics,
    pool: Arc<BufferPool>,
    /// `None` is the budget of the process.
    budget: Option<ByteBudget>,
    close_idle_connections: bool,
    #[cfg(feature = "auth")]
    auth: Option<Arc<AuthPolicy>>,
    network: Option<MemoryNetwork>,
    #[cfg(feature = "tls")]
    tls: Arc<LazyTlsContext>,
}

impl TransportContext {
    /// Returns a context whose `handler` serves all its connections, accepted and opened ones.
    #[must_use]
    pub fn new(conf: TransportConf, handler: impl RpcHandler) -> Self {
        Self::with_handler(conf, Arc::new(handler))
    }

    /// Returns a context with a handler that is shared with other owners.
    #[must_use]
    pub fn with_handler(conf: TransportConf, handler: Arc<dyn RpcHandler>) -> Self {
        let metrics = TransportMetrics::new(conf.module());
        for key in conf.unknown_keys() {
            tracing::warn!(module = conf.module(), "{key}");
        }
        let conf = Arc::new(conf);
        Self {
            #[cfg(feature = "tls")]
            tls: Arc::new(LazyTlsContext::new(Arc::clone(&conf))),
            conf,
            handler,
            metrics,
            pool: Arc::default(),
            budget: None,
            close_idle_connections: false,
            network: None,
            #[cfg(feature = "auth")]
            auth: None,
        }
    }

    /// Authenticates both ends of every connection that is created afterwards.
    ///
    /// The settings decide whether the connections are also encrypted; [`auth`](crate::auth)
    /// compares the modes. Outgoing connections authenticate as `app_id`. Accepted connections may
    /// belong to any application whose secret `secrets` contains. When a connection is
    /// authenticated, [`client_id`](crate::TransportClient::client_id) returns the application id
    /// on both sides.
    ///
    /// On a client authentication runs before other bootstraps. On a server the handlers of other
    /// bootstraps get no messages of an unauthenticated peer. While
    /// `spark.<module>.auth.maxHandshakes` handshakes are in progress, further ones wait; a
    /// connection that waits longer than `spark.network.auth.rpcTimeout` is closed with kind
    /// [`Bootstrap`](crate::ErrorKind::Bootstrap).
    ///
    /// # Errors
    /// Kind [`Config`](crate::ErrorKind::Config) if the settings need a feature that this build
    /// does not have.
    #[cfg(feature = "auth")]
    pub fn with_auth(
        mut self,
        app_id: impl Into<String>,
        secrets: Arc<dyn SecretKeyHolder>,
    ) -> Result<Self, TransportError> {
        self.auth = Some(Arc::new(AuthPolicy::new(&self.conf, app_id.into(), secrets)?));
        Ok(self)
    }

    /// Uses the secrets, authentication settings and certificates of `other`.
    ///
    /// This context's own security settings are ignored, and the certificates are not read a second
    /// time. The servers of both contexts share the limit `spark.<module>.auth.maxHandshakes`.
    /// Spark does the same for file downloads (`NettyRpcEnv.downloadClient`).
    #[must_use]
    #[cfg_attr(not(any(feature = "auth", feature = "tls")), expect(unused_mut, unused_variables))]
    pub fn share_security_with(mut self, other: &Self) -> Self {
        #[cfg(feature = "auth")]
        {
            self.auth = other.auth.clone();
        }
        #[cfg(feature = "tls")]
        {
            self.tls = Arc::clone(&other.tls);
        }
        self
    }

    /// Sets whether idle connections without pending requests are closed; default: false.
    ///
    /// A connection is idle if no byte was transferred for `spark.<module>.io.connectionTimeout`.
    /// Spark closes idle connections of shuffle and file clients, but not of its core RPC.
    #[must_use]
    pub fn close_idle_connections(mut self, close: bool) -> Self {
        self.close_idle_connections = close;
        self
    }

    /// Counts the bytes of this context's connections in `budget` instead of the process's one.
    #[must_use]
    pub fn with_byte_budget(mut self, budget: &ByteBudget) -> Self {
        self.budget = Some(budget.clone());
        self
    }

    /// Returns the budget in which the bytes of this context's connections count.
    #[must_use]
    pub fn byte_budget(&self) -> ByteBudget {
        self.budget.clone().unwrap_or_else(|| {
            let process = ByteBudget::process();
            if let Some(limit) = self.conf.max_held_bytes() {
                process.set_limit(limit);
            }
            process
        })
    }

    /// Connects servers and clients over `network` instead of sockets; for tests.
    #[must_use]
    pub fn memory_network(mut self, network: &MemoryNetwork) -> Self {
        self.network = Some(network.clone());
        self
    }

    /// Returns the settings.
    #[must_use]
    pub fn conf(&self) -> &TransportConf {
        &self.conf
    }

    /// Returns the counters of this context's connections.
    #[must_use]
    pub fn metrics(&self) -> TransportMetrics {
        self.metrics.clone()
    }

    /// Creates a server that listens on `address`; port 0 is a free port.
    ///
    /// # Errors
    /// - [`InvalidAddress`](crate::ErrorKind::InvalidAddress): the text is not of the form
    ///   `host:port`.
    /// - [`Bind`](crate::ErrorKind::Bind): the address does not resolve or cannot be bound.
    /// - [`Config`](crate::ErrorKind::Config): TLS is enabled, but its settings or files cannot be
    ///   used; or `spark.authenticate` is true, but there are neither secrets nor bootstraps.
    ///
    /// # Cancel safety
    /// Cancel safe: dropping the future stops listening.
    ///
    /// # Panics
    /// If it is not called in a tokio runtime.
    pub async fn create_server(
        &self,
        address: impl IntoPeerAddress,
    ) -> Result<TransportServer, TransportError> {
        self.create_server_with(address, Vec::new()).await
    }

    /// Creates a server whose `bootstraps` run in order on every accepted connection.
    ///
    /// # Errors
    /// As [`create_server`](Self::create_server).
    ///
    /// # Cancel safety
    /// Cancel safe, as [`create_server`](Self::create_server).
    ///
    /// # Panics
    /// If it is not called in a tokio runtime.
    pub async fn create_server_with(
        &self,
        address: impl IntoPeerAddress,
        bootstraps: Vec<Arc<dyn TransportServerBootstrap>>,
    ) -> Result<TransportServer, TransportError> {
        let address = address.into_peer_address()?;
        #[cfg(feature = "auth")]
        let bootstraps = auth::server_bootstraps(&self.conf, self.auth.as_ref(), bootstraps)?;
        let resources = self.resources(self.metrics.server());
        let security = self.server_security()?;
        TransportServer::bind(address, resources, security, Arc::clone(&self.handler), bootstraps)
            .await
    }

    /// Creates a pool of outgoing connections.
    #[must_use]
    pub fn create_client_factory(&self) -> TransportClientFactory {
        self.create_client_factory_with(Vec::new())
    }

    /// Creates a pool whose `bootstraps` run in order on every new connection.
    #[must_use]
    pub fn create_client_factory_with(
        &self,
        bootstraps: Vec<Arc<dyn TransportClientBootstrap>>,
    ) -> TransportClientFactory {
        #[cfg(feature = "auth")]
        let bootstraps = auth::client_bootstraps(&self.conf, self.auth.as_ref(), bootstraps);
        let resources = self.resources(self.metrics.client());
        TransportClientFactory::new(
            resources,
            self.client_security(),
            Arc::clone(&self.handler),
            bootstraps,
        )
    }

    /// Checks that the secrets and TLS files that the settings need are available.
    ///
    /// A client factory would report their absence only with its first connection; creating a
    /// server includes the check. The files are read once and, with
    /// `spark.ssl.rpc.trustStoreReloadingEnabled`, again when they change.
    ///
    /// # Errors
    /// Kind [`Config`](crate::ErrorKind::Config); the text names setting and file.
    pub fn check_security(&self) -> Result<(), TransportError> {
        #[cfg(feature = "auth")]
        if self.auth.is_none() {
            auth::check_unauthenticated(&self.conf)?;
        }
        #[cfg(feature = "tls")]
        self.tls.get()?;
        Ok(())
    }

    #[cfg(feature = "tls")]
    fn server_security(&self) -> Result<Option<Arc<dyn Handshaker>>, TransportError> {
        self.tls.get()?.map(TlsContext::server_side).transpose()
    }

    #[cfg(feature = "tls")]
    fn client_security(&self) -> Result<Option<Arc<dyn Handshaker>>, TransportError> {
        self.tls.get()?.map(TlsContext::client_side).transpose()
    }

    #[cfg(not(feature = "tls"))]
    fn server_security(&self) -> Result<Option<Arc<dyn Handshaker>>, TransportError> {
        Ok(None)
    }

    #[cfg(not(feature = "tls"))]
    fn client_security(&self) -> Result<Option<Arc<dyn Handshaker>>, TransportError> {
        Ok(None)
    }

    fn resources(&self, metrics: &Arc<crate::metrics::SideMetrics>) -> Arc<ConnectionResources> {
        Arc::new(ConnectionResources::new(
            Arc::clone(&self.conf),
            Arc::clone(metrics),
            Arc::clone(&self.pool),
            self.byte_budget(),
            self.close_idle_connections,
            self.network.clone(),
        ))
    }
}

impl fmt::Debug for TransportContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransportContext")
            .field("conf", &self.conf)
            .field("close_idle_connections", &self.close_idle_connections)
            .finish_non_exhaustive()
    }
}
