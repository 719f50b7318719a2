//! The contenders that call the public API of network-common and rpc-core.

mod beside;
mod bulk;
mod rpc;
mod security;
mod suites;
mod transport;

pub use bulk::{FetchTarget, StreamTarget};
pub use rpc::{BenchRef, RpcClient, RpcServer, local_endpoints};
pub use security::Security;
pub use suites::{Callers, TransportSuites};
pub use transport::{EchoTarget, TransportCallClient, serve};

/// The code that is generated from `proto/bench.proto`.
pub mod messages {
    rpc_core::include_proto!("bench");
}
