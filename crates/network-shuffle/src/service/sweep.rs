//! Removes applications whose directories have been deleted.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::registry::ExecutorRegistry;

/// The number of checks in the time after which an application is removed.
const CHECKS: u32 = 6;

/// Removes each application whose local directories did not exist for `timeout`.
///
/// A standalone Worker deletes the directories of an application that has ended, and no process
/// reports the end to a service of its own. Never returns.
pub(super) async fn sweep(registry: Arc<ExecutorRegistry>, timeout: Duration) {
    let mut missing_since = HashMap::new();
    let mut interval = tokio::time::interval((timeout / CHECKS).max(Duration::from_millis(10)));
    loop {
        interval.tick().await;
        let checked = Arc::clone(&registry);
        let find = move || -> Vec<String> {
            let applications = checked.applications().into_iter();
            applications.filter(|app_id| !has_directory(&checked, app_id)).collect()
        };
        let Ok(missing) = tokio::task::spawn_blocking(find).await else { continue };
        let now = Instant::now();
        missing_since.retain(|app_id, _| missing.contains(app_id));
        for app_id in missing {
            let since = *missing_since.entry(app_id.clone()).or_insert(now);
            if now.duration_since(since) < timeout {
                continue;
            }
            missing_since.remove(&app_id);
            let (executors, stored) = registry.remove_application(&app_id);
            let stored = stored.await;
            let executors = executors.len();
            tracing::info!(app_id, executors, "removed an application without directories");
            if let Err(error) = stored {
                tracing::warn!(%error, cause = %error.source, "this is not stored");
            }
        }
    }
}

/// Returns whether any directory of any executor exists, or cannot be checked.
fn has_directory(registry: &ExecutorRegistry, app_id: &str) -> bool {
    let executors = registry.executors(app_id);
    let mut dirs = executors.iter().flat_map(|executor| &executor.info.local_dirs);
    dirs.any(|dir| Path::new(dir).try_exists().unwrap_or(true))
}
