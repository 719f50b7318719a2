//! The messages to one endpoint of another environment.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use network_common::TransportClient;
use slab::Slab;
use tokio::sync::{Notify, oneshot};

use super::{Connecting, Outbox, Phase};
use crate::credit::{Credit, Volume};
use crate::error::{ErrorKind, RpcError};
use crate::post::{Dispatched, RemoteAnswer, Wire};

/// What refs to one endpoint hold: a place among the lanes of the outbox to its address.
pub(crate) struct Lane {
    outbox: Arc<Outbox>,
    place: usize,
    room: Arc<Notify>,
}

/// The lanes of one outbox.
#[derive(Default)]
pub(super) struct Lanes {
    lanes: Slab<Queue>,
    by_endpoint: HashMap<Arc<str>, usize>,
    /// Messages in all of them.
    waiting: usize,
    /// While messages wait the outbox must live, also without refs.
    alive: Option<Arc<Outbox>>,
}

/// The messages to one endpoint that wait for a connection or for credit.
struct Queue {
    endpoint: Arc<str>,
    messages: VecDeque<Queued>,
    volume: Volume,
    credit: Credit,
    refs: usize,
    room: Arc<Notify>,
}

struct Queued {
    envelope: Bytes,
    /// None for a one-way message.
    asker: Option<oneshot::Sender<Dispatched>>,
}

/// Messages that will not be sent. To be failed outside the lock.
pub(super) struct Unsent(Vec<Queued>);

impl Lanes {
    /// Sends what credit allows; false if the connection's write queue is full before that.
    pub(super) fn pump(&mut self, client: &TransportClient) -> bool {
        let places: Vec<usize> = self.by_endpoint.values().copied().collect();
        places.into_iter().all(|place| self.pump_one(place, client))
    }

    /// The same for one lane.
    pub(super) fn pump_one(&mut self, place: usize, client: &TransportClient) -> bool {
        let Some(queue) = self.lanes.get_mut(place) else { return true };
        let before = queue.messages.len();
        let open = queue.pump(client);
        self.waiting -= before - queue.messages.len();
        if self.waiting == 0 {
            self.alive = None;
        }
        open
    }

    /// Whether anything waits.
    pub(super) fn waits(&self) -> bool {
        self.waiting > 0
    }

    /// What waits in all.
    pub(super) fn volume(&self) -> Volume {
        let mut all = Volume::default();
        self.lanes.iter().for_each(|(_, queue)| all.add(queue.volume));
        all
    }

    /// The lane to `endpoint`, with more credit.
    pub(super) fn granted(&mut self, endpoint: &str, more: Volume) -> Option<usize> {
        let place = *self.by_endpoint.get(endpoint)?;
        self.lanes.get_mut(place)?.credit.put(more);
        Some(place)
    }

    /// There is no connection any more, and with it no credit; takes out what waits.
    pub(super) fn reset(&mut self) -> Unsent {
        let mut unsent = Vec::new();
        for (_, queue) in &mut self.lanes {
            unsent.extend(queue.messages.drain(..));
            queue.volume = Volume::default();
            queue.credit = Credit::new();
            queue.room.notify_waiters();
        }
        let by_endpoint = &mut self.by_endpoint;
        self.lanes.retain(|_, queue| {
            let used = queue.refs > 0;
            if !used {
                by_endpoint.remove(&queue.endpoint);
            }
            used
        });
        self.waiting = 0;
        self.alive = None;
        Unsent(unsent)
    }
}

impl Queue {
    fn pump(&mut self, client: &TransportClient) -> bool {
        while self.credit.allows() && !self.messages.is_empty() {
            // If the connection has ended, that fails what waits.
            let Some(Ok(())) = client.ready().now_or_never() else { return false };
            let Some(queued) = self.messages.pop_front() else { break };
            self.volume.remove(Volume::message(queued.envelope.len() as u64));
            self.room.notify_waiters();
            match queued.asker {
                // Given up meanwhile.
                Some(asker) if asker.is_closed() => continue,
                Some(asker) => {
                    self.credit.take(queued.envelope.len());
                    let _ = asker.send(Ok(client.send_rpc(queued.envelope)));
                }
                None => {
                    self.credit.take(queued.envelope.len());
                    if let Err(error) = client.send(queued.envelope) {
                        tracing::warn!(endpoint = %self.endpoint, %error, "a one-way message was lost");
                    }
                }
            }
        }
        true
    }
}

