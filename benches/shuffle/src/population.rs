//! Registrations of executors, and connections that stay open.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bench_protocol::ShuffleJob;
use futures::{StreamExt, TryStreamExt, stream};
use network_common::{TransportClient, TransportClientFactory, TransportError};
use network_shuffle::protocol::{BlockTransferMessage, ExecutorShuffleInfo, IntLists};

use crate::files::{Content, Files};
use crate::{APP, EXECUTOR, connections};

/// A JVM needs several seconds to start.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// The time between two attempts to connect to a service that is starting.
const START_INTERVAL: Duration = Duration::from_millis(1);
/// Registrations that wait for their responses. Our service rejects more than 256.
const REGISTRATIONS_IN_FLIGHT: usize = 128;
/// Connections that are being opened at the same time.
const CONNECTS_IN_FLIGHT: usize = 32;

/// The connections that do not belong to readers.
pub(crate) struct Population {
    address: SocketAddr,
    factory: TransportClientFactory,
    open: Vec<TransportClient>,
}

impl Population {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, factory: connections(), open: Vec::new() }
    }

    /// Registers the executor with the shuffles as soon as the service is ready.
    pub(crate) async fn register(&self, files: &Files) -> anyhow::Result<u64> {
        let message = registration(EXECUTOR.to_owned(), files.writer()).encode();
        let deadline = Instant::now() + START_TIMEOUT;
        let client = loop {
            match self.connect_once().await {
                Ok(client) => break client,
                Err(error) if Instant::now() >= deadline => {
                    return Err(error).context("the service did not start in time");
                }
                Err(_) => tokio::time::sleep(START_INTERVAL).await,
            }
        };
        client.send_rpc(message).await?;
        Ok(1)
    }

    /// Registers executors without blocks.
    pub(crate) async fn register_executors(
        &self,
        files: &Files,
        count: usize,
    ) -> anyhow::Result<u64> {
        let client = &self.connect_once().await?;
        stream::iter(0..count)
            .map(|index| {
                let info = files.executor(index);
                client.send_rpc(registration(format!("idle-{index}"), info).encode())
            })
            .buffer_unordered(REGISTRATIONS_IN_FLIGHT)
            .try_for_each(async |_| Ok(()))
            .await?;
        Ok(count as u64)
    }

    /// Opens connections until there are `job.population`, and fetches a block over each.
    pub(crate) async fn connect(&mut self, job: &ShuffleJob) -> anyhow::Result<u64> {
        let content = &Content::new(job.bytes);
        let population = &*self;
        let opened: Vec<_> = stream::iter(self.open.len()..job.population)
            .map(|index| async move {
                let client = population.connect_once().await?;
                fetch(&client, job, index % job.maps, content).await?;
                anyhow::Ok(client)
            })
            .buffer_unordered(CONNECTS_IN_FLIGHT)
            .try_collect()
            .await?;
        self.open.extend(opened);
        ensure!(self.open.iter().all(TransportClient::is_active), "a connection was closed");
        Ok(job.population as u64)
    }

    async fn connect_once(&self) -> Result<TransportClient, TransportError> {
        self.factory.create_unmanaged_client(self.address).await
    }
}

fn registration(exec_id: String, info: ExecutorShuffleInfo) -> BlockTransferMessage {
    BlockTransferMessage::RegisterExecutor { app_id: APP.to_owned(), exec_id, info }
}

/// Fetches the block of `map` for the first reducer.
async fn fetch(
    client: &TransportClient,
    job: &ShuffleJob,
    map: usize,
    content: &Content,
) -> anyhow::Result<()> {
    let request = BlockTransferMessage::FetchShuffleBlocks {
        app_id: APP.to_owned(),
        exec_id: EXECUTOR.to_owned(),
        shuffle_id: i32::try_from(job.bytes)?,
        map_ids: vec![map as i64],
        reduce_ids: IntLists::from_iter([vec![0]]),
        batch: false,
    };
    let response = client.send_rpc(request.encode()).await?;
    let BlockTransferMessage::StreamHandle { stream_id, num_chunks: 1 } =
        BlockTransferMessage::decode(&response)?
    else {
        bail!("the response is no stream of one chunk");
    };
    content.check(map, 0, &client.fetch_chunk(stream_id, 0).await?)
}
