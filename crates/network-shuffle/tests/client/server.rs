//! A server of blocks whose answers a test decides, and helpers of all tests.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use network_common::{
    BoxError, ManagedBuffer, NoOpRpcHandler, RpcHandler, RpcResponseCallback, StreamManager,
    TransportClient, TransportConf, TransportContext, TransportServer,
};
use network_shuffle::client::{
    BlockClientConf, BlockError, BlockFetch, BlockLocation, ExternalBlockStoreClient,
};
use network_shuffle::protocol::{BlockId, BlockTransferMessage};
use parking_lot::Mutex;

use crate::support::{APP, EXEC};

/// Longer than any test needs.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

/// How the server answers a request to open a stream, or to send a chunk.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Serve,
    /// For an opened stream: the whole answer. For a chunk: its content.
    Bytes(Bytes),
    Fail(&'static str),
    /// Closes the connection.
    Close,
    /// Sends nothing.
    Hang,
}

/// A request that a test answers.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// The number of requests to open a stream before the one that this belongs to.
    pub(crate) open: usize,
    /// The index of the chunk; `None`: the stream is opened.
    pub(crate) chunk: Option<i32>,
    /// The blocks of the stream.
    pub(crate) blocks: Vec<BlockId>,
}

type Script = dyn Fn(&Request) -> Answer + Send + Sync;

/// Serves blocks whose content depends on their ids; the script can answer otherwise.
pub(crate) struct BlockServer {
    pub(crate) server: TransportServer,
    pub(crate) state: Arc<ServerState>,
}

pub(crate) struct ServerState {
    script: Box<Script>,
    streams: Mutex<HashMap<i64, Request>>,
    pub(crate) opened: Mutex<Vec<BlockTransferMessage>>,
    pub(crate) connections: AtomicUsize,
    hung: Mutex<Vec<RpcResponseCallback>>,
}

impl BlockServer {
    pub(crate) async fn start(script: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::start_on(0, script).await
    }

    pub(crate) async fn start_on(
        port: u16,
        script: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let state = Arc::new(ServerState {
            script: Box::new(script),
            streams: Mutex::default(),
            opened: Mutex::default(),
            connections: AtomicUsize::new(0),
            hung: Mutex::default(),
        });
        let handler = Handler { state: Arc::clone(&state) };
        let context = TransportContext::new(TransportConf::new("shuffle"), handler);
        let server = context.create_server(("127.0.0.1", port)).await.unwrap();
        Self { server, state }
    }

    pub(crate) fn location(&self) -> BlockLocation {
        BlockLocation::new(self.server.local_addr(), EXEC)
    }

    /// Returns the blocks of each stream that was opened, in order.
    pub(crate) fn opened_blocks(&self) -> Vec<Vec<BlockId>> {
        self.state.opened.lock().iter().map(|message| blocks_of(message).unwrap()).collect()
    }
}

impl ServerState {
    fn open(&self, client: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
        let message = BlockTransferMessage::decode(&message).unwrap();
        let Some(blocks) = blocks_of(&message) else {
            return callback.fail("this server only opens streams");
        };
        let open = {
            let mut opened = self.opened.lock();
            opened.push(message);
            opened.len() - 1
        };
        let request = Request { open, chunk: None, blocks };
        match (self.script)(&request) {
            Answer::Serve => {
                let num_chunks = request.blocks.len() as i32;
                self.streams.lock().insert(open as i64, request);
                let stream_id = open as i64;
                callback
                    .reply(BlockTransferMessage::StreamHandle { stream_id, num_chunks }.encode());
            }
            Answer::Bytes(bytes) => callback.reply(bytes),
            Answer::Fail(text) => callback.fail(text),
            Answer::Close => {
                client.close();
                self.hung.lock().push(callback);
            }
            Answer::Hang => self.hung.lock().push(callback),
        }
    }

    async fn chunk(
        &self,
        client: &TransportClient,
        stream_id: i64,
        index: i32,
    ) -> Result<ManagedBuffer, BoxError> {
        let request = self.streams.lock().get(&stream_id).cloned().ok_or("no such stream")?;
        let request = Request { chunk: Some(index), ..request };
        match (self.script)(&request) {
            Answer::Serve => Ok(content(request.blocks[index as usize]).into()),
            Answer::Bytes(bytes) => Ok(bytes.into()),
            Answer::Fail(text) => Err(text.into()),
            Answer::Close => {
                client.close();
                std::future::pending().await
            }
            Answer::Hang => std::future::pending().await,
        }
    }
}

struct Handler {
    state: Arc<ServerState>,
}

impl RpcHandler for Handler {
    fn receive(&self, client: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
        self.state.open(client, message, callback);
    }

    fn stream_manager(&self) -> &dyn StreamManager {
        self
    }

    fn on_connected(&self, _: &TransportClient) {
        self.state.connections.fetch_add(1, Ordering::Relaxed);
    }
}

