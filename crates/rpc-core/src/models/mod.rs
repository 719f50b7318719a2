//! Concurrency models: the code of this crate runs on the locks and threads of shuttle, which
//! explores interleavings of their steps. A model fails on a failed assertion or a deadlock.
//!
//! `RUSTFLAGS="--cfg shuttle" cargo test --package rpc-core --lib --target-dir target/models
//! models`
//!
//! A step is the code between two uses of a primitive of `sync`. The transport and the rest of
//! tokio run without interruption.

#![allow(clippy::unwrap_used)]

mod inbox;
mod routes;

/// Runs `model` with `times` random interleavings, and with as many that switch threads rarely.
fn check(times: usize, model: impl Fn() + Send + Sync + Copy + 'static) {
    shuttle::check_random(model, times);
    shuttle::check_pct(model, times, 3);
}
