//! [`ExecutorRegistry`]: which executors are registered, and where their files are.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use network_common::peer_name;
use parking_lot::RwLock;

use crate::conf::ShuffleServiceConf;
use crate::protocol::ExecutorShuffleInfo;
use crate::request_error::RequestError;

/// Estimated bytes of an executor beside its texts.
const ENTRY_LEN: u64 = 200;

/// A registered executor.
#[derive(Debug)]
pub(crate) struct RegisteredExecutor {
    /// Differs for each registration of this process.
    pub(crate) registration: u64,
    pub(crate) info: ExecutorShuffleInfo,
}

impl RegisteredExecutor {
    /// Returns the estimated bytes of the entry in memory.
    fn len(&self) -> u64 {
        let texts = self.info.local_dirs.iter().map(|dir| dir.len() + size_of::<String>());
        ENTRY_LEN + (texts.sum::<usize>() + self.info.shuffle_manager.len()) as u64
    }
}

/// The executors by application and id.
type Applications = HashMap<String, HashMap<String, Arc<RegisteredExecutor>>>;

/// The registered executors of all applications, bounded in bytes.
pub(crate) struct ExecutorRegistry {
    table: RwLock<Table>,
    next_registration: AtomicU64,
    max_len: u64,
}

#[derive(Default)]
struct Table {
    applications: Applications,
    /// The estimated bytes of all entries.
    len: u64,
    executors: u64,
}

impl ExecutorRegistry {
    pub(crate) fn new(conf: &ShuffleServiceConf) -> Self {
        let max_len = conf.max_registrations_size();
        Self { table: RwLock::default(), next_registration: AtomicU64::new(0), max_len }
    }

    /// Adds or replaces an executor.
    pub(crate) fn register(
        &self,
        app_id: &str,
        exec_id: &str,
        info: ExecutorShuffleInfo,
    ) -> Result<(), RequestError> {
        let registration = self.next_registration.fetch_add(1, Ordering::Relaxed);
        let executor = Arc::new(RegisteredExecutor { registration, info });
        let added = executor.len() + (app_id.len() + exec_id.len()) as u64;
        let mut table = self.table.write();
        if table.len + added > self.max_len {
            return Err(RequestError::illegal_state(format!(
                "the registrations of all executors would exceed {} bytes: raise \
                 spark.shuffle.service.maxRegistrationsSize",
                self.max_len
            )));
        }
        table.insert(app_id, exec_id, executor);
        Ok(())
    }

    /// Returns a registered executor, or Spark's error.
    pub(crate) fn executor(
        &self,
        app_id: &str,
        exec_id: &str,
    ) -> Result<Arc<RegisteredExecutor>, RequestError> {
        let table = self.table.read();
        let executor = table.applications.get(app_id).and_then(|executors| executors.get(exec_id));
        executor.cloned().ok_or_else(|| {
            let (app_id, exec_id) = (peer_name(app_id), peer_name(exec_id));
            RequestError::runtime(format!(
                "Executor is not registered (appId={app_id}, execId={exec_id})"
            ))
        })
    }

    /// Removes an application; returns its executors.
    pub(crate) fn remove_application(&self, app_id: &str) -> Vec<Arc<RegisteredExecutor>> {
        let mut table = self.table.write();
        let Some(executors) = table.applications.remove(app_id) else { return Vec::new() };
        for (exec_id, executor) in &executors {
            table.len -= executor.len() + (app_id.len() + exec_id.len()) as u64;
            table.executors -= 1;
        }
        executors.into_values().collect()
    }

    /// Returns the number of registered executors.
    pub(crate) fn executor_count(&self) -> u64 {
        self.table.read().executors
    }
}

impl Table {
    fn insert(&mut self, app_id: &str, exec_id: &str, executor: Arc<RegisteredExecutor>) {
        let ids_len = (app_id.len() + exec_id.len()) as u64;
        self.len += executor.len() + ids_len;
        let executors = self.applications.entry(app_id.to_owned()).or_default();
        match executors.insert(exec_id.to_owned(), executor) {
            Some(replaced) => self.len -= replaced.len() + ids_len,
            None => self.executors += 1,
        }
    }
}

/// Checks what an executor registers, without disk I/O.
pub(crate) fn check_registration(info: &ExecutorShuffleInfo) -> Result<(), RequestError> {
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
