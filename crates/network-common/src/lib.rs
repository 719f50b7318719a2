//! Apache Spark's transport for Rust: RPC, chunk and stream fetch and upload over TCP,
//! byte-compatible with Spark 2.4 to 4.x. A JVM Spark process can be either end.
//!
//! # The model
//!
//! A [`TransportContext`] holds settings ([`TransportConf`]) and one [`RpcHandler`]. It makes
//! [`TransportServer`]s, which accept connections, and [`TransportClientFactory`]s, which open and
//! pool them. A [`TransportClient`] is one connection as a caller sees it. Connections are
//! symmetric: a handler gets a client too, and calls back with it over the same connection.
//!
//! ```
//! use bytes::Bytes;
//! use network_common::{
//!     NoOpRpcHandler, RpcHandler, RpcResponseCallback, TransportClient, TransportConf, TransportContext,
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
//! let server = TransportContext::new(TransportConf::new("rpc"), Greeter).create_server("127.0.0.1:0").await?;
//!
//! let context = TransportContext::new(TransportConf::new("rpc"), NoOpRpcHandler::new());
//! let factory = context.create_client_factory();
//! let client = factory.create_client(server.local_addr()).await?;
//! assert_eq!(client.send_rpc("neo").await?, "hello, neo");
//! # Ok(())
//! # }
//! ```
//!
//! # Bulk data
//!
//! Chunks and streams come from the handler's [`StreamManager`]. A body is a [`ManagedBuffer`]:
//! memory of any owner, or a region of a file, which the kernel sends without a copy through this
//! process (`sendfile` on Linux).
//!
//! ```
//! use bytes::Bytes;
//! use network_common::*;
//!
//! struct Blocks(OneForOneStreamManager);
//!
//! impl RpcHandler for Blocks {
//!     /// Registers the parts of a file; the answer is the id of the stream.
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
//! let context = TransportContext::new(TransportConf::new("shuffle"), Blocks(OneForOneStreamManager::new()));
//! let server = context.create_server("127.0.0.1:0").await?;
//! let client = context.create_client_factory().create_unmanaged_client(server.local_addr()).await?;
//!
//! let id = i64::from_be_bytes(client.send_rpc(path).await?[..].try_into()?);
//! let (first, second) = tokio::try_join!(client.fetch_chunk(id, 0), client.fetch_chunk(id, 1))?;
//! assert_eq!(first.len() + second.len(), 2000);
//!
//! let mut body = client.stream(&format!("{id}_2")).await?; // a Stream of pieces, and an AsyncRead
//! assert_eq!(body.len(), 1000);
//! while let Some(piece) = body.next_piece().await {
//!     assert!(piece?.iter().all(|byte| *byte == 7));
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Authentication and encryption
//!
//! With the feature `auth`, `TransportContext::with_auth` makes every connection prove who it is
//! and encrypts it, as the settings `spark.network.crypto.*` and `spark.authenticate.*` say; the
//! module `auth` tells which mode to choose. The feature `legacy-auth` adds what only old peers
//! need.
//!
//! # TLS
//!
//! With the feature `tls` and `spark.ssl.rpc.enabled`, every connection of a context is TLS from
//! its first byte, as between processes of Spark 4; nothing in the clear is accepted or sent.
//! `TlsConf` has the settings. Without the feature that setting is refused, so it cannot be
//! overlooked.
//!
//! # What is promised
//!
//! * Every request ends exactly once: answer, failure, or the end of its connection. Calls queue
//!   when they are made, in their order; futures only wait. Dropping a future frees its place.
//! * RPCs and one-way messages overtake whole queued bodies, never the other way round: a control
//!   message waits for one body at most. Bodies keep their order among themselves.
//! * Nothing grows without a limit: the write queue is bounded in bytes ([`TransportClient::ready`]
//!   waits for room), a peer that does not read its answers is no longer read, and chunks are only
//!   asked of the [`StreamManager`] when there is room.
//! * No disk work happens on a task that serves connections.
//! * Errors ([`TransportError`]) name peer, operation and setting, and say whether a retry makes
//!   sense.
//!
//! What happens when a client, future, factory or server is dropped stands in the docs of each.
//!
//! # Layers
//!
//! [`protocol`] is the wire format without sockets: bytes in, messages out. Everything above it is
//! described in ARCHITECTURE.md of the repository. Rules are marked with their place in the
//! inventory of Spark's behaviour this crate was written from: "wire 5" is section 5 of its wire
//! format, "transport 8" section 8 of its transport layer.

mod address;
#[cfg(feature = "auth")]
pub mod auth;
mod buffer;
mod client;
mod client_factory;
mod conf;
mod connection;
mod context;
mod error;
mod handler;
mod metrics;
mod net;
pub mod protocol;
mod server;
mod session;
#[cfg(feature = "tls")]
mod tls;

pub use address::{IntoPeerAddress, PeerAddress};
pub use buffer::ManagedBuffer;
pub use client::{
    ChunkFuture, ConnectionId, MergedBlockMetaFuture, RequestFuture, RpcFuture, StreamFuture,
    TransportClient,
};
pub use client_factory::TransportClientFactory;
pub use conf::{IoMode, TransportConf, parse_size, parse_time};
#[cfg(feature = "tls")]
pub use conf::{TlsConf, TlsProtocol};
pub use context::TransportContext;
pub use error::{BoxError, ErrorKind, TransportError};
pub use handler::{
    MergedBlockMetaCallback, NoOpRpcHandler, OneForOneStreamManager, RpcHandler,
    RpcResponseCallback, StreamManager, StreamOptions, TransportClientBootstrap,
    TransportServerBootstrap,
};
pub use metrics::{MetricsSnapshot, SideMetrics, TransportMetrics};
pub use net::MemoryNetwork;
pub use protocol::MergedBlockMetaRequest;
pub use server::TransportServer;
pub use session::{ByteFilter, CloseNotify, FilterOutput, MergedBlockMeta, StreamBody};
