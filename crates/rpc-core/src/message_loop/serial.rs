//! The message loop of a `ThreadSafeRpcEndpoint`, which handles one message at a time.

use std::pin::pin;

use futures::future::BoxFuture;

use super::endpoint_task::{
    IdleLoop, LoopContext, MessageLoop, POLL_BUDGET, call_event_hook, log_unhandled, measure,
    poll_cost, run_hook,
};
use crate::ask::{HandlerFailure, HandlerFuture};
use crate::endpoint::ThreadSafeRpcEndpoint;
use crate::inbox::{Batch, ConnectionEvent, Inbox, InboxItem};

/// Handles one message at a time with `&mut` access to the endpoint.
pub(super) struct Serial<E: ThreadSafeRpcEndpoint> {
    endpoint: E,
    has_started: bool,
    context: LoopContext<E::Message>,
}

impl<E: ThreadSafeRpcEndpoint> Serial<E> {
    pub(super) fn new(endpoint: E, context: LoopContext<E::Message>) -> Self {
        Self { endpoint, has_started: false, context }
    }
}

impl<E: ThreadSafeRpcEndpoint> MessageLoop for Serial<E> {
    type Message = E::Message;

    fn inbox(&self) -> &Inbox<E::Message> {
        &self.context.inbox
    }

    fn run_until_idle(mut self: Box<Self>) -> BoxFuture<'static, IdleLoop<Self, E::Message>> {
        Box::pin(async move {
            let Self { endpoint, has_started, context } = &mut *self;
            let (inbox, cx, id) = (&context.inbox, &context.cx, context.handler_id(true));
            if !*has_started {
                *has_started = true;
                if let Err(failure) = run_hook(id, async { endpoint.on_start(cx).await }).await {
                    on_error(endpoint, failure, context).await;
                }
            }
            let mut batch = Batch::new(inbox);
            let mut spent = 0;
            while batch.refill() {
                loop {
                    let mut cost = 1;
                    let outcome = match batch.pop() {
                        Some(InboxItem::Message { message, mut metadata }) => {
                            cost = poll_cost(&metadata);
                            let receive = pin!(async { endpoint.receive(message, cx).await });
                            let mut receive = HandlerFuture::of_message(id, &mut metadata, receive);
                            let is_sampled = batch.is_sampled();
                            let on_pending = |since| batch.on_pending(since);
                            let outcome =
                                measure(inbox, is_sampled, on_pending, &mut receive).await;
                            batch.on_handled(metadata, outcome.is_err());
                            outcome
                        }
                        Some(InboxItem::Event(event, _reserved)) => {
                            let hook = pin!(async { call_event_hook!(endpoint, event, cx) });
                            let mut hook = HandlerFuture::new(id, hook);
                            measure(inbox, false, |since| batch.on_pending(since), &mut hook).await
                        }
                        Some(InboxItem::Stop) => {
                            let on_stop = async { endpoint.on_stop(cx).await };
                            if let Err(failure) = run_hook(id, on_stop).await {
                                on_error(endpoint, failure, context).await;
                            }
                            drop(batch);
                            inbox.mark_stopped();
                            return None;
                        }
                        None => break,
                    };
                    if let Err(failure) = outcome {
                        on_error(endpoint, failure, context).await;
                    }
                    spent += cost;
                    if spent >= POLL_BUDGET {
                        spent = 0;
                        tokio::task::yield_now().await;
                    }
                }
            }
            let buffer = batch.into_buffer();
            Some((self, buffer))
        })
    }
}

async fn on_error<E: ThreadSafeRpcEndpoint>(
    endpoint: &mut E,
    HandlerFailure { error, is_reported }: HandlerFailure,
    context: &LoopContext<E::Message>,
) {
    let on_error = async { endpoint.on_error(error, &context.cx).await };
    let outcome = run_hook(context.handler_id(true), on_error).await;
    log_unhandled(&context.inbox, is_reported, outcome);
}
