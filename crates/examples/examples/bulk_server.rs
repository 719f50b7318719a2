//! Serves the files of a directory in chunks and as streams.
//!
//! ```text
//! cargo run --release --example bulk_server -- DIRECTORY [ADDRESS]
//! ```
//!
//! `bulk_fetch` is the client. The RPC `open:<chunk size>:<name>` registers the chunks of a file.
//! Its response contains the stream id, the number of chunks and the file's size, as decimal
//! numbers separated by spaces. The name of a stream is the name of the file.

use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use futures::future::BoxFuture;
use network_common::{
    BoxError, ManagedBuffer, OneForOneStreamManager, RpcHandler, RpcResponseCallback,
    StreamManager, StreamOptions, TransportClient, TransportConf, TransportContext,
};
use std::sync::Arc;

#[derive(Clone)]
struct BulkServer {
    directory: PathBuf,
    streams: Arc<OneForOneStreamManager>,
}

impl BulkServer {
    /// Registers the chunks of a file for the connection of `client`.
    async fn open(&self, client: &TransportClient, request: &str) -> anyhow::Result<String> {
        let (chunk_size, name) = request
            .strip_prefix("open:")
            .and_then(|rest| rest.split_once(':'))
            .context("the request is not open:<chunk size>:<name>")?;
        let chunk_size: u64 = chunk_size.parse().context("the chunk size is not a number")?;
        ensure!(chunk_size > 0, "the chunk size must be positive");
        let (path, size) = self.file(name).await?;
        let chunks = size.div_ceil(chunk_size);
        let regions = (0..chunks).map(move |i| {
            ManagedBuffer::file(&path, i * chunk_size..size.min((i + 1) * chunk_size))
        });
        let options = StreamOptions::default().connection(client).materialized_on_next();
        let stream_id = self.streams.register_stream(regions, options);
        println!("{} fetches {name}: {chunks} chunks, {size} bytes", client.peer_addr());
        Ok(format!("{stream_id} {chunks} {size}"))
    }

    /// Returns the path and the size of a file in the directory.
    async fn file(&self, name: &str) -> anyhow::Result<(PathBuf, u64)> {
        let mut components = Path::new(name).components();
        if !components.all(|component| matches!(component, Component::Normal(_))) {
            bail!("{name} is not a relative path inside the directory");
        }
        let path = self.directory.join(name);
        let metadata =
            tokio::fs::metadata(&path).await.with_context(|| format!("{name} not found"))?;
        ensure!(metadata.is_file(), "{name} is not a file");
        Ok((path, metadata.len()))
    }
}

impl RpcHandler for BulkServer {
    fn receive(&self, client: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
        let (server, client) = (self.clone(), client.clone());
        // Reading the metadata may block, so the connection's task must not do it.
        tokio::spawn(async move {
            match server.open(&client, &String::from_utf8_lossy(&message)).await {
                Ok(response) => callback.reply(response),
                Err(error) => callback.fail(format_args!("{error:#}")),
            }
        });
    }

    fn stream_manager(&self) -> &dyn StreamManager {
        self
    }
}

impl StreamManager for BulkServer {
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
        client: &'a TransportClient,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<ManagedBuffer>, BoxError>> {
        Box::pin(async move {
            let (path, size) = self.file(name).await?;
            println!("{} streams {name}: {size} bytes", client.peer_addr());
            Ok(Some(ManagedBuffer::file(path, 0..size)))
        })
    }

    fn connection_terminated(&self, client: &TransportClient) {
        self.streams.connection_terminated(client);
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let directory =
        PathBuf::from(arguments.next().context("usage: bulk_server DIRECTORY [ADDRESS]")?);
    ensure!(directory.is_dir(), "{} is not a directory", directory.display());
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:7337".to_owned());

    let handler = BulkServer { directory, streams: Arc::default() };
    let context = TransportContext::new(TransportConf::new("shuffle"), handler);
    let server = context.create_server(address).await?;
    println!("LISTENING {}", server.local_addr());
    tokio::signal::ctrl_c().await?;
    let aborted = server.close(std::time::Duration::from_secs(10)).await;
    println!("the server is closed, {aborted} connections were aborted");
    Ok(())
}
