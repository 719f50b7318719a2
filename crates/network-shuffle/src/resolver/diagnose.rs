//! Finds out why a block is corrupt (Spark's `ShuffleChecksumHelper.diagnoseCorruption`).

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::block_path::BlockPath;
use super::index_file::{open_index, shuffle_file};
use crate::checksum::Checksum;
use crate::protocol::{CorruptionCause, ExecutorShuffleInfo};

/// The number of bytes that are read at once.
const BUFFER_LEN: usize = 64 << 10;
/// The number of bytes of one checksum in a checksum file.
const CHECKSUM_LEN: u64 = 8;

/// A block whose bytes do not have the checksum that its writer calculated.
#[derive(Debug)]
pub(crate) struct CorruptBlock {
    pub(crate) shuffle_id: i32,
    pub(crate) map_id: i64,
    pub(crate) reduce_id: i32,
    /// The checksum of the bytes that the reader received.
    pub(crate) checksum: i64,
    pub(crate) algorithm: String,
}

/// Compares the checksums of the writer, of the data file and of the reader. Does disk I/O.
pub(super) fn diagnose(
    info: &ExecutorShuffleInfo,
    block: &CorruptBlock,
    verify_paths: bool,
) -> CorruptionCause {
    let Some(checksum) = Checksum::new(&block.algorithm) else {
        return CorruptionCause::UnsupportedChecksumAlgorithm;
    };
    match checksums(info, block, verify_paths, checksum) {
        Ok((written, on_disk)) if written != on_disk => CorruptionCause::DiskIssue,
        Ok((written, _)) if written != block.checksum => CorruptionCause::NetworkIssue,
        Ok(_) => CorruptionCause::ChecksumVerifyPass,
        Err(error) => {
            tracing::debug!(error, "a corrupt block cannot be diagnosed");
            CorruptionCause::UnknownIssue
        }
    }
}

/// Returns the checksum of the writer and that of the data file.
fn checksums(
    info: &ExecutorShuffleInfo,
    block: &CorruptBlock,
    verify_paths: bool,
    checksum: Checksum,
) -> Result<(i64, i64), String> {
    let extension = format!("checksum.{}", block.algorithm);
    let (_, checksum_file) =
        shuffle_file(info, block.shuffle_id, block.map_id, &extension, verify_paths)
            .map_err(|error| error.to_string())?;
    let written = checksum_file
        .and_then(|path| read_checksum(&path, block.reduce_id))
        .map_err(|error| error.to_string())?;
    let index = open_index(info, block.shuffle_id, block.map_id, verify_paths)
        .map_err(|error| error.to_string())?;
    let range = index
        .range(block.reduce_id..block.reduce_id.saturating_add(1))
        .map_err(|error| error.to_string())?;
    let data = index.data.as_ref().ok_or("there is no data file")?;
    let on_disk = calculate(data, range, checksum).map_err(|error| error.to_string())?;
    Ok((written, on_disk))
}

fn read_checksum(path: &BlockPath, reduce_id: i32) -> io::Result<i64> {
    let position = u64::try_from(reduce_id).map_err(io::Error::other)? * CHECKSUM_LEN;
    let mut bytes = [0; CHECKSUM_LEN as usize];
    path.open()?.read_exact_at(&mut bytes, position)?;
    Ok(i64::from_be_bytes(bytes))
}

fn calculate(path: &BlockPath, range: Range<u64>, mut checksum: Checksum) -> io::Result<i64> {
    let mut file = path.open()?;
    file.seek(SeekFrom::Start(range.start))?;
    let mut left = range.end - range.start;
    let mut buffer = vec![0; BUFFER_LEN];
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(BUFFER_LEN).min(BUFFER_LEN);
        file.read_exact(&mut buffer[..wanted])?;
        checksum.update(&buffer[..wanted]);
        left -= wanted as u64;
    }
    Ok(i64::from(checksum.finish()))
}
