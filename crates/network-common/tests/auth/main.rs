//! Authentication and encryption over sockets: every mode, and everything that can go wrong on the
//! way.

// Outside of the test functions themselves too.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../support/mod.rs"]
mod support;

mod guard;
mod hostile;
mod isolation;
mod modes;
mod proxy;
mod sealed;
mod strangers;
mod world;
