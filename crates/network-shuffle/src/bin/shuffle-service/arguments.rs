//! [`Arguments`], the command line.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use network_common::parse_time;

/// The options of `shuffle-service`.
#[derive(Parser)]
#[command(
    name = "shuffle-service",
    version,
    about = "Serves the shuffle files of Spark executors, also when the executors have ended"
)]
pub(crate) struct Arguments {
    /// Settings in the form of spark-defaults.conf; default: that file of $SPARK_CONF_DIR or
    /// $SPARK_HOME/conf
    #[arg(long, value_name = "FILE")]
    pub(crate) properties_file: Option<PathBuf>,
    /// A setting under Spark's name; can be repeated, replaces the value of the file
    #[arg(long = "conf", value_name = "KEY=VALUE", value_parser = key_and_value)]
    pub(crate) settings: Vec<(String, String)>,
    /// The time that active requests have after SIGTERM
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time)]
    pub(crate) drain_timeout: Duration,
    /// Log lines on stderr: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub(crate) log_level: tracing::Level,
}

fn key_and_value(text: &str) -> Result<(String, String)> {
    let (key, value) = text.split_once('=').context("the setting is not KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn time(text: &str) -> Result<Duration, String> {
    parse_time(text).map_err(|expected| format!("expected {expected}"))
}
