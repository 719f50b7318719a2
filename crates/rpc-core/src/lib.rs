//! Named endpoints with typed messages: the RpcEnv of Apache Spark, in Rust.

#![forbid(unsafe_code)]

// Generated code says `::rpc_core`, also where this crate generates for itself.
extern crate self as rpc_core;

mod address;
mod call_context;
mod conf;
mod dispatcher;
mod endpoint;
mod endpoint_ref;
mod env;
mod error;
mod inbox;
mod message;
mod message_loop;
mod method;
mod post;
mod slot;
mod timeout;
mod wire;

pub use address::{RpcAddress, RpcEndpointAddress};
pub use call_context::RpcCallContext;
pub use conf::RpcConf;
pub use endpoint::{EndpointContext, RpcEndpoint, ThreadSafeRpcEndpoint};
pub use endpoint_ref::{Ask, RpcEndpointRef};
pub use env::{RpcEnv, RpcEnvBuilder};
pub use error::{BoxError, ErrorKind, RpcError, SendError};
pub use message::{IncomingRequest, RpcMessage, RpcRequest};
pub use message_loop::{ConcurrentKind, IntoEndpoint, ThreadSafeKind};
pub use method::Method;
pub use timeout::RpcTimeout;
pub use wire::{IncomingBody, OutgoingBody};

/// What generated code needs and nobody else should.
#[doc(hidden)]
pub mod codegen {
    pub use crate::message_loop::Seat;
    pub use prost;
}

/// Includes what rpc-build generated for a package of `.proto` files.
///
/// ```ignore
/// pub mod hello {
///     rpc_core::include_proto!("hello");
/// }
/// ```
#[macro_export]
macro_rules! include_proto {
    ($package:literal) => {
        include!(concat!(env!("OUT_DIR"), "/", $package, ".rs"));
    };
}
