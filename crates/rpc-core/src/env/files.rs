//! Files: offering and downloading them.

use std::sync::Arc;

use super::RpcEnv;
use crate::error::RpcError;
use crate::files::Download;
use crate::files::RpcEnvFileServer;

impl RpcEnv {
    /// Where files, jars and directories are offered for download from this environment (`rpc 10`).
    #[must_use]
    pub fn file_server(&self) -> RpcEnvFileServer {
        let inner = &self.inner;
        let (env, address) = (inner.name.clone(), inner.address.clone());
        RpcEnvFileServer { registry: Arc::clone(&inner.files), env, address }
    }

    /// Downloads what a [file server](Self::file_server) offers at `uri`, `spark://host:port/path`;
    /// ready as soon as the other side begins to send it.
    ///
    /// Goes over a connection that no messages and no other download use, with the settings
    /// `spark.files.io.*` (those that are not set: `spark.rpc.io.*`). Must be called in a tokio
    /// runtime.
    ///
    /// ```no_run
    /// # async fn example(env: rpc_core::RpcEnv, output: &mut (impl tokio::io::AsyncWrite + Unpin)) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut download = env.open_channel("spark://10.0.0.1:7077/files/model.bin").await?;
    /// println!("{} bytes", download.len());
    /// tokio::io::copy(&mut download, output).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// All name the URI. [`ErrorKind::InvalidAddress`](crate::ErrorKind::InvalidAddress) if it is not of that
    /// form; [`ErrorKind::FileUnavailable`](crate::ErrorKind::FileUnavailable) if there is no such file there;
    /// [`ErrorKind::Network`](crate::ErrorKind::Network) if the other side cannot be reached;
    /// [`ErrorKind::Stopped`](crate::ErrorKind::Stopped) if this environment has shut down.
    ///
    /// # Cancel safety
    ///
    /// Can be dropped at any time.
    pub async fn open_channel(&self, uri: &str) -> Result<Download, RpcError> {
        self.inner.downloads.open(uri).await.map_err(RpcError::mark_as_result)
    }
}
