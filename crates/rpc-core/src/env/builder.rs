//! [`RpcEnvBuilder`], which starts an environment.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};

#[cfg(feature = "auth")]
use network_common::auth::SecretKeyHolder;
use network_common::{ByteBudget, MemoryNetwork, TransportConf, TransportContext};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::listen::{FIRST_PORT, listen};
use super::{EnvInner, RpcEnv};
use crate::address::{IntoRpcAddress, RpcAddress, RpcEndpointAddress};
use crate::ask::AskResources;
#[cfg(feature = "auth")]
use crate::auth::{self, AuthIdentity};
use crate::conf::RpcConf;
use crate::dispatcher::{Dispatcher, EndpointVerifier, EnvRpcHandler};
use crate::endpoint::EndpointOptions;
use crate::error::{ErrorKind, RpcError};
#[cfg(feature = "files")]
use crate::files::{DownloadPool, FileRegistry};
use crate::inbox::ConnectionEvent;
use crate::peer::{Connections, PeerPool, PeerShared};
use crate::sync::Mutex;
use crate::trace::{TracePropagator, Tracer};
use crate::wire::ENDPOINT_VERIFIER;

/// Configures and starts an [`RpcEnv`].
///
/// Either [`bind`](Self::bind) or [`client_mode`](Self::client_mode) is required.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), rpc_core::RpcError> {
/// use rpc_core::{RpcConf, RpcEnv};
///
/// let conf = RpcConf::new().with("spark.rpc.askTimeout", "30s")?;
/// let env = RpcEnv::builder("server").conf(conf).bind("127.0.0.1:0").start().await?;
/// # env.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "the environment is started by `start`"]
pub struct RpcEnvBuilder {
    name: String,
    conf: RpcConf,
    mode: Mode,
    advertised: Option<String>,
    tracer: Tracer,
    network: Option<MemoryNetwork>,
    budget: Option<ByteBudget>,
    #[cfg(feature = "auth")]
    identity: Option<AuthIdentity>,
}

#[derive(Clone, Debug)]
enum Mode {
    Undecided,
    Server { bind: Result<RpcAddress, RpcError> },
    Client,
}

