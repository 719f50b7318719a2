//! Apache Spark's external shuffle service for Rust: serves the shuffle files of executors.

#![forbid(unsafe_code)]

pub mod protocol;
