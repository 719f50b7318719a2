//! Named endpoints, typed messages, asks with deadlines: the `RpcEnv` of Apache Spark, in Rust.
//!
//! An *environment* ([`RpcEnv`]) holds the *endpoints* of a process, each under a name. An endpoint receives the
//! messages of one type, one at a time ([`ThreadSafeRpcEndpoint`]) or concurrently ([`RpcEndpoint`]). Who holds a
//! *ref* to it ([`RpcEndpointRef`]) [sends](RpcEndpointRef::send) or [asks](RpcEndpointRef::ask); whether the
//! endpoint is in the same environment or across the network makes no difference to either.
//!
//! Messages come from a service in a `.proto` file, by way of [rpc-build] in `build.rs`:
//!
//! ```proto
//! service Hello {
//!   rpc SayHi(SayHi) returns (Greeting);
//!   rpc SayBye(SayBye) returns (Greeting);
//! }
//! ```
//!
//! That makes an enum with a variant per rpc. An endpoint matches on it, and each variant brings the handle
//! ([`RpcCallContext`]) that answers its request:
//!
//! ```
//! use rpc_core::{EndpointContext, RpcEnv, RpcError, ThreadSafeRpcEndpoint};
//!
//! mod hello {
//!     rpc_core::include_proto!("hello");
//! }
//! use hello::{Greeting, HelloMessage, SayHi};
//!
//! struct Hello {
//!     greeted: usize,
//! }
//!
//! impl ThreadSafeRpcEndpoint for Hello {
//!     type Message = HelloMessage;
//!
//!     async fn receive(
//!         &mut self,
//!         message: HelloMessage,
//!         _cx: &EndpointContext<HelloMessage>,
//!     ) -> Result<(), RpcError> {
//!         match message {
//!             HelloMessage::SayHi(hi, context) => {
//!                 self.greeted += 1;
//!                 context.reply(Greeting { text: format!("hi, {}, guest {}", hi.msg, self.greeted) })
//!             }
//!             HelloMessage::SayBye(bye, context) => context.reply(Greeting { text: format!("bye, {}", bye.msg) }),
//!         }
//!     }
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), RpcError> {
//! // One process listens. Port 0 is a free one.
//! let server = RpcEnv::builder("hello-server").bind("127.0.0.1:0").start().await?;
//! server.setup_endpoint("hello-service", Hello { greeted: 0 })?;
//!
//! // Another one, here the same, need not.
//! let client = RpcEnv::builder("hello-client").client_mode().start().await?;
//! let address = server.address().expect("a server has one").clone();
//! let hello = client.setup_endpoint_ref::<HelloMessage>(address, "hello-service").await?;
//! let greeting = hello.ask(SayHi { msg: "neo".to_owned() }).await?;
//! assert_eq!(greeting.text, "hi, neo, guest 1");
//!
//! client.shutdown().await;
//! server.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! The type of the answer follows from the request. To send an endpoint what it does not receive does not compile;
//! where the two sides were built from different schemas, the lookup compares the services' names, and an rpc that
//! the other side does not know fails its ask and nothing else.
//!
//! # Life of an endpoint
//!
//! `on_start`, then messages and connection events, then `on_stop`, each of the outer two once; an endpoint that is
//! stopped still handles what was queued before. An error or panic in any of them goes to `on_error`, and, if it
//! left a request unanswered, to the asker. It ends that message, not the endpoint.
//!
//! # What is promised
//!
//! * What one holder of a ref sends and asks arrives in that order, here and across the network.
//! * A message is handled at most once. Nothing is sent again by itself.
//! * Every ask ends exactly once: with the answer, the endpoint's failure, a timeout, an abort, or the news that the way
//!   there was lost; also when an endpoint, a connection or a runtime ends with messages queued.
//!
//! # Between two versions
//!
//! Messages travel in the envelope of `proto/rpc_envelope.proto` over the frames of [network-common]. Its fields
//! are only ever added to.
//!
//! [rpc-build]: https://docs.rs/rpc-build
//! [network-common]: network_common

#![forbid(unsafe_code)]

// Generated code says `::rpc_core`, also where this crate generates for itself.
extern crate self as rpc_core;

mod abort;
mod address;
mod ask;
mod ask_variants;
mod call_context;
mod conf;
mod credit;
mod deadlines;
mod dispatcher;
mod endpoint;
mod endpoint_options;
mod endpoint_ref;
mod env;
mod error;
mod handler;
mod inbox;
mod limits;
mod link;
mod message;
mod message_loop;
mod method;
mod metrics;
mod origin;
mod outbox;
mod post;
mod running;
mod slot;
mod threads;
mod timeout;
mod trace;
mod verifier;
mod wire;

pub use abort::AbortHandle;
pub use address::{RpcAddress, RpcEndpointAddress};
pub use ask::Ask;
pub use call_context::RpcCallContext;
pub use conf::RpcConf;
pub use endpoint::{EndpointContext, RpcEndpoint, ThreadSafeRpcEndpoint};
pub use endpoint_options::EndpointOptions;
pub use endpoint_ref::RpcEndpointRef;
pub use env::{RpcEnv, RpcEnvBuilder};
pub use error::{BoxError, ErrorKind, RpcError, SendError};
pub use limits::Overflow;
pub use message::{IncomingRequest, RpcMessage, RpcRequest};
pub use message_loop::{ConcurrentKind, IntoEndpoint, ThreadSafeKind};
pub use method::Method;
pub use metrics::{EndpointReport, EndpointSnapshot, EnvSnapshot, Histogram, OutboxSnapshot, ShutdownReport};
pub use timeout::RpcTimeout;
pub use trace::TraceContext;
pub use wire::{IncomingBody, OutgoingBody};

/// What generated code needs and nobody else should.
#[doc(hidden)]
pub mod codegen {
    pub use crate::message_loop::Seat;
    pub use prost;
}

/// Includes what rpc-build generated for a package of `.proto` files.
///
/// ```text
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
