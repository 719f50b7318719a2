//! [`RpcEnv`], the environment that registers endpoints and looks up those of other processes.

mod builder;
mod bulk;
#[cfg(feature = "files")]
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

use network_common::{MemoryNetwork, TransportContext, TransportServer};
use tokio::runtime::Handle;
use tokio::sync::watch;

pub use builder::RpcEnvBuilder;
pub use lookup::Lookup;

use crate::address::{RpcAddress, RpcEndpointAddress};
use crate::ask::{ActorId, AskResources, EndpointInfo};
use crate::conf::RpcConf;
use crate::dispatcher::Dispatcher;
use crate::endpoint::{EndpointContext, EndpointOptions, RpcEndpointRef};
use crate::error::RpcError;
#[cfg(feature = "files")]
use crate::files::{DownloadPool, FileRegistry};
use crate::inbox::Inbox;
use crate::limits::InboxConf;
use crate::message_loop::IntoEndpoint;
use crate::metrics::ShutdownReport;
use crate::peer::{Connections, PeerPool};
use crate::sync::Mutex;
use crate::timeout::RpcTimeout;

/// An environment: the endpoints of a process, and its connections to other environments.
///
/// A process usually has one. Cloning is cheap; all clones are the same environment. It runs on the
/// tokio runtime on which [`start`](RpcEnvBuilder::start) was called.
///
/// [`shutdown`](Self::shutdown) ends it. Dropping all handles does not end it while endpoints are
/// registered, because each of them holds a handle. Without endpoints, dropping the last handle
/// stops listening and closes the connections of peers; connections to peers close with the last
/// ref that uses them.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), rpc_core::RpcError> {
/// use rpc_core::RpcEnv;
///
/// let env = RpcEnv::builder("server").bind("127.0.0.1:0").start().await?;
/// // Register endpoints with `setup_endpoint`, then:
/// let report = env.shutdown().await;
/// assert!(report.is_clean());
/// # Ok(())
/// # }
/// ```
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
    #[cfg(feature = "files")]
    files: Arc<FileRegistry>,
    #[cfg(feature = "files")]
    downloads: Arc<DownloadPool>,
    conf: RpcConf,
    network: Option<MemoryNetwork>,
    /// The context of the connections for messages.
    context: TransportContext,
    /// `None` in client mode, and after the shutdown has taken it.
    server: Mutex<Option<TransportServer>>,
    /// A random number that distinguishes this run from others at the same address.
    incarnation: u64,
    stopping: AtomicBool,
    /// Holds the report once the shutdown has finished.
    terminated: watch::Sender<Option<ShutdownReport>>,
}

impl RpcEnv {
    /// Returns the name that was given to the builder.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Returns the address at which other environments reach this one.
    ///
    /// It is always `Some` after [`bind`](RpcEnvBuilder::bind), with the port that is in use, and
    /// always `None` in [client mode](RpcEnvBuilder::client_mode). It never changes.
    #[must_use]
    pub fn address(&self) -> Option<&RpcAddress> {
        self.inner.address.as_ref()
    }

    /// Registers `endpoint` under `name`, starts it and returns a ref to it.
    ///
    /// Messages can be sent to it at once; they are queued until its `on_start` has finished.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), rpc_core::RpcError> {
    /// # mod hello { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/generated/hello.rs")); }
    /// # use hello::{Greeting, HelloMessage, SayHi};
    /// use rpc_core::{EndpointContext, RpcEnv, RpcError, ThreadSafeRpcEndpoint};
    ///
    /// struct Hello;
    ///
    /// impl ThreadSafeRpcEndpoint for Hello {
    ///     type Message = HelloMessage;
    ///
    ///     async fn receive(
    ///         &mut self,
    ///         message: HelloMessage,
    ///         _cx: &EndpointContext<HelloMessage>,
    ///     ) -> Result<(), RpcError> {
    ///         match message {
    ///             HelloMessage::SayHi(hi, context) => context.reply(Greeting { text: hi.msg }),
    ///             HelloMessage::SayBye(bye, context) => context.reply(Greeting { text: bye.msg }),
    ///         }
    ///     }
    /// }
    ///
    /// let env = RpcEnv::builder("local").client_mode().start().await?;
    /// let hello = env.setup_endpoint("hello", Hello)?;
    /// assert_eq!(hello.ask(SayHi { msg: "neo".to_owned() }).await?.text, "neo");
    /// # env.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// * [`ErrorKind::EndpointExists`](crate::ErrorKind::EndpointExists) if the name is in use.
    /// * [`ErrorKind::InvalidAddress`](crate::ErrorKind::InvalidAddress) if the name is not valid;
    ///   see [`RpcEndpointAddress::new`].
    /// * [`ErrorKind::Stopped`](crate::ErrorKind::Stopped) once the environment shuts down, or its
    ///   runtime has ended.
    pub fn setup_endpoint<K, E: IntoEndpoint<K>>(
        &self,
        name: &str,
        endpoint: E,
    ) -> Result<RpcEndpointRef<E::Message>, RpcError> {
        self.setup_endpoint_with(name, endpoint, EndpointOptions::new())
    }

    /// Registers an endpoint as [`setup_endpoint`](Self::setup_endpoint) does, with options.
    ///
    /// # Errors
    ///
    /// Those of [`setup_endpoint`](Self::setup_endpoint), and
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) if the options do not fit the endpoint or
    /// its threads cannot be started.
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

    /// Stops an endpoint of this environment.
    ///
    /// The name is free at once; queued messages are handled, then `on_stop` runs. A second call
    /// has no effect, even if another endpoint has been registered under the name since; `RpcEnv`
    /// of Spark would stop that one. Has no effect on endpoints of other environments.
    pub fn stop<M>(&self, endpoint: &RpcEndpointRef<M>) {
        self.inner.dispatcher.unregister(endpoint.name(), ActorId::of(&endpoint.info));
    }
}

impl EnvInner {
    /// Registers an endpoint whose context returns `env`.
    fn register<K, E: IntoEndpoint<K>>(
        &self,
        address: RpcEndpointAddress,
        endpoint: E,
        options: &EndpointOptions,
        env: Arc<dyn Any + Send + Sync>,
    ) -> Result<RpcEndpointRef<E::Message>, RpcError> {
        let info = EndpointInfo::new(address, Arc::clone(&self.asks), self.incarnation);
        let inbox = Inbox::new(info, options.inbox(&self.inbox_conf));
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
    /// Returns the environment in which the endpoint is registered.
    #[must_use]
    pub fn env(&self) -> RpcEnv {
        match Arc::clone(self.erased_env()).downcast::<EnvInner>() {
            Ok(inner) => RpcEnv { inner },
            Err(_) => unreachable!("setup_endpoint stores an EnvInner in the context"),
        }
    }
}
