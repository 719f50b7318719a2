//! Tests of the block client, with the service of this crate and with servers that misbehave.
#![allow(clippy::unwrap_used, reason = "a failure ends the test")]

mod cancel;
mod fetch;
mod hostile;
mod requests;
mod retry;
mod server;
mod shuffle_read;
#[path = "../support/mod.rs"]
mod support;
