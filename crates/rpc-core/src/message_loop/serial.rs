//! The loop of an endpoint that handles one message at a time.

use std::pin::pin;
use std::sync::Arc;

use futures::future::BoxFuture;

use super::{Behaviour, Drained, FAIR_SHARE, Place, report, share_of, watch};
use crate::endpoint::{EndpointContext, ThreadSafeRpcEndpoint};
use crate::error::RpcError;
use crate::inbox::{Batch, Event, Item};
use crate::running::Supervised;

/// One message at a time, with exclusive access.
pub(super) struct Serial<E> {
    endpoint: E,
    started: bool,
}

impl<E> Serial<E> {
    pub(super) fn new(endpoint: E) -> Self {
        Self { endpoint, started: false }
    }
}

impl<E: ThreadSafeRpcEndpoint> Behaviour for Serial<E> {
    type Message = E::Message;

    fn drain(
        mut self: Box<Self>,
        place: Arc<Place<E::Message>>,
    ) -> BoxFuture<'static, Drained<Self, E::Message>> {
        Box::pin(async move {
            if !self.started {
                self.started = true;
                let outcome =
                    Supervised::new(place.actor, pin!(async { self.endpoint.on_start(&place.cx).await }))
                        .await;
                if let Err(error) = outcome {
                    self.on_error(error, &place.cx, &place).await;
                }
            }
            let mut batch = Batch::new(&place.inbox);
            let mut in_a_row = 0;
            while batch.refill() {
                while let Some(item) = batch.pop() {
                    let share = share_of(&item);
                    let outcome = match item {
                        Item::Message { message, mut origin } => {
                            let receive = pin!(async { self.endpoint.receive(message, &place.cx).await });
                            let receive = Supervised::of_message(place.actor, &mut origin, receive);
                            let sample = batch.sample();
                            let outcome = watch(&place, sample, |since| batch.waits(since), receive).await;
                            batch.handled(&origin, outcome.is_err());
                            outcome
                        }
                        Item::Event(event) => {
                            let event = pin!(self.event(event, &place.cx));
                            let event = Supervised::new(place.actor, event);
                            watch(&place, false, |since| batch.waits(since), event).await
                        }
                        Item::Stop => {
                            let cx = place.cx.for_stop();
                            let outcome = Supervised::new(
                                place.actor,
                                pin!(async { self.endpoint.on_stop(&cx).await }),
                            )
                            .await;
                            if let Err(error) = outcome {
                                self.on_error(error, &cx, &place).await;
                            }
                            drop(batch);
                            place.inbox.end();
                            return None;
                        }
                    };
                    if let Err(error) = outcome {
                        self.on_error(error, &place.cx, &place).await;
                    }
                    in_a_row += share;
                    if in_a_row >= FAIR_SHARE {
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

    async fn on_error(
        &mut self,
        error: RpcError,
        cx: &EndpointContext<E::Message>,
        place: &Place<E::Message>,
    ) {
        let on_error = pin!(async { self.endpoint.on_error(error, cx).await });
        report(place, Supervised::new(place.actor, on_error).await);
    }
}
