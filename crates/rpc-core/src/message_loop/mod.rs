//! The task that takes an endpoint through its life.
//!
//! It lives as long as the endpoint and is parked while there is nothing to do. What handles the
//! messages is a future that exists only while there is work, so that an idle endpoint costs no
//! more than its own state, whatever its `receive` keeps across an await.

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
use crate::endpoint::RpcMessage;
use crate::endpoint::{EndpointContext, RpcEndpoint, ThreadSafeRpcEndpoint};
use crate::error::RpcError;
use crate::inbox::{Inbox, InboxItem};
use crate::isolated_executor::IsolatedExecutor;
use crate::message_metadata::{MessageCaller, MessageMetadata};

/// After this many messages in a row the loop lets other tasks run.
const POLL_BUDGET: usize = 256;
/// As many as this one ask of a peer counts: the answers so far are to leave while others are made.
const REMOTE_ASK_COST: usize = 6;

/// Calls the function of `$endpoint` that handles `$event`.
macro_rules! handle_event {
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
use handle_event;

/// Marks [`ThreadSafeRpcEndpoint`]s in [`IntoEndpoint`].
#[derive(Debug)]
#[non_exhaustive]
pub enum ThreadSafeKind {}

/// Marks [`RpcEndpoint`]s in [`IntoEndpoint`].
#[derive(Debug)]
#[non_exhaustive]
pub enum ConcurrentKind {}

/// Both kinds of endpoint, so that one function registers them. `Kind` is always inferred.
///
/// Implemented for every [`ThreadSafeRpcEndpoint`] and every [`RpcEndpoint`]; a type should be one
/// of the two.
pub trait IntoEndpoint<Kind>: Sized + Send + 'static {
    /// What the endpoint receives.
    type Message: RpcMessage;

    #[doc(hidden)]
    const ONE_AT_A_TIME: bool;

    /// The endpoint's whole life.
    #[doc(hidden)]
    fn run(self, seat: LoopContext<Self::Message>) -> impl Future<Output = ()> + Send + 'static;
}

impl<E: ThreadSafeRpcEndpoint> IntoEndpoint<ThreadSafeKind> for E {
    type Message = E::Message;
    const ONE_AT_A_TIME: bool = true;

    fn run(self, seat: LoopContext<E::Message>) -> impl Future<Output = ()> + Send + 'static {
        EndpointTask::new(Serial { endpoint: self, started: false, seat })
    }
}

impl<E: RpcEndpoint> IntoEndpoint<ConcurrentKind> for E {
    type Message = E::Message;
    const ONE_AT_A_TIME: bool = false;

    fn run(self, seat: LoopContext<E::Message>) -> impl Future<Output = ()> + Send + 'static {
        EndpointTask::new(Concurrent::new(self, seat))
    }
}

/// What a loop is given: the inbox it empties and what it tells the endpoint.
#[doc(hidden)]
pub struct LoopContext<M> {
    inbox: Arc<Inbox<M>>,
    cx: EndpointContext<M>,
    /// If the endpoint is isolated.
    threads: Option<IsolatedExecutor>,
}

impl<M> std::fmt::Debug for LoopContext<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seat").field("endpoint", self.inbox.address()).finish_non_exhaustive()
    }
}

impl<M> LoopContext<M> {
    pub(crate) fn new(
        inbox: Arc<Inbox<M>>,
        cx: EndpointContext<M>,
        threads: Option<IsolatedExecutor>,
    ) -> Self {
        Self { inbox, cx, threads }
    }

    fn actor(&self, one_at_a_time: bool) -> HandlerId {
        let endpoint = one_at_a_time.then(|| self.inbox.id());
        HandlerId { env: ActorId::of(&self.cx.0.env), endpoint }
    }
}

/// The loop has ended, or its runtime has.
impl<M> Drop for LoopContext<M> {
    fn drop(&mut self) {
        self.inbox.close_and_fail();
    }
}

type Buffer<M> = VecDeque<InboxItem<M>>;

/// What [`Behaviour::drain`] ends with: itself and an empty buffer when there is nothing to do,
/// nothing after stop.
type Drained<B, M> = Option<(Box<B>, Buffer<M>)>;

/// An endpoint in its seat.
trait MessageLoop: Sized + Send + 'static {
    type Message: RpcMessage;

    fn inbox(&self) -> &Inbox<Self::Message>;

    /// Handles messages until there are none.
    fn run_until_idle(self: Box<Self>) -> BoxFuture<'static, Drained<Self, Self::Message>>;
}

enum EndpointTask<B: MessageLoop> {
    /// Waits for something to do. None when it is over.
    Parked(Option<Box<B>>),
    Busy(BoxFuture<'static, Drained<B, B::Message>>),
}

// What is pinned is in boxes.
impl<B: MessageLoop> Unpin for EndpointTask<B> {}

impl<B: MessageLoop> EndpointTask<B> {
    /// Begins with work: to start the endpoint.
    fn new(behaviour: B) -> Self {
        Self::Parked(Some(Box::new(behaviour)))
    }
}

impl<B: MessageLoop> Future for EndpointTask<B> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match &mut *self {
                // It was woken, so there is something, or else it will be parked again at once.
                Self::Parked(behaviour) => {
                    let Some(behaviour) = behaviour.take() else { return Poll::Ready(()) };
                    *self = Self::Busy(behaviour.run_until_idle());
                }
                Self::Busy(drain) => {
                    let Some((behaviour, mut spare)) = ready!(drain.as_mut().poll(cx)) else {
                        *self = Self::Parked(None);
                        return Poll::Ready(());
                    };
                    let parked = behaviour.inbox().park(cx.waker(), &mut spare);
                    *self = Self::Parked(Some(behaviour));
                    if parked {
                        return Poll::Pending;
                    }
                    // A sender that is as fast as the endpoint must not keep the thread for ever.
                    ready!(poll_proceed(cx)).made_progress();
                }
            }
        }
    }
}

/// As how many messages in a row one with this metadata counts.
fn poll_cost(metadata: &MessageMetadata) -> usize {
    if let Some(MessageCaller::Remote(_)) = metadata.caller { REMOTE_ASK_COST } else { 1 }
}

/// Runs `handler` and measures it, if it waits or is to be sampled. `waits` is told each time it
/// waits.
fn measure<M, T>(
    inbox: &Inbox<M>,
    sample: bool,
    mut waits: impl FnMut(Instant),
    handler: &mut (impl Future<Output = T> + Unpin),
) -> impl Future<Output = T> {
    let mut started = sample.then(Instant::now);
    poll_fn(move |cx| {
        let polled = Pin::new(&mut *handler).poll(cx);
        if polled.is_pending() {
            waits(*started.get_or_insert_with(Instant::now));
        } else if let Some(started) = started {
            inbox.record_duration(started.elapsed());
        }
        polled
    })
}

/// Runs a handler other than `receive` to its end.
async fn supervise(
    actor: HandlerId,
    handler: impl Future<Output = Result<(), RpcError>>,
) -> Result<(), RpcError> {
    HandlerFuture::new(actor, pin!(handler)).await
}

/// An error that on_error itself ended with, or that nobody handles.
fn log_unhandled<M>(inbox: &Inbox<M>, outcome: Result<(), RpcError>) {
    if let Err(error) = outcome {
        tracing::error!(endpoint = %inbox.address(), %error, "unhandled error in an endpoint");
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
    fn the_task_of_an_endpoint_is_small() {
        // With what the runtime and the tracker of tasks add that makes 128 bytes; one word more
        // makes 256.
        assert_eq!(size_of::<EndpointTask<Serial<Idle>>>(), 16);
    }
}
