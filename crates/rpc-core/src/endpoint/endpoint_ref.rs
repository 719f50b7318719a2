//! What users hold to reach an endpoint.

use std::cell::Cell;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::address::RpcEndpointAddress;
use crate::ask::ReplySlot;
use crate::ask::current_deadline;
use crate::ask::{AskFuture, AskState, EndpointInfo};
use crate::endpoint::InboxHandle;
use crate::endpoint::{Caller, RpcCallContext};
use crate::endpoint::{RpcMessage, RpcRequest, local_only};
use crate::error::{ErrorKind, RpcError, SendError};
use crate::message_metadata::{MessageCaller, MessageMetadata};
use crate::peer::OutboundRoute;
use crate::timeout::RpcTimeout;
use crate::wire::{self, EncodedMessage};

thread_local! {
    /// Every second message takes from tokio's budget, so who sends in a loop has a turn of 256, as
    /// a loop has that handles them.
    static CONSUMES_BUDGET: Cell<bool> = const { Cell::new(false) };
}

/// Reaches one endpoint, here or elsewhere, with the messages of `M`. Cheap to clone.
///
/// What one holder of a ref sends and asks arrives in that order. A message is handled at most
/// once; it is lost if the endpoint stops or the connection breaks before. Refs are equal if their
/// endpoints' addresses are (`rpc 6.3`); where these are without host and port, the environments
/// must be the same too.
pub struct RpcEndpointRef<M> {
    pub(crate) about: Arc<EndpointInfo>,
    target: RefTarget<M>,
}

enum RefTarget<M> {
    Local(Arc<dyn InboxHandle<M>>),
    Remote(Arc<OutboundRoute>),
}

impl<M> RpcEndpointRef<M> {
    pub(crate) fn local(about: Arc<EndpointInfo>, inbox: Arc<dyn InboxHandle<M>>) -> Self {
        Self { about, target: RefTarget::Local(inbox) }
    }

    /// `about`: of an endpoint of another environment.
    pub(crate) fn remote(about: EndpointInfo, route: OutboundRoute) -> Self {
        Self { about: Arc::new(about), target: RefTarget::Remote(Arc::new(route)) }
    }

    pub(crate) fn is_local(&self) -> bool {
        matches!(self.target, RefTarget::Local(_))
    }

    /// Which run of its environment the endpoint belongs to; 0 if that is not known.
    pub(crate) fn incarnation(&self) -> u64 {
        self.about.incarnation
    }

    /// The endpoint's full address.
    #[must_use]
    pub fn address(&self) -> &RpcEndpointAddress {
        &self.about.address
    }

    /// The endpoint's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.about.address.name()
    }
}

