//! The queues of routes: messages that cannot be pushed to the connection yet.

use std::any::Any;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use network_common::TransportClient;
use tokio::time::Instant;

use super::connection::PeerConnection;
use super::route::{FlushOutcome, QueuedMessage, push_ask};
use super::route_table::RouteTable;
use crate::error::{ErrorKind, RpcError};
use crate::limits::Volume;
use crate::sync::Notify;
use crate::wire::EncodedMessage;

/// After this many failures to push a message, its route is flushed later.
const MAX_FAILURES: u32 = 3;

/// Returns the error of an ask whose deadline passed in the queue. Its caller has the same deadline.
#[cold]
fn unsent_error(connection: &PeerConnection) -> RpcError {
    let peer = connection.address();
    let text = format!("the deadline of the ask passed before it was sent to {peer}");
    RpcError::new(ErrorKind::Timeout, text).with_peer(peer)
}

impl RouteTable {
    /// Returns whether the queue of a route is full. Cancelled asks do not count.
    pub(super) fn is_full(&mut self, slot: usize, limits: Volume) -> bool {
        if !self.routes[slot].volume.is_below(limits) {
            self.remove_cancelled(slot);
        }
        !self.routes[slot].volume.is_below(limits)
    }

    /// Queues a message, and keeps `pool` until all queues are empty.
    pub(super) fn enqueue<P: Any + Send + Sync>(
        &mut self,
        slot: usize,
        queued: QueuedMessage,
        pool: &Arc<P>,
    ) {
        let route = &mut self.routes[slot];
        route.volume.add(Volume::message(queued.message.len() as u64));
        route.queue.push_back(queued);
        self.keep_alive.get_or_insert_with(|| Arc::clone(pool) as _);
        self.queued += 1;
    }

    /// Pushes the queued messages of one route, or of all, as far as numbers and credit allow.
    ///
    /// Returns false if the write queue of the connection is full before that.
    pub(super) fn flush(
        &mut self,
        slot: Option<usize>,
        connection: &Arc<PeerConnection>,
        outcome: &mut FlushOutcome,
    ) -> bool {
        if let Some(slot) = slot {
            return self.flush_route(slot, connection, outcome);
        }
        if self.queued == 0 {
            return true;
        }
        let slots: Vec<usize> = self.routes.iter().map(|(slot, _)| slot).collect();
        slots.into_iter().all(|slot| self.flush_route(slot, connection, outcome))
    }

