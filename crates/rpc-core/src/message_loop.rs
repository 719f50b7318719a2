//! The task that takes an endpoint through its life.
//!
//! It lives as long as the endpoint and is parked while there is nothing to do. What handles the messages is a
//! future that exists only while there is work, so that an idle endpoint costs no more than its own state,
//! whatever its `receive` keeps across an await.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::task::coop::poll_proceed;

use crate::call_context::supervise;
use crate::endpoint::{EndpointContext, RpcEndpoint, ThreadSafeRpcEndpoint};
use crate::error::RpcError;
use crate::inbox::{Batch, Event, Inbox, Item};
use crate::message::RpcMessage;
use crate::origin::Origin;
use crate::running::EndpointId;
use crate::threads::Threads;

/// After this many messages in a row the loop lets other tasks run.
const FAIR_SHARE: usize = 256;

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
        Life::new(seat, Serial { endpoint: self, started: false })
    }
}

impl<E: RpcEndpoint> IntoEndpoint<ConcurrentKind> for E {
    type Message = E::Message;
    const ONE_AT_A_TIME: bool = false;

    fn run(self, seat: Seat<E::Message>) -> impl Future<Output = ()> + Send + 'static {
        Life::new(seat, Concurrent { endpoint: Arc::new(self), phase: Phase::New })
    }
}

/// What a loop is given: the inbox it empties and what it tells the endpoint.
#[doc(hidden)]
#[derive(Debug)]
pub struct Seat<M>(Arc<Place<M>>);

struct Place<M> {
    inbox: Arc<Inbox<M>>,
    cx: EndpointContext<M>,
    /// If the endpoint is isolated.
    threads: Option<Threads>,
}

impl<M> std::fmt::Debug for Place<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seat").field("endpoint", self.inbox.address()).finish_non_exhaustive()
    }
}

impl<M> Seat<M> {
    pub(crate) fn new(inbox: Arc<Inbox<M>>, cx: EndpointContext<M>, threads: Option<Threads>) -> Self {
        Self(Arc::new(Place { inbox, cx, threads }))
    }
}

type Buffer<M> = VecDeque<Item<M>>;

/// What [`Behaviour::drain`] ends with: itself and an empty buffer when there is nothing to do, nothing after stop.
type Drained<B, M> = Option<(Box<B>, Buffer<M>)>;

trait Behaviour: Sized + Send + 'static {
    type Message: RpcMessage;
    const ONE_AT_A_TIME: bool;

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
        let _running = B::ONE_AT_A_TIME.then(|| EndpointId::of(&this.place.inbox).run());
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
                        this.state = LifeState::Idle(behaviour, Buffer::new());
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

/// Runs `handler`; where it waits, what was handled before must not keep others from sending.
async fn giving_back<M, T>(batch: &mut Batch<M>, handler: impl Future<Output = T>) -> T {
    let mut handler = pin!(handler);
    poll_fn(|cx| {
        let polled = handler.as_mut().poll(cx);
        if polled.is_pending() {
            batch.give_back();
        }
        polled
    })
    .await
}

/// An error that on_error itself ended with, or that nobody handles.
fn report<M>(place: &Place<M>, outcome: Result<(), RpcError>) {
    if let Err(error) = outcome {
        tracing::error!(endpoint = %place.inbox.address(), %error, "unhandled error in an endpoint");
    }
}

/// One message at a time, with exclusive access.
struct Serial<E> {
    endpoint: E,
    started: bool,
}

impl<E: ThreadSafeRpcEndpoint> Behaviour for Serial<E> {
    type Message = E::Message;
    const ONE_AT_A_TIME: bool = true;

    fn drain(
        mut self: Box<Self>,
        place: Arc<Place<E::Message>>,
    ) -> BoxFuture<'static, Drained<Self, E::Message>> {
        Box::pin(async move {
            if !self.started {
                self.started = true;
                let outcome = supervise(None, async { self.endpoint.on_start(&place.cx).await }).await;
                self.settle(outcome, &place.cx, &place).await;
            }
            let mut batch = Batch::new(&place.inbox);
            let mut in_a_row = 0;
            while batch.refill() {
                while let Some(item) = batch.pop() {
                    let outcome = match item {
                        Item::Message { message, origin } => {
                            let receive = async { self.endpoint.receive(message, &place.cx).await };
                            let outcome = giving_back(&mut batch, supervise(Some(&origin), receive)).await;
                            batch.done(&origin);
                            outcome
                        }
                        Item::Event(event) => {
                            giving_back(&mut batch, supervise(None, self.event(event, &place.cx))).await
                        }
                        Item::Stop => {
                            let cx = place.cx.for_stop();
                            let outcome = supervise(None, async { self.endpoint.on_stop(&cx).await }).await;
                            self.settle(outcome, &cx, &place).await;
                            return None;
                        }
                    };
                    self.settle(outcome, &place.cx, &place).await;
                    in_a_row += 1;
                    if in_a_row == FAIR_SHARE {
                        in_a_row = 0;
                        tokio::task::yield_now().await;
                    }
                }
            }
            Some((self, batch.into_buffer()))
        })
    }
}

impl<E: ThreadSafeRpcEndpoint> Serial<E> {
    async fn event(&mut self, event: Event, cx: &EndpointContext<E::Message>) -> Result<(), RpcError> {
        match event {
            Event::Connected(remote) => self.endpoint.on_connected(remote, cx).await,
            Event::Disconnected(remote) => self.endpoint.on_disconnected(remote, cx).await,
            Event::NetworkError(error, remote) => self.endpoint.on_network_error(error, remote, cx).await,
            Event::Undelivered(error, remote) => self.endpoint.on_undelivered(error, remote, cx).await,
        }
    }

