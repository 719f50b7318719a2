//! Detects that key and trust store files have changed since they were read.
//!
//! Spark's `ReloadingX509TrustManager` polls the files in a thread. Here the first handshake after
//! an interval checks them, so an idle process does nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::Instant;

use crate::conf::TlsConf;

/// Stores when the files were last checked, and the stamps of the files in use.
pub(super) struct FileWatcher {
    interval: Duration,
    state: Arc<Mutex<WatchState>>,
}

struct WatchState {
    last_check: Instant,
    /// The stamps of the files that are in use.
    stamps: Stamps,
}

/// The stamp of each file: its path without symbolic links, and its modification time.
///
/// The path changes if a link is replaced by one to another file, which may be older. A stamp is
/// `None` if its file is missing.
type Stamps = Vec<Option<(PathBuf, SystemTime)>>;

/// Permits one handshake to check and reload the files.
///
/// Other handshakes use the loaded files meanwhile.
pub(super) struct ReloadPermit(OwnedMutexGuard<WatchState>);

impl FileWatcher {
    /// Reads the stamps; call this before loading the files, so that no later change is missed.
    pub(super) fn new(conf: &TlsConf) -> Self {
        let state = WatchState { last_check: Instant::now(), stamps: read_stamps(conf) };
        Self { interval: conf.trust_store_reload_interval(), state: Arc::new(Mutex::new(state)) }
    }

    /// Returns a permit if the interval has passed and no other handshake has the permit.
    pub(super) fn try_reload(&self) -> Option<ReloadPermit> {
        let mut state = Arc::clone(&self.state).try_lock_owned().ok()?;
        if state.last_check.elapsed() < self.interval {
            return None;
        }
        // Set before the files are loaded: invalid files are tried again after the next interval.
        state.last_check = Instant::now();
        Some(ReloadPermit(state))
    }
}

impl ReloadPermit {
    /// Returns the current stamps if they differ from those of the files in use.
    pub(super) fn changed(&self, conf: &TlsConf) -> Option<Stamps> {
        let stamps = read_stamps(conf);
        (stamps != self.0.stamps).then_some(stamps)
    }

    /// Records the stamps of the files that are now in use.
    pub(super) fn commit(mut self, stamps: Stamps) {
        self.0.stamps = stamps;
    }
}

fn read_stamps(conf: &TlsConf) -> Stamps {
    let files = [conf.trust_store(), conf.key_store(), conf.cert_chain(), conf.private_key()];
    files.into_iter().flatten().map(read_stamp).collect()
}

fn read_stamp(file: &Path) -> Option<(PathBuf, SystemTime)> {
    let file = file.canonicalize().ok()?;
    let modified = file.metadata().ok()?.modified().ok()?;
    Some((file, modified))
}
