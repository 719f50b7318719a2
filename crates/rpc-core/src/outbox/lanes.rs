//! What waits to be sent to one other environment: a queue for each endpoint there, with the credit for it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use network_common::{ErrorKind as TransportErrorKind, TransportClient};
use slab::Slab;
use tokio::sync::oneshot;

use super::Outboxes;
use crate::credit::{Credit, Volume};
use crate::error::RpcError;
use crate::post::{Dispatched, Room};
use crate::wire::proto::notice::Notice;
use crate::wire::{self, proto};

/// Beyond so many lanes one that nobody uses is given up, with the credit it has.
const KEPT: usize = 64;

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

pub(super) struct Queued {
    envelope: Bytes,
    asker: Option<oneshot::Sender<Dispatched>>,
}

/// Messages that will not be sent. To be failed outside the lock.
pub(super) struct Unsent(Vec<Queued>);

impl Lanes {
    /// The place of the lane to `endpoint`, for one more ref.
    pub(super) fn open(&mut self, endpoint: &str) -> (usize, Arc<Room>) {
        let place = match self.by_endpoint.get(endpoint) {
            Some(place) => *place,
            None => {
                let endpoint: Arc<str> = endpoint.into();
                let place = self.lanes.insert(Queue {
                    endpoint: Arc::clone(&endpoint),
                    messages: VecDeque::new(),
                    volume: Volume::default(),
                    credit: Credit::new(),
                    refs: 0,
                    room: Arc::default(),
                });
                self.by_endpoint.insert(endpoint, place);
                place
            }
        };
        let queue = &mut self.lanes[place];
        queue.refs += 1;
        (place, Arc::clone(&queue.room))
    }

    /// A ref is gone. `client`: the connection there is.
    pub(super) fn close(&mut self, place: usize, client: Option<&TransportClient>) {
        self.lanes[place].refs -= 1;
        self.forget_unused(place, client);
    }

    /// Takes the credit for a message of so many bytes; false if it has to wait.
    pub(super) fn take_credit(&mut self, place: usize, bytes: usize) -> bool {
        let queue = &mut self.lanes[place];
        let goes = queue.messages.is_empty() && queue.credit.allows();
        if goes {
            queue.credit.take(bytes);
        }
        goes
    }

    /// What credit was taken for was not sent.
    pub(super) fn put_back(&mut self, place: usize, bytes: usize) {
        self.lanes[place].credit.put(Volume::message(bytes as u64));
    }

    pub(super) fn is_full(&self, place: usize, limits: Volume) -> bool {
        !self.lanes[place].volume.fits(limits)
    }

    /// Has a message wait; `all` lives until it is sent.
    pub(super) fn push(&mut self, place: usize, queued: Queued, all: &Arc<Outboxes>) {
        let queue = &mut self.lanes[place];
        queue.volume.add(Volume::message(queued.envelope.len() as u64));
        queue.messages.push_back(queued);
        if self.waiting == 0 {
            self.alive = Some(Arc::clone(all));
        }
        self.waiting += 1;
    }

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
    pub(super) fn forget_given_up(&mut self, place: usize) {
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
    /// `asker`: none for a one-way message.
    pub(super) fn new(envelope: &Bytes, asker: Option<oneshot::Sender<Dispatched>>) -> Self {
        // It may wait for long.
        Self { envelope: wire::apart(envelope), asker }
    }

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
    /// Tells how many there were, without those that nobody waits for any more.
    pub(super) fn fail(self, error: &RpcError) -> u64 {
        let (mut asks, mut one_way) = (0_u64, 0_u64);
        for queued in self.0 {
            match queued.asker {
                Some(asker) => asks += u64::from(asker.send(Err(error.clone())).is_ok()),
                None => one_way += 1,
            }
        }
        if one_way > 0 {
            tracing::warn!(%error, messages = one_way, "one-way messages were lost");
        }
        asks + one_way
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A full queue holds what it counts, not the memory that short envelopes share while they are sent.
    #[test]
    fn what_waits_keeps_no_more_than_itself() {
        for length in [0, 60, 2000] {
            let endpoint = "x".repeat(length);
            let envelope = wire::notice(Notice::Forgo(proto::Forgo { endpoint }));
            let Queued { envelope: waiting, .. } = Queued::new(&envelope, None);
            assert_eq!(waiting, envelope);
            drop(envelope);
            assert!(waiting.is_unique(), "{length}");
        }
    }
}
