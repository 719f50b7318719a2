//! Permits of received messages, which return credit and budget once a message has been handled.

use std::sync::Arc;

use super::connection::{MessagePermit, PeerConnection, RouteKey};
use crate::limits::Volume;

impl MessagePermit {
    /// Creates the permit of a message of `bytes` bytes that both counts already include.
    pub(super) fn new(
        connection: Arc<PeerConnection>,
        key: RouteKey,
        bytes: u64,
        is_covered: bool,
    ) -> Self {
        Self { connection, key, bytes: bytes as u32, is_covered, holds_credit: true }
    }

    /// The number of bytes of the frame.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.into()
    }

    /// Moves the credit of a handled message to `released`, which returns it with that of others.
    pub(crate) fn release_with(mut self, released: &mut ReleasedVolume) {
        self.holds_credit = false;
        released.add(&self);
    }
}

impl Drop for MessagePermit {
    fn drop(&mut self) {
        self.connection.shared.budget.release(self.bytes());
        if self.holds_credit {
            self.connection.release(self.key, Volume::message(self.bytes()));
        }
    }
}

/// The volume of handled messages, by route.
///
/// Consecutive messages of a route share one entry.
#[derive(Default)]
pub(crate) struct ReleasedVolume(Vec<(Arc<PeerConnection>, RouteKey, Volume)>);

impl ReleasedVolume {
    fn add(&mut self, permit: &MessagePermit) {
        let volume = Volume::message(permit.bytes());
        match self.0.last_mut() {
            Some((connection, key, sum))
                if *key == permit.key && Arc::ptr_eq(connection, &permit.connection) =>
            {
                sum.add(volume);
            }
            _ => self.0.push((Arc::clone(&permit.connection), permit.key, volume)),
        }
    }

    /// The volume of all entries.
    pub(crate) fn total(&self) -> Volume {
        let mut total = Volume::default();
        self.0.iter().for_each(|(_, _, volume)| total.add(*volume));
        total
    }

    /// Returns the credit to the senders, and removes all entries.
    pub(crate) fn return_credit(&mut self) {
        for (connection, key, volume) in self.0.drain(..) {
            connection.release(key, volume);
        }
    }
}
