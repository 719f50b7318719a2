//! Turns the services of `.proto` files into [rpc-core] messages.
//!
//! ```no_run
//! // build.rs
//! fn main() -> Result<(), rpc_build::Error> {
//!     rpc_build::compile_protos(&["proto/hello.proto"], &["proto"])
//! }
//! ```
//!
//! ```text
//! // lib.rs: every package becomes a file of its name in OUT_DIR
//! pub mod hello {
//!     rpc_core::include_proto!("hello");
//! }
//! ```
//!
//! A service becomes an enum with a variant per rpc. This one
//!
//! ```proto
//! import "rpc_core.proto";
//!
//! service Hello {
//!   rpc SayHi(SayHi) returns (Greeting);
//!   rpc Wave(Wave) returns (rpc_core.OneWay);
//! }
//! ```
//!
//! becomes
//!
//! ```text
//! pub enum HelloMessage {
//!     SayHi(SayHi, RpcCallContext<Greeting>),
//!     Wave(Wave),
//! }
//! ```
//!
//! with an implementation of `RpcMessage`, so that an endpoint can receive it, and one of
//! `RpcRequest` for each request, so that a typed ref sends it and knows the type of its answer.
//!
//! * `rpc_core.OneWay` as the return type means that there is no answer. `google.protobuf.Empty`
//!   means an answer with nothing in it: `()`.
//! * Rpcs of one service that share a request type cannot be told apart by it. Each gets a newtype
//!   named after service and rpc: `HelloSayHi(pub Name)`.
//! * A field of type `rpc_core.EndpointRef` holds the ref of an endpoint.
//! * Streams have no place in this model: an rpc with `stream` is an error.
//!
//! The `.proto` files are compiled by [protox]: nothing needs to be installed.
//!
//! [rpc-core]: https://docs.rs/rpc-core

#![forbid(unsafe_code)]

mod compile;
mod service;

pub use compile::{Error, compile_protos};
