//! Our side: the example `spark_peer` of network-common.

use std::env;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Mode;
use super::release::Release;
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
            .args(["build", "--release", "--package", "network-common", "--example", EXAMPLE])
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

    /// A server on a free port.
    pub(crate) fn server(&self, mode: Mode) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["server", "0"]).args(mode.peer_options());
        command
    }

    /// A client of `port`, where Spark of `release` listens.
    pub(crate) fn client(&self, mode: Mode, release: Release) -> impl FnOnce(u16) -> Command {
        let mut command = Command::new(&self.program);
        let release = release.to_string();
        move |port| {
            command.args(["client", "127.0.0.1", &port.to_string()]).args(mode.peer_options());
            // Decides which cases apply: before 3.2 a server cannot do all of them.
            command.args(["--spark", &release]);
            command
        }
    }
}
