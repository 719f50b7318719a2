//! The reply context of one request.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::address::RpcAddress;
use crate::ask::{ReplySlot, defer_failure};
use crate::error::{ErrorKind, RpcError, no_reply_error};
use crate::message_metadata::{LocalCaller as _, ask_id};
use crate::peer::RemoteAsk;
use crate::wire;

/// Replies to one request, at once or later.
///
/// To fail a request, return `Err` from `receive`. If the handler has not replied, the caller
/// receives that error, so `?` works in a handler. [`reply`](Self::reply) completes the request.
/// Outside of the handler, [`send_failure`](Self::send_failure) fails it.
///
/// A context may be kept, or moved to another task. If it is dropped without a reply, the request
/// fails with [`ErrorKind::NoReply`], or with [`ErrorKind::Timeout`] if the request [is
/// cancelled](Self::is_cancelled) by then: at the end of the handler if that still runs and returns
/// `Ok`, otherwise at once. The context of a one-way message discards replies. The counterpart in Spark is `RpcCallContext`.
///
/// ```
/// # use rpc_core::{EndpointContext, RpcError, ThreadSafeRpcEndpoint};
/// # mod hello { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/generated/hello.rs")); }
/// # use hello::{Greeting, HelloMessage};
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
///             // The caller receives this error.
///             HelloMessage::SayHi(hi, _) if hi.msg.is_empty() => {
///                 Err(RpcError::application("the name is empty"))
///             }
///             HelloMessage::SayHi(hi, context) => {
///                 context.reply(Greeting { text: format!("hi, {}", hi.msg) })
///             }
///             // Replies after `receive` has returned.
///             HelloMessage::SayBye(bye, context) => {
///                 tokio::spawn(async move {
///                     context.reply(Greeting { text: format!("bye, {}", bye.msg) })
///                 });
///                 Ok(())
///             }
///         }
///     }
/// }
/// ```
#[must_use = "dropping the context without a reply fails the request"]
pub struct RpcCallContext<T: Send + 'static> {
    /// Replaced by `None` when the request completes.
    pub(crate) caller: Caller<T>,
    /// The sender of a local or one-way request. A remote ask has it in its connection.
    pub(crate) sender: Option<RpcAddress>,
}

pub(crate) enum Caller<T> {
    /// The message was one-way, or the request is complete.
    None,
    Local(Arc<ReplySlot<T>>),
    Remote(Box<RemoteAsk>, fn(&T) -> Bytes),
}

