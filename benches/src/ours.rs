//! This workspace's transport under load.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use network_common::{
    BoxError, ManagedBuffer, NoOpRpcHandler, RpcHandler, RpcResponseCallback, StreamManager, TransportClient,
    TransportConf, TransportContext, TransportServer,
};

/// Echoes RPCs; chunk `i` of stream `size` is the region `[i * size, (i + 1) * size)` of a file, or that much memory.
struct BenchHandler {
    chunks: Chunks,
}

/// Where chunks come from.
#[derive(Debug, Clone)]
#[allow(clippy::exhaustive_enums, reason = "a bench")]
pub enum Chunks {
    /// Regions of this file, which has this length.
    File(PathBuf, u64),
    /// The start of this memory.
    Memory(Bytes),
}

impl RpcHandler for BenchHandler {
    fn receive(&self, _: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
        callback.reply(message);
    }

    fn stream_manager(&self) -> &dyn StreamManager {
        self
    }
}

impl StreamManager for BenchHandler {
    fn get_chunk<'a>(
        &'a self,
        _: &'a TransportClient,
        size: i64,
        index: i32,
    ) -> BoxFuture<'a, Result<ManagedBuffer, BoxError>> {
        Box::pin(async move {
            let size = size.unsigned_abs();
            Ok(match &self.chunks {
                Chunks::File(path, length) => {
                    let start = u64::from(index.unsigned_abs()) * size % length;
                    ManagedBuffer::file(path, start..start + size)
                }
                Chunks::Memory(bytes) => bytes.slice(..usize::try_from(size)?).into(),
            })
        })
    }
}

/// An echo and chunk server.
///
/// # Errors
/// When it cannot listen.
pub async fn serve(address: &str, chunks: Chunks) -> anyhow::Result<TransportServer> {
    let context = TransportContext::new(TransportConf::new("bench"), BenchHandler { chunks });
    Ok(context.create_server(address).await?)
}

/// A client of it.
///
/// # Errors
/// When it cannot connect.
pub async fn connect(address: SocketAddr) -> anyhow::Result<TransportClient> {
    let context = TransportContext::new(TransportConf::new("bench"), NoOpRpcHandler::new());
    Ok(context.create_client_factory().create_unmanaged_client(address).await?)
}

/// `count` echoes, always `window` in flight; with window 1 also the latency of each.
///
/// # Errors
/// When an echo fails.
pub async fn echo(
    client: &TransportClient,
    body: Bytes,
    window: usize,
    count: usize,
) -> anyhow::Result<(Duration, Vec<Duration>)> {
    let mut latencies = Vec::new();
    let begun = Instant::now();
    if window == 1 {
        latencies.reserve(count);
        for _ in 0..count {
            let sent = Instant::now();
            client.send_rpc(body.clone()).await?;
            latencies.push(sent.elapsed());
        }
    } else {
        let mut waiting: VecDeque<_> = (0..window).map(|_| client.send_rpc(body.clone())).collect();
        for done in 0..count {
            if let Some(answer) = waiting.pop_front() {
                answer.await?;
            }
            if done + window < count {
                waiting.push_back(client.send_rpc(body.clone()));
            }
        }
    }
    Ok((begun.elapsed(), latencies))
}

/// `tasks` tasks on one connection, each with one echo in flight; `count` in all.
///
/// # Errors
/// When an echo fails.
pub async fn echo_tasks(
    client: &TransportClient,
    body: Bytes,
    tasks: usize,
    count: usize,
) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let running: Vec<_> = (0..tasks)
        .map(|_| {
            let (client, body) = (client.clone(), body.clone());
            tokio::spawn(async move {
                for _ in 0..count / tasks {
                    client.send_rpc(body.clone()).await?;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for task in running {
        task.await??;
    }
    Ok(begun.elapsed())
}

/// Fetches `count` chunks of `size` bytes, always `window` in flight.
///
/// # Errors
/// When a fetch fails.
pub async fn fetch(
    client: &TransportClient,
    size: usize,
    window: usize,
    count: usize,
) -> anyhow::Result<Duration> {
    let size_id = i64::try_from(size)?;
    let begun = Instant::now();
    let mut waiting = VecDeque::new();
    for index in 0..count {
        if waiting.len() == window {
            receive(waiting.pop_front(), size).await?;
        }
        waiting.push_back(client.fetch_chunk(size_id, i32::try_from(index)?));
    }
    while !waiting.is_empty() {
        receive(waiting.pop_front(), size).await?;
    }
    Ok(begun.elapsed())
}

async fn receive(chunk: Option<network_common::ChunkFuture>, size: usize) -> anyhow::Result<()> {
    if let Some(chunk) = chunk {
        anyhow::ensure!(chunk.await?.len() == size, "a chunk of the wrong length");
    }
    Ok(())
}
