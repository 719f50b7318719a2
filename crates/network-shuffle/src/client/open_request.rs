//! [`OpenRequest`]: the message that opens a stream of blocks, and the order of its chunks.

use std::collections::HashMap;
use std::hash::Hash;

use super::error::BlockError;
use crate::protocol::{BlockId, BlockTransferMessage, IntLists, StringList};

/// A message that opens a stream, whose chunk `i` is the `i`-th of the blocks.
///
/// Corresponds to the constructor of Spark's `OneForOneBlockFetcher`.
#[derive(Debug)]
pub(super) struct OpenRequest {
    pub(super) message: BlockTransferMessage,
    pub(super) len: usize,
}

impl OpenRequest {
    /// Returns the request of `blocks`, which are in the order of [`in_chunk_order`].
    pub(super) fn new(
        app_id: &str,
        exec_id: &str,
        blocks: &[BlockId],
        use_old_protocol: bool,
    ) -> Result<Self, BlockError> {
        let (app_id, exec_id) = (app_id.to_owned(), exec_id.to_owned());
        let message = match blocks.first() {
            None => return Err(invalid("there are no blocks")),
            Some(_) if i32::try_from(blocks.len()).is_err() => {
                return Err(invalid("a stream has at most 2147483647 blocks"));
            }
            Some(_) if !use_old_protocol && blocks.iter().all(is_shuffle) => {
                fetch_shuffle_blocks(app_id, exec_id, blocks)?
            }
            Some(_) if !use_old_protocol && blocks.iter().all(is_shuffle_chunk) => {
                fetch_shuffle_block_chunks(app_id, exec_id, blocks)?
            }
            Some(_) => {
                let block_ids = blocks.iter().map(ToString::to_string).collect::<StringList>();
                BlockTransferMessage::OpenBlocks { app_id, exec_id, block_ids }
            }
        };
        Ok(Self { message, len: blocks.len() })
    }
}

/// Puts blocks into the order in which a peer serves them.
///
/// Blocks of one map, or chunks of one reduce id, follow each other, in the order in which their
/// map appears first. `OpenBlocks` would permit any order.
pub(super) fn in_chunk_order<T>(blocks: Vec<T>, id: impl Fn(&T) -> BlockId) -> Vec<T> {
    if blocks.iter().all(|block| is_shuffle(&id(block))) {
        groups(blocks, |block| map_id(&id(block)))
            .into_iter()
            .flat_map(|(_, group)| group)
            .collect()
    } else if blocks.iter().all(|block| is_shuffle_chunk(&id(block))) {
        groups(blocks, |block| merged_reduce_id(&id(block)))
            .into_iter()
            .flat_map(|(_, group)| group)
            .collect()
    } else {
        blocks
    }
}

fn fetch_shuffle_blocks(
    app_id: String,
    exec_id: String,
    blocks: &[BlockId],
) -> Result<BlockTransferMessage, BlockError> {
    let shuffle_id = blocks.first().and_then(shuffle_id);
    if blocks.iter().any(|block| self::shuffle_id(block) != shuffle_id) {
        return Err(invalid("the blocks belong to several shuffles"));
    }
    let is_batch = |block: &BlockId| matches!(block, BlockId::ShuffleBatch { .. });
    let batch = blocks.first().is_some_and(is_batch);
    if blocks.iter().any(|block| is_batch(block) != batch) {
        return Err(invalid("batches of blocks and single blocks are mixed"));
    }
    let mut map_ids = Vec::new();
    let mut reduce_ids = Vec::new();
    for (map_id, group) in groups(blocks.to_vec(), map_id) {
        if batch {
            // One list for each batch: a list with `batch` is exactly a start and an end.
            for block in group {
                map_ids.push(map_id);
                reduce_ids.push(reduce_range(&block));
            }
        } else {
            map_ids.push(map_id);
            reduce_ids.push(group.iter().flat_map(reduce_range).collect());
        }
    }
    if batch && reduce_ids.iter().any(|range| range.first() >= range.last()) {
        return Err(invalid("a batch of blocks is empty"));
    }
    Ok(BlockTransferMessage::FetchShuffleBlocks {
        app_id,
        exec_id,
        shuffle_id: shuffle_id.unwrap_or_default(),
        map_ids,
        reduce_ids: reduce_ids.into_iter().collect::<IntLists>(),
        batch,
    })
}

