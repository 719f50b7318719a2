//! The directory that keeps downloads and compiled harnesses between runs.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use std::{env, fs};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// The name prefix of incomplete directories; all others are complete.
const UNFINISHED: &str = "tmp-";

/// An incomplete directory that is older belongs to a run that was killed.
const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// A directory whose subdirectories are created completely or not at all.
pub(crate) struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens the cache directory, and creates it if necessary.
    ///
    /// It is `$SPARK_INTEROP_CACHE`, else `network-common-interop` in the user's cache directory.
    pub(crate) fn open() -> Result<Self> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = set("SPARK_INTEROP_CACHE")
            .or_else(|| Some(set("XDG_CACHE_HOME")?.join("network-common-interop")))
            .or_else(|| Some(set("HOME")?.join(".cache/network-common-interop")))
            .context("no cache directory is known: set SPARK_INTEROP_CACHE to a directory")?;
        fs::create_dir_all(&root).with_context(|| format!("cannot create {}", root.display()))?;
        let cache = Self { root };
        cache.remove_abandoned()?;
        Ok(cache)
    }

    /// Returns the directory `name`. If it does not exist, `fill` writes its content.
    ///
    /// The directory appears only when it is complete. If two processes fill it at the same time,
    /// the first one to finish creates it and the other one discards its content.
    pub(crate) fn directory(
        &self,
        name: &str,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let directory = self.root.join(name);
        if directory.is_dir() {
            return Ok(directory);
        }
        let unfinished = self.scratch()?;
        let content = unfinished.path().join("content");
        fs::create_dir(&content)?;
        fill(&content)?;
        match fs::rename(&content, &directory) {
            Err(error) if !directory.is_dir() => {
                Err(error).with_context(|| format!("cannot create {}", directory.display()))
            }
            _ => Ok(directory),
        }
    }

    /// Creates a temporary directory on the file system of the cache.
    pub(crate) fn scratch(&self) -> Result<TempDir> {
        tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempdir_in(&self.root)
            .with_context(|| format!("cannot write to {}", self.root.display()))
    }

    /// Removes the incomplete directories of runs that were killed.
    fn remove_abandoned(&self) -> Result<()> {
        for entry in fs::read_dir(&self.root)
            .with_context(|| format!("cannot read {}", self.root.display()))?
        {
            let entry = entry?;
            let unfinished =
                entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes());
            // Another process may have removed the entry.
            let Ok(changed) = entry.metadata().and_then(|metadata| metadata.modified()) else {
                continue;
            };
            let age = SystemTime::now().duration_since(changed).unwrap_or_default();
            if unfinished && age > ABANDONED_AFTER {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(())
    }
}

/// Returns a short hash of `parts`, each with its length.
pub(crate) fn fingerprint<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the files in `directory` with the given extension, sorted.
pub(crate) fn files(directory: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in
        fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?
    {
        let path = entry?.path();
        if path.extension() == Some(OsStr::new(extension)) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_fill_leaves_no_directory() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache { root: root.path().to_owned() };
        let broken = cache.directory("jars", |content| {
            fs::write(content.join("half.jar"), "ha")?;
            anyhow::bail!("connection reset")
        });
        assert!(broken.is_err());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);

        let filled =
            cache.directory("jars", |content| Ok(fs::write(content.join("a.jar"), "a")?)).unwrap();
        assert_eq!(files(&filled, "jar").unwrap(), [filled.join("a.jar")]);
        let again = cache.directory("jars", |_| panic!("the directory exists")).unwrap();
        assert_eq!(again, filled);
    }

    #[test]
    fn first_process_to_finish_creates_the_directory() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache { root: root.path().to_owned() };
        let filled = cache.directory("jars", |slow| {
            cache.directory("jars", |quick| Ok(fs::write(quick.join("quick.jar"), "")?))?;
            Ok(fs::write(slow.join("slow.jar"), "")?)
        });
        assert_eq!(files(&filled.unwrap(), "jar").unwrap(), [root.path().join("jars/quick.jar")]);
    }

    #[test]
    fn fingerprint_depends_on_the_boundaries_of_parts() {
        let of = |parts: [&str; 2]| fingerprint(parts.map(str::as_bytes));
        assert_ne!(of(["ab", "c"]), of(["a", "bc"]));
        assert_eq!(of(["ab", "c"]), of(["ab", "c"]));
    }
}
