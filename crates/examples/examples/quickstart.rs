//! Both crates in one process, over TCP.
//!
//! Run it with `cargo run --release --example quickstart`.
//!
//! * Control plane, rpc-core: a client environment asks the Hello endpoint of a server environment.
//! * Bulk plane, network-common: a client fetches a file of 256 MiB in chunks and as one stream,
//!   and checks every byte.

use std::collections::VecDeque;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use bytes::Bytes;
use futures::future::BoxFuture;
use network_common::{
    BoxError, ManagedBuffer, OneForOneStreamManager, RpcHandler, RpcResponseCallback,
    StreamManager, StreamOptions, TransportClient, TransportConf, TransportContext,
};
use rpc_core::{EndpointContext, RpcAddress, RpcEnv, RpcError, ThreadSafeRpcEndpoint};
use tokio::sync::Notify;

use examples::hello::{Greeting, HelloMessage, SayBye, SayHi};

/// An endpoint that prints all calls of its methods.
struct Hello {
    client_disconnected: Arc<Notify>,
}

impl ThreadSafeRpcEndpoint for Hello {
    type Message = HelloMessage;

    async fn on_start(&mut self, cx: &EndpointContext<HelloMessage>) -> Result<(), RpcError> {
        println!("[server] on_start         {}", cx.self_ref());
        Ok(())
    }

    async fn receive(
        &mut self,
        message: HelloMessage,
        _cx: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        match message {
            HelloMessage::SayHi(hi, context) => {
                context.reply(Greeting { text: format!("hi, {}", hi.msg) })
            }
            HelloMessage::SayBye(bye, context) => {
                context.reply(Greeting { text: format!("bye, {}", bye.msg) })
            }
        }
    }

    async fn on_connected(
        &mut self,
        remote: RpcAddress,
        _cx: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        println!("[server] on_connected     {remote}");
        Ok(())
    }

    async fn on_disconnected(
        &mut self,
        remote: RpcAddress,
        _cx: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        println!("[server] on_disconnected  {remote}");
        self.client_disconnected.notify_one();
        Ok(())
    }

    async fn on_stop(&mut self, _cx: &EndpointContext<HelloMessage>) -> Result<(), RpcError> {
        println!("[server] on_stop");
        Ok(())
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt::init();
    control_plane().await?;
    bulk_plane().await
}

/// Sends small typed messages to a named endpoint.
async fn control_plane() -> anyhow::Result<()> {
    let server = RpcEnv::builder("hello-server").bind("127.0.0.1:0").start().await?;
    let client_disconnected = Arc::new(Notify::new());
    server.setup_endpoint(
        "hello-service",
        Hello { client_disconnected: Arc::clone(&client_disconnected) },
    )?;
    let address = server.address().expect("the server has an address").clone();

    let client = RpcEnv::builder("hello-client").client_mode().start().await?;
    let hello = client.setup_endpoint_ref::<HelloMessage>(address, "hello-service").await?;
    println!("[client] looked up        {hello}");

    let greeting = hello.ask(SayHi { msg: "neo".to_owned() }).await?;
    println!("[client] reply to SayHi   {}", greeting.text);
    let greeting = hello.ask(SayBye { msg: "neo".to_owned() }).await?;
    println!("[client] reply to SayBye  {}", greeting.text);

    client.shutdown().await;
    client_disconnected.notified().await;
    server.shutdown().await;
    Ok(())
}

const FILE_SIZE: u64 = 256 << 20;
const CHUNK_SIZE: u64 = 4 << 20;
const IN_FLIGHT: usize = 4;
/// Byte `i` of the file is `i` modulo this number.
const PERIOD: u64 = 251;

/// Serves one file. Every RPC registers its chunks, and the response is the stream id.
struct FileServer {
    path: PathBuf,
    streams: OneForOneStreamManager,
}

impl RpcHandler for FileServer {
    fn receive(&self, client: &TransportClient, _: Bytes, callback: RpcResponseCallback) {
        let path = self.path.clone();
        let chunks = (0..FILE_SIZE / CHUNK_SIZE)
            .map(move |i| ManagedBuffer::file(&path, i * CHUNK_SIZE..(i + 1) * CHUNK_SIZE));
        let id = self.streams.register_stream(chunks, StreamOptions::default().connection(client));
        callback.reply(id.to_be_bytes().to_vec());
    }

