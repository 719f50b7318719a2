//! `RpcEndpointRef`: sends messages and asks to one endpoint.

use std::cell::Cell;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::address::RpcEndpointAddress;
use crate::ask::EndpointInfo;
use crate::endpoint::inbox_handle::Narrowed;
use crate::endpoint::{
    Caller, InboxHandle, RpcCallContext, RpcMessage, RpcRequest, local_only_error,
};
use crate::error::{ErrorKind, RpcError, SendError};
use crate::message_metadata::MessageMetadata;
use crate::peer::OutboundRoute;
use crate::wire::{self, EncodedMessage};

thread_local! {
    /// Is true if the next `send_wait` consumes one unit of tokio's budget of 128. Every second one
    /// does, so a task sends 256 messages per poll, the poll budget of a message loop.
    static CONSUMES_BUDGET: Cell<bool> = const { Cell::new(false) };
}

/// A ref to one endpoint of this or another environment, which receives messages of type `M`.
///
/// [`setup_endpoint`](crate::RpcEnv::setup_endpoint) and
/// [`setup_endpoint_ref`](crate::RpcEnv::setup_endpoint_ref) return refs. Clones are cheap. The
/// counterpart in Spark is `RpcEndpointRef`.
///
/// Messages of one holder of a ref arrive in the order of its calls. Each message is handled at
/// most once. It is lost if the endpoint stops or the connection closes before.
///
/// Refs are equal if the addresses of their endpoints are equal. For endpoints of environments that
/// do not listen, the environments must be the same, too.
///
/// ```
/// # use rpc_core::{RpcEnv, RpcError};
/// # mod hello { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/generated/hello.rs")); }
/// # use hello::{HelloMessage, SayBye, SayHi};
/// # async fn example(env: RpcEnv) -> Result<(), RpcError> {
/// let server = "127.0.0.1:52345";
/// let hello = env.setup_endpoint_ref::<HelloMessage>(server, "hello-service").await?;
/// // A request with a reply:
/// let greeting = hello.ask(SayHi { msg: "neo".to_owned() }).await?;
/// println!("{}", greeting.text);
/// // A one-way message:
/// hello.send(SayBye { msg: "neo".to_owned() })?;
/// # Ok(())
/// # }
/// ```
pub struct RpcEndpointRef<M> {
    pub(crate) info: Arc<EndpointInfo>,
    pub(super) target: RefTarget<M>,
}

pub(super) enum RefTarget<M> {
    Local(Arc<dyn InboxHandle<M>>),
    Remote(Arc<OutboundRoute>),
}

impl<M> RpcEndpointRef<M> {
    pub(crate) fn local(info: Arc<EndpointInfo>, inbox: Arc<dyn InboxHandle<M>>) -> Self {
        Self { info, target: RefTarget::Local(inbox) }
    }

    pub(crate) fn remote(info: EndpointInfo, route: OutboundRoute) -> Self {
        Self { info: Arc::new(info), target: RefTarget::Remote(Arc::new(route)) }
    }

    pub(crate) fn is_local(&self) -> bool {
        matches!(self.target, RefTarget::Local(_))
    }

    /// Returns the incarnation of the endpoint's environment, or 0 if it is unknown.
    pub(crate) fn incarnation(&self) -> u64 {
        self.info.incarnation
    }

    /// Returns the endpoint's address: its environment and its name.
    #[must_use]
    pub fn address(&self) -> &RpcEndpointAddress {
        &self.info.address
    }

    /// Returns the endpoint's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.info.address.name()
    }
}

impl<M: RpcMessage> RpcEndpointRef<M> {
    /// Returns a ref for a part `N` of the messages that the endpoint receives.
    ///
    /// For endpoints whose message type is an enum of the messages of several services.
    ///
    /// ```
    /// # use rpc_core::{IncomingRequest, RpcEndpointRef, RpcError, RpcMessage};
    /// # mod hello { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/generated/hello.rs")); }
    /// # use hello::HelloMessage;
    /// # struct Admin;
    /// enum Served {
    ///     Hello(HelloMessage),
    ///     Admin(Admin),
    /// }
    /// # impl RpcMessage for Served {
    /// #     const SERVICES: &'static [&'static str] = HelloMessage::SERVICES;
    /// #     fn decode(request: IncomingRequest<'_>) -> Result<Self, RpcError> {
    /// #         HelloMessage::decode(request).map(Self::Hello)
    /// #     }
    /// # }
    /// impl From<HelloMessage> for Served {
    ///     fn from(message: HelloMessage) -> Self {
    ///         Self::Hello(message)
    ///     }
    /// }
    /// fn hello_only(endpoint: &RpcEndpointRef<Served>) -> RpcEndpointRef<HelloMessage> {
    ///     endpoint.narrow()
    /// }
    /// ```
    #[must_use]
    pub fn narrow<N: RpcMessage>(&self) -> RpcEndpointRef<N>
    where
        M: From<N>,
    {
        let target = match &self.target {
            RefTarget::Local(inbox) => RefTarget::Local(Arc::new(Narrowed(Arc::clone(inbox))) as _),
            RefTarget::Remote(route) => RefTarget::Remote(Arc::clone(route)),
        };
        RpcEndpointRef { info: Arc::clone(&self.info), target }
    }

