//! Which files have changed since they were read (auth 6).
//!
//! Nothing runs while nobody connects: the first handshake after an interval looks.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::conf::TlsConf;

pub(super) struct FileWatcher {
    interval: Duration,
    state: Arc<Mutex<WatchState>>,
}

struct WatchState {
    looked: Instant,
    /// Of the files that are in use.
    stamps: Stamps,
}

/// The files behind all links, and when they were written: a link that is set anew is a change too.
/// `None`: it is missing.
type Stamps = Vec<Option<(PathBuf, SystemTime)>>;

/// The right to look, which one handshake has at a time; the others go on with what there is.
pub(super) struct ReloadPermit(OwnedMutexGuard<WatchState>);

impl FileWatcher {
    pub(super) fn new(conf: &TlsConf) -> Self {
        let state = WatchState { looked: Instant::now(), stamps: stamps(conf) };
        Self { interval: conf.trust_store_reload_interval(), state: Arc::new(Mutex::new(state)) }
    }

    /// `None`: somebody has looked, or is looking.
    pub(super) fn try_reload(&self) -> Option<ReloadPermit> {
        let mut state = Arc::clone(&self.state).try_lock_owned().ok()?;
        if state.looked.elapsed() < self.interval {
            return None;
        }
        state.looked = Instant::now();
        Some(ReloadPermit(state))
    }
}

impl ReloadPermit {
    /// What the files are now, if that is something else.
    pub(super) fn changed(&self, conf: &TlsConf) -> Option<Stamps> {
        let now = stamps(conf);
        (now != self.0.stamps).then_some(now)
    }

    /// They are in use.
    pub(super) fn commit(mut self, stamps: Stamps) {
        self.0.stamps = stamps;
    }
}

fn stamps(conf: &TlsConf) -> Stamps {
    let files = [conf.trust_store(), conf.key_store(), conf.cert_chain(), conf.private_key()];
    files.into_iter().flatten().map(stamp).collect()
}

fn stamp(file: &Path) -> Option<(PathBuf, SystemTime)> {
    let file = file.canonicalize().ok()?;
    let modified = file.metadata().ok()?.modified().ok()?;
    Some((file, modified))
}
