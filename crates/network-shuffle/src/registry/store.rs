//! [`RegistrationStore`]: the thread that writes registrations to the disk.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::store_file::{Change, StoreError, StoreFile};
use super::table::ExecutorTable;

/// The changes that wait for the disk; further ones wait for capacity.
const QUEUE_LEN: usize = 1024;
/// The most changes of one transaction.
const BATCH_LEN: usize = 256;
/// After an error, the store is opened again at most once in this time.
const REOPEN_INTERVAL: Duration = Duration::from_secs(5);

/// Writes registrations to the disk, several of them in one transaction.
///
/// An error fails the changes of its transaction. The file is then opened again for a later change,
/// and all executors of the table are written, because some may be missing in the file.
pub(super) struct RegistrationStore {
    changes: mpsc::Sender<QueuedChange>,
}

struct QueuedChange {
    /// `None` ends the thread.
    change: Option<Change>,
    done: oneshot::Sender<Result<(), Arc<StoreError>>>,
}

impl RegistrationStore {
    /// Opens the store, and adds its registrations to `table`.
    ///
    /// If it cannot be used and is not `required`, a warning is logged; a damaged file is set aside
    /// and replaced by a new one.
    pub(super) fn open(
        path: &Path,
        required: bool,
        table: &Arc<ExecutorTable>,
    ) -> Result<Self, StoreError> {
        let file = match Self::load(path, table) {
            Ok(file) => Some(file),
            Err(error) if required => return Err(error),
            Err(error) => {
                warn(&error, "starting without the registrations of earlier runs");
                replace_damaged(path, &error)
            }
        };
        let (changes, queue) = mpsc::channel(QUEUE_LEN);
        let writer = StoreWriter {
            path: path.to_owned(),
            table: Arc::clone(table),
            is_incomplete: file.is_none(),
            last_open: Instant::now(),
            file,
        };
        let thread = thread::Builder::new().name("registrations".to_owned());
        match thread.spawn(move || writer.run(queue)) {
            Ok(_) => Ok(Self { changes }),
            Err(error) => {
                Err(StoreError { path: path.to_owned(), is_damaged: false, source: error.into() })
            }
        }
    }

    fn load(path: &Path, table: &ExecutorTable) -> Result<StoreFile, StoreError> {
        let file = StoreFile::open(path)?;
        for executor in file.read_all()? {
            let ids = [executor.app_id.as_str(), executor.exec_id.as_str()];
            if !table.insert(ids, executor.info) {
                return Err(StoreError {
                    path: path.to_owned(),
                    is_damaged: false,
                    source: "its registrations exceed spark.shuffle.service.maxRegistrationsSize"
                        .into(),
                });
            }
        }
        Ok(file)
    }

    /// Writes a change; it is on the disk when this returns.
    pub(super) async fn write(&self, change: Change) -> Result<(), Arc<StoreError>> {
        self.send(Some(change)).await
    }

    /// Closes the file after all changes; later ones fail.
    pub(super) async fn close(&self) {
        // Fails if it is closed already.
        let _ = self.send(None).await;
    }

    async fn send(&self, change: Option<Change>) -> Result<(), Arc<StoreError>> {
        let (done, written) = oneshot::channel();
        let ended = || {
            Arc::new(StoreError {
                path: PathBuf::new(),
                is_damaged: false,
                source: "the thread of the store has ended".into(),
            })
        };
        self.changes.send(QueuedChange { change, done }).await.map_err(|_| ended())?;
        written.await.map_err(|_| ended())?
    }
}

/// The state of the thread.
struct StoreWriter {
    path: PathBuf,
    table: Arc<ExecutorTable>,
    /// `None` after an error.
    file: Option<StoreFile>,
    /// The file lacks executors of the table.
    is_incomplete: bool,
    last_open: Instant,
}

impl StoreWriter {
    /// Writes changes until the store is dropped.
    fn run(mut self, mut queue: mpsc::Receiver<QueuedChange>) {
        let mut batch = Vec::new();
        while queue.blocking_recv_many(&mut batch, BATCH_LEN) > 0 {
            let result = self.write(&batch).map_err(Arc::new);
            let is_end = batch.iter().any(|queued| queued.change.is_none());
            if is_end {
                queue.close();
                self.file = None;
            }
            for queued in batch.drain(..) {
                // The connection may have ended meanwhile.
                let _ = queued.done.send(result.clone());
            }
            if is_end {
                return;
            }
        }
    }

    fn write(&mut self, batch: &[QueuedChange]) -> Result<(), StoreError> {
        let file = match self.file.take() {
            Some(file) => file,
            // Not logged: peers would write the log.
            None if self.last_open.elapsed() < REOPEN_INTERVAL => {
                let source = "an earlier attempt has just failed".into();
                return Err(StoreError { path: self.path.clone(), is_damaged: false, source });
            }
            None => self.reopen()?,
        };
        self.write_to(file, batch).inspect_err(|error| warn(error, "registrations are not stored"))
    }

    fn write_to(&mut self, file: StoreFile, batch: &[QueuedChange]) -> Result<(), StoreError> {
        let stored = if self.is_incomplete { self.table_content() } else { Vec::new() };
        // Kept in `is_incomplete` until it is written.
        self.is_incomplete = true;
        let changes = stored.iter().chain(batch.iter().filter_map(|queued| queued.change.as_ref()));
        file.write(changes)?;
        self.is_incomplete = false;
        self.file = Some(file);
        Ok(())
    }

    fn reopen(&mut self) -> Result<StoreFile, StoreError> {
        self.last_open = Instant::now();
        StoreFile::open(&self.path).or_else(|error| {
            warn(&error, "the store cannot be opened again");
            replace_damaged(&self.path, &error).ok_or(error)
        })
    }

    /// Returns the registrations of all executors.
    fn table_content(&self) -> Vec<Change> {
        let applications = self.table.applications().into_iter();
        let executors = applications.flat_map(|app_id| {
            let executors = self.table.executors(&app_id).into_iter();
            executors.map(move |(exec_id, executor)| Change::Register {
                app_id: app_id.clone(),
                exec_id,
                info: executor.info.clone(),
            })
        });
        executors.collect()
    }
}

/// Replaces a damaged store by a new one; returns `None` for other errors.
fn replace_damaged(path: &Path, error: &StoreError) -> Option<StoreFile> {
    if !error.is_damaged {
        return None;
    }
    let replaced = StoreFile::set_aside(path)
        .map_err(|error: io::Error| error.to_string())
        .and_then(|aside| match StoreFile::open(path) {
            Ok(file) => Ok((aside, file)),
            Err(error) => Err(error.to_string()),
        });
    match replaced {
        Ok((aside, file)) => {
            tracing::warn!(file = %aside.display(), "the damaged store was renamed");
            Some(file)
        }
        Err(error) => {
            tracing::warn!(error, "the damaged store cannot be replaced");
            None
        }
    }
}

fn warn(error: &StoreError, consequence: &str) {
    tracing::warn!(cause = %error.source, %error, "{consequence}");
}
