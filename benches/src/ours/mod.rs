//! This workspace's crates under load, used as any user would.

mod beside;
mod bulk;
mod rpc;
mod security;
mod suites;
mod transport;

pub use bulk::{Fetch, Stream};
pub use rpc::{LocalEndpoint, RpcClient, RpcServer, local_endpoints};
pub use security::Security;
pub use suites::{Callers, TransportSuites};
pub use transport::{Echo, TransportCalls, serve};

/// The messages of `proto/bench.proto`.
pub mod messages {
    rpc_core::include_proto!("bench");
}
