//! The loop of an endpoint that handles one message at a time.

use std::pin::pin;

use futures::future::BoxFuture;

use super::{
    Drained, LoopContext, MessageLoop, POLL_BUDGET, handle_event, log_unhandled, measure,
    poll_cost, supervise,
};
use crate::ask::HandlerFuture;
use crate::endpoint::{EndpointContext, ThreadSafeRpcEndpoint};
use crate::error::RpcError;
use crate::inbox::{Batch, ConnectionEvent, Inbox, InboxItem};

/// One message at a time, with exclusive access.
pub(super) struct Serial<E: ThreadSafeRpcEndpoint> {
    pub(super) endpoint: E,
    pub(super) started: bool,
    pub(super) seat: LoopContext<E::Message>,
}

impl<E: ThreadSafeRpcEndpoint> MessageLoop for Serial<E> {
    type Message = E::Message;

    fn inbox(&self) -> &Inbox<E::Message> {
        &self.seat.inbox
    }

    fn run_until_idle(mut self: Box<Self>) -> BoxFuture<'static, Drained<Self, E::Message>> {
        Box::pin(async move {
            let Self { endpoint, started, seat } = &mut *self;
            let (inbox, cx, actor) = (&seat.inbox, &seat.cx, seat.actor(true));
            if !*started {
                *started = true;
                if let Err(error) = supervise(actor, async { endpoint.on_start(cx).await }).await {
                    on_error(endpoint, error, cx, seat).await;
                }
            }
            let mut batch = Batch::new(inbox);
            let mut in_a_row = 0;
            while batch.refill() {
                loop {
                    let mut share = 1;
                    let outcome = match batch.pop() {
                        Some(InboxItem::Message { message, mut metadata }) => {
                            share = poll_cost(&metadata);
                            let receive = pin!(async { endpoint.receive(message, cx).await });
                            let mut receive =
                                HandlerFuture::of_message(actor, &mut metadata, receive);
                            let sample = batch.sample();
                            let outcome = measure(
                                inbox,
                                sample,
                                |since| batch.on_pending(since),
                                &mut receive,
                            )
                            .await;
                            batch.on_handled(metadata, outcome.is_err());
                            outcome
                        }
                        Some(InboxItem::Event(event)) => {
                            let event = pin!(async { handle_event!(endpoint, event, cx) });
                            let mut event = HandlerFuture::new(actor, event);
                            measure(inbox, false, |since| batch.on_pending(since), &mut event).await
                        }
                        Some(InboxItem::Stop) => {
                            let cx = cx.for_stop();
                            let on_stop = async { endpoint.on_stop(&cx).await };
                            if let Err(error) = supervise(actor, on_stop).await {
                                on_error(endpoint, error, &cx, seat).await;
                            }
                            drop(batch);
                            inbox.mark_stopped();
                            return None;
                        }
                        None => break,
                    };
                    if let Err(error) = outcome {
                        on_error(endpoint, error, cx, seat).await;
                    }
                    in_a_row += share;
                    if in_a_row >= POLL_BUDGET {
                        in_a_row = 0;
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
    error: RpcError,
    cx: &EndpointContext<E::Message>,
    seat: &LoopContext<E::Message>,
) {
    let on_error = async { endpoint.on_error(error, cx).await };
    log_unhandled(&seat.inbox, supervise(seat.actor(true), on_error).await);
}