impl<M: RpcMessage> RpcEndpointRef<M> {
    /// The ref of one of several services that the endpoint serves: `N` is a part of its message
    /// `M`.
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
    /// fn for_guests(endpoint: &RpcEndpointRef<Served>) -> RpcEndpointRef<HelloMessage> {
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
        RpcEndpointRef { about: Arc::clone(&self.about), target }
    }

    /// Sends `request` and waits for no answer; one that is given is discarded. Never blocks and
    /// never waits (`rpc 6`).
    ///
    /// Ok means that it is on its way: in the endpoint's inbox if that is in this environment, else
    /// in the queue to the other one. What becomes of it there is not told, but that it was refused
    /// is: to the endpoints of this environment, by `on_undelivered`. Who needs to know more asks.
    ///
    /// # Errors
    ///
    /// The request comes back in the error if the endpoint or the environment has stopped, or
    /// ([`ErrorKind::Limit`](crate::ErrorKind::Limit)) if the queue is full, which is retryable, or
    /// the message is too large to leave the process, which is not.
    pub fn send<R: RpcRequest<M>>(&self, request: R) -> Result<(), SendError<R>> {
        match &self.target {
            RefTarget::Local(inbox) => {
                let sender = self.about.address.address().cloned();
                let context = RpcCallContext { caller: Caller::None, sender };
                let mut parts = Some((request, context));
                let span = self.about.asks.tracer.local(self.name());
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

    /// [`send`](Self::send), which waits while the queue is full: so a sender is slowed down to
    /// what the endpoint handles, here and across the network.
    ///
    /// # Errors
    ///
    /// The request comes back in the error if the endpoint or the environment has stopped.
    ///
    /// # Cancel safety
    ///
    /// Dropped before it is ready, it has sent nothing, and the request is dropped.
    pub async fn send_wait<R: RpcRequest<M>>(&self, mut request: R) -> Result<(), SendError<R>> {
        // Else who sends in a loop would keep the thread from the endpoint until the queue is full.
        if CONSUMES_BUDGET.replace(!CONSUMES_BUDGET.get()) {
            tokio::task::coop::consume_budget().await;
        }
        loop {
            let refused = match self.send(request) {
                Err(refused)
                    if refused.error().kind() == ErrorKind::Limit
                        && refused.error().is_retryable() =>
                {
                    refused
                }
                sent => return sent,
            };
            match &self.target {
                RefTarget::Local(inbox) => inbox.wait_for_capacity().await,
                RefTarget::Remote(route) => route.wait_for_capacity().await,
            }
            request = refused.into_message();
        }
    }

    /// Sends `request` and gives a future of the answer. Waits as long as `spark.rpc.askTimeout`
    /// says (`rpc 6`).
    ///
    /// The request is on its way when this returns: the future need not be polled for that, and
    /// asks made one after the other arrive in that order.
    ///
    /// Made by an endpoint's `receive` while it handles an ask, it waits no longer than that ask's
    /// asker does.
    ///
    /// To ask a one-way request does not compile:
    ///
    /// ```compile_fail
    /// # use rpc_core::{RpcCallContext, RpcEndpointRef, RpcMessage, RpcRequest};
    /// struct Message;
    /// impl RpcMessage for Message {}
    /// struct Tell;
    /// impl RpcRequest<Message> for Tell {
    ///     type Reply = ();
    ///     const ONE_WAY: bool = true;
    ///     fn into_message(self, _: RpcCallContext<()>) -> Message { Message }
    /// }
    /// fn main() {
    ///     let ask: fn(&RpcEndpointRef<Message>, Tell) -> rpc_core::Ask<()> = RpcEndpointRef::ask;
    ///     std::hint::black_box(ask);
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// The future fails with what the endpoint failed the request with; with
    /// [`ErrorKind::Timeout`]; and if the request cannot be delivered ([`ErrorKind::Stopped`],
    /// [`ErrorKind::Rejected`], [`ErrorKind::Network`]). Awaited by a handler of the very
    /// endpoint that it asks, one that handles one message at a time, it fails with
    /// [`ErrorKind::Deadlock`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future frees everything that waited for the answer. The request may be handled
    /// all the same.
    ///
    /// [`ErrorKind::Timeout`]: crate::ErrorKind::Timeout
    /// [`ErrorKind::Deadlock`]: crate::ErrorKind::Deadlock
    /// [`ErrorKind::Stopped`]: crate::ErrorKind::Stopped
    /// [`ErrorKind::Rejected`]: crate::ErrorKind::Rejected
    /// [`ErrorKind::Network`]: crate::ErrorKind::Network
    pub fn ask<R: RpcRequest<M>>(&self, request: R) -> AskFuture<R::Reply> {
        self.start_ask(request, None)
    }

    /// [`ask`](Self::ask), waiting as long as `timeout` says: a [`Duration`](std::time::Duration),
    /// or an [`RpcTimeout`] to have the setting that controls it in the error. One of zero fails at
    /// once, and sends nothing.
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

    /// `timeout`: none for the environment's.
    fn start_ask<R: RpcRequest<M>>(
        &self,
        request: R,
        timeout: Option<RpcTimeout>,
    ) -> AskFuture<R::Reply> {
        const {
            assert!(
                !R::ONE_WAY,
                "this rpc returns rpc_core.OneWay: nobody answers it, so it can only be sent"
            );
        }
        let usual = &self.about.asks.conf.timeout;
        let asked = Instant::now();
        let left = current_deadline().map(|deadline| deadline.saturating_duration_since(asked));
        let timeout = match left {
            Some(left) if left < timeout.as_ref().unwrap_or(usual).duration() => Some(left.into()),
            _ => timeout,
        };
        let limit = timeout.as_ref().unwrap_or(usual);
        let deadline = asked.checked_add(limit.duration());
        let begun = if limit.duration().is_zero() {
            Err(limit.timeout_error(self.about.peer()))
        } else {
            self.about.reserve_ask().and_then(|()| {
                let dispatched = self.send_ask(request, limit, deadline);
                dispatched.inspect_err(|_| self.about.end())
            })
        };
        AskFuture::new(
            begun.unwrap_or_else(AskState::Refused),
            Arc::clone(&self.about),
            timeout,
            deadline,
        )
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
                let sender = self.about.address.address().cloned();
                let context = RpcCallContext { caller: Caller::Local(Arc::clone(&slot)), sender };
                let caller = Some(MessageCaller::Local(Arc::clone(&slot) as _));
                let span = self.about.asks.tracer.local(self.name());
                let metadata = MessageMetadata { caller, permit: None, span };
                let mut parts = Some((request, context));
                inbox.post(metadata, &mut || {
                    parts.take().map(|(request, context)| request.into_message(context))
                })?;
                AskState::Local { slot, answered: false }
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
        let method = R::METHOD.ok_or_else(local_only)?;
        let trace = self.about.asks.tracer.current();
        let message =
            wire::encode_message(method, is_ask, trace.as_deref(), |body| request.encode(body))?;
        wire::check_size("the message", message.len(), self.about.asks.conf.max_message)
            .map_err(|error| error.with_peer(self.address()))?;
        Ok(message)
    }
}

/// The inbox of an endpoint that receives more than what is put in here.
struct Narrowed<M>(Arc<dyn InboxHandle<M>>);

impl<N, M: From<N>> InboxHandle<N> for Narrowed<M> {
    fn post(
        &self,
        metadata: MessageMetadata,
        build: &mut dyn FnMut() -> Option<N>,
    ) -> Result<(), RpcError> {
        self.0.post(metadata, &mut || build().map(M::from))
    }

    fn wait_for_capacity(&self) -> BoxFuture<'_, ()> {
        self.0.wait_for_capacity()
    }
}

impl<M> Clone for RpcEndpointRef<M> {
    fn clone(&self) -> Self {
        let target = match &self.target {
            RefTarget::Local(inbox) => RefTarget::Local(Arc::clone(inbox)),
            RefTarget::Remote(route) => RefTarget::Remote(Arc::clone(route)),
        };
        Self { about: Arc::clone(&self.about), target }
    }
}

impl<M> PartialEq for RpcEndpointRef<M> {
    fn eq(&self, other: &Self) -> bool {
        // Without an address the name alone says little: every environment that does not listen may
        // have one.
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
