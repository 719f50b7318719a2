//! [`ReadAhead`]: how many chunks a fetch may request before its reader takes them.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// The number of chunks that are requested before the first of them has arrived.
///
/// Each chunk that arrives permits one more, so that the number doubles with each round trip.
const FIRST_CHUNKS: usize = 8;
/// The number of chunks that are requested and have not arrived.
///
/// Spark requests all at once. A limit keeps the table of pending requests small, and the rest of
/// a cancelled fetch does not occupy the connection.
const MAX_PENDING: usize = 256;
/// Expected sizes below this do not slow down a fetch.
const MIN_LIMIT: u64 = 1 << 20;

/// The blocks that a fetch has received and its reader has not taken.
///
/// The sizes that a driver knows are estimates, and in Spark a read whose blocks are larger needs
/// more memory than its limits permit. So a fetch that receives more than twice the expected bytes
/// waits for its reader.
#[derive(Debug)]
pub(super) struct ReadAhead {
    /// Twice the expected bytes; `None`: no limit.
    limit: Option<u64>,
    unread: AtomicU64,
    taken: Notify,
}

/// What an attempt has requested and received.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) received_chunks: usize,
    pub(super) received_bytes: u64,
    pub(super) pending: usize,
}

impl ReadAhead {
    pub(super) fn new(expected_bytes: Option<u64>) -> Self {
        let limit = expected_bytes.map(|bytes| bytes.max(MIN_LIMIT).saturating_mul(2));
        Self { limit, unread: AtomicU64::new(0), taken: Notify::new() }
    }

    /// Counts a block that was received.
    pub(super) fn on_received(&self, len: u64) {
        self.unread.fetch_add(len, Ordering::AcqRel);
    }

    /// Counts a block that the reader has taken.
    pub(super) fn on_taken(&self, len: u64) {
        self.unread.fetch_sub(len, Ordering::AcqRel);
        self.taken.notify_one();
    }

    /// Returns whether one more chunk may be requested.
    pub(super) fn permits(&self, progress: &Progress) -> bool {
        let Progress { received_chunks, received_bytes, pending } = *progress;
        if pending >= MAX_PENDING.min(FIRST_CHUNKS.saturating_add(received_chunks)) {
            return false;
        }
        let Some(limit) = self.limit else { return true };
        let unread = self.unread.load(Ordering::Acquire);
        let mean = received_bytes / (received_chunks.max(1) as u64);
        let expected = mean.saturating_mul(pending as u64 + 1);
        unread.saturating_add(expected) <= limit || (unread == 0 && pending == 0)
    }

    /// Waits until a chunk may be requested, if none is pending.
    pub(super) async fn wait(&self, progress: &Progress) {
        while progress.pending == 0 && !self.permits(progress) {
            self.taken.notified().await;
        }
    }
}
