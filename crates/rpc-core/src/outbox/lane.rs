//! The messages to one endpoint of another environment.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use network_common::{ErrorKind as TransportErrorKind, TransportClient};
use slab::Slab;
use tokio::sync::oneshot;

use super::{Connecting, Outbox, Outboxes, Phase};
use crate::credit::{Credit, Volume};
use crate::error::{ErrorKind, RpcError};
use crate::link::Sender;
use crate::post::{Dispatched, RemoteAnswer, Room, Wire};
use crate::wire::proto::notice::Notice;
use crate::wire::{self, proto};

/// Beyond so many lanes one that nobody uses is given up, with the credit it has.
const KEPT: usize = 64;

/// What refs to one endpoint hold: a place among the lanes of the outbox to its address.
pub(crate) struct Lane {
    all: Arc<Outboxes>,
    outbox: Arc<Outbox>,
    place: usize,
    room: Arc<Room>,
}

/// The lanes of one outbox.
#[derive(Default)]
pub(super) struct Lanes {
    lanes: Slab<Queue>,
    by_endpoint: HashMap<Arc<str>, usize>,
    /// Messages in all of them.
    waiting: usize,
    /// While messages wait the connections must live, also without refs.
    alive: Option<Arc<Outboxes>>,
}

/// The messages to one endpoint that wait for a connection or for credit.
struct Queue {
    endpoint: Arc<str>,
    messages: VecDeque<Queued>,
    volume: Volume,
    credit: Credit,
    refs: usize,
    room: Arc<Room>,
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

    /// Takes the requests that nobody waits for any more out of a lane.
    fn forget_given_up(&mut self, place: usize) {
        let queue = &mut self.lanes[place];
        if !queue.room.take_given_up() {
            return;
        }
        let (before, volume) = (queue.messages.len(), &mut queue.volume);
        queue.messages.retain(|queued| {
            let given_up = queued.is_given_up();
            if given_up {
                volume.remove(Volume::message(queued.envelope.len() as u64));
            }
            !given_up
        });
        self.waiting -= before - queue.messages.len();
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

    /// The lane to `endpoint`, with more credit, if there is anybody to use it.
    pub(super) fn granted(
        &mut self,
        endpoint: &str,
        more: Volume,
        client: &TransportClient,
    ) -> Option<usize> {
        let place = *self.by_endpoint.get(endpoint)?;
        self.lanes.get_mut(place)?.credit.put(more);
        (!self.forget_unused(place, Some(client))).then_some(place)
    }

    /// Removes a lane that nobody uses if it differs in nothing from a new one. Credit used or gained counts as long as
    /// the connection; only where there are many lanes, it is given back.
    fn forget_unused(&mut self, place: usize, client: Option<&TransportClient>) -> bool {
        let Some(queue) = self.lanes.get(place) else { return false };
        let unused = queue.refs == 0 && queue.messages.is_empty();
        let forgone = || self.lanes.len() > KEPT && client.is_some_and(|client| queue.forgo(client));
        let forgotten = unused && (queue.credit == Credit::new() || forgone());
        if forgotten {
            let queue = self.lanes.remove(place);
            self.by_endpoint.remove(&queue.endpoint);
        }
        forgotten
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.lanes.len()
    }

    /// There is no connection any more, and with it no credit; takes out what waits.
    pub(super) fn reset(&mut self) -> Unsent {
        let mut unsent = Vec::new();
        for (_, queue) in &mut self.lanes {
            unsent.extend(queue.messages.drain(..));
            queue.volume = Volume::default();
            queue.credit = Credit::new();
            queue.room.freed();
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
    /// Gives credit back; false if that cannot be done now. What was sent is ahead of the notice, and nothing else is sent
    /// while nobody uses the lane.
    fn forgo(&self, client: &TransportClient) -> bool {
        let notice = || Notice::Forgo(proto::Forgo { endpoint: self.endpoint.to_string() });
        self.credit.covers_a_new_one() && client.send(wire::notice(notice())).is_ok()
    }

    fn pump(&mut self, client: &TransportClient) -> bool {
        while self.credit.allows() {
            let Some(queued) = self.messages.pop_front() else { break };
            let bytes = queued.envelope.len();
            if !queued.is_given_up() {
                if let Some(queued) = queued.send(client) {
                    self.messages.push_front(queued);
                    return false;
                }
                self.credit.take(bytes);
            }
            self.volume.remove(Volume::message(bytes as u64));
            self.room.freed();
        }
        true
    }
}

impl Queued {
    /// Whether nobody waits for its answer any more.
    fn is_given_up(&self) -> bool {
        self.asker.as_ref().is_some_and(oneshot::Sender::is_closed)
    }

    /// Gives it back if the connection's write queue is full.
    fn send(self, client: &TransportClient) -> Option<Self> {
        let envelope = self.envelope.clone();
        match self.asker {
            Some(asker) => {
                let answer = client.send_rpc(envelope);
                if answer.pending().is_none() && client.ready().now_or_never().is_none() {
                    return Some(Self { asker: Some(asker), ..self });
                }
                let _ = asker.send(Ok(answer));
            }
            None => match client.send(envelope) {
                Err(full) if full.kind() == TransportErrorKind::Limit => return Some(self),
                Err(error) => tracing::warn!(%error, "a one-way message was lost"),
                Ok(()) => {}
            },
        }
        None
    }
}

impl Unsent {
    /// Tells how many there were.
    pub(super) fn fail(self, error: &RpcError) -> u64 {
        let count = self.0.len() as u64;
        let mut one_way = 0_u64;
        for queued in self.0 {
            match queued.asker {
                Some(asker) => drop(asker.send(Err(error.clone()))),
                None => one_way += 1,
            }
        }
        if one_way > 0 {
            tracing::warn!(%error, messages = one_way, "one-way messages were lost");
        }
        count
    }
}

impl Outboxes {
    /// The lane of `outbox` to `endpoint`.
    pub(crate) fn lane(self: &Arc<Self>, outbox: Arc<Outbox>, endpoint: &str) -> Lane {
        let mut state = outbox.state.lock();
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
        let room = Arc::clone(&queue.room);
        drop(state);
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
                let queue = &mut state.lanes.lanes[self.place];
                if queue.messages.is_empty() && queue.credit.allows() {
                    queue.credit.take(envelope.len());
                    return Ok(Some(client.clone()));
                }
            }
            Phase::Idle | Phase::Connecting => {}
        }
        let full = |lanes: &Lanes| !lanes.lanes[self.place].volume.fits(self.all.limits);
        if full(&state.lanes) {
            state.lanes.forget_given_up(self.place);
        }
        if full(&state.lanes) {
            return Err(self.full());
        }
        let queue = &mut state.lanes.lanes[self.place];
        queue.volume.add(Volume::message(envelope.len() as u64));
        queue.messages.push_back(queued());
        if state.lanes.waiting == 0 {
            state.lanes.alive = Some(Arc::clone(&self.all));
        }
        state.lanes.waiting += 1;
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
            state.lanes.lanes[self.place].credit.put(Volume::message(envelope.len() as u64));
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
        if !state.lanes.lanes[self.place].volume.fits(self.all.limits) && !self.room.has_given_up() {
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
            self.put_back(&envelope, &client);
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
        let queue = &mut state.lanes.lanes[self.place];
        queue.refs -= 1;
        state.lanes.forget_unused(self.place, state.phase.connection());
    }
}
