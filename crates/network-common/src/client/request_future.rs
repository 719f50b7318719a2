//! The futures of requests, and [`AsyncRead`] for [`StreamBody`].

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, ReadBuf};

use super::TransportClient;
use crate::error::{ErrorKind, TransportError};
use crate::session::{MergedBlockMeta, RequestKey, Response, StreamBody};

/// The future of [`send_rpc`](TransportClient::send_rpc) or
/// [`upload_stream`](TransportClient::upload_stream).
pub type RpcFuture = RequestFuture<Bytes>;
/// The future of [`fetch_chunk`](TransportClient::fetch_chunk).
pub type ChunkFuture = RequestFuture<Bytes>;
/// The future of [`stream`](TransportClient::stream).
pub type StreamFuture = RequestFuture<StreamBody>;
/// The future of [`merged_block_meta`](TransportClient::merged_block_meta).
pub type MergedBlockMetaFuture = RequestFuture<MergedBlockMeta>;

/// Completes with the response to one request, which was queued when the future was made.
///
/// Dropping the future cancels the request on this side; see [`TransportClient`]. A pending future
/// keeps the connection open.
///
/// ```
/// use std::time::Duration;
///
/// use network_common::{RpcFuture, TransportClient};
///
/// async fn ask(client: &TransportClient) -> Result<(), network_common::BoxError> {
///     let response: RpcFuture = client.send_rpc("question");
///     let reply = tokio::time::timeout(Duration::from_secs(5), response).await??;
///     println!("{} bytes", reply.len());
///     Ok(())
/// }
/// ```
#[must_use = "the request is sent, but its response is discarded when the future is dropped"]
pub struct RequestFuture<T> {
    state: FutureState,
    /// Converts a response of the expected kind.
    extract: fn(Response) -> Option<T>,
}

enum FutureState {
    Pending(TransportClient, RequestKey),
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
            Ok(key) => FutureState::Pending(client.clone(), key),
            Err(error) => FutureState::Failed(error),
        };
        Self { state, extract }
    }

    /// Returns the connection and the request's id on it, while the request is pending.
    ///
    /// A protocol on top can use the id of an RPC to refer to it in later messages. The ids of
    /// fetches and streams are not sent to the peer.
    #[must_use]
    pub fn pending_request(&self) -> Option<(&TransportClient, i64)> {
        match &self.state {
            FutureState::Pending(client, key) => Some((client, key.id())),
            FutureState::Failed(_) | FutureState::Finished => None,
        }
    }
}

impl<T> Future for RequestFuture<T> {
    type Output = Result<T, TransportError>;

    /// # Panics
    /// If it is polled after it has completed.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let FutureState::Pending(client, key) = &self.state {
            let polled = client.shared().session.lock().requests.poll(*key, context);
            let Poll::Ready(outcome) = polled else {
                return Poll::Pending;
            };
            let peer = client.peer_addr();
            let finished = std::mem::replace(&mut self.state, FutureState::Finished);
            return Poll::Ready(match outcome {
                Some(Ok(mut response)) => {
                    if let (Response::Stream(body), FutureState::Pending(client, _)) =
                        (&mut response, finished)
                    {
                        body.keep_alive(client);
                    }
                    (self.extract)(response).ok_or_else(|| {
                        let text =
                            format!("{peer} sent a response of another kind than the request");
                        TransportError::new(ErrorKind::Protocol, text).with_peer(peer)
                    })
                }
                Some(Err(error)) => Err(error),
                None => Err(TransportError::closed(peer)),
            });
        }
        match std::mem::replace(&mut self.state, FutureState::Finished) {
            FutureState::Failed(error) => Poll::Ready(Err(error)),
            FutureState::Pending(..) | FutureState::Finished => {
                panic!("a RequestFuture was polled after it completed")
            }
        }
    }
}

impl<T> Drop for RequestFuture<T> {
    fn drop(&mut self) {
        if let FutureState::Pending(client, key) = &self.state {
            let response = client.shared().session.lock().requests.cancel(*key);
            // Outside the lock, because dropping a stream body wakes the driver.
            drop(response);
        }
    }
}

impl<T> fmt::Debug for RequestFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            FutureState::Pending(client, _) => format!("pending at {}", client.peer_addr()),
            FutureState::Failed(error) => format!("failed: {error}"),
            FutureState::Finished => "finished".to_owned(),
        };
        f.debug_tuple("RequestFuture").field(&state).finish()
    }
}

impl AsyncRead for StreamBody {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let body = self.get_mut();
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        match ready!(body.poll_piece(context)) {
            None => Poll::Ready(Ok(())),
            Some(Err(error)) => Poll::Ready(Err(error.into())),
            Some(Ok(mut piece)) => {
                let count = piece.len().min(buffer.remaining());
                buffer.put_slice(&piece[..count]);
                piece.advance(count);
                body.unread(piece);
                Poll::Ready(Ok(()))
            }
        }
    }
}
