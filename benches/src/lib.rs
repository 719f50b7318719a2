//! Benchmarks of network-common and rpc-core, and the programs they are compared with.
//!
//! A *contender* is a program or library that is measured.
//!
//! [`ours`] calls the public API of the two crates. The modules of [`limits`] use plain tokio for
//! the same work, and so show what a library could reach. Other libraries are in `benches/peers`,
//! which is a workspace of its own.
//!
//! `cargo xtask compare` runs all of them, and the Java program in `interop/java/bench`, as
//! processes that speak [`bench_protocol`]. `cargo bench` runs the same code with both ends in one
//! process.

#![forbid(unsafe_code)]

pub mod actors;
pub mod codec;
pub mod groups;
pub mod limits;
pub mod load;
pub mod open_loop;
pub mod ours;
pub mod process;

pub use bench_protocol as protocol;
pub use bench_protocol::write_file;

use std::path::{Path, PathBuf};

use anyhow::Context;

/// The file that a server reads chunks from.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "the crate is not published")]
pub struct Chunks {
    /// The path of the file, which should be in the page cache.
    pub path: PathBuf,
    /// The length of the file in bytes.
    pub length: u64,
}

impl Chunks {
    /// Reads the length of the file at `path`.
    ///
    /// # Errors
    /// Fails if the metadata of the file cannot be read.
    pub fn from_file(path: &Path) -> anyhow::Result<Self> {
        let length = std::fs::metadata(path).with_context(|| path.display().to_string())?.len();
        Ok(Self { path: path.to_owned(), length })
    }

    /// Returns the offset of chunk `index` if all chunks have `size` bytes.
    ///
    /// Indices beyond the end of the file wrap around to its start.
    #[must_use]
    pub fn offset(&self, size: u64, index: u64) -> u64 {
        index % (self.length / size).max(1) * size
    }
}
