//! Decodes messages; the counterpart of `encode`.

use bytes::Bytes;
use network_common::protocol::{FieldReader, ProtocolError};

use super::lists::read_count;
use super::{
    BlockTransferMessage, CorruptionCause, ExecutorShuffleInfo, IntLists, PushReturnCode,
    StringList,
};

impl BlockTransferMessage {
    /// Decodes a message; bytes behind its last field are ignored, as in Spark.
    ///
    /// Lists of block ids are slices of `message`, so they keep it in memory.
    ///
    /// # Errors
    /// [`ProtocolError::UnknownType`], with Spark's text; [`ProtocolError::Truncated`],
    /// [`ProtocolError::BadLength`] or [`ProtocolError::BadBitmap`] if a field is malformed.
    pub fn decode(message: &Bytes) -> Result<Self, ProtocolError> {
        let reader = &mut FieldReader::new(message);
        let message_type = reader.byte("message type")?;
        Ok(match message_type {
            0 => Self::OpenBlocks {
                app_id: reader.string("appId")?,
                exec_id: reader.string("execId")?,
                block_ids: StringList::read(message, reader, "blockIds")?,
            },
            1 => Self::UploadBlock {
                app_id: reader.string("appId")?,
                exec_id: reader.string("execId")?,
                block_id: reader.string("blockId")?,
                metadata: message.slice_ref(reader.byte_array("metadata")?),
                data: message.slice_ref(reader.byte_array("blockData")?),
            },
            2 => Self::RegisterExecutor {
                app_id: reader.string("appId")?,
                exec_id: reader.string("execId")?,
                info: ExecutorShuffleInfo::decode_from(reader)?,
            },
            3 => Self::StreamHandle {
                stream_id: reader.long("streamId")?,
                num_chunks: reader.int("numChunks")?,
            },
            4 => Self::RegisterDriver {
                app_id: reader.string("appId")?,
                heartbeat_timeout_ms: reader.long("heartbeatTimeoutMs")?,
            },
            5 => Self::Heartbeat { app_id: reader.string("appId")? },
            6 => Self::UploadBlockStream {
                block_id: reader.string("blockId")?,
                metadata: message.slice_ref(reader.byte_array("metadata")?),
            },
            7 => Self::RemoveBlocks {
                app_id: reader.string("appId")?,
                exec_id: reader.string("execId")?,
                block_ids: StringList::read(message, reader, "blockIds")?,
            },
            8 => Self::BlocksRemoved { count: reader.int("numRemovedBlocks")? },
            9 => Self::FetchShuffleBlocks {
                app_id: reader.string("appId")?,
                exec_id: reader.string("execId")?,
                shuffle_id: reader.int("shuffleId")?,
                map_ids: read_longs(reader, "mapIds")?,
                reduce_ids: IntLists::read(message, reader, "reduceIds")?,
                batch: reader.byte("batchFetchEnabled")? != 0,
            },
            10 => Self::GetLocalDirsForExecutors {
                app_id: reader.string("appId")?,
                exec_ids: StringList::read(message, reader, "execIds")?,
            },
            11 => Self::LocalDirsForExecutors { local_dirs: read_local_dirs(reader)? },
            12 => Self::PushBlockStream {
                app_id: reader.string("appId")?,
                app_attempt_id: reader.int("appAttemptId")?,
                shuffle_id: reader.int("shuffleId")?,
                shuffle_merge_id: reader.int("shuffleMergeId")?,
                map_index: reader.int("mapIndex")?,
                reduce_id: reader.int("reduceId")?,
                index: reader.int("index")?,
            },
            13 => Self::FinalizeShuffleMerge {
                app_id: reader.string("appId")?,
                app_attempt_id: reader.int("appAttemptId")?,
                shuffle_id: reader.int("shuffleId")?,
                shuffle_merge_id: reader.int("shuffleMergeId")?,
            },
            14 => Self::MergeStatuses {
                shuffle_id: reader.int("shuffleId")?,
                shuffle_merge_id: reader.int("shuffleMergeId")?,
                bitmaps: reader.bitmap_array()?,
                reduce_ids: read_ints(reader, "reduceIds")?,
                sizes: read_longs(reader, "sizes")?,
            },
            15 => Self::FetchShuffleBlockChunks {
                app_id: reader.string("appId")?,
                exec_id: reader.string("execId")?,
                shuffle_id: reader.int("shuffleId")?,
                shuffle_merge_id: reader.int("shuffleMergeId")?,
                reduce_ids: read_ints(reader, "reduceIds")?,
                chunk_ids: IntLists::read(message, reader, "chunkIds")?,
            },
            16 => Self::DiagnoseCorruption {
                app_id: reader.string("appId")?,
                exec_id: reader.string("execId")?,
                shuffle_id: reader.int("shuffleId")?,
                map_id: reader.long("mapId")?,
                reduce_id: reader.int("reduceId")?,
                checksum: reader.long("checksum")?,
                algorithm: reader.string("algorithm")?,
            },
            17 => Self::CorruptionCause {
                cause: read_code(reader, "cause", CorruptionCause::from_ordinal)?,
            },
            18 => Self::BlockPushReturnCode {
                return_code: read_code(reader, "returnCode", PushReturnCode::from_code)?,
                failed_block_id: reader.string("failureBlockId")?,
            },
            19 => Self::RemoveShuffleMerge {
                app_id: reader.string("appId")?,
                app_attempt_id: reader.int("appAttemptId")?,
                shuffle_id: reader.int("shuffleId")?,
                shuffle_merge_id: reader.int("shuffleMergeId")?,
            },
            _ => return Err(ProtocolError::UnknownType(message_type)),
        })
    }
}

