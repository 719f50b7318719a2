//! The task of an endpoint, which runs its handlers for the items of its inbox.
//!
//! The task lives as long as the endpoint and is parked while the inbox is empty. The future that
//! runs the handlers exists only while there are messages. An idle endpoint therefore needs memory
//! for its own state only, however large the future of its `receive` is.

mod concurrent;
mod serial;

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use concurrent::Concurrent;
use futures::future::BoxFuture;
use serial::Serial;
use tokio::task::coop::poll_proceed;
use tokio::time::Instant;

use crate::ask::{ActorId, HandlerFuture, HandlerId};
use crate::endpoint::{EndpointContext, RpcEndpoint, RpcMessage, ThreadSafeRpcEndpoint};
use crate::error::RpcError;
use crate::inbox::{Inbox, InboxItem};
use crate::isolated_executor::IsolatedExecutor;
use crate::message_metadata::{MessageCaller, MessageMetadata};

/// After this many messages in one poll, the loop yields to other tasks.
const POLL_BUDGET: usize = 256;
/// An ask of a peer counts as this many messages, so that its response is sent before too many
/// others are made.
const REMOTE_ASK_COST: usize = 6;

/// Calls the function of `$endpoint` that handles `$event`.
macro_rules! call_event_hook {
    ($endpoint:expr, $event:expr, $cx:expr) => {
        match $event {
            ConnectionEvent::Connected(remote) => $endpoint.on_connected(remote, $cx).await,
            ConnectionEvent::Disconnected(remote) => $endpoint.on_disconnected(remote, $cx).await,
            ConnectionEvent::NetworkError(error, remote) => {
                $endpoint.on_network_error(error, remote, $cx).await
            }
            ConnectionEvent::Undelivered(error, remote) => {
                $endpoint.on_undelivered(error, remote, $cx).await
            }
        }
    };
}
use call_event_hook;

/// Marks [`ThreadSafeRpcEndpoint`]s in [`IntoEndpoint`].
#[derive(Debug)]
#[non_exhaustive]
pub enum ThreadSafeKind {}

/// Marks [`RpcEndpoint`]s in [`IntoEndpoint`].
#[derive(Debug)]
#[non_exhaustive]
pub enum ConcurrentKind {}

mod sealed {
    /// Prevents implementations of [`IntoEndpoint`](super::IntoEndpoint) in other crates.
    #[expect(unnameable_types, reason = "a sealed trait must not be nameable")]
    pub trait Sealed<Kind> {}

    impl<E: super::ThreadSafeRpcEndpoint> Sealed<super::ThreadSafeKind> for E {}
    impl<E: super::RpcEndpoint> Sealed<super::ConcurrentKind> for E {}
}

/// Both kinds of endpoint, so that one function registers them.
///
/// Implemented for every [`ThreadSafeRpcEndpoint`] and every [`RpcEndpoint`], and sealed: other
/// crates implement one of those two. `Kind` is always inferred, provided that the type implements
/// only one of them.
///
/// ```
/// use rpc_core::{IntoEndpoint, RpcEndpointRef, RpcEnv, RpcError};
///
/// /// Registers an endpoint of either kind.
/// fn register<Kind, E: IntoEndpoint<Kind>>(
///     env: &RpcEnv,
///     endpoint: E,
/// ) -> Result<RpcEndpointRef<E::Message>, RpcError> {
///     env.setup_endpoint("my-endpoint", endpoint)
/// }
/// ```
pub trait IntoEndpoint<Kind>: sealed::Sealed<Kind> + Sized + Send + 'static {
    /// The type of the messages that the endpoint receives.
    type Message: RpcMessage;

    #[doc(hidden)]
    const IS_SERIAL: bool;

    /// Runs the endpoint, from `on_start` to `on_stop`.
    #[doc(hidden)]
    fn run(self, context: LoopContext<Self::Message>) -> impl Future<Output = ()> + Send + 'static;
}

impl<E: ThreadSafeRpcEndpoint> IntoEndpoint<ThreadSafeKind> for E {
    type Message = E::Message;
    const IS_SERIAL: bool = true;

    fn run(self, context: LoopContext<E::Message>) -> impl Future<Output = ()> + Send + 'static {
        EndpointTask::new(Serial::new(self, context))
    }
}

impl<E: RpcEndpoint> IntoEndpoint<ConcurrentKind> for E {
    type Message = E::Message;
    const IS_SERIAL: bool = false;

    fn run(self, context: LoopContext<E::Message>) -> impl Future<Output = ()> + Send + 'static {
        EndpointTask::new(Concurrent::new(self, context))
    }
}

/// What a message loop needs besides its endpoint: the inbox and the context of the handlers.
#[doc(hidden)]
pub struct LoopContext<M> {
    inbox: Arc<Inbox<M>>,
    cx: EndpointContext<M>,
    /// The threads of an isolated endpoint.
    executor: Option<IsolatedExecutor>,
}

