//! Those of a model.

use std::sync::Arc;

pub(crate) use shuttle::sync::mpsc;
pub(crate) use shuttle::{thread, thread_local};
pub(crate) use shuttle_parking_lot::{Mutex, MutexGuard, RwLock};
use tokio::runtime::{EnterGuard, Handle};
use tokio::sync::futures::{Notified, OwnedNotified};

/// The threads of a model are one to tokio, which would have them leave in the reverse order.
pub(crate) fn enter(_: &Handle) -> Option<EnterGuard<'_>> {
    None
}

/// tokio's, and others may go on before each use.
#[derive(Default)]
pub(crate) struct Notify {
    notify: Arc<tokio::sync::Notify>,
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
