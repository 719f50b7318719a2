//! The root of everything: settings and a handler.

use std::fmt;
use std::sync::Arc;

use tokio::net::ToSocketAddrs;

use crate::buffer::BufferPool;
use crate::channel::Resources;
use crate::conf::TransportConf;
use crate::error::TransportError;
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
}

impl TransportContext {
    /// A context whose connections, accepted and opened ones, are served by `handler`.
    pub fn new(conf: TransportConf, handler: impl RpcHandler) -> Self {
        Self::with_handler(conf, Arc::new(handler))
    }

    /// The same with a handler that is shared with others.
    pub fn with_handler(conf: TransportConf, handler: Arc<dyn RpcHandler>) -> Self {
        let metrics = TransportMetrics::new(conf.module());
        Self { conf: Arc::new(conf), handler, metrics, pool: Arc::default(), close_idle_connections: false }
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
    /// Kind [`Bind`](crate::ErrorKind::Bind).
    pub async fn create_server(
        &self,
        address: impl ToSocketAddrs,
    ) -> Result<TransportServer, TransportError> {
        self.create_server_with(address, Vec::new()).await
    }

    /// The same with bootstraps, which run in order on every accepted connection.
    ///
    /// # Errors
    /// Kind [`Bind`](crate::ErrorKind::Bind).
    pub async fn create_server_with(
        &self,
        address: impl ToSocketAddrs,
        bootstraps: Vec<Arc<dyn TransportServerBootstrap>>,
    ) -> Result<TransportServer, TransportError> {
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
        bootstraps: Vec<Arc<dyn TransportClientBootstrap>>,
    ) -> TransportClientFactory {
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

impl fmt::Debug for TransportContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransportContext")
            .field("conf", &self.conf)
            .field("close_idle_connections", &self.close_idle_connections)
            .finish_non_exhaustive()
    }
}
