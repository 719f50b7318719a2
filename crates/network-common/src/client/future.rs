//! Waiting for the answer to one request.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;

use super::TransportClient;
use crate::error::{ErrorKind, TransportError};
use crate::session::{MergedBlockMeta, RequestKey, Response, StreamBody};

/// The answer to [`send_rpc`](TransportClient::send_rpc) or
/// [`upload_stream`](TransportClient::upload_stream).
pub type RpcFuture = RequestFuture<Bytes>;
/// The answer to [`fetch_chunk`](TransportClient::fetch_chunk).
pub type ChunkFuture = RequestFuture<Bytes>;
/// The answer to [`stream`](TransportClient::stream).
pub type StreamFuture = RequestFuture<StreamBody>;
/// The answer to [`merged_block_meta`](TransportClient::merged_block_meta).
pub type MergedBlockMetaFuture = RequestFuture<MergedBlockMeta>;

/// Waits for the answer to one request that is already on its way.
///
/// Dropping it gives the answer up (see [`TransportClient`]). It keeps the connection open while it
/// waits.
#[must_use = "the request is sent, but its answer is discarded when this is dropped"]
pub struct RequestFuture<T> {
    state: State,
    /// Takes the expected kind of answer.
    extract: fn(Response) -> Option<T>,
}

enum State {
    Waiting(TransportClient, RequestKey),
    Failed(TransportError),
    Finished,
}

impl<T> RequestFuture<T> {
    pub(super) fn new(
        client: &TransportClient,
        queued: Result<RequestKey, TransportError>,
        extract: fn(Response) -> Option<T>,
    ) -> Self {
        let state = match queued {
            Ok(ticket) => State::Waiting(client.clone(), ticket),
            Err(error) => State::Failed(error),
        };
        Self { state, extract }
    }

    /// The connection that the answer is to come over and the request's id on it; none once the
    /// future has ended.
    ///
    /// For protocols on top that tell the peer more about an RPC under way. Fetches are named
    /// otherwise on the wire, so theirs means nothing to the peer.
    #[must_use]
    pub fn pending_request(&self) -> Option<(&TransportClient, i64)> {
        match &self.state {
            State::Waiting(client, ticket) => Some((client, ticket.id())),
            State::Failed(_) | State::Finished => None,
        }
    }
}

impl<T> Future for RequestFuture<T> {
    type Output = Result<T, TransportError>;

    /// # Panics
    /// When polled after it has finished.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let State::Waiting(client, ticket) = &self.state {
            let polled = client.shared().session.lock().requests.poll(*ticket, context);
            let Poll::Ready(outcome) = polled else {
                return Poll::Pending;
            };
            let peer = client.peer_addr();
            let finished = std::mem::replace(&mut self.state, State::Finished);
            return Poll::Ready(match outcome {
                Some(Ok(mut answer)) => {
                    if let (Response::Stream(body), State::Waiting(client, _)) =
                        (&mut answer, finished)
                    {
                        body.keep_alive(client);
                    }
                    (self.extract)(answer).ok_or_else(|| {
                        let text = format!("{peer} answered with a message of another kind");
                        TransportError::new(ErrorKind::Protocol, text).with_peer(peer)
                    })
                }
                Some(Err(error)) => Err(error),
                None => Err(TransportError::closed(peer)),
            });
        }
        match std::mem::replace(&mut self.state, State::Finished) {
            State::Failed(error) => Poll::Ready(Err(error)),
            State::Waiting(..) | State::Finished => panic!("polled after the answer"),
        }
    }
}

impl<T> Drop for RequestFuture<T> {
    fn drop(&mut self) {
        if let State::Waiting(client, ticket) = &self.state {
            let unclaimed = client.shared().session.lock().requests.cancel(*ticket);
            // A stream body wakes the driver when it is dropped: not under the lock.
            drop(unclaimed);
        }
    }
}

impl<T> fmt::Debug for RequestFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Waiting(client, _) => format!("waiting for {}", client.peer_addr()),
            State::Failed(error) => format!("failed: {error}"),
            State::Finished => "finished".to_owned(),
        };
        f.debug_tuple("RequestFuture").field(&state).finish()
    }
}
