//! Locks, notifications, channels and threads. With `--cfg shuttle` they are those of the model
//! checker, which chooses at each use of one which thread continues (see `models`).

#[cfg(shuttle)]
mod model;
#[cfg(not(shuttle))]
mod native;

#[cfg(shuttle)]
pub(crate) use model::*;
#[cfg(not(shuttle))]
pub(crate) use native::*;
