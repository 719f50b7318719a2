//! Both planes in one process, over TCP: `cargo run --release --example quickstart`.
//!
//! First *control*: a server environment with the Hello endpoint, and a client environment that
//! asks it. Then *bulk*: a file of 256 MiB, fetched in chunks and as one stream, its bytes checked.

use std::collections::VecDeque;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use bytes::Bytes;
use futures::future::BoxFuture;
use indicatif::{ProgressBar, ProgressStyle};
use network_common::{
    BoxError, ManagedBuffer, OneForOneStreamManager, RpcHandler, RpcResponseCallback,
    StreamManager, StreamOptions, TransportClient, TransportConf, TransportContext,
};
use rpc_core::{EndpointContext, RpcAddress, RpcEnv, RpcError, ThreadSafeRpcEndpoint};
use tokio::sync::Notify;

use crate::hello::{Greeting, HelloMessage, SayBye, SayHi};

mod hello {
    rpc_core::include_proto!("hello");
}

/// Says what happens to it.
struct Hello {
    client_left: Arc<Notify>,
}

impl ThreadSafeRpcEndpoint for Hello {
    type Message = HelloMessage;

    async fn on_start(&mut self, cx: &EndpointContext<HelloMessage>) -> Result<(), RpcError> {
        if let Some(itself) = cx.self_ref() {
            println!("[server] on_start         {itself}");
        }
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
        self.client_left.notify_one();
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

/// Small typed messages to a named endpoint.
async fn control_plane() -> anyhow::Result<()> {
    let server = RpcEnv::builder("hello-server").bind("127.0.0.1:0").start().await?;
    let client_left = Arc::new(Notify::new());
    server.setup_endpoint("hello-service", Hello { client_left: Arc::clone(&client_left) })?;
    let address = server.address().expect("a server has an address").clone();

    let client = RpcEnv::builder("hello-client").client_mode().start().await?;
    let hello = client.setup_endpoint_ref::<HelloMessage>(address, "hello-service").await?;
    println!("[client] found            {hello}");

    let greeting = hello.ask(SayHi { msg: "neo".to_owned() }).await?;
    println!("[client] SayHi answered   {}", greeting.text);
    let greeting = hello.ask(SayBye { msg: "neo".to_owned() }).await?;
    println!("[client] SayBye answered  {}", greeting.text);

    client.shutdown().await;
    client_left.notified().await;
    server.shutdown().await;
    Ok(())
}

const FILE_SIZE: u64 = 256 << 20;
const CHUNK_SIZE: u64 = 4 << 20;
const IN_FLIGHT: usize = 4;
/// Byte `i` of the file is `i` modulo this.
const PERIOD: u64 = 251;

/// Serves one file. Any RPC registers its chunks and is answered with the stream's id.
struct OneFile {
    path: PathBuf,
    streams: OneForOneStreamManager,
}

impl RpcHandler for OneFile {
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

impl StreamManager for OneFile {
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

/// Blocks of many MiB, from a file, without copying them through the server.
async fn bulk_plane() -> anyhow::Result<()> {
    let file = tokio::task::spawn_blocking(generate).await??;
    let handler = OneFile { path: file.path().to_owned(), streams: OneForOneStreamManager::new() };
    let context =
        TransportContext::with_handler(TransportConf::new("quickstart"), Arc::new(handler));
    let server = context.create_server("127.0.0.1:0").await?;
    let factory = context.create_client_factory();
    let client = factory.create_client(server.local_addr()).await?;

    let mut check = Check::begin("in chunks");
    let answer = client.send_rpc("open").await?;
    let stream_id = i64::from_be_bytes(answer[..].try_into().context("the answer is not an id")?);
    let mut asked = VecDeque::new();
    for index in 0..i32::try_from(FILE_SIZE / CHUNK_SIZE)? {
        if asked.len() == IN_FLIGHT {
            check.take(&next(&mut asked).await?)?;
        }
        asked.push_back(client.fetch_chunk(stream_id, index));
    }
    while !asked.is_empty() {
        check.take(&next(&mut asked).await?)?;
    }
    check.finish()?;

    let mut check = Check::begin("as a stream");
    let mut body = client.stream("the file").await?;
    while let Some(piece) = body.next_piece().await {
        check.take(&piece?)?;
    }
    check.finish()?;

    let sent = context.metrics().server().snapshot();
    println!("[server] {} MiB sent by the kernel (sendfile)", sent.sendfile_bytes >> 20);
    Ok(())
}

async fn next(asked: &mut VecDeque<network_common::ChunkFuture>) -> anyhow::Result<Bytes> {
    Ok(asked.pop_front().context("nothing is asked for")?.await?)
}

fn generate() -> anyhow::Result<tempfile::NamedTempFile> {
    let mut file = tempfile::NamedTempFile::new()?;
    let piece: Vec<u8> = (0..PERIOD << 12).map(|i| (i % PERIOD) as u8).collect();
    let mut left = FILE_SIZE as usize;
    while left > 0 {
        let count = left.min(piece.len());
        file.write_all(&piece[..count])?;
        left -= count;
    }
    Ok(file)
}

/// Compares what arrives with what the file should hold, and shows how far it is.
struct Check {
    how: &'static str,
    position: u64,
    expected: Vec<u8>,
    progress: ProgressBar,
    begun: Instant,
}

impl Check {
    fn begin(how: &'static str) -> Self {
        let style = ProgressStyle::with_template("[client] {bar:40} {bytes}/{total_bytes}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let expected = (0..CHUNK_SIZE + PERIOD).map(|i| (i % PERIOD) as u8).collect();
        let progress = ProgressBar::new(FILE_SIZE).with_style(style);
        Self { how, position: 0, expected, progress, begun: Instant::now() }
    }

    fn take(&mut self, piece: &[u8]) -> anyhow::Result<()> {
        let phase = (self.position % PERIOD) as usize;
        ensure!(self.expected[phase..].starts_with(piece), "wrong bytes after {}", self.position);
        self.position += piece.len() as u64;
        self.progress.set_position(self.position);
        Ok(())
    }

    fn finish(self) -> anyhow::Result<()> {
        ensure!(self.position == FILE_SIZE, "{} bytes came, not {FILE_SIZE}", self.position);
        let seconds = self.begun.elapsed().as_secs_f64();
        self.progress.finish_and_clear();
        let rate = FILE_SIZE as f64 / seconds / 1e9;
        println!(
            "[client] 256 MiB {:<11} in {seconds:.3} s, {rate:.2} GB/s, every byte checked",
            self.how
        );
        Ok(())
    }
}
