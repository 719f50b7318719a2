//! The server of all echo limits.

use std::net::SocketAddr;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{ReadBuffer, listen, put_frame};

/// Decodes all frames that a read brought, each body into memory of its own, and answers them with
/// one write.
///
/// # Errors
/// When it cannot listen.
pub async fn serve_echo() -> anyhow::Result<SocketAddr> {
    listen(|mut stream| async move {
        let mut read = ReadBuffer::new();
        let mut answers = Vec::new();
        loop {
            let count = stream.read(read.space()).await?;
            if count == 0 {
                return Ok(());
            }
            read.frames(count, |id, body| {
                put_frame(&mut answers, id, &Bytes::copy_from_slice(body))
            });
            stream.write_all(&answers).await?;
            answers.clear();
        }
    })
    .await
}
