//! Named endpoints, typed messages and asks with timeouts: the `RpcEnv` of Apache Spark, in Rust.
//!
//! * An *environment* ([`RpcEnv`]) holds the endpoints of a process and its connections to other
//!   environments. It listens on an address, or it is a client and only makes connections.
//! * An *endpoint* is a value that is registered under a name. It receives messages of one type,
//!   either one at a time with `&mut self` ([`ThreadSafeRpcEndpoint`]) or concurrently
//!   ([`RpcEndpoint`]).
//! * A *ref* ([`RpcEndpointRef`]) is a cheap, cloneable handle of an endpoint, local or remote.
//!   Through a ref you [`send`](RpcEndpointRef::send) (no response) or
//!   [`ask`](RpcEndpointRef::ask) (a reply or an error).
//!
//! Guarantees, for local and remote endpoints alike:
//!
//! * Messages through one ref and its clones arrive in the order in which they were sent.
//! * A message is handled at most once; the crate never repeats one on its own.
//! * Every ask ends exactly once: with the reply, the failure of the endpoint, a timeout, or the
//!   error that prevented a response.
//! * An accepted one-way message is lost only with its endpoint, environment or connection. If the
//!   peer rejects it, `on_undelivered` of the sender's endpoints is called.
//! * Every queue is bounded. A full queue slows down remote senders, and then rejects messages.
//!
//! # Example
//!
//! Messages are the rpcs of a service in a `.proto` file, which `rpc-build` compiles in `build.rs`:
//!
//! ```proto
//! service Hello {
//!   rpc SayHi(SayHi) returns (Greeting);
//!   rpc SayBye(SayBye) returns (Greeting);
//! }
//! ```
//!
//! The service becomes an enum with one variant for each rpc. A variant holds the request, and the
//! [`RpcCallContext`] that replies to it:
//!
//! ```
//! use rpc_core::{EndpointContext, RpcEnv, RpcError, ThreadSafeRpcEndpoint};
//!
//! # mod hello { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/generated/hello.rs")); }
//! // `mod hello { rpc_core::include_proto!("hello"); }` includes what build.rs generated.
//! use hello::{Greeting, HelloMessage, SayHi};
//!
//! struct Hello {
//!     visitors: usize,
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
//!                 self.visitors += 1;
//!                 let text = format!("hi, {}, visitor {}", hi.msg, self.visitors);
//!                 context.reply(Greeting { text })
//!             }
//!             HelloMessage::SayBye(bye, context) => {
//!                 context.reply(Greeting { text: format!("bye, {}", bye.msg) })
//!             }
//!         }
//!     }
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), RpcError> {
//! // One process listens; port 0 is any free port.
//! let server = RpcEnv::builder("hello-server").bind("127.0.0.1:0").start().await?;
//! server.setup_endpoint("hello", Hello { visitors: 0 })?;
//! let address = server.address().expect("an env with `bind` has an address");
//!
//! // Another process, in this example the same one, looks the endpoint up.
//! let client = RpcEnv::builder("hello-client").client_mode().start().await?;
//! let hello = client.lookup::<HelloMessage>(address, "hello").await?;
//! let greeting = hello.ask(SayHi { msg: "neo".to_owned() }).await?;
//! assert_eq!(greeting.text, "hi, neo, visitor 1");
//!
//! client.shutdown().await;
//! server.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! The type of the reply follows from the request, so a wrong message does not compile. If the two
//! processes were built from different schemas, the lookup compares the names of the services, and
//! an unknown rpc fails its ask only.
//!
//! # Where to continue
//!
//! | topic | place |
//! |---|---|
//! | settings | the table of [`RpcConf`]; those of connections in [`TransportConf`] |
//! | all guarantees, each with its test | `docs/semantics.md` in the repository |
//! | all errors, each with its kind | `docs/errors.md` |
//! | which security to choose | `docs/security.md` |
//! | costs and measurements | `docs/performance.md` |
//! | the design | `ARCHITECTURE.md` |
//! | the guide, chapter by chapter | `docs/guide/src/SUMMARY.md` |
//!
//! | feature (none is default) | adds |
//! |---|---|
//! | `auth` | authentication and encryption with shared secrets |
//! | `legacy-auth` | weak protocols for old peers: SASL encryption (3DES, RC4), Spark before 3.2 |
//! | `tls` | TLS, by the settings `spark.ssl.rpc.*` |
//! | `files` | the file server and downloads: `RpcEnv::file_server`, `open_channel` |
//! | `sim` | a deterministic simulated network and clock for tests: the module `sim` |
//! | `metrics` | `EnvSnapshot::export`, which writes to the `metrics` crate |
//!
//! [`TransportConf`]: network_common::TransportConf
//!
//! # Life of an endpoint
//!
//! `on_start` runs once, then the endpoint receives messages and connection events, then `on_stop`
//! runs once. An endpoint that is stopped first handles the messages that are queued. An error or
//! panic in any of these methods calls `on_error`. It fails the message, not the endpoint: a caller
//! whose request has no reply yet gets the error.
//!
//! An endpoint must not block its thread, which belongs to the runtime. If it has to, it can get
//! [threads of its own](EndpointOptions::isolated). A `ThreadSafeRpcEndpoint` that asks itself and
//! awaits the reply in `receive` gets [`ErrorKind::Deadlock`] at once. A cycle of several
//! thread-safe endpoints that await each other is not detected; it ends with the first timeout.
//!
//! # Sending
//!
//! | | waits for | fails if |
//! |---|---|---|
//! | [`send`](RpcEndpointRef::send) | nothing | the queue is full or the endpoint has stopped; returns the message |
//! | [`send_wait`](RpcEndpointRef::send_wait) | capacity of the queue | the endpoint has stopped; returns the message |
//! | [`ask`](RpcEndpointRef::ask) | the reply | as `send`; also if the endpoint returns an error, or at the timeout |
//! | [`ask_with_retry`](RpcEndpointRef::ask_with_retry) | the reply | as `ask`, after several attempts |
//! | [`ask_with`](RpcEndpointRef::ask_with) | the reply | as `ask`, repeated by a [`RetryPolicy`] |
//! | [`ask_sync`](RpcEndpointRef::ask_sync) | the reply; blocks the thread | as `ask` |
//!
//! `send` and `ask` queue the message before they return, `send_wait` when its future completes. An
//! ask is cancelled by dropping its future, by its timeout, or by its
//! [abort handle](AskFuture::abort_handle). A cancelled ask is dropped from the queue; an endpoint
//! that is handling it can check [`is_cancelled`](RpcCallContext::is_cancelled). An ask inside
//! `receive` inherits the remaining deadline of the request that is being handled.
//!
//! # Refs inside messages
//!
//! A worker that registers with a master sends its own ref, so that the master can ask it:
//!
//! ```proto
//! import "rpc_core.proto";
//!
//! message RegisterWorker {
//!   rpc_core.EndpointRef worker = 1;
//! }
//! ```
//!
//! The type of the field is [`EndpointRef`]. It is made from a typed ref, and the receiver resolves
//! it to a typed ref:
//!
//! ```
//! # use rpc_core::{EndpointRef, RpcEndpointRef, RpcEnv, RpcError};
//! # mod hello { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/generated/hello.rs")); }
//! # use hello::HelloMessage;
//! # fn example(worker: RpcEndpointRef<HelloMessage>, env: RpcEnv) -> Result<(), RpcError> {
//! let field = EndpointRef::try_from(&worker)?;
//! // In `receive` of the master, where `cx.env()` returns its environment:
//! let worker: RpcEndpointRef<HelloMessage> = env.resolve(&field)?;
//! # Ok(())
//! # }
//! ```
//!
//! The endpoint may be in an environment that does not listen, for example behind a firewall. Its
//! messages then use the connection that this environment has made, as long as it lasts. A ref of a
//! client-mode environment cannot be forwarded to another process; every other ref can. A ref that
//! returns to its own environment is a local ref.
//!
//! A ref from a message means the endpoint in one incarnation (one run) of its environment. A later
//! incarnation at the same address rejects its messages with [`ErrorKind::Stopped`]. A ref from a
//! [`lookup`](RpcEnv::lookup) means whichever incarnation listens on the address, as in Spark.
//!
//! # Limits and flow control
//!
//! An inbox has limits of messages and bytes, which count until a message is handled. What exceeds
//! them is rejected, or [replaces the oldest message](OverflowPolicy). Each endpoint can have [its
//! own limits](EndpointOptions::max_messages).
//!
//! Each connection has *credit* for each endpoint. A message consumes credit, and the endpoint
//! returns it when the message is handled. Without credit, messages are queued in the process of
//! the sender, also with limits: then `send` returns the message and `send_wait` waits. Messages to
//! other endpoints on the same connection are not delayed.
//!
//! [`RpcEnv::snapshot`] returns the state of all queues.
//!
//! # Errors
//!
//! An [`RpcError`] has a [kind](RpcError::kind), the [peer](RpcError::peer), whether the [peer
//! reported it](RpcError::is_remote), and whether the request [may be
//! repeated](RpcError::is_retryable) without being executed twice. To fail a request, an endpoint
//! returns [`RpcError::application`] from `receive`, or calls
//! [`send_failure`](RpcCallContext::send_failure).
//!
//! A failure may have a [code](RpcError::with_code) and a protobuf message with
//! [details](RpcError::with_details), which a local and a remote caller read alike:
//!
//! ```
//! # use rpc_core::{RpcEndpointRef, RpcError};
//! # mod hello { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/generated/hello.rs")); }
//! # use hello::{Greeting, HelloMessage, SayHi};
//! const NAME_TAKEN: i32 = 1;
//!
//! /// Returns a free name, which the endpoint suggests if `name` is in use.
//! async fn choose(hello: RpcEndpointRef<HelloMessage>, name: &str) -> Result<String, RpcError> {
//!     match hello.ask(SayHi { msg: name.to_owned() }).await {
//!         Ok(_) => Ok(name.to_owned()),
//!         Err(error) if error.code() == Some(NAME_TAKEN) => {
//!             Ok(error.details::<Greeting>().ok_or(error)?.text)
//!         }
//!         Err(error) => Err(error),
//!     }
//! }
//! ```
//!
//! # Files
//!
//! An environment that listens can offer files, jars and directories ([`RpcEnv::file_server`]).
//! Other environments, also those of Spark, download them by URI ([`RpcEnv::open_channel`]), over a
//! connection that carries no messages.
//!
//! # Security
//!
//! By default every process that can connect may send messages and download files. The feature
//! `auth` and the settings below authenticate all connections, for messages and for downloads, in
//! both directions. A peer is authenticated before any of its messages is read.
//! `RpcEnvBuilder::auth` is for several applications, and for secrets that change.
//!
//! ```
//! # #[cfg(feature = "auth")]
//! # #[tokio::main]
//! # async fn main() -> Result<(), rpc_core::RpcError> {
//! # use rpc_core::{RpcConf, RpcEnv};
//! let conf = RpcConf::from_settings([
//!     ("spark.authenticate", "true"),
//!     ("spark.authenticate.secret.file", "/run/secrets/spark"),
//!     ("spark.network.crypto.enabled", "true"),
//!     ("spark.network.crypto.authEngineVersion", "2"),
//!     ("spark.network.crypto.cipher", "AES/GCM/NoPadding"),
//! ])?;
//! # let conf = conf.with("spark.authenticate.secret", "s3cret")?;
//! let env = RpcEnv::builder("server").conf(conf).bind("127.0.0.1:0").start().await?;
//! # env.shutdown().await;
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "auth"))]
//! # fn main() {}
//! ```
//!
//! # Testing
//!
//! Environments on one [`MemoryNetwork`] connect without sockets. Messages are encoded, queued and
//! limited as on a real network. Tokio's time may be paused, so a timeout of two minutes elapses at
//! once:
//!
//! ```
//! # use rpc_core::{
//! #     EndpointContext, MemoryNetwork, RpcEnv, RpcError, ThreadSafeRpcEndpoint,
//! # };
//! # mod hello { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/generated/hello.rs")); }
//! # use hello::{HelloMessage, SayHi};
//! # struct Silent(Vec<HelloMessage>);
//! # impl ThreadSafeRpcEndpoint for Silent {
//! #     type Message = HelloMessage;
//! #     async fn receive(
//! #         &mut self,
//! #         message: HelloMessage,
//! #         _: &EndpointContext<HelloMessage>,
//! #     ) -> Result<(), RpcError> {
//! #         self.0.push(message);
//! #         Ok(())
//! #     }
//! # }
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), RpcError> {
//! let network = MemoryNetwork::new();
//! let server = RpcEnv::builder("server").memory_network(&network).bind("10.0.0.1:7077");
//! let server = server.start().await?;
//! server.setup_endpoint("silent", Silent(Vec::new()))?;
//! let client = RpcEnv::builder("client").memory_network(&network).client_mode().start().await?;
//! let silent = client.lookup::<HelloMessage>("10.0.0.1:7077", "silent").await?;
//! let error = silent.ask(SayHi { msg: "hello?".to_owned() }).await.unwrap_err();
//! assert!(error.is_timeout());
//! # Ok(())
//! # }
//! ```
//!
//! # Compatibility
//!
//! The frames are those of Spark ([network-common]); the messages in them have the format of
//! `proto/rpc_envelope.proto`, which later versions only extend.
//!
//! [network-common]: network_common

#![forbid(unsafe_code)]
// Shows the feature that an item needs. docs.rs sets `docsrs`.
#![cfg_attr(docsrs, feature(doc_cfg))]

// Generated code refers to `::rpc_core`, also inside this crate.
extern crate self as rpc_core;

mod address;
mod ask;
#[cfg(feature = "auth")]
mod auth;
mod conf;
mod dispatcher;
mod endpoint;
mod env;
mod error;
#[cfg(feature = "files")]
mod files;
mod inbox;
mod isolated_executor;
mod limits;
mod message_loop;
mod message_metadata;
mod method;
mod metrics;
#[cfg(all(test, shuttle))]
mod models;
mod panics;
mod peer;
mod peer_text;
mod sync;
mod timeout;
mod trace;
mod wire;

pub use address::{IntoRpcAddress, RpcAddress, RpcEndpointAddress};
pub use ask::{AbortHandle, AskFuture};
pub use conf::RpcConf;
pub use endpoint::{
    EndpointContext, EndpointOptions, EndpointRef, IncomingRequest, RetryingAsk, RpcCallContext,
    RpcEndpoint, RpcEndpointRef, RpcMessage, RpcRequest, ThreadSafeRpcEndpoint,
};
pub use env::{Lookup, RpcEnv, RpcEnvBuilder};
pub use error::{BoxError, ErrorKind, RpcError, SendError};
#[cfg(feature = "files")]
pub use files::{Download, RpcEnvFileServer};
pub use limits::OverflowPolicy;
pub use message_loop::{ConcurrentKind, IntoEndpoint, ThreadSafeKind};
pub use method::Method;
pub use metrics::{
    EndpointReport, EndpointSnapshot, EnvSnapshot, Histogram, PeerSnapshot, ShutdownReport,
};
#[cfg(feature = "auth")]
pub use network_common::auth::{Secret, SecretKeyHolder, SecretStore};
#[cfg(feature = "sim")]
pub use network_common::sim;
pub use network_common::{ByteBudget, MemoryNetwork, RetryPolicy, UnknownKey};
pub use timeout::RpcTimeout;
pub use trace::TracePropagator;
pub use wire::{DecodeBuf, EncodeBuf};

/// Items that only generated code uses.
#[doc(hidden)]
pub mod codegen {
    pub use crate::message_loop::LoopContext;
    pub use prost;
}

/// Includes the code that rpc-build generated for a package of `.proto` files.
///
/// The literal is the name of the package; the enclosing module may have any name.
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
