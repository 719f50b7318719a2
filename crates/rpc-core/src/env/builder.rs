//! How an environment starts.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};

#[cfg(feature = "auth")]
use network_common::auth::SecretKeyHolder;
use network_common::{MemoryNetwork, TransportConf, TransportContext};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::listen::{FIRST_PORT, listen};
use super::{EnvInner, RpcEnv};
use crate::address::{RpcAddress, RpcEndpointAddress};
use crate::ask::AskResources;
#[cfg(feature = "auth")]
use crate::auth::{self, AuthIdentity};
use crate::conf::RpcConf;
use crate::dispatcher::EndpointVerifier;
use crate::dispatcher::{Dispatcher, EnvRpcHandler};
use crate::endpoint::EndpointOptions;
use crate::error::{ErrorKind, RpcError};
use crate::files::DownloadPool;
use crate::files::FileRegistry;
use crate::inbox::ConnectionEvent;
use crate::peer::{Connections, PeerPool, PeerShared};
use crate::sync::Mutex;
use crate::trace::{TracePropagator, Tracer};
use crate::wire::ENDPOINT_VERIFIER;

/// Makes an [`RpcEnv`]. Either [`bind`](Self::bind) or [`client_mode`](Self::client_mode) must be
/// chosen.
#[derive(Clone, Debug)]
#[must_use = "nothing happens before `start`"]
pub struct RpcEnvBuilder {
    name: String,
    conf: RpcConf,
    mode: Mode,
    advertised: Option<String>,
    tracer: Tracer,
    network: Option<MemoryNetwork>,
    #[cfg(feature = "auth")]
    identity: Option<AuthIdentity>,
}

#[derive(Clone, Debug)]
enum Mode {
    Undecided,
    Server { bind: String },
    Client,
}

