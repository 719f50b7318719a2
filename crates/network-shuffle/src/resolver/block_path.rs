//! [`BlockPath`], a file that may be read for an executor.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use network_common::{ManagedBuffer, open_real_path};

use super::paths::verified_path;
use crate::protocol::ExecutorShuffleInfo;

/// The path of a file of an executor.
#[derive(Debug, Clone)]
pub(super) enum BlockPath {
    /// In a directory of the executor. A symbolic link that replaces a part of it later is not
    /// followed, because the application can write to its directories.
    Verified(Arc<Path>),
    /// Not checked: `spark.shuffle.service.verifyBlockPathsAtRead` is false.
    Unverified(Arc<Path>),
}

impl BlockPath {
    /// Returns the path if it may be read. Does disk I/O if `verify`.
    pub(super) fn new(info: &ExecutorShuffleInfo, path: &Path, verify: bool) -> io::Result<Self> {
        if verify {
            Ok(Self::Verified(verified_path(info, path)?.into()))
        } else {
            Ok(Self::Unverified(path.into()))
        }
    }

    pub(super) fn as_path(&self) -> &Path {
        match self {
            Self::Verified(path) | Self::Unverified(path) => path,
        }
    }

    /// Opens the file, which must be a regular one.
    pub(super) fn open(&self) -> io::Result<File> {
        let file = match self {
            Self::Verified(path) => open_real_path(path)?,
            Self::Unverified(path) => open_without_blocking(path)?,
        };
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "this is not a regular file"));
        }
        Ok(file)
    }

    /// Returns a region of the file, which is opened when it is sent.
    pub(super) fn buffer(&self, range: Range<u64>) -> ManagedBuffer {
        match self {
            Self::Verified(path) => ManagedBuffer::real_file(Arc::clone(path), range),
            Self::Unverified(path) => ManagedBuffer::file(&**path, range),
        }
    }
}

/// Opens a file; a named pipe without a writer does not block the thread.
fn open_without_blocking(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    File::options().read(true).custom_flags(flags).open(path)
}
