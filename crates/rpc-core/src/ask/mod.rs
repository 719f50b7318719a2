//! The caller's side of an ask: its future, its deadline, and the scope of the running handler.

mod abort;
mod deadline_timer;
mod handler_scope;
mod reply_slot;
mod resources;
mod wait;

pub use abort::AbortHandle;
pub(crate) use deadline_timer::{DeadlineTimer, Expiry};
pub(crate) use handler_scope::{
    ActorId, HandlerFailure, HandlerFuture, HandlerId, HandlerKey, current_deadline,
    current_message_handler, decode_request, defer_failure, reject_message,
};
pub(crate) use reply_slot::ReplySlot;
pub(crate) use resources::{AskResources, EndpointInfo};

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::time::Instant;

use crate::address::RpcEndpointAddress;
use crate::error::{ErrorKind, RpcError};
use crate::peer::RemoteReplyFuture;
use crate::timeout::RpcTimeout;
use crate::wire::{self, DecodeBuf};

/// The future reply of an [ask](crate::RpcEndpointRef::ask).
///
/// The request has been sent already, so the future need not be polled for that. It can be polled
/// on any executor. Dropping it cancels the ask.
///
/// ```
/// # use rpc_core::{RpcEndpointRef, RpcError};
/// # mod hello { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/generated/hello.rs")); }
/// # use hello::{HelloMessage, SayHi};
/// # async fn example(hello: RpcEndpointRef<HelloMessage>) -> Result<(), RpcError> {
/// // Both requests are sent before the first reply is awaited.
/// let neo = hello.ask(SayHi { msg: "neo".to_owned() });
/// let trinity = hello.ask(SayHi { msg: "trinity".to_owned() });
/// println!("{} {}", neo.await?.text, trinity.await?.text);
/// # Ok(())
/// # }
/// ```
#[must_use = "await this future for the reply, or use `send` if no reply is needed"]
pub struct AskFuture<T> {
    state: AskState<T>,
    info: Arc<EndpointInfo>,
    /// `None` for the environment's timeout. Boxed, because the future is moved often.
    timeout: Option<Box<RpcTimeout>>,
    deadline: Option<Instant>,
    /// The entry of the deadline timer. `None` before the first poll that is pending.
    deadline_key: Option<usize>,
    /// `None` until `abort_handle` is called.
    abort: Option<AbortHandle>,
}

/// `Local` and `Remote` count as one pending ask of the endpoint.
pub(crate) enum AskState<T> {
    Local {
        slot: Arc<ReplySlot<T>>,
        /// The result has been taken out of the slot.
        has_result: bool,
    },
    Remote {
        reply: RemoteReplyFuture,
        decode: fn(DecodeBuf) -> Result<T, RpcError>,
    },
    /// The request was not sent.
    Failed(RpcError),
    Done,
}

// No field is structurally pinned.
impl<T> Unpin for AskFuture<T> {}

impl<T> Future for AskFuture<T> {
    type Output = Result<T, RpcError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Some(error) = this.abort.as_ref().and_then(|abort| abort.poll_aborted(cx)) {
            this.finish();
            return Poll::Ready(Err(error.mark_as_result()));
        }
        let is_failed = matches!(this.state, AskState::Failed(_));
        let polled = match &mut this.state {
            AskState::Local { slot, has_result } => {
                let polled = slot.poll(cx);
                *has_result = polled.is_ready();
                polled
            }
            AskState::Remote { reply, decode } => Pin::new(reply)
                .poll(cx)
                .map(|response| wire::decode_reply(response?, &this.info.address, *decode)),
            AskState::Failed(error) => Poll::Ready(Err(error.clone())),
            AskState::Done => panic!("AskFuture polled after completion"),
        };
        let outcome = match polled {
            // The callee has the same deadline, and its timeout may arrive first.
            Poll::Ready(Err(error))
                if !is_failed && error.kind() == ErrorKind::Timeout && this.is_past_deadline() =>
            {
                Err(this.timeout_error().with_source(error))
            }
            Poll::Ready(outcome) => outcome,
            Poll::Pending if ActorId::of(&this.info).is_blocked_by_current() => {
                Err(deadlock_error(&this.info.address))
            }
            Poll::Pending => Err(match std::task::ready!(this.poll_deadline(cx)) {
                Expiry::Elapsed => this.timeout_error(),
                Expiry::RuntimeStopped => runtime_stopped_error(&this.info.address),
            }),
        };
        this.finish();
        Poll::Ready(outcome.map_err(RpcError::mark_as_result))
    }
}

