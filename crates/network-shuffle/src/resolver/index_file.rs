//! [`ShuffleIndex`], the offsets of the blocks of one map output.

use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::block_path::BlockPath;
use super::paths::file_path;
use crate::protocol::ExecutorShuffleInfo;
use crate::request_error::RequestError;

/// The number of bytes of one offset in an index file.
const OFFSET_LEN: u64 = 8;

/// One map output on the disk: its data file, and its index in memory or on the disk.
#[derive(Debug)]
pub(super) struct ShuffleIndex {
    /// The data file; `None` if it does not exist, because all blocks are empty.
    pub(super) data: Option<BlockPath>,
    offsets: Offsets,
}

#[derive(Debug)]
enum Offsets {
    /// The content of the index file.
    Loaded(Box<[u8]>),
    /// The index file is too large for the cache, so that single offsets are read.
    File { path: BlockPath, len: u64 },
}

impl ShuffleIndex {
    /// Opens the index of a map output, and reads it if it has at most `max_len` bytes.
    ///
    /// Does disk I/O.
    pub(super) fn open(
        info: &ExecutorShuffleInfo,
        shuffle_id: i32,
        map_id: i64,
        verify_paths: bool,
        max_len: u64,
    ) -> Result<Self, RequestError> {
        let file = |extension| shuffle_file(info, shuffle_id, map_id, extension, verify_paths);
        let (index_path, verified_index) = file("index")?;
        let offsets = verified_index
            .and_then(|verified| read_offsets(&verified, max_len))
            .map_err(|error| open_error(&index_path, &error))?;
        let (data_path, verified_data) = file("data")?;
        let data = match verified_data {
            Ok(verified) => Some(verified),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(open_error(&data_path, &error)),
        };
        Ok(Self { data, offsets })
    }

    /// Returns the number of bytes that the cache counts, or `None` if it should not keep this.
    pub(super) fn cached_len(&self) -> Option<u64> {
        match (&self.offsets, &self.data) {
            (Offsets::Loaded(bytes), Some(data)) => {
                Some(bytes.len() as u64 + data.as_path().as_os_str().len() as u64)
            }
            _ => None,
        }
    }

    /// Returns whether [`range`](Self::range) does no disk I/O.
    pub(super) fn is_loaded(&self) -> bool {
        matches!(self.offsets, Offsets::Loaded(_))
    }

    /// Returns the position in the data file of the blocks `reduce_ids.start..reduce_ids.end`.
    pub(super) fn range(&self, reduce_ids: Range<i32>) -> Result<Range<u64>, RequestError> {
        let invalid = || {
            let Range { start, end } = reduce_ids;
            RequestError::out_of_bounds(format!(
                "reduce ids {start} to {end} are not in an index of {} reduce ids",
                (self.len() / OFFSET_LEN).saturating_sub(1)
            ))
        };
        let position = |reduce_id: i32| {
            let position = u64::try_from(reduce_id).ok()? * OFFSET_LEN;
            (position + OFFSET_LEN <= self.len()).then_some(position)
        };
        let start = position(reduce_ids.start).ok_or_else(invalid)?;
        let end = position(reduce_ids.end).ok_or_else(invalid)?;
        let (start, end) = (self.offset(start)?, self.offset(end)?);
        match (u64::try_from(start), u64::try_from(end)) {
            (Ok(start), Ok(end)) if start <= end => Ok(start..end),
            _ => Err(RequestError::illegal_state(format!(
                "the index file is damaged: block {} has the offsets {start} and {end}",
                reduce_ids.start
            ))),
        }
    }

    /// Returns the length of the index file in bytes.
    fn len(&self) -> u64 {
        match &self.offsets {
            Offsets::Loaded(bytes) => bytes.len() as u64,
            Offsets::File { len, .. } => *len,
        }
    }

    /// Returns the offset at a position of the index file.
    fn offset(&self, position: u64) -> Result<i64, RequestError> {
        let mut bytes = [0; OFFSET_LEN as usize];
        match &self.offsets {
            Offsets::Loaded(content) => {
                let start = position as usize;
                bytes.copy_from_slice(&content[start..start + OFFSET_LEN as usize]);
            }
            Offsets::File { path, .. } => path
                .open()
                .and_then(|file| file.read_exact_at(&mut bytes, position))
                .map_err(|error| open_error(path.as_path(), &error))?,
        }
        Ok(i64::from_be_bytes(bytes))
    }
}

/// Opens the index of a map output without reading it. Does disk I/O.
pub(super) fn open_index(
    info: &ExecutorShuffleInfo,
    shuffle_id: i32,
    map_id: i64,
    verify_paths: bool,
) -> Result<ShuffleIndex, RequestError> {
    ShuffleIndex::open(info, shuffle_id, map_id, verify_paths, 0)
}

/// Returns the path of a file of a map output, and its path for opening or why it cannot be used.
pub(super) fn shuffle_file(
    info: &ExecutorShuffleInfo,
    shuffle_id: i32,
    map_id: i64,
    extension: &str,
    verify_paths: bool,
) -> Result<(PathBuf, io::Result<BlockPath>), RequestError> {
    let name = format!("shuffle_{shuffle_id}_{map_id}_0.{extension}");
    let path = file_path(info, &name).ok_or_else(invalid_registration)?;
    let verified = BlockPath::new(info, &path, verify_paths);
    Ok((path, verified))
}

fn read_offsets(path: &BlockPath, max_len: u64) -> io::Result<Offsets> {
    let file = path.open()?;
    let len = file.metadata()?.len();
    if len > max_len {
        return Ok(Offsets::File { path: path.clone(), len });
    }
    let mut content = Vec::with_capacity(len as usize);
    // A file that grows meanwhile is read up to the length that was checked.
    file.take(len).read_to_end(&mut content)?;
    Ok(Offsets::Loaded(content.into()))
}

/// Returns the error for a file that cannot be used, with Spark's text.
fn open_error(path: &Path, error: &io::Error) -> RequestError {
    RequestError::runtime(format!("Failed to open file: {}: {error}", path.display()))
}

pub(super) fn invalid_registration() -> RequestError {
    RequestError::illegal_state("the executor has registered no local directories")
}
