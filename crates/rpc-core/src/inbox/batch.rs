//! The items that a message loop has taken out of its inbox together.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::state::{InboxState, MessageCounts};
use super::{Inbox, InboxItem, StopCause};
use crate::address::RpcEndpointAddress;
use crate::ask::reject_message;
use crate::error::{ErrorKind, RpcError};
use crate::limits::Volume;
use crate::message_metadata::MessageMetadata;
use crate::peer::ReleasedVolume;
use crate::sync::MutexGuard;

/// One in 16 of the handlers that complete in one poll is measured.
const SAMPLE_INTERVAL: u64 = 16;

/// The items that a loop has taken and not handled yet, and the accounting of handled messages.
///
/// Dropping it fails the asks that are left.
pub(crate) struct Batch<'a, M> {
    items: VecDeque<InboxItem<M>>,
    /// The number of handled messages that still count in the inbox.
    unreleased: usize,
    /// The next three belong to these messages.
    counts: MessageCounts,
    local_volume: Volume,
    remote_volume: ReleasedVolume,
    /// Handled messages are released at the latest when there are this many.
    release_interval: usize,
    /// The number of messages so far, for sampling.
    taken: u64,
    inbox: &'a Inbox<M>,
}

impl<'a, M> Batch<'a, M> {
    pub(crate) fn new(inbox: &'a Inbox<M>) -> Self {
        Self {
            items: VecDeque::new(),
            unreleased: 0,
            counts: MessageCounts::default(),
            local_volume: Volume::default(),
            remote_volume: ReleasedVolume::default(),
            release_interval: (inbox.conf.limit.messages / 8).clamp(1, 64) as usize,
            taken: 0,
            inbox,
        }
    }

    /// Returns the next item. Skips asks that were cancelled or have expired.
    pub(crate) fn pop(&mut self) -> Option<InboxItem<M>> {
        // Checked in place, because items are large.
        while let Some(InboxItem::Message { metadata, .. }) = self.items.front()
            && !metadata.is_pending()
        {
            self.discard_expired();
        }
        self.items.pop_front()
    }

    #[cold]
    fn discard_expired(&mut self) {
        if let Some(InboxItem::Message { message, metadata }) = self.items.pop_front() {
            self.counts.expired += 1;
            reject_message(metadata.ask_id(), message, &timeout_error(self.inbox.address()));
            self.add_unreleased(metadata);
        }
    }

    /// Accounts for a message whose handler has completed.
    pub(crate) fn on_handled(&mut self, metadata: MessageMetadata, has_failed: bool) {
        self.counts.handled += 1;
        self.counts.failed += u64::from(has_failed);
        self.add_unreleased(metadata);
    }

    fn add_unreleased(&mut self, metadata: MessageMetadata) {
        self.unreleased += 1;
        match metadata.permit {
            Some(permit) => permit.release_with(&mut self.remote_volume),
            None => self.local_volume.add(Volume::message(size_of::<M>() as u64)),
        }
        if self.unreleased >= self.release_interval {
            self.release_handled(self.inbox.state.lock(), true);
        }
    }

    /// Returns the capacity and credit of the handled messages.
    ///
    /// Runs at the latest before the loop waits; `is_loop_busy` is false then.
    fn release_handled(&mut self, mut state: MutexGuard<'_, InboxState<M>>, is_loop_busy: bool) {
        if self.unreleased > 0 {
            self.unreleased = 0;
            let MessageCounts { handled, failed, expired, .. } = std::mem::take(&mut self.counts);
            state.counts.handled += handled;
            state.counts.failed += failed;
            state.counts.expired += expired;
            state.held.remove(std::mem::take(&mut self.local_volume));
            state.held.remove(self.remote_volume.total());
        }
        let waiters = state.take_capacity_waiters(self.inbox.conf.limit, is_loop_busy);
        drop(state);
        if let Some(waiters) = waiters {
            waiters.notify_waiters();
        }
        self.remote_volume.return_credit();
    }

    /// Runs when a handler of the loop, started at `since`, awaits.
    pub(crate) fn on_pending(&mut self, since: Instant) {
        self.release_handled(self.inbox.state.lock(), false);
        self.inbox.state.lock().busy_since.get_or_insert(since);
    }

    /// Returns whether to measure the next handler even if it completes in one poll.
    pub(crate) fn is_sampled(&mut self) -> bool {
        self.taken += 1;
        self.taken % SAMPLE_INTERVAL == 1
    }

    /// Takes all queued items, when the previous ones are handled. False if there are none.
    pub(crate) fn refill(&mut self) -> bool {
        // Makes the buffer begin at index 0 again, where its memory is in the cache.
        self.items.clear();
        let mut state = self.inbox.state.lock();
        std::mem::swap(&mut state.queue, &mut self.items);
        state.undelivered = 0;
        state.busy_since = state.queued_since.take();
        self.taken = state.counts.handled + self.counts.handled;
        self.release_handled(state, !self.items.is_empty());
        !self.items.is_empty()
    }

    /// Returns the empty buffer, to be reused.
    pub(crate) fn into_buffer(mut self) -> VecDeque<InboxItem<M>> {
        std::mem::take(&mut self.items)
    }
}

impl<M> Drop for Batch<'_, M> {
    fn drop(&mut self) {
        if self.unreleased > 0 {
            self.release_handled(self.inbox.state.lock(), false);
        }
        if !self.items.is_empty() {
            // The loop was dropped. The inbox closes before the items fail, so that no later
            // message of their senders is accepted.
            self.inbox.close_and_fail();
            self.inbox.fail_items(std::mem::take(&mut self.items), StopCause::Runtime);
        }
    }
}

fn timeout_error(endpoint: &RpcEndpointAddress) -> RpcError {
    let text = format!("the ask was cancelled or expired in the inbox of {endpoint}");
    RpcError::new(ErrorKind::Timeout, text).with_peer(endpoint)
}
