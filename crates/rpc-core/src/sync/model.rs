//! The primitives of a build with `--cfg shuttle`.

use std::sync::Arc;

pub(crate) use shuttle::sync::mpsc;
pub(crate) use shuttle::{thread, thread_local};
pub(crate) use shuttle_parking_lot::{Mutex, MutexGuard, RwLock};
use tokio::runtime::{EnterGuard, Handle};
use tokio::sync::futures::{Notified, OwnedNotified};

/// Does nothing. tokio sees all threads of a model as one, and requires that the contexts of one
/// thread end in reverse order, which those of several threads do not.
pub(crate) fn enter(_: &Handle) -> Option<EnterGuard<'_>> {
    None
}

/// tokio's `Notify`. Other threads of the model may run before each use.
#[derive(Default)]
pub(crate) struct Notify {
    notify: Arc<tokio::sync::Notify>,
    /// Locked before each use, which is a step of the model.
    before: Mutex<()>,
}

impl Notify {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn notified(&self) -> Notified<'_> {
        drop(self.before.lock());
        self.notify.notified()
    }

    pub(crate) fn notified_owned(self: Arc<Self>) -> OwnedNotified {
        drop(self.before.lock());
        Arc::clone(&self.notify).notified_owned()
    }

    pub(crate) fn notify_waiters(&self) {
        drop(self.before.lock());
        self.notify.notify_waiters();
    }

    pub(crate) fn notify_one(&self) {
        drop(self.before.lock());
        self.notify.notify_one();
    }
}
