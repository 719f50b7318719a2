//! The primitives of a normal build.

pub(crate) use std::sync::mpsc;
pub(crate) use std::{thread, thread_local};

pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock};
use tokio::runtime::{EnterGuard, Handle};
pub(crate) use tokio::sync::Notify;

/// Makes the timers and sockets of `runtime` usable on this thread.
pub(crate) fn enter(runtime: &Handle) -> EnterGuard<'_> {
    runtime.enter()
}
