//! Support for the tests: data patterns, temporary files, a handler made of closures, and a server
//! with one connected client.

// Every test file is a crate of its own and uses a part of this.
#![allow(dead_code, unreachable_pub)]

mod mode;

use std::future::Future;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use network_common::{
    BoxError, ManagedBuffer, MergedBlockMetaCallback, MergedBlockMetaRequest, NoOpRpcHandler,
    RpcHandler, RpcResponseCallback, StreamBody, StreamManager, TransportClient,
    TransportClientFactory, TransportContext, TransportError, TransportServer,
};
use tempfile::NamedTempFile;

pub use self::mode::*;

/// The timeout of every wait: longer than any test needs.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Returns `length` pseudo-random bytes that depend on the seed.
pub fn pattern(length: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(length).collect::<Vec<u8>>().into()
}

/// Returns a temporary file with this content.
pub fn file_of(content: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    file.flush().unwrap();
    file
}

/// Returns the output of `future`, or panics with the caller's position after [`TIMEOUT`].
#[track_caller]
pub fn within<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let caller = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(TIMEOUT, future).await {
            Ok(output) => output,
            Err(_) => panic!("{caller}: not complete within {TIMEOUT:?}"),
        }
    }
}

/// Polls until `condition` holds, for values without a notification such as gauges.
#[track_caller]
pub fn until(condition: impl Fn() -> bool) -> impl Future<Output = ()> {
    within(async move {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
}

type OnRpc = dyn Fn(&TransportClient, Bytes, RpcResponseCallback) + Send + Sync;
type OnOneWay = dyn Fn(&TransportClient, Bytes) + Send + Sync;
type Fallible<T> = BoxFuture<'static, Result<T, BoxError>>;
type OnUpload = dyn Fn(&TransportClient, Bytes, StreamBody) -> Fallible<Bytes> + Send + Sync;
type OnChunk = dyn Fn(&TransportClient, i64, i32) -> Fallible<ManagedBuffer> + Send + Sync;
type OnStream = dyn Fn(&TransportClient, &str) -> Fallible<Option<ManagedBuffer>> + Send + Sync;
type OnMeta =
    dyn Fn(&TransportClient, MergedBlockMetaRequest, MergedBlockMetaCallback) + Send + Sync;
type OnEvent = dyn Fn(&TransportClient) + Send + Sync;

/// A handler made of closures. Echoes RPCs unless `on_rpc` is set.
#[derive(Default)]
pub struct Handler {
    rpc: Option<Box<OnRpc>>,
    one_way: Option<Box<OnOneWay>>,
    upload: Option<Box<OnUpload>>,
    chunk: Option<Box<OnChunk>>,
    stream: Option<Box<OnStream>>,
    meta: Option<Box<OnMeta>>,
    active: Option<Box<OnEvent>>,
    inactive: Option<Box<OnEvent>>,
    terminated: Option<Box<OnEvent>>,
    manager: Option<Arc<dyn StreamManager>>,
}

impl Handler {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn on_rpc(
        mut self,
        f: impl Fn(&TransportClient, Bytes, RpcResponseCallback) + Send + Sync + 'static,
    ) -> Self {
        self.rpc = Some(Box::new(f));
        self
    }

    pub fn on_one_way(
        mut self,
        f: impl Fn(&TransportClient, Bytes) + Send + Sync + 'static,
    ) -> Self {
        self.one_way = Some(Box::new(f));
        self
    }

    pub fn on_upload<F>(
        mut self,
        f: impl Fn(Bytes, StreamBody) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<Bytes, BoxError>> + Send + 'static,
    {
        self.upload = Some(Box::new(move |_, meta, data| Box::pin(f(meta, data))));
        self
    }

    /// Sets a function that returns chunks at once.
    pub fn on_chunk(
        self,
        f: impl Fn(i64, i32) -> Result<ManagedBuffer, BoxError> + Send + Sync + 'static,
    ) -> Self {
        self.on_chunk_later(move |stream_id, index| std::future::ready(f(stream_id, index)))
    }

    pub fn on_chunk_later<F>(mut self, f: impl Fn(i64, i32) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<ManagedBuffer, BoxError>> + Send + 'static,
    {
        self.chunk = Some(Box::new(move |_, stream_id, index| Box::pin(f(stream_id, index))));
        self
    }

    pub fn on_stream(
        mut self,
        f: impl Fn(&str) -> Result<Option<ManagedBuffer>, BoxError> + Send + Sync + 'static,
    ) -> Self {
        self.stream =
            Some(Box::new(move |_, stream_id| Box::pin(std::future::ready(f(stream_id)))));
        self
    }

    pub fn on_stream_later<F>(mut self, f: impl Fn(String) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Option<ManagedBuffer>, BoxError>> + Send + 'static,
    {
        self.stream = Some(Box::new(move |_, stream_id| Box::pin(f(stream_id.to_owned()))));
        self
    }

    pub fn on_meta(
        mut self,
        f: impl Fn(&TransportClient, MergedBlockMetaRequest, MergedBlockMetaCallback)
        + Send
        + Sync
        + 'static,
    ) -> Self {
        self.meta = Some(Box::new(f));
        self
    }

    pub fn on_active(mut self, f: impl Fn(&TransportClient) + Send + Sync + 'static) -> Self {
        self.active = Some(Box::new(f));
        self
    }

    pub fn on_inactive(mut self, f: impl Fn(&TransportClient) + Send + Sync + 'static) -> Self {
        self.inactive = Some(Box::new(f));
        self
    }

    pub fn on_terminated(mut self, f: impl Fn(&TransportClient) + Send + Sync + 'static) -> Self {
        self.terminated = Some(Box::new(f));
        self
    }

    /// Uses this stream manager for chunks and streams instead.
    pub fn with_manager(mut self, manager: Arc<dyn StreamManager>) -> Self {
        self.manager = Some(manager);
        self
    }
}

impl RpcHandler for Handler {
    fn receive(&self, client: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
        match &self.rpc {
            Some(rpc) => rpc(client, message, callback),
            None => callback.reply(message),
        }
    }

    fn receive_one_way(&self, client: &TransportClient, message: Bytes) {
        if let Some(one_way) = &self.one_way {
            one_way(client, message);
        }
    }

    fn receive_stream(
        &self,
        client: &TransportClient,
        meta: Bytes,
        data: StreamBody,
    ) -> BoxFuture<'static, Result<Bytes, BoxError>> {
        match &self.upload {
            Some(upload) => upload(client, meta, data),
            None => Box::pin(async { Err("this handler takes no uploads".into()) }),
        }
    }

    fn stream_manager(&self) -> &dyn StreamManager {
        self.manager.as_deref().unwrap_or(self)
    }

    fn receive_merged_block_meta(
        &self,
        client: &TransportClient,
        request: MergedBlockMetaRequest,
        callback: MergedBlockMetaCallback,
    ) {
        match &self.meta {
            Some(meta) => meta(client, request, callback),
            None => callback.fail("this handler has no merged blocks"),
        }
    }

    fn on_connected(&self, client: &TransportClient) {
        if let Some(active) = &self.active {
            active(client);
        }
    }

    fn on_disconnected(&self, client: &TransportClient) {
        if let Some(inactive) = &self.inactive {
            inactive(client);
        }
    }
}

impl StreamManager for Handler {
    fn get_chunk<'a>(
        &'a self,
        client: &'a TransportClient,
        stream_id: i64,
        chunk_index: i32,
    ) -> BoxFuture<'a, Result<ManagedBuffer, BoxError>> {
        match &self.chunk {
            Some(chunk) => chunk(client, stream_id, chunk_index),
            None => Box::pin(async { Err("this handler has no chunks".into()) }),
        }
    }

    fn open_stream<'a>(
        &'a self,
        client: &'a TransportClient,
        stream_id: &'a str,
    ) -> BoxFuture<'a, Result<Option<ManagedBuffer>, BoxError>> {
        match &self.stream {
            Some(stream) => stream(client, stream_id),
            None => Box::pin(async { Err("this handler has no streams".into()) }),
        }
    }

    fn connection_terminated(&self, client: &TransportClient) {
        if let Some(terminated) = &self.terminated {
            terminated(client);
        }
    }
}

