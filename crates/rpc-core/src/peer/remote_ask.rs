//! The asks of a peer: their identity, and the handle that responds to one of them.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use network_common::RpcResponseCallback;
use tokio::time::Instant;

use super::connection::{PeerConnection, RemoteAsk, RemoteAskKey};
use crate::error::RpcError;
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

    /// Completes when the caller has cancelled the ask or its connection has ended.
    ///
    /// The deadline of the ask does not complete it.
    pub(crate) async fn cancelled(&self) {
        poll_fn(|cx| self.connection.cancelled.poll(self.key.request_id, cx.waker())).await;
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

impl Drop for RemoteAsk {
    fn drop(&mut self) {
        self.connection.cancelled.remove_wakers(self.key.request_id);
    }
}
