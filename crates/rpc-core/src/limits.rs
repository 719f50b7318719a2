//! Limits of queues, and what happens when they are reached.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number of messages, and of the bytes of their frames' bodies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Volume {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

impl Volume {
    pub(crate) const fn new(messages: u64, bytes: u64) -> Self {
        Self { messages, bytes }
    }

    pub(crate) const fn message(bytes: u64) -> Self {
        Self { messages: 1, bytes }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.messages = self.messages.saturating_add(other.messages);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }

    pub(crate) fn remove(&mut self, other: Self) {
        *self = self.minus(other);
    }

    /// The difference, or 0 where `other` is larger.
    pub(crate) fn minus(self, other: Self) -> Self {
        Self {
            messages: self.messages.saturating_sub(other.messages),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }

    pub(crate) fn half(self) -> Self {
        Self { messages: self.messages.div_ceil(2), bytes: self.bytes.div_ceil(2) }
    }

    /// Whether one more message fits: both numbers are below those of `limit`.
    pub(crate) fn fits(self, limit: Self) -> bool {
        self.messages < limit.messages && self.bytes < limit.bytes
    }
}

/// How large the windows of the routes to one inbox may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CreditLimits {
    /// The window of a new route.
    pub(crate) initial: Volume,
    /// Up to here a window grows while the inbox has capacity.
    pub(crate) usual: Volume,
    /// Beyond `usual` a window grows, up to a fair share of this, while its sender waits for
    /// credit and the endpoint keeps up.
    pub(crate) inbox: Volume,
}

impl CreditLimits {
    /// For an inbox that holds `limit`.
    pub(crate) fn new(limit: Volume) -> Self {
        // A sixteenth leaves capacity for other senders. The bounds keep a burst of new
        // connections small, and let a fast sender on a near link run without waiting.
        let window = |limit: u64, initial: u64, usual: u64| {
            let initial = (limit / 16).clamp(1, initial);
            (initial, (limit / 16).clamp(initial, usual))
        };
        let messages = window(limit.messages, 64, 4096);
        let bytes = window(limit.bytes, 64 << 10, 4 << 20);
        Self {
            initial: Volume::new(messages.0, bytes.0),
            usual: Volume::new(messages.1, bytes.1),
            inbox: limit,
        }
    }
}

/// What an endpoint's inbox does with a message that does not fit.
///
/// Senders across the network are slowed down before it comes to that (see the crate's
/// documentation, "Limits").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OverflowPolicy {
    /// The new message is refused: a send gives it back, an ask fails with a retryable error, and
    /// the sender of a one-way message in another environment is told by `on_undelivered`.
    #[default]
    Reject,
    /// The message that has waited longest makes room. Its asker, if it has one, gets the error.
    DropOldest,
}

/// What one inbox holds at most, and what its endpoint is watched for. Most inboxes of an
/// environment share one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InboxConf {
    pub(crate) limit: Volume,
    pub(crate) overflow: OverflowPolicy,
    /// A message whose handling takes longer is worth a warning.
    pub(crate) slow: Duration,
    pub(crate) credit: CreditLimits,
}

impl InboxConf {
    pub(crate) fn new(limit: Volume, overflow: OverflowPolicy, slow: Duration) -> Self {
        Self { limit, overflow, slow, credit: CreditLimits::new(limit) }
    }

    /// Why something does not fit, for error texts.
    pub(crate) fn limit_text(&self) -> String {
        let Volume { messages, bytes } = self.limit;
        format!(
            "it holds {messages} messages (spark.rpc.inbox.maxMessages) and {bytes} bytes (spark.rpc.inbox.maxBytes)"
        )
    }
}

/// A number of bytes that many owners share: those of messages from the network in all inboxes
/// of an environment, and of the names of routes.
#[derive(Debug)]
pub(crate) struct ByteBudget {
    used: AtomicU64,
    pub(crate) limit: u64,
}

impl ByteBudget {
    pub(crate) fn new(limit: u64) -> Self {
        Self { used: AtomicU64::new(0), limit }
    }

    /// Reserves `bytes` unless all is used. The last reservation may exceed the limit, so that
    /// one message of any size fits.
    pub(crate) fn try_reserve(&self, bytes: u64) -> bool {
        if self.used.fetch_add(bytes, Ordering::Relaxed) < self.limit {
            return true;
        }
        self.release(bytes);
        false
    }

    /// Reserves `bytes` also beyond the limit.
    pub(crate) fn reserve(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}
