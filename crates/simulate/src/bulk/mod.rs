//! Plays of network-common: chunks, streams, uploads, requests, the pool and handshakes.

mod handler;
mod run;
mod steps;

pub(crate) use run::run;
pub(crate) use steps::generate_steps;
