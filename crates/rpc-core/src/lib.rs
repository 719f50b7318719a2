//! Named endpoints, typed messages, asks with deadlines: the `RpcEnv` of Apache Spark, in Rust.
//!
//! An *environment* ([`RpcEnv`]) holds the *endpoints* of a process, each under a name. An endpoint
//! receives the messages of one type, one at a time ([`ThreadSafeRpcEndpoint`]) or concurrently
//! ([`RpcEndpoint`]). Who holds a *ref* to it ([`RpcEndpointRef`]) [sends](RpcEndpointRef::send) or
//! [asks](RpcEndpointRef::ask); whether the endpoint is in the same environment or across the
//! network makes no difference to either.
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
//! That makes an enum with a variant per rpc. An endpoint matches on it, and each variant brings
//! the handle ([`RpcCallContext`]) that answers its request:
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
//! The type of the answer follows from the request. To send an endpoint what it does not receive
//! does not compile; where the two sides were built from different schemas, the lookup compares the
//! services' names, and an rpc that the other side does not know fails its ask and nothing else.
//!
//! # Life of an endpoint
//!
//! `on_start`, then messages and connection events, then `on_stop`, each of the outer two once; an
//! endpoint that is stopped still handles what was queued before. An error or panic in any of them
//! goes to `on_error`, and, if it left a request unanswered, to the asker. It ends that message,
//! not the endpoint.
//!
//! An endpoint is one of two kinds. A [`ThreadSafeRpcEndpoint`] handles one message at a time with
//! `&mut self`, so its state needs no locks. An [`RpcEndpoint`] begins the next message while
//! others wait for something. Either runs on the environment's runtime and must not block it; where
//! that cannot be helped, the endpoint gets [threads of its own](EndpointOptions::isolated). Asking
//! itself and awaiting the answer inside `receive` is an error at once ([`ErrorKind::Deadlock`]); a
//! circle of several thread-safe endpoints that await each other is not noticed, and ends with the
//! first time limit.
//!
//! # Ways to send
//!
//! | | waits for | fails when |
//! |---|---|---|
//! | [`send`](RpcEndpointRef::send) | nothing | the queue is full, the endpoint has stopped: the request comes back |
//! | [`send_wait`](RpcEndpointRef::send_wait) | room in the queue | the endpoint has stopped: the request comes back |
//! | [`ask`](RpcEndpointRef::ask) | the answer | the same, and as the endpoint says, or time is over |
//! | [`ask_with_retry`](RpcEndpointRef::ask_with_retry) | the answer | the same, after several attempts |
//! | [`ask_sync`](RpcEndpointRef::ask_sync) | the answer, blocking the thread | the same |
//!
//! All of them are on their way when the function returns, or when the future that waits for room
//! is ready; an answer need not be awaited for that. Dropping an ask gives it up, and so do its
//! time limit and its [abort handle](Ask::abort_handle). A request that has been given up is not
//! handled any more if its turn has not come, and an endpoint at work on it can [find
//! out](RpcCallContext::is_cancelled). An ask made inside `receive` waits no longer than the asker
//! of the request being handled does.
//!
//! # Refs inside messages
//!
//! A worker that registers with a master sends its own ref along, and the master asks it back:
//!
//! ```proto
//! import "rpc_core.proto";
//!
//! message RegisterWorker {
//!   rpc_core.EndpointRef worker = 1;
//! }
//! ```
//!
//! The field's type is [`EndpointRef`]. It is made from a typed ref, and made a typed ref again
//! where it arrives:
//!
//! ```
//! # use rpc_core::{EndpointRef, RpcEndpointRef, RpcEnv, RpcError};
//! # mod hello { rpc_core::include_proto!("hello"); }
//! # use hello::HelloMessage;
//! # fn example(worker: RpcEndpointRef<HelloMessage>, env: RpcEnv) -> Result<(), RpcError> {
//! let field = EndpointRef::try_from(&worker)?;
//! // In the master's `receive`, where `cx.env()` gives its environment:
//! let worker: RpcEndpointRef<HelloMessage> = env.resolve(&field)?;
//! # Ok(())
//! # }
//! ```
//!
//! The endpoint may be in an environment that does not listen, a driver behind a firewall say: then
//! the connection that it has made to the reader carries what is sent to it, as long as it lasts.
//! Such a ref cannot be passed on to a third. Any other one can, over as many hops as you like;
//! back home it is local again.
//!
//! A ref in a message stands for the endpoint of one run of its environment. A successor at the
//! same address refuses what is sent to it with [`ErrorKind::Stopped`], whereas a ref that was
//! [looked up](RpcEnv::setup_endpoint_ref) reaches whichever run is there, as in Spark.
//!
//! # What is promised
//!
//! * What one holder of a ref sends and asks arrives in that order, here and across the network.
//! * A message is handled at most once. Nothing is sent again by itself.
//! * Every ask ends exactly once: with the answer, the endpoint's failure, a timeout, or the news
//!   that the way there was lost; also when an endpoint, a connection or a runtime ends with
//!   messages queued.
//! * A one-way message that was accepted is lost only with its endpoint, environment or connection.
//!   If the other side refuses it, the endpoints of the sending environment are told
//!   (`on_undelivered`).
//!
//! `docs/semantics.md` in the repository states these and all others on one page, each with the
//! test that proves it.
//!
//! # Limits
//!
//! Nothing grows without bounds. An inbox holds so many messages and bytes, counted until they have
//! been handled; what does not fit is [refused, or the oldest is dropped](Overflow). The settings
//! are in the table of [`RpcConf`]; an endpoint can have [its own](EndpointOptions::max_messages).
//!
//! Across the network a full inbox slows its senders down before it refuses anything: each
//! connection has *credit* for each endpoint, which every message uses up and which comes back when
//! it has been handled. A sender without credit queues in its own process, in an outbox with limits
//! of its own; then `send` gives the request back and `send_wait` waits. Messages to other
//! endpoints pass by on the same connection.
//!
//! What an environment does and holds is told by [`RpcEnv::snapshot`].
//!
//! # Files
//!
//! An environment that listens can offer files, jars and directories ([`RpcEnv::file_server`]), and
//! any other one, also a Spark's, downloads them by URI ([`RpcEnv::open_channel`]), piece by piece
//! and over a connection that no messages use.
//!
//! # Errors
//!
//! An [`RpcError`] says what [kind](RpcError::kind) of thing went wrong, [with
//! whom](RpcError::peer), whether the [other side reported it](RpcError::is_remote), and whether
//! the same request may be [tried again](RpcError::is_retryable) without being handled twice. Its
//! text names the limit or time and the setting that controls it. To fail a request in its own
//! terms an endpoint returns [`RpcError::application`] from `receive`, or calls
//! [`send_failure`](RpcCallContext::send_failure).
//!
//! # Security
//!
//! By default whoever reaches the port may send and download. With the feature `auth` and the
//! settings `spark.authenticate` and `spark.authenticate.secret` peers prove to each other that
//! they know a secret, `spark.network.crypto.*` encrypts; with the feature `tls` `spark.ssl.rpc.*`
//! does. All connections of an environment are under the same protection: those for messages, made
//! by it or to it, and those for downloads; nothing of a peer is read before it has proved who it
//! is. [`RpcEnvBuilder::auth`](crate::RpcEnvBuilder#method.auth) is for several applications and
//! secrets that change. The table of [`TransportConf`](network_common::TransportConf) has all
//! settings; `docs/security.md` in the repository tells which to choose.
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
//! # Shutting down
//!
//! [`RpcEnv::shutdown`] refuses new messages, lets the endpoints finish what they have accepted,
//! runs their `on_stop`, sends out what is still queued and closes the connections, all within time
//! limits. What did not make it is in the [report](ShutdownReport):
//!
//! ```
//! # #[tokio::main]
//! # async fn main() -> Result<(), rpc_core::RpcError> {
//! # let env = rpc_core::RpcEnv::builder("doc").client_mode().start().await?;
//! let report = env.shutdown().await;
//! for endpoint in report.endpoints.iter().filter(|endpoint| endpoint.abandoned > 0) {
//!     eprintln!("{} left {} messages", endpoint.name, endpoint.abandoned);
//! }
//! assert!(report.is_clean());
//! # Ok(())
//! # }
//! ```
//!
//! # Testing
//!
//! Environments on one [`MemoryNetwork`] meet without sockets. Messages are encoded, queued and
//! limited as across a real network, and tokio's time may be paused, so that a time limit of two
//! minutes passes at once:
//!
//! ```
//! # use rpc_core::{EndpointContext, ErrorKind, MemoryNetwork, RpcEnv, RpcError, ThreadSafeRpcEndpoint};
//! # mod hello { rpc_core::include_proto!("hello"); }
//! # use hello::{HelloMessage, SayHi};
//! # struct Silent(Vec<HelloMessage>);
//! # impl ThreadSafeRpcEndpoint for Silent {
//! #     type Message = HelloMessage;
//! #     async fn receive(&mut self, m: HelloMessage, _: &EndpointContext<HelloMessage>) -> Result<(), RpcError> {
//! #         self.0.push(m);
//! #         Ok(())
//! #     }
//! # }
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), RpcError> {
//! let network = MemoryNetwork::new();
//! let server = RpcEnv::builder("server").bind("10.0.0.1:7077").memory_network(&network).start().await?;
//! server.setup_endpoint("silent", Silent(Vec::new()))?;
//! let client = RpcEnv::builder("client").client_mode().memory_network(&network).start().await?;
//! let silent = client.setup_endpoint_ref::<HelloMessage>("10.0.0.1:7077".parse()?, "silent").await?;
//! let error = silent.ask(SayHi { msg: "anybody?".to_owned() }).await.unwrap_err();
//! assert!(error.is_timeout());
//! # Ok(())
//! # }
//! ```
//!
//! # Between two versions
//!
//! Messages travel in the envelope of `proto/rpc_envelope.proto` over the frames of
//! [network-common]. Its fields are only ever added to.
//!
//! [rpc-build]: https://docs.rs/rpc-build
//! [network-common]: network_common

#![forbid(unsafe_code)]

// Generated code says `::rpc_core`, also where this crate generates for itself.
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
mod peer;
mod sync;
mod timeout;
mod trace;
mod wire;

pub use address::{IntoRpcAddress, RpcAddress, RpcEndpointAddress};
pub use ask::{AbortHandle, AskFuture};
pub use conf::RpcConf;
pub use endpoint::{
    EndpointContext, EndpointOptions, EndpointRef, IncomingRequest, RpcCallContext, RpcEndpoint,
    RpcEndpointRef, RpcMessage, RpcRequest, ThreadSafeRpcEndpoint,
};
pub use env::{RpcEnv, RpcEnvBuilder};
pub use error::{BoxError, ErrorKind, RpcError, SendError};
pub use files::{Download, RpcEnvFileServer};
pub use limits::OverflowPolicy;
pub use message_loop::{ConcurrentKind, IntoEndpoint, ThreadSafeKind};
pub use method::Method;
pub use metrics::{
    EndpointReport, EndpointSnapshot, EnvSnapshot, Histogram, PeerSnapshot, ShutdownReport,
};
pub use network_common::MemoryNetwork;
#[cfg(feature = "auth")]
pub use network_common::auth::{Secret, SecretKeyHolder, SecretStore};
pub use timeout::RpcTimeout;
pub use trace::TracePropagator;
pub use wire::{DecodeBuf, EncodeBuf};

/// What generated code needs and nobody else should.
#[doc(hidden)]
pub mod codegen {
    pub use crate::message_loop::LoopContext;
    pub use prost;
}

/// Includes what rpc-build generated for a package of `.proto` files. The name of the package is
/// the literal; the module around it may have any.
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
