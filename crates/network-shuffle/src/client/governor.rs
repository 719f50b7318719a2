//! [`Governor`]: which request of a shuffle read may be sent next, without I/O.

use std::collections::VecDeque;

use super::open_request::{in_chunk_order, shuffle_id};
use crate::protocol::BlockId;

/// The limits of a shuffle read (Spark's `spark.reducer.*`).
#[derive(Debug, Clone, Copy)]
pub(super) struct GovernorLimits {
    pub(super) max_bytes: u64,
    pub(super) max_requests: usize,
    pub(super) max_blocks_per_location: usize,
}

/// The blocks of one request: all of one location, one kind and one shuffle.
#[derive(Debug)]
pub(super) struct FetchRequest {
    /// The index of the location.
    pub(super) location: usize,
    /// The blocks with their expected sizes, in the order of their chunks.
    pub(super) blocks: Vec<(BlockId, u64)>,
    /// The sum of the expected sizes.
    pub(super) size: u64,
}

/// Decides when requests are sent, as Spark's `ShuffleBlockFetcherIterator.fetchUpToMaxBytes`.
///
/// A block is in flight from the request until the reader takes it out. A request is sent if the
/// limits permit it, or if no other one is in flight, so that a large block makes progress.
#[derive(Debug)]
pub(super) struct Governor {
    limits: GovernorLimits,
    /// The requests that have not reached the limit of their location.
    queued: VecDeque<FetchRequest>,
    locations: Vec<LocationState>,
    /// Locations with deferred requests and capacity for the first of them, probably.
    released: VecDeque<usize>,
    bytes_in_flight: u64,
    requests_in_flight: usize,
}

#[derive(Debug, Default)]
struct LocationState {
    blocks_in_flight: usize,
    /// Requests that reached the limit of blocks of the location, in order.
    deferred: VecDeque<FetchRequest>,
    is_released: bool,
}

impl Governor {
    pub(super) fn new(limits: GovernorLimits) -> Self {
        Self {
            limits,
            queued: VecDeque::new(),
            locations: Vec::new(),
            released: VecDeque::new(),
            bytes_in_flight: 0,
            requests_in_flight: 0,
        }
    }

    /// Adds the blocks of one more location, which gets the next index.
    ///
    /// A request is closed when it has a fifth of the bytes in flight, so that a read uses five
    /// locations at once, or the blocks in flight of a location.
    pub(super) fn add_location(&mut self, blocks: Vec<(BlockId, u64)>) {
        let location = self.locations.len();
        self.locations.push(LocationState::default());
        for blocks in split_by_kind(blocks) {
            self.add_requests(location, blocks);
        }
    }

    fn add_requests(&mut self, location: usize, blocks: Vec<(BlockId, u64)>) {
        let target_size = (self.limits.max_bytes / 5).max(1);
        let mut request = FetchRequest { location, blocks: Vec::new(), size: 0 };
        for (block, size) in in_chunk_order(blocks, |(block, _)| *block) {
            request.blocks.push((block, size));
            request.size = request.size.saturating_add(size);
            if request.size >= target_size
                || request.blocks.len() >= self.limits.max_blocks_per_location
            {
                let next = FetchRequest { location, blocks: Vec::new(), size: 0 };
                self.queued.push_back(std::mem::replace(&mut request, next));
            }
        }
        if !request.blocks.is_empty() {
            self.queued.push_back(request);
        }
    }

    /// Puts the requests into a random order, so that readers do not all begin at one location.
    pub(super) fn shuffle(&mut self) {
        fastrand::shuffle(self.queued.make_contiguous());
    }

    /// Adds a block that is fetched again.
    pub(super) fn add_block(&mut self, location: usize, block: BlockId, size: u64) {
        self.queued.push_back(FetchRequest { location, blocks: vec![(block, size)], size });
    }

    /// Returns the next request, which is in flight from now on; `None`: none may be sent.
    pub(super) fn next_request(&mut self) -> Option<FetchRequest> {
        while let Some(&index) = self.released.front() {
            let location = &self.locations[index];
            match location.deferred.front() {
                Some(request) if location.has_capacity(request, &self.limits) => {
                    if !self.is_permitted(request.size) {
                        return None;
                    }
                    let request = self.locations[index].deferred.pop_front()?;
                    return Some(self.start(request));
                }
                _ => {
                    self.locations[index].is_released = false;
                    self.released.pop_front();
                }
            }
        }
        while self.is_permitted(self.queued.front()?.size) {
            let request = self.queued.pop_front()?;
            let location = &mut self.locations[request.location];
            if location.deferred.is_empty() && location.has_capacity(&request, &self.limits) {
                return Some(self.start(request));
            }
            location.deferred.push_back(request);
        }
        None
    }

    /// Counts a block that the reader took out; `is_last`: it was the last of its request.
    pub(super) fn on_block_taken(&mut self, location: usize, size: u64, is_last: bool) {
        self.bytes_in_flight = self.bytes_in_flight.saturating_sub(size);
        self.requests_in_flight -= usize::from(is_last);
        let state = &mut self.locations[location];
        state.blocks_in_flight -= 1;
        if !state.deferred.is_empty() && !state.is_released {
            state.is_released = true;
            self.released.push_back(location);
        }
    }

    /// Returns the expected bytes in flight.
    pub(super) fn bytes_in_flight(&self) -> u64 {
        self.bytes_in_flight
    }

    /// Returns the number of requests in flight.
    pub(super) fn requests_in_flight(&self) -> usize {
        self.requests_in_flight
    }

    fn is_permitted(&self, size: u64) -> bool {
        self.requests_in_flight == 0
            || (self.requests_in_flight < self.limits.max_requests
                && self.bytes_in_flight.saturating_add(size) <= self.limits.max_bytes)
    }

    fn start(&mut self, request: FetchRequest) -> FetchRequest {
        self.bytes_in_flight += request.size;
        self.requests_in_flight += 1;
        self.locations[request.location].blocks_in_flight += request.blocks.len();
        request
    }
}

impl LocationState {
    fn has_capacity(&self, request: &FetchRequest, limits: &GovernorLimits) -> bool {
        self.blocks_in_flight + request.blocks.len() <= limits.max_blocks_per_location
    }
}

/// Splits blocks into lists that one message can request, in the order of their appearance.
fn split_by_kind(blocks: Vec<(BlockId, u64)>) -> Vec<Vec<(BlockId, u64)>> {
    let mut lists: Vec<Vec<(BlockId, u64)>> = Vec::new();
    for block in blocks {
        let is_same = |list: &&mut Vec<(BlockId, u64)>| match list.first() {
            Some((first, _)) => is_same_kind(first, &block.0),
            None => false,
        };
        match lists.iter_mut().rev().find(is_same) {
            Some(list) => list.push(block),
            None => lists.push(vec![block]),
        }
    }
    lists
}

fn is_same_kind(one: &BlockId, other: &BlockId) -> bool {
    let merge_id = |block: &BlockId| match block {
        BlockId::ShuffleChunk { shuffle_merge_id, .. } => Some(*shuffle_merge_id),
        _ => None,
    };
    std::mem::discriminant(one) == std::mem::discriminant(other)
        && shuffle_id(one) == shuffle_id(other)
        && merge_id(one) == merge_id(other)
}