    async fn settle(
        &mut self,
        outcome: Result<(), RpcError>,
        cx: &EndpointContext<E::Message>,
        place: &Place<E::Message>,
    ) {
        if let Err(error) = outcome {
            report(place, supervise(None, async { self.endpoint.on_error(error, cx).await }).await);
        }
    }
}

/// Many messages at a time, with shared access.
struct Concurrent<E> {
    endpoint: Arc<E>,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    New,
    Concurrent,
    /// `on_start` failed.
    OneByOne,
}

impl<E: RpcEndpoint> Behaviour for Concurrent<E> {
    type Message = E::Message;
    const ONE_AT_A_TIME: bool = false;

    fn drain(
        mut self: Box<Self>,
        place: Arc<Place<E::Message>>,
    ) -> BoxFuture<'static, Drained<Self, E::Message>> {
        Box::pin(async move {
            if self.phase == Phase::New {
                let outcome = supervise(None, async { self.endpoint.on_start(&place.cx).await }).await;
                self.phase = if outcome.is_ok() { Phase::Concurrent } else { Phase::OneByOne };
                settle(&*self.endpoint, outcome, &place.cx, &place).await;
            }
            let mut batch = Batch::new(&place.inbox);
            let mut running = Running::new();
            let mut in_a_row = 0;
            while let Some(item) = next(&place.inbox, &mut batch, &mut running).await {
                if matches!(item, Item::Stop) {
                    while let Some(origin) = running.next().await {
                        origin.iter().for_each(|origin| batch.done(origin));
                    }
                    let cx = place.cx.for_stop();
                    let outcome = supervise(None, async { self.endpoint.on_stop(&cx).await }).await;
                    settle(&*self.endpoint, outcome, &cx, &place).await;
                    return None;
                }
                let handling = handle(Arc::clone(&self.endpoint), item, Arc::clone(&place));
                let mut handling: Handling = match &place.threads {
                    None => Box::pin(handling),
                    // Apart from this task, so that as many can block as there are threads.
                    Some(threads) => Box::pin(threads.spawn(handling).map(Option::flatten)),
                };
                if self.phase == Phase::OneByOne {
                    let origin = giving_back(&mut batch, handling).await;
                    origin.iter().for_each(|origin| batch.done(origin));
                } else {
                    // Most end at once and never need a place among those that wait.
                    match poll_fn(|cx| Poll::Ready(handling.as_mut().poll(cx))).await {
                        Poll::Ready(origin) => origin.iter().for_each(|origin| batch.done(origin)),
                        Poll::Pending => running.push(handling),
                    }
                }
                in_a_row += 1;
                if in_a_row == FAIR_SHARE {
                    in_a_row = 0;
                    tokio::task::yield_now().await;
                }
            }
            Some((self, batch.into_buffer()))
        })
    }
}

/// One item being handled. Gives the origin back if it was a message, which counts against the limits until then.
type Handling = BoxFuture<'static, Option<Origin>>;
type Running = FuturesUnordered<Handling>;

/// The next item, moving on meanwhile what is running. None when nothing is queued and nothing runs.
async fn next<M>(inbox: &Inbox<M>, batch: &mut Batch<M>, running: &mut Running) -> Option<Item<M>> {
    poll_fn(|cx| {
        if let Some(item) = batch.pop() {
            return Poll::Ready(Some(item));
        }
        // Once per batch, so that a full inbox does not keep them waiting.
        while let Poll::Ready(Some(origin)) = running.poll_next_unpin(cx) {
            origin.iter().for_each(|origin| batch.done(origin));
        }
        loop {
            if batch.refill() {
                if let Some(item) = batch.pop() {
                    return Poll::Ready(Some(item));
                }
                continue;
            }
            if running.is_empty() {
                return Poll::Ready(None);
            }
            if inbox.park(cx.waker(), &mut Buffer::new()) {
                return Poll::Pending;
            }
        }
    })
    .await
}

async fn handle<E: RpcEndpoint>(
    endpoint: Arc<E>,
    item: Item<E::Message>,
    place: Arc<Place<E::Message>>,
) -> Option<Origin> {
    let cx = &place.cx;
    let (outcome, origin) = match item {
        Item::Message { message, origin } => {
            let receive = async { endpoint.receive(message, cx).await };
            (supervise(Some(&origin), receive).await, Some(origin))
        }
        Item::Event(event) => {
            let handle = async {
                match event {
                    Event::Connected(remote) => endpoint.on_connected(remote, cx).await,
                    Event::Disconnected(remote) => endpoint.on_disconnected(remote, cx).await,
                    Event::NetworkError(error, remote) => endpoint.on_network_error(error, remote, cx).await,
                    Event::Undelivered(error, remote) => endpoint.on_undelivered(error, remote, cx).await,
                }
            };
            (supervise(None, handle).await, None)
        }
        // The loop deals with it itself, as it comes alone.
        Item::Stop => (Ok(()), None),
    };
    settle(&*endpoint, outcome, cx, &place).await;
    origin
}

async fn settle<E: RpcEndpoint>(
    endpoint: &E,
    outcome: Result<(), RpcError>,
    cx: &EndpointContext<E::Message>,
    place: &Place<E::Message>,
) {
    if let Err(error) = outcome {
        report(place, supervise(None, async { endpoint.on_error(error, cx).await }).await);
    }
}
