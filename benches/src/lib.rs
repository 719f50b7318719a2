//! What is measured: this workspace's two crates, and the limits of the machine beside them.
//!
//! [`ours`] uses the crates as any user would. [`limits`] are small programs of plain tokio that do
//! the same work with nothing in between. Other libraries are in `benches/peers`, a workspace of
//! its own. All of them, and the Java program in `interop/java/bench`, can be driven by
//! [`bench_protocol`]; criterion drives the same code in one process.

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

/// Where a server takes chunks from.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "a bench")]
pub struct Chunks {
    /// A file, meant to be in the page cache.
    pub path: PathBuf,
    /// Its length.
    pub length: u64,
}

impl Chunks {
    /// Those of this file.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn of(path: &Path) -> anyhow::Result<Self> {
        let length = std::fs::metadata(path).with_context(|| path.display().to_string())?.len();
        Ok(Self { path: path.to_owned(), length })
    }

    /// Where chunk `index` of those of `size` bytes begins. After the last comes the first again.
    #[must_use]
    pub fn start(&self, size: u64, index: u64) -> u64 {
        index % (self.length / size).max(1) * size
    }
}
