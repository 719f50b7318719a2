//! Detects that key and trust store files have changed since they were read.
//!
//! It replaces the polling thread of Spark's `ReloadingX509TrustManager`: the first handshake after
//! an interval checks the files, so an idle process does nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::conf::TlsConf;

/// Decides when the files are checked, and remembers their state when they were read.
pub(super) struct FileWatcher {
    interval: Duration,
    state: Arc<Mutex<WatchState>>,
}

struct WatchState {
    last_check: Instant,
    /// The stamps of the files in use.
    stamps: Stamps,
}

/// The path behind all symbolic links and the modification time of each file.
///
/// The path detects a link that points to another file. An element is `None` if its file is
/// missing.
type Stamps = Vec<Option<(PathBuf, SystemTime)>>;

/// The right to check and reload the files, which one handshake has at a time.
///
/// Other handshakes use the loaded files meanwhile.
pub(super) struct ReloadPermit(OwnedMutexGuard<WatchState>);

impl FileWatcher {
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
