//! Serving what takes time: chunks and streams from the stream manager, and uploads.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use bytes::Bytes;
use futures::FutureExt;

use super::Resources;
use crate::buffer::ManagedBuffer;
use crate::client::{Shared, TransportClient};
use crate::error::{BoxError, TransportError};
use crate::handler::{RpcHandler, RpcResponseCallback, error_text, too_large};
use crate::protocol::Message;
use crate::session::{BulkItem, BulkRequest, Closing, PipeWriter, pipe};

/// Works on one connection's requests for chunks and streams, in arrival order, while there are any.
pub(super) struct BulkServer {
    pub(super) shared: Arc<Shared>,
    pub(super) client: TransportClient,
    pub(super) handler: Arc<dyn RpcHandler>,
    pub(super) resources: Arc<Resources>,
}

/// Counts one chunk or stream as being transferred until it is dropped.
struct Transfer(Arc<Resources>);

impl Drop for Transfer {
    fn drop(&mut self) {
        self.0.metrics.chunks_in_transfer.fetch_sub(1, Ordering::Relaxed);
    }
}

impl BulkServer {
    pub(super) async fn run(self) {
        while let Some(request) = self.next().await {
            // Counted when it arrived.
            let transfer = Transfer(Arc::clone(&self.resources));
            let (message, body) = self.serve(request).await;
            let body = body.on_release(move || drop(transfer));
            let item = BulkItem { message, body, upload: None };
            self.shared.update(|session| session.answer_bulk(item));
        }
    }

    /// The next request, once the write queue has room for its answer; `None`: there is none, and the task ends.
    async fn next(&self) -> Option<BulkRequest> {
        std::future::poll_fn(|context| {
            let mut session = self.shared.session.lock();
            if !session.pending_bulk.is_empty() && !session.outgoing.takes_bodies() {
                session.watch(context.waker());
                return Poll::Pending;
            }
            let request = session.pending_bulk.pop_front();
            session.bulk_server_runs = request.is_some();
            Poll::Ready(request)
        })
        .await
    }

    async fn serve(&self, request: BulkRequest) -> (Message<()>, ManagedBuffer) {
        match request {
            BulkRequest::Chunk { stream_id, chunk_index } => match self.chunk(stream_id, chunk_index).await {
                Ok(body) => (Message::ChunkFetchSuccess { stream_id, chunk_index, body: () }, body),
                Err(error) => {
                    tracing::debug!(peer = %self.shared.peer, stream_id, chunk_index, %error, "chunk not served");
                    let error = error_text(&error);
                    (Message::ChunkFetchFailure { stream_id, chunk_index, error }, Bytes::new().into())
                }
            },
            BulkRequest::Stream { stream_id } => match self.stream(&stream_id).await {
                Ok(body) => {
                    let byte_count = i64::try_from(body.len()).unwrap_or(i64::MAX);
                    (Message::StreamResponse { stream_id, byte_count }, body)
                }
                Err(error) => {
                    tracing::debug!(peer = %self.shared.peer, stream_id, %error, "stream not served");
                    let error = error_text(&error);
                    (Message::StreamFailure { stream_id, error }, Bytes::new().into())
                }
            },
        }
    }

    async fn chunk(&self, stream_id: i64, chunk_index: i32) -> Result<ManagedBuffer, BoxError> {
        let manager = self.handler.stream_manager();
        let body = user_code(async { manager.get_chunk(&self.client, stream_id, chunk_index).await }).await?;
        if let Some(error) = too_large(body.len()) {
            return Err(error.into());
        }
        self.opened(body).await
    }

    async fn stream(&self, stream_id: &str) -> Result<ManagedBuffer, BoxError> {
        let manager = self.handler.stream_manager();
        match user_code(async { manager.open_stream(&self.client, stream_id).await }).await? {
            Some(body) => self.opened(body).await,
            None => Err(format!("Stream '{stream_id}' was not found.").into()),
        }
    }

    /// With lazyFD off, files are opened as soon as they are answered.
    async fn opened(&self, body: ManagedBuffer) -> Result<ManagedBuffer, BoxError> {
        if self.resources.conf.lazy_fd() { Ok(body) } else { Ok(body.opened().await?) }
    }
}

/// A panic of user code is an error like any other.
async fn user_code<T>(code: impl Future<Output = Result<T, BoxError>>) -> Result<T, BoxError> {
    match AssertUnwindSafe(code).catch_unwind().await {
        Ok(result) => result,
        Err(_) => Err("the handler panicked".into()),
    }
}

/// Hands an upload to the handler and answers it when that has finished; `None` if the handler panicked at once.
pub(super) fn start_upload(
    handler: &Arc<dyn RpcHandler>,
    client: &TransportClient,
    meta: Bytes,
    length: u64,
    callback: RpcResponseCallback,
) -> Option<PipeWriter> {
    let (writer, data) = pipe(String::new(), length);
    let progress = writer.probe();
    let receive = || handler.receive_stream(client, meta, data);
    // On a panic the callback is dropped, which fails the asker.
    let Ok(receiving) = catch_unwind(AssertUnwindSafe(receive)) else {
        tracing::error!(peer = %client.peer_addr(), "the RPC handler panicked on an upload");
        return None;
    };
    let shared = Arc::clone(client.shared());
    tokio::spawn(async move {
        let result = user_code(receiving).await;
        match result {
            Ok(reply) => {
                // What the handler left unread is skipped first: the asker is still sending it.
                progress.arrived().await;
                callback.reply(reply);
            }
            Err(error) if progress.drained() => callback.fail(format_args!(
                "Failure post-processing complete stream; failing this rpc and leaving channel active: {error}"
            )),
            Err(error) => {
                callback.fail(format_args!("Destination failed while reading stream: {error}"));
                tracing::warn!(peer = %shared.peer, %error, "closing the connection: an upload was given up in the middle");
                shared.close(Closing::Flush(TransportError::closed(shared.peer)));
            }
        }
    });
    Some(writer)
}