impl ExecutorShuffleInfo {
    /// Reads the fields, which follow the ids in a `RegisterExecutor`.
    pub(crate) fn decode_from(reader: &mut FieldReader<'_>) -> Result<Self, ProtocolError> {
        Ok(Self {
            local_dirs: read_strings(reader, "localDirs")?,
            sub_dirs_per_local_dir: reader.int("subDirsPerLocalDir")?,
            shuffle_manager: reader.string("shuffleManager")?,
        })
    }
}

fn read_strings(
    reader: &mut FieldReader<'_>,
    field: &'static str,
) -> Result<Vec<String>, ProtocolError> {
    let count = read_count(reader, field, 4)?;
    (0..count).map(|_| reader.string(field)).collect()
}

fn read_ints(reader: &mut FieldReader<'_>, field: &'static str) -> Result<Vec<i32>, ProtocolError> {
    let count = read_count(reader, field, 4)?;
    (0..count).map(|_| reader.int(field)).collect()
}

fn read_longs(
    reader: &mut FieldReader<'_>,
    field: &'static str,
) -> Result<Vec<i64>, ProtocolError> {
    let count = read_count(reader, field, 8)?;
    (0..count).map(|_| reader.long(field)).collect()
}

/// Reads executor ids, the number of directories of each, and all directories.
fn read_local_dirs(
    reader: &mut FieldReader<'_>,
) -> Result<Vec<(String, Vec<String>)>, ProtocolError> {
    let exec_ids = read_strings(reader, "execIds")?;
    let counts = read_ints(reader, "numLocalDirsByExec")?;
    let mut dirs = read_strings(reader, "allLocalDirs")?.into_iter();
    if counts.len() != exec_ids.len() {
        return Err(bad_length("numLocalDirsByExec", counts.len(), exec_ids.len()));
    }
    let groups = exec_ids.into_iter().zip(counts).map(|(exec_id, length)| {
        let available = dirs.len();
        let bad_length =
            ProtocolError::BadLength { field: "numLocalDirsByExec", length, available };
        match usize::try_from(length) {
            Ok(count) if count <= available => Ok((exec_id, dirs.by_ref().take(count).collect())),
            _ => Err(bad_length),
        }
    });
    groups.collect()
}

/// Reads the one-byte number of an enumeration.
fn read_code<T>(
    reader: &mut FieldReader<'_>,
    field: &'static str,
    find: fn(i8) -> Option<T>,
) -> Result<T, ProtocolError> {
    let code = reader.byte(field)?;
    let (length, available) = (i32::from(code), reader.remaining());
    find(code).ok_or(ProtocolError::BadLength { field, length, available })
}

fn bad_length(field: &'static str, length: usize, available: usize) -> ProtocolError {
    ProtocolError::BadLength { field, length: i32::try_from(length).unwrap_or(i32::MAX), available }
}
