//! The way to one endpoint of another environment.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use network_common::TransportClient;
use tokio::sync::oneshot;

use super::lanes::Queued;
use super::{Connecting, Outbox, Outboxes, Phase};
use crate::credit::Volume;
use crate::error::{ErrorKind, RpcError};
use crate::link::Sender;
use crate::post::{RemoteAnswer, Room, Wire};

/// What refs to one endpoint hold: a place among the lanes of the outbox to its address.
pub(crate) struct Lane {
    all: Arc<Outboxes>,
    outbox: Arc<Outbox>,
    place: usize,
    room: Arc<Room>,
}

impl Outboxes {
    /// The lane of `outbox` to `endpoint`.
    pub(crate) fn lane(self: &Arc<Self>, outbox: Arc<Outbox>, endpoint: &str) -> Lane {
        let (place, room) = outbox.state.lock().lanes.open(endpoint);
        Lane { all: Arc::clone(self), outbox, place, room }
    }
}

impl Lane {
    /// The connection to send over now, with credit taken for `envelope`; without one, `queued` waits.
    fn route(
        &self,
        envelope: &Bytes,
        queued: impl FnOnce() -> Queued,
    ) -> Result<Option<TransportClient>, RpcError> {
        let outbox = &self.outbox;
        let mut guard = outbox.state.lock();
        let state = &mut *guard;
        match &state.phase {
            Phase::Stopped => return Err(outbox.dropped()),
            Phase::Lost => return Err(outbox.closed()),
            // What waits for credit of this connection goes down with it; what comes now does not.
            Phase::Connected(client) if !client.is_active() => {
                let connection = client.id();
                drop(guard);
                outbox.disconnected(connection);
                return self.route(envelope, queued);
            }
            Phase::Connected(client) => {
                if state.lanes.take_credit(self.place, envelope.len()) {
                    return Ok(Some(client.clone()));
                }
            }
            Phase::Idle | Phase::Connecting => {}
        }
        if state.lanes.is_full(self.place, self.all.limits) {
            state.lanes.forget_given_up(self.place);
        }
        if state.lanes.is_full(self.place, self.all.limits) {
            return Err(self.full());
        }
        state.lanes.push(self.place, queued(), &self.all);
        if matches!(state.phase, Phase::Idle) {
            state.phase = Phase::Connecting;
            // Outside the lock: without a runtime the task is dropped at once, and fails what waits.
            drop(guard);
            Connecting::start(&self.all, outbox);
        }
        Ok(None)
    }

    /// `envelope` was not sent over `client`: who queued meanwhile for want of its credit may go on.
    fn put_back(&self, envelope: &Bytes, client: &TransportClient) {
        let mut state = self.outbox.state.lock();
        if state.phase.connection().is_some_and(|current| current.id() == client.id()) {
            state.lanes.put_back(self.place, envelope.len());
            self.outbox.pump(&mut state, Some(self.place));
        }
    }

    fn full(&self) -> RpcError {
        let Volume { messages, bytes } = self.all.limits;
        let text = format!(
            "the queue to an endpoint at {} is full: it holds {messages} messages (spark.rpc.outbox.maxMessages) and \
             {bytes} bytes (spark.rpc.outbox.maxBytes)",
            self.outbox.address
        );
        RpcError::new(ErrorKind::Limit, text).with_peer(&self.outbox.address).retryable()
    }
}

/// What a message may have to wait for.
enum Obstacle {
    Queue,
    Connection(TransportClient),
    None,
}

impl Lane {
    fn obstacle(&self) -> Obstacle {
        let state = self.outbox.state.lock();
        if state.lanes.is_full(self.place, self.all.limits) && !self.room.has_given_up() {
            return Obstacle::Queue;
        }
        state.phase.connection().cloned().map_or(Obstacle::None, Obstacle::Connection)
    }
}

impl Wire for Lane {
    fn send(&self, envelope: Bytes) -> Result<(), RpcError> {
        let queued = || Queued::new(&envelope, None);
        let Some(client) = self.route(&envelope, queued)? else { return Ok(()) };
        client.send(envelope.clone()).map_err(|error| {
            self.put_back(&envelope, &client);
            RpcError::from_transport(error, &self.outbox.address)
        })
    }

    fn ask(&self, envelope: Bytes) -> RemoteAnswer {
        let mut dispatched = None;
        let routed = self.route(&envelope, || {
            let (asker, receiver) = oneshot::channel();
            dispatched = Some(receiver);
            Queued::new(&envelope, Some(asker))
        });
        let peer = self.outbox.address.clone();
        match (routed, dispatched) {
            (Ok(Some(client)), _) => {
                let answer = client.send_rpc(envelope.clone());
                if answer.pending().is_none() {
                    // It was not sent.
                    self.put_back(&envelope, &client);
                }
                RemoteAnswer::sent(answer, peer)
            }
            (Ok(None), Some(dispatched)) => RemoteAnswer::queued(dispatched, Arc::clone(&self.room), peer),
            (Ok(None), None) => RemoteAnswer::refused(self.outbox.dropped(), peer),
            (Err(error), _) => RemoteAnswer::refused(error, peer),
        }
    }

    fn room(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let mut room = std::pin::pin!(self.room.changed());
            room.as_mut().enable();
            match self.obstacle() {
                // Its write queue may be what was full.
                Obstacle::Connection(client) => drop(client.ready().await),
                Obstacle::Queue => room.await,
                Obstacle::None => {}
            }
        })
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let mut state = self.outbox.state.lock();
        let state = &mut *state;
        state.lanes.close(self.place, state.phase.connection());
    }
}
