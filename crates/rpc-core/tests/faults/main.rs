//! Tests of the faults in docs/conformance.md, through the public API only. The peers are other
//! environments, for row `fault_c14` behind a proxy with a long round trip.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod actions;
mod cancelled_asks;
mod codec_panics;
mod deadlines;
mod decode_panic;
mod far_link;
mod fixture;
mod locks;
mod log_levels;
mod process_budget;
mod replaced_under_load;
mod self_waits;
mod stopped_endpoint;
mod stuck_predecessor;
mod suspended;
mod typed_errors;
mod user_panics;
mod window_sharing;