impl<T: Send + 'static> RpcCallContext<T> {
    /// Completes the request with `value`.
    ///
    /// `Ok` does not mean that the caller receives the reply: a reply to a cancelled ask, an
    /// expired ask, a closed connection or a one-way message is discarded.
    ///
    /// ```
    /// # mod hello { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/generated/hello.rs")); }
    /// # use hello::Greeting;
    /// # use rpc_core::{RpcCallContext, RpcError};
    /// fn greet(context: RpcCallContext<Greeting>) -> Result<(), RpcError> {
    ///     context.reply(Greeting { text: "hi".to_owned() })
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Limit`] if the encoded reply is larger than
    /// `spark.rpc.message.maxSize`. The caller receives this error, too.
    pub fn reply(mut self, value: T) -> Result<(), RpcError> {
        match std::mem::replace(&mut self.caller, Caller::None) {
            Caller::None => {}
            Caller::Local(slot) => slot.complete(Ok(value)),
            Caller::Remote(ask, encode) => return ask.respond(encode(&value)),
        }
        Ok(())
    }

    /// Fails the request with `error`.
    ///
    /// Inside of `receive`, return `Err(error)` instead. A caller in the same environment receives
    /// the same error object. A remote caller receives its kind, its text, the texts of its sources
    /// and [`is_retryable`](RpcError::is_retryable).
    ///
    /// An error of a nested ask becomes the source of a new error, which is not retryable unless
    /// the handler calls [`retryable`](RpcError::retryable), because the outer request was
    /// executed.
    pub fn send_failure(mut self, error: RpcError) {
        let error = error.into_handler_failure();
        match std::mem::replace(&mut self.caller, Caller::None) {
            Caller::None => {}
            Caller::Local(slot) => slot.complete(Err(error)),
            // The caller receives the error of `respond` if the text is too large.
            Caller::Remote(ask, _) => drop(ask.respond(wire::encode_failure(&error))),
        }
    }

    /// Returns the time until the deadline of the ask; zero if it has passed.
    ///
    /// `None` for a one-way message, and for an ask without a deadline.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    fn deadline(&self) -> Option<Instant> {
        match &self.caller {
            Caller::None => None,
            Caller::Local(slot) => slot.deadline(),
            Caller::Remote(ask, _) => ask.key.deadline,
        }
    }

    /// Returns whether the caller no longer waits for the reply.
    ///
    /// The caller has dropped or aborted the ask, the deadline has passed, or the connection is
    /// closed. Always `false` for a one-way message.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        match &self.caller {
            Caller::None => false,
            Caller::Local(slot) => !slot.is_pending() || self.remaining() == Some(Duration::ZERO),
            Caller::Remote(ask, _) => !ask.key.is_pending(&ask.connection),
        }
    }

    /// Completes when the caller no longer waits for the reply.
    ///
    /// The conditions are those of [`is_cancelled`](Self::is_cancelled). Never completes for a
    /// one-way message.
    ///
    /// ```
    /// # async fn compute() -> u64 { 1 }
    /// # use rpc_core::{RpcCallContext, RpcError};
    /// # async fn handle(context: RpcCallContext<u64>) -> Result<(), RpcError> {
    /// tokio::select! {
    ///     result = compute() => context.reply(result),
    ///     () = context.cancelled() => Ok(()),
    /// }
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// This function is cancel safe.
    pub async fn cancelled(&self) {
        let cancelled = poll_fn(|cx| match &self.caller {
            Caller::None => Poll::Pending,
            Caller::Local(slot) => slot.poll_cancelled(cx),
            Caller::Remote(ask, _) => ask.poll_cancelled(cx),
        });
        // Outside of a runtime there is no timer. The caller then cancels at its own deadline.
        match self.deadline().filter(|_| Handle::try_current().is_ok()) {
            Some(deadline) => drop(tokio::time::timeout_at(deadline, cancelled).await),
            None => cancelled.await,
        }
    }

    /// Returns the error of a request whose context is dropped without a reply.
    fn unanswered_error(&self) -> RpcError {
        if self.is_cancelled() {
            let text = "the deadline of the ask passed, or its caller cancelled it, before the \
                        endpoint replied";
            return RpcError::new(ErrorKind::Timeout, text);
        }
        no_reply_error()
    }

    /// Returns the address of the sender's environment.
    ///
    /// The sender's advertised address, or the socket address of its connection if its environment
    /// does not listen. `None` if the sender is this environment and it does not listen. The
    /// counterpart in Spark is `RpcCallContext.senderAddress`.
    #[must_use]
    pub fn sender_address(&self) -> Option<&RpcAddress> {
        match &self.caller {
            Caller::Remote(ask, _) => Some(ask.connection.address()),
            Caller::Local(_) | Caller::None => self.sender.as_ref(),
        }
    }
}

impl<T: Send + 'static> Drop for RpcCallContext<T> {
    fn drop(&mut self) {
        let id = match &self.caller {
            Caller::None => return,
            Caller::Local(slot) => ask_id(slot),
            Caller::Remote(ask, _) => ask.key.id,
        };
        // A new context, so that the caller also fails if the handler is dropped with its runtime.
        let caller = std::mem::replace(&mut self.caller, Caller::None);
        let context = Self { caller, sender: None };
        let fail = move |error: Option<RpcError>| {
            let error = error.unwrap_or_else(|| context.unanswered_error());
            context.send_failure(error);
        };
        if let Some(fail) = defer_failure(id, Box::new(fail)) {
            fail(None);
        }
    }
}

impl<T: Send + 'static> fmt::Debug for RpcCallContext<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RpcCallContext")
            .field("sender", &self.sender_address())
            .finish_non_exhaustive()
    }
}
