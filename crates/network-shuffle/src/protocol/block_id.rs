//! [`BlockId`], the names of blocks.

use std::fmt;
use std::str::FromStr;

/// The name of a block (Spark's `BlockId`), as in `OpenBlocks` and error texts.
///
/// ```
/// use network_shuffle::protocol::BlockId;
///
/// let block: BlockId = "shuffle_7_123_4".parse()?;
/// assert_eq!(block, BlockId::Shuffle { shuffle_id: 7, map_id: 123, reduce_id: 4 });
/// assert_eq!(block.to_string(), "shuffle_7_123_4");
/// assert!("shuffle_7_123".parse::<BlockId>().is_err());
/// # Ok::<(), network_shuffle::protocol::BlockIdError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are those of Spark's classes and are named like them")]
pub enum BlockId {
    /// One shuffle block: `shuffle_<shuffle>_<map>_<reduce>`.
    Shuffle { shuffle_id: i32, map_id: i64, reduce_id: i32 },
    /// The adjacent blocks `start_reduce_id..end_reduce_id` of one map, as one chunk.
    ShuffleBatch { shuffle_id: i32, map_id: i64, start_reduce_id: i32, end_reduce_id: i32 },
    /// One chunk of a merged block: `shuffleChunk_<shuffle>_<merge>_<reduce>_<chunk>`.
    ShuffleChunk { shuffle_id: i32, shuffle_merge_id: i32, reduce_id: i32, chunk_id: i32 },
    /// A block that is pushed to be merged: `shufflePush_<shuffle>_<merge>_<map>_<reduce>`.
    ShufflePush { shuffle_id: i32, shuffle_merge_id: i32, map_index: i32, reduce_id: i32 },
    /// A cached partition: `rdd_<rdd>_<split>`.
    Rdd { rdd_id: i32, split_index: i32 },
}

/// A text is not the name of a block.
///
/// ```
/// use network_shuffle::protocol::BlockId;
///
/// let error = "../etc/passwd".parse::<BlockId>().unwrap_err();
/// assert_eq!(error.to_string(), "this is not the name of a block");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is not the name of a block")]
#[non_exhaustive]
pub struct BlockIdError;

impl FromStr for BlockId {
    type Err = BlockIdError;

    fn from_str(text: &str) -> Result<Self, BlockIdError> {
        let mut parts = text.split('_');
        let kind = parts.next();
        // Four fields at most; a fifth makes the count wrong.
        let mut fields = [""; 5];
        let mut count = 0;
        for (field, part) in fields.iter_mut().zip(parts.by_ref()) {
            *field = part;
            count += 1;
        }
        Ok(match (kind, count) {
            (Some("shuffle"), 3) => Self::Shuffle {
                shuffle_id: number(fields[0])?,
                map_id: number(fields[1])?,
                reduce_id: number(fields[2])?,
            },
            (Some("shuffle"), 4) => Self::ShuffleBatch {
                shuffle_id: number(fields[0])?,
                map_id: number(fields[1])?,
                start_reduce_id: number(fields[2])?,
                end_reduce_id: number(fields[3])?,
            },
            (Some("shuffleChunk"), 4) => Self::ShuffleChunk {
                shuffle_id: number(fields[0])?,
                shuffle_merge_id: number(fields[1])?,
                reduce_id: number(fields[2])?,
                chunk_id: number(fields[3])?,
            },
            (Some("shufflePush"), 4) => Self::ShufflePush {
                shuffle_id: number(fields[0])?,
                shuffle_merge_id: number(fields[1])?,
                map_index: number(fields[2])?,
                reduce_id: number(fields[3])?,
            },
            (Some("rdd"), 2) => {
                Self::Rdd { rdd_id: number(fields[0])?, split_index: number(fields[1])? }
            }
            _ => return Err(BlockIdError),
        })
    }
}

/// Parses a decimal number as Java's `Integer.parseInt` does.
fn number<N: FromStr>(text: &str) -> Result<N, BlockIdError> {
    text.parse().map_err(|_| BlockIdError)
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shuffle { shuffle_id, map_id, reduce_id } => {
                write!(f, "shuffle_{shuffle_id}_{map_id}_{reduce_id}")
            }
            Self::ShuffleBatch { shuffle_id, map_id, start_reduce_id, end_reduce_id } => {
                write!(f, "shuffle_{shuffle_id}_{map_id}_{start_reduce_id}_{end_reduce_id}")
            }
            Self::ShuffleChunk { shuffle_id, shuffle_merge_id, reduce_id, chunk_id } => {
                write!(f, "shuffleChunk_{shuffle_id}_{shuffle_merge_id}_{reduce_id}_{chunk_id}")
            }
            Self::ShufflePush { shuffle_id, shuffle_merge_id, map_index, reduce_id } => {
                write!(f, "shufflePush_{shuffle_id}_{shuffle_merge_id}_{map_index}_{reduce_id}")
            }
            Self::Rdd { rdd_id, split_index } => write!(f, "rdd_{rdd_id}_{split_index}"),
        }
    }
}
