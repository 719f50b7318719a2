//! [`BlockTransferMessage`], every message of the protocol.

use std::fmt;

use bytes::Bytes;
use roaring::RoaringBitmap;

use super::{IntLists, StringList};

/// A message of the block transfer protocol (Spark's `BlockTransferMessage`).
///
/// ```
/// use network_shuffle::protocol::{BlockTransferMessage, StringList};
///
/// let open = BlockTransferMessage::OpenBlocks {
///     app_id: "app-1".to_owned(),
///     exec_id: "exec-2".to_owned(),
///     block_ids: StringList::from_iter(["shuffle_0_0_0"]),
/// };
/// assert_eq!(BlockTransferMessage::decode(&open.encode())?, open);
/// # Ok::<(), network_common::protocol::ProtocolError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are those of Spark's classes and are named like them")]
pub enum BlockTransferMessage {
    /// Type 0: opens a stream of blocks, named by texts.
    ///
    /// Answer: [`StreamHandle`](Self::StreamHandle).
    OpenBlocks { app_id: String, exec_id: String, block_ids: StringList },
    /// Type 1: stores a block at an executor. `metadata` is a serialized Java object.
    UploadBlock { app_id: String, exec_id: String, block_id: String, metadata: Bytes, data: Bytes },
    /// Type 2: registers the local directories of an executor. Answer: no bytes.
    RegisterExecutor { app_id: String, exec_id: String, info: ExecutorShuffleInfo },
    /// Type 3, an answer: chunks `0..num_chunks` of a stream can be fetched.
    StreamHandle { stream_id: i64, num_chunks: i32 },
    /// Type 4: registers a driver at the service of Mesos; Spark before 4.0.
    RegisterDriver { app_id: String, heartbeat_timeout_ms: i64 },
    /// Type 5: a driver on Mesos is alive; Spark before 4.0.
    Heartbeat { app_id: String },
    /// Type 6: the meta of an upload that stores a block at an executor.
    UploadBlockStream { block_id: String, metadata: Bytes },
    /// Type 7: deletes blocks. Answer: [`BlocksRemoved`](Self::BlocksRemoved). Since Spark 3.0.
    RemoveBlocks { app_id: String, exec_id: String, block_ids: StringList },
    /// Type 8, an answer: the number of deleted blocks.
    BlocksRemoved { count: i32 },
    /// Type 9: opens a stream of shuffle blocks. Since Spark 3.0.
    ///
    /// One list of reduce ids for each map. With `batch`, each list is `[start, end)`, and the
    /// blocks of that range are one chunk. Answer: [`StreamHandle`](Self::StreamHandle).
    FetchShuffleBlocks {
        app_id: String,
        exec_id: String,
        shuffle_id: i32,
        map_ids: Vec<i64>,
        reduce_ids: IntLists,
        batch: bool,
    },
    /// Type 10: asks for the local directories of executors. Since Spark 3.0.
    GetLocalDirsForExecutors { app_id: String, exec_ids: StringList },
    /// Type 11, an answer: the local directories by executor id.
    LocalDirsForExecutors { local_dirs: Vec<(String, Vec<String>)> },
    /// Type 12: the meta of an upload that pushes a block to be merged. Since Spark 3.2.
    PushBlockStream {
        app_id: String,
        app_attempt_id: i32,
        shuffle_id: i32,
        shuffle_merge_id: i32,
        map_index: i32,
        reduce_id: i32,
        index: i32,
    },
    /// Type 13: ends the merging of a shuffle. Answer: [`MergeStatuses`](Self::MergeStatuses).
    FinalizeShuffleMerge {
        app_id: String,
        app_attempt_id: i32,
        shuffle_id: i32,
        shuffle_merge_id: i32,
    },
    /// Type 14, an answer: by reduce id, the merged maps and the number of merged bytes.
    MergeStatuses {
        shuffle_id: i32,
        shuffle_merge_id: i32,
        bitmaps: Vec<RoaringBitmap>,
        reduce_ids: Vec<i32>,
        sizes: Vec<i64>,
    },
    /// Type 15: opens a stream of chunks of merged blocks. Since Spark 3.2.
    FetchShuffleBlockChunks {
        app_id: String,
        exec_id: String,
        shuffle_id: i32,
        shuffle_merge_id: i32,
        reduce_ids: Vec<i32>,
        chunk_ids: IntLists,
    },
    /// Type 16: asks why a block is corrupt. Answer: [`CorruptionCause`](Self::CorruptionCause).
    ///
    /// `checksum` is what the reader calculated from the bytes that it received. Since Spark 3.2.
    DiagnoseCorruption {
        app_id: String,
        exec_id: String,
        shuffle_id: i32,
        map_id: i64,
        reduce_id: i32,
        checksum: i64,
        algorithm: String,
    },
    /// Type 17, an answer: the cause of a corrupt block.
    CorruptionCause { cause: CorruptionCause },
    /// Type 18, an answer: whether a pushed block was merged.
    BlockPushReturnCode { return_code: PushReturnCode, failed_block_id: String },
    /// Type 19, one-way: deletes merged blocks; a merge id of -1 stands for all. Since Spark 3.5.
    RemoveShuffleMerge {
        app_id: String,
        app_attempt_id: i32,
        shuffle_id: i32,
        shuffle_merge_id: i32,
    },
}

