//! What the benches measure: this workspace's transport, and the limits of the machine beside it.
//!
//! [`ours`] uses the library as any user would. [`raw`] holds the limits of PERFORMANCE: a ping-pong, a framed echo that
//! batches perfectly, and file bodies by `sendfile` into a reused buffer.

pub mod ours;
pub mod raw;

use std::io::Write;

use tempfile::NamedTempFile;

/// A file of `size` bytes, in the page cache.
///
/// # Errors
/// When it cannot be written.
pub fn cached_file(size: usize) -> anyhow::Result<NamedTempFile> {
    let mut file = NamedTempFile::new()?;
    let piece: Vec<u8> = (0..1usize << 20).map(|i| (i % 251) as u8).collect();
    for _ in 0..size / piece.len() {
        file.write_all(&piece)?;
    }
    file.flush()?;
    Ok(file)
}
