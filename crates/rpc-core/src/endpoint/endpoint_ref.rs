//! `RpcEndpointRef`: sends messages and asks to one endpoint.

use std::cell::Cell;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use tokio::time::Instant;

use crate::address::RpcEndpointAddress;
use crate::ask::{AskFuture, AskState, EndpointInfo, ReplySlot, current_deadline};
use crate::endpoint::inbox_handle::Narrowed;
use crate::endpoint::{
    Caller, InboxHandle, RpcCallContext, RpcMessage, RpcRequest, local_only_error,
};
use crate::error::{ErrorKind, RpcError, SendError};
use crate::message_metadata::{MessageCaller, MessageMetadata};
use crate::peer::OutboundRoute;
use crate::timeout::RpcTimeout;
use crate::wire::{self, EncodedMessage};

thread_local! {
    /// Whether the next `send_wait` consumes one unit of tokio's budget of 128. Every second one
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
/// # mod hello { rpc_core::include_proto!("hello"); }
/// # use hello::{HelloMessage, SayBye, SayHi};
/// # async fn example(env: RpcEnv) -> Result<(), RpcError> {
/// let server = "127.0.0.1:52345".parse()?;
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
    target: RefTarget<M>,
}

enum RefTarget<M> {
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
    /// # mod hello { rpc_core::include_proto!("hello"); }
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
    /// # mod hello { rpc_core::include_proto!("hello"); }
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
    /// # mod hello { rpc_core::include_proto!("hello"); }
    /// # use hello::{HelloMessage, SayHi};
    /// # async fn example(hello: RpcEndpointRef<HelloMessage>) -> Result<(), RpcError> {
    /// for guest in 0..1_000_000 {
    ///     hello.send_wait(SayHi { msg: guest.to_string() }).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`send`](Self::send), except that a full queue is not an error.
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
            match &self.target {
                RefTarget::Local(inbox) => inbox.wait_for_capacity().await,
                RefTarget::Remote(route) => route.wait_for_capacity().await,
            }
            request = rejected.into_message();
        }
    }

    /// Sends a request and returns the future of its reply.
    ///
    /// The request is sent before this function returns, so asks arrive in the order of the calls,
    /// even if their futures are never polled. The timeout is `spark.rpc.askTimeout`, 120 s by
    /// default. An ask inside of a handler of another ask also inherits its deadline, if that is
    /// earlier. The counterpart in Spark is `RpcEndpointRef.ask`.
    ///
    /// ```
    /// # use rpc_core::{RpcEndpointRef, RpcError};
    /// # mod hello { rpc_core::include_proto!("hello"); }
    /// # use hello::{HelloMessage, SayHi};
    /// # async fn example(hello: RpcEndpointRef<HelloMessage>) -> Result<(), RpcError> {
    /// let greeting = hello.ask(SayHi { msg: "neo".to_owned() }).await?;
    /// println!("{}", greeting.text);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// An ask with a one-way request does not compile:
    ///
    /// ```compile_fail,E0080
    /// # use rpc_core::{AskFuture, RpcCallContext, RpcEndpointRef, RpcMessage, RpcRequest};
    /// struct Message;
    /// impl RpcMessage for Message {}
    /// struct OneWay;
    /// impl RpcRequest<Message> for OneWay {
    ///     type Reply = ();
    ///     const ONE_WAY: bool = true;
    ///     fn into_message(self, _: RpcCallContext<()>) -> Message { Message }
    /// }
    /// fn main() {
    ///     let ask: fn(&RpcEndpointRef<Message>, OneWay) -> AskFuture<()> = RpcEndpointRef::ask;
    ///     std::hint::black_box(ask);
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// The future fails with the error that the endpoint returned from `receive` or passed to
    /// [`send_failure`](RpcCallContext::send_failure), or with:
    ///
    /// * [`ErrorKind::Timeout`]: no response arrived before the deadline.
    /// * [`ErrorKind::NoReply`], [`ErrorKind::Panic`]: the handler dropped the request, or
    ///   panicked.
    /// * [`ErrorKind::Stopped`], [`ErrorKind::Rejected`], [`ErrorKind::Network`]: the request or
    ///   its response cannot be delivered.
    /// * [`ErrorKind::Limit`]: a queue is full, or the endpoint or the environment has too many
    ///   pending asks (`spark.rpc.ask.maxPendingPerEndpoint`, `spark.rpc.ask.maxPending`).
    /// * [`ErrorKind::Deadlock`]: a handler of a [`ThreadSafeRpcEndpoint`] awaits an ask to its own
    ///   endpoint.
    ///
    /// [`RpcError::is_retryable`] tells whether the same request may be sent again.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the ask and releases everything that it holds. The request may
    /// be executed nevertheless.
    ///
    /// [`ThreadSafeRpcEndpoint`]: crate::ThreadSafeRpcEndpoint
    pub fn ask<R: RpcRequest<M>>(&self, request: R) -> AskFuture<R::Reply> {
        self.start_ask(request, None)
    }

    /// Asks like [`ask`](Self::ask), with a timeout for this request.
    ///
    /// `timeout` is a [`Duration`](std::time::Duration), or an [`RpcTimeout`], whose setting
    /// appears in the error text. A timeout of zero fails at once and sends nothing.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use rpc_core::{RpcEndpointRef, RpcError};
    /// # mod hello { rpc_core::include_proto!("hello"); }
    /// # use hello::{HelloMessage, SayHi};
    /// # async fn example(hello: RpcEndpointRef<HelloMessage>) -> Result<(), RpcError> {
    /// let neo = SayHi { msg: "neo".to_owned() };
    /// let greeting = hello.ask_with_timeout(neo, Duration::from_secs(5)).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`ask`](Self::ask).
    ///
    /// # Cancel safety
    ///
    /// That of [`ask`](Self::ask).
    pub fn ask_with_timeout<R: RpcRequest<M>>(
        &self,
        request: R,
        timeout: impl Into<RpcTimeout>,
    ) -> AskFuture<R::Reply> {
        self.start_ask(request, Some(timeout.into()))
    }

    /// `timeout`: `None` for the environment's.
    fn start_ask<R: RpcRequest<M>>(
        &self,
        request: R,
        timeout: Option<RpcTimeout>,
    ) -> AskFuture<R::Reply> {
        const {
            assert!(
                !R::ONE_WAY,
                "this rpc returns rpc_core.OneWay and has no reply: use `send` instead of `ask`"
            );
        }
        let default = &self.info.asks.conf.timeout;
        let now = Instant::now();
        let inherited = current_deadline().map(|deadline| deadline.saturating_duration_since(now));
        let timeout = match inherited {
            Some(inherited) if inherited < timeout.as_ref().unwrap_or(default).duration() => {
                Some(inherited.into())
            }
            _ => timeout,
        };
        let effective = timeout.as_ref().unwrap_or(default);
        let deadline = now.checked_add(effective.duration());
        let state = if effective.duration().is_zero() {
            Err(effective.timeout_error(self.info.peer()))
        } else {
            self.info.reserve_ask().and_then(|guard| {
                let state = self.send_ask(request, effective, deadline)?;
                guard.transfer_to_future();
                Ok(state)
            })
        };
        let state = state.unwrap_or_else(AskState::Failed);
        AskFuture::new(state, Arc::clone(&self.info), timeout, deadline)
    }

    fn send_ask<R: RpcRequest<M>>(
        &self,
        request: R,
        timeout: &RpcTimeout,
        deadline: Option<Instant>,
    ) -> Result<AskState<R::Reply>, RpcError> {
        Ok(match &self.target {
            RefTarget::Local(inbox) => {
                let slot = Arc::new(ReplySlot::new(deadline));
                let sender = self.info.address.address().cloned();
                let context = RpcCallContext { caller: Caller::Local(Arc::clone(&slot)), sender };
                let caller = Some(MessageCaller::Local(Arc::clone(&slot) as _));
                let span = self.info.asks.tracer.start_local_span(self.name());
                let metadata = MessageMetadata { caller, permit: None, span };
                let mut parts = Some((request, context));
                inbox.post(metadata, &mut || {
                    parts.take().map(|(request, context)| request.into_message(context))
                })?;
                AskState::Local { slot, has_result: false }
            }
            RefTarget::Remote(route) => {
                let message = self.encode(&request, true)?;
                let reply = route.ask(message, timeout, deadline)?;
                AskState::Remote { reply, decode: R::decode_reply }
            }
        })
    }

    fn encode<R: RpcRequest<M>>(
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
