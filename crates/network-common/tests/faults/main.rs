//! Rules that public bug reports and hostile input have tried on the transport. The name of each
//! test begins with the id of its rule in docs/conformance.md.

// Helper functions outside of tests unwrap as well.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../support/mod.rs"]
mod support;

mod addresses;
mod factories;
mod large_requests;
#[cfg(all(feature = "auth", feature = "tls"))]
mod mismatched_security;
mod peer_texts;
mod quiet_connections;
mod streams_of_ended_connections;
