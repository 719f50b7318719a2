//! [`ShuffleBlockStream`]: the blocks of many locations as one stream, within limits.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::stream::SelectAll;
use futures::{Stream, StreamExt};
use network_common::ManagedBuffer;

use super::block_fetch::BlockFetch;
use super::error::BlockError;
use super::governor::{FetchRequest, Governor};
use super::location::BlockLocation;
use super::store::BlockStore;
use super::target::FetchTarget;
use crate::protocol::BlockId;

/// The blocks of a shuffle read (Spark's `ShuffleBlockFetcherIterator`), each of them once.
///
/// [`ExternalBlockStoreClient::fetch_shuffle`](super::ExternalBlockStoreClient::fetch_shuffle)
/// returns it. A block is in flight from its request
/// until the stream returns it. Limits of what is in flight:
///
/// * the sum of the expected sizes: `spark.reducer.maxSizeInFlight`. A request has about a fifth of
///   it, so that blocks come from five locations at once. A larger block is requested alone.
/// * the number of requests: `spark.reducer.maxReqsInFlight`.
/// * the blocks of one location: `spark.reducer.maxBlocksInFlightPerAddress`. A request beyond that
///   waits, and those of other locations overtake it.
/// * the bytes of a request whose blocks are larger than expected: twice the expected bytes, or
///   2 MiB if that is more, beyond the first 8 blocks. The rest waits for the reader.
/// * A request that expects more bytes than `spark.network.maxRemoteBlockSizeFetchToMem` is fetched
///   to files.
///
/// Requests are sent when the stream is polled, in random order. Each is fetched and repeated as by
/// [`fetch_blocks`](super::ExternalBlockStoreClient::fetch_blocks). A block that fails does not end
/// the stream. Dropping the stream cancels everything, as with [`BlockFetch`].
///
/// ```no_run
/// use futures::StreamExt;
/// use network_common::BoxError;
/// use network_shuffle::client::{BlockLocation, ExternalBlockStoreClient};
/// use network_shuffle::protocol::BlockId;
///
/// async fn read_partition(client: &ExternalBlockStoreClient) -> Result<u64, BoxError> {
///     let block = |map_id| BlockId::Shuffle { shuffle_id: 0, map_id, reduce_id: 5 };
///     let mut blocks = client.fetch_shuffle([
///         (BlockLocation::new(("worker-1", 7337), "0"), vec![(block(0), 4000), (block(2), 3000)]),
///         (BlockLocation::new(("worker-2", 7337), "1"), vec![(block(1), 5000)]),
///     ]);
///     let mut bytes = 0;
///     while let Some(block) = blocks.next().await {
///         bytes += block.result?.read().await?.len() as u64;
///     }
///     Ok(bytes)
/// }
/// ```
#[must_use = "the read is cancelled when the stream is dropped"]
pub struct ShuffleBlockStream {
    store: Arc<BlockStore>,
    governor: Governor,
    locations: Vec<Arc<BlockLocation>>,
    active: SelectAll<ActiveRequest>,
}

/// A block of a [`ShuffleBlockStream`], or the error with which it failed.
///
/// ```
/// use network_shuffle::client::FetchedBlock;
///
/// fn describe(block: &FetchedBlock) -> String {
///     match &block.result {
///         Ok(buffer) => format!("{} has {} bytes", block.id, buffer.len()),
///         Err(error) => format!("{} of {}: {error:#}", block.id, block.location),
///     }
/// }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct FetchedBlock {
    /// The location that the block was fetched from.
    pub location: Arc<BlockLocation>,
    /// The block.
    pub id: BlockId,
    /// The expected size in bytes.
    pub expected_size: u64,
    /// The content.
    pub result: Result<ManagedBuffer, BlockError>,
    location_index: usize,
}

/// A request in flight, as a stream of its blocks.
struct ActiveRequest {
    location: usize,
    /// The expected sizes of the blocks that were not returned.
    sizes: VecDeque<u64>,
    fetch: BlockFetch,
}

/// A block of a request.
struct RequestedBlock {
    location: usize,
    id: BlockId,
    size: u64,
    is_last: bool,
    result: Result<ManagedBuffer, BlockError>,
}

impl Stream for ActiveRequest {
    type Item = RequestedBlock;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.fetch.poll_next_unpin(context).map(|block| {
            let (id, result) = block?;
            let size = self.sizes.pop_front().unwrap_or_default();
            let is_last = self.fetch.is_empty();
            Some(RequestedBlock { location: self.location, id, size, is_last, result })
        })
    }
}

impl ShuffleBlockStream {
    pub(super) fn new(
        store: Arc<BlockStore>,
        blocks: impl IntoIterator<Item = (BlockLocation, Vec<(BlockId, u64)>)>,
    ) -> Self {
        let mut governor = Governor::new(store.conf.governor_limits());
        let mut locations = Vec::new();
        for (location, blocks) in blocks {
            locations.push(Arc::new(location));
            governor.add_location(blocks);
        }
        governor.shuffle();
        Self { store, governor, locations, active: SelectAll::new() }
    }

    /// Returns the expected bytes of the blocks in flight.
    #[must_use]
    pub fn bytes_in_flight(&self) -> u64 {
        self.governor.bytes_in_flight()
    }

    /// Returns the number of requests of which blocks are in flight.
    #[must_use]
    pub fn requests_in_flight(&self) -> usize {
        self.governor.requests_in_flight()
    }

    /// Fetches a block of this stream again, after all others; for one that is corrupt.
    ///
    /// Spark does so once for each block, and fails the task if the block is corrupt again.
    pub fn fetch_again(&mut self, block: FetchedBlock) {
        let mut index = block.location_index;
        if self.locations.get(index) != Some(&block.location) {
            // A block of another stream.
            index = self.locations.len();
            self.locations.push(block.location);
            self.governor.add_location(Vec::new());
        }
        self.governor.add_block(index, block.id, block.expected_size);
    }

    fn send(&mut self, request: FetchRequest) {
        let conf = &self.store.conf;
        let (target, expected_bytes) = if request.size > conf.max_remote_block_size_fetch_to_mem() {
            (FetchTarget::Files(conf.local_dir()), None)
        } else {
            (FetchTarget::Memory, Some(request.size))
        };
        let location = BlockLocation::clone(&self.locations[request.location]);
        let (blocks, sizes): (Vec<_>, _) = request.blocks.into_iter().unzip();
        let store = Arc::clone(&self.store);
        let fetch = BlockFetch::start(store, location, blocks, target, expected_bytes);
        self.active.push(ActiveRequest { location: request.location, sizes, fetch });
    }
}

impl Stream for ShuffleBlockStream {
    type Item = FetchedBlock;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while let Some(request) = self.governor.next_request() {
            self.send(request);
        }
        self.active.poll_next_unpin(context).map(|block| {
            let RequestedBlock { location, id, size, is_last, result } = block?;
            self.governor.on_block_taken(location, size, is_last);
            Some(FetchedBlock {
                location: Arc::clone(&self.locations[location]),
                id,
                expected_size: size,
                result,
                location_index: location,
            })
        })
    }
}

impl fmt::Debug for ShuffleBlockStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShuffleBlockStream")
            .field("governor", &self.governor)
            .finish_non_exhaustive()
    }
}