impl RpcEnv {
    /// Returns a builder; `name` appears in logs and errors only.
    pub fn builder(name: impl Into<String>) -> RpcEnvBuilder {
        RpcEnvBuilder::new(name.into())
    }
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
            budget: None,
            #[cfg(feature = "auth")]
            identity: None,
        }
    }

    /// Makes the environment listen on `address`.
    ///
    /// `address` is `"host:port"`, a pair `(host, port)` or an [`RpcAddress`]. Port 0 is any free
    /// port; others must be at least 1024. If the port is in use, the following ports are tried, at
    /// most `spark.port.maxRetries` of them, as by `Utils.startServiceOnPort` of Spark.
    /// [`RpcEnv::address`] returns the port in use.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), rpc_core::RpcError> {
    /// use rpc_core::RpcEnv;
    ///
    /// let env = RpcEnv::builder("server").bind(("127.0.0.1", 0)).start().await?;
    /// println!("listens on {}", env.address().expect("an env with `bind` has an address"));
    /// # env.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn bind(mut self, address: impl IntoRpcAddress) -> Self {
        self.mode = Mode::Server { bind: address.into_rpc_address() };
        self
    }

    /// Sets the host at which other environments reach this one; the port is the bound one.
    ///
    /// The default is the host of [`bind`](Self::bind). A wildcard such as `0.0.0.0` is not an
    /// address to connect to, so an environment that binds one needs this. `host` has no port.
    pub fn advertise(mut self, host: impl Into<String>) -> Self {
        self.advertised = Some(host.into());
        self
    }

    /// Makes an environment that does not listen.
    ///
    /// It can look up and call endpoints of other environments. They can call its endpoints through
    /// refs that it sends them, over the connections that it made.
    pub fn client_mode(mut self) -> Self {
        self.mode = Mode::Client;
        self
    }

    /// Sets the settings of the environment; see the table of [`RpcConf`].
    pub fn conf(mut self, conf: RpcConf) -> Self {
        self.conf = conf;
        self
    }

    /// Sets the propagator that carries distributed traces along with messages.
    pub fn trace_propagator(mut self, propagator: impl TracePropagator) -> Self {
        self.tracer = Tracer(Some(Arc::new(propagator)));
        self
    }

    /// Connects the environment to a network in memory instead of the system's.
    ///
    /// It is meant for tests, also with tokio's paused time. The host to bind is any IP address.
    pub fn memory_network(mut self, network: &MemoryNetwork) -> Self {
        self.network = Some(network.clone());
        self
    }

    /// Counts what this environment holds for its peers in `budget`, not in the process's one.
    ///
    /// By default, all environments and transports of a process share one budget, with the limit
    /// `spark.network.maxHeldBytes`.
    pub fn byte_budget(mut self, budget: &ByteBudget) -> Self {
        self.budget = Some(budget.clone());
        self
    }

    /// Authenticates every connection, in both directions, before any message is read.
    ///
    /// The environment connects as the application `app_id`. It accepts a peer that proves that it
    /// has the secret which `secrets` holds for the application that the peer names. The settings
    /// `spark.network.crypto.*` choose the protocol and the encryption; `spark.authenticate` need
    /// not be set. After a change of a secret in `secrets`, new connections use the new secret.
    ///
    /// Where all peers share one secret, the settings `spark.authenticate` and
    /// `spark.authenticate.secret` suffice, as in Spark.
    #[cfg(feature = "auth")]
    pub fn auth(mut self, app_id: impl Into<String>, secrets: Arc<dyn SecretKeyHolder>) -> Self {
        self.identity = Some(AuthIdentity { app_id: app_id.into(), secrets });
        self
    }

    /// Starts the environment on the current tokio runtime.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), rpc_core::RpcError> {
    /// use rpc_core::RpcEnv;
    ///
    /// let client = RpcEnv::builder("client").client_mode().start().await?;
    /// # client.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// * [`ErrorKind::Config`] if an option or a setting cannot work, or if the required security
    ///   is not available.
    /// * [`ErrorKind::InvalidAddress`] if the address to bind is not valid.
    /// * [`ErrorKind::Bind`] if the environment cannot listen on the address, or if the port and
    ///   all ports that were tried instead are in use.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future releases everything; no port stays open.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub async fn start(self) -> Result<RpcEnv, RpcError> {
        let bind = match &self.mode {
            Mode::Client => None,
            Mode::Server { bind } => Some(bind.clone()?),
            Mode::Undecided => {
                let text = format!(
                    "the environment {} has no mode: call bind(address) or client_mode()",
                    self.name
                );
                return Err(RpcError::new(ErrorKind::Config, text));
            }
        };
        let advertised = bind.as_ref().map(|bind| self.advertised_host(bind)).transpose()?;
        for key in self.conf.unknown_keys() {
            tracing::warn!(env = self.name, "{key}");
        }
        let lookup_timeout = self.conf.lookup_timeout()?;
        // The order of messages holds on one connection only; `RpcUtils` of Spark does the same.
        let transport_conf = TransportConf::from_settings("rpc", self.conf.settings_of(""))
            .and_then(|conf| conf.with("spark.rpc.io.numConnectionsPerPeer", "1"))
            .map_err(RpcError::config)?;

        let runtime = Handle::current();
        let has_own_budget = self.budget.is_some();
        let process = self.budget.unwrap_or_else(ByteBudget::process);
        let budget = Arc::new(self.conf.inbox_budget(&process)?);
        let dispatcher = Arc::new(Dispatcher::new(runtime.clone(), Arc::clone(&budget)));
        let incarnation = incarnation();
        let endpoints = Arc::downgrade(&dispatcher);
        let connections = Connections::new(Arc::new(PeerShared {
            budget,
            max_message: self.conf.max_message()?,
            max_routes: self.conf.max_routes()?,
            route_budget: self.conf.route_budget(&process)?,
            retry_budget: self.conf.retry_budget()?,
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
        #[cfg(feature = "files")]
        let files = Arc::<FileRegistry>::default();
        let handler = EnvRpcHandler {
            dispatcher: Arc::clone(&dispatcher),
            connections: Arc::clone(&connections),
            #[cfg(feature = "files")]
            files: Arc::clone(&files),
        };
        let mut context = TransportContext::new(transport_conf, handler);
        if has_own_budget {
            context = context.with_byte_budget(&process);
        }
        if let Some(network) = &self.network {
            context = context.memory_network(network);
        }
        #[cfg(feature = "auth")]
        let context = auth::with_authentication(context, self.identity, &self.conf).await?;
        context.check_security().map_err(RpcError::config)?;
        #[cfg(feature = "files")]
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
            #[cfg(feature = "files")]
            files,
            #[cfg(feature = "files")]
            downloads,
            conf: self.conf,
            network: self.network,
            context: context.clone(),
            server: Mutex::new(None),
            incarnation,
            runtime,
            stopping: AtomicBool::new(false),
            terminated: watch::Sender::new(None),
        };
        if let (Some(bind), Some(host)) = (bind, advertised) {
            // Before the first connection, because every lookup needs the verifier.
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
                    let text = format!("the environment {} cannot advertise `{host}`", self.name);
                    Err(RpcError::new(ErrorKind::Config, text).with_source(error))
                }
            },
            None if ["0.0.0.0", "[::]"].contains(&bind.host()) => {
                let text = format!(
                    "the environment {} binds {bind}, which is not an address to connect to: set \
                     the host of this machine with advertise(host)",
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
        // The environment is not complete yet; the verifier does not use it.
        let verifier = EndpointVerifier { dispatcher: Arc::downgrade(&self.dispatcher) };
        self.register(address, verifier, &EndpointOptions::new(), Arc::new(()))?;
        Ok(())
    }
}

/// Returns a random number that is not 0, because 0 means an unknown incarnation.
fn incarnation() -> u64 {
    fastrand::u64(1..)
}
