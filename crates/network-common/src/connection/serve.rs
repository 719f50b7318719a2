//! Serving the peer's requests: on the driver's task what the handler answers itself, beside it
//! what takes time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use bytes::Bytes;
use futures::FutureExt;

use super::{ConnectionDriver, ConnectionResources, catch_panic};
use crate::buffer::ManagedBuffer;
use crate::client::{SharedConnection, TransportClient};
use crate::error::{BoxError, ErrorKind, TransportError};
use crate::handler::{
    MergedBlockMetaCallback, RpcHandler, RpcResponseCallback, check_frame_len, cut_error,
};
use crate::protocol::Message;
use crate::session::{BodySender, BulkMessage, BulkRequest, CloseRequest, body_channel};

const SHUTTING_DOWN: &str = "the server is shutting down";

impl ConnectionDriver {
    /// Hands a request to whom it concerns.
    pub(super) fn on_request(&mut self, request: Message<Bytes>) -> Result<(), TransportError> {
        let draining = self.shared.is_draining();
        let (handler, client) = (&self.handler, &self.client);
        match request {
            Message::RpcRequest { request_id, body } => {
                self.reader.received += 1;
                let callback = RpcResponseCallback::new(Arc::clone(&self.shared), request_id);
                if draining {
                    callback.fail(SHUTTING_DOWN);
                } else {
                    catch_panic("receive", || handler.receive(client, body, callback));
                }
            }
            Message::OneWayMessage { body } => {
                if draining {
                    tracing::warn!(peer = %self.shared.peer, "one-way message dropped: {SHUTTING_DOWN}");
                } else {
                    catch_panic("receive_one_way", || handler.receive_one_way(client, body));
                }
            }
            Message::MergedBlockMetaRequest(request) => {
                self.reader.received += 1;
                let callback =
                    MergedBlockMetaCallback::new(Arc::clone(&self.shared), request.request_id);
                if draining {
                    callback.fail(SHUTTING_DOWN);
                } else {
                    catch_panic("receive_merged_block_meta", || {
                        handler.receive_merged_block_meta(client, request, callback);
                    });
                }
            }
            Message::ChunkFetchRequest { stream_id, chunk_index } => {
                self.queue_bulk(BulkRequest::Chunk { stream_id, chunk_index })?;
            }
            Message::StreamRequest { stream_id } => {
                self.queue_bulk(BulkRequest::Stream { stream_id })?;
            }
            Message::UploadStream { request_id, meta, .. } => {
                if let Some(pipe) = self.start_upload(request_id, meta, 0) {
                    pipe.finish(Ok(()));
                }
            }
            // Answers do not come here.
            _ => {}
        }
        Ok(())
    }

    /// Queues a request for the stream manager, and starts the task that works on the queue if it
    /// is not running.
    fn queue_bulk(&mut self, request: BulkRequest) -> Result<(), TransportError> {
        if self.shared.is_peer_unauthenticated() {
            // Refused now: by its turn the peer may be known.
            let peer = self.shared.peer;
            let text = format!("{peer} asks for a chunk or stream before it was authenticated");
            return Err(TransportError::new(ErrorKind::Bootstrap, text).with_peer(peer));
        }
        let metrics = &self.resources.metrics;
        let limit = self.resources.conf.max_chunks_being_transferred();
        let transferred = metrics.chunks_being_transferred.load(Ordering::Relaxed);
        if transferred >= limit {
            let peer = self.shared.peer;
            let text = format!(
                "{peer} asks for a chunk while {transferred} are being transferred: \
                 spark.shuffle.maxChunksBeingTransferred allows {limit}"
            );
            return Err(TransportError::new(ErrorKind::Limit, text).with_peer(peer));
        }
        metrics.chunks_being_transferred.fetch_add(1, Ordering::Relaxed);
        let mut session = self.shared.session.lock();
        let start = session.push_bulk_request(request, self.shared.is_draining());
        drop(session);
        if start {
            let server = BulkServer {
                shared: Arc::clone(&self.shared),
                client: self.client.clone(),
                handler: Arc::clone(&self.handler),
                resources: Arc::clone(&self.resources),
            };
            self.bulk_server = Some(tokio::spawn(server.run()).abort_handle());
        }
        Ok(())
    }

    /// Hands an upload to the handler; `None` if it does not want the data.
    pub(super) fn start_upload(
        &mut self,
        request_id: i64,
        meta: Bytes,
        length: u64,
    ) -> Option<BodySender> {
        self.reader.received += 1;
        let callback = RpcResponseCallback::new(Arc::clone(&self.shared), request_id);
        if self.shared.is_draining() {
            callback.fail(SHUTTING_DOWN);
            return None;
        }
        upload(&self.handler, &self.client, meta, length, callback)
    }
}

/// Works on one connection's requests for chunks and streams, in arrival order, while there are
/// any.
struct BulkServer {
    shared: Arc<SharedConnection>,
    client: TransportClient,
    handler: Arc<dyn RpcHandler>,
    resources: Arc<ConnectionResources>,
}

