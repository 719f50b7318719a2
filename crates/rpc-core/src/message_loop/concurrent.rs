//! The loop of an endpoint that handles many messages at a time.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::time::Instant;

use super::{Behaviour, Buffer, Drained, FAIR_SHARE, Place, report, share_of, watch};
use crate::endpoint::{EndpointContext, RpcEndpoint};
use crate::error::RpcError;
use crate::inbox::{Batch, Event, Inbox, Item};
use crate::origin::Origin;
use crate::running::Supervised;

/// Many messages at a time, with shared access.
pub(super) struct Concurrent<E> {
    endpoint: Arc<E>,
    phase: Phase,
}

impl<E> Concurrent<E> {
    pub(super) fn new(endpoint: E) -> Self {
        Self { endpoint: Arc::new(endpoint), phase: Phase::New }
    }
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

    fn drain(
        mut self: Box<Self>,
        place: Arc<Place<E::Message>>,
    ) -> BoxFuture<'static, Drained<Self, E::Message>> {
        Box::pin(async move {
            if self.phase == Phase::New {
                let outcome =
                    Supervised::new(place.actor, pin!(async { self.endpoint.on_start(&place.cx).await }))
                        .await;
                self.phase = if outcome.is_ok() { Phase::Concurrent } else { Phase::OneByOne };
                if let Err(error) = outcome {
                    on_error(&*self.endpoint, error, &place.cx, &place).await;
                }
            }
            let mut batch = Batch::new(&place.inbox);
            let mut running = Running::new();
            let mut in_a_row = 0;
            while let Some(item) = next(&place.inbox, &mut batch, &mut running).await {
                if matches!(item, Item::Stop) {
                    while let Some(handled) = running.next().await {
                        count(&mut batch, handled);
                    }
                    let cx = place.cx.for_stop();
                    let outcome =
                        Supervised::new(place.actor, pin!(async { self.endpoint.on_stop(&cx).await })).await;
                    if let Err(error) = outcome {
                        on_error(&*self.endpoint, error, &cx, &place).await;
                    }
                    drop(batch);
                    place.inbox.end();
                    return None;
                }
                let (sample, share) = (batch.sample(), share_of(&item));
                let handling = handle(Arc::clone(&self.endpoint), item, Arc::clone(&place), sample);
                let mut handling: Handling = match &place.threads {
                    None => Box::pin(handling),
                    // Apart from this task, so that as many can block as there are threads.
                    Some(threads) => Box::pin(threads.spawn(handling).map(Option::flatten)),
                };
                // Most end at once and never need a place among those that wait.
                match poll_fn(|cx| Poll::Ready(handling.as_mut().poll(cx))).await {
                    Poll::Ready(handled) => count(&mut batch, handled),
                    Poll::Pending if self.phase == Phase::OneByOne => {
                        batch.waits(Instant::now());
                        let handled = handling.await;
                        count(&mut batch, handled);
                    }
                    Poll::Pending => running.push(handling),
                }
                in_a_row += share;
                if in_a_row >= FAIR_SHARE {
                    in_a_row = 0;
                    tokio::task::yield_now().await;
                    // A batch may be long, and so may they wait for its end.
                    poll_fn(|cx| move_on(&mut batch, &mut running, cx)).await;
                }
            }
            Some((self, batch.into_buffer()))
        })
    }
}

/// One item being handled. Gives back where it came from if it was a message, which counts against the limits until
/// then, and whether it failed.
type Handling = BoxFuture<'static, Option<(Origin, bool)>>;
type Running = FuturesUnordered<Handling>;

fn count<M>(batch: &mut Batch<M>, handled: Option<(Origin, bool)>) {
    if let Some((origin, failed)) = handled {
        batch.handled(&origin, failed);
    }
}

/// Polls those that wait and can go on. Always ready.
fn move_on<M>(batch: &mut Batch<M>, running: &mut Running, cx: &mut Context<'_>) -> Poll<()> {
    while let Poll::Ready(Some(handled)) = running.poll_next_unpin(cx) {
        count(batch, handled);
    }
    Poll::Ready(())
}

/// The next item, moving on meanwhile what is running. None when nothing is queued and nothing runs.
async fn next<M>(inbox: &Inbox<M>, batch: &mut Batch<M>, running: &mut Running) -> Option<Item<M>> {
    poll_fn(|cx| {
        if let Some(item) = batch.pop() {
            return Poll::Ready(Some(item));
        }
        // Once per batch, so that a full inbox does not keep them waiting.
        let _ = move_on(batch, running, cx);
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
    sample: bool,
) -> Option<(Origin, bool)> {
    let cx = &place.cx;
    let (outcome, origin) = match item {
        Item::Message { message, mut origin } => {
            let receive = pin!(async { endpoint.receive(message, cx).await });
            let receive = Supervised::of_message(place.actor, &mut origin, receive);
            let outcome = watch(&place, sample, |_| {}, receive).await;
            (outcome, Some(origin))
        }
        Item::Event(event) => {
            let handle = pin!(async {
                match event {
                    Event::Connected(remote) => endpoint.on_connected(remote, cx).await,
                    Event::Disconnected(remote) => endpoint.on_disconnected(remote, cx).await,
                    Event::NetworkError(error, remote) => endpoint.on_network_error(error, remote, cx).await,
                    Event::Undelivered(error, remote) => endpoint.on_undelivered(error, remote, cx).await,
                }
            });
            (Supervised::new(place.actor, handle).await, None)
        }
        // The loop deals with it itself, as it comes alone.
        Item::Stop => (Ok(()), None),
    };
    let failed = outcome.is_err();
    if let Err(error) = outcome {
        on_error(&*endpoint, error, cx, &place).await;
    }
    origin.map(|origin| (origin, failed))
}

async fn on_error<E: RpcEndpoint>(
    endpoint: &E,
    error: RpcError,
    cx: &EndpointContext<E::Message>,
    place: &Place<E::Message>,
) {
    let on_error = pin!(async { endpoint.on_error(error, cx).await });
    report(place, Supervised::new(place.actor, on_error).await);
}
