//! [`StreamBlocks`], the blocks that the chunks of one stream are.

use network_common::peer_name;

use crate::protocol::{BlockId, IntLists, StringList};
use crate::request_error::RequestError;

/// The blocks of a stream that were not fetched yet, in order.
///
/// They stay in the form of the request, so a stream needs about the bytes of its request.
#[derive(Debug)]
pub(super) struct StreamBlocks {
    /// The number of chunks that were not fetched yet.
    left: usize,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// `OpenBlocks`: all ids were checked.
    Ids(StringList),
    /// `FetchShuffleBlocks`.
    Shuffle {
        shuffle_id: i32,
        /// In reverse order.
        map_ids: Vec<i64>,
        map_id: i64,
        reduce_ids: crate::protocol::IntCursor,
        batch: bool,
    },
    /// `FetchShuffleBlockChunks`: every chunk fails, so its ids are not needed.
    Merged { shuffle_id: i32, shuffle_merge_id: i32 },
}

impl StreamBlocks {
    /// Checks the ids of an `OpenBlocks` request, which must be of one kind and shuffle.
    pub(super) fn open_blocks(ids: StringList) -> Result<Self, RequestError> {
        let mut parsed = ids.iter().map(|id| (id.parse::<BlockId>(), id));
        let Some((first, first_id)) = parsed.next() else {
            return Err(RequestError::illegal_argument("Empty blockIds"));
        };
        let unexpected = |kind: &str, id: &str| {
            let id = peer_name(id);
            RequestError::illegal_argument(format!("Unexpected {kind} format: {id}"))
        };
        let first = match first {
            Ok(first @ (BlockId::Shuffle { .. } | BlockId::Rdd { .. })) => first,
            Ok(first @ BlockId::ShuffleChunk { .. }) => first,
            _ => return Err(unexpected("block id", &first_id)),
        };
        for (block, id) in std::iter::once((Ok(first), first_id)).chain(parsed) {
            match (first, block) {
                // The message is that of releases whose map ids have 32 bits.
                (BlockId::Shuffle { .. }, Ok(BlockId::Shuffle { map_id, .. }))
                    if i32::try_from(map_id).is_err() =>
                {
                    return Err(unexpected("shuffle block id", &id));
                }
                (
                    BlockId::Shuffle { shuffle_id: expected, .. },
                    Ok(BlockId::Shuffle { shuffle_id, .. }),
                ) if shuffle_id != expected => {
                    let id = peer_name(&id);
                    return Err(RequestError::illegal_argument(format!(
                        "Expected shuffleId={expected}, got:{id}"
                    )));
                }
                (BlockId::Shuffle { .. }, Ok(BlockId::Shuffle { .. }))
                | (BlockId::Rdd { .. }, Ok(BlockId::Rdd { .. }))
                | (BlockId::ShuffleChunk { .. }, Ok(BlockId::ShuffleChunk { .. })) => {}
                (BlockId::Rdd { .. }, _) => return Err(unexpected("RDD block id", &id)),
                _ => return Err(unexpected("shuffle block id", &id)),
            }
        }
        Ok(Self { left: ids.len(), source: Source::Ids(ids) })
    }

    /// Checks the lists of a `FetchShuffleBlocks` request.
    pub(super) fn shuffle(
        shuffle_id: i32,
        mut map_ids: Vec<i64>,
        reduce_ids: IntLists,
        batch: bool,
    ) -> Result<Self, RequestError> {
        if map_ids.is_empty() || map_ids.len() != reduce_ids.len() {
            return Err(RequestError::illegal_argument(format!(
                "a request needs one list of reduce ids for each map; it has {} maps and {} lists",
                map_ids.len(),
                reduce_ids.len()
            )));
        }
        if let Some(len) = reduce_ids.lens().find(|len| if batch { *len != 2 } else { *len == 0 }) {
            return Err(RequestError::illegal_argument(if batch {
                format!("a list of a batch has a first and a last reduce id, not {len} ids")
            } else {
                "a list of reduce ids is empty".to_owned()
            }));
        }
        let left = if batch { map_ids.len() } else { reduce_ids.total() };
        map_ids.reverse();
        let reduce_ids = reduce_ids.into_cursor();
        let source = Source::Shuffle { shuffle_id, map_ids, map_id: 0, reduce_ids, batch };
        Ok(Self { left, source })
    }

    /// Checks the lists of a `FetchShuffleBlockChunks` request.
    pub(super) fn merged(
        shuffle_id: i32,
        shuffle_merge_id: i32,
        reduce_ids: &[i32],
        chunk_ids: &IntLists,
    ) -> Result<Self, RequestError> {
        if reduce_ids.len() != chunk_ids.len() {
            return Err(RequestError::illegal_argument(format!(
                "a request needs one list of chunks for each reduce id; it has {} reduce ids and \
                 {} lists",
                reduce_ids.len(),
                chunk_ids.len()
            )));
        }
        let source = Source::Merged { shuffle_id, shuffle_merge_id };
        Ok(Self { left: chunk_ids.total(), source })
    }

    /// Returns the number of chunks that were not fetched yet.
    pub(super) fn left(&self) -> usize {
        self.left
    }
}

impl Iterator for StreamBlocks {
    type Item = BlockId;

    fn next(&mut self) -> Option<BlockId> {
        self.left = self.left.checked_sub(1)?;
        match &mut self.source {
            Source::Ids(ids) => ids.pop_first()?.parse().ok(),
            Source::Shuffle { shuffle_id, map_ids, map_id, reduce_ids, batch } => {
                if reduce_ids.start_list_if_done() {
                    *map_id = map_ids.pop()?;
                }
                let (shuffle_id, map_id, reduce_id) =
                    (*shuffle_id, *map_id, reduce_ids.next_int()?);
                Some(if *batch {
                    let end_reduce_id = reduce_ids.next_int()?;
                    let start_reduce_id = reduce_id;
                    BlockId::ShuffleBatch { shuffle_id, map_id, start_reduce_id, end_reduce_id }
                } else {
                    BlockId::Shuffle { shuffle_id, map_id, reduce_id }
                })
            }
            Source::Merged { shuffle_id, shuffle_merge_id } => Some(BlockId::ShuffleChunk {
                shuffle_id: *shuffle_id,
                shuffle_merge_id: *shuffle_merge_id,
                reduce_id: 0,
                chunk_id: 0,
            }),
        }
    }
}
