//! The state under the lock of an inbox: its queue, its counts, and why it stopped.

use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::task::Waker;

use foldhash::HashMap;
use tokio::time::Instant;

use super::item::InboxItem;
use crate::ask::HandlerKey;
use crate::limits::Volume;
use crate::message_metadata::MessageMetadata;
use crate::sync::Notify;

pub(super) struct InboxState<M> {
    pub(super) queue: VecDeque<InboxItem<M>>,
    /// The volume of all messages that are queued or being handled.
    pub(super) held: Volume,
    /// The waker of the message loop while that waits for an item.
    pub(super) parked_loop: Option<Waker>,
    /// The number of queued [`ConnectionEvent::Undelivered`](super::ConnectionEvent).
    pub(super) undelivered: u16,
    /// The number of accepted messages that are not in the queue yet.
    pub(super) reserved: u32,
    /// Set when the inbox no longer accepts messages.
    pub(super) stop_cause: Option<StopCause>,
    /// Is true if [`InboxItem::Stop`] is to be queued once no message is reserved.
    pub(super) is_stop_due: bool,
    /// The loop has ended.
    pub(super) is_closed: bool,
    /// The endpoint's `on_stop` has returned.
    pub(super) has_stopped: bool,
    pub(super) counts: MessageCounts,
    /// Senders that wait for capacity. `None` while there are none.
    pub(super) capacity_waiters: Option<Arc<Notify>>,
    /// Handlers of this endpoint that wait for capacity, with the number of their waits.
    waiting_handlers: Option<Box<HashMap<HandlerKey, usize>>>,
    /// When the queue became non-empty while the loop was busy.
    pub(super) queued_since: Option<Instant>,
    /// When the first item of the current batch was queued behind other work, or when the first
    /// handler of the batch that awaited began.
    pub(super) busy_since: Option<Instant>,
}

/// Counts of messages by outcome, since the endpoint's registration.
#[derive(Clone, Copy, Default)]
pub(super) struct MessageCounts {
    pub(super) handled: u64,
    /// The number of messages in `handled` whose handler failed.
    pub(super) failed: u64,
    /// Rejected by a full inbox.
    pub(super) rejected: u64,
    pub(super) dropped: u64,
    pub(super) expired: u64,
    pub(super) rejected_after_stop: u64,
}

/// Counts the fates of an endpoint's messages, for the report of a shutdown.
pub(crate) struct StopCounts {
    pub(crate) handled: u64,
    pub(crate) rejected_after_stop: u64,
    /// Messages that are queued or being handled.
    pub(crate) held: u64,
    /// Is true if `on_stop` has returned.
    pub(crate) has_stopped: bool,
}

/// Why an inbox accepts no more messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopCause {
    /// The endpoint was stopped.
    Endpoint,
    /// The environment was shut down.
    Env,
    /// The task of the loop was dropped, for example by a shutdown of its runtime.
    Runtime,
}

impl<M> InboxState<M> {
    pub(super) fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            held: Volume::default(),
            parked_loop: None,
            undelivered: 0,
            reserved: 0,
            stop_cause: None,
            is_stop_due: false,
            is_closed: false,
            has_stopped: false,
            counts: MessageCounts::default(),
            capacity_waiters: None,
            waiting_handlers: None,
            queued_since: None,
            busy_since: None,
        }
    }

    /// Takes the senders that wait for capacity, if they are to be notified.
    ///
    /// While the loop is busy, they are notified when half of the capacity is free. Otherwise they
    /// and the loop would wake each other every few messages.
    pub(super) fn take_capacity_waiters(
        &mut self,
        limit: Volume,
        is_loop_busy: bool,
    ) -> Option<Arc<Notify>> {
        let limit = if is_loop_busy { limit.half() } else { limit };
        let is_blocked = self.is_blocked_by_handlers();
        self.capacity_waiters.take_if(|_| is_blocked || self.held.is_below(limit))
    }

    /// Returns whether every message that the inbox holds is in a handler that waits for capacity.
    ///
    /// Then no capacity is released before one of these handlers stops waiting.
    pub(super) fn is_blocked_by_handlers(&self) -> bool {
        let waiting = self.waiting_handlers.as_ref();
        waiting.is_some_and(|waiting| waiting.len() as u64 >= self.held.messages)
    }

    pub(super) fn add_waiting_handler(&mut self, handler: HandlerKey) {
        *self.waiting_handlers.get_or_insert_default().entry(handler).or_default() += 1;
    }

    pub(super) fn remove_waiting_handler(&mut self, handler: HandlerKey) {
        let Some(waiting) = &mut self.waiting_handlers else { return };
        if let Entry::Occupied(mut waits) = waiting.entry(handler) {
            *waits.get_mut() -= 1;
            if *waits.get() == 0 {
                waits.remove();
            }
        }
        self.waiting_handlers.take_if(|waiting| waiting.is_empty());
    }

    /// Queues [`InboxItem::Stop`] if it is due. Returns the parked loop, which must be woken then.
    pub(super) fn push_due_stop(&mut self) -> Option<Waker> {
        if !self.is_stop_due || self.reserved > 0 {
            return None;
        }
        self.is_stop_due = false;
        self.queue.push_back(InboxItem::Stop);
        self.parked_loop.take()
    }

    /// Takes out the oldest queued message.
    pub(super) fn take_oldest(&mut self) -> Option<(M, MessageMetadata)> {
        let index = self.queue.iter().position(|item| matches!(item, InboxItem::Message { .. }))?;
        match self.queue.remove(index)? {
            InboxItem::Message { message, metadata } => Some((message, metadata)),
            InboxItem::Event(..) | InboxItem::Stop => None,
        }
    }
}
