//! Where an executor's files are: the hashing of file names to directories, and the path check.

use std::io;
use std::path::{Path, PathBuf};

use crate::protocol::ExecutorShuffleInfo;

/// Returns the path of the file `name` in the directories of an executor.
///
/// Corresponds to Spark's `ExecutorDiskUtils.getFilePath`. Returns `None` for a registration
/// without directories or subdirectories, which the registry does not accept.
pub(crate) fn file_path(info: &ExecutorShuffleInfo, name: &str) -> Option<PathBuf> {
    let hash = non_negative_hash(name);
    let dir_count = u32::try_from(info.local_dirs.len()).ok().filter(|count| *count > 0)?;
    let sub_dir_count =
        u32::try_from(info.sub_dirs_per_local_dir).ok().filter(|count| *count > 0)?;
    let dir = &info.local_dirs[(hash % dir_count) as usize];
    let sub_dir = (hash / dir_count) % sub_dir_count;
    let mut path = PathBuf::from(dir);
    path.push(format!("{sub_dir:02x}"));
    path.push(name);
    Some(path)
}

/// Returns the hash of Spark's `JavaUtils.nonNegativeHash`.
fn non_negative_hash(text: &str) -> u32 {
    let hash = text
        .encode_utf16()
        .fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)));
    // The absolute value of the smallest integer does not exist; Spark uses 0.
    if hash == i32::MIN { 0 } else { hash.unsigned_abs() }
}

/// Returns the path without symbolic links, if it is in a directory of the executor.
///
/// Corresponds to `spark.shuffle.service.verifyBlockPathsAtRead` of Spark 4.3. Does disk I/O.
pub(super) fn verified_path(info: &ExecutorShuffleInfo, path: &Path) -> io::Result<PathBuf> {
    let canonical = path.canonicalize()?;
    let is_inside = |dir: &String| {
        Path::new(dir)
            .canonicalize()
            .is_ok_and(|dir| canonical != dir && canonical.starts_with(dir))
    };
    if info.local_dirs.iter().any(is_inside) {
        return Ok(canonical);
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        "the file is outside of the local directories of its executor",
    ))
}

/// Returns the directory of a file without symbolic links, if it is a directory of the executor.
///
/// Does disk I/O.
pub(super) fn verified_dir(info: &ExecutorShuffleInfo, path: &Path) -> io::Result<PathBuf> {
    match path.parent() {
        Some(dir) => verified_path(info, dir),
        None => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Returns whether a file of this name can be deleted for a peer.
///
/// As in Spark 4.3, a name that could lead to another directory cannot.
pub(super) fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ess_05_files_are_hashed_to_the_directories_of_spark() {
        let info = ExecutorShuffleInfo::new(["/a", "/b", "/c"], 64, "");
        for (name, expected) in [
            ("shuffle_0_0_0.index", "/c/3a/shuffle_0_0_0.index"),
            ("shuffle_0_0_0.data", "/a/04/shuffle_0_0_0.data"),
            ("shuffle_7_123_0.index", "/a/13/shuffle_7_123_0.index"),
            ("rdd_3_1", "/b/1d/rdd_3_1"),
            ("shuffle_1_2_0.checksum.ADLER32", "/b/38/shuffle_1_2_0.checksum.ADLER32"),
        ] {
            assert_eq!(file_path(&info, name), Some(expected.into()));
        }
    }

    #[test]
    fn ess_05_hash_of_smallest_integer_is_zero() {
        // The hash of this text in Java is -2147483648.
        assert_eq!(non_negative_hash("polygenelubricants"), 0);
        assert_eq!(non_negative_hash(""), 0);
    }

    #[test]
    fn ess_05_invalid_registration_has_no_paths() {
        for (dirs, sub_dirs) in [(vec![], 64), (vec!["/a"], 0), (vec!["/a"], -1)] {
            assert_eq!(file_path(&ExecutorShuffleInfo::new(dirs, sub_dirs, ""), "rdd_0_0"), None);
        }
    }
}