fn fetch_shuffle_block_chunks(
    app_id: String,
    exec_id: String,
    blocks: &[BlockId],
) -> Result<BlockTransferMessage, BlockError> {
    let merge = |block: &BlockId| match block {
        BlockId::ShuffleChunk { shuffle_id, shuffle_merge_id, .. } => {
            (*shuffle_id, *shuffle_merge_id)
        }
        _ => (0, 0),
    };
    let (shuffle_id, shuffle_merge_id) = blocks.first().map(merge).unwrap_or_default();
    if blocks.iter().any(|block| merge(block) != (shuffle_id, shuffle_merge_id)) {
        return Err(invalid("the chunks belong to several shuffles or merges"));
    }
    let chunk_id = |block: &BlockId| match block {
        BlockId::ShuffleChunk { chunk_id, .. } => *chunk_id,
        _ => 0,
    };
    let (reduce_ids, chunk_ids): (Vec<i32>, Vec<Vec<i32>>) =
        groups(blocks.to_vec(), merged_reduce_id)
            .into_iter()
            .map(|(reduce_id, group)| (reduce_id, group.iter().map(chunk_id).collect()))
            .unzip();
    Ok(BlockTransferMessage::FetchShuffleBlockChunks {
        app_id,
        exec_id,
        shuffle_id,
        shuffle_merge_id,
        reduce_ids,
        chunk_ids: chunk_ids.into_iter().collect::<IntLists>(),
    })
}

fn invalid(reason: &'static str) -> BlockError {
    BlockError::InvalidRequest { reason }
}

fn is_shuffle(block: &BlockId) -> bool {
    matches!(block, BlockId::Shuffle { .. } | BlockId::ShuffleBatch { .. })
}

fn is_shuffle_chunk(block: &BlockId) -> bool {
    matches!(block, BlockId::ShuffleChunk { .. })
}

/// Returns the shuffle of a block; `None` if it does not belong to one.
pub(super) fn shuffle_id(block: &BlockId) -> Option<i32> {
    match block {
        BlockId::Shuffle { shuffle_id, .. }
        | BlockId::ShuffleBatch { shuffle_id, .. }
        | BlockId::ShuffleChunk { shuffle_id, .. }
        | BlockId::ShufflePush { shuffle_id, .. } => Some(*shuffle_id),
        BlockId::Rdd { .. } => None,
    }
}

fn map_id(block: &BlockId) -> i64 {
    match block {
        BlockId::Shuffle { map_id, .. } | BlockId::ShuffleBatch { map_id, .. } => *map_id,
        _ => 0,
    }
}

fn merged_reduce_id(block: &BlockId) -> i32 {
    match block {
        BlockId::ShuffleChunk { reduce_id, .. } => *reduce_id,
        _ => 0,
    }
}

/// Returns the reduce id of a block, or start and end of a batch.
fn reduce_range(block: &BlockId) -> Vec<i32> {
    match block {
        BlockId::Shuffle { reduce_id, .. } => vec![*reduce_id],
        BlockId::ShuffleBatch { start_reduce_id, end_reduce_id, .. } => {
            vec![*start_reduce_id, *end_reduce_id]
        }
        _ => Vec::new(),
    }
}

/// Groups blocks by key, in the order in which the keys appear first.
fn groups<T, K: Copy + Eq + Hash>(blocks: Vec<T>, key: impl Fn(&T) -> K) -> Vec<(K, Vec<T>)> {
    let mut positions: HashMap<K, usize> = HashMap::new();
    let mut groups: Vec<(K, Vec<T>)> = Vec::new();
    for block in blocks {
        let key = key(&block);
        let position = *positions.entry(key).or_insert_with(|| {
            groups.push((key, Vec::new()));
            groups.len() - 1
        });
        groups[position].1.push(block);
    }
    groups
}
