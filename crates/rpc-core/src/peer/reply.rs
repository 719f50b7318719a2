//! The future of an ask to another environment.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use network_common::RpcFuture;
use tokio::sync::oneshot;

use super::peer_state::Peer;
use crate::error::RpcError;

/// Resolves to the bytes of the response. Dropping it cancels the ask.
pub(crate) struct RemoteReplyFuture {
    pub(super) state: RemoteReplyState,
    pub(super) peer: Arc<Peer>,
}

/// The state of an ask.
pub(super) enum RemoteReplyState {
    /// The transport awaits the response.
    Sent(RpcFuture),
    /// The ask is in the queue of the route in this slot.
    Queued(oneshot::Receiver<Result<RpcFuture, RpcError>>, usize),
}

impl Future for RemoteReplyFuture {
    type Output = Result<Bytes, RpcError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { state, peer } = &mut *self;
        if let RemoteReplyState::Queued(result, _) = state {
            let sent = ready!(Pin::new(result).poll(cx)).unwrap_or_else(|_| {
                // The task that connects was dropped with its runtime.
                Err(peer.runtime_stopped_error())
            });
            *state = RemoteReplyState::Sent(sent?);
        }
        let RemoteReplyState::Sent(response) = state else { return Poll::Pending };
        let response = ready!(Pin::new(response).poll(cx));
        Poll::Ready(response.map_err(|error| peer.request_error(error)))
    }
}

impl Drop for RemoteReplyFuture {
    fn drop(&mut self) {
        match &mut self.state {
            RemoteReplyState::Sent(response) => self.peer.cancel(response),
            RemoteReplyState::Queued(result, slot) => {
                result.close();
                // The ask may have been sent since the last poll.
                match result.try_recv() {
                    Ok(Ok(response)) => self.peer.cancel(&response),
                    Ok(Err(_)) => {}
                    Err(_) => self.peer.on_queued_cancelled(*slot),
                }
            }
        }
    }
}
