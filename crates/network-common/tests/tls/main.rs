//! TLS over real sockets: what Spark's suites hold of it, who is trusted, files and their mistakes,
//! hostile peers.

// Outside of the test functions themselves too.
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