impl<T> AskFuture<T> {
    /// Returns a handle that fails this ask with an error of the application's own.
    ///
    /// To cancel the ask without an error, drop the future.
    ///
    /// ```
    /// # use rpc_core::AskFuture;
    /// # async fn example(mut ask: AskFuture<u32>) {
    /// let abort = ask.abort_handle();
    /// let reply = tokio::spawn(ask);
    /// abort.abort("the stage was cancelled");
    /// # }
    /// ```
    #[must_use]
    pub fn abort_handle(&mut self) -> AbortHandle {
        self.abort.get_or_insert_with(|| AbortHandle::new(&self.info.address)).clone()
    }

    /// `timeout`: `None` for the environment's. `deadline`: `None` if it exceeds the range of the
    /// clock.
    pub(crate) fn new(
        state: AskState<T>,
        info: Arc<EndpointInfo>,
        timeout: Option<RpcTimeout>,
        deadline: Option<Instant>,
    ) -> Self {
        let timeout = timeout.map(Box::new);
        Self { state, info, timeout, deadline, deadline_key: None, abort: None }
    }

    fn timeout(&self) -> &RpcTimeout {
        self.timeout.as_deref().unwrap_or(&self.info.asks.conf.timeout)
    }

    fn timeout_error(&self) -> RpcError {
        self.timeout().timeout_error(self.info.peer())
    }

    fn is_past_deadline(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<Expiry> {
        let timer = &self.info.asks.timer;
        match self.deadline_key {
            Some(key) => timer.poll(key, cx.waker()),
            None => match timer.add(self.deadline, cx.waker()) {
                Ok(key) => {
                    self.deadline_key = Some(key);
                    Poll::Pending
                }
                Err(expiry) => Poll::Ready(expiry),
            },
        }
    }

    /// Releases everything that a pending ask holds.
    fn finish(&mut self) {
        if let Some(key) = self.deadline_key.take() {
            self.info.asks.timer.cancel(key);
        }
        if matches!(self.state, AskState::Local { .. } | AskState::Remote { .. }) {
            self.info.release_ask();
        }
        let is_unread = matches!(self.state, AskState::Local { has_result: false, .. });
        if !is_unread {
            self.state = AskState::Done;
            return;
        }
        // At the end, because the destructor of an unread reply may panic.
        if let AskState::Local { slot, .. } = std::mem::replace(&mut self.state, AskState::Done) {
            slot.cancel();
        }
    }
}

pub(crate) fn deadlock_error(endpoint: &RpcEndpointAddress) -> RpcError {
    let text = format!(
        "deadlock: a handler of {endpoint} awaits an ask to its own endpoint, which handles no \
         other message meanwhile: await the ask in a spawned task, or in `receive` of an \
         RpcEndpoint"
    );
    RpcError::new(ErrorKind::Deadlock, text).with_peer(endpoint)
}

fn runtime_stopped_error(endpoint: &RpcEndpointAddress) -> RpcError {
    let text = format!(
        "the tokio runtime of this environment shut down before {endpoint} sent a response"
    );
    RpcError::new(ErrorKind::Stopped, text).with_peer(endpoint)
}

impl<T> Drop for AskFuture<T> {
    fn drop(&mut self) {
        self.finish();
    }
}

impl<T> fmt::Debug for AskFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AskFuture")
            .field("endpoint", &self.info.address)
            .field("timeout", self.timeout())
            .finish_non_exhaustive()
    }
}
