//! Models of the concurrency: the code of this crate on the locks and threads of shuttle, which
//! plays one order of their steps after the other, and fails when an assertion does or when
//! somebody is left waiting for ever.
//!
//! `RUSTFLAGS="--cfg shuttle" cargo test --package rpc-core --lib --target-dir target/models
//! models`
//!
//! A step is what lies between two uses of something in `sync`. The transport and the rest of tokio
//! do theirs without interruption.

#![allow(clippy::unwrap_used)]

mod inbox;
mod routes;

/// Plays `model` so many times in orders chosen at random, and as often in orders with few changes
/// of the thread.
fn check(times: usize, model: impl Fn() + Send + Sync + Copy + 'static) {
    shuttle::check_random(model, times);
    shuttle::check_pct(model, times, 3);
}
