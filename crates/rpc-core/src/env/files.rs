//! The file server of an environment, and downloads from others.

use std::sync::Arc;

use super::RpcEnv;
use crate::error::RpcError;
use crate::files::{Download, RpcEnvFileServer};

impl RpcEnv {
    /// Returns the file server of this environment.
    ///
    /// Other environments download the files that are added to it.
    #[must_use]
    pub fn file_server(&self) -> RpcEnvFileServer {
        let inner = &self.inner;
        let (env, address) = (inner.name.clone(), inner.address.clone());
        RpcEnvFileServer { registry: Arc::clone(&inner.files), env, address }
    }

    /// Downloads a file from the [file server](Self::file_server) of another environment.
    ///
    /// `uri` is `spark://host:port/path`. The future completes when the peer begins to send the
    /// file. Each download has a connection of its own, with the settings `spark.files.io.*`; for
    /// those that are not set, `spark.rpc.io.*` apply. Must be called in a tokio runtime.
    ///
    /// ```no_run
    /// # use rpc_core::RpcEnv;
    /// # use tokio::io::AsyncWrite;
    /// # async fn example(env: RpcEnv, output: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
    /// let opened = env.open_channel("spark://10.0.0.1:7077/files/model.bin").await;
    /// let mut download = opened.map_err(std::io::Error::other)?;
    /// println!("{} bytes", download.len());
    /// tokio::io::copy(&mut download, output).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The text of each contains the URI.
    ///
    /// * [`ErrorKind::InvalidAddress`](crate::ErrorKind::InvalidAddress) if `uri` does not have
    ///   that form.
    /// * [`ErrorKind::FileUnavailable`](crate::ErrorKind::FileUnavailable) if the peer has no such
    ///   file.
    /// * [`ErrorKind::Network`](crate::ErrorKind::Network) or
    ///   [`ErrorKind::Authentication`](crate::ErrorKind::Authentication) if the peer cannot be
    ///   reached or is not trusted.
    /// * [`ErrorKind::Stopped`](crate::ErrorKind::Stopped) if this environment has shut down.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the download.
    pub async fn open_channel(&self, uri: &str) -> Result<Download, RpcError> {
        Download::open(&self.inner.downloads, uri).await.map_err(RpcError::mark_as_result)
    }
}
