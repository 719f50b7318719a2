//! Those of a program.

pub(crate) use std::sync::mpsc;
pub(crate) use std::{thread, thread_local};

pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock};
use tokio::runtime::{EnterGuard, Handle};
pub(crate) use tokio::sync::Notify;

/// Gives this thread the timers and sockets of `runtime`.
pub(crate) fn enter(runtime: &Handle) -> EnterGuard<'_> {
    runtime.enter()
}
