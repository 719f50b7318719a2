//! Capacity of an inbox that is reserved for a message before the message is built.

use network_common::log_limited;
use tokio::time::Instant;

use super::state::InboxState;
use super::{Inbox, InboxItem};
use crate::ask::reject_message;
use crate::error::RpcError;
use crate::limits::{OverflowPolicy, Volume};
use crate::message_metadata::MessageMetadata;
use crate::sync::MutexGuard;

/// Capacity for one message, which is built without a lock because that is code of the application.
///
/// The endpoint does not stop before the message is queued or the reservation is dropped.
pub(super) struct Reservation<'a, M> {
    inbox: &'a Inbox<M>,
    volume: Volume,
}

impl<M> Inbox<M> {
    /// Reserves the capacity of a message.
    ///
    /// # Errors
    ///
    /// The endpoint has stopped; or the inbox is full, `is_covered` is false, and there is no
    /// message that the new one may replace.
    pub(super) fn reserve(
        &self,
        volume: Volume,
        is_covered: bool,
    ) -> Result<Reservation<'_, M>, RpcError> {
        let mut dropped = None;
        let mut state = self.state.lock();
        if let Some(cause) = state.stop_cause {
            state.counts.rejected_after_stop += 1;
            drop(state);
            return Err(self.stopped_error(cause));
        }
        if !state.held.is_below(self.conf.limit) && !is_covered {
            match self.conf.overflow {
                // `None` if all messages are being handled.
                OverflowPolicy::DropOldest => dropped = state.take_oldest(),
                OverflowPolicy::Reject => {}
            }
            if dropped.is_none() {
                state.counts.rejected += 1;
                drop(state);
                return Err(self.full_error());
            }
            state.counts.dropped += 1;
        }
        state.held.add(volume);
        state.reserved += 1;
        drop(state);
        let reserved = Reservation { inbox: self, volume };
        if let Some((message, metadata)) = dropped {
            self.reject_dropped(message, metadata);
        }
        Ok(reserved)
    }

    /// Queues a message that was accepted before the endpoint was stopped.
    #[cold]
    fn push_while_stopping(
        &self,
        mut state: MutexGuard<'_, InboxState<M>>,
        volume: Volume,
        message: M,
        metadata: MessageMetadata,
    ) {
        if let (true, Some(cause)) = (state.is_closed, state.stop_cause) {
            end(state, volume);
            return reject_message(metadata.ask_id(), message, &self.stopped_error(cause));
        }
        state.reserved -= 1;
        state.queue.push_back(InboxItem::Message { message, metadata });
        let parked = state.parked_loop.take();
        let parked = state.push_due_stop().or(parked);
        drop(state);
        if let Some(parked) = parked {
            parked.wake();
        }
    }

    #[cold]
    fn reject_dropped(&self, message: M, metadata: MessageMetadata) {
        log_limited!(
            |suppressed| tracing::warn!(suppressed, endpoint = %self.address(), "the inbox is full: dropped its oldest message")
        );
        reject_message(metadata.ask_id(), message, &self.full_error());
        self.state.lock().held.remove(Volume::message(metadata.bytes::<M>()));
    }
}

impl<M> Reservation<'_, M> {
    /// Queues the message. If the loop has ended meanwhile, the message is rejected.
    pub(super) fn push(self, message: M, metadata: MessageMetadata) {
        let (inbox, volume) = (self.inbox, self.volume);
        std::mem::forget(self);
        let mut state = inbox.state.lock();
        if state.stop_cause.is_some() {
            return inbox.push_while_stopping(state, volume, message, metadata);
        }
        state.reserved -= 1;
        let parked = state.parked_loop.take();
        // A parked loop handles the message at once, so the clock need not be read.
        if parked.is_none() && state.queue.is_empty() {
            state.queued_since = Some(Instant::now());
        }
        state.queue.push_back(InboxItem::Message { message, metadata });
        drop(state);
        if let Some(parked) = parked {
            parked.wake();
        }
    }
}

/// Ends a reservation without a message.
fn end<M>(mut state: MutexGuard<'_, InboxState<M>>, volume: Volume) {
    state.reserved -= 1;
    state.held.remove(volume);
    let parked = state.push_due_stop();
    drop(state);
    if let Some(parked) = parked {
        parked.wake();
    }
}

/// Runs if building the message panicked.
impl<M> Drop for Reservation<'_, M> {
    fn drop(&mut self) {
        end(self.inbox.state.lock(), self.volume);
    }
}
