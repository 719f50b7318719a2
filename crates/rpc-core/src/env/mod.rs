//! The environment: what users start, register endpoints with, and look endpoints up in.

mod builder;
mod files;
mod listen;
mod lookup;
mod shutdown;
mod snapshot;

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use network_common::{TransportMetrics, TransportServer};
use tokio::runtime::Handle;
use tokio::sync::watch;

pub use builder::RpcEnvBuilder;

use crate::address::{RpcAddress, RpcEndpointAddress};
use crate::ask::{AskResources, EndpointInfo};
use crate::dispatcher::Dispatcher;
use crate::endpoint::EndpointContext;
use crate::endpoint::EndpointOptions;
use crate::endpoint::RpcEndpointRef;
use crate::error::RpcError;
use crate::files::DownloadPool;
use crate::files::FileRegistry;
use crate::inbox::Inbox;
use crate::limits::InboxConf;
use crate::message_loop::IntoEndpoint;
use crate::metrics::ShutdownReport;
use crate::peer::{Connections, PeerPool};
use crate::sync::Mutex;
use crate::timeout::RpcTimeout;

/// A messaging environment: endpoints that others reach by name, and refs to endpoints elsewhere
/// (`rpc 1`). Cheap to clone.
///
/// A process usually has one. It runs on the tokio runtime that [`start`](RpcEnvBuilder::start) was
/// awaited on.
///
/// It ends with [`shutdown`](Self::shutdown) only. Dropping all handles does not end it while it
/// has endpoints, as these hold one too. One without endpoints ends when the last handle is
/// dropped: it stops listening, and the connections that others made to it are cut; those that it
/// made are closed with the last ref obtained from it.
#[derive(Clone)]
pub struct RpcEnv {
    inner: Arc<EnvInner>,
}

struct EnvInner {
    name: String,
    address: Option<RpcAddress>,
    lookup_timeout: RpcTimeout,
    inbox_conf: Arc<InboxConf>,
    shutdown_timeout: Duration,
    runtime: Handle,
    asks: Arc<AskResources>,
    dispatcher: Arc<Dispatcher>,
    peers: Arc<PeerPool>,
    connections: Arc<Connections>,
    files: Arc<FileRegistry>,
    downloads: Arc<DownloadPool>,
    transport: TransportMetrics,
    /// Taken by the shutdown.
    server: Mutex<Option<TransportServer>>,
    /// Tells this run of the process from earlier ones at the same address.
    incarnation: u64,
    stopping: AtomicBool,
    /// There when it has come to its end.
    terminated: watch::Sender<Option<ShutdownReport>>,
}

impl RpcEnv {
    /// Begins an environment; `name` appears in logs and errors only.
    pub fn builder(name: impl Into<String>) -> RpcEnvBuilder {
        RpcEnvBuilder::new(name.into())
    }

    /// The name given to the builder.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Where this environment is reached; `None` in client mode. Never changes.
    #[must_use]
    pub fn address(&self) -> Option<&RpcAddress> {
        self.inner.address.as_ref()
    }

    /// Registers `endpoint` under `name` and starts it (`rpc 4`). Messages can be sent to it at
    /// once; they wait for its `on_start`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::EndpointExists`](crate::ErrorKind::EndpointExists) if the name is taken,
    /// [`ErrorKind::InvalidAddress`](crate::ErrorKind::InvalidAddress) if it cannot be part of an address,
    /// [`ErrorKind::Stopped`](crate::ErrorKind::Stopped) once the environment shuts down.
    pub fn setup_endpoint<K, E: IntoEndpoint<K>>(
        &self,
        name: &str,
        endpoint: E,
    ) -> Result<RpcEndpointRef<E::Message>, RpcError> {
        self.setup_endpoint_with(name, endpoint, EndpointOptions::new())
    }

    /// [`setup_endpoint`](Self::setup_endpoint) with options: on threads of its own, or untold of
    /// connections.
    ///
    /// # Errors
    ///
    /// Those of [`setup_endpoint`](Self::setup_endpoint), and
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) for options that do not fit the endpoint or
    /// if its threads cannot be started.
    pub fn setup_endpoint_with<K, E: IntoEndpoint<K>>(
        &self,
        name: &str,
        endpoint: E,
        options: EndpointOptions,
    ) -> Result<RpcEndpointRef<E::Message>, RpcError> {
        let inner = &self.inner;
        let address = RpcEndpointAddress::new(inner.address.clone(), name)?;
        inner.register(address, endpoint, &options, Arc::clone(inner) as _)
    }

    /// Stops an endpoint of this environment: the name is free at once, messages that are queued
    /// are handled, then its `on_stop` runs. Goes by name, so a second call does nothing, or stops
    /// what has taken the name since (`rpc 2`). Endpoints of other environments cannot be stopped;
    /// nothing happens then.
    pub fn stop<M>(&self, endpoint: &RpcEndpointRef<M>) {
        if endpoint.incarnation() == self.inner.incarnation {
            self.inner.dispatcher.unregister(endpoint.name());
        }
    }
}

impl EnvInner {
    /// `env` is what the endpoint's context gives out.
    fn register<K, E: IntoEndpoint<K>>(
        &self,
        address: RpcEndpointAddress,
        endpoint: E,
        options: &EndpointOptions,
        env: Arc<dyn Any + Send + Sync>,
    ) -> Result<RpcEndpointRef<E::Message>, RpcError> {
        let about = EndpointInfo::new(address, Arc::clone(&self.asks), self.incarnation);
        let inbox = Inbox::new(about, options.inbox(&self.inbox_conf));
        self.dispatcher.register(endpoint, inbox, options, env)
    }
}

impl fmt::Debug for RpcEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RpcEnv")
            .field("name", &self.inner.name)
            .field("address", &self.inner.address)
            .finish_non_exhaustive()
    }
}

impl<M> EndpointContext<M> {
    /// The environment that the endpoint is registered with.
    #[must_use]
    pub fn env(&self) -> RpcEnv {
        match Arc::clone(&self.0.env).downcast::<EnvInner>() {
            Ok(inner) => RpcEnv { inner },
            Err(_) => unreachable!("setup_endpoint puts nothing else there"),
        }
    }
}
