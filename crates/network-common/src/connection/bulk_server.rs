//! The task that serves the chunk and stream requests of one connection in arrival order.
//!
//! The driver starts it with the first request; it ends when the queue is empty.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use bytes::Bytes;

use super::{ConnectionResources, catch_panic_async};
use crate::buffer::ManagedBuffer;
use crate::client::{SharedConnection, TransportClient};
use crate::error::{BoxError, TransportError};
use crate::handler::{RpcHandler, check_frame_len, cut_error};
use crate::peer_text::{LogText, peer_name};
use crate::protocol::Message;
use crate::session::{BulkMessage, BulkRequest, CloseRequest, QueuedBulkRequest};

/// Asks the stream manager for the chunks and streams that the peer requests.
pub(super) struct BulkServer {
    pub(super) shared: Arc<SharedConnection>,
    pub(super) client: TransportClient,
    pub(super) handler: Arc<dyn RpcHandler>,
    pub(super) resources: Arc<ConnectionResources>,
}

/// Counts one chunk or stream as being transferred until it is dropped.
struct TransferGuard(Arc<ConnectionResources>);

impl Drop for TransferGuard {
    fn drop(&mut self) {
        self.0.metrics.chunks_being_transferred.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Closes the connection if the task panics.
///
/// Otherwise queued requests would get no response. [`catch_panic_async`] does not catch panics in
/// the text of an error or in the drop of a body.
impl Drop for BulkServer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.close(CloseRequest::Immediate(TransportError::closed(self.shared.peer)));
        }
    }
}

impl BulkServer {
    pub(super) async fn run(self) {
        while let Some(estimate) = self.next_estimate().await {
            let permit = self.shared.account.admit_body(estimate).await;
            let next = self.shared.session.lock().bulk_requests.pop();
            let Some(QueuedBulkRequest { request, rejection }) = next else { return };
            // The driver has counted the request when it queued it.
            let guard = TransferGuard(Arc::clone(&self.resources));
            let (message, body) = self.serve(request, rejection).await;
            let body = body.on_release(move || drop(guard));
            let response = BulkMessage { message, body, upload: None };
            let discarded = self.shared.respond(|session| session.respond_bulk_request(response));
            drop(discarded);
            // The queued response is counted now.
            drop(permit);
        }
    }

    /// Returns the size estimate of the next response, once the write queue has capacity for it.
    ///
    /// Returns `None` if no request is queued; the task then ends.
    async fn next_estimate(&self) -> Option<Option<u64>> {
        std::future::poll_fn(|context| {
            let mut session = self.shared.session.lock();
            if session.bulk_requests.end_if_empty() {
                return Poll::Ready(None);
            }
            if !session.outgoing.can_queue_body() {
                session.register_capacity_waker(context.waker());
                return Poll::Pending;
            }
            Poll::Ready(Some(session.bulk_requests.size_estimate()))
        })
        .await
    }

    /// Returns the response to a request: a message and its body.
    async fn serve(
        &self,
        request: BulkRequest,
        rejection: Option<String>,
    ) -> (Message<()>, ManagedBuffer) {
        let peer = self.shared.peer;
        match request {
            BulkRequest::Chunk { stream_id, chunk_index } => {
                match self.chunk(stream_id, chunk_index, rejection).await {
                    Ok(body) => {
                        (Message::ChunkFetchSuccess { stream_id, chunk_index, body: () }, body)
                    }
                    Err(error) => {
                        tracing::debug!(
                            %peer,
                            stream_id,
                            chunk_index,
                            error = %LogText(&error),
                            "chunk request failed"
                        );
                        let error = cut_error(&error);
                        (
                            Message::ChunkFetchFailure { stream_id, chunk_index, error },
                            Bytes::new().into(),
                        )
                    }
                }
            }
            BulkRequest::Stream { stream_id } => match self.stream(&stream_id, rejection).await {
                Ok(body) => {
                    let byte_count = i64::try_from(body.len()).unwrap_or(i64::MAX);
                    (Message::StreamResponse { stream_id, byte_count }, body)
                }
                Err(error) => {
                    tracing::debug!(
                        %peer,
                        stream_id = %peer_name(&stream_id),
                        error = %LogText(&error),
                        "stream request failed"
                    );
                    let error = cut_error(&error);
                    (Message::StreamFailure { stream_id, error }, Bytes::new().into())
                }
            },
        }
    }

    async fn chunk(
        &self,
        stream_id: i64,
        chunk_index: i32,
        rejection: Option<String>,
    ) -> Result<ManagedBuffer, BoxError> {
        if let Some(rejection) = rejection {
            return Err(rejection.into());
        }
        let body = catch_panic_async(async {
            self.handler.stream_manager().get_chunk(&self.client, stream_id, chunk_index).await
        });
        let body = body.await?;
        if let Some(error) = check_frame_len(body.len()) {
            return Err(error.into());
        }
        self.open_unless_lazy(body).await
    }

    async fn stream(
        &self,
        stream_id: &str,
        rejection: Option<String>,
    ) -> Result<ManagedBuffer, BoxError> {
        if let Some(rejection) = rejection {
            return Err(rejection.into());
        }
        let body = catch_panic_async(async {
            self.handler.stream_manager().open_stream(&self.client, stream_id).await
        });
        match body.await? {
            Some(body) => self.open_unless_lazy(body).await,
            None => Err(format!("Stream '{}' was not found.", peer_name(stream_id)).into()),
        }
    }

    /// Opens a file now if `spark.<module>.io.lazyFD` is false.
    async fn open_unless_lazy(&self, body: ManagedBuffer) -> Result<ManagedBuffer, BoxError> {
        if self.resources.conf.lazy_fd() { Ok(body) } else { Ok(body.open_now().await?) }
    }
}
