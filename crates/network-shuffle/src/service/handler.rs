//! [`ExternalBlockHandler`]: serves the requests of executors.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use network_common::{
    BoxError, LogText, RpcHandler, RpcResponseCallback, StreamBody, StreamManager, TransportClient,
    peer_name,
};

use super::pending::PendingRequests;
use super::requests::{Requests, Response};
use super::stream_blocks::StreamBlocks;
use super::streams::{BlockStreams, StreamOwner};
use crate::metrics::{ServiceMetrics, add};
use crate::protocol::BlockTransferMessage;
use crate::request_error::RequestError;
use crate::resolver::{CorruptBlock, NO_MERGE};

/// The longest `RegisterExecutor` in bytes.
const MAX_REGISTRATION: usize = 1 << 20;
const REGISTER_EXECUTOR: u8 = 2;

/// The longest message in bytes that is decoded and checked on the task of its connection.
const MAX_SHORT_MESSAGE: usize = 256 << 10;

/// Serves the requests of executors (Spark's `ExternalBlockHandler`).
pub(super) struct ExternalBlockHandler {
    pub(super) streams: BlockStreams,
    pub(super) requests: Arc<Requests>,
    pub(super) pending: Arc<PendingRequests>,
    pub(super) metrics: Arc<ServiceMetrics>,
}

/// The handler of all connections, shared with the tasks of requests.
pub(super) struct ConnectionHandler(pub(super) Arc<ExternalBlockHandler>);

impl RpcHandler for ConnectionHandler {
    fn receive(&self, client: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
        if message.len() > MAX_SHORT_MESSAGE {
            return self.receive_long(client, message, callback);
        }
        match self.0.handle(client, &message) {
            Ok(Response::Ready(body)) => callback.reply(body),
            Ok(Response::Later(work)) => self.0.run(client, work, callback),
            Err(error) => self.0.fail(client, callback, &error),
        }
    }

    fn receive_one_way(&self, client: &TransportClient, message: Bytes) {
        // The only one-way message is RemoveShuffleMerge, and nothing is merged.
        if let Err(error) = self.0.handle(client, &message) {
            let peer = client.peer_addr();
            tracing::debug!(%peer, error = %LogText(error), "one-way message failed");
        }
    }

    fn receive_stream(
        &self,
        _: &TransportClient,
        _: Bytes,
        _: StreamBody,
    ) -> BoxFuture<'static, Result<Bytes, BoxError>> {
        add(&self.0.metrics.failed_requests, 1);
        Box::pin(async { Err(RequestError::unsupported(NO_MERGE).into()) })
    }

    fn stream_manager(&self) -> &dyn StreamManager {
        &self.0.streams
    }

    fn receive_merged_block_meta(
        &self,
        _: &TransportClient,
        _: network_common::MergedBlockMetaRequest,
        callback: network_common::MergedBlockMetaCallback,
    ) {
        add(&self.0.metrics.failed_requests, 1);
        callback.fail(RequestError::unsupported(NO_MERGE));
    }
}

impl ConnectionHandler {
    /// Decodes and checks a long message on a blocking thread: it can name millions of blocks.
    fn receive_long(
        &self,
        client: &TransportClient,
        message: Bytes,
        callback: RpcResponseCallback,
    ) {
        let (handler, owned_client) = (Arc::clone(&self.0), client.clone());
        let work = Box::pin(async move {
            let handle = move || handler.handle(&owned_client, &message);
            match tokio::task::spawn_blocking(handle).await {
                Ok(Ok(Response::Ready(body))) => Ok(body),
                Ok(Ok(Response::Later(work))) => work.await,
                Ok(Err(error)) => Err(error),
                Err(error) => Err(RequestError::runtime(format!("the request failed: {error}"))),
            }
        });
        self.0.run(client, work, callback);
    }
}

impl ExternalBlockHandler {
    /// Runs work that may do disk I/O on a task of its own.
    ///
    /// The work continues if the connection ends meanwhile.
    fn run(
        self: &Arc<Self>,
        client: &TransportClient,
        work: BoxFuture<'static, Result<Bytes, RequestError>>,
        callback: RpcResponseCallback,
    ) {
        let pending = match self.pending.start(client.id()) {
            Ok(pending) => pending,
            Err(error) => return self.fail(client, callback, &error),
        };
        let (handler, client) = (Arc::clone(self), client.clone());
        tokio::spawn(async move {
            let result = work.await;
            drop(pending);
            match result {
                Ok(body) => callback.reply(body),
                Err(error) => handler.fail(&client, callback, &error),
            }
        });
    }

