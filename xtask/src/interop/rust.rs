//! Builds and starts the example `spark_peer`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::build;

const EXAMPLE: &str = "spark_peer";

/// The built example.
pub(crate) struct RustPeer {
    program: PathBuf,
}

impl RustPeer {
    /// Builds the example in release mode.
    pub(crate) fn build() -> Result<Self> {
        let words = ["--package", "examples", "--example", EXAMPLE, "--features", "security"];
        let program = build::program(".", EXAMPLE, &words)?;
        Ok(Self { program })
    }

    /// Returns the command without the role and its options, which the caller appends.
    pub(crate) fn command(&self) -> Command {
        Command::new(&self.program)
    }
}
