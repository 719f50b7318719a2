//! The program `shuffle-service`: its output, its errors, its limits, and its end at any moment.
#![allow(clippy::unwrap_used, reason = "a failure ends the test")]

#[path = "../support/mod.rs"]
mod support;

mod admin_endpoint;
mod limits;
mod running_program;
mod start_up;
mod stop;
