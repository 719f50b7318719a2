//! [`Arguments`], the command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use network_common::{TransportConf, parse_time};
use network_shuffle::ShuffleServiceConf;

/// The options of `shuffle-service`.
#[derive(Parser)]
#[command(
    name = "shuffle-service",
    version,
    about = "Serves the shuffle files of Spark executors, also when the executors have ended",
    after_help = "--help lists all settings.",
    after_long_help = settings_help()
)]
pub(crate) struct Arguments {
    /// Settings in the form of spark-defaults.conf; default: that file of $SPARK_CONF_DIR or
    /// $SPARK_HOME/conf
    #[arg(long, value_name = "FILE")]
    pub(crate) properties_file: Option<PathBuf>,
    /// A setting under Spark's name; can be repeated, replaces the value of the file
    #[arg(long = "conf", value_name = "KEY=VALUE", value_parser = key_and_value)]
    pub(crate) settings: Vec<(String, String)>,
    /// Serves metrics, health and the removal of applications over HTTP, without authentication
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) admin_address: Option<SocketAddr>,
    /// The time that active requests have after SIGTERM
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time)]
    pub(crate) drain_timeout: Duration,
    /// Log lines on stderr: error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub(crate) log_level: tracing::Level,
}

/// Returns the settings of all tables, one in each line.
fn settings_help() -> String {
    let tables = [
        ("Settings of the service (--conf):", ShuffleServiceConf::SETTINGS),
        ("Settings of connections, authentication and TLS (--conf):", TransportConf::SETTINGS),
    ];
    let mut text = String::new();
    for (title, table) in tables {
        text += title;
        text.push('\n');
        for row in table.lines().filter_map(|row| row.strip_prefix("| `spark.")) {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let [name, value, default, meaning, ..] = cells[..] else { continue };
            let name = name.trim_end_matches('`').replace("<m>", "shuffle");
            let meaning = meaning.replace("<m>", "shuffle").replace('`', "");
            let default = default.replace("<m>", "shuffle").replace('`', "");
            let default = if default.is_empty() { "none" } else { default.as_str() };
            text += &format!("  spark.{name}\n      {value}, default {default}: {meaning}\n");
        }
    }
    text
}

fn key_and_value(text: &str) -> Result<(String, String)> {
    let (key, value) = text.split_once('=').context("the setting is not KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn time(text: &str) -> Result<Duration, String> {
    parse_time(text).map_err(|expected| format!("expected {expected}"))
}
