//! Builds programs of this repository.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process;

const BUILD_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// The root of this repository.
pub(crate) const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Builds the program `name` in release mode and returns its path.
///
/// Runs `cargo build` with the arguments `words` in the directory `place` of this repository.
pub(crate) fn program(place: &str, name: &str, words: &[&str]) -> Result<PathBuf> {
    program_with(place, name, &[&["--release"], words].concat(), &[])
}

/// Builds the program `name` of the package `benches` and returns its path.
pub(crate) fn bench_program(name: &str) -> Result<PathBuf> {
    let words = ["--profile", "bench", "--package", "benches", "--features", "security"];
    program_with(".", name, &[&words[..], &["--bin", name]].concat(), &[])
}

/// Builds the program `name` with the profile in `words` and additional environment variables.
pub(crate) fn program_with(
    place: &str,
    name: &str,
    words: &[&str],
    variables: &[(&str, &str)],
) -> Result<PathBuf> {
    eprintln!("building {name}");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(Path::new(ROOT).join(place)).arg("build").args(words);
    cargo.envs(variables.iter().copied());
    // The path of the program depends on the user's configuration, so cargo reports it.
    cargo.args(["--message-format", "json-render-diagnostics"]);
    process::output("cargo build", &mut cargo, BUILD_TIMEOUT)?
        .iter()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .with_context(|| format!("cargo build did not report the path of {name}"))
}
