//! The root of everything: settings and a handler.

use std::fmt;
use std::sync::Arc;

use tokio::net::ToSocketAddrs;

#[cfg(feature = "auth")]
use crate::auth::{self, AuthPolicy, SecretKeyHolder};
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

/// Settings and one [`RpcHandler`]: makes servers and client factories whose connections share them
/// (transport 1).
///
/// Cheap to clone. Servers and factories do not need the context to live on.
#[derive(Clone)]
pub struct TransportContext {
    conf: Arc<TransportConf>,
    handler: Arc<dyn RpcHandler>,
    metrics: TransportMetrics,
    pool: Arc<BufferPool>,
    close_idle_connections: bool,
    #[cfg(feature = "auth")]
    auth: Option<Arc<AuthPolicy>>,
    network: Option<MemoryNetwork>,
    #[cfg(feature = "tls")]
    tls: Arc<LazyTlsContext>,
}

impl TransportContext {
    /// A context whose connections, accepted and opened ones, are served by `handler`.
    pub fn new(conf: TransportConf, handler: impl RpcHandler) -> Self {
        Self::with_handler(conf, Arc::new(handler))
    }

    /// The same with a handler that is shared with others.
    pub fn with_handler(conf: TransportConf, handler: Arc<dyn RpcHandler>) -> Self {
        let metrics = TransportMetrics::new(conf.module());
        let conf = Arc::new(conf);
        Self {
            #[cfg(feature = "tls")]
            tls: Arc::new(LazyTlsContext::new(Arc::clone(&conf))),
            conf,
            handler,
            metrics,
            pool: Arc::default(),
            close_idle_connections: false,
            network: None,
            #[cfg(feature = "auth")]
            auth: None,
        }
    }

    /// Every connection made from here on authenticates both ends to each other, and is encrypted
    /// if the settings say so ([`auth`](crate::auth) tells how). Outgoing connections are made as
    /// `app_id`; accepted ones by any application whose secret `secrets` knows. Afterwards
    /// [`client_id`](crate::TransportClient::client_id) is the application's id at both ends.
    ///
    /// On a client it comes before other bootstraps, and those of a server see nothing of a peer
    /// that is not authenticated. A server whose `spark.<module>.auth.maxHandshakes` are under way
    /// refuses connections with kind [`Bootstrap`](crate::ErrorKind::Bootstrap).
    ///
    /// # Errors
    /// Kind [`Config`](crate::ErrorKind::Config) if the settings ask for something that is not part
    /// of this build.
    #[cfg(feature = "auth")]
    pub fn with_auth(
        mut self,
        app_id: impl Into<String>,
        secrets: Arc<dyn SecretKeyHolder>,
    ) -> Result<Self, TransportError> {
        self.auth = Some(Arc::new(AuthPolicy::new(&self.conf, app_id.into(), secrets)?));
        Ok(self)
    }

    /// Authenticates and encrypts as `other` does: with its secrets, its settings of
    /// authentication, and its certificates, which are not read a second time. What this context's
    /// own settings say about these counts no more. Servers of both count their handshakes
    /// together. Spark's downloads share the security of its RPC in this way (rpc 10).
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

    /// Whether connections on which nothing has moved for `spark.<module>.io.connectionTimeout` are
    /// closed also when no request is outstanding. Spark does so for shuffle and file clients, not
    /// for its core RPC. Default: false.
    pub fn close_idle_connections(mut self, close: bool) -> Self {
        self.close_idle_connections = close;
        self
    }

    /// Servers and clients meet on `network` instead of the system's: for tests.
    pub fn memory_network(mut self, network: &MemoryNetwork) -> Self {
        self.network = Some(network.clone());
        self
    }

    /// The settings.
    pub fn conf(&self) -> &TransportConf {
        &self.conf
    }

    /// What this context's connections do.
    pub fn metrics(&self) -> TransportMetrics {
        self.metrics.clone()
    }

    /// Listens on `address`; port 0 is an ephemeral one. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// Kind [`Bind`](crate::ErrorKind::Bind). Kind [`Config`](crate::ErrorKind::Config) if TLS is
    /// enabled but its settings or files cannot be used, or if `spark.authenticate` is true and
    /// this context has neither been given secrets nor, here, bootstraps.
    pub async fn create_server(
        &self,
        address: impl ToSocketAddrs,
    ) -> Result<TransportServer, TransportError> {
        self.create_server_with(address, Vec::new()).await
    }

    /// The same with bootstraps, which run in order on every accepted connection.
    ///
    /// # Errors
    /// Those of [`create_server`](Self::create_server).
    pub async fn create_server_with(
        &self,
        address: impl ToSocketAddrs,
        bootstraps: Vec<Arc<dyn TransportServerBootstrap>>,
    ) -> Result<TransportServer, TransportError> {
        #[cfg(feature = "auth")]
        let bootstraps = auth::server_bootstraps(&self.conf, self.auth.as_ref(), bootstraps)?;
        let resources = self.resources(self.metrics.server());
        let security = self.server_security()?;
        TransportServer::bind(address, resources, security, Arc::clone(&self.handler), bootstraps)
            .await
    }

    /// A pool of outgoing connections.
    pub fn create_client_factory(&self) -> TransportClientFactory {
        self.create_client_factory_with(Vec::new())
    }

    /// The same with bootstraps, which run in order on every new connection.
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

    /// Checks that what the settings ask for is there: secrets, and the files that those of TLS
    /// name. So mistakes show before the first connection. Servers do so when they are created; the
    /// files are read once and, with `spark.ssl.rpc.trustStoreReloadingEnabled`, again when they
    /// change.
    ///
    /// # Errors
    /// Kind [`Config`](crate::ErrorKind::Config), naming setting and file.
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
