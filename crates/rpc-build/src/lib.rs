//! Generates rpc-core messages from the services of `.proto` files.
//!
//! Call [`compile_protos`] in `build.rs`, and include the generated file of each package:
//!
//! ```no_run
//! // build.rs
//! fn main() -> Result<(), rpc_build::Error> {
//!     rpc_build::compile_protos(&["proto/hello.proto"], &["proto"])
//! }
//! ```
//!
//! ```text
//! // lib.rs: the package `hello` is the file `hello.rs` in OUT_DIR
//! pub mod hello {
//!     rpc_core::include_proto!("hello");
//! }
//! ```
//!
//! A service becomes an enum with one variant per rpc. For example, this service
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
//! The enum implements `RpcMessage`, so an endpoint can receive it. Each request implements
//! `RpcRequest`, so a ref can send it, and an ask returns the right type.
//!
//! * An rpc that returns `rpc_core.OneWay` has no reply. An rpc that returns
//!   `google.protobuf.Empty` has an empty reply, which is `()` in Rust.
//! * If two rpcs of a service take the same message type, each of them gets a newtype for its
//!   request: `HelloSayHi(pub Name)`.
//! * A field of type `rpc_core.EndpointRef` contains the ref of an endpoint.
//! * An rpc that uses `stream` is an error, because rpc-core has no streams.
//! * The comments of the `.proto` file become doc comments.
//!
//! The files are compiled by [protox], so `protoc` is not needed.
//!

#![forbid(unsafe_code)]

mod compile;
mod service;

pub use compile::{Error, compile_protos, compile_protos_into};
