//! The queue of notices that wait for capacity in the write queue of one connection.

use std::collections::VecDeque;

use bytes::Bytes;
use network_common::{ErrorKind, TransportClient};

/// The most bytes of queued notices: 4 MiB. A peer that reads never lets so many queue up.
const MAX_NOTICE_BYTES: usize = 4 << 20;

/// Encoded notices in the order in which they are sent.
#[derive(Default)]
pub(super) struct NoticeQueue {
    notices: VecDeque<Bytes>,
    bytes: usize,
}

/// The fate of a notice, and the next step of the connection.
pub(super) enum NoticeOutcome {
    /// The notice was sent, or a task that flushes the queue exists.
    Accepted,
    /// The notice is the only one in the queue: a task must flush the queue.
    FlushNeeded,
    /// The queue exceeded [`MAX_NOTICE_BYTES`] and was cleared: the connection must be closed.
    Overflow,
}

impl NoticeQueue {
    /// Sends a notice, or queues it if the write queue is full or others are queued.
    pub(super) fn send(&mut self, notice: Bytes, client: &TransportClient) -> NoticeOutcome {
        if self.notices.is_empty() && is_sent(&notice, client) {
            return NoticeOutcome::Accepted;
        }
        self.bytes += notice.len();
        self.notices.push_back(notice);
        if self.bytes > MAX_NOTICE_BYTES {
            *self = Self::default();
            NoticeOutcome::Overflow
        } else if self.notices.len() == 1 {
            NoticeOutcome::FlushNeeded
        } else {
            NoticeOutcome::Accepted
        }
    }

    /// Sends queued notices while there is capacity. Returns whether the queue is empty.
    pub(super) fn flush(&mut self, client: &TransportClient) -> bool {
        while self.notices.front().is_some_and(|notice| is_sent(notice, client)) {
            let sent = self.notices.pop_front();
            self.bytes -= sent.map_or(0, |notice| notice.len());
        }
        self.notices.is_empty()
    }
}

/// Returns false if the write queue is full. A closed connection discards the notice.
fn is_sent(notice: &Bytes, client: &TransportClient) -> bool {
    let sent = client.send(notice.clone());
    sent.map_or_else(|error| error.kind() != ErrorKind::Limit, |()| true)
}