    /// Sends a one-way message. Returns immediately and never blocks.
    ///
    /// A reply is discarded. `Ok` means that the message is in the inbox of a local endpoint, or
    /// sent or queued for a remote one. If the peer rejects it, the endpoints of this environment
    /// receive `on_undelivered`. To learn whether the message was handled, [`ask`](Self::ask). The
    /// counterpart in Spark is `RpcEndpointRef.send`.
    ///
    /// ```
    /// # use rpc_core::{RpcEndpointRef, RpcError};
    /// # mod hello { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/generated/hello.rs")); }
    /// # use hello::{HelloMessage, SayHi};
    /// # fn example(hello: RpcEndpointRef<HelloMessage>) -> Result<(), RpcError> {
    /// hello.send(SayHi { msg: "neo".to_owned() })?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The error contains the request.
    ///
    /// * [`ErrorKind::Stopped`]: the endpoint or the environment has stopped.
    /// * [`ErrorKind::Limit`], retryable: the inbox, or the queue to the peer, is full.
    /// * [`ErrorKind::Limit`], not retryable: the message is larger than
    ///   `spark.rpc.message.maxSize`.
    /// * [`ErrorKind::LocalOnly`]: the message has no schema, and the endpoint is remote.
    pub fn send<R: RpcRequest<M>>(&self, request: R) -> Result<(), SendError<R>> {
        match &self.target {
            RefTarget::Local(inbox) => {
                let sender = self.info.address.address().cloned();
                let context = RpcCallContext { caller: Caller::None, sender };
                let mut parts = Some((request, context));
                let span = self.info.asks.tracer.start_local_span(self.name());
                let metadata = MessageMetadata { caller: None, permit: None, span };
                let posted = inbox.post(metadata, &mut || {
                    parts.take().map(|(request, context)| request.into_message(context))
                });
                match (posted, parts) {
                    (Err(error), Some((request, _))) => Err(SendError::new(request, error)),
                    _ => Ok(()),
                }
            }
            RefTarget::Remote(route) => {
                let sent = self.encode(&request, false).and_then(|message| route.send(message));
                sent.map_err(|error| SendError::new(request, error))
            }
        }
    }

    /// Sends a one-way message, and waits for capacity while the queue is full.
    ///
    /// This slows the sender down to the speed of the endpoint, in this environment and across the
    /// network.
    ///
    /// ```
    /// # use rpc_core::{RpcEndpointRef, RpcError};
    /// # mod hello { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/generated/hello.rs")); }
    /// # use hello::{HelloMessage, SayHi};
    /// # async fn example(hello: RpcEndpointRef<HelloMessage>) -> Result<(), RpcError> {
    /// for number in 0..1_000_000 {
    ///     hello.send_wait(SayHi { msg: number.to_string() }).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`send`](Self::send), except that a full queue is not an error. Inside a handler,
    /// [`ErrorKind::Deadlock`] if the inbox of its own endpoint is full and cannot have capacity
    /// before this handler ends.
    ///
    /// # Cancel safety
    ///
    /// A future that is dropped before it is ready has sent nothing. The request is dropped.
    pub async fn send_wait<R: RpcRequest<M>>(&self, mut request: R) -> Result<(), SendError<R>> {
        // Otherwise a task that sends in a loop would not yield to the endpoint before the queue
        // is full.
        if CONSUMES_BUDGET.replace(!CONSUMES_BUDGET.get()) {
            tokio::task::coop::consume_budget().await;
        }
        loop {
            let rejected = match self.send(request) {
                Err(rejected)
                    if rejected.error().kind() == ErrorKind::Limit
                        && rejected.error().is_retryable() =>
                {
                    rejected
                }
                sent => return sent,
            };
            request = rejected.into_message();
            match &self.target {
                RefTarget::Local(inbox) => {
                    if let Err(error) = inbox.wait_for_capacity().await {
                        return Err(SendError::new(request, error));
                    }
                }
                RefTarget::Remote(route) => route.wait_for_capacity().await,
            }
        }
    }

    pub(super) fn encode<R: RpcRequest<M>>(
        &self,
        request: &R,
        is_ask: bool,
    ) -> Result<EncodedMessage, RpcError> {
        let method = R::METHOD.ok_or_else(local_only_error)?;
        let trace = self.info.asks.tracer.current_traceparent();
        let message =
            wire::encode_message(method, is_ask, trace.as_deref(), |body| request.encode(body))?;
        wire::check_size("the message", message.len(), self.info.asks.conf.max_message)
            .map_err(|error| error.with_peer(self.address()))?;
        Ok(message)
    }
}

impl<M> Clone for RpcEndpointRef<M> {
    fn clone(&self) -> Self {
        let target = match &self.target {
            RefTarget::Local(inbox) => RefTarget::Local(Arc::clone(inbox)),
            RefTarget::Remote(route) => RefTarget::Remote(Arc::clone(route)),
        };
        Self { info: Arc::clone(&self.info), target }
    }
}

impl<M> PartialEq for RpcEndpointRef<M> {
    fn eq(&self, other: &Self) -> bool {
        // The address of an endpoint whose environment does not listen is its name only, which
        // another environment may use, too.
        self.address() == other.address()
            && (self.address().address().is_some() || self.incarnation() == other.incarnation())
    }
}

impl<M> Eq for RpcEndpointRef<M> {}

impl<M> Hash for RpcEndpointRef<M> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.address().hash(state);
    }
}

impl<M> fmt::Display for RpcEndpointRef<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.address(), f)
    }
}

impl<M> fmt::Debug for RpcEndpointRef<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RpcEndpointRef({})", self.address())
    }
}
