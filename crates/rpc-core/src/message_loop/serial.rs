//! The loop of an endpoint that handles one message at a time.

use std::pin::pin;

use futures::future::BoxFuture;

use super::{
    Behaviour, Drained, FAIR_SHARE, Seat, handle_event, report, share_of, supervise, watch,
};
use crate::endpoint::{EndpointContext, ThreadSafeRpcEndpoint};
use crate::error::RpcError;
use crate::inbox::{Batch, Event, Inbox, Item};
use crate::running::Supervised;

/// One message at a time, with exclusive access.
pub(super) struct Serial<E: ThreadSafeRpcEndpoint> {
    pub(super) endpoint: E,
    pub(super) started: bool,
    pub(super) seat: Seat<E::Message>,
}

impl<E: ThreadSafeRpcEndpoint> Behaviour for Serial<E> {
    type Message = E::Message;

    fn inbox(&self) -> &Inbox<E::Message> {
        &self.seat.inbox
    }

    fn drain(mut self: Box<Self>) -> BoxFuture<'static, Drained<Self, E::Message>> {
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
                        Some(Item::Message { message, mut metadata }) => {
                            share = share_of(&metadata);
                            let receive = pin!(async { endpoint.receive(message, cx).await });
                            let mut receive = Supervised::of_message(actor, &mut metadata, receive);
                            let sample = batch.sample();
                            let outcome =
                                watch(inbox, sample, |since| batch.waits(since), &mut receive)
                                    .await;
                            batch.handled(metadata, outcome.is_err());
                            outcome
                        }
                        Some(Item::Event(event)) => {
                            let event = pin!(async { handle_event!(endpoint, event, cx) });
                            let mut event = Supervised::new(actor, event);
                            watch(inbox, false, |since| batch.waits(since), &mut event).await
                        }
                        Some(Item::Stop) => {
                            let cx = cx.for_stop();
                            let on_stop = async { endpoint.on_stop(&cx).await };
                            if let Err(error) = supervise(actor, on_stop).await {
                                on_error(endpoint, error, &cx, seat).await;
                            }
                            drop(batch);
                            inbox.end();
                            return None;
                        }
                        None => break,
                    };
                    if let Err(error) = outcome {
                        on_error(endpoint, error, cx, seat).await;
                    }
                    in_a_row += share;
                    if in_a_row >= FAIR_SHARE {
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
    seat: &Seat<E::Message>,
) {
    let on_error = async { endpoint.on_error(error, cx).await };
    report(&seat.inbox, supervise(seat.actor(true), on_error).await);
}
