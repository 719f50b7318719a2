//! Peers that violate `proto/rpc_envelope.proto`, with hand-written envelopes over the real
//! transport: clients that attack a server environment, and servers that attack a client.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod closed_routes;
mod credit;
mod cuts;
mod fields;
mod findings;
mod fixture;
mod greetings;
mod names;
mod notices;
mod raw_peer;
mod raw_server;
mod responses;
mod routes;
mod texts;
mod versions;
