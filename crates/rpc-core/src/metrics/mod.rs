//! The reports of an environment: snapshots of its state, and the report of its shutdown.

#[cfg(feature = "metrics")]
mod export;
mod histogram;
mod report;
mod snapshot;

pub use histogram::Histogram;
pub use report::{EndpointReport, ShutdownReport};
pub use snapshot::{EndpointSnapshot, EnvSnapshot, PeerSnapshot};
