//! [`WatchedSecrets`]: the secrets of applications, in files that may change.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use network_common::auth::{Secret, SecretKeyHolder};
use parking_lot::{Mutex, RwLock};
use tokio::task::AbortHandle;

/// The interval between two checks of the files.
///
/// Polling also sees the changes of mounted Kubernetes secrets, which are swapped symbolic links,
/// and of network file systems, which report no events.
const INTERVAL: Duration = Duration::from_secs(1);
/// The longest secret in bytes.
const MAX_LEN: u64 = 64 << 10;

/// The place of the secrets.
#[derive(Debug, Clone)]
pub(crate) enum SecretSource {
    /// One secret for all applications.
    Text(Secret),
    /// One secret for all applications: the Base64 of the bytes of this file, as in Spark.
    File(PathBuf),
    /// The text of one file for each application, whose name is the id of the application.
    Directory(PathBuf),
}

/// The secrets of applications; changes of files apply to later handshakes.
pub(crate) struct WatchedSecrets {
    secrets: Arc<Secrets>,
    watcher: Option<AbortHandle>,
}

/// The secrets in memory.
#[derive(Default)]
struct Secrets {
    for_all: RwLock<Option<Secret>>,
    by_app: RwLock<HashMap<String, Secret>>,
    /// The files as they were read last.
    files: Mutex<HashMap<PathBuf, FileVersion>>,
}

/// Differs if a file was changed or replaced.
#[derive(PartialEq)]
struct FileVersion {
    modified: Option<SystemTime>,
    len: u64,
    inode: u64,
}

impl WatchedSecrets {
    /// Reads the secrets, and watches their files on the current runtime.
    pub(crate) async fn open(source: SecretSource) -> io::Result<Self> {
        let secrets = Arc::new(Secrets::default());
        if let SecretSource::Text(secret) = source {
            *secrets.for_all.write() = Some(secret);
            return Ok(Self { secrets, watcher: None });
        }
        let read = {
            let (secrets, source) = (Arc::clone(&secrets), source.clone());
            move || secrets.read(&source)
        };
        tokio::task::spawn_blocking(read).await.map_err(io::Error::other)??;
        let watched = Arc::clone(&secrets);
        let watcher = tokio::spawn(async move {
            let mut interval = tokio::time::interval(INTERVAL);
            loop {
                interval.tick().await;
                let (secrets, source) = (Arc::clone(&watched), source.clone());
                let read = tokio::task::spawn_blocking(move || secrets.read(&source)).await;
                if let Ok(Err(error)) = read {
                    tracing::warn!(%error, "the secrets cannot be read; the last ones stay valid");
                }
            }
        });
        Ok(Self { secrets, watcher: Some(watcher.abort_handle()) })
    }
}

impl Drop for WatchedSecrets {
    fn drop(&mut self) {
        if let Some(watcher) = &self.watcher {
            watcher.abort();
        }
    }
}

impl SecretKeyHolder for WatchedSecrets {
    fn secret_key(&self, app_id: &str) -> Option<Secret> {
        let for_all = self.secrets.for_all.read().clone();
        for_all.or_else(|| self.secrets.by_app.read().get(app_id).cloned())
    }
}

impl Secrets {
    /// Reads the files that have changed.
    fn read(&self, source: &SecretSource) -> io::Result<()> {
        match source {
            SecretSource::Text(_) => Ok(()),
            SecretSource::File(file) => {
                if let Some(bytes) = self.read_if_changed(file)? {
                    *self.for_all.write() = Some(Secret::from_file_content(&bytes));
                }
                Ok(())
            }
            SecretSource::Directory(directory) => self.read_directory(directory),
        }
    }

    fn read_directory(&self, directory: &Path) -> io::Result<()> {
        let error = |error| named(directory, &error);
        let mut present = Vec::new();
        for entry in fs::read_dir(directory).map_err(error)? {
            let path = entry?.path();
            let Some(app_id) = path.file_name().and_then(|name| name.to_str()) else { continue };
            // Files that are being written, and the directories of Kubernetes.
            if app_id.starts_with('.') || !path.is_file() {
                continue;
            }
            let read = self.read_if_changed(&path).and_then(|bytes| match bytes {
                Some(bytes) => text_secret(&path, bytes).map(Some),
                None => Ok(None),
            });
            match read {
                Ok(Some(secret)) => {
                    tracing::info!(app_id, "read the secret of an application");
                    self.by_app.write().insert(app_id.to_owned(), secret);
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "a secret cannot be read"),
            }
            present.push(app_id.to_owned());
        }
        present.sort_unstable();
        let is_present = |app_id: &str| present.binary_search_by(|one| one.as_str().cmp(app_id));
        self.by_app.write().retain(|app_id, _| is_present(app_id).is_ok());
        self.files.lock().retain(|path, _| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(|id| is_present(id).is_ok())
        });
        Ok(())
    }

    /// Returns the bytes of a file, if the file has changed since the last call.
    fn read_if_changed(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        use std::os::unix::fs::MetadataExt;
        let error = |error| named(path, &error);
        let metadata = fs::metadata(path).map_err(error)?;
        let version = FileVersion {
            modified: metadata.modified().ok(),
            len: metadata.len(),
            inode: metadata.ino(),
        };
        if self.files.lock().get(path) == Some(&version) {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_LEN + 1).read_to_end(&mut bytes))
            .map_err(error)?;
        if bytes.is_empty() || bytes.len() as u64 > MAX_LEN {
            let reason = format!("a secret has 1 to {MAX_LEN} bytes, not {}", bytes.len());
            return Err(named(path, &io::Error::new(io::ErrorKind::InvalidData, reason)));
        }
        self.files.lock().insert(path.to_owned(), version);
        Ok(Some(bytes))
    }
}

/// Returns the text of a file without the end of its line.
fn text_secret(path: &Path, bytes: Vec<u8>) -> io::Result<Secret> {
    let invalid = |reason| named(path, &io::Error::new(io::ErrorKind::InvalidData, reason));
    let text = String::from_utf8(bytes).map_err(|_| invalid("a secret is a text in UTF-8"))?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(invalid("a secret has at least 1 byte")),
        secret => Ok(Secret::new(secret)),
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
