//! [`DirectoryCleaner`]: deletes the directories of applications and executors that have ended.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::registry::RegisteredExecutor;

/// How the directories that Spark's `DiskBlockManager` creates begin.
///
/// The service deletes no other directory, whatever an executor has registered.
const BLOCK_DIR_PREFIX: &str = "blockmgr-";
/// Local directory, subdirectory, file: deeper directories are not Spark's.
const MAX_DEPTH: usize = 2;

/// Deletes directories one after the other, without delaying requests.
///
/// Corresponds to the directory cleaner of Spark's `ExternalShuffleBlockResolver`. Dropping it
/// ends the task after the directory that it is deleting.
pub(crate) struct DirectoryCleaner(mpsc::UnboundedSender<CleanUp>);

/// Directories to clean.
struct CleanUp {
    executor: Arc<RegisteredExecutor>,
    kept: KeptFiles,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum KeptFiles {
    None,
    /// Files that the service can still serve; with cached partitions or without.
    Served {
        rdds: bool,
    },
}

impl DirectoryCleaner {
    /// Starts the task on the current runtime.
    pub(crate) fn start() -> Self {
        // Not bounded: only the operator's calls add to it, one entry for each executor.
        let (sender, mut receiver) = mpsc::unbounded_channel::<CleanUp>();
        tokio::spawn(async move {
            while let Some(clean_up) = receiver.recv().await {
                // A panic of the blocking thread has been printed.
                let _ = tokio::task::spawn_blocking(move || clean_up.run()).await;
            }
        });
        Self(sender)
    }

    /// Deletes the files of an executor, except `kept`.
    pub(crate) fn clean(&self, executor: Arc<RegisteredExecutor>, kept: KeptFiles) {
        // Fails only if the runtime is ending.
        let _ = self.0.send(CleanUp { executor, kept });
    }
}

impl CleanUp {
    fn run(&self) {
        for dir in self.executor.info.local_dirs.iter().map(Path::new) {
            let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if !name.starts_with(BLOCK_DIR_PREFIX) {
                tracing::warn!(
                    dir = %dir.display(),
                    "the directory is not deleted: its name does not begin with {BLOCK_DIR_PREFIX}"
                );
                continue;
            }
            let result = match self.kept {
                KeptFiles::None => fs::remove_dir_all(dir),
                KeptFiles::Served { rdds } => remove_files(dir, rdds, 0),
            };
            match result {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(dir = %dir.display(), %error, "a directory cannot be deleted");
                }
                _ => tracing::info!(dir = %dir.display(), "deleted files of an ended executor"),
            }
        }
    }
}

/// Deletes the files that the service does not serve; follows no symbolic links.
fn remove_files(dir: &Path, keep_rdds: bool, depth: usize) -> io::Result<()> {
    if fs::symlink_metadata(dir)?.is_symlink() {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, "this is a symbolic link"));
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if entry.file_type()?.is_dir() {
            if depth + 1 < MAX_DEPTH {
                remove_files(&entry.path(), keep_rdds, depth + 1)?;
            }
        } else if !is_served(&name, keep_rdds) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Returns whether the service reads a file of this name.
///
/// Spark deletes checksums, too, and can then not diagnose corruption.
fn is_served(name: &str, keep_rdds: bool) -> bool {
    name.ends_with(".index")
        || name.ends_with(".data")
        || name.contains(".checksum.")
        || (keep_rdds && name.starts_with("rdd_"))
}
