//! The message loop of an `RpcEndpoint`, which handles messages concurrently.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use network_common::log_limited;
use tokio::time::Instant;

use super::endpoint_task::{
    Buffer, IdleLoop, LoopContext, MessageLoop, POLL_BUDGET, call_event_hook, log_unhandled,
    measure, poll_cost, run_hook,
};
use crate::ask::{HandlerFailure, HandlerFuture, HandlerId};
use crate::endpoint::RpcEndpoint;
use crate::inbox::{Batch, ConnectionEvent, Inbox, InboxItem};
use crate::message_metadata::MessageMetadata;
use crate::panics::catch_panic;

/// Handles messages concurrently with `&` access to the endpoint.
pub(super) struct Concurrent<E: RpcEndpoint> {
    shared: Arc<ConcurrentShared<E>>,
    phase: LoopPhase,
}

/// Shared by the loop and all running handlers.
struct ConcurrentShared<E: RpcEndpoint> {
    endpoint: E,
    context: LoopContext<E::Message>,
}

impl<E: RpcEndpoint> Concurrent<E> {
    pub(super) fn new(endpoint: E, context: LoopContext<E::Message>) -> Self {
        let shared = Arc::new(ConcurrentShared { endpoint, context });
        Self { shared, phase: LoopPhase::New }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum LoopPhase {
    /// `on_start` has not run yet.
    New,
    Concurrent,
    /// `on_start` has failed.
    Serial,
}

impl<E: RpcEndpoint> MessageLoop for Concurrent<E> {
    type Message = E::Message;

    fn inbox(&self) -> &Inbox<E::Message> {
        &self.shared.context.inbox
    }

    fn run_until_idle(mut self: Box<Self>) -> BoxFuture<'static, IdleLoop<Self, E::Message>> {
        Box::pin(async move {
            let Self { shared, phase } = &mut *self;
            let ConcurrentShared { endpoint, context } = &**shared;
            let exclusive = context.handler_id(true);
            if *phase == LoopPhase::New {
                let outcome =
                    run_hook(exclusive, async { endpoint.on_start(&context.cx).await }).await;
                *phase = if outcome.is_ok() { LoopPhase::Concurrent } else { LoopPhase::Serial };
                if let Err(failure) = outcome {
                    shared.on_error(exclusive, failure).await;
                }
            }
            let id = context.handler_id(*phase == LoopPhase::Serial);
            let mut batch = Batch::new(&context.inbox);
            let mut running = RunningHandlers::default();
            let mut spent = 0;
            while let Some(item) = next_item(&context.inbox, &mut batch, &mut running).await {
                if matches!(item, InboxItem::Stop) {
                    while let Some(handled) = running.0.next().await {
                        count_handled(&mut batch, handled);
                    }
                    let on_stop = async { endpoint.on_stop(&context.cx).await };
                    if let Err(failure) = run_hook(exclusive, on_stop).await {
                        shared.on_error(exclusive, failure).await;
                    }
                    drop(batch);
                    context.inbox.mark_stopped();
                    return None;
                }
                let is_sampled = batch.is_sampled();
                let cost = if let InboxItem::Message { metadata, .. } = &item {
                    poll_cost(metadata)
                } else {
                    1
                };
                let handler = Arc::clone(shared).handle(id, item, is_sampled);
                let mut handler: HandlerRun = match &context.executor {
                    None => Box::pin(handler),
                    // A task of its own, so that each thread of the executor can block in one.
                    Some(executor) => Box::pin(executor.spawn(handler).map(Option::flatten)),
                };
                // Most handlers complete in the first poll and never enter `running`.
                match poll_fn(|cx| Poll::Ready(handler.as_mut().poll(cx))).await {
                    Poll::Ready(handled) => count_handled(&mut batch, handled),
                    Poll::Pending if *phase == LoopPhase::Serial => {
                        batch.on_pending(Instant::now());
                        let handled = handler.await;
                        count_handled(&mut batch, handled);
                    }
                    Poll::Pending => running.0.push(handler),
                }
                spent += cost;
                if spent >= POLL_BUDGET {
                    spent = 0;
                    tokio::task::yield_now().await;
                    // Before the batch ends, because it may be long.
                    poll_fn(|cx| poll_running(&mut batch, &mut running, cx)).await;
                }
            }
            let buffer = batch.into_buffer();
            Some((self, buffer))
        })
    }
}

/// The handling of one item.
///
/// Its output is `None` for an event. For a message it is the metadata, which counts against the
/// limits until then, and whether the handler failed.
type HandlerRun = BoxFuture<'static, Option<(MessageMetadata, bool)>>;

/// The handlers that were polled and have not completed.
///
/// When the loop is dropped, the destructors of each handler run, even if those of another panic.
#[derive(Default)]
struct RunningHandlers(FuturesUnordered<HandlerRun>);

impl Drop for RunningHandlers {
    fn drop(&mut self) {
        for handler in std::mem::take(&mut self.0) {
            if let Err(panic) = catch_panic(|| drop(handler)) {
                log_limited!(|suppressed| tracing::error!(
                    suppressed,
                    panic,
                    "dropping a handler panicked"
                ));
            }
        }
    }
}

fn count_handled<M>(batch: &mut Batch<'_, M>, handled: Option<(MessageMetadata, bool)>) {
    if let Some((metadata, has_failed)) = handled {
        batch.on_handled(metadata, has_failed);
    }
}

/// Polls the running handlers that were woken. Always ready.
fn poll_running<M>(
    batch: &mut Batch<'_, M>,
    running: &mut RunningHandlers,
    cx: &mut Context<'_>,
) -> Poll<()> {
    while let Poll::Ready(Some(handled)) = running.0.poll_next_unpin(cx) {
        count_handled(batch, handled);
    }
    Poll::Ready(())
}

/// Returns the next item, and polls the running handlers meanwhile.
///
/// `None` when the inbox is empty and no handler is running.
async fn next_item<M>(
    inbox: &Inbox<M>,
    batch: &mut Batch<'_, M>,
    running: &mut RunningHandlers,
) -> Option<InboxItem<M>> {
    poll_fn(|cx| {
        if let Some(item) = batch.pop() {
            return Poll::Ready(Some(item));
        }
        // Once per batch, so that running handlers proceed while the inbox is never empty.
        let _ = poll_running(batch, running, cx);
        loop {
            if batch.refill() {
                if let Some(item) = batch.pop() {
                    return Poll::Ready(Some(item));
                }
                continue;
            }
            if running.0.is_empty() {
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
        id: HandlerId,
        item: InboxItem<E::Message>,
        is_sampled: bool,
    ) -> Option<(MessageMetadata, bool)> {
        let Self { endpoint, context: LoopContext { inbox, cx, .. } } = &*self;
        let (outcome, metadata) = match item {
            InboxItem::Message { message, mut metadata } => {
                let receive = pin!(async { endpoint.receive(message, cx).await });
                let mut receive = HandlerFuture::of_message(id, &mut metadata, receive);
                let outcome = measure(inbox, is_sampled, |_| {}, &mut receive).await;
                (outcome, Some(metadata))
            }
            InboxItem::Event(event, _reserved) => {
                let hook = async { call_event_hook!(endpoint, event, cx) };
                (run_hook(id, hook).await, None)
            }
            // The loop handles it, because it runs after all handlers.
            InboxItem::Stop => (Ok(()), None),
        };
        let has_failed = outcome.is_err();
        if let Err(failure) = outcome {
            self.on_error(id, failure).await;
        }
        metadata.map(|metadata| (metadata, has_failed))
    }

    async fn on_error(&self, id: HandlerId, failure: HandlerFailure) {
        let HandlerFailure { error, is_reported } = failure;
        let on_error = async { self.endpoint.on_error(error, &self.context.cx).await };
        log_unhandled(&self.context.inbox, is_reported, run_hook(id, on_error).await);
    }
}