impl RpcEnvBuilder {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            conf: RpcConf::new(),
            mode: Mode::Undecided,
            advertised: None,
            tracer: Tracer::default(),
            network: None,
            #[cfg(feature = "auth")]
            identity: None,
        }
    }

    /// Listen at `address`, host:port. Port 0 takes a free one; others are from 1024 on. If the
    /// port is in use the next one is tried, `spark.port.maxRetries` times in all (`rpc 1`).
    /// [`RpcEnv::address`] tells which it is.
    pub fn bind(mut self, address: impl Into<String>) -> Self {
        self.mode = Mode::Server { bind: address.into() };
        self
    }

    /// Tell others to reach this environment at `host`, with the port that is listened at. By
    /// default that is the host of [`bind`](Self::bind); a wildcard like 0.0.0.0 is no address to
    /// be reached at, so it needs this. A host only, without a port (`rpc 1`).
    pub fn advertise(mut self, host: impl Into<String>) -> Self {
        self.advertised = Some(host.into());
        self
    }

    /// Do not listen. Endpoints of other environments can be reached, and answer over the
    /// connections made to them.
    pub fn client_mode(mut self) -> Self {
        self.mode = Mode::Client;
        self
    }

    /// Use these settings.
    pub fn conf(mut self, conf: RpcConf) -> Self {
        self.conf = conf;
        self
    }

    /// Carry distributed traces along with messages.
    pub fn trace_propagator(mut self, context: impl TracePropagator) -> Self {
        self.tracer = Tracer(Some(Arc::new(context)));
        self
    }

    /// Meet other environments on `network` instead of the system's: for tests, also in tokio's
    /// paused time. The host to bind is any IP address.
    pub fn memory_network(mut self, network: &MemoryNetwork) -> Self {
        self.network = Some(network.clone());
        self
    }

    /// Authenticate every connection, in both directions, before anything else of it is read:
    /// connect as the application `app_id`, and believe who knows the secret that `secrets` has for
    /// the application it names (`auth 0`). How, and whether with encryption, is for the settings
    /// to say; `spark.authenticate` need not be among them.
    ///
    /// Not needed where one secret serves for all: then `spark.authenticate` and
    /// `spark.authenticate.secret` do, as in Spark. A secret that changes in `secrets` counts for
    /// connections made later.
    #[cfg(feature = "auth")]
    pub fn auth(mut self, app_id: impl Into<String>, secrets: Arc<dyn SecretKeyHolder>) -> Self {
        self.identity = Some(AuthIdentity { app_id: app_id.into(), secrets });
        self
    }

    /// Starts the environment on the current tokio runtime.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] for options and settings that cannot work, also for security that is
    /// asked for and cannot be had, [`ErrorKind::InvalidAddress`] if the address to bind is not host:port,
    /// [`ErrorKind::Bind`] if it cannot be listened at, or is in use as are those that were tried
    /// in its place.
    ///
    /// # Cancel safety
    ///
    /// Dropped before it is ready, it leaves nothing behind: nobody listens.
    pub async fn start(self) -> Result<RpcEnv, RpcError> {
        let bind = match &self.mode {
            Mode::Client => None,
            Mode::Server { bind } => Some(bind.parse::<RpcAddress>()?),
            Mode::Undecided => {
                let text = format!(
                    "the environment {} needs an address to bind, or client_mode()",
                    self.name
                );
                return Err(RpcError::new(ErrorKind::Config, text));
            }
        };
        let advertised = bind.as_ref().map(|bind| self.advertised_host(bind)).transpose()?;
        let lookup_timeout = self.conf.lookup_timeout()?;
        // The outbox promises order, which holds on one connection only (`rpc 12`).
        let transport_conf = TransportConf::from_settings("rpc", self.conf.settings())
            .and_then(|conf| conf.with("spark.rpc.io.numConnectionsPerPeer", "1"))
            .map_err(RpcError::config)?;

        let runtime = Handle::current();
        let dispatcher = Arc::new(Dispatcher::new(runtime.clone()));
        let incarnation = incarnation();
        let endpoints = Arc::downgrade(&dispatcher);
        let connections = Connections::new(Arc::new(PeerShared {
            budget: self.conf.inbox_budget()?,
            max_message: self.conf.max_message()?,
            max_routes: self.conf.max_routes()?,
            route_budget: self.conf.route_budget()?,
            runtime: runtime.clone(),
            incarnation,
            address: OnceLock::new(),
            undelivered: AtomicU64::new(0),
            on_undelivered: Box::new(move |error, peer| {
                if let Some(endpoints) = endpoints.upgrade() {
                    endpoints.post_to_all(&ConnectionEvent::Undelivered(error, peer));
                }
            }),
        }));
        let files = Arc::<FileRegistry>::default();
        let handler = EnvRpcHandler {
            dispatcher: Arc::clone(&dispatcher),
            connections: Arc::clone(&connections),
            files: Arc::clone(&files),
        };
        let mut context = TransportContext::new(transport_conf, handler);
        if let Some(network) = &self.network {
            context = context.memory_network(network);
        }
        #[cfg(feature = "auth")]
        let context = auth::with_authentication(context, self.identity, &self.conf).await?;
        context.check_security().map_err(RpcError::config)?;
        let downloads = DownloadPool::new(&self.conf, self.network.as_ref(), &context)?;
        let max_retries = self.conf.port_max_retries()?;
        let queue_limits = self.conf.route_queue_limits()?;
        let peers =
            PeerPool::new(context.create_client_factory(), Arc::clone(&connections), queue_limits);

        let mut inner = EnvInner {
            name: self.name,
            address: None,
            lookup_timeout,
            inbox_conf: Arc::new(self.conf.inbox()?),
            shutdown_timeout: self.conf.shutdown_timeout()?,
            asks: AskResources::new(self.conf.ask()?, self.tracer, runtime.clone()),
            dispatcher,
            peers,
            connections,
            files,
            downloads,
            transport: context.metrics(),
            server: Mutex::new(None),
            incarnation,
            runtime,
            stopping: AtomicBool::new(false),
            terminated: watch::Sender::new(None),
        };
        if let (Some(bind), Some(host)) = (bind, advertised) {
            // Before anybody can connect, so that no lookup finds it missing.
            inner.register_verifier()?;
            match listen(&context, &bind, &inner.name, max_retries).await {
                Ok(server) => {
                    let address = RpcAddress::new(&host, server.local_addr().port());
                    let _ = inner.connections.shared.address.set(address.clone());
                    inner.address = Some(address);
                    inner.server = Mutex::new(Some(server));
                }
                Err(error) => {
                    let stopping = inner.dispatcher.begin_stop();
                    inner.dispatcher.finish_stop(stopping, inner.shutdown_timeout).await;
                    return Err(error);
                }
            }
        }
        Ok(RpcEnv { inner: Arc::new(inner) })
    }

    fn advertised_host(&self, bind: &RpcAddress) -> Result<String, RpcError> {
        match &self.advertised {
            Some(host) => match RpcAddress::new(host, FIRST_PORT).to_string().parse::<RpcAddress>()
            {
                Ok(address) => Ok(address.host().to_owned()),
                Err(error) => {
                    let text =
                        format!("the environment {} cannot advertise `{host}`: {error}", self.name);
                    Err(RpcError::new(ErrorKind::Config, text).with_source(error))
                }
            },
            None if ["0.0.0.0", "[::]"].contains(&bind.host()) => {
                let text = format!(
                    "the environment {} binds {bind}, which others cannot connect to: \
                     say with advertise(host) how they reach this machine",
                    self.name
                );
                Err(RpcError::new(ErrorKind::Config, text))
            }
            None => Ok(bind.host().to_owned()),
        }
    }
}

impl EnvInner {
    fn register_verifier(&self) -> Result<(), RpcError> {
        let address = RpcEndpointAddress::new(None, ENDPOINT_VERIFIER)?;
        // It never looks at its environment, which is not complete yet.
        let verifier = EndpointVerifier { dispatcher: Arc::downgrade(&self.dispatcher) };
        self.register(address, verifier, &EndpointOptions::new(), Arc::new(()))?;
        Ok(())
    }
}

/// Random, and never 0, which means not told.
fn incarnation() -> u64 {
    // Every RandomState has keys of its own from the system's randomness.
    RandomState::new().build_hasher().finish() | 1
}
