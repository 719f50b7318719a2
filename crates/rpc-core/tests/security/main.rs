//! Environments that authenticate and encrypt, in every mode that this build has.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod modes;
mod refused;
mod settings;
mod world;
