//! Reads of blocks with the block client of network-shuffle.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bench_protocol::{Latency, Sample, ShuffleJob};
use futures::StreamExt;
use hdrhistogram::Histogram;
use network_common::ManagedBuffer;
use network_shuffle::client::{
    BlockClientConf, BlockLocation, ExternalBlockStoreClient, FetchTarget,
};
use network_shuffle::protocol::BlockId;

use crate::files::Content;
use crate::{APP, EXECUTOR, context};

/// The content of one in this number of blocks is checked; the length of each block is.
const CHECK_INTERVAL: usize = 64;

/// The clients of all reducers.
pub(crate) struct Readers {
    location: BlockLocation,
    clients: Vec<ExternalBlockStoreClient>,
}

impl Readers {
    pub(crate) fn new(service: SocketAddr) -> Self {
        Self { location: BlockLocation::new(service, EXECUTOR), clients: Vec::new() }
    }

    /// Reads a shuffle until the time has passed; returns the number of blocks.
    pub(crate) async fn read(&mut self, job: &ShuffleJob) -> anyhow::Result<u64> {
        let end = Instant::now() + Duration::from_millis(job.millis);
        let content = Arc::new(Content::new(job.bytes));
        let tasks: Vec<_> = (0..job.reducers)
            .map(|index| {
                let reducer = Reducer {
                    client: self.client(index).clone(),
                    location: self.location.clone(),
                    index,
                    job: *job,
                    content: Arc::clone(&content),
                };
                tokio::spawn(reducer.run(end))
            })
            .collect();
        let mut blocks = 0;
        for task in tasks {
            blocks += task.await??;
        }
        Ok(blocks)
    }

    /// Fetches single blocks until the time has passed.
    pub(crate) async fn fetch(&mut self, job: &ShuffleJob) -> anyhow::Result<Sample> {
        let content = Content::new(job.bytes);
        let client = self.client(0).clone();
        let mut latency: Histogram<u64> = Histogram::new(3)?;
        let (start, mut operations) = (Instant::now(), 0);
        while start.elapsed() < Duration::from_millis(job.millis) {
            let (map, reduce) = (operations % job.maps, operations / job.maps % job.reducers);
            let begin = Instant::now();
            let blocks = [block_id(job, map, reduce)];
            let mut blocks = client.fetch_blocks(&self.location, blocks, FetchTarget::Memory);
            let (_, block) = blocks.next().await.context("the stream has no block")?;
            let block = block?;
            latency.record(u64::try_from(begin.elapsed().as_nanos())?)?;
            check(&content, map, reduce, &block, operations).await?;
            operations += 1;
        }
        let at = |quantile| latency.value_at_quantile(quantile) as f64 / 1e3;
        Ok(Sample {
            operations: operations as u64,
            seconds: start.elapsed().as_secs_f64(),
            latency: Some(Latency {
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
                p999: at(0.999),
                p9999: at(0.9999),
                max: at(1.0),
            }),
        })
    }

    /// Returns the client of a reducer. Each has its own connection.
    fn client(&mut self, index: usize) -> &ExternalBlockStoreClient {
        while self.clients.len() <= index {
            let conf = BlockClientConf::default();
            self.clients.push(ExternalBlockStoreClient::new(context(), APP, conf));
        }
        &self.clients[index]
    }
}

/// One reducer, which reads its partition again and again.
struct Reducer {
    client: ExternalBlockStoreClient,
    location: BlockLocation,
    index: usize,
    job: ShuffleJob,
    content: Arc<Content>,
}

impl Reducer {
    async fn run(self, end: Instant) -> anyhow::Result<u64> {
        let mut total = 0;
        loop {
            total += self.read_partition().await?;
            if Instant::now() >= end {
                return Ok(total);
            }
        }
    }

    async fn read_partition(&self) -> anyhow::Result<u64> {
        let Self { client, location, index, job, content } = self;
        let blocks = (0..job.maps).map(|map| (block_id(job, map, *index), job.bytes as u64));
        let mut blocks = client.fetch_shuffle([(location.clone(), blocks.collect())]);
        let mut count = 0;
        while let Some(block) = blocks.next().await {
            let BlockId::Shuffle { map_id, .. } = block.id else { continue };
            check(content, usize::try_from(map_id)?, *index, &block.result?, count).await?;
            count += 1;
        }
        ensure!(count == job.maps, "{count} blocks instead of {}", job.maps);
        Ok(count as u64)
    }
}

/// Checks the length of a block, and the content of some.
async fn check(
    content: &Content,
    map: usize,
    reduce: usize,
    block: &ManagedBuffer,
    count: usize,
) -> anyhow::Result<()> {
    let expected = content.of(map, reduce).len() as u64;
    ensure!(block.len() == expected, "{} bytes instead of {expected}", block.len());
    if count.is_multiple_of(CHECK_INTERVAL) {
        content.check(map, reduce, &block.read().await?)?;
    }
    Ok(())
}

fn block_id(job: &ShuffleJob, map: usize, reduce: usize) -> BlockId {
    BlockId::Shuffle { shuffle_id: job.bytes as i32, map_id: map as i64, reduce_id: reduce as i32 }
}
