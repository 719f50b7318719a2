//! The state under the lock of an inbox: its queue, its counts, and why it stopped.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use tokio::time::Instant;

use super::item::InboxItem;
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
    /// Set when the inbox no longer accepts messages.
    pub(super) stop_cause: Option<StopCause>,
    /// The endpoint's `on_stop` has returned.
    pub(super) has_stopped: bool,
    pub(super) counts: MessageCounts,
    /// Senders that wait for capacity. `None` while there are none.
    pub(super) capacity_waiters: Option<Arc<Notify>>,
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
            stop_cause: None,
            has_stopped: false,
            counts: MessageCounts::default(),
            capacity_waiters: None,
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
        self.capacity_waiters.take_if(|_| self.held.is_below(limit))
    }

    /// Takes out the oldest queued message.
    pub(super) fn take_oldest(&mut self) -> Option<(M, MessageMetadata)> {
        let index = self.queue.iter().position(|item| matches!(item, InboxItem::Message { .. }))?;
        match self.queue.remove(index)? {
            InboxItem::Message { message, metadata } => Some((message, metadata)),
            InboxItem::Event(_) | InboxItem::Stop => None,
        }
    }
}