impl Unsent {
    /// Tells how many there were.
    pub(super) fn fail(self, error: &RpcError) -> u64 {
        let count = self.0.len() as u64;
        for queued in self.0 {
            match queued.asker {
                Some(asker) => drop(asker.send(Err(error.clone()))),
                None => tracing::warn!(%error, "a one-way message was lost"),
            }
        }
        count
    }
}

impl Outbox {
    /// The lane to `endpoint`.
    pub(crate) fn lane(self: &Arc<Self>, endpoint: &str) -> Lane {
        let mut state = self.state.lock();
        let lanes = &mut state.lanes;
        let place = match lanes.by_endpoint.get(endpoint) {
            Some(place) => *place,
            None => {
                let endpoint: Arc<str> = endpoint.into();
                let place = lanes.lanes.insert(Queue {
                    endpoint: Arc::clone(&endpoint),
                    messages: VecDeque::new(),
                    volume: Volume::default(),
                    credit: Credit::new(),
                    refs: 0,
                    room: Arc::default(),
                });
                lanes.by_endpoint.insert(endpoint, place);
                place
            }
        };
        let queue = &mut lanes.lanes[place];
        queue.refs += 1;
        Lane { outbox: Arc::clone(self), place, room: Arc::clone(&queue.room) }
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
                state.phase = outbox.after_connection();
                let unsent = state.lanes.reset();
                drop(guard);
                unsent.fail(&outbox.closed());
                return self.route(envelope, queued);
            }
            Phase::Connected(client) => {
                let queue = &mut state.lanes.lanes[self.place];
                if queue.messages.is_empty() && queue.credit.allows() {
                    queue.credit.take(envelope.len());
                    return Ok(Some(client.clone()));
                }
            }
            Phase::Idle | Phase::Connecting => {}
        }
        let queue = &mut state.lanes.lanes[self.place];
        if !queue.volume.fits(outbox.all.limits) {
            return Err(self.full());
        }
        queue.volume.add(Volume::message(envelope.len() as u64));
        queue.messages.push_back(queued());
        if state.lanes.waiting == 0 {
            state.lanes.alive = outbox.me.upgrade();
        }
        state.lanes.waiting += 1;
        if matches!(state.phase, Phase::Idle) {
            state.phase = Phase::Connecting;
            Connecting::start(outbox);
        }
        Ok(None)
    }

    fn put_back(&self, envelope: &Bytes) {
        let mut state = self.outbox.state.lock();
        state.lanes.lanes[self.place].credit.put(Volume::message(envelope.len() as u64));
    }

    fn full(&self) -> RpcError {
        let Volume { messages, bytes } = self.outbox.all.limits;
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
        if !state.lanes.lanes[self.place].volume.fits(self.outbox.all.limits) {
            return Obstacle::Queue;
        }
        state.phase.connection().cloned().map_or(Obstacle::None, Obstacle::Connection)
    }
}

impl Wire for Lane {
    fn send(&self, envelope: Bytes) -> Result<(), RpcError> {
        let queued = || Queued { envelope: envelope.clone(), asker: None };
        let Some(client) = self.route(&envelope, queued)? else { return Ok(()) };
        client.send(envelope.clone()).map_err(|error| {
            self.put_back(&envelope);
            RpcError::from_transport(error, &self.outbox.address)
        })
    }

    fn ask(&self, envelope: Bytes) -> RemoteAnswer {
        let mut dispatched = None;
        let routed = self.route(&envelope, || {
            let (asker, receiver) = oneshot::channel();
            dispatched = Some(receiver);
            Queued { envelope: envelope.clone(), asker: Some(asker) }
        });
        let peer = self.outbox.address.clone();
        match (routed, dispatched) {
            (Ok(Some(client)), _) => {
                let answer = client.send_rpc(envelope.clone());
                if answer.pending().is_none() {
                    // It was not sent.
                    self.put_back(&envelope);
                }
                RemoteAnswer::sent(answer, peer)
            }
            (Ok(None), Some(dispatched)) => RemoteAnswer::queued(dispatched, peer),
            (Ok(None), None) => RemoteAnswer::refused(self.outbox.dropped(), peer),
            (Err(error), _) => RemoteAnswer::refused(error, peer),
        }
    }

    fn room(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let mut room = std::pin::pin!(self.room.notified());
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
        let queue = &mut state.lanes.lanes[self.place];
        queue.refs -= 1;
        // With a connection it is kept: the credit used on it counts as long as it lasts.
        if queue.refs == 0 && queue.messages.is_empty() && state.phase.connection().is_none() {
            let queue = state.lanes.lanes.remove(self.place);
            state.lanes.by_endpoint.remove(&queue.endpoint);
        }
    }
}