    fn stream_manager(&self) -> &dyn StreamManager {
        self
    }
}

impl StreamManager for FileServer {
    fn get_chunk<'a>(
        &'a self,
        client: &'a TransportClient,
        stream_id: i64,
        chunk_index: i32,
    ) -> BoxFuture<'a, Result<ManagedBuffer, BoxError>> {
        self.streams.get_chunk(client, stream_id, chunk_index)
    }

    fn open_stream<'a>(
        &'a self,
        _: &'a TransportClient,
        _: &'a str,
    ) -> BoxFuture<'a, Result<Option<ManagedBuffer>, BoxError>> {
        Box::pin(async { Ok(Some(ManagedBuffer::file(&self.path, 0..FILE_SIZE))) })
    }
}

/// Fetches a large file, which the server sends with `sendfile` instead of copying it.
async fn bulk_plane() -> anyhow::Result<()> {
    let file = tokio::task::spawn_blocking(generate).await??;
    let handler =
        FileServer { path: file.path().to_owned(), streams: OneForOneStreamManager::new() };
    let context =
        TransportContext::with_handler(TransportConf::new("quickstart"), Arc::new(handler));
    let server = context.create_server("127.0.0.1:0").await?;
    let factory = context.create_client_factory();
    let client = factory.create_client(server.local_addr()).await?;

    let mut check = ContentCheck::start("in chunks");
    let id = client.send_rpc("open").await?;
    let id = id[..].try_into().context("the response is not a stream id")?;
    let stream_id = i64::from_be_bytes(id);
    let mut pending = VecDeque::new();
    for index in 0..i32::try_from(FILE_SIZE / CHUNK_SIZE)? {
        if pending.len() == IN_FLIGHT {
            check.update(&next_chunk(&mut pending).await?)?;
        }
        pending.push_back(client.fetch_chunk(stream_id, index));
    }
    while !pending.is_empty() {
        check.update(&next_chunk(&mut pending).await?)?;
    }
    check.finish()?;

    let mut check = ContentCheck::start("as a stream");
    let mut body = client.stream("the file").await?;
    while let Some(piece) = body.next_piece().await {
        check.update(&piece?)?;
    }
    check.finish()?;

    let sent = context.metrics().server().snapshot();
    println!("[server] {} MiB sent with sendfile", sent.sendfile_bytes >> 20);
    Ok(())
}

async fn next_chunk(pending: &mut VecDeque<network_common::ChunkFuture>) -> anyhow::Result<Bytes> {
    Ok(pending.pop_front().context("no fetch is pending")?.await?)
}

fn generate() -> anyhow::Result<tempfile::NamedTempFile> {
    let mut file = tempfile::NamedTempFile::new()?;
    let piece: Vec<u8> = (0..PERIOD << 12).map(|i| (i % PERIOD) as u8).collect();
    let mut remaining = FILE_SIZE as usize;
    while remaining > 0 {
        let count = remaining.min(piece.len());
        file.write_all(&piece[..count])?;
        remaining -= count;
    }
    Ok(file)
}

/// Compares the received bytes with the content of the file.
struct ContentCheck {
    /// "in chunks" or "as a stream".
    method: &'static str,
    position: u64,
    expected: Vec<u8>,
    start: Instant,
}

impl ContentCheck {
    fn start(method: &'static str) -> Self {
        let expected = (0..CHUNK_SIZE + PERIOD).map(|i| (i % PERIOD) as u8).collect();
        Self { method, position: 0, expected, start: Instant::now() }
    }

    fn update(&mut self, piece: &[u8]) -> anyhow::Result<()> {
        let phase = (self.position % PERIOD) as usize;
        ensure!(
            self.expected[phase..].starts_with(piece),
            "a byte after offset {} is wrong",
            self.position
        );
        self.position += piece.len() as u64;
        Ok(())
    }

    fn finish(self) -> anyhow::Result<()> {
        ensure!(self.position == FILE_SIZE, "received {} of {FILE_SIZE} bytes", self.position);
        let seconds = self.start.elapsed().as_secs_f64();
        let rate = FILE_SIZE as f64 / seconds / 1e9;
        println!(
            "[client] 256 MiB {:<11} in {seconds:.3} s, {rate:.2} GB/s, every byte checked",
            self.method
        );
        Ok(())
    }
}
