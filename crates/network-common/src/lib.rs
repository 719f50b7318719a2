//! Apache Spark's transport for Rust: RPC, chunk and stream fetch and upload over TCP, byte-compatible with Spark 2.4 to 4.x.

mod address;
mod buffer;
mod channel;
mod client;
mod conf;
mod context;
mod error;
mod factory;
mod handler;
mod metrics;
pub mod protocol;
mod server;
mod session;

pub use address::PeerAddress;
pub use buffer::ManagedBuffer;
pub use client::{
    ChunkFuture, ConnectionId, MergedBlockMetaFuture, RequestFuture, RpcFuture, StreamFuture, TransportClient,
};
pub use conf::{IoMode, TransportConf};
pub use context::TransportContext;
pub use error::{BoxError, ErrorKind, TransportError};
pub use factory::TransportClientFactory;
pub use handler::{
    MergedBlockMetaCallback, NoOpRpcHandler, OneForOneStreamManager, RpcHandler, RpcResponseCallback,
    StreamManager, StreamOptions, TransportClientBootstrap, TransportServerBootstrap,
};
pub use metrics::{MetricsSnapshot, SideMetrics, TransportMetrics};
pub use protocol::MergedBlockMetaRequest;
pub use server::TransportServer;
pub use session::{ByteFilter, MergedBlockMeta, StreamBody};
