//! Lookup of endpoints by address and name, and refs from [`EndpointRef`] fields.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use network_common::{RetryAttempt, RetryPolicy};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::{EnvInner, RpcEnv};
use crate::address::{IntoRpcAddress, RpcAddress, RpcEndpointAddress};
use crate::ask::{EndpointInfo, current_deadline};
use crate::dispatcher::endpoint_not_found_error;
use crate::endpoint::{EndpointRef, RpcEndpointRef, RpcMessage, is_transient, local_only_error};
use crate::error::{ErrorKind, RpcError};
use crate::inbox::service_mismatch_error;
use crate::peer::stale_incarnation_error;
use crate::peer_text::peer_name;
use crate::timeout::RpcTimeout;
use crate::wire::ENDPOINT_VERIFIER;
use crate::wire::proto::{CheckExistence, EndpointVerifierMessage};

impl RpcEnv {
    /// Looks up an endpoint of another environment and returns a ref to it.
    ///
    /// Asks the environment at `address` whether an endpoint is registered under `name`, and checks
    /// that it receives `M`. Waits at most `spark.rpc.lookupTimeout`. `address` is `"host:port"`, a
    /// pair `(host, port)` or an [`RpcAddress`]. If this environment has the address, the ref is
    /// local: its messages are not encoded.
    ///
    /// The ref means the endpoint of that name in whichever process listens on the address, also
    /// after a restart. [`wait_up_to`](Lookup::wait_up_to) waits for an endpoint that is not there
    /// yet.
    ///
    /// ```
    /// # use rpc_core::{EndpointContext, RpcEnv, RpcError, ThreadSafeRpcEndpoint};
    /// # mod hello { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/generated/hello.rs")); }
    /// # use hello::{Greeting, HelloMessage, SayHi};
    /// # struct Hello;
    /// # impl ThreadSafeRpcEndpoint for Hello {
    /// #     type Message = HelloMessage;
    /// #     async fn receive(
    /// #         &mut self,
    /// #         message: HelloMessage,
    /// #         _: &EndpointContext<HelloMessage>,
    /// #     ) -> Result<(), RpcError> {
    /// #         match message {
    /// #             HelloMessage::SayHi(hi, context) => context.reply(Greeting { text: hi.msg }),
    /// #             HelloMessage::SayBye(bye, context) => context.reply(Greeting { text: bye.msg }),
    /// #         }
    /// #     }
    /// # }
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), RpcError> {
    /// # let server = RpcEnv::builder("server").bind("127.0.0.1:0").start().await?;
    /// # server.setup_endpoint("hello", Hello)?;
    /// # let port = server.address().expect("listens").port();
    /// # let client = RpcEnv::builder("client").client_mode().start().await?;
    /// let hello = client.lookup::<HelloMessage>(("127.0.0.1", port), "hello").await?;
    /// let greeting = hello.ask(SayHi { msg: "neo".to_owned() }).await?;
    /// # assert_eq!(greeting.text, "neo");
    /// # client.shutdown().await;
    /// # server.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// * [`ErrorKind::InvalidAddress`] if `address` or `name` is not valid.
    /// * [`ErrorKind::EndpointNotFound`] if no endpoint is registered under `name`.
    /// * [`ErrorKind::ServiceMismatch`] if the endpoint serves other services than those of `M`.
    /// * [`ErrorKind::LocalOnly`] if `M` has no schema.
    /// * [`ErrorKind::Timeout`], [`ErrorKind::Network`] or [`ErrorKind::Authentication`] if the
    ///   environment does not respond, cannot be reached or is not trusted.
    /// * [`ErrorKind::Stopped`] if this environment has shut down.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the lookup. Nothing is sent before it is polled.
    pub fn lookup<M: RpcMessage>(&self, address: impl IntoRpcAddress, name: &str) -> Lookup<M> {
        Lookup::new(self, address.into_rpc_address(), name)
    }

    /// Does the same as [`lookup`](Self::lookup), under the name of `RpcEnv` in Spark.
    ///
    /// # Errors
    ///
    /// Those of [`lookup`](Self::lookup).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the lookup.
    pub fn setup_endpoint_ref<M: RpcMessage>(
        &self,
        address: impl IntoRpcAddress,
        name: &str,
    ) -> Lookup<M> {
        self.lookup(address, name)
    }

    /// Looks up the endpoint at `spark://name@host:port`, as [`lookup`](Self::lookup) does.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidAddress`] if `uri` does not have that form, and those of
    /// [`lookup`](Self::lookup).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the lookup.
    pub fn setup_endpoint_ref_by_uri<M: RpcMessage>(&self, uri: &str) -> Lookup<M> {
        match address_and_name(uri) {
            Ok((address, endpoint)) => Lookup::new(self, Ok(address), endpoint.name()),
            Err(error) => Lookup::new(self, Err(error), ""),
        }
    }

    /// Returns the typed ref of an endpoint from a field of a message, without a lookup.
    ///
    /// The ref of an endpoint of this environment is local. If the environment of the endpoint does
    /// not listen, the ref uses the connection that this environment has made to this one. When
    /// that connection ends, pending asks and all later messages fail with [`ErrorKind::Network`].
    ///
    /// The ref means the endpoint in one incarnation (one run) of its environment. A later
    /// incarnation at the same address rejects its messages with [`ErrorKind::Stopped`], because it
    /// has not the state of the earlier one. A ref from [`lookup`](Self::lookup) means the address;
    /// this also holds when it was sent in a message before.
    ///
    /// # Errors
    ///
    /// * [`ErrorKind::InvalidAddress`] if the field has no name or an address that is not valid.
    /// * [`ErrorKind::ServiceMismatch`] if the endpoint serves other services than those of `M`. An
    ///   endpoint of this environment must receive exactly `M`: resolve it as what it receives, and
    ///   [narrow](RpcEndpointRef::narrow) the ref.
    /// * [`ErrorKind::LocalOnly`] if `M` has no schema.
    /// * [`ErrorKind::EndpointNotFound`] if it is no longer registered in this environment.
    /// * [`ErrorKind::Stopped`] if it belonged to an earlier incarnation of this environment.
    /// * [`ErrorKind::Network`] if its environment does not listen and is not connected.
    pub fn resolve<M: RpcMessage>(
        &self,
        endpoint: &EndpointRef,
    ) -> Result<RpcEndpointRef<M>, RpcError> {
        self.inner.resolve(endpoint).map_err(RpcError::mark_as_result)
    }
}

