//! [`FileRegistry`], which maps paths of URIs to files and opens them for peers.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use futures::future::BoxFuture;
use network_common::{BoxError, ManagedBuffer, StreamManager, TransportClient, run_blocking};

use crate::peer_text::peer_name;
use crate::sync::Mutex;

/// The first path segments of single files.
pub(super) const FILE_SEGMENTS: [&str; 2] = ["files", "jars"];

/// All offered files and directories; the [`StreamManager`] of an environment.
#[derive(Debug, Default)]
pub(crate) struct FileRegistry {
    offered: Mutex<Offered>,
}

#[derive(Debug, Default)]
struct Offered {
    /// Single files by path, which begins with one of [`FILE_SEGMENTS`].
    files: HashMap<String, PathBuf>,
    /// Directories by prefix, without outer slashes.
    directories: HashMap<String, PathBuf>,
}

/// The file that a stream id names.
#[derive(Debug)]
enum FileLocation {
    File(PathBuf),
    Below { directory: PathBuf, rest: String },
}

impl FileRegistry {
    /// Adds a file, unless the key is in use, and returns the file that is offered under the key.
    pub(super) fn add(&self, key: String, path: &Path) -> PathBuf {
        self.offered.lock().files.entry(key).or_insert_with(|| path.to_owned()).clone()
    }

    /// Adds a directory, and returns whether the prefix, without outer slashes, was free.
    pub(super) fn add_directory(&self, prefix: String, path: PathBuf) -> bool {
        match self.offered.lock().directories.entry(prefix) {
            Entry::Occupied(_) => false,
            Entry::Vacant(free) => {
                free.insert(path);
                true
            }
        }
    }

    /// Removes a file, and returns whether it was offered.
    pub(super) fn remove(&self, key: &str) -> bool {
        self.offered.lock().files.remove(key).is_some()
    }

    /// Returns the file that a stream id names; `None` if no such file was added.
    fn locate(&self, stream_id: &str) -> Result<Option<FileLocation>, BoxError> {
        let path = stream_id.strip_prefix('/').unwrap_or(stream_id);
        let first = path.split('/').next().unwrap_or_default();
        let offered = self.offered.lock();
        if FILE_SEGMENTS.contains(&first) {
            return Ok(offered.files.get(path).cloned().map(FileLocation::File));
        }
        let below = offered.directories.iter().filter_map(|(prefix, directory)| {
            let rest = path.strip_prefix(prefix.as_str())?;
            (rest.is_empty() || rest.starts_with('/')).then_some((prefix.len(), directory, rest))
        });
        let longest = below.max_by_key(|(length, ..)| *length);
        let (_, directory, rest) = longest
            .ok_or_else(|| format!("Invalid stream URI: {} not found.", peer_name(first)))?;
        let rest = rest.strip_prefix('/').unwrap_or(rest).to_owned();
        Ok(Some(FileLocation::Below { directory: directory.clone(), rest }))
    }
}

impl FileLocation {
    /// Opens the whole file; may block on the disk.
    ///
    /// The open file is sent, so that it is the one whose type was checked.
    fn open(self) -> io::Result<Option<ManagedBuffer>> {
        // Checked before opening, because opening a pipe waits for its other end.
        let file = match self {
            Self::File(path) if path.metadata()?.is_file() => File::open(path)?,
            Self::Below { directory, rest } => {
                // Opened each time, because the directory may have been replaced.
                let directory = Dir::open_ambient_dir(directory, ambient_authority())?;
                if !directory.metadata(&rest)?.is_file() {
                    return Ok(None);
                }
                directory.open(&rest)?.into_std()
            }
            Self::File(_) => return Ok(None),
        };
        let metadata = file.metadata()?;
        Ok(metadata.is_file().then(|| ManagedBuffer::open_file(Arc::new(file), 0..metadata.len())))
    }
}

/// Returns whether the path does not exist, or leads out of its directory.
fn is_not_found(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::InvalidInput
    )
}

impl StreamManager for FileRegistry {
    fn get_chunk<'a>(
        &'a self,
        _: &'a TransportClient,
        _: i64,
        _: i32,
    ) -> BoxFuture<'a, Result<ManagedBuffer, BoxError>> {
        Box::pin(async { Err("files are not served in chunks: open a stream instead".into()) })
    }

    fn open_stream<'a>(
        &'a self,
        client: &'a TransportClient,
        stream_id: &'a str,
    ) -> BoxFuture<'a, Result<Option<ManagedBuffer>, BoxError>> {
        Box::pin(async move {
            let Some(location) = self.locate(stream_id)? else { return Ok(None) };
            match run_blocking(move || location.open()).await {
                Ok(found) => Ok(found),
                Err(error) if is_not_found(&error) => {
                    tracing::debug!(
                        peer = %client.peer_addr(),
                        stream_id = %peer_name(stream_id),
                        error = %format_args!("{error:#}"),
                        "no file to serve"
                    );
                    Ok(None)
                }
                Err(error) => {
                    let stream_id = peer_name(stream_id);
                    Err(format!("Stream '{stream_id}' cannot be opened: {error}").into())
                }
            }
        })
    }
}
