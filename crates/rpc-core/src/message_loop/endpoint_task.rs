//! The task of an endpoint, which runs its handlers for the items of its inbox.
//!
//! The task lives as long as the endpoint and is parked while the inbox is empty. The future that
//! runs the handlers exists only while there are messages. An idle endpoint therefore needs memory
//! for its own state only, however large the future of its `receive` is.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::future::BoxFuture;
use network_common::log_limited;
use tokio::task::coop::poll_proceed;
use tokio::time::Instant;

use crate::ask::{ActorId, HandlerFailure, HandlerFuture, HandlerId};
use crate::endpoint::{EndpointContext, RpcMessage};
use crate::error::{ErrorKind, RpcError};
use crate::inbox::{Inbox, InboxItem};
use crate::isolated_executor::IsolatedExecutor;
use crate::message_metadata::{MessageCaller, MessageMetadata};
use crate::panics::catch_panic;

/// After this many messages in one poll, the loop yields to other tasks.
pub(super) const POLL_BUDGET: usize = 256;
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
pub(super) use call_event_hook;

/// Holds the inbox of a message loop and the context of its handlers.
#[doc(hidden)]
pub struct LoopContext<M> {
    pub(super) inbox: Arc<Inbox<M>>,
    pub(super) cx: EndpointContext<M>,
    /// The threads of an isolated endpoint.
    pub(super) executor: Option<IsolatedExecutor>,
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

    /// `is_exclusive`: no other handler runs before this one has ended.
    pub(super) fn handler_id(&self, is_exclusive: bool) -> HandlerId {
        let env = ActorId::of(self.cx.erased_env());
        HandlerId { env, endpoint: self.inbox.id(), is_exclusive }
    }
}

/// Runs when the loop has ended, or its runtime has dropped it.
impl<M> Drop for LoopContext<M> {
    fn drop(&mut self) {
        self.inbox.close_and_fail();
    }
}

pub(super) type Buffer<M> = VecDeque<InboxItem<M>>;

/// A loop that is idle, with its empty buffer. `None` after `on_stop`.
pub(super) type IdleLoop<L, M> = Option<(Box<L>, Buffer<M>)>;

/// One of the two loops, with its endpoint.
pub(super) trait MessageLoop: Sized + Send + 'static {
    type Message: RpcMessage;

    fn inbox(&self) -> &Inbox<Self::Message>;

    /// Handles the items of the inbox until it is empty.
    fn run_until_idle(self: Box<Self>) -> BoxFuture<'static, IdleLoop<Self, Self::Message>>;
}

pub(super) enum EndpointTask<L: MessageLoop> {
    /// Waits for an item. `None` when the endpoint has stopped.
    Parked(Option<Box<L>>),
    Busy(BoxFuture<'static, IdleLoop<L, L::Message>>),
}

// Everything that is pinned is in boxes.
impl<L: MessageLoop> Unpin for EndpointTask<L> {}

impl<L: MessageLoop> EndpointTask<L> {
    pub(super) fn new(message_loop: L) -> Self {
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
pub(super) fn poll_cost(metadata: &MessageMetadata) -> usize {
    if let Some(MessageCaller::Remote(_)) = metadata.caller { REMOTE_ASK_COST } else { 1 }
}

/// Runs `handler`, and records its duration if it awaits or is sampled.
///
/// Calls `on_pending` with the start time each time it awaits.
pub(super) fn measure<M, T>(
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
pub(super) async fn run_hook(
    id: HandlerId,
    hook: impl Future<Output = Result<(), RpcError>>,
) -> Result<(), HandlerFailure> {
    HandlerFuture::new(id, pin!(hook)).await
}

/// Logs the error that `on_error` returned for the failure of a handler.
///
/// The level is DEBUG if the caller of the request has received the failure, and ERROR otherwise.
pub(super) fn log_unhandled<M>(
    inbox: &Inbox<M>,
    is_reported: bool,
    outcome: Result<(), HandlerFailure>,
) {
    let Err(HandlerFailure { error, .. }) = outcome else { return };
    let endpoint = inbox.address();
    // The error may have a source of the application, whose `Display` and `Drop` may panic.
    let logged = catch_panic(move || {
        if is_reported && error.kind() != ErrorKind::Panic {
            tracing::debug!(%endpoint, error = %format_args!("{error:#}"), "a request failed");
        } else {
            log_limited!(|suppressed| tracing::error!(suppressed, %endpoint,
                error = %format_args!("{error:#}"),
                "a handler failed, and on_error returned the error"));
        }
    });
    if let Err(panic) = logged {
        log_limited!(
            |suppressed| tracing::error!(suppressed, %endpoint, panic, "a handler failed, and logging its error panicked")
        );
    }
}