/// Splits the address of an endpoint that must have the address of an environment.
fn address_and_name(uri: &str) -> Result<(RpcAddress, RpcEndpointAddress), RpcError> {
    let endpoint: RpcEndpointAddress = uri.parse()?;
    let address = endpoint.address().cloned().ok_or_else(|| {
        let text = format!("Invalid Spark URL: {}", peer_name(uri));
        RpcError::new(ErrorKind::InvalidAddress, text)
    })?;
    Ok((address, endpoint))
}

/// The future ref of an endpoint, from [`RpcEnv::lookup`].
///
/// ```
/// # use std::time::Duration;
/// # use rpc_core::{RpcEnv, RpcError};
/// # mod hello { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/generated/hello.rs")); }
/// # use hello::HelloMessage;
/// # async fn example(env: RpcEnv) -> Result<(), RpcError> {
/// // The server may start up to a minute later than this process.
/// let hello = env
///     .lookup::<HelloMessage>("driver:7077", "hello")
///     .wait_up_to(Duration::from_secs(60))
///     .await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "the lookup starts when this is awaited"]
pub struct Lookup<M> {
    env: Arc<EnvInner>,
    address: Result<RpcAddress, RpcError>,
    name: String,
    max_wait: Option<Duration>,
    /// `None` before the first poll.
    running: Option<RunningLookup<M>>,
}

type RunningLookup<M> = Pin<Box<dyn Future<Output = Result<RpcEndpointRef<M>, RpcError>> + Send>>;

impl<M: RpcMessage> Lookup<M> {
    fn new(env: &RpcEnv, address: Result<RpcAddress, RpcError>, name: &str) -> Self {
        let env = Arc::clone(&env.inner);
        Self { env, address, name: name.to_owned(), max_wait: None, running: None }
    }

