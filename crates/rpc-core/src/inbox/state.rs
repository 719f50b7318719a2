//! The state under the lock of an inbox: its queue, and counts.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use tokio::time::Instant;

use super::{InboxItem, StopCause};
use crate::limits::Volume;
use crate::message_metadata::MessageMetadata;
use crate::sync::Notify;

pub(super) struct InboxState<M> {
    pub(super) queue: VecDeque<InboxItem<M>>,
    /// Of messages, queued or in hand.
    pub(super) held: Volume,
    /// The loop, if it waits for something to come.
    pub(super) parked: Option<Waker>,
    /// How many [`ConnectionEvent::Undelivered`] are in the queue.
    pub(super) undelivered: u16,
    pub(super) closed: Option<StopCause>,
    pub(super) ended: bool,
    pub(super) counts: MessageCounts,
    /// Those who wait for room, if anybody does.
    pub(super) room_awaited: Option<Arc<Notify>>,
    /// Since when the queue has not been empty while the loop was busy.
    pub(super) queued_since: Option<Instant>,
    /// Since when what the loop has in hand keeps it busy, as far as is known.
    pub(super) in_hand_since: Option<Instant>,
}

/// What has become of messages.
#[derive(Clone, Copy, Default)]
pub(super) struct MessageCounts {
    pub(super) handled: u64,
    pub(super) failed: u64,
    pub(super) refused: u64,
    pub(super) dropped: u64,
    pub(super) expired: u64,
    /// Came after the inbox was closed.
    pub(super) rejected_after_stop: u64,
}

impl<M> InboxState<M> {
    pub(super) fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            held: Volume::default(),
            parked: None,
            undelivered: 0,
            closed: None,
            ended: false,
            counts: MessageCounts::default(),
            room_awaited: None,
            queued_since: None,
            in_hand_since: None,
        }
    }

    /// Those who wait for room, if they are to be told. While the loop goes on they are told when
    /// half is free, so that they and the loop do not wake each other for every few messages.
    pub(super) fn has_capacity_for(&mut self, limit: Volume, goes_on: bool) -> Option<Arc<Notify>> {
        self.room_awaited.take_if(|_| self.held.fits(if goes_on { limit.half() } else { limit }))
    }

    /// Takes out the message that has waited longest.
    pub(super) fn take_oldest(&mut self) -> Option<(M, MessageMetadata)> {
        let place = self.queue.iter().position(|item| matches!(item, InboxItem::Message { .. }))?;
        match self.queue.remove(place)? {
            InboxItem::Message { message, metadata } => Some((message, metadata)),
            InboxItem::Event(_) | InboxItem::Stop => None,
        }
    }
}
