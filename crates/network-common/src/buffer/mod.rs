//! Bodies: bytes in memory or a region of a file.

mod pool;
mod small_body;

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

pub(crate) use pool::BufferPool;
pub(crate) use small_body::copy_to_bytes;

/// The body of a chunk, stream or upload: memory of any owner, or a region of a file (transport
/// 11).
///
/// Clones share the content. File regions are sent without passing through this process' memory
/// where the system can do that; they are opened, and their length is checked against the file,
/// only when their turn to be sent has come (or when they are answered, with
/// `spark.<module>.io.lazyFD` = false).
///
/// ```
/// use bytes::Bytes;
/// use network_common::ManagedBuffer;
///
/// let from_memory = ManagedBuffer::from(vec![1, 2, 3]);
/// let from_file = ManagedBuffer::file("/var/shuffle/shuffle_0_0.data", 4096..8192);
/// assert_eq!((from_memory.len(), from_file.len()), (3, 4096));
///
/// let (released, is_released) = std::sync::mpsc::channel();
/// let watched = from_memory.on_release(move || released.send(()).unwrap());
/// drop(watched);
/// is_released.recv().unwrap();
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct ManagedBuffer {
    content: Content,
    /// Only here to be dropped.
    _hooks: Option<Arc<ReleaseHook>>,
}

#[derive(Clone)]
pub(crate) enum Content {
    Memory(Bytes),
    File(FileSegment),
}

impl ManagedBuffer {
    /// Memory that stays with its owner; the owner is dropped when the last clone is released.
    pub fn from_owner<O: AsRef<[u8]> + Send + 'static>(owner: O) -> Self {
        Bytes::from_owner(owner).into()
    }

    /// The bytes `range` of the file at `path`. An empty range is legal; a file that is shorter is
    /// an error when it is sent.
    pub fn file(path: impl Into<PathBuf>, range: Range<u64>) -> Self {
        Self::segment(FileSource::Path(path.into().into()), range)
    }

    /// The bytes `range` of a file that is already open. Its cursor is neither used nor moved.
    pub fn open_file(file: Arc<File>, range: Range<u64>) -> Self {
        Self::segment(FileSource::Open(file), range)
    }

    fn segment(source: FileSource, range: Range<u64>) -> Self {
        let length = range.end.saturating_sub(range.start);
        Self {
            content: Content::File(FileSegment { source, offset: range.start, length }),
            _hooks: None,
        }
    }

    /// Runs `hook` when the last clone is dropped: after it was sent, or when that is given up. A
    /// panic of it is logged.
    pub fn on_release(mut self, hook: impl FnOnce() + Send + Sync + 'static) -> Self {
        self._hooks = Some(Arc::new(ReleaseHook {
            hook: Some(Box::new(hook)),
            _earlier: self._hooks.take(),
        }));
        self
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match &self.content {
            Content::Memory(bytes) => bytes.len() as u64,
            Content::File(segment) => segment.length,
        }
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The whole content in memory. Files are read off the runtime's workers. Cancel safe.
    ///
    /// # Errors
    /// Whatever opening and reading the file yields; `UnexpectedEof` when the file is shorter than
    /// the region.
    pub async fn read(&self) -> io::Result<Bytes> {
        match self.content.clone() {
            Content::Memory(bytes) => Ok(bytes),
            Content::File(segment) => {
                let read = move || {
                    let file = segment.open()?;
                    let mut buffer =
                        vec![0; usize::try_from(segment.length).map_err(io::Error::other)?];
                    segment.read_exact_at(&file, &mut buffer, 0)?;
                    Ok(Bytes::from(buffer))
                };
                tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
            }
        }
    }

    pub(crate) fn content(&self) -> &Content {
        &self.content
    }

    /// Opens a file given by path now instead of when it is sent.
    pub(crate) async fn opened(mut self) -> io::Result<Self> {
        if let Content::File(segment) = &self.content {
            let opening = segment.clone();
            let file = tokio::task::spawn_blocking(move || opening.open())
                .await
                .map_err(io::Error::other)??;
            self.content =
                Content::File(FileSegment { source: FileSource::Open(file), ..segment.clone() });
        }
        Ok(self)
    }
}

