//! Requests of the peer, which are passed to the handler or queued for the stream manager.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::bulk_server::BulkServer;
use super::{ConnectionDriver, SHUTTING_DOWN, catch_panic};
use crate::error::{ErrorKind, TransportError};
use crate::handler::{MergedBlockMetaCallback, RefusedRequest, RpcResponseCallback};
use crate::log_limit::log_limited;
use crate::protocol::{MergedBlockMetaRequest, Message, ProtocolError};
use crate::session::BulkRequest;

impl ConnectionDriver {
    /// Handles a request that has arrived completely.
    ///
    /// # Errors
    /// The peer is not allowed to send this request now; the connection is closed.
    pub(super) fn on_request(&mut self, request: Message<Bytes>) -> Result<(), TransportError> {
        let is_draining = self.shared.is_draining();
        if is_draining && self.shared.is_peer_unauthenticated() {
            // A failure would mean that the handshake was rejected, which is final.
            return Err(TransportError::closed(self.shared.peer));
        }
        let (handler, client) = (&self.handler, &self.client);
        match request {
            Message::RpcRequest { request_id, body } => {
                self.reader.received_requests += 1;
                let callback = RpcResponseCallback::new(Arc::clone(&self.shared), request_id);
                if is_draining {
                    callback.fail(SHUTTING_DOWN);
                } else {
                    catch_panic("RpcHandler::receive", || handler.receive(client, body, callback));
                }
            }
            Message::OneWayMessage { body } => {
                if is_draining {
                    self.log_discarded(&SHUTTING_DOWN);
                } else {
                    catch_panic("RpcHandler::receive_one_way", || {
                        handler.receive_one_way(client, body);
                    });
                }
            }
            Message::MergedBlockMetaRequest(request) => {
                self.reader.received_requests += 1;
                let callback =
                    MergedBlockMetaCallback::new(Arc::clone(&self.shared), request.request_id);
                if is_draining {
                    callback.fail(SHUTTING_DOWN);
                } else {
                    catch_panic("RpcHandler::receive_merged_block_meta", || {
                        handler.receive_merged_block_meta(client, request, callback);
                    });
                }
            }
            Message::ChunkFetchRequest { stream_id, chunk_index } => {
                self.queue_bulk_request(BulkRequest::Chunk { stream_id, chunk_index }, None)?;
            }
            Message::StreamRequest { stream_id } => {
                self.queue_bulk_request(BulkRequest::Stream { stream_id }, None)?;
            }
            Message::UploadStream { request_id, meta, .. } => {
                // Without data; an upload with data comes as `Event::BodyStart`.
                if let Some(sender) = self.start_upload(request_id, meta, 0) {
                    sender.finish(Ok(()));
                }
            }
            // Responses do not come here.
            _ => {}
        }
        Ok(())
    }

    /// Fails a request that exceeds a limit; the decoder skips its body.
    ///
    /// # Errors
    /// The peer is not allowed to send this request now; the connection is closed.
    pub(super) fn on_skipped_request(
        &mut self,
        request: Message<()>,
        error: &ProtocolError,
    ) -> Result<(), TransportError> {
        match request {
            Message::RpcRequest { request_id, .. }
            | Message::UploadStream { request_id, .. }
            | Message::MergedBlockMetaRequest(MergedBlockMetaRequest { request_id, .. }) => {
                self.reader.received_requests += 1;
                RpcResponseCallback::new(Arc::clone(&self.shared), request_id).fail(error);
            }
            Message::StreamRequest { stream_id } => {
                // Queued, because clients match the responses of streams by their order.
                let rejection = Some(error.to_string());
                self.queue_bulk_request(BulkRequest::Stream { stream_id }, rejection)?;
            }
            _ => self.log_discarded(error),
        }
        catch_panic("RpcHandler::on_skipped_request", || {
            self.handler.on_skipped_request(&self.client);
        });
        Ok(())
    }

    /// Fails a request that the budget does not allow; the decoder skips its body.
    pub(super) fn on_refused_request(&mut self, request: Message<()>, length: u64, start: Bytes) {
        let request_id = match request {
            Message::RpcRequest { request_id, .. } | Message::UploadStream { request_id, .. } => {
                self.reader.received_requests += 1;
                Some(request_id)
            }
            _ => None,
        };
        let refused = RefusedRequest::new(&self.shared, request_id, length, start);
        if request_id.is_none() {
            self.log_discarded(&refused);
        }
        self.shared.account.count_refused(refused.is_retryable());
        self.resources.budget.start_monitor();
        catch_panic("RpcHandler::on_refused_request", || {
            self.handler.on_refused_request(&self.client, refused);
        });
    }

    fn log_discarded(&self, reason: &dyn std::fmt::Display) {
        log_limited!(|suppressed| {
            let peer = self.shared.peer;
            tracing::warn!(suppressed, %peer, %reason, "discarding a one-way message");
        });
    }

    /// Queues a request for the stream manager, or its `rejection`.
    ///
    /// Starts the bulk server task if it is not running.
    fn queue_bulk_request(
        &mut self,
        request: BulkRequest,
        rejection: Option<String>,
    ) -> Result<(), TransportError> {
        let peer = self.shared.peer;
        if self.shared.is_peer_unauthenticated() {
            // Checked here, because the peer may be authenticated when the request is served.
            let text = format!("{peer} requested a chunk or stream before it was authenticated");
            return Err(TransportError::new(ErrorKind::Bootstrap, text).with_peer(peer));
        }
        let metrics = &self.resources.metrics;
        let limit = self.resources.conf.max_chunks_being_transferred();
        let transferred = metrics.chunks_being_transferred.load(Ordering::Relaxed);
        if transferred >= limit {
            let text = format!(
                "{peer} requested a chunk or stream while {transferred} are being transferred: \
                 spark.shuffle.maxChunksBeingTransferred allows {limit}"
            );
            return Err(TransportError::new(ErrorKind::Limit, text).with_peer(peer));
        }
        metrics.chunks_being_transferred.fetch_add(1, Ordering::Relaxed);
        let mut session = self.shared.session.lock();
        let shutdown = || self.shared.is_draining().then(|| SHUTTING_DOWN.to_owned());
        let rejection = rejection.or_else(shutdown);
        let must_start_server = session.bulk_requests.push(request, rejection);
        drop(session);
        if must_start_server {
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
}
