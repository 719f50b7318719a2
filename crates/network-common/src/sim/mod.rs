//! A deterministic network and clock for tests: the same seed replays the same run.

mod connection;
mod faults;
mod halves;
mod host;
mod link;
mod simulation;
mod state;
mod trace;

#[cfg(test)]
#[path = "sim_tests.rs"]
mod tests;

pub use faults::FaultCounts;
pub(crate) use halves::{SimReadHalf, SimStream, SimWriteHalf};
pub(crate) use host::{SimHost, SimListener};
pub use link::LinkOptions;
pub use simulation::Simulation;
pub(crate) use simulation::is_simulated;
