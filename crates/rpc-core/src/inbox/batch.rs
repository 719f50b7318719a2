//! What a loop has taken out of an inbox.

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

/// Of messages that do not wait, the handling of one in so many is measured.
const SAMPLE: u64 = 16;

/// What a loop has taken out and not handled yet. Dropped with the loop, it fails the askers in it.
pub(crate) struct Batch<'a, M> {
    items: VecDeque<InboxItem<M>>,
    /// Messages that have been handled and not yet been given back to the inbox.
    done: usize,
    counts: MessageCounts,
    /// Their volume: of this environment, and from other environments.
    local: Volume,
    remote: ReleasedVolume,
    /// Gives back when so many are handled.
    share: usize,
    /// Messages taken out so far, for sampling.
    taken: u64,
    inbox: &'a Inbox<M>,
}

impl<'a, M> Batch<'a, M> {
    pub(crate) fn new(inbox: &'a Inbox<M>) -> Self {
        let share = (inbox.conf.limit.messages / 8).clamp(1, 64) as usize;
        let (items, counts) = (VecDeque::new(), MessageCounts::default());
        let (local, remote) = (Volume::default(), ReleasedVolume::default());
        Self { items, done: 0, counts, local, remote, share, taken: 0, inbox }
    }

    /// The next message whose asker still waits, or the next event.
    pub(crate) fn pop(&mut self) -> Option<InboxItem<M>> {
        // Looked at where it lies: an item is large.
        while let Some(InboxItem::Message { metadata, .. }) = self.items.front()
            && !metadata.is_pending()
        {
            self.discard_expired();
        }
        self.items.pop_front()
    }

    /// Drops the next message, as its asker no longer waits.
    #[cold]
    fn discard_expired(&mut self) {
        if let Some(InboxItem::Message { message, metadata }) = self.items.pop_front() {
            self.counts.expired += 1;
            reject_message(metadata.ask_id(), message, &timeout_error(self.inbox.address()));
            self.on_done(metadata);
        }
    }

    /// A message has been handled.
    pub(crate) fn on_handled(&mut self, metadata: MessageMetadata, failed: bool) {
        self.counts.handled += 1;
        self.counts.failed += u64::from(failed);
        self.on_done(metadata);
    }

    fn on_done(&mut self, metadata: MessageMetadata) {
        self.done += 1;
        match metadata.permit {
            Some(permit) => permit.release_with(&mut self.remote),
            None => self.local.add(Volume::message(size_of::<M>() as u64)),
        }
        if self.done >= self.share {
            self.release_handled(self.inbox.state.lock(), true);
        }
    }

    /// Gives back what is handled: at the latest when the loop is about to wait for something, and
    /// not `goes_on`.
    fn release_handled(&mut self, mut state: MutexGuard<'_, InboxState<M>>, goes_on: bool) {
        if self.done > 0 {
            self.done = 0;
            let MessageCounts { handled, failed, expired, .. } = std::mem::take(&mut self.counts);
            state.counts.handled += handled;
            state.counts.failed += failed;
            state.counts.expired += expired;
            state.held.remove(std::mem::take(&mut self.local));
            state.held.remove(self.remote.total());
        }
        let room = state.has_capacity_for(self.inbox.conf.limit, goes_on);
        drop(state);
        if let Some(room) = room {
            room.notify_waiters();
        }
        self.remote.return_credit();
    }

    /// The loop begins to wait for what it has in hand.
    pub(crate) fn on_pending(&mut self, since: Instant) {
        self.release_handled(self.inbox.state.lock(), false);
        self.inbox.state.lock().in_hand_since.get_or_insert(since);
    }

    /// Whether the handling of the next message is to be measured also if it does not wait.
    pub(crate) fn sample(&mut self) -> bool {
        self.taken += 1;
        self.taken % SAMPLE == 1
    }

    /// When all is handled: takes out what has come since. False if that is nothing.
    pub(crate) fn refill(&mut self) -> bool {
        // Begins at the front again, where the memory is warm.
        self.items.clear();
        let mut state = self.inbox.state.lock();
        std::mem::swap(&mut state.queue, &mut self.items);
        state.undelivered = 0;
        state.in_hand_since = state.queued_since.take();
        self.taken = state.counts.handled + self.counts.handled;
        self.release_handled(state, !self.items.is_empty());
        !self.items.is_empty()
    }

    /// The buffer, to go on with.
    pub(crate) fn into_buffer(mut self) -> VecDeque<InboxItem<M>> {
        std::mem::take(&mut self.items)
    }
}

impl<M> Drop for Batch<'_, M> {
    fn drop(&mut self) {
        if self.done > 0 {
            self.release_handled(self.inbox.state.lock(), false);
        }
        if !self.items.is_empty() {
            // The loop was dropped. Before they fail: no sender may slip in behind.
            self.inbox.close_and_fail();
            self.inbox.discard(std::mem::take(&mut self.items), StopCause::RuntimeStopped);
        }
    }
}

/// What an asker would be told that no longer listens.
fn timeout_error(endpoint: &RpcEndpointAddress) -> RpcError {
    let text = format!("the time of the request was over before its turn came at {endpoint}");
    RpcError::new(ErrorKind::Timeout, text).with_peer(endpoint)
}
