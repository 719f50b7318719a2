//! Limits of queues: `Volume`, the limits of inboxes and credit windows, and shared limits of
//! bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use network_common::{BudgetShare, ByteBudget};

/// Messages from this size on are rejected while the budget of the process is exhausted.
const LARGE_MESSAGE: u64 = 64 << 10;

/// A number of messages and a number of bytes.
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

    /// Returns the difference; 0 where `other` is larger.
    pub(crate) fn minus(self, other: Self) -> Self {
        Self {
            messages: self.messages.saturating_sub(other.messages),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }

    /// Returns one half, rounded up.
    pub(crate) fn half(self) -> Self {
        Self { messages: self.messages.div_ceil(2), bytes: self.bytes.div_ceil(2) }
    }

    /// Returns whether both numbers are below `limit`, so that one more message is accepted.
    pub(crate) fn is_below(self, limit: Self) -> bool {
        self.messages < limit.messages && self.bytes < limit.bytes
    }
}

/// The sizes of the credit windows of the routes to one inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CreditLimits {
    /// The window of a new route.
    pub(crate) initial: Volume,
    /// A window grows up to this size while the inbox has capacity.
    pub(crate) usual: Volume,
    /// The limits of the inbox. A window grows up to a fair share of them while its sender waits
    /// for credit and the endpoint keeps up.
    pub(crate) inbox: Volume,
}

impl CreditLimits {
    /// Derives the windows from the limits of the inbox.
    pub(crate) fn new(limit: Volume) -> Self {
        // 1/16 leaves capacity for other senders. The bounds keep a burst of new connections
        // small, and are large enough for a fast sender in the same network.
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

/// The reaction of a full inbox to a new message.
///
/// Credit slows remote senders down before an inbox is full; see "Limits" in the [crate's
/// documentation](crate).
///
/// ```
/// use rpc_core::{EndpointOptions, OverflowPolicy};
///
/// // Only the latest 100 messages matter.
/// let options = EndpointOptions::new().max_messages(100).overflow(OverflowPolicy::DropOldest);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OverflowPolicy {
    /// Rejects the new message with [`ErrorKind::Limit`](crate::ErrorKind::Limit), retryable.
    ///
    /// A local `send` returns the message. An ask fails. The environment of a remote one-way
    /// message receives `on_undelivered`.
    #[default]
    Reject,
    /// Drops the oldest queued message and accepts the new one.
    ///
    /// If the dropped message is an ask, it fails with
    /// [`ErrorKind::Limit`](crate::ErrorKind::Limit). If all messages are being handled, the new
    /// message is rejected.
    DropOldest,
}

/// The settings of an inbox. Inboxes with the same settings share one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InboxConf {
    pub(crate) limit: Volume,
    pub(crate) overflow: OverflowPolicy,
    /// A handler that takes this long is logged as a warning.
    pub(crate) slow_threshold: Duration,
    pub(crate) credit: CreditLimits,
}

impl InboxConf {
    pub(crate) fn new(limit: Volume, overflow: OverflowPolicy, slow_threshold: Duration) -> Self {
        Self { limit, overflow, slow_threshold, credit: CreditLimits::new(limit) }
    }

    /// Describes the limits for error texts.
    pub(crate) fn limit_text(&self) -> String {
        let Volume { messages, bytes } = self.limit;
        format!(
            "the limits are {messages} messages (spark.rpc.inbox.maxMessages) and {bytes} bytes \
             (spark.rpc.inbox.maxBytes)"
        )
    }
}

/// A limit of bytes that many owners share.
///
/// An environment has one for the messages from the network and the events in all inboxes, and one
/// for routes.
///
/// The bytes also count in the budget of the process, whose limit applies, too.
#[derive(Debug)]
pub(crate) struct ByteLimit {
    used: AtomicU64,
    limit: u64,
    share: BudgetShare,
}

impl ByteLimit {
    pub(crate) fn new(limit: u64, process: &ByteBudget) -> Self {
        Self { used: AtomicU64::new(0), limit, share: process.share() }
    }

    /// Reserves `bytes` unless the limit is reached.
    ///
    /// The last reservation may exceed the limit, so that a large message can make progress; but
    /// not while the budget of the process is exhausted.
    pub(crate) fn try_reserve(&self, bytes: u64) -> bool {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        let process = self.share.budget();
        let is_below = before < self.limit && before < process.limit();
        if is_below && (bytes < LARGE_MESSAGE || !process.is_exhausted()) {
            self.share.update(before + bytes);
            return true;
        }
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        false
    }

    /// Reserves `bytes` even if that exceeds the limit.
    pub(crate) fn reserve(&self, bytes: u64) {
        self.share.update(self.used.fetch_add(bytes, Ordering::Relaxed) + bytes);
    }

    /// Reserves `bytes` as [`try_reserve`](Self::try_reserve) does, until the value is dropped.
    pub(crate) fn try_hold(budget: &Arc<Self>, bytes: u64) -> Option<ReservedBytes> {
        budget.try_reserve(bytes).then(|| ReservedBytes { budget: Arc::clone(budget), bytes })
    }

    /// Reserves `bytes` as [`reserve`](Self::reserve) does, until the value is dropped.
    pub(crate) fn hold(budget: &Arc<Self>, bytes: u64) -> ReservedBytes {
        budget.reserve(bytes);
        ReservedBytes { budget: Arc::clone(budget), bytes }
    }

    pub(crate) fn release(&self, bytes: u64) {
        self.share.update(self.used.fetch_sub(bytes, Ordering::Relaxed) - bytes);
    }

    /// Describes the limit that is exhausted, for error texts.
    pub(crate) fn limit_text(&self) -> String {
        let process = self.share.budget();
        if process.is_exhausted() || process.limit() < self.limit {
            let (held, limit) = (process.held(), process.limit());
            return format!(
                "{held} of {limit} bytes (spark.network.maxHeldBytes) are held for peers"
            );
        }
        format!(
            "they use all of the {} bytes that this environment reserves for them \
             (spark.rpc.inbox.maxTotalBytes)",
            self.limit
        )
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

/// Bytes of a budget, which are released when this is dropped.
#[derive(Debug)]
pub(crate) struct ReservedBytes {
    budget: Arc<ByteLimit>,
    bytes: u64,
}

impl Drop for ReservedBytes {
    fn drop(&mut self) {
        self.budget.release(self.bytes);
    }
}