impl StreamManager for Handler {
    fn get_chunk<'a>(
        &'a self,
        client: &'a TransportClient,
        stream_id: i64,
        chunk_index: i32,
    ) -> BoxFuture<'a, Result<ManagedBuffer, BoxError>> {
        Box::pin(self.state.chunk(client, stream_id, chunk_index))
    }

    fn open_stream<'a>(
        &'a self,
        client: &'a TransportClient,
        stream_id: &'a str,
    ) -> BoxFuture<'a, Result<Option<ManagedBuffer>, BoxError>> {
        Box::pin(async move {
            let (stream, index) = stream_id.split_once('_').unwrap();
            let (stream, index) = (stream.parse().unwrap(), index.parse().unwrap());
            self.state.chunk(client, stream, index).await.map(Some)
        })
    }
}

/// Returns the blocks that a message requests, in the order of their chunks.
fn blocks_of(message: &BlockTransferMessage) -> Option<Vec<BlockId>> {
    match message {
        BlockTransferMessage::OpenBlocks { block_ids, .. } => {
            Some(block_ids.iter().map(|id| id.parse().unwrap()).collect())
        }
        BlockTransferMessage::FetchShuffleBlocks {
            shuffle_id, map_ids, reduce_ids, batch, ..
        } => {
            let shuffle_id = *shuffle_id;
            let mut blocks = Vec::new();
            for (&map_id, reduce_ids) in map_ids.iter().zip(reduce_ids.iter()) {
                if *batch {
                    let [start_reduce_id, end_reduce_id] = reduce_ids[..] else { panic!() };
                    blocks.push(BlockId::ShuffleBatch {
                        shuffle_id,
                        map_id,
                        start_reduce_id,
                        end_reduce_id,
                    });
                } else {
                    let block = |reduce_id| BlockId::Shuffle { shuffle_id, map_id, reduce_id };
                    blocks.extend(reduce_ids.into_iter().map(block));
                }
            }
            Some(blocks)
        }
        BlockTransferMessage::FetchShuffleBlockChunks {
            shuffle_id,
            shuffle_merge_id,
            reduce_ids,
            chunk_ids,
            ..
        } => {
            let mut blocks = Vec::new();
            for (&reduce_id, chunk_ids) in reduce_ids.iter().zip(chunk_ids.iter()) {
                blocks.extend(chunk_ids.into_iter().map(|chunk_id| BlockId::ShuffleChunk {
                    shuffle_id: *shuffle_id,
                    shuffle_merge_id: *shuffle_merge_id,
                    reduce_id,
                    chunk_id,
                }));
            }
            Some(blocks)
        }
        _ => None,
    }
}

/// Returns a block of shuffle 0.
pub(crate) fn block(map_id: i64, reduce_id: i32) -> BlockId {
    BlockId::Shuffle { shuffle_id: 0, map_id, reduce_id }
}

/// Returns the content that the servers of the tests give to a block.
pub(crate) fn content(block: BlockId) -> Bytes {
    let seed = block.to_string();
    let sum: usize = seed.bytes().map(usize::from).sum();
    seed.into_bytes().into_iter().cycle().take(sum * 7 % 5000).collect()
}

/// Returns a client whose transport and limits have these settings.
pub(crate) fn client(settings: &[(&str, &str)]) -> ExternalBlockStoreClient {
    let mut all = vec![("spark.shuffle.io.retryWait", "20ms")];
    all.extend_from_slice(settings);
    let conf = TransportConf::from_settings("shuffle", all.iter().copied()).unwrap();
    let context = TransportContext::new(conf, NoOpRpcHandler::new());
    let conf = BlockClientConf::from_settings(all).unwrap();
    assert_eq!(conf.unknown_keys(), []);
    ExternalBlockStoreClient::new(context, APP, conf)
}

/// Returns the output of `future`, or panics after [`TIMEOUT`].
#[track_caller]
pub(crate) fn within<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let caller = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(TIMEOUT, future).await {
            Ok(output) => output,
            Err(_) => panic!("{caller}: not complete within {TIMEOUT:?}"),
        }
    }
}

/// Reads all blocks of a fetch.
pub(crate) async fn collect(blocks: BlockFetch) -> Vec<(BlockId, Result<Bytes, BlockError>)> {
    let read = |(block, result): (BlockId, Result<ManagedBuffer, BlockError>)| async move {
        match result {
            Ok(buffer) => (block, Ok(buffer.read().await.unwrap())),
            Err(error) => (block, Err(error)),
        }
    };
    within(blocks.then(read).collect()).await
}

/// Checks that each block appears once with its content.
#[track_caller]
pub(crate) fn assert_all(results: Vec<(BlockId, Result<Bytes, BlockError>)>, expected: &[BlockId]) {
    let mut found: Vec<BlockId> = Vec::new();
    for (block, result) in results {
        assert_eq!(result.unwrap(), content(block), "{block}");
        found.push(block);
    }
    let sorted = |mut blocks: Vec<BlockId>| {
        blocks.sort_by_key(ToString::to_string);
        blocks
    };
    assert_eq!(sorted(found), sorted(expected.to_vec()));
}

/// Returns the text of an error with its causes.
pub(crate) fn text(error: &BlockError) -> String {
    format!("{error:#}")
}
