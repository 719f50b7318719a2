//! [`FetchTarget`]: memory or files; and the download of a block to a file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use network_common::{ManagedBuffer, PeerAddress, StreamBody, run_blocking};
use tempfile::{NamedTempFile, TempPath};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

use super::error::{BlockError, FETCH};

/// Where fetched blocks are stored.
///
/// ```
/// use network_shuffle::client::FetchTarget;
///
/// let target = FetchTarget::Files(std::env::temp_dir());
/// assert_ne!(target, FetchTarget::Memory);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum FetchTarget {
    /// In memory: blocks are fetched as chunks (`ChunkFetchRequest`).
    #[default]
    Memory,
    /// In this directory: each block is fetched as a stream (`StreamRequest`) into a file.
    ///
    /// The file is deleted when the last clone of the block's buffer is dropped.
    Files(PathBuf),
}

/// Writes a body into a new file of `directory`, which belongs to the returned buffer.
///
/// If the future is dropped, or fails, the file is deleted.
pub(super) async fn download(
    mut body: StreamBody,
    directory: &Path,
    address: &PeerAddress,
) -> Result<ManagedBuffer, BlockError> {
    let len = body.len();
    if len == 0 {
        return Ok(Bytes::new().into());
    }
    let file_error =
        |source| BlockError::File { directory: directory.to_owned(), source: Arc::new(source) };
    let (mut file, path) = create(directory).await.map_err(file_error)?;
    while let Some(piece) = body.next_piece().await {
        let piece = piece.map_err(BlockError::transport(FETCH, address))?;
        file.write_all(&piece).await.map_err(file_error)?;
    }
    file.flush().await.map_err(file_error)?;
    Ok(ManagedBuffer::file(&*path, 0..len).on_release(move || drop(path)))
}

async fn create(directory: &Path) -> std::io::Result<(File, TempPath)> {
    let directory = directory.to_owned();
    let create = move || NamedTempFile::with_prefix_in("fetched-block-", directory);
    let (file, path) = run_blocking(create).await?.into_parts();
    Ok((File::from_std(file), path))
}
