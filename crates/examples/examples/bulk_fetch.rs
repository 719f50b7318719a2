//! Downloads a file from `bulk_server` in chunks or as one stream.
//!
//! ```text
//! cargo run --release --example bulk_fetch -- HOST:PORT NAME [OUTPUT] [--stream]
//! ```
//!
//! Without `--stream`, four chunks of 4 MiB are in flight at a time.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::time::Instant;

use anyhow::{Context, ensure};
use bytes::Bytes;
use network_common::{NoOpRpcHandler, TransportClient, TransportConf, TransportContext};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

const CHUNK_SIZE: u64 = 4 << 20;
const IN_FLIGHT: usize = 4;

/// Writes the pieces of a body in order on a blocking thread. At most `IN_FLIGHT` are queued.
struct FileWriter {
    pieces: mpsc::Sender<Bytes>,
    thread: JoinHandle<std::io::Result<()>>,
}

impl FileWriter {
    fn new(output: &str) -> anyhow::Result<Self> {
        let mut file = File::create(output).with_context(|| format!("cannot write {output}"))?;
        let (pieces, mut queue) = mpsc::channel::<Bytes>(IN_FLIGHT);
        let thread = tokio::task::spawn_blocking(move || {
            while let Some(piece) = queue.blocking_recv() {
                file.write_all(&piece)?;
            }
            file.flush()
        });
        Ok(Self { pieces, thread })
    }

    async fn write(&self, piece: Bytes) -> anyhow::Result<()> {
        self.pieces.send(piece).await.context("the output cannot be written")
    }

    async fn finish(self) -> anyhow::Result<()> {
        drop(self.pieces);
        self.thread.await??;
        Ok(())
    }
}

async fn fetch_chunks(client: &TransportClient, name: &str, output: &str) -> anyhow::Result<u64> {
    let response = client.send_rpc(format!("open:{CHUNK_SIZE}:{name}")).await?;
    // The response is `STREAM_ID CHUNK_COUNT SIZE`.
    let numbers: Vec<i64> =
        std::str::from_utf8(&response)?.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    let &[stream_id, chunk_count, size] = numbers.as_slice() else {
        anyhow::bail!("the response to `open` does not contain three numbers");
    };
    let size = u64::try_from(size)?;
    let writer = FileWriter::new(output)?;
    let mut pending = VecDeque::new();
    for index in 0..i32::try_from(chunk_count)? {
        if pending.len() == IN_FLIGHT {
            writer.write(next_chunk(&mut pending).await?).await?;
        }
        pending.push_back(client.fetch_chunk(stream_id, index));
    }
    while !pending.is_empty() {
        writer.write(next_chunk(&mut pending).await?).await?;
    }
    writer.finish().await?;
    Ok(size)
}

async fn next_chunk(pending: &mut VecDeque<network_common::ChunkFuture>) -> anyhow::Result<Bytes> {
    Ok(pending.pop_front().context("no fetch is pending")?.await?)
}

async fn read_stream(client: &TransportClient, name: &str, output: &str) -> anyhow::Result<u64> {
    let mut body = client.stream(name).await?;
    let writer = FileWriter::new(output)?;
    while let Some(piece) = body.next_piece().await {
        writer.write(piece?).await?;
    }
    writer.finish().await?;
    Ok(body.len())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (flags, arguments): (Vec<_>, Vec<_>) =
        std::env::args().skip(1).partition(|argument| argument.starts_with("--"));
    let mut arguments = arguments.into_iter();
    let usage = "usage: bulk_fetch HOST:PORT NAME [OUTPUT] [--stream]";
    let server = arguments.next().context(usage)?;
    let name = arguments.next().context(usage)?;
    let output = arguments.next().unwrap_or_else(|| name.replace('/', "_"));
    let (host, port) = server.rsplit_once(':').context(usage)?;
    ensure!(flags.iter().all(|flag| flag == "--stream"), usage);

    let context = TransportContext::new(TransportConf::new("shuffle"), NoOpRpcHandler::new());
    let factory = context.create_client_factory();
    let client = factory.create_client((host, port.parse()?)).await?;
    let start = Instant::now();
    let size = if flags.is_empty() {
        fetch_chunks(&client, &name, &output).await?
    } else {
        read_stream(&client, &name, &output).await?
    };
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{name} -> {output}: {size} bytes in {seconds:.2} s, {:.2} GB/s",
        size as f64 / seconds / 1e9
    );
    Ok(())
}
