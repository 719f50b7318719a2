//! Apache Spark's transport for Rust: RPC, chunk fetch, streams and uploads over TCP.
//!
//! Byte-compatible with Spark 2.4 to 4.x; either end of a connection may be a JVM Spark process.
//!
//! # The model
//!
//! | type | role |
//! |---|---|
//! | [`TransportContext`] | holds the settings ([`TransportConf`]) and one [`RpcHandler`]; creates servers and client factories |
//! | [`TransportServer`] | listens and accepts connections |
//! | [`TransportClientFactory`] | opens connections and pools them by address |
//! | [`TransportClient`] | one connection: sends RPCs, one-way messages, fetches and uploads |
//! | [`RpcHandler`] | your code that serves the peer's requests; [`StreamManager`] serves chunks and streams |
//!
//! Connections are symmetric: a handler gets a [`TransportClient`] and can send requests back to
//! the peer over the same connection.
//!
//! ```
//! use bytes::Bytes;
//! use network_common::{
//!     NoOpRpcHandler, RpcHandler, RpcResponseCallback, TransportClient, TransportConf,
//!     TransportContext,
//! };
//!
//! struct Greeter;
//!
//! impl RpcHandler for Greeter {
//!     fn receive(&self, _: &TransportClient, name: Bytes, callback: RpcResponseCallback) {
//!         callback.reply(format!("hello, {}", String::from_utf8_lossy(&name)));
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), network_common::TransportError> {
//! let serving = TransportContext::new(TransportConf::new("rpc"), Greeter);
//! let server = serving.create_server("127.0.0.1:0").await?;
//!
//! let calling = TransportContext::new(TransportConf::new("rpc"), NoOpRpcHandler::new());
//! let factory = calling.create_client_factory();
//! let client = factory.create_client(server.local_addr()).await?;
//! assert_eq!(client.send_rpc("neo").await?, "hello, neo");
//! # Ok(())
//! # }
//! ```
//!
//! # Guarantees
//!
//! * Every request ends exactly once: with a response, a failure, or the end of its connection.
//! * Requests are sent in the order of the calls that made them, bodies in an order of their own:
//!   an RPC or one-way message is sent before queued bodies, and waits for at most one of them.
//! * Memory is bounded: the write queue has a limit in bytes ([`TransportClient::ready`] waits for
//!   capacity), a peer that does not read its responses is not read, and the [`StreamManager`] is
//!   called only while the write queue has capacity.
//! * Tasks that serve connections do no disk I/O.
//! * A [`TransportError`] names peer, operation and setting;
//!   [`is_retryable`](TransportError::is_retryable) returns whether the request may be repeated.
//!
//! The documentation of each type describes what happens when it is dropped.
//!
//! # Features and settings
//!
//! | feature | adds | settings |
//! |---|---|---|
//! | none | the transport without encryption | [`TransportConf`] |
//! | `auth` | authentication and encryption: `TransportContext::with_auth` and the module `auth` | `spark.authenticate.*`, `spark.network.crypto.*` in [`TransportConf`] |
//! | `legacy-auth` | weak ciphers and the handshake before Spark 3.2, for old peers | `spark.network.sasl.*`, `spark.network.crypto.legacyEngine` in [`TransportConf`] |
//! | `tls` | TLS from the first byte of every connection, as in Spark 4 | `spark.ssl.rpc.*` in `TlsConf` |
//! | `sim` | a deterministic simulated network and clock for tests: the module `sim` | none |
//! | `merged-blocks` | the bitmaps of merged shuffle blocks, with the crate `roaring` | none |
//!
//! No feature is enabled by default. A setting that needs a missing feature is an error.
//!
//! # Bulk data
//!
//! The [`StreamManager`] of the handler returns chunks and streams. A body is a [`ManagedBuffer`]:
//! bytes in memory, or a region of a file, which the kernel sends without a copy through this
//! process (`sendfile` on Linux).
//!
//! ```
//! use bytes::Bytes;
//! use network_common::*;
//!
//! struct Blocks(OneForOneStreamManager);
//!
//! impl RpcHandler for Blocks {
//!     /// Registers four parts of a file; the reply is the id of the stream.
//!     fn receive(&self, client: &TransportClient, path: Bytes, callback: RpcResponseCallback) {
//!         let path = String::from_utf8_lossy(&path).into_owned();
//!         let parts = (0..4).map(move |i| ManagedBuffer::file(&path, i * 1000..(i + 1) * 1000));
//!         let id = self.0.register_stream(parts, StreamOptions::default().connection(client));
//!         callback.reply(id.to_be_bytes().to_vec());
//!     }
//!
//!     fn stream_manager(&self) -> &dyn StreamManager {
//!         &self.0
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! # let file = tempfile::NamedTempFile::new()?;
//! # std::fs::write(file.path(), vec![7; 4000])?;
//! # let path = file.path().to_str().unwrap().to_owned();
//! let blocks = Blocks(OneForOneStreamManager::new());
//! let context = TransportContext::new(TransportConf::new("shuffle"), blocks);
//! let server = context.create_server("127.0.0.1:0").await?;
//! let factory = context.create_client_factory();
//! let client = factory.create_client(server.local_addr()).await?;
//!
//! let id = i64::from_be_bytes(client.send_rpc(path).await?[..].try_into()?);
//! let (first, second) = tokio::try_join!(client.fetch_chunk(id, 0), client.fetch_chunk(id, 1))?;
//! assert_eq!(first.len() + second.len(), 2000);
//!
//! // A StreamBody implements Stream and AsyncRead.
//! let mut body = client.stream(&format!("{id}_2")).await?;
//! assert_eq!(body.len(), 1000);
//! while let Some(piece) = body.next_piece().await {
//!     assert!(piece?.iter().all(|byte| *byte == 7));
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Layers
//!
//! [`protocol`] is the wire format without I/O: bytes in, messages out. `ARCHITECTURE.md` in the
//! repository describes the layers above it.

#![forbid(unsafe_code)]
// Shows the feature that an item needs. docs.rs sets `docsrs`.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod address;
#[cfg(feature = "auth")]
pub mod auth;
mod blocking;
mod budget;
mod buffer;
mod client;
mod client_factory;
mod conf;
mod connection;
mod context;
mod error;
mod handler;
mod log_limit;
mod metrics;
mod net;
mod peer_text;
pub mod protocol;
mod retry;
mod server;
mod session;
#[cfg(feature = "sim")]
pub mod sim;
#[cfg(feature = "tls")]
mod tls;

/// Used by rpc-core and network-shuffle for the form `{:#}` of their errors.
#[doc(hidden)]
pub use error::write_causes;

/// Used by rpc-core and network-shuffle for log lines that peers cause.
#[doc(hidden)]
pub use log_limit::LogLimit;

/// Used by rpc-core and network-shuffle for texts of peers.
#[doc(hidden)]
pub use peer_text::{LogText, can_forge, peer_name};

/// Used by rpc-core, whose file server must be repeatable in a simulation, too.
#[doc(hidden)]
pub use blocking::{is_simulated, run_blocking};

/// Used by network-shuffle for files of which a peer controls the directory.
#[doc(hidden)]
pub use buffer::open_real_path;

pub use address::{IntoPeerAddress, PeerAddress};
pub use budget::{BudgetShare, ByteBudget};
pub use buffer::ManagedBuffer;
pub use client::{
    ChunkFuture, ConnectionId, MergedBlockMetaFuture, RequestFuture, RpcFuture, StreamFuture,
    TransportClient,
};
pub use client_factory::TransportClientFactory;
pub use conf::{IoMode, TransportConf, UnknownKey, load_settings, parse_size, parse_time};
#[cfg(feature = "tls")]
pub use conf::{TlsConf, TlsProtocol};
pub use context::TransportContext;
pub use error::{BoxError, ErrorKind, TransportError};
pub use handler::{
    MergedBlockMetaCallback, NoOpRpcHandler, OneForOneStreamManager, RefusedRequest, RpcHandler,
    RpcResponseCallback, StreamManager, StreamOptions, TransportClientBootstrap,
    TransportServerBootstrap,
};
pub use metrics::{MetricsSnapshot, SideMetrics, TransportMetrics};
pub use net::MemoryNetwork;
pub use protocol::MergedBlockMetaRequest;
pub use retry::{RetryAttempt, RetryBudget, RetryPolicy, RetrySchedule};
pub use server::TransportServer;
pub use session::{ByteFilter, CloseNotify, FilterOutput, MergedBlockMeta, StreamBody};
