//! The asks of a peer: their identity, and the handle that responds to one of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use network_common::RpcResponseCallback;
use tokio::time::Instant;

use super::connection::{PeerConnection, RemoteAsk, RemoteAskKey};
use crate::error::{ErrorKind, RpcError, no_reply_error};
use crate::wire;

impl RemoteAskKey {
    /// Returns whether the ask is neither cancelled nor past its deadline.
    pub(crate) fn is_pending(&self, connection: &PeerConnection) -> bool {
        !connection.cancelled.contains(self.request_id)
            && self.deadline.is_none_or(|deadline| Instant::now() < deadline)
    }
}

impl RemoteAsk {
    /// Creates an ask. Boxed, because messages, which carry it, are moved often.
    pub(crate) fn new(
        callback: RpcResponseCallback,
        connection: &Arc<PeerConnection>,
        deadline: Option<Instant>,
    ) -> Box<Self> {
        // Odd, because the ids of local asks are addresses.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(2, Ordering::Relaxed);
        let key = RemoteAskKey { id, request_id: callback.request_id(), deadline };
        Box::new(Self { key, connection: Arc::clone(connection), callback: Some(callback) })
    }

    /// Is ready when the caller has cancelled the ask or its connection has ended.
    ///
    /// The deadline of the ask does not make it ready.
    pub(crate) fn poll_cancelled(&self, cx: &Context<'_>) -> Poll<()> {
        self.connection.cancelled.poll(self.key.request_id, cx.waker())
    }

    /// Sends the response of an endpoint.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Limit`](crate::ErrorKind::Limit) if the response exceeds
    /// `spark.rpc.message.maxSize`. The caller receives this error as a failure.
    pub(crate) fn respond(mut self, response: Bytes) -> Result<(), RpcError> {
        let checked =
            wire::check_size("the response", response.len(), self.connection.shared.max_message);
        self.send(match &checked {
            Ok(()) => response,
            Err(error) => wire::encode_rejection(error),
        });
        checked
    }

    /// Sends the failure of a request that no endpoint received.
    pub(crate) fn reject(mut self, error: &RpcError) {
        self.send(wire::encode_rejection(error));
    }

    fn send(&mut self, response: Bytes) {
        if let Some(callback) = self.callback.take() {
            callback.reply(response);
        }
    }
}

/// Fails the ask if it has no response, for example because encoding the reply panicked.
impl Drop for RemoteAsk {
    fn drop(&mut self) {
        if self.callback.is_some() {
            self.send(wire::encode_rejection(&if std::thread::panicking() {
                RpcError::new(ErrorKind::Panic, "encoding the response panicked")
            } else {
                no_reply_error()
            }));
        }
        self.connection.cancelled.remove_wakers(self.key.request_id);
    }
}
