//! Serves and fetches results, which are too large for messages, over network-common.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::future::BoxFuture;
use network_common::{
    BoxError, ManagedBuffer, RpcHandler, RpcResponseCallback, StreamManager, TransportClient,
    TransportClientFactory, TransportConf, TransportContext, TransportServer,
};

use examples::standalone::Block;

/// Serves the blocks of an executor.
pub(crate) struct BlockServer {
    server: TransportServer,
    blocks: Arc<Blocks>,
}

#[derive(Default)]
struct Blocks(Mutex<HashMap<String, Bytes>>);

impl BlockServer {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let blocks = Arc::new(Blocks::default());
        let context =
            TransportContext::new(TransportConf::new("shuffle"), Handler(Arc::clone(&blocks)));
        Ok(Self { server: context.create_server("127.0.0.1:0").await?, blocks })
    }

    pub(crate) fn put(&self, id: String, bytes: Vec<u8>) -> Block {
        self.blocks
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id.clone(), bytes.into());
        Block { address: self.server.local_addr().to_string(), id }
    }
}

/// Fetches the blocks of other processes.
pub(crate) struct BlockFetcher(TransportClientFactory);

impl BlockFetcher {
    pub(crate) fn new() -> Self {
        let context = TransportContext::new(TransportConf::new("shuffle"), Handler(Arc::default()));
        Self(context.create_client_factory())
    }

    pub(crate) async fn fetch(&self, block: &Block) -> anyhow::Result<Bytes> {
        let address: std::net::SocketAddr = block.address.parse()?;
        Ok(self.0.create_client(address).await?.stream(&block.id).await?.collect().await?)
    }
}

struct Handler(Arc<Blocks>);

impl RpcHandler for Handler {
    fn receive(&self, _: &TransportClient, _: Bytes, callback: RpcResponseCallback) {
        callback.fail("blocks must be fetched as streams");
    }

    fn stream_manager(&self) -> &dyn StreamManager {
        &*self.0
    }
}

impl StreamManager for Blocks {
    fn get_chunk<'a>(
        &'a self,
        _: &'a TransportClient,
        _: i64,
        _: i32,
    ) -> BoxFuture<'a, Result<ManagedBuffer, BoxError>> {
        Box::pin(async { Err("blocks must be fetched as streams".into()) })
    }

    fn open_stream<'a>(
        &'a self,
        _: &'a TransportClient,
        id: &'a str,
    ) -> BoxFuture<'a, Result<Option<ManagedBuffer>, BoxError>> {
        let block = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned();
        Box::pin(async { Ok(block.map(ManagedBuffer::from)) })
    }
}