impl fmt::Debug for ManagedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.content {
            Content::Memory(bytes) => write!(f, "ManagedBuffer({} bytes)", bytes.len()),
            Content::File(segment) => write!(f, "ManagedBuffer({segment})"),
        }
    }
}

impl From<Bytes> for ManagedBuffer {
    fn from(bytes: Bytes) -> Self {
        Self { content: Content::Memory(bytes), _hooks: None }
    }
}

impl From<Vec<u8>> for ManagedBuffer {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<&'static [u8]> for ManagedBuffer {
    fn from(bytes: &'static [u8]) -> Self {
        Bytes::from_static(bytes).into()
    }
}

impl From<&'static str> for ManagedBuffer {
    fn from(text: &'static str) -> Self {
        text.as_bytes().into()
    }
}

/// A region of a file. All its calls may block on the disk.
#[derive(Clone)]
pub(crate) struct FileSegment {
    source: FileSource,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

#[derive(Clone)]
enum FileSource {
    Path(Arc<Path>),
    Open(Arc<File>),
}

impl FileSegment {
    /// The open file, known to hold the whole region.
    pub(crate) fn open(&self) -> io::Result<Arc<File>> {
        let file = match &self.source {
            FileSource::Path(path) => {
                Arc::new(open(path).map_err(|error| self.describe(error.kind(), &error))?)
            }
            FileSource::Open(file) => Arc::clone(file),
        };
        self.check(file)
    }

    /// The same without blocking: `None` if that cannot be, or if there is an error to be told.
    pub(crate) fn open_cached(&self) -> Option<Arc<File>> {
        let file = match &self.source {
            FileSource::Path(path) => Arc::new(open_cached(path)?),
            FileSource::Open(file) => Arc::clone(file),
        };
        self.check(file).ok()
    }

    fn check(&self, file: Arc<File>) -> io::Result<Arc<File>> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(self.describe(io::ErrorKind::InvalidInput, &"not a regular file"));
        }
        if self.offset.checked_add(self.length).is_none_or(|end| end > metadata.len()) {
            return Err(self.truncated(metadata.len()));
        }
        Ok(file)
    }

    /// Fills `buffer` from `position` bytes after the start of the region.
    pub(crate) fn read_exact_at(
        &self,
        file: &File,
        buffer: &mut [u8],
        position: u64,
    ) -> io::Result<()> {
        read_exact_at(file, buffer, self.offset + position).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                self.truncated(file.metadata().map_or(0, |metadata| metadata.len()))
            }
            kind => self.describe(kind, &error),
        })
    }

    pub(crate) fn truncated(&self, actual: u64) -> io::Error {
        let reason = format!("Reached EOF before filling buffer (actual file length {actual})");
        self.describe(io::ErrorKind::UnexpectedEof, &reason)
    }

    /// An error of this kind that names the file.
    pub(crate) fn describe(&self, kind: io::ErrorKind, reason: &dyn fmt::Display) -> io::Error {
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
            FileSource::Path(path) => path.display().to_string(),
            FileSource::Open(_) => "<open file>".to_owned(),
        };
        write!(f, "FileSegment{{file={path}, offset={}, length={}}}", self.offset, self.length)
    }
}

/// Does not wait for the other end of a named pipe, which is refused later.
#[cfg(unix)]
fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32).open(path)
}

/// Only if all that the path leads through is in the kernel's memory.
#[cfg(target_os = "linux")]
fn open_cached(path: &Path) -> Option<File> {
    use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED).ok().map(File::from)
}

#[cfg(not(target_os = "linux"))]
fn open_cached(_: &Path) -> Option<File> {
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

struct ReleaseHook {
    hook: Option<Box<dyn FnOnce() + Send + Sync>>,
    _earlier: Option<Arc<Self>>,
}

impl Drop for ReleaseHook {
    fn drop(&mut self) {
        let Some(hook) = self.hook.take() else { return };
        // Many bodies may be dropped at once: a second panic on the way out would end the process.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(hook)).is_err() {
            tracing::error!("a hook panicked when its body was released");
        }
    }
}
