//! [`BlockStreams`]: the open streams, which belong to their connections.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use futures::future::BoxFuture;
use network_common::{
    BoxError, ConnectionId, ManagedBuffer, StreamManager, TransportClient, peer_name,
};
use parking_lot::Mutex;

use super::stream_blocks::StreamBlocks;
use crate::metrics::{ServiceMetrics, add, subtract};
use crate::protocol::BlockId;
use crate::request_error::RequestError;
use crate::resolver::BlockResolver;

/// Estimated bytes of an open stream beside its ids and block list.
const STREAM_LEN: u64 = 256;

/// Serves the chunks of open streams, each once and in order.
///
/// A block is looked up when its chunk is requested, as in Spark's `ExternalBlockHandler`. A stream
/// ends with its last chunk or with its connection, and no other connection can read it.
pub(super) struct BlockStreams {
    table: Mutex<StreamTable>,
    resolver: Arc<BlockResolver>,
    metrics: Arc<ServiceMetrics>,
    max_len: u64,
}

struct StreamTable {
    next_id: i64,
    /// The estimated bytes of all streams.
    len: u64,
    streams: HashMap<ConnectionId, HashMap<i64, OpenStream>>,
}

struct OpenStream {
    executor: Arc<StreamOwner>,
    blocks: StreamBlocks,
    next_index: i32,
    len: u64,
}

/// The executor whose blocks a stream reads.
#[derive(Debug)]
pub(super) struct StreamOwner {
    pub(super) app_id: String,
    pub(super) exec_id: String,
}

impl BlockStreams {
    pub(super) fn new(
        resolver: Arc<BlockResolver>,
        metrics: Arc<ServiceMetrics>,
        max_len: u64,
    ) -> Self {
        // A restarted service does not reuse the ids of its last run.
        let next_id = fastrand::i64(0..i64::MAX);
        let table = Mutex::new(StreamTable { next_id, len: 0, streams: HashMap::new() });
        Self { table, resolver, metrics, max_len }
    }

    /// Opens a stream for this connection; returns its id and the number of its chunks.
    ///
    /// `len` is the number of bytes of the block list.
    pub(super) fn open(
        &self,
        client: &TransportClient,
        owner: StreamOwner,
        blocks: StreamBlocks,
        len: usize,
    ) -> Result<(i64, i32), RequestError> {
        let chunks = i32::try_from(blocks.left()).map_err(|_| {
            RequestError::illegal_argument("a stream has at most 2147483647 blocks")
        })?;
        let len = len as u64 + STREAM_LEN;
        let executor = Arc::new(owner);
        let mut table = self.table.lock();
        if table.len + len > self.max_len {
            return Err(RequestError::illegal_state(format!(
                "the block lists of all open streams would exceed {} bytes: raise \
                 spark.shuffle.service.maxOpenStreamsSize, or fetch the open streams",
                self.max_len
            )));
        }
        let id = table.next_id;
        table.next_id = id.wrapping_add(1) & i64::MAX;
        // Checked under the lock: a connection that ends later finds the stream in the table.
        if chunks > 0 && client.is_active() {
            let stream = OpenStream { executor, blocks, next_index: 0, len };
            table.streams.entry(client.id()).or_default().insert(id, stream);
            table.len += len;
            add(&self.metrics.open_streams, 1);
            add(&self.metrics.open_streams_bytes, len);
        }
        Ok((id, chunks))
    }

    /// Returns the chunk at `index`, which must be the next one of its stream.
    async fn chunk(
        &self,
        client: &TransportClient,
        stream_id: i64,
        index: i32,
    ) -> Result<Option<ManagedBuffer>, BoxError> {
        let result = self.find_chunk(client, stream_id, index).await;
        let metrics = &self.metrics;
        match &result {
            Ok((_, None)) | Err(_) => add(&metrics.failed_chunks, 1),
            Ok((block, Some(body))) => {
                add(&metrics.chunks, 1);
                add(&metrics.blocks, block_count(*block));
                add(&metrics.bytes, body.len());
            }
        }
        Ok(result?.1)
    }

