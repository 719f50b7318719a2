//! [`ManagedBuffer`], the body of a message.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::file_segment::{FileSegment, FileSource};
use crate::blocking::run_blocking;
use crate::log_limit::log_limited;

/// The body of a chunk, stream or upload: bytes in memory or a region of a file.
///
/// Corresponds to Spark's `ManagedBuffer` and `FileSegmentManagedBuffer`. Clones share the content.
/// On Linux the kernel sends a file region without a copy through this process (`sendfile`), unless
/// `spark.<module>.io.mode` is NIO or the connection is encrypted. The file is opened, and its
/// length is checked, when its body is sent; with `spark.<module>.io.lazyFD` = false, when the
/// response is queued.
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
    /// Runs when the last clone is dropped.
    _hooks: Option<Arc<ReleaseHook>>,
}

#[derive(Clone)]
pub(crate) enum Content {
    Memory(Bytes),
    File(FileSegment),
}

impl ManagedBuffer {
    /// Returns a buffer of the bytes of `owner`, which is dropped with the last clone.
    #[must_use]
    pub fn from_owner<O: AsRef<[u8]> + Send + 'static>(owner: O) -> Self {
        Bytes::from_owner(owner).into()
    }

    /// Returns a buffer of the bytes `range` of the file at `path`.
    ///
    /// The range may be empty. If the file is shorter than its end, sending the buffer fails.
    #[must_use]
    pub fn file(path: impl Into<PathBuf>, range: Range<u64>) -> Self {
        Self::segment(FileSource::Path(path.into().into()), range)
    }

    /// Returns a buffer of the bytes `range` of the file at a path without symbolic links.
    ///
    /// If a part of the path is one when the buffer is sent, sending fails. So a path that was
    /// checked to be in a directory is still in it, although others can write to the directory.
    #[must_use]
    pub fn real_file(path: impl Into<Arc<Path>>, range: Range<u64>) -> Self {
        Self::segment(FileSource::RealPath(path.into()), range)
    }

    /// Returns a buffer of the bytes `range` of an open file.
    ///
    /// The position of the file is neither used nor changed.
    #[must_use]
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

    /// Runs `hook` when the last clone is dropped: when the body was sent or discarded.
    ///
    /// A panic of the hook is logged.
    #[must_use]
    pub fn on_release(mut self, hook: impl FnOnce() + Send + Sync + 'static) -> Self {
        self._hooks = Some(Arc::new(ReleaseHook {
            hook: Some(Box::new(hook)),
            _earlier: self._hooks.take(),
        }));
        self
    }

    /// Returns the length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match &self.content {
            Content::Memory(bytes) => bytes.len() as u64,
            Content::File(segment) => segment.length,
        }
    }

    /// Returns whether the length is 0.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the whole content; a file is read on a blocking thread of the runtime.
    ///
    /// # Errors
    /// The file cannot be opened or read; `UnexpectedEof`: the file is shorter than the region.
    ///
    /// # Cancel safety
    /// Cancel safe. A read that has begun continues on its thread.
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
                run_blocking(read).await
            }
        }
    }

    /// Returns the content, which decides how the body is sent.
    pub(crate) fn content(&self) -> &Content {
        &self.content
    }

    /// Opens a file now instead of when its body is sent.
    pub(crate) async fn open_now(mut self) -> io::Result<Self> {
        if let Content::File(segment) = &self.content {
            let opening = segment.clone();
            let file = run_blocking(move || opening.open()).await?;
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

struct ReleaseHook {
    hook: Option<Box<dyn FnOnce() + Send + Sync>>,
    _earlier: Option<Arc<Self>>,
}

impl Drop for ReleaseHook {
    fn drop(&mut self) {
        let Some(hook) = self.hook.take() else { return };
        // During a panic several bodies may be dropped, and a second panic would abort the process.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(hook)).is_err() {
            log_limited!(|suppressed| {
                tracing::error!(suppressed, "an on_release hook of a ManagedBuffer panicked");
            });
        }
    }
}