/// The directories of an executor's blocks (Spark's `ExecutorShuffleInfo`).
///
/// ```
/// use network_shuffle::protocol::ExecutorShuffleInfo;
///
/// let manager = "org.apache.spark.shuffle.sort.SortShuffleManager";
/// let info = ExecutorShuffleInfo::new(["/data1/blockmgr-1", "/data2/blockmgr-2"], 64, manager);
/// assert_eq!(info.local_dirs.len(), 2);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExecutorShuffleInfo {
    /// The local directories, in the order in which the executor hashes files to them.
    pub local_dirs: Vec<String>,
    /// The number of subdirectories in each local directory.
    pub sub_dirs_per_local_dir: i32,
    /// The class of the shuffle manager, followed by the settings of merging if it is enabled.
    pub shuffle_manager: String,
}

impl ExecutorShuffleInfo {
    /// Returns the registration of an executor.
    pub fn new<S: Into<String>>(
        local_dirs: impl IntoIterator<Item = S>,
        sub_dirs_per_local_dir: i32,
        shuffle_manager: impl Into<String>,
    ) -> Self {
        Self {
            local_dirs: local_dirs.into_iter().map(Into::into).collect(),
            sub_dirs_per_local_dir,
            shuffle_manager: shuffle_manager.into(),
        }
    }
}

/// The cause of a corrupt block (Spark's `Cause`).
///
/// ```
/// use network_shuffle::protocol::CorruptionCause;
///
/// assert_eq!(CorruptionCause::DiskIssue.to_string(), "disk issue");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "the wire format of a released protocol")]
pub enum CorruptionCause {
    /// The bytes on the disk differ from those that the writer wrote.
    DiskIssue,
    /// The bytes on the disk are right, but the reader received others.
    NetworkIssue,
    /// The cause is not known, for example because there is no checksum file.
    UnknownIssue,
    /// All checksums are equal: the fault is not in the bytes.
    ChecksumVerifyPass,
    /// The service does not support the checksum algorithm.
    UnsupportedChecksumAlgorithm,
}

impl CorruptionCause {
    const ALL: [Self; 5] = [
        Self::DiskIssue,
        Self::NetworkIssue,
        Self::UnknownIssue,
        Self::ChecksumVerifyPass,
        Self::UnsupportedChecksumAlgorithm,
    ];

    /// Returns the cause with this number on the wire.
    pub(super) fn from_ordinal(ordinal: i8) -> Option<Self> {
        Self::ALL.get(usize::try_from(ordinal).ok()?).copied()
    }
}

impl fmt::Display for CorruptionCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DiskIssue => "disk issue",
            Self::NetworkIssue => "network issue",
            Self::UnknownIssue => "unknown issue",
            Self::ChecksumVerifyPass => "the checksums are equal",
            Self::UnsupportedChecksumAlgorithm => "unsupported checksum algorithm",
        })
    }
}

/// The result of pushing a block (Spark's `BlockPushNonFatalFailure.ReturnCode`).
///
/// ```
/// use network_shuffle::protocol::PushReturnCode;
///
/// assert_ne!(PushReturnCode::Success, PushReturnCode::TooLate);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "the wire format of a released protocol")]
pub enum PushReturnCode {
    /// The block was merged, or was merged before.
    Success,
    /// The block arrived after the merge was finalized.
    TooLate,
    /// Another block was being appended to the same merged file.
    AppendCollision,
    /// The block belongs to an older attempt of an indeterminate stage.
    Stale,
    /// The block belongs to an older attempt of the application.
    TooOldAttempt,
}

impl PushReturnCode {
    const ALL: [Self; 5] =
        [Self::Success, Self::TooLate, Self::AppendCollision, Self::Stale, Self::TooOldAttempt];

    /// Returns the code with this number on the wire.
    pub(super) fn from_code(code: i8) -> Option<Self> {
        Self::ALL.get(usize::try_from(code).ok()?).copied()
    }
}
