//! Encodes messages; the counterpart of `decode`.

use bytes::{BufMut, Bytes};
use network_common::protocol::{put_bitmap_array, put_byte_array, put_string};

use super::lists::{array_len, put_int_array};
use super::{BlockTransferMessage, ExecutorShuffleInfo};

impl BlockTransferMessage {
    /// Returns the first byte of this message.
    pub(super) fn message_type(&self) -> u8 {
        match self {
            Self::OpenBlocks { .. } => 0,
            Self::UploadBlock { .. } => 1,
            Self::RegisterExecutor { .. } => 2,
            Self::StreamHandle { .. } => 3,
            Self::RegisterDriver { .. } => 4,
            Self::Heartbeat { .. } => 5,
            Self::UploadBlockStream { .. } => 6,
            Self::RemoveBlocks { .. } => 7,
            Self::BlocksRemoved { .. } => 8,
            Self::FetchShuffleBlocks { .. } => 9,
            Self::GetLocalDirsForExecutors { .. } => 10,
            Self::LocalDirsForExecutors { .. } => 11,
            Self::PushBlockStream { .. } => 12,
            Self::FinalizeShuffleMerge { .. } => 13,
            Self::MergeStatuses { .. } => 14,
            Self::FetchShuffleBlockChunks { .. } => 15,
            Self::DiagnoseCorruption { .. } => 16,
            Self::CorruptionCause { .. } => 17,
            Self::BlockPushReturnCode { .. } => 18,
            Self::RemoveShuffleMerge { .. } => 19,
        }
    }

    /// Returns the bytes of the message, beginning with its type.
    ///
    /// # Panics
    /// If a string or list has 2^31 bytes or elements or more: no frame can hold it.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(128);
        out.put_u8(self.message_type());
        match self {
            Self::OpenBlocks { app_id, exec_id, block_ids }
            | Self::RemoveBlocks { app_id, exec_id, block_ids } => {
                put_strings([app_id, exec_id], &mut out);
                put_list(block_ids.len(), block_ids.encoded(), &mut out);
            }
            Self::UploadBlock { app_id, exec_id, block_id, metadata, data } => {
                put_strings([app_id, exec_id, block_id], &mut out);
                put_byte_array(metadata, &mut out);
                put_byte_array(data, &mut out);
            }
            Self::RegisterExecutor { app_id, exec_id, info } => {
                put_strings([app_id, exec_id], &mut out);
                info.encode_into(&mut out);
            }
            Self::StreamHandle { stream_id, num_chunks } => {
                out.put_i64(*stream_id);
                out.put_i32(*num_chunks);
            }
            Self::RegisterDriver { app_id, heartbeat_timeout_ms } => {
                put_string(app_id, &mut out);
                out.put_i64(*heartbeat_timeout_ms);
            }
            Self::Heartbeat { app_id } => put_string(app_id, &mut out),
            Self::UploadBlockStream { block_id, metadata } => {
                put_string(block_id, &mut out);
                put_byte_array(metadata, &mut out);
            }
            Self::BlocksRemoved { count } => out.put_i32(*count),
            Self::FetchShuffleBlocks {
                app_id,
                exec_id,
                shuffle_id,
                map_ids,
                reduce_ids,
                batch,
            } => {
                put_strings([app_id, exec_id], &mut out);
                out.put_i32(*shuffle_id);
                put_long_array(map_ids, &mut out);
                put_list(reduce_ids.len(), reduce_ids.encoded(), &mut out);
                out.put_u8(u8::from(*batch));
            }
            Self::GetLocalDirsForExecutors { app_id, exec_ids } => {
                put_string(app_id, &mut out);
                put_list(exec_ids.len(), exec_ids.encoded(), &mut out);
            }
            Self::LocalDirsForExecutors { local_dirs } => put_local_dirs(local_dirs, &mut out),
            Self::PushBlockStream {
                app_id,
                app_attempt_id,
                shuffle_id,
                shuffle_merge_id,
                map_index,
                reduce_id,
                index,
            } => {
                put_string(app_id, &mut out);
                let fields =
                    [app_attempt_id, shuffle_id, shuffle_merge_id, map_index, reduce_id, index];
                fields.into_iter().for_each(|field| out.put_i32(*field));
            }
            Self::FinalizeShuffleMerge { app_id, app_attempt_id, shuffle_id, shuffle_merge_id }
            | Self::RemoveShuffleMerge { app_id, app_attempt_id, shuffle_id, shuffle_merge_id } => {
                put_string(app_id, &mut out);
                let fields = [app_attempt_id, shuffle_id, shuffle_merge_id];
                fields.into_iter().for_each(|field| out.put_i32(*field));
            }
            Self::MergeStatuses { shuffle_id, shuffle_merge_id, bitmaps, reduce_ids, sizes } => {
                out.put_i32(*shuffle_id);
                out.put_i32(*shuffle_merge_id);
                put_bitmap_array(bitmaps, &mut out).expect("a vector has no fixed size");
                put_int_array(reduce_ids, &mut out);
                put_long_array(sizes, &mut out);
            }
            Self::FetchShuffleBlockChunks {
                app_id,
                exec_id,
                shuffle_id,
                shuffle_merge_id,
                reduce_ids,
                chunk_ids,
            } => {
                put_strings([app_id, exec_id], &mut out);
                out.put_i32(*shuffle_id);
                out.put_i32(*shuffle_merge_id);
                put_int_array(reduce_ids, &mut out);
                put_list(chunk_ids.len(), chunk_ids.encoded(), &mut out);
            }
            Self::DiagnoseCorruption {
                app_id,
                exec_id,
                shuffle_id,
                map_id,
                reduce_id,
                checksum,
                algorithm,
            } => {
                put_strings([app_id, exec_id], &mut out);
                out.put_i32(*shuffle_id);
                out.put_i64(*map_id);
                out.put_i32(*reduce_id);
                out.put_i64(*checksum);
                put_string(algorithm, &mut out);
            }
            Self::CorruptionCause { cause } => out.put_u8(*cause as u8),
            Self::BlockPushReturnCode { return_code, failed_block_id } => {
                out.put_u8(*return_code as u8);
                put_string(failed_block_id, &mut out);
            }
        }
        out.into()
    }
}

