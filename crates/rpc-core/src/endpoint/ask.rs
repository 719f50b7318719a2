//! Asks with a future reply, and how they start.

use std::sync::Arc;

use tokio::time::Instant;

use crate::ask::{AskFuture, AskState, ReplySlot, current_deadline};
use crate::endpoint::endpoint_ref::RefTarget;
use crate::endpoint::{Caller, RpcCallContext, RpcEndpointRef, RpcMessage, RpcRequest};
use crate::error::RpcError;
use crate::message_metadata::{MessageCaller, MessageMetadata};
use crate::timeout::RpcTimeout;

impl<M: RpcMessage> RpcEndpointRef<M> {
    /// Sends a request and returns the future of its reply.
    ///
    /// The request is sent before this function returns, so asks arrive in the order of the calls,
    /// even if their futures are never polled. The timeout is `spark.rpc.askTimeout`, 120 s by
    /// default. An ask inside of a handler of another ask also inherits its deadline, if that is
    /// earlier. The counterpart in Spark is `RpcEndpointRef.ask`.
    ///
    /// ```
    /// # use rpc_core::{RpcEndpointRef, RpcError};
    /// # mod hello { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/generated/hello.rs")); }
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
    /// * [`ErrorKind::Deadlock`]: a handler of a [`ThreadSafeRpcEndpoint`], or `on_start` of any
    ///   endpoint, awaits an ask to its own endpoint.
    ///
    /// [`RpcError::is_retryable`] returns whether the same request may be sent again.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the ask and releases everything that it holds. The request may
    /// be executed nevertheless.
    ///
    /// [`ThreadSafeRpcEndpoint`]: crate::ThreadSafeRpcEndpoint
    /// [`ErrorKind::Timeout`]: crate::ErrorKind::Timeout
    /// [`ErrorKind::NoReply`]: crate::ErrorKind::NoReply
    /// [`ErrorKind::Panic`]: crate::ErrorKind::Panic
    /// [`ErrorKind::Stopped`]: crate::ErrorKind::Stopped
    /// [`ErrorKind::Rejected`]: crate::ErrorKind::Rejected
    /// [`ErrorKind::Network`]: crate::ErrorKind::Network
    /// [`ErrorKind::Limit`]: crate::ErrorKind::Limit
    /// [`ErrorKind::Deadlock`]: crate::ErrorKind::Deadlock
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
    /// # mod hello { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/generated/hello.rs")); }
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
            Some(rest) if rest < timeout.as_ref().unwrap_or(default).duration() => {
                Some(timeout.as_ref().unwrap_or(default).inherit(rest))
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
                // Before the ask is sent, because the destructor of the request may panic.
                drop(request);
                let reply = route.ask(message, timeout, deadline)?;
                AskState::Remote { reply, decode: R::decode_reply }
            }
        })
    }
}