/// A server, and a client that is connected to it through the factory of a second context.
pub struct Pair {
    pub context: TransportContext,
    pub server: TransportServer,
    pub client_context: TransportContext,
    pub factory: TransportClientFactory,
    pub client: TransportClient,
}

impl Pair {
    /// Checks that neither side has counted a failure.
    pub fn assert_no_failures(&self) {
        assert_eq!(self.context.metrics().server().snapshot().failures, []);
        assert_eq!(self.client_context.metrics().client().snapshot().failures, []);
    }

    /// Checks that the connection still works; the handler must echo RPCs.
    pub async fn assert_alive(&self) {
        assert_eq!(within(self.client.send_rpc("still there?")).await.unwrap(), "still there?");
        assert!(self.client.is_active());
        assert_eq!(self.client.pending_requests(), 0);
    }
}

/// Connects with default settings; the client's handler serves nothing.
pub async fn pair(handler: Handler) -> Pair {
    pair_with(handler, &[], &[]).await
}

pub async fn pair_with(
    handler: Handler,
    server_settings: &[(&str, &str)],
    client_settings: &[(&str, &str)],
) -> Pair {
    let client_context = context(conf(client_settings), NoOpRpcHandler::new());
    pair_of(context(conf(server_settings), handler), client_context).await
}

pub async fn pair_of(context: TransportContext, client_context: TransportContext) -> Pair {
    let server = serve(&context).await;
    let factory = client_context.create_client_factory();
    let client = within(factory.create_client(server.local_addr())).await.unwrap();
    Pair { context, server, client_context, factory, client }
}

pub async fn serve(context: &TransportContext) -> TransportServer {
    context.create_server("127.0.0.1:0").await.unwrap()
}

/// Returns the texts of the error and all its sources.
pub fn full_text(error: &TransportError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
