//! Row `fault_m7`: what peers make a process hold stays within one budget.

// Helper functions outside of tests unwrap as well.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../support/mod.rs"]
mod support;

mod bodies;
mod refused_requests;
mod refused_responses;
mod unread_responses;
