//! TLS between a server and a client of this crate over TCP: Spark's suites in their TLS forms,
//! trust, files, reloading, and hostile raw peers.

// Helper functions outside of tests unwrap as well.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod behaviour;
mod files;
mod fixture;
mod hostile;
mod reload;
mod settings;
mod trust;
