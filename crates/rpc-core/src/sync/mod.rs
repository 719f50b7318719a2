//! What threads meet at: locks, notifications, threads themselves. Built with `--cfg shuttle` they
//! are those of the model checker, which chooses at each use of one who goes on (`models`).

#[cfg(shuttle)]
mod model;
#[cfg(not(shuttle))]
mod native;

#[cfg(shuttle)]
pub(crate) use model::*;
#[cfg(not(shuttle))]
pub(crate) use native::*;
