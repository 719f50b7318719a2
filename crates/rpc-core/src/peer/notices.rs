//! Sending notices to a peer.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use network_common::ErrorKind;

use super::connection::PeerConnection;
use crate::wire::{self, proto};

/// The most bytes of notices that wait for capacity in the connection's write queue.
const MAX_NOTICE_BYTES: usize = 4 << 20;

/// Notices that wait for capacity, in order. While there are any, a task flushes them.
#[derive(Default)]
pub(super) struct NoticeQueue {
    notices: VecDeque<Bytes>,
    bytes: usize,
}

impl PeerConnection {
    /// Sends a notice, now or as soon as the write queue has capacity: a lost credit would
    /// block its route forever. If too many wait, the peer does not read, and the connection
    /// is closed.
    pub(crate) fn send_notice(self: &Arc<Self>, notice: proto::notice::Notice) {
        let notice = wire::encode_notice(notice);
        let mut queue = self.notices.lock();
        if queue.notices.is_empty() && self.is_sent(&notice) {
            return;
        }
        queue.bytes += notice.len();
        queue.notices.push_back(notice);
        if queue.bytes > MAX_NOTICE_BYTES {
            *queue = NoticeQueue::default();
            drop(queue);
            tracing::warn!(peer = %self.socket, "closing a connection whose peer does not read");
            self.client.close();
        } else if queue.notices.len() == 1 {
            drop(queue);
            self.shared.runtime.spawn(Arc::clone(self).flush_notices());
        }
    }

    async fn flush_notices(self: Arc<Self>) {
        while self.client.ready().await.is_ok() {
            let mut queue = self.notices.lock();
            while queue.notices.front().is_some_and(|notice| self.is_sent(notice)) {
                let sent = queue.notices.pop_front();
                queue.bytes -= sent.map_or(0, |notice| notice.len());
            }
            if queue.notices.is_empty() {
                return;
            }
        }
    }

    /// False if the write queue is full. On a closed connection nothing is left to send.
    fn is_sent(&self, notice: &Bytes) -> bool {
        let sent = self.client.send(notice.clone());
        sent.map_or_else(|error| error.kind() != ErrorKind::Limit, |()| true)
    }
}