    async fn find_chunk(
        &self,
        client: &TransportClient,
        stream_id: i64,
        index: i32,
    ) -> Result<(BlockId, Option<ManagedBuffer>), RequestError> {
        let (owner, block) = self.take_block(client.id(), stream_id, index)?;
        let body = self.resolver.block_data(&owner.app_id, &owner.exec_id, block).await?;
        Ok((block, body))
    }

    /// Takes the block at `index` from a stream, and removes the stream with its last block.
    fn take_block(
        &self,
        connection: ConnectionId,
        stream_id: i64,
        index: i32,
    ) -> Result<(Arc<StreamOwner>, BlockId), RequestError> {
        let mut table = self.table.lock();
        let stream =
            table.streams.get_mut(&connection).and_then(|streams| streams.get_mut(&stream_id));
        let Some(stream) = stream else {
            return Err(RequestError::illegal_state(format!(
                "Requested chunk not available since streamId {stream_id} is closed"
            )));
        };
        let expected = stream.next_index;
        if index != expected {
            return Err(RequestError::illegal_state(format!(
                "Received out-of-order chunk index {index} (expected {expected})"
            )));
        }
        stream.next_index += 1;
        let executor = Arc::clone(&stream.executor);
        let block = stream.blocks.next();
        if stream.blocks.left() == 0
            && let Entry::Occupied(mut streams) = table.streams.entry(connection)
        {
            let removed = streams.get_mut().remove(&stream_id);
            // A connection without open streams occupies no memory here.
            if streams.get().is_empty() {
                streams.remove();
            }
            removed.iter().for_each(|stream| self.release(&mut table, stream));
        }
        let end =
            || RequestError::illegal_state(format!("Requested chunk index beyond end {index}"));
        Ok((executor, block.ok_or_else(end)?))
    }

    fn release(&self, table: &mut StreamTable, stream: &OpenStream) {
        table.len -= stream.len;
        subtract(&self.metrics.open_streams, 1);
        subtract(&self.metrics.open_streams_bytes, stream.len);
    }
}

/// Returns the number of blocks that Spark counts for a chunk.
fn block_count(block: BlockId) -> u64 {
    match block {
        BlockId::ShuffleBatch { start_reduce_id, end_reduce_id, .. } => i64::from(end_reduce_id)
            .saturating_sub(i64::from(start_reduce_id))
            .max(0)
            .unsigned_abs(),
        _ => 1,
    }
}

impl StreamManager for BlockStreams {
    fn get_chunk<'a>(
        &'a self,
        client: &'a TransportClient,
        stream_id: i64,
        chunk_index: i32,
    ) -> BoxFuture<'a, Result<ManagedBuffer, BoxError>> {
        Box::pin(async move {
            let chunk = self.chunk(client, stream_id, chunk_index).await?;
            chunk.ok_or_else(|| RequestError::illegal_state("Chunk was not found").into())
        })
    }

    /// Returns a chunk; the name is `<stream id>_<chunk index>`.
    fn open_stream<'a>(
        &'a self,
        client: &'a TransportClient,
        stream_id: &'a str,
    ) -> BoxFuture<'a, Result<Option<ManagedBuffer>, BoxError>> {
        Box::pin(async move {
            add(&self.metrics.stream_requests, 1);
            let parts = stream_id
                .split_once('_')
                .and_then(|(id, index)| Some((id.parse().ok()?, index.parse().ok()?)));
            let Some((id, index)) = parts else {
                return Err(RequestError::illegal_argument(format!(
                    "stream id '{}' is not of the form <stream>_<chunk>",
                    peer_name(stream_id)
                ))
                .into());
            };
            self.chunk(client, id, index).await
        })
    }

    fn connection_terminated(&self, client: &TransportClient) {
        let mut table = self.table.lock();
        let removed = table.streams.remove(&client.id()).unwrap_or_default();
        removed.values().for_each(|stream| self.release(&mut table, stream));
        drop(table);
    }
}
