//! `cargo xtask interop`: our transport against the transport of released Spark.
//!
//! Both sides run the application protocol of `interop/README.md`: the Java harness in `interop/java`, compiled
//! against the jars of each release, and the example `spark_peer` of network-common.

mod cache;
mod java;
mod pair;
mod release;
mod rust;
mod spark;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};

use cache::Cache;
use java::Jdk;
use pair::Tally;
use release::Release;
use rust::RustPeer;

/// What `cargo xtask interop` takes.
#[derive(Args)]
pub(crate) struct Options {
    /// The Spark releases to run against
    #[arg(long, value_delimiter = ',', default_value = "2.4.8,3.5.7,4.1.4,4.3.0")]
    releases: Vec<Release>,
    /// How the connections authenticate
    #[arg(long, value_delimiter = ',', default_value = "none")]
    modes: Vec<Mode>,
    /// Run Spark against Spark of the same release, to prove the harness itself
    #[arg(long)]
    self_test: bool,
}

/// A row of the matrix: how the connections of both peers authenticate and encrypt.
#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    None,
}

impl Mode {
    /// The options that put a peer, ours or Spark's, into this mode.
    fn peer_options(self) -> &'static [&'static str] {
        match self {
            Self::None => &["--auth", "none"],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
        }
    }
}

/// Runs the matrix; false when a case failed or none ran.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let jdk = Jdk::find()?;
    let cache = Cache::open()?;
    let rust = if options.self_test { None } else { Some(RustPeer::build()?) };
    let mut tally = Tally::default();
    for &release in &options.releases {
        let prepared = spark::jars(&cache, release).and_then(|jars| jdk.harness(&cache, release, &jars));
        let java = match prepared {
            Ok(java) => java,
            // The other releases can still tell something.
            Err(error) => {
                tally.fail(&release.to_string(), &format!("set-up: {error:#}"));
                continue;
            }
        };
        for mode in &options.modes {
            let label = |direction| format!("{release} {} {direction}", mode.name());
            match &rust {
                None => tally.run(&label("java->java"), java.server(*mode), java.client(*mode)),
                Some(rust) => {
                    tally.run(&label("rust->java"), java.server(*mode), rust.client(*mode, release));
                    tally.run(&label("java->rust"), rust.server(*mode), java.client(*mode));
                }
            }
        }
    }
    tally.print();
    ensure!(tally.ran_anything(), "no case ran");
    Ok(tally.failed == 0)
}