impl<M> std::fmt::Debug for LoopContext<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoopContext")
            .field("endpoint", self.inbox.address())
            .finish_non_exhaustive()
    }
}

impl<M> LoopContext<M> {
    pub(crate) fn new(
        inbox: Arc<Inbox<M>>,
        cx: EndpointContext<M>,
        executor: Option<IsolatedExecutor>,
    ) -> Self {
        Self { inbox, cx, executor }
    }

    fn handler_id(&self, is_serial: bool) -> HandlerId {
        let endpoint = is_serial.then(|| self.inbox.id());
        HandlerId { env: ActorId::of(self.cx.erased_env()), endpoint }
    }
}

/// Runs when the loop has ended, or its runtime has dropped it.
impl<M> Drop for LoopContext<M> {
    fn drop(&mut self) {
        self.inbox.close_and_fail();
    }
}

type Buffer<M> = VecDeque<InboxItem<M>>;

/// A loop that is idle, with its empty buffer. `None` after `on_stop`.
type IdleLoop<L, M> = Option<(Box<L>, Buffer<M>)>;

/// One of the two loops, with its endpoint.
trait MessageLoop: Sized + Send + 'static {
    type Message: RpcMessage;

    fn inbox(&self) -> &Inbox<Self::Message>;

    /// Handles the items of the inbox until it is empty.
    fn run_until_idle(self: Box<Self>) -> BoxFuture<'static, IdleLoop<Self, Self::Message>>;
}

enum EndpointTask<L: MessageLoop> {
    /// Waits for an item. `None` when the endpoint has stopped.
    Parked(Option<Box<L>>),
    Busy(BoxFuture<'static, IdleLoop<L, L::Message>>),
}

// Everything that is pinned is in boxes.
impl<L: MessageLoop> Unpin for EndpointTask<L> {}

impl<L: MessageLoop> EndpointTask<L> {
    fn new(message_loop: L) -> Self {
        Self::Parked(Some(Box::new(message_loop)))
    }
}

impl<L: MessageLoop> Future for EndpointTask<L> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match &mut *self {
                // The first poll calls `on_start`. After a spurious wakeup the loop is idle at
                // once.
                Self::Parked(message_loop) => {
                    let Some(message_loop) = message_loop.take() else { return Poll::Ready(()) };
                    *self = Self::Busy(message_loop.run_until_idle());
                }
                Self::Busy(running) => {
                    let Some((message_loop, mut spare)) = ready!(running.as_mut().poll(cx)) else {
                        *self = Self::Parked(None);
                        return Poll::Ready(());
                    };
                    let is_parked = message_loop.inbox().park(cx.waker(), &mut spare);
                    *self = Self::Parked(Some(message_loop));
                    if is_parked {
                        return Poll::Pending;
                    }
                    // Yields now and then to other tasks, even if the inbox is never empty.
                    ready!(poll_proceed(cx)).made_progress();
                }
            }
        }
    }
}

/// Returns how much of the poll budget a message consumes.
fn poll_cost(metadata: &MessageMetadata) -> usize {
    if let Some(MessageCaller::Remote(_)) = metadata.caller { REMOTE_ASK_COST } else { 1 }
}

/// Runs `handler`, and records its duration if it awaits or is sampled.
///
/// Calls `on_pending` with the start time each time it awaits.
fn measure<M, T>(
    inbox: &Inbox<M>,
    is_sampled: bool,
    mut on_pending: impl FnMut(Instant),
    handler: &mut (impl Future<Output = T> + Unpin),
) -> impl Future<Output = T> {
    let mut started = is_sampled.then(Instant::now);
    poll_fn(move |cx| {
        let polled = Pin::new(&mut *handler).poll(cx);
        if polled.is_pending() {
            on_pending(*started.get_or_insert_with(Instant::now));
        } else if let Some(started) = started {
            inbox.record_duration(started.elapsed());
        }
        polled
    })
}

/// Runs a handler other than `receive` to its end.
async fn run_hook(
    id: HandlerId,
    hook: impl Future<Output = Result<(), RpcError>>,
) -> Result<(), RpcError> {
    HandlerFuture::new(id, pin!(hook)).await
}

/// Logs the error that `on_error` returned.
fn log_unhandled<M>(inbox: &Inbox<M>, outcome: Result<(), RpcError>) {
    if let Err(error) = outcome {
        tracing::error!(
            endpoint = %inbox.address(),
            %error,
            "a handler failed, and on_error returned the error"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    impl RpcMessage for Nothing {}

    struct Idle;

    impl ThreadSafeRpcEndpoint for Idle {
        type Message = Nothing;
        async fn receive(
            &mut self,
            _: Nothing,
            _: &EndpointContext<Nothing>,
        ) -> Result<(), RpcError> {
            Ok(())
        }
    }

    #[test]
    fn endpoint_task_has_two_words() {
        // With the headers of the runtime and of the task tracker, the allocation has 128 bytes.
        // One word more would make it 256 bytes.
        assert_eq!(size_of::<EndpointTask<Serial<Idle>>>(), 16);
    }
}
