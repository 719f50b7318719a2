//! [`LocalRoots`]: the directories under which executors may register theirs.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use network_common::peer_name;

use crate::protocol::ExecutorShuffleInfo;
use crate::request_error::RequestError;

/// The directories of `spark.local.dir`; if there are none, executors may register any.
///
/// Spark 4.3 checks against its default directory if the setting is absent, which rejects the
/// executors of most clusters.
pub(super) struct LocalRoots(Vec<PathBuf>);

impl LocalRoots {
    pub(super) fn new(dirs: &[PathBuf]) -> Self {
        Self(dirs.to_vec())
    }

    /// Checks that all directories of an executor, without symbolic links, are under a root.
    pub(super) async fn check(
        self: &Arc<Self>,
        info: &ExecutorShuffleInfo,
    ) -> Result<(), RequestError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let (roots, dirs) = (Arc::clone(self), info.local_dirs.clone());
        let check = move || match dirs.iter().find(|dir| !roots.contain(Path::new(dir))) {
            None => Ok(()),
            Some(dir) => Err(RequestError::illegal_argument(format!(
                "the local directory '{}' does not exist, or is not under spark.local.dir of the \
                 shuffle service",
                peer_name(dir)
            ))),
        };
        match tokio::task::spawn_blocking(check).await {
            Ok(result) => result,
            Err(error) => Err(RequestError::runtime(format!("disk access failed: {error}"))),
        }
    }

    fn contain(&self, dir: &Path) -> bool {
        let is_under = |root: &PathBuf| -> io::Result<bool> {
            let (root, dir) = (root.canonicalize()?, dir.canonicalize()?);
            Ok(dir != root && dir.starts_with(root))
        };
        self.0.iter().any(|root| is_under(root).unwrap_or_default())
    }
}