/// Counts one chunk or stream as being transferred until it is dropped.
struct Transfer(Arc<ConnectionResources>);

impl Drop for Transfer {
    fn drop(&mut self) {
        self.0.metrics.chunks_being_transferred.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A panic that got past [`user_code`], in an error's text or a body's drop: what waits would never
/// be served.
impl Drop for BulkServer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.close(CloseRequest::Immediate(TransportError::closed(self.shared.peer)));
        }
    }
}

impl BulkServer {
    async fn run(self) {
        while let Some((request, refused)) = self.next().await {
            // Counted when it arrived.
            let transfer = Transfer(Arc::clone(&self.resources));
            let (message, body) = self.serve(request, refused).await;
            let body = body.on_release(move || drop(transfer));
            let item = BulkMessage { message, body, upload: None };
            drop(self.shared.update(|session| session.answer_bulk_request(item)));
        }
    }

    /// The next request, once the write queue has room for its answer; `None`: there is none, and
    /// the task ends.
    async fn next(&self) -> Option<(BulkRequest, bool)> {
        std::future::poll_fn(|context| {
            let mut session = self.shared.session.lock();
            if session.bulk_requests() > 0 && !session.outgoing.can_queue_body() {
                session.register_capacity_waker(context.waker());
                return Poll::Pending;
            }
            Poll::Ready(session.pop_bulk_request())
        })
        .await
    }

    async fn serve(&self, request: BulkRequest, refused: bool) -> (Message<()>, ManagedBuffer) {
        match request {
            BulkRequest::Chunk { stream_id, chunk_index } => {
                match self.chunk(stream_id, chunk_index, refused).await {
                    Ok(body) => {
                        (Message::ChunkFetchSuccess { stream_id, chunk_index, body: () }, body)
                    }
                    Err(error) => {
                        tracing::debug!(peer = %self.shared.peer, stream_id, chunk_index, %error, "chunk not served");
                        let error = cut_error(&error);
                        (
                            Message::ChunkFetchFailure { stream_id, chunk_index, error },
                            Bytes::new().into(),
                        )
                    }
                }
            }
            BulkRequest::Stream { stream_id } => match self.stream(&stream_id, refused).await {
                Ok(body) => {
                    let byte_count = i64::try_from(body.len()).unwrap_or(i64::MAX);
                    (Message::StreamResponse { stream_id, byte_count }, body)
                }
                Err(error) => {
                    tracing::debug!(peer = %self.shared.peer, stream_id, %error, "stream not served");
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
        refused: bool,
    ) -> Result<ManagedBuffer, BoxError> {
        if refused {
            return Err(SHUTTING_DOWN.into());
        }
        let manager = || self.handler.stream_manager();
        let body = catch_panic_async(async {
            manager().get_chunk(&self.client, stream_id, chunk_index).await
        })
        .await?;
        if let Some(error) = check_frame_len(body.len()) {
            return Err(error.into());
        }
        self.opened(body).await
    }

    async fn stream(&self, stream_id: &str, refused: bool) -> Result<ManagedBuffer, BoxError> {
        if refused {
            return Err(SHUTTING_DOWN.into());
        }
        let opened = catch_panic_async(async {
            self.handler.stream_manager().open_stream(&self.client, stream_id).await
        });
        match opened.await? {
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
async fn catch_panic_async<T>(
    code: impl Future<Output = Result<T, BoxError>>,
) -> Result<T, BoxError> {
    match AssertUnwindSafe(code).catch_unwind().await {
        Ok(result) => result,
        Err(_) => Err("the handler panicked".into()),
    }
}

/// Hands an upload to the handler and answers it when that has finished; `None` if the handler
/// panicked at once.
fn upload(
    handler: &Arc<dyn RpcHandler>,
    client: &TransportClient,
    meta: Bytes,
    length: u64,
    callback: RpcResponseCallback,
) -> Option<BodySender> {
    let (writer, data) = body_channel(String::new(), length);
    let progress = writer.probe();
    let receive = || handler.receive_stream(client, meta, data);
    let Ok(receiving) = catch_unwind(AssertUnwindSafe(receive)) else {
        tracing::error!(peer = %client.peer_addr(), "the RPC handler panicked on an upload");
        callback.fail("the handler panicked");
        return None;
    };
    let shared = Arc::clone(client.shared());
    tokio::spawn(async move {
        let result = catch_panic_async(receiving).await;
        match result {
            Ok(reply) => {
                // What the handler left unread is skipped first: the asker is still sending it.
                progress.wait_until_received().await;
                callback.reply(reply);
            }
            Err(error) if progress.drained() => callback.fail(format_args!(
                "Failure post-processing complete stream; failing this rpc and leaving channel active: {error}"
            )),
            Err(error) => {
                callback.fail(format_args!("Destination failed while reading stream: {error}"));
                tracing::warn!(peer = %shared.peer, %error, "closing the connection: an upload was given up in the middle");
                shared.close(CloseRequest::AfterFlush(TransportError::closed(shared.peer)));
            }
        }
    });
    Some(writer)
}
