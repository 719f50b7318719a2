//! The environment: what users start, register endpoints with, and look endpoints up in.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::address::{RpcAddress, RpcEndpointAddress};
use crate::conf::RpcConf;
use crate::dispatcher::Dispatcher;
use crate::endpoint::EndpointContext;
use crate::endpoint_ref::RpcEndpointRef;
use crate::error::{ErrorKind, RpcError};
use crate::message_loop::IntoEndpoint;
use crate::timeout::RpcTimeout;

/// A messaging environment: endpoints that others reach by name, and refs to endpoints elsewhere. Cheap to clone.
///
/// A process usually has one. It runs on the tokio runtime that [`start`](RpcEnvBuilder::start) was awaited on.
///
/// It ends with [`shutdown`](Self::shutdown) only. Dropping all handles does not end it while it has endpoints, as
/// these hold one too; an environment in client mode without endpoints closes its connections when the last handle
/// and the last ref obtained from it are dropped.
#[derive(Clone)]
pub struct RpcEnv {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    address: Option<RpcAddress>,
    ask_timeout: RpcTimeout,
    lookup_timeout: RpcTimeout,
    runtime: Handle,
    dispatcher: Arc<Dispatcher>,
    stopping: AtomicBool,
    terminated: watch::Sender<bool>,
}

impl RpcEnv {
    /// Begins an environment; `name` appears in logs and errors only.
    #[must_use]
    pub fn builder(name: impl Into<String>) -> RpcEnvBuilder {
        RpcEnvBuilder { name: name.into(), conf: RpcConf::new(), mode: Mode::Undecided }
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

    /// Registers `endpoint` under `name` and starts it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::EndpointExists`] if the name is taken, [`ErrorKind::Address`] if it cannot be part of an
    /// address, [`ErrorKind::Stopped`] once the environment shuts down.
    pub fn setup_endpoint<K, E: IntoEndpoint<K>>(
        &self,
        name: &str,
        endpoint: E,
    ) -> Result<RpcEndpointRef<E::Message>, RpcError> {
        let inner = &self.inner;
        let address = RpcEndpointAddress::new(inner.address.clone(), name)?;
        let make_ref = |mailbox| {
            RpcEndpointRef::local(address.clone(), inner.ask_timeout.clone(), inner.runtime.clone(), mailbox)
        };
        let env = Arc::clone(inner) as Arc<dyn Any + Send + Sync>;
        inner.dispatcher.register(address.clone(), endpoint, make_ref, env)
    }

    /// Stops an endpoint of this environment: the name is free at once, messages that are queued are handled, then
    /// its `on_stop` runs. Goes by name; nothing happens if there is none (`rpc 2`).
    pub fn stop<M>(&self, endpoint: &RpcEndpointRef<M>) {
        self.inner.dispatcher.unregister(endpoint.name());
    }

    /// Stops all endpoints, waits until every `on_stop` has run, and closes all connections.
    ///
    /// Begins when called, not when polled; the future waits for the end. May be called many times, then all wait
    /// for the same end. An endpoint that wants to shut its own environment down must not await it, as it would
    /// wait for itself: `drop(cx.env().shutdown())`.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops the waiting, not the shutdown.
    pub fn shutdown(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        if !self.inner.stopping.swap(true, Ordering::AcqRel) {
            let inner = Arc::clone(&self.inner);
            self.inner.runtime.spawn(async move {
                inner.dispatcher.stop().await;
                tracing::debug!(env = %inner.name, "environment has shut down");
                inner.terminated.send_replace(true);
            });
        }
        self.await_termination()
    }

    /// Waits until [`shutdown`](Self::shutdown), called by whomever, has come to its end.
    ///
    /// # Cancel safety
    ///
    /// Can be dropped at any time.
    pub fn await_termination(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        let mut terminated = self.inner.terminated.subscribe();
        async move {
            // It fails only if the environment is gone, which is an end too.
            let _ = terminated.wait_for(|over| *over).await;
        }
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
        match Arc::clone(self.env_inner()).downcast::<Inner>() {
            Ok(inner) => RpcEnv { inner },
            Err(_) => unreachable!("setup_endpoint puts nothing else there"),
        }
    }
}

/// Makes an [`RpcEnv`]. Either [`bind`](Self::bind) or [`client_mode`](Self::client_mode) must be chosen.
#[derive(Clone, Debug)]
#[must_use = "nothing happens before `start`"]
pub struct RpcEnvBuilder {
    name: String,
    conf: RpcConf,
    mode: Mode,
}

#[derive(Clone, Debug)]
enum Mode {
    Undecided,
    Server { bind: String },
    Client,
}

impl RpcEnvBuilder {
    /// Listen at `address`, host:port. Port 0 takes a free one; [`RpcEnv::address`] tells which.
    pub fn bind(mut self, address: impl Into<String>) -> Self {
        self.mode = Mode::Server { bind: address.into() };
        self
    }

    /// Do not listen. Endpoints of other environments can be reached, and answer over the connections made to them.
    pub fn client_mode(mut self) -> Self {
        self.mode = Mode::Client;
        self
    }

    /// Use these settings.
    pub fn conf(mut self, conf: RpcConf) -> Self {
        self.conf = conf;
        self
    }

    /// Starts the environment on the current tokio runtime.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] for options that cannot work, [`ErrorKind::Address`] if the address to bind is not
    /// host:port, [`ErrorKind::Bind`] if it cannot be listened at.
    pub async fn start(self) -> Result<RpcEnv, RpcError> {
        let runtime = Handle::current();
        let address = match &self.mode {
            Mode::Client => None,
            Mode::Server { bind } => Some(bind.parse::<RpcAddress>()?),
            Mode::Undecided => {
                let text =
                    format!("the environment {} needs an address to bind, or client_mode()", self.name);
                return Err(RpcError::new(ErrorKind::Config, text));
            }
        };
        let inner = Inner {
            ask_timeout: self.conf.ask_timeout()?,
            lookup_timeout: self.conf.lookup_timeout()?,
            name: self.name,
            address,
            dispatcher: Arc::new(Dispatcher::new(runtime.clone())),
            runtime,
            stopping: AtomicBool::new(false),
            terminated: watch::Sender::new(false),
        };
        Ok(RpcEnv { inner: Arc::new(inner) })
    }
}
