//! Files that an environment serves, and downloads from other environments (`RpcEnvFileServer`,
//! `NettyRpcEnv.openChannel`).

mod download;
mod download_pool;
mod file_server;
mod registry;

pub use download::Download;
pub(crate) use download_pool::DownloadPool;
pub use file_server::RpcEnvFileServer;
pub(crate) use registry::FileRegistry;
