//! Locks and threads. Built with `--cfg shuttle` they are those of the model checker, which chooses at each use of one who
//! goes on (`models`).

#[cfg(not(shuttle))]
pub(crate) use parking_lot::{Mutex, RwLock};
#[cfg(shuttle)]
pub(crate) use shuttle::{sync::mpsc, thread, thread_local};
#[cfg(shuttle)]
pub(crate) use shuttle_parking_lot::{Mutex, RwLock};
#[cfg(not(shuttle))]
pub(crate) use std::{sync::mpsc, thread, thread_local};

use tokio::runtime::{EnterGuard, Handle};

/// Gives this thread the timers and sockets of `runtime`.
#[cfg(not(shuttle))]
pub(crate) fn enter(runtime: &Handle) -> EnterGuard<'_> {
    runtime.enter()
}

/// The threads of a model are one to tokio, which would have them leave in the reverse order.
#[cfg(shuttle)]
pub(crate) fn enter(_: &Handle) -> Option<EnterGuard<'_>> {
    None
}
