//! Downloads a file from `bulk_server`, with progress: four chunks at a time, or as one stream.
//!
//! ```text
//! cargo run --release -p network-common --example bulk_fetch -- HOST:PORT NAME [OUTPUT] [--stream]
//! ```

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::time::Instant;

use anyhow::{Context, ensure};
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use network_common::{NoOpRpcHandler, TransportClient, TransportConf, TransportContext};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

const CHUNK: u64 = 4 << 20;
const IN_FLIGHT: usize = 4;

/// Writes pieces in order on a blocking thread; at most `IN_FLIGHT` of them wait.
struct Sink {
    pieces: mpsc::Sender<Bytes>,
    writing: JoinHandle<std::io::Result<()>>,
    progress: ProgressBar,
}

impl Sink {
    fn new(output: &str, progress: ProgressBar) -> anyhow::Result<Self> {
        let mut file = File::create(output).with_context(|| format!("cannot write {output}"))?;
        let (pieces, mut waiting) = mpsc::channel::<Bytes>(IN_FLIGHT);
        let writing = tokio::task::spawn_blocking(move || {
            while let Some(piece) = waiting.blocking_recv() {
                file.write_all(&piece)?;
            }
            file.flush()
        });
        Ok(Self { pieces, writing, progress })
    }

    async fn write(&self, piece: Bytes) -> anyhow::Result<()> {
        self.progress.inc(piece.len() as u64);
        self.pieces.send(piece).await.context("writing the output failed")
    }

    async fn finish(self) -> anyhow::Result<()> {
        drop(self.pieces);
        self.writing.await??;
        self.progress.finish();
        Ok(())
    }
}

async fn by_chunks(client: &TransportClient, name: &str, output: &str) -> anyhow::Result<u64> {
    let answer = client.send_rpc(format!("open:{CHUNK}:{name}")).await?;
    let numbers: Vec<i64> =
        std::str::from_utf8(&answer)?.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    let &[stream_id, chunks, size] = numbers.as_slice() else {
        anyhow::bail!("the server's answer is not understood");
    };
    let size = u64::try_from(size)?;
    let sink = Sink::new(output, progress(size))?;
    let mut asked = VecDeque::new();
    for index in 0..i32::try_from(chunks)? {
        if asked.len() == IN_FLIGHT {
            sink.write(next(&mut asked).await?).await?;
        }
        asked.push_back(client.fetch_chunk(stream_id, index));
    }
    while !asked.is_empty() {
        sink.write(next(&mut asked).await?).await?;
    }
    sink.finish().await?;
    Ok(size)
}

async fn next(asked: &mut VecDeque<network_common::ChunkFuture>) -> anyhow::Result<Bytes> {
    Ok(asked.pop_front().context("nothing is asked for")?.await?)
}

async fn as_stream(client: &TransportClient, name: &str, output: &str) -> anyhow::Result<u64> {
    let mut body = client.stream(name).await?;
    let sink = Sink::new(output, progress(body.len()))?;
    while let Some(piece) = body.next_piece().await {
        sink.write(piece?).await?;
    }
    sink.finish().await?;
    Ok(body.len())
}

fn progress(size: u64) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}");
    ProgressBar::new(size).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
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
    let begun = Instant::now();
    let size = if flags.is_empty() {
        by_chunks(&client, &name, &output).await?
    } else {
        as_stream(&client, &name, &output).await?
    };
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{name} -> {output}: {size} bytes in {seconds:.2} s, {:.2} GB/s",
        size as f64 / seconds / 1e9
    );
    Ok(())
}