    /// Waits for at most `max_wait` until the endpoint is there.
    ///
    /// To be called before the first poll; later it has no effect.
    ///
    /// The lookup is repeated while the environment cannot be reached or does not respond, or has
    /// no endpoint of this name: after a random time of at most 100 ms, which doubles up to 1 s.
    /// Other errors end it at once. In a handler, it also ends at the deadline of the request that
    /// is being handled. The error of the last attempt is the
    /// [`source`](std::error::Error::source) of the error.
    pub fn wait_up_to(mut self, max_wait: Duration) -> Self {
        self.max_wait = Some(max_wait);
        self
    }
}

impl<M: RpcMessage> Future for Lookup<M> {
    type Output = Result<RpcEndpointRef<M>, RpcError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { env, address, name, max_wait, running } = self.get_mut();
        let running = running.get_or_insert_with(|| {
            let (env, address, name) = (Arc::clone(env), address.clone(), std::mem::take(name));
            match *max_wait {
                None => Box::pin(async move { env.look_up(address?, &name, None).await }),
                Some(max_wait) => {
                    Box::pin(async move { wait(env, address?, name, max_wait).await })
                }
            }
        });
        running.as_mut().poll(cx).map_err(RpcError::mark_as_result)
    }
}

impl<M> fmt::Debug for Lookup<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookup").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Looks up an endpoint until it is there, for at most `max_wait`.
async fn wait<M: RpcMessage>(
    env: Arc<EnvInner>,
    address: RpcAddress,
    name: String,
    max_wait: Duration,
) -> Result<RpcEndpointRef<M>, RpcError> {
    let policy = RetryPolicy::new().attempts(u32::MAX).max_wait(Duration::from_secs(1));
    let mut policy = policy.total_timeout(max_wait);
    if let Some(deadline) = current_deadline() {
        policy = policy.limit_total_timeout(deadline.saturating_duration_since(Instant::now()));
    }
    let runtime = env.runtime.clone();
    let stopped = runtime_stopped_error(&address);
    let looking_up = async move {
        let mut attempts = 0;
        let attempt = |attempt: RetryAttempt| {
            attempts = attempt.number;
            env.look_up(address.clone(), &name, attempt.remaining)
        };
        let found = policy.run(attempt, is_worth_waiting).await;
        found.map_err(|error| match attempts {
            1 => error,
            _ => error.after_attempts(attempts, &format!("wait_up_to {max_wait:?}")),
        })
    };
    // On the environment's runtime, because this future may be polled by any executor.
    AbortOnDropHandle::new(runtime.spawn(looking_up)).await.unwrap_or(Err(stopped))
}

/// Returns whether a failed lookup may succeed later.
fn is_worth_waiting(error: &RpcError) -> bool {
    error.kind() == ErrorKind::EndpointNotFound || error.is_retryable() || is_transient(error)
}

fn runtime_stopped_error(peer: &RpcAddress) -> RpcError {
    let text = format!("the tokio runtime of this environment shut down during a lookup at {peer}");
    RpcError::new(ErrorKind::Stopped, text).with_peer(peer)
}

fn check_services<M: RpcMessage>(
    endpoint: &RpcEndpointAddress,
    served: &[String],
) -> Result<(), RpcError> {
    if M::SERVICES.iter().all(|service| served.iter().any(|other| other == service)) {
        return Ok(());
    }
    let served: Vec<&str> = served.iter().map(String::as_str).collect();
    Err(service_mismatch_error(endpoint, M::SERVICES, &served))
}

