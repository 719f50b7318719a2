//! Apache Spark's external shuffle service for Rust: serves the shuffle files of executors.

#![forbid(unsafe_code)]

#[cfg(feature = "service")]
mod conf;
#[cfg(feature = "service")]
mod metrics;
pub mod protocol;
#[cfg(feature = "service")]
mod registry;
#[cfg(feature = "service")]
mod request_error;
#[cfg(feature = "service")]
mod resolver;
#[cfg(feature = "service")]
mod secrets;
#[cfg(feature = "service")]
mod service;

#[cfg(feature = "service")]
pub use conf::{ConfError, ShuffleServiceConf};
#[cfg(feature = "service")]
pub use metrics::ServiceMetricsSnapshot;
#[cfg(feature = "service")]
pub use registry::StoreError;
#[cfg(feature = "service")]
pub use service::{ServiceError, ShuffleService, ShutdownReport};