impl ExecutorShuffleInfo {
    /// Writes the fields as [`decode_from`](Self::decode_from) reads them.
    pub(crate) fn encode_into(&self, out: &mut Vec<u8>) {
        out.put_i32(array_len(self.local_dirs.len()));
        self.local_dirs.iter().for_each(|dir| put_string(dir, out));
        out.put_i32(self.sub_dirs_per_local_dir);
        put_string(&self.shuffle_manager, out);
    }
}

fn put_local_dirs(local_dirs: &[(String, Vec<String>)], out: &mut Vec<u8>) {
    out.put_i32(array_len(local_dirs.len()));
    local_dirs.iter().for_each(|(exec_id, _)| put_string(exec_id, out));
    out.put_i32(array_len(local_dirs.len()));
    local_dirs.iter().for_each(|(_, dirs)| out.put_i32(array_len(dirs.len())));
    out.put_i32(array_len(local_dirs.iter().map(|(_, dirs)| dirs.len()).sum()));
    local_dirs.iter().flat_map(|(_, dirs)| dirs).for_each(|dir| put_string(dir, out));
}

fn put_strings<const N: usize>(strings: [&String; N], out: &mut Vec<u8>) {
    strings.into_iter().for_each(|string| put_string(string, out));
}

fn put_list(len: usize, encoded: &Bytes, out: &mut Vec<u8>) {
    out.put_i32(array_len(len));
    out.put_slice(encoded);
}

fn put_long_array(longs: &[i64], out: &mut Vec<u8>) {
    out.put_i32(array_len(longs.len()));
    longs.iter().for_each(|long| out.put_i64(*long));
}
