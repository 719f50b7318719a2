//! The root of everything: settings and a handler.

use std::fmt;
use std::sync::Arc;

use tokio::net::ToSocketAddrs;

#[cfg(feature = "auth")]
use crate::auth::{AuthClientBootstrap, AuthServerBootstrap, Policy, SecretKeyHolder};
use crate::buffer::BufferPool;
use crate::channel::Resources;
use crate::conf::TransportConf;
use crate::error::{ErrorKind, TransportError};
use crate::factory::TransportClientFactory;
use crate::handler::{RpcHandler, TransportClientBootstrap, TransportServerBootstrap};
use crate::metrics::TransportMetrics;
use crate::server::TransportServer;

/// Settings and one [`RpcHandler`]: makes servers and client factories whose connections share them (transport 1).
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
    auth: Option<Arc<Policy>>,
}

impl TransportContext {
    /// A context whose connections, accepted and opened ones, are served by `handler`.
    pub fn new(conf: TransportConf, handler: impl RpcHandler) -> Self {
        Self::with_handler(conf, Arc::new(handler))
    }

    /// The same with a handler that is shared with others.
    pub fn with_handler(conf: TransportConf, handler: Arc<dyn RpcHandler>) -> Self {
        let metrics = TransportMetrics::new(conf.module());
        Self {
            conf: Arc::new(conf),
            handler,
            metrics,
            pool: Arc::default(),
            close_idle_connections: false,
            #[cfg(feature = "auth")]
            auth: None,
        }
    }

    /// Every connection made from here on authenticates both ends to each other, and is encrypted if the settings say so
    /// ([`auth`](crate::auth) tells how). Outgoing connections are made as `app_id`; accepted ones by any application whose
    /// secret `secrets` knows. Afterwards [`client_id`](crate::TransportClient::client_id) is the application's id at both
    /// ends.
    ///
    /// On a client it comes before other bootstraps, and those of a server see nothing of a peer that is not authenticated.
    /// A server whose `spark.<module>.io.maxHandshakes` are under way refuses connections with kind
    /// [`Bootstrap`](ErrorKind::Bootstrap).
    ///
    /// # Errors
    /// Kind [`Config`](ErrorKind::Config) if the settings ask for something that is not part of this build.
    #[cfg(feature = "auth")]
    pub fn with_auth(
        mut self,
        app_id: impl Into<String>,
        secrets: Arc<dyn SecretKeyHolder>,
    ) -> Result<Self, TransportError> {
        self.auth = Some(Arc::new(Policy::new(&self.conf, app_id.into(), secrets)?));
        Ok(self)
    }

    /// Whether connections on which nothing has moved for `spark.<module>.io.connectionTimeout` are closed also when no
    /// request is outstanding. Spark does so for shuffle and file clients, not for its core RPC. Default: false.
    pub fn close_idle_connections(mut self, close: bool) -> Self {
        self.close_idle_connections = close;
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
    /// Kind [`Bind`](ErrorKind::Bind). Kind [`Config`](ErrorKind::Config) if `spark.authenticate` is true and this context
    /// has neither been given secrets nor, here, bootstraps.
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
        #[cfg_attr(not(feature = "auth"), expect(unused_mut))] mut bootstraps: Vec<
            Arc<dyn TransportServerBootstrap>,
        >,
    ) -> Result<TransportServer, TransportError> {
        #[cfg(feature = "auth")]
        if let Some(policy) = &self.auth {
            // The last one's handler is the outermost.
            bootstraps.push(Arc::new(AuthServerBootstrap::new(Arc::clone(policy))));
        }
        check_authenticated(&self.conf, bootstraps.is_empty())?;
        let resources = self.resources(self.metrics.server());
        TransportServer::bind(address, resources, Arc::clone(&self.handler), bootstraps).await
    }

    /// A pool of outgoing connections.
    pub fn create_client_factory(&self) -> TransportClientFactory {
        self.create_client_factory_with(Vec::new())
    }

    /// The same with bootstraps, which run in order on every new connection.
    pub fn create_client_factory_with(
        &self,
        #[cfg_attr(not(feature = "auth"), expect(unused_mut))] mut bootstraps: Vec<
            Arc<dyn TransportClientBootstrap>,
        >,
    ) -> TransportClientFactory {
        #[cfg(feature = "auth")]
        if let Some(policy) = &self.auth {
            bootstraps.insert(0, Arc::new(AuthClientBootstrap::new(Arc::clone(policy))));
        }
        let resources = self.resources(self.metrics.client());
        TransportClientFactory::new(resources, Arc::clone(&self.handler), bootstraps)
    }

    fn resources(&self, metrics: &Arc<crate::metrics::SideMetrics>) -> Arc<Resources> {
        Arc::new(Resources::new(
            Arc::clone(&self.conf),
            Arc::clone(metrics),
            Arc::clone(&self.pool),
            self.close_idle_connections,
        ))
    }
}

/// A setting that asks for authentication is not passed over in silence.
pub(crate) fn check_authenticated(conf: &TransportConf, unprotected: bool) -> Result<(), TransportError> {
    if conf.authenticate() && unprotected {
        let text = "spark.authenticate is true, but the context has no secrets: TransportContext::with_auth gives it some";
        return Err(TransportError::new(ErrorKind::Config, text));
    }
    Ok(())
}

impl fmt::Debug for TransportContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransportContext")
            .field("conf", &self.conf)
            .field("close_idle_connections", &self.close_idle_connections)
            .finish_non_exhaustive()
    }
}