impl EnvInner {
    async fn look_up<M: RpcMessage>(
        &self,
        address: RpcAddress,
        name: &str,
        remaining: Option<Duration>,
    ) -> Result<RpcEndpointRef<M>, RpcError> {
        let endpoint = RpcEndpointAddress::new(Some(address.clone()), name)?;
        if self.address.as_ref() == Some(&address) {
            return self.local_ref(endpoint);
        }
        if M::SERVICES.is_empty() {
            return Err(local_only_error());
        }
        let verifier = RpcEndpointAddress::new(Some(address.clone()), ENDPOINT_VERIFIER)?;
        let verifier = self.remote_ref::<EndpointVerifierMessage>(verifier, &address, 0);
        let check = CheckExistence { endpoint: name.to_owned() };
        let timeout = match remaining.filter(|rest| *rest < self.lookup_timeout.duration()) {
            Some(rest) => RpcTimeout::new(rest, "wait_up_to"),
            None => self.lookup_timeout.clone(),
        };
        let found = verifier.ask_with_timeout(check, timeout).await?;
        if !found.exists {
            return Err(endpoint_not_found_error(&endpoint));
        }
        check_services::<M>(&endpoint, &found.services)?;
        // Another address of this environment: a ref to a part of `M` is remote nevertheless.
        if self.peers.peer(&address).incarnation() == Some(self.incarnation)
            && let Ok(local) = self.local_ref(endpoint.clone())
        {
            return Ok(local);
        }
        Ok(self.remote_ref(endpoint, &address, 0))
    }

    fn resolve<M: RpcMessage>(
        &self,
        endpoint: &EndpointRef,
    ) -> Result<RpcEndpointRef<M>, RpcError> {
        let address = match endpoint.address() {
            "" => None,
            address => Some(address.parse::<RpcAddress>()?),
        };
        let full = RpcEndpointAddress::new(address.clone(), endpoint.name())?;
        let is_local = address.is_some() && address == self.address;
        if endpoint.incarnation == self.incarnation || (is_local && endpoint.incarnation == 0) {
            return self.local_ref(RpcEndpointAddress::new(self.address.clone(), endpoint.name())?);
        }
        if let (true, Some(address)) = (is_local, &address) {
            return Err(stale_incarnation_error(endpoint.name(), address).with_peer(&full));
        }
        if M::SERVICES.is_empty() {
            return Err(local_only_error());
        }
        check_services::<M>(&full, &endpoint.services)?;
        match address {
            Some(address) => Ok(self.remote_ref(full, &address, endpoint.incarnation)),
            None => self.inbound_ref(full, endpoint.incarnation),
        }
    }

    fn local_ref<M: RpcMessage>(
        &self,
        endpoint: RpcEndpointAddress,
    ) -> Result<RpcEndpointRef<M>, RpcError> {
        Ok(self.dispatcher.inbox::<M>(&endpoint)?.make_ref())
    }

    /// Returns the ref of an endpoint at `address`, without a check.
    fn remote_ref<M: RpcMessage>(
        &self,
        endpoint: RpcEndpointAddress,
        address: &RpcAddress,
        incarnation: u64,
    ) -> RpcEndpointRef<M> {
        let route = self.peers.route(self.peers.peer(address), endpoint.name(), incarnation);
        RpcEndpointRef::remote(
            EndpointInfo::new(endpoint, Arc::clone(&self.asks), incarnation),
            route,
        )
    }

    /// Returns the ref of an endpoint whose environment does not listen.
    ///
    /// It uses the connection that the environment of the endpoint has made to this one.
    fn inbound_ref<M: RpcMessage>(
        &self,
        endpoint: RpcEndpointAddress,
        incarnation: u64,
    ) -> Result<RpcEndpointRef<M>, RpcError> {
        if incarnation == 0 {
            let endpoint = endpoint.to_string();
            let shown = peer_name(&endpoint);
            let text = format!("the ref of {shown} has neither an address nor an incarnation");
            return Err(RpcError::new(ErrorKind::InvalidAddress, text).with_peer(&endpoint));
        }
        let connection = self.connections.of_incarnation(incarnation);
        let connected = connection.and_then(|connection| {
            Some((self.peers.connected_peer(&connection)?, connection.socket.clone()))
        });
        let Some((peer, socket)) = connected else {
            let text = format!(
                "{} cannot be reached: its environment does not listen, and is not connected to \
                 this one",
                peer_name(&endpoint.to_string())
            );
            return Err(RpcError::new(ErrorKind::Network, text).with_peer(&endpoint));
        };
        let route = self.peers.route(peer, endpoint.name(), incarnation);
        let mut info = EndpointInfo::new(endpoint, Arc::clone(&self.asks), incarnation);
        info.socket = Some(socket);
        Ok(RpcEndpointRef::remote(info, route))
    }
}
