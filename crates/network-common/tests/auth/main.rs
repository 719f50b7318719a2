//! Authentication and encryption between a server and a client of this crate over TCP. Every test
//! runs in every mode of this build; a proxy in between records or damages the bytes.

// Helper functions outside of tests unwrap as well.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../support/mod.rs"]
mod support;

mod faults_handshake;
#[cfg(feature = "tls")]
mod faults_inside_tls;
mod faults_timing;
mod fixture;
mod guard;
mod hostile;
mod isolation;
mod modes;
mod proxy;
mod sealed;
mod unauthenticated_peer;