    fn fail(&self, client: &TransportClient, callback: RpcResponseCallback, error: &RequestError) {
        add(&self.metrics.failed_requests, 1);
        let peer = client.peer_addr();
        tracing::debug!(%peer, error = %LogText(error), "request failed");
        callback.fail(error);
    }

    fn handle(&self, client: &TransportClient, message: &Bytes) -> Result<Response, RequestError> {
        if message.first() == Some(&REGISTER_EXECUTOR) && message.len() > MAX_REGISTRATION {
            return Err(RequestError::illegal_argument(format!(
                "a registration of {} bytes exceeds the limit of {MAX_REGISTRATION} bytes",
                message.len()
            )));
        }
        let len = message.len();
        let message = BlockTransferMessage::decode(message)
            .map_err(|error| RequestError::illegal_argument(error.to_string()))?;
        let metrics = &self.metrics;
        match message {
            BlockTransferMessage::OpenBlocks { app_id, exec_id, block_ids } => {
                add(&metrics.open_blocks_requests, 1);
                check_auth(client, &app_id)?;
                let blocks = StreamBlocks::open_blocks(block_ids)?;
                self.open(client, StreamOwner { app_id, exec_id }, blocks, len)
            }
            BlockTransferMessage::FetchShuffleBlocks {
                app_id,
                exec_id,
                shuffle_id,
                map_ids,
                reduce_ids,
                batch,
            } => {
                add(&metrics.fetch_requests, 1);
                check_auth(client, &app_id)?;
                // The stream keeps the message, and a copy of the map ids.
                let len = len + size_of_val(&map_ids[..]);
                let blocks = StreamBlocks::shuffle(shuffle_id, map_ids, reduce_ids, batch)?;
                self.open(client, StreamOwner { app_id, exec_id }, blocks, len)
            }
            BlockTransferMessage::FetchShuffleBlockChunks {
                app_id,
                exec_id,
                shuffle_id,
                shuffle_merge_id,
                reduce_ids,
                chunk_ids,
            } => {
                check_auth(client, &app_id)?;
                let blocks =
                    StreamBlocks::merged(shuffle_id, shuffle_merge_id, &reduce_ids, &chunk_ids)?;
                self.open(client, StreamOwner { app_id, exec_id }, blocks, 0)
            }
            BlockTransferMessage::RegisterExecutor { app_id, exec_id, info } => {
                add(&metrics.register_requests, 1);
                check_auth(client, &app_id)?;
                Ok(self.requests.register(app_id, exec_id, info))
            }
            BlockTransferMessage::GetLocalDirsForExecutors { app_id, exec_ids } => {
                add(&metrics.local_dirs_requests, 1);
                check_auth(client, &app_id)?;
                self.requests.local_dirs(&app_id, &exec_ids)
            }
            BlockTransferMessage::RemoveBlocks { app_id, exec_id, block_ids } => {
                add(&metrics.remove_requests, 1);
                check_auth(client, &app_id)?;
                self.requests.remove_blocks(&app_id, &exec_id, block_ids)
            }
            BlockTransferMessage::DiagnoseCorruption {
                app_id,
                exec_id,
                shuffle_id,
                map_id,
                reduce_id,
                checksum,
                algorithm,
            } => {
                add(&metrics.diagnose_requests, 1);
                check_auth(client, &app_id)?;
                let block = CorruptBlock { shuffle_id, map_id, reduce_id, checksum, algorithm };
                Ok(self.requests.diagnose_corruption(&app_id, &exec_id, block))
            }
            BlockTransferMessage::FinalizeShuffleMerge { app_id, .. }
            | BlockTransferMessage::RemoveShuffleMerge { app_id, .. } => {
                check_auth(client, &app_id)?;
                Err(RequestError::unsupported(NO_MERGE))
            }
            _ => Err(RequestError::unsupported("Unexpected message")),
        }
    }

    fn open(
        &self,
        client: &TransportClient,
        owner: StreamOwner,
        blocks: StreamBlocks,
        len: usize,
    ) -> Result<Response, RequestError> {
        let (stream_id, num_chunks) = self.streams.open(client, owner, blocks, len)?;
        Ok(BlockTransferMessage::StreamHandle { stream_id, num_chunks }.into())
    }
}

/// Checks that an authenticated peer names its own application.
fn check_auth(client: &TransportClient, app_id: &str) -> Result<(), RequestError> {
    match client.client_id() {
        Some(client_id) if client_id != app_id => Err(RequestError::security(format!(
            "Client for {} not authorized for application {}.",
            peer_name(client_id),
            peer_name(app_id)
        ))),
        _ => Ok(()),
    }
}
