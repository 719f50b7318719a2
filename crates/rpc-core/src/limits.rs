//! How much may wait where, and what happens beyond.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::credit::{Volume, Windows};

/// What an endpoint's inbox does with a message that does not fit.
///
/// Senders across the network are slowed down before it comes to that (see the crate's documentation, "Limits").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Overflow {
    /// The new message is refused: a send gives it back, an ask fails with a retryable error, and the sender of a
    /// one-way message in another environment is told by `on_undelivered`.
    #[default]
    Refuse,
    /// The message that has waited longest makes room. Its asker, if it has one, gets the error.
    DropOldest,
}

/// What one inbox holds at most, and what its endpoint is watched for. Most inboxes of an environment share one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InboxConf {
    pub(crate) limit: Volume,
    pub(crate) overflow: Overflow,
    /// A message whose handling takes longer is worth a warning.
    pub(crate) slow: Duration,
    pub(crate) windows: Windows,
}

impl InboxConf {
    pub(crate) fn new(limit: Volume, overflow: Overflow, slow: Duration) -> Self {
        Self { limit, overflow, slow, windows: Windows::of(limit) }
    }

    /// Why something does not fit, for error texts.
    pub(crate) fn limit_text(&self) -> String {
        let Volume { messages, bytes } = self.limit;
        format!(
            "it holds {messages} messages (spark.rpc.inbox.maxMessages) and {bytes} bytes (spark.rpc.inbox.maxBytes)"
        )
    }
}

/// Bytes that all inboxes of an environment share, for messages from the network.
#[derive(Debug)]
pub(crate) struct Budget {
    used: AtomicU64,
    limit: u64,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Self {
        Self { used: AtomicU64::new(0), limit }
    }

    /// Takes `bytes` unless all is used up; the last message may overdraw it.
    pub(crate) fn take(&self, bytes: u64) -> bool {
        if self.used.fetch_add(bytes, Ordering::Relaxed) < self.limit {
            return true;
        }
        self.put_back(bytes);
        false
    }

    pub(crate) fn put_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}
