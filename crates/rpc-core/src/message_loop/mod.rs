//! The task that takes an endpoint through its life.
//!
//! It lives as long as the endpoint and is parked while there is nothing to do. What handles the messages is a
//! future that exists only while there is work, so that an idle endpoint costs no more than its own state,
//! whatever its `receive` keeps across an await.

mod concurrent;
mod serial;

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use concurrent::Concurrent;
use futures::future::BoxFuture;
use serial::Serial;
use tokio::task::coop::poll_proceed;
use tokio::time::Instant;

use crate::endpoint::{EndpointContext, RpcEndpoint, ThreadSafeRpcEndpoint};
use crate::error::RpcError;
use crate::inbox::{Inbox, Item};
use crate::message::RpcMessage;
use crate::origin::Origin;
use crate::running::{Actor, EndpointId, EnvId};
use crate::threads::Threads;

/// After this many messages in a row the loop lets other tasks run.
const FAIR_SHARE: usize = 256;
/// As many as this one ask of a peer counts: the answers so far are to leave while others are made.
const SHARE_OF_PEERS_ASK: usize = 6;

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
/// Implemented for every [`ThreadSafeRpcEndpoint`] and every [`RpcEndpoint`]; a type should be one of the two.
pub trait IntoEndpoint<Kind>: Sized + Send + 'static {
    /// What the endpoint receives.
    type Message: RpcMessage;

    #[doc(hidden)]
    const ONE_AT_A_TIME: bool;

    /// The endpoint's whole life.
    #[doc(hidden)]
    fn run(self, seat: Seat<Self::Message>) -> impl Future<Output = ()> + Send + 'static;
}

impl<E: ThreadSafeRpcEndpoint> IntoEndpoint<ThreadSafeKind> for E {
    type Message = E::Message;
    const ONE_AT_A_TIME: bool = true;

    fn run(self, seat: Seat<E::Message>) -> impl Future<Output = ()> + Send + 'static {
        Life::new(seat, Serial::new(self))
    }
}

impl<E: RpcEndpoint> IntoEndpoint<ConcurrentKind> for E {
    type Message = E::Message;
    const ONE_AT_A_TIME: bool = false;

    fn run(self, seat: Seat<E::Message>) -> impl Future<Output = ()> + Send + 'static {
        Life::new(seat, Concurrent::new(self))
    }
}

/// What a loop is given: the inbox it empties and what it tells the endpoint.
#[doc(hidden)]
#[derive(Debug)]
pub struct Seat<M>(Arc<Place<M>>);

struct Place<M> {
    inbox: Arc<Inbox<M>>,
    cx: EndpointContext<M>,
    actor: Actor,
    /// If the endpoint is isolated.
    threads: Option<Threads>,
}

impl<M> std::fmt::Debug for Place<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seat").field("endpoint", self.inbox.address()).finish_non_exhaustive()
    }
}

impl<M> Seat<M> {
    pub(crate) fn new(
        inbox: Arc<Inbox<M>>,
        cx: EndpointContext<M>,
        one_at_a_time: bool,
        threads: Option<Threads>,
    ) -> Self {
        let endpoint = one_at_a_time.then(|| EndpointId::of(&inbox));
        let actor = Actor { env: EnvId::of(cx.env_inner()), endpoint };
        Self(Arc::new(Place { inbox, cx, actor, threads }))
    }
}

type Buffer<M> = VecDeque<Item<M>>;

/// What [`Behaviour::drain`] ends with: itself and an empty buffer when there is nothing to do, nothing after stop.
type Drained<B, M> = Option<(Box<B>, Buffer<M>)>;

trait Behaviour: Sized + Send + 'static {
    type Message: RpcMessage;

    /// Handles messages until there are none.
    fn drain(
        self: Box<Self>,
        place: Arc<Place<Self::Message>>,
    ) -> BoxFuture<'static, Drained<Self, Self::Message>>;
}

struct Life<B: Behaviour> {
    place: Arc<Place<B::Message>>,
    state: LifeState<B>,
}

enum LifeState<B: Behaviour> {
    Idle(Box<B>, Buffer<B::Message>),
    /// Waits for something to do.
    Parked(Box<B>),
    Busy(BoxFuture<'static, Drained<B, B::Message>>),
    Over,
}

// What is pinned is in boxes.
impl<B: Behaviour> Unpin for Life<B> {}

impl<B: Behaviour> Life<B> {
    /// Begins with work: to start the endpoint.
    fn new(seat: Seat<B::Message>, behaviour: B) -> Self {
        let drain = Box::new(behaviour).drain(Arc::clone(&seat.0));
        Self { place: seat.0, state: LifeState::Busy(drain) }
    }
}

impl<B: Behaviour> Future for Life<B> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        loop {
            this.state = match std::mem::replace(&mut this.state, LifeState::Over) {
                LifeState::Busy(mut drain) => match drain.as_mut().poll(cx) {
                    Poll::Ready(Some((behaviour, spare))) => LifeState::Idle(behaviour, spare),
                    Poll::Ready(None) => return Poll::Ready(()),
                    Poll::Pending => {
                        this.state = LifeState::Busy(drain);
                        return Poll::Pending;
                    }
                },
                LifeState::Idle(behaviour, mut spare) => {
                    if this.place.inbox.park(cx.waker(), &mut spare) {
                        this.state = LifeState::Parked(behaviour);
                        return Poll::Pending;
                    }
                    // A sender that is as fast as the endpoint must not keep the thread for ever.
                    let Poll::Ready(share) = poll_proceed(cx) else {
                        this.state = LifeState::Idle(behaviour, spare);
                        return Poll::Pending;
                    };
                    share.made_progress();
                    LifeState::Busy(behaviour.drain(Arc::clone(&this.place)))
                }
                // It was woken, so there is something, or else it will be idle again at once.
                LifeState::Parked(behaviour) => LifeState::Busy(behaviour.drain(Arc::clone(&this.place))),
                LifeState::Over => return Poll::Ready(()),
            };
        }
    }
}

impl<B: Behaviour> Drop for Life<B> {
    fn drop(&mut self) {
        // Before the fields go, and with them the batch in hand: no sender may slip in behind.
        self.place.inbox.abandon();
    }
}

/// As how many messages in a row `item` counts.
fn share_of<M>(item: &Item<M>) -> usize {
    match item {
        Item::Message { origin: Origin::Arrived { ask: Some(_), .. }, .. } => SHARE_OF_PEERS_ASK,
        _ => 1,
    }
}

/// Runs `handler` and measures it, if it waits or is to be sampled. `waits` is told each time it waits.
async fn watch<M, T>(
    place: &Place<M>,
    sample: bool,
    mut waits: impl FnMut(Instant),
    mut handler: impl Future<Output = T> + Unpin,
) -> T {
    let mut started = sample.then(Instant::now);
    let outcome = poll_fn(|cx| {
        let polled = Pin::new(&mut handler).poll(cx);
        if polled.is_pending() {
            waits(*started.get_or_insert_with(Instant::now));
        }
        polled
    })
    .await;
    if let Some(started) = started {
        place.inbox.took(started.elapsed());
    }
    outcome
}

/// An error that on_error itself ended with, or that nobody handles.
fn report<M>(place: &Place<M>, outcome: Result<(), RpcError>) {
    if let Err(error) = outcome {
        tracing::error!(endpoint = %place.inbox.address(), %error, "unhandled error in an endpoint");
    }
}
