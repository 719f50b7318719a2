//! The server of all echo limits.

use std::net::SocketAddr;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{ReadBuffer, listen, put_frame};

/// Starts a server that echoes all frames of a read in one write.
///
/// It copies each body into an allocation of its own, as a library has to.
///
/// # Errors
/// Fails if the server cannot listen.
pub async fn serve_echo() -> anyhow::Result<SocketAddr> {
    listen(|mut stream| async move {
        let mut read = ReadBuffer::new();
        let mut responses = Vec::new();
        loop {
            let count = stream.read(read.unfilled()).await?;
            if count == 0 {
                return Ok(());
            }
            read.on_read(count, |id, body| {
                put_frame(&mut responses, id, &Bytes::copy_from_slice(body))
            });
            stream.write_all(&responses).await?;
            responses.clear();
        }
    })
    .await
}
