//! [`ExecutorRegistry`]: which executors are registered, and where their files are.

mod local_roots;
mod store;
mod store_file;
mod table;

use std::path::Path;
use std::sync::Arc;

use network_common::peer_name;

pub use self::store_file::StoreError;
pub(crate) use self::table::RegisteredExecutor;

use self::local_roots::LocalRoots;
use self::store::RegistrationStore;
use self::store_file::Change;
use self::table::ExecutorTable;
use crate::conf::ShuffleServiceConf;
use crate::metrics::{ServiceMetrics, add};
use crate::protocol::ExecutorShuffleInfo;
use crate::request_error::RequestError;

/// The registered executors of all applications, in memory and on the disk.
pub(crate) struct ExecutorRegistry {
    table: Arc<ExecutorTable>,
    store: Option<RegistrationStore>,
    /// A registration that cannot be stored fails.
    store_is_required: bool,
    roots: Arc<LocalRoots>,
    metrics: Arc<ServiceMetrics>,
}

impl ExecutorRegistry {
    /// Opens the registry with the registrations of earlier runs. Does disk I/O.
    pub(crate) fn open(
        conf: &ShuffleServiceConf,
        metrics: Arc<ServiceMetrics>,
    ) -> Result<Self, StoreError> {
        let table = Arc::new(ExecutorTable::new(conf.max_registrations_size()));
        let open = |path| RegistrationStore::open(path, conf.db_required(), &table);
        Ok(Self {
            store: conf.db_file().as_deref().map(open).transpose()?,
            table,
            store_is_required: conf.db_required(),
            roots: Arc::new(LocalRoots::new(conf.local_dirs())),
            metrics,
        })
    }

    /// Adds or replaces an executor; it survives the process when this returns.
    pub(crate) async fn register(
        &self,
        app_id: String,
        exec_id: String,
        info: ExecutorShuffleInfo,
    ) -> Result<(), RequestError> {
        check_registration(&info)?;
        self.roots.check(&info).await?;
        let full = || {
            RequestError::illegal_state(format!(
                "the registrations of all executors would exceed {} bytes: raise \
                 spark.shuffle.service.maxRegistrationsSize",
                self.table.max_len()
            ))
        };
        if !self.table.has_capacity([&app_id, &exec_id], &info) {
            return Err(full());
        }
        let change = Change::Register {
            app_id: app_id.clone(),
            exec_id: exec_id.clone(),
            info: info.clone(),
        };
        self.store(change)
            .await
            .map_err(|error| RequestError::runtime(format!("{error}: {}", error.source)))?;
        if self.table.insert([&app_id, &exec_id], info) { Ok(()) } else { Err(full()) }
    }

    /// Returns a registered executor, or Spark's error.
    pub(crate) fn executor(
        &self,
        app_id: &str,
        exec_id: &str,
    ) -> Result<Arc<RegisteredExecutor>, RequestError> {
        self.table.get([app_id, exec_id]).ok_or_else(|| {
            let (app_id, exec_id) = (peer_name(app_id), peer_name(exec_id));
            RequestError::runtime(format!(
                "Executor is not registered (appId={app_id}, execId={exec_id})"
            ))
        })
    }

    /// Removes an application; returns its executors, and a future that stores the removal.
    pub(crate) fn remove_application(
        &self,
        app_id: &str,
    ) -> (Vec<Arc<RegisteredExecutor>>, impl Future<Output = Result<(), Arc<StoreError>>>) {
        let executors = self.table.remove_application(app_id);
        (executors, self.store(Change::RemoveApplication { app_id: app_id.to_owned() }))
    }

    /// Stores a change; fails only if the store is required.
    async fn store(&self, change: Change) -> Result<(), Arc<StoreError>> {
        let Some(store) = &self.store else { return Ok(()) };
        match store.write(change).await {
            Err(error) if self.store_is_required => Err(error),
            // The thread of the store has logged the error.
            Err(_) => {
                add(&self.metrics.unstored_registrations, 1);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Closes the store after all changes; later ones are not stored.
    pub(crate) async fn close(&self) {
        if let Some(store) = &self.store {
            store.close().await;
        }
    }

    /// Returns the ids of all applications.
    pub(crate) fn applications(&self) -> Vec<String> {
        self.table.applications()
    }

    /// Returns the executors of an application.
    pub(crate) fn executors(&self, app_id: &str) -> Vec<Arc<RegisteredExecutor>> {
        self.table.executors(app_id).into_iter().map(|(_, executor)| executor).collect()
    }

    /// Returns the number of registered executors.
    pub(crate) fn executor_count(&self) -> u64 {
        self.table.executor_count()
    }
}

/// Checks what an executor registers, without disk I/O.
fn check_registration(info: &ExecutorShuffleInfo) -> Result<(), RequestError> {
    let invalid = |text: String| Err(RequestError::illegal_argument(text));
    if info.local_dirs.is_empty() {
        return invalid("an executor must register at least one local directory".to_owned());
    }
    if info.sub_dirs_per_local_dir <= 0 {
        return invalid(format!(
            "subDirsPerLocalDir must be positive, not {}",
            info.sub_dirs_per_local_dir
        ));
    }
    match info.local_dirs.iter().find(|dir| !Path::new(dir).is_absolute() || dir.contains('\0')) {
        Some(dir) => {
            invalid(format!("the local directory '{}' is not an absolute path", peer_name(dir)))
        }
        None => Ok(()),
    }
}
