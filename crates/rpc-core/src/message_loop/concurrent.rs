//! The loop of an endpoint that handles many messages at a time.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::time::Instant;

use super::{
    Buffer, Drained, LoopContext, MessageLoop, POLL_BUDGET, handle_event, log_unhandled, measure,
    poll_cost, supervise,
};
use crate::ask::{HandlerFuture, HandlerId};
use crate::endpoint::{EndpointContext, RpcEndpoint};
use crate::error::RpcError;
use crate::inbox::{Batch, ConnectionEvent, Inbox, InboxItem};
use crate::message_metadata::MessageMetadata;

/// Many messages at a time, with shared access.
pub(super) struct Concurrent<E: RpcEndpoint> {
    seated: Arc<ConcurrentShared<E>>,
    phase: LoopPhase,
}

/// What the handlings of messages share.
struct ConcurrentShared<E: RpcEndpoint> {
    endpoint: E,
    actor: HandlerId,
    seat: LoopContext<E::Message>,
}

impl<E: RpcEndpoint> Concurrent<E> {
    pub(super) fn new(endpoint: E, seat: LoopContext<E::Message>) -> Self {
        let actor = seat.actor(false);
        Self { seated: Arc::new(ConcurrentShared { endpoint, actor, seat }), phase: LoopPhase::New }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum LoopPhase {
    New,
    Concurrent,
    /// `on_start` failed.
    Serial,
}

impl<E: RpcEndpoint> MessageLoop for Concurrent<E> {
    type Message = E::Message;

    fn inbox(&self) -> &Inbox<E::Message> {
        &self.seated.seat.inbox
    }

    fn run_until_idle(mut self: Box<Self>) -> BoxFuture<'static, Drained<Self, E::Message>> {
        Box::pin(async move {
            let Self { seated, phase } = &mut *self;
            let ConcurrentShared { endpoint, actor, seat } = &**seated;
            if *phase == LoopPhase::New {
                let outcome = supervise(*actor, async { endpoint.on_start(&seat.cx).await }).await;
                *phase = if outcome.is_ok() { LoopPhase::Concurrent } else { LoopPhase::Serial };
                if let Err(error) = outcome {
                    seated.on_error(error, &seat.cx).await;
                }
            }
            let mut batch = Batch::new(&seat.inbox);
            let mut running = RunningHandlers::new();
            let mut in_a_row = 0;
            while let Some(item) = next(&seat.inbox, &mut batch, &mut running).await {
                if matches!(item, InboxItem::Stop) {
                    while let Some(handled) = running.next().await {
                        count(&mut batch, handled);
                    }
                    let cx = seat.cx.for_stop();
                    let on_stop = async { endpoint.on_stop(&cx).await };
                    if let Err(error) = supervise(*actor, on_stop).await {
                        seated.on_error(error, &cx).await;
                    }
                    drop(batch);
                    seat.inbox.mark_stopped();
                    return None;
                }
                let sample = batch.sample();
                let share = if let InboxItem::Message { metadata, .. } = &item {
                    poll_cost(metadata)
                } else {
                    1
                };
                let handling = Arc::clone(seated).handle(item, sample);
                let mut handling: HandlerRun = match &seat.threads {
                    None => Box::pin(handling),
                    // Apart from this task, so that as many can block as there are threads.
                    Some(threads) => Box::pin(threads.spawn(handling).map(Option::flatten)),
                };
                // Most end at once and never need a place among those that wait.
                match poll_fn(|cx| Poll::Ready(handling.as_mut().poll(cx))).await {
                    Poll::Ready(handled) => count(&mut batch, handled),
                    Poll::Pending if *phase == LoopPhase::Serial => {
                        batch.on_pending(Instant::now());
                        let handled = handling.await;
                        count(&mut batch, handled);
                    }
                    Poll::Pending => running.push(handling),
                }
                in_a_row += share;
                if in_a_row >= POLL_BUDGET {
                    in_a_row = 0;
                    tokio::task::yield_now().await;
                    // A batch may be long, and so may they wait for its end.
                    poll_fn(|cx| poll_running(&mut batch, &mut running, cx)).await;
                }
            }
            let buffer = batch.into_buffer();
            Some((self, buffer))
        })
    }
}

/// One item being handled. Gives back where it came from if it was a message, which counts against
/// the limits until then, and whether it failed.
type HandlerRun = BoxFuture<'static, Option<(MessageMetadata, bool)>>;
type RunningHandlers = FuturesUnordered<HandlerRun>;

fn count<M>(batch: &mut Batch<'_, M>, handled: Option<(MessageMetadata, bool)>) {
    if let Some((metadata, failed)) = handled {
        batch.on_handled(metadata, failed);
    }
}

/// Polls those that wait and can go on. Always ready.
fn poll_running<M>(
    batch: &mut Batch<'_, M>,
    running: &mut RunningHandlers,
    cx: &mut Context<'_>,
) -> Poll<()> {
    while let Poll::Ready(Some(handled)) = running.poll_next_unpin(cx) {
        count(batch, handled);
    }
    Poll::Ready(())
}

/// The next item, moving on meanwhile what is running. None when nothing is queued and nothing
/// runs.
async fn next<M>(
    inbox: &Inbox<M>,
    batch: &mut Batch<'_, M>,
    running: &mut RunningHandlers,
) -> Option<InboxItem<M>> {
    poll_fn(|cx| {
        if let Some(item) = batch.pop() {
            return Poll::Ready(Some(item));
        }
        // Once per batch, so that a full inbox does not keep them waiting.
        let _ = poll_running(batch, running, cx);
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

impl<E: RpcEndpoint> ConcurrentShared<E> {
    async fn handle(
        self: Arc<Self>,
        item: InboxItem<E::Message>,
        sample: bool,
    ) -> Option<(MessageMetadata, bool)> {
        let Self { endpoint, actor, seat } = &*self;
        let cx = &seat.cx;
        let (outcome, metadata) = match item {
            InboxItem::Message { message, mut metadata } => {
                let receive = pin!(async { endpoint.receive(message, cx).await });
                let mut receive = HandlerFuture::of_message(*actor, &mut metadata, receive);
                let outcome = measure(&seat.inbox, sample, |_| {}, &mut receive).await;
                (outcome, Some(metadata))
            }
            InboxItem::Event(event) => {
                (supervise(*actor, async { handle_event!(endpoint, event, cx) }).await, None)
            }
            // The loop deals with it itself, as it comes alone.
            InboxItem::Stop => (Ok(()), None),
        };
        let failed = outcome.is_err();
        if let Err(error) = outcome {
            self.on_error(error, cx).await;
        }
        metadata.map(|metadata| (metadata, failed))
    }

    async fn on_error(&self, error: RpcError, cx: &EndpointContext<E::Message>) {
        let on_error = async { self.endpoint.on_error(error, cx).await };
        log_unhandled(&self.seat.inbox, supervise(self.actor, on_error).await);
    }
}
