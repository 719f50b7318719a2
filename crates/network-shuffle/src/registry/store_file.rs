//! [`StoreFile`]: the registrations in a file of the embedded database redb.
//!
//! redb is used because a committed transaction survives the end of the process and of the machine,
//! it is written in Rust only, and its file is small and opens at once. Spark's LevelDB and RocksDB
//! are libraries of C++; the current release of fjall, also in Rust, needs a directory of files and
//! background threads for what is one table of a few MiB. An SQL database would add a language.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use network_common::protocol::FieldReader;
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::protocol::ExecutorShuffleInfo;

/// The registrations by application and executor; the values are the fields of `RegisterExecutor`.
const EXECUTORS: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("executors");
const VERSIONS: TableDefinition<'_, &str, u32> = TableDefinition::new("versions");
const VERSION: (&str, u32) = ("executors", 1);
/// The database's own cache: registrations are read only at the start.
const CACHE_LEN: usize = 1 << 20;

/// A change of the stored registrations.
#[derive(Debug)]
pub(super) enum Change {
    Register { app_id: String, exec_id: String, info: ExecutorShuffleInfo },
    RemoveApplication { app_id: String },
}

/// A registration that was read at the start.
pub(super) struct StoredExecutor {
    pub(super) app_id: String,
    pub(super) exec_id: String,
    pub(super) info: ExecutorShuffleInfo,
}

/// The store of registrations cannot be used.
///
/// ```
/// use network_shuffle::ServiceError;
///
/// fn is_damaged(error: &ServiceError) -> bool {
///     matches!(error, ServiceError::Store(store) if store.is_damaged)
/// }
/// ```
#[derive(Debug, thiserror::Error)]
#[error(
    "the registrations of executors cannot be stored in {}: correct \
     spark.shuffle.service.db.dir, set spark.shuffle.service.db.required=false, or remove the file",
    path.display()
)]
#[non_exhaustive]
pub struct StoreError {
    /// The file of the store.
    pub path: PathBuf,
    /// True if the content of the file is damaged, so that a new file would help.
    pub is_damaged: bool,
    /// The cause.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// An open store.
pub(super) struct StoreFile {
    database: Database,
    path: PathBuf,
}

impl StoreFile {
    /// Opens the store, or creates it.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let open = || -> Result<Database, redb::Error> {
            let file = open_private_file(path)?;
            let database = Database::builder()
                .set_cache_size(CACHE_LEN)
                .set_check_integrity_on_open(true)
                .create_with_backend(FileBackend::new(file)?)?;
            let transaction = database.begin_write()?;
            {
                let mut versions = transaction.open_table(VERSIONS)?;
                let version = versions.get(VERSION.0)?.map(|version| version.value());
                match version {
                    None => {
                        versions.insert(VERSION.0, VERSION.1)?;
                    }
                    Some(version) if version == VERSION.1 => {}
                    Some(version) => {
                        let text = format!("the file has version {version}, not {}", VERSION.1);
                        return Err(redb::Error::Corrupted(text));
                    }
                }
                transaction.open_table(EXECUTORS)?;
            }
            transaction.commit()?;
            Ok(database)
        };
        let database = guard(path, open)?;
        Ok(Self { database, path: path.to_owned() })
    }

    /// Renames a damaged store, so that a new one can be created; replaces an earlier one.
    pub(super) fn set_aside(path: &Path) -> io::Result<PathBuf> {
        let mut name = path.as_os_str().to_owned();
        name.push(".damaged");
        let aside = PathBuf::from(name);
        fs::rename(path, &aside)?;
        Ok(aside)
    }

    /// Returns all registrations.
    pub(super) fn read_all(&self) -> Result<Vec<StoredExecutor>, StoreError> {
        guard(&self.path, || {
            let transaction = self.database.begin_read()?;
            let table = transaction.open_table(EXECUTORS)?;
            let mut executors = Vec::new();
            for row in table.iter()? {
                let (key, value) = row?;
                let (app_id, exec_id) = key.value();
                let (app_id, exec_id) = (app_id.to_owned(), exec_id.to_owned());
                let info = ExecutorShuffleInfo::decode_from(&mut FieldReader::new(value.value()))
                    .map_err(|error| redb::Error::Corrupted(error.to_string()))?;
                executors.push(StoredExecutor { app_id, exec_id, info });
            }
            Ok(executors)
        })
    }

    /// Writes changes in one transaction, which is on the disk when this returns.
    pub(super) fn write<'a>(
        &self,
        changes: impl Iterator<Item = &'a Change>,
    ) -> Result<(), StoreError> {
        guard(&self.path, || {
            let transaction = self.database.begin_write()?;
            {
                let mut table = transaction.open_table(EXECUTORS)?;
                for change in changes {
                    match change {
                        Change::Register { app_id, exec_id, info } => {
                            let mut value = Vec::with_capacity(256);
                            info.encode_into(&mut value);
                            table.insert((app_id.as_str(), exec_id.as_str()), value.as_slice())?;
                        }
                        Change::RemoveApplication { app_id } => {
                            // No id is between the application's and the one with a zero byte.
                            let end = format!("{app_id}\0");
                            let range = (app_id.as_str(), "")..(end.as_str(), "");
                            table.retain_in(range, |_, _| false)?;
                        }
                    }
                }
            }
            transaction.commit()?;
            Ok(())
        })
    }
}

/// Runs an operation of the database; a panic in it is an error.
///
/// redb has assertions that a damaged file can violate.
fn guard<T>(
    path: &Path,
    operation: impl FnOnce() -> Result<T, redb::Error>,
) -> Result<T, StoreError> {
    let error = |is_damaged, source| StoreError { path: path.to_owned(), is_damaged, source };
    match catch_unwind(AssertUnwindSafe(operation)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(cause)) => Err(error(is_damaged(&cause), cause.into())),
        Err(_) => Err(error(true, "the file is damaged".into())),
    }
}

fn is_damaged(error: &redb::Error) -> bool {
    match error {
        redb::Error::Io(error) => {
            matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
        }
        redb::Error::Corrupted(_)
        | redb::Error::UpgradeRequired(_)
        | redb::Error::RepairAborted
        | redb::Error::TableTypeMismatch { .. } => true,
        _ => false,
    }
}

/// Opens a file that only this user can read, in a directory that only this user can change.
///
/// The default directory is in a directory where others can create files.
fn open_private_file(path: &Path) -> io::Result<File> {
    if let Some(dir) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let metadata = fs::metadata(dir)?;
        let is_shared = metadata.permissions().mode() & 0o022 != 0;
        if is_shared || metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("others can change files in the directory {}", dir.display()),
            ));
        }
    }
    let no_follow = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(no_follow)
        .open(path)
}