    /// Pushes the queued messages of one route. See [`flush`](Self::flush).
    fn flush_route(
        &mut self,
        slot: usize,
        connection: &Arc<PeerConnection>,
        outcome: &mut FlushOutcome,
    ) -> bool {
        let mut failures = 0;
        while let Some(queued) = self.routes.get(slot).and_then(|route| route.queue.front()) {
            let (is_cancelled, incarnation) = (queued.is_cancelled(), queued.incarnation);
            let can_push = if is_cancelled {
                Ok(true)
            } else if queued.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                Err(unsent_error(connection))
            } else {
                self.can_push(slot, connection, incarnation, true)
            };
            if matches!(can_push, Ok(false)) {
                break;
            }
            let client = &connection.client;
            match client.ready().now_or_never() {
                Some(Ok(())) => {}
                // `Peer::on_disconnected` fails the queues.
                Some(Err(_)) => break,
                None => return false,
            }
            let Some(queued) = self.pop(slot) else { break };
            match can_push {
                Err(error) => outcome.unsent.push((queued, Some(error))),
                Ok(_) if is_cancelled => {}
                Ok(_) => {
                    if let Err(queued) = self.push_queued(slot, queued, client, outcome) {
                        self.put_back(slot, queued);
                        // The write queue has become full, or the connection has ended. A message
                        // that fails for another reason must not be pushed again without end.
                        failures += 1;
                        if failures > MAX_FAILURES {
                            return false;
                        }
                        continue;
                    }
                }
            }
            let capacity = &self.routes[slot].capacity;
            if !outcome.emptied.last().is_some_and(|last| Arc::ptr_eq(last, capacity)) {
                outcome.emptied.push(Arc::clone(capacity));
            }
        }
        self.remove_unused(slot);
        true
    }

    /// Returns the pool that the queues kept alive, if they are empty.
    ///
    /// The caller drops it without a lock, because its connections may be dropped with it.
    pub(super) fn release_keep_alive(&mut self) -> Option<Arc<dyn Any + Send + Sync>> {
        self.keep_alive.take_if(|_| self.queued == 0)
    }

    /// Removes and returns the first message of a queue.
    fn pop(&mut self, slot: usize) -> Option<QueuedMessage> {
        let route = &mut self.routes[slot];
        let queued = route.queue.pop_front()?;
        route.volume.remove(Volume::message(queued.message.len() as u64));
        self.queued -= 1;
        Some(queued)
    }

    /// Reverts [`pop`](Self::pop).
    fn put_back(&mut self, slot: usize, queued: QueuedMessage) {
        let route = &mut self.routes[slot];
        route.volume.add(Volume::message(queued.message.len() as u64));
        route.queue.push_front(queued);
        self.queued += 1;
    }

    /// Pushes a message from a queue. Returns it as the error if it was not sent.
    fn push_queued(
        &mut self,
        slot: usize,
        queued: QueuedMessage,
        client: &TransportClient,
        outcome: &mut FlushOutcome,
    ) -> Result<(), QueuedMessage> {
        let QueuedMessage { mut message, incarnation, caller, deadline } = queued;
        let (len, blocked_by) = (message.len(), std::mem::take(&mut self.routes[slot].blocked_by));
        if blocked_by != 0 {
            message.set_blocked_by(blocked_by);
        }
        if let Some(deadline) = deadline {
            message.set_timeout(deadline.saturating_duration_since(Instant::now()));
        }
        let mut kept = Bytes::new();
        let (future, is_sent) = self.push(slot, message, |frame| {
            kept = frame.clone();
            let (future, is_sent) = match caller {
                Some(_) => {
                    let (future, is_sent) = push_ask(client, frame);
                    (Some(future), is_sent)
                }
                None => (None, client.send(frame).is_ok()),
            };
            ((future, is_sent), is_sent)
        });
        if is_sent {
            outcome.sent.extend(caller.zip(future));
            return Ok(());
        }
        self.routes[slot].blocked_by = blocked_by;
        let message = EncodedMessage::restore(kept, len, deadline.is_some());
        Err(QueuedMessage { message, incarnation, caller, deadline })
    }

    /// Removes cancelled asks from a queue.
    fn remove_cancelled(&mut self, slot: usize) {
        let route = &mut self.routes[slot];
        if !std::mem::take(&mut route.has_cancelled) {
            return;
        }
        let (before, volume) = (route.queue.len(), &mut route.volume);
        route.queue.retain(|queued| {
            let is_cancelled = queued.is_cancelled();
            if is_cancelled {
                volume.remove(Volume::message(queued.message.len() as u64));
            }
            !is_cancelled
        });
        self.queued -= before - route.queue.len();
    }

    /// Removes cancelled asks from all queues.
    pub(super) fn remove_all_cancelled(&mut self) {
        let slots: Vec<usize> = self.routes.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            self.remove_cancelled(slot);
            self.remove_unused(slot);
        }
    }

    /// Handles the cancellation of an ask in a queue.
    ///
    /// Returns whether it was the first of its queue, so that others can be pushed now, and what
    /// the caller notifies of free capacity.
    pub(super) fn on_cancelled(&mut self, slot: usize) -> Option<(bool, Arc<Notify>)> {
        let route = self.routes.get_mut(slot)?;
        route.has_cancelled = true;
        let capacity = Arc::clone(&route.capacity);
        let before = route.queue.len();
        while self.routes[slot].queue.front().is_some_and(QueuedMessage::is_cancelled) {
            self.pop(slot);
        }
        let is_unblocked = self.routes[slot].queue.len() < before;
        self.remove_unused(slot);
        Some((is_unblocked, capacity))
    }

    /// The volume of all queues.
    pub(super) fn volume(&self) -> Volume {
        let mut all = Volume::default();
        self.routes.iter().for_each(|(_, route)| all.add(route.volume));
        all
    }
}
