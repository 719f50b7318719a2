//! Our side: the example `spark_peer` of network-common.

use std::env;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process;

const BUILD_LIMIT: Duration = Duration::from_secs(60 * 60);
const EXAMPLE: &str = "spark_peer";

/// The built example.
pub(crate) struct RustPeer {
    program: PathBuf,
}

impl RustPeer {
    /// Builds it in release mode.
    pub(crate) fn build() -> Result<Self> {
        eprintln!("building the example {EXAMPLE}");
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args([
                "build",
                "--release",
                "--package",
                "network-common",
                "--example",
                EXAMPLE,
                "--features",
                "tls,legacy-auth",
            ])
            // Where the program lands depends on the user's configuration, so cargo is asked.
            .args(["--message-format", "json-render-diagnostics"]);
        let program = process::output("cargo build", &mut cargo, BUILD_LIMIT)?
            .iter()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|message| message["target"]["name"] == EXAMPLE)
            .find_map(|message| message["executable"].as_str().map(PathBuf::from))
            .with_context(|| format!("cargo build did not say where it put {EXAMPLE}"))?;
        Ok(Self { program })
    }

    /// Starts the example; the role and its options are to follow.
    pub(crate) fn command(&self) -> Command {
        Command::new(&self.program)
    }
}
