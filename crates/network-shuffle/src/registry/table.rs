//! [`ExecutorTable`]: the registered executors in memory.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use crate::protocol::ExecutorShuffleInfo;

/// Estimated bytes of an executor beside its texts.
const ENTRY_LEN: u64 = 200;

/// A registered executor.
#[derive(Debug)]
pub(crate) struct RegisteredExecutor {
    /// Differs for each registration of this process.
    pub(crate) registration: u64,
    pub(crate) info: ExecutorShuffleInfo,
}

/// The executors by application and id.
type Applications = HashMap<String, HashMap<String, Arc<RegisteredExecutor>>>;

/// The registered executors of all applications, bounded in bytes.
pub(super) struct ExecutorTable {
    content: RwLock<Content>,
    next_registration: AtomicU64,
    max_len: u64,
}

#[derive(Default)]
struct Content {
    applications: Applications,
    /// The estimated bytes of all entries.
    len: u64,
    executors: u64,
}

impl ExecutorTable {
    pub(super) fn new(max_len: u64) -> Self {
        Self { content: RwLock::default(), next_registration: AtomicU64::new(0), max_len }
    }

    /// Returns whether the table has capacity for an executor.
    ///
    /// An executor that registers again is counted twice until its old entry is replaced.
    pub(super) fn has_capacity(&self, ids: [&str; 2], info: &ExecutorShuffleInfo) -> bool {
        self.content.read().len + entry_len(ids, info) <= self.max_len
    }

    /// Adds or replaces an executor; returns false if the table has no capacity.
    pub(super) fn insert(&self, ids: [&str; 2], info: ExecutorShuffleInfo) -> bool {
        let registration = self.next_registration.fetch_add(1, Ordering::Relaxed);
        let added = entry_len(ids, &info);
        let [app_id, exec_id] = ids;
        let executor = Arc::new(RegisteredExecutor { registration, info });
        let content = &mut *self.content.write();
        if content.len + added > self.max_len {
            return false;
        }
        content.len += added;
        let executors = content.applications.entry(app_id.to_owned()).or_default();
        match executors.insert(exec_id.to_owned(), executor) {
            Some(replaced) => content.len -= entry_len(ids, &replaced.info),
            None => content.executors += 1,
        }
        true
    }

    /// Returns a registered executor.
    pub(super) fn get(&self, [app_id, exec_id]: [&str; 2]) -> Option<Arc<RegisteredExecutor>> {
        self.content.read().applications.get(app_id)?.get(exec_id).cloned()
    }

    /// Removes an application; returns its executors.
    pub(super) fn remove_application(&self, app_id: &str) -> Vec<Arc<RegisteredExecutor>> {
        let content = &mut *self.content.write();
        let executors = content.applications.remove(app_id).unwrap_or_default();
        for (exec_id, executor) in &executors {
            content.len -= entry_len([app_id, exec_id], &executor.info);
            content.executors -= 1;
        }
        executors.into_values().collect()
    }

    /// Returns the ids of all applications.
    pub(super) fn applications(&self) -> Vec<String> {
        self.content.read().applications.keys().cloned().collect()
    }

    /// Returns the executors of an application with their ids.
    pub(super) fn executors(&self, app_id: &str) -> Vec<(String, Arc<RegisteredExecutor>)> {
        let content = self.content.read();
        let executors = content.applications.get(app_id).into_iter().flatten();
        executors.map(|(exec_id, executor)| (exec_id.clone(), Arc::clone(executor))).collect()
    }

    /// Returns the number of executors.
    pub(super) fn executor_count(&self) -> u64 {
        self.content.read().executors
    }

    /// Returns the limit of the estimated bytes.
    pub(super) fn max_len(&self) -> u64 {
        self.max_len
    }
}

/// Returns the estimated bytes of an entry in memory.
fn entry_len(ids: [&str; 2], info: &ExecutorShuffleInfo) -> u64 {
    let dirs: usize = info.local_dirs.iter().map(|dir| dir.len() + size_of::<String>()).sum();
    let ids: usize = ids.iter().map(|id| id.len()).sum();
    ENTRY_LEN + (ids + dirs + info.shuffle_manager.len()) as u64
}
