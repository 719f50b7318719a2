//! Environments that authenticate and encrypt, in every mode that the features of this build
//! include: rows `rpc_env_26` to `rpc_env_31`. The peers are other environments and bare TCP
//! clients.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod fixture;
mod modes;
mod settings;
mod unauthenticated_peer;
