//! [`FileSegment`], a region of a file.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// A region of a file.
///
/// All methods except [`open_cached`](Self::open_cached) may block on the disk.
#[derive(Clone)]
pub(crate) struct FileSegment {
    pub(super) source: FileSource,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

#[derive(Clone)]
pub(super) enum FileSource {
    Path(Arc<Path>),
    /// A path without symbolic links; opening it fails if it has one.
    RealPath(Arc<Path>),
    Open(Arc<File>),
}

impl FileSegment {
    /// Returns the open file after a check that it contains the whole region.
    pub(crate) fn open(&self) -> io::Result<Arc<File>> {
        let file = match &self.source {
            FileSource::Path(path) => Arc::new(self.named_error(open(path))?),
            FileSource::RealPath(path) => Arc::new(self.named_error(open_real_path(path))?),
            FileSource::Open(file) => Arc::clone(file),
        };
        self.check(file)
    }

    /// Does the same without blocking; `None` if it would block or fail.
    pub(crate) fn open_cached(&self) -> Option<Arc<File>> {
        let file = match &self.source {
            FileSource::Path(path) => Arc::new(open_cached(path, false)?),
            FileSource::RealPath(path) => Arc::new(open_cached(path, true)?),
            FileSource::Open(file) => Arc::clone(file),
        };
        self.check(file).ok()
    }

    fn named_error(&self, opened: io::Result<File>) -> io::Result<File> {
        opened.map_err(|error| self.read_error(error.kind(), &error))
    }

    fn check(&self, file: Arc<File>) -> io::Result<Arc<File>> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(self.read_error(io::ErrorKind::InvalidInput, &"not a regular file"));
        }
        if self.offset.checked_add(self.length).is_none_or(|end| end > metadata.len()) {
            return Err(self.truncated_error(metadata.len()));
        }
        Ok(file)
    }

    /// Fills `buffer` with the bytes that start `position` bytes into the region.
    pub(crate) fn read_exact_at(
        &self,
        file: &File,
        buffer: &mut [u8],
        position: u64,
    ) -> io::Result<()> {
        read_exact_at(file, buffer, self.offset + position).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                self.truncated_error(file.metadata().map_or(0, |metadata| metadata.len()))
            }
            kind => self.read_error(kind, &error),
        })
    }

    /// Returns the error for a file that is shorter than the region, with Spark's text.
    pub(crate) fn truncated_error(&self, actual: u64) -> io::Error {
        let reason = format!("Reached EOF before filling buffer (actual file length {actual})");
        self.read_error(io::ErrorKind::UnexpectedEof, &reason)
    }

    /// Returns an error of this kind that names the file, with Spark's text.
    pub(crate) fn read_error(&self, kind: io::ErrorKind, reason: &dyn fmt::Display) -> io::Error {
        io::Error::new(kind, format!("Error in reading {self}: {reason}"))
    }
}

impl fmt::Debug for FileSegment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for FileSegment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = match &self.source {
            FileSource::Path(path) | FileSource::RealPath(path) => path.display().to_string(),
            FileSource::Open(_) => "<open file>".to_owned(),
        };
        write!(f, "FileSegment{{file={path}, offset={}, length={}}}", self.offset, self.length)
    }
}

/// Opens a file. `NONBLOCK`: a named pipe fails in the check instead of blocking here.
#[cfg(unix)]
fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32).open(path)
}

/// Opens a file for reading; fails if a part of its path is a symbolic link.
///
/// # Errors
/// The file cannot be opened; the text of a symbolic link is that of the system.
pub fn open_real_path(path: &Path) -> io::Result<File> {
    #[cfg(target_os = "linux")]
    match open_resolved(path, rustix::fs::ResolveFlags::NO_SYMLINKS) {
        // An old kernel, or a sandbox that does not know the system call.
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {}
        opened => return Ok(opened?),
    }
    if path.canonicalize()? != path {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path has a symbolic link"));
    }
    open(path)
}

#[cfg(target_os = "linux")]
fn open_resolved(path: &Path, resolve: rustix::fs::ResolveFlags) -> rustix::io::Result<File> {
    use rustix::fs::{CWD, Mode, OFlags, openat2};
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    openat2(CWD, path, flags, Mode::empty(), resolve).map(File::from)
}

/// Opens a file if the kernel has all directories of its path in its cache.
#[cfg(target_os = "linux")]
fn open_cached(path: &Path, is_real: bool) -> Option<File> {
    use rustix::fs::ResolveFlags;
    let links = if is_real { ResolveFlags::NO_SYMLINKS } else { ResolveFlags::empty() };
    open_resolved(path, ResolveFlags::CACHED | links).ok()
}

#[cfg(not(target_os = "linux"))]
fn open_cached(_: &Path, _: bool) -> Option<File> {
    None
}

#[cfg(not(unix))]
fn open(path: &Path) -> io::Result<File> {
    File::open(path)
}

#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buffer, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                buffer = &mut buffer[count..];
                offset += count as u64;
            }
        }
    }
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn real_path_with_a_symbolic_link_is_not_opened() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let dir = root.join("dir");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("file"), "abc").unwrap();
        std::os::unix::fs::symlink(&dir, root.join("linked-dir")).unwrap();
        std::os::unix::fs::symlink(dir.join("file"), root.join("link")).unwrap();

        assert!(open_real_path(&dir.join("file")).is_ok());
        assert!(open_real_path(&root.join("link")).is_err());
        assert!(open_real_path(&root.join("linked-dir/file")).is_err());
        let segment = |path: &str| FileSegment {
            source: FileSource::RealPath(root.join(path).into()),
            offset: 0,
            length: 3,
        };
        assert!(segment("dir/file").open().is_ok());
        assert!(segment("link").open().is_err() && segment("link").open_cached().is_none());
    }
}
