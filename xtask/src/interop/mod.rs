//! `cargo xtask interop`: our transport against the transport of released Spark.
//!
//! Both sides run the application protocol of `interop/README.md`: the Java harness in
//! `interop/java`, compiled against the jars of each release, and the example `spark_peer` of
//! network-common.

pub(crate) mod cache;
pub(crate) mod java;
mod pair;
pub(crate) mod release;
mod rust;
pub(crate) mod spark;
mod tls;

use std::process::Command;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};

use cache::Cache;
use java::Jdk;
use pair::Tally;
use release::Release;
use rust::RustPeer;
use tls::Keys;

/// What the options do not say.
pub(crate) const HELP: &str = "\
The first run against a release fetches it from PyPI (200 to 450 MB, of which 15 to 30 MB of jars are kept) into
$SPARK_INTEROP_CACHE, or else $XDG_CACHE_HOME/network-common-interop, or else ~/.cache/network-common-interop.
Needed on the PATH: java and javac of version 17 or later, pip (or python3 -m pip), tar.
The last line of the output is `N passed, M failed`; the exit code is 1 when a case failed or none ran.";

/// As long as those that Spark makes, whose encoding does not fit into one line.
const SECRET: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0";

/// What `cargo xtask interop` takes.
#[derive(Args)]
pub(crate) struct Options {
    /// The Spark releases to run against
    #[arg(long, value_delimiter = ',', default_value = "2.4.8,3.5.7,4.1.4,4.3.0")]
    releases: Vec<Release>,
    /// How the connections authenticate
    #[arg(long, value_delimiter = ',', default_value = "none")]
    modes: Vec<Mode>,
    /// A setting under Spark's name for every peer; repeatable
    #[arg(long = "conf", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Run Spark against Spark of the same release, to prove the harness itself
    #[arg(long)]
    self_test: bool,
}

/// A row of the matrix: how the connections of both peers authenticate and encrypt.
#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    None,
    /// SASL DIGEST-MD5, without encryption
    Sasl,
    /// SASL with encryption
    SaslEncrypted,
    /// The auth engine and AES-CTR; before Spark 3.2 the engine of then
    Auth,
    /// Version 2 of the auth engine and AES-CTR; since Spark 3.5
    Auth2,
    /// Version 2 of the auth engine and AES-GCM; since Spark 4.1
    AuthGcm,
    /// TLS with the key and trust stores of the JDK; since Spark 4.0
    Tls,
    /// TLS with PEM files, against Spark's server alone; since Spark 4.0
    TlsPem,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Sasl => "sasl",
            Self::SaslEncrypted => "sasl-encrypted",
            Self::Auth => "auth",
            Self::Auth2 => "auth-2",
            Self::AuthGcm => "auth-gcm",
            Self::Tls => "tls",
            Self::TlsPem => "tls-pem",
        }
    }

    fn is_in(self, release: Release) -> bool {
        match self {
            Self::None | Self::Sasl | Self::SaslEncrypted | Self::Auth => true,
            Self::Auth2 => release.since(3, 5),
            Self::AuthGcm => release.since(4, 1),
            Self::Tls | Self::TlsPem => release.since(4, 0),
        }
    }

    fn authenticates(self) -> bool {
        !matches!(self, Self::None | Self::Tls | Self::TlsPem)
    }

    /// Spark's client with PEM files (4.1.4, 4.3.0) asks for a host name that it has not set
    /// itself, and so connects to nobody.
    fn has_java_client(self) -> bool {
        !matches!(self, Self::TlsPem)
    }

    fn settings(self, release: Release, keys: &Keys) -> Vec<String> {
        let crypto = "spark.network.crypto";
        match self {
            Self::None | Self::Sasl => Vec::new(),
            Self::SaslEncrypted => vec!["spark.authenticate.enableSaslEncryption=true".to_owned()],
            Self::Auth => {
                let legacy = !release.since(3, 2);
                vec![format!("{crypto}.enabled=true"), format!("{crypto}.legacyEngine={legacy}")]
            }
            Self::Auth2 => {
                vec![format!("{crypto}.enabled=true"), format!("{crypto}.authEngineVersion=2")]
            }
            Self::AuthGcm => vec![
                format!("{crypto}.enabled=true"),
                format!("{crypto}.authEngineVersion=2"),
                format!("{crypto}.cipher=AES/GCM/NoPadding"),
            ],
            Self::Tls => keys.stores(),
            Self::TlsPem => keys.pem(),
        }
    }
}

/// The options that every peer of one pair gets, ours and Spark's alike.
struct PeerOptions(Vec<String>);

impl PeerOptions {
    fn new(mode: Mode, release: Release, keys: &Keys, settings: &[String]) -> Self {
        let mut words = Vec::new();
        if mode.authenticates() {
            words.extend(["--secret".to_owned(), SECRET.to_owned()]);
        }
        for setting in mode.settings(release, keys).iter().chain(settings) {
            words.extend(["--conf".to_owned(), setting.clone()]);
        }
        Self(words)
    }

    /// Completes the command of a server on a free port.
    fn server(&self, mut command: Command) -> Command {
        command.args(["server", "0"]).args(&self.0);
        command
    }

    /// Completes the command of a client of `port`.
    fn client(&self, mut command: Command, port: u16) -> Command {
        command.args(["client", "127.0.0.1", &port.to_string()]).args(&self.0);
        command
    }
}

/// Runs the matrix; false when a case failed or none ran.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let jdk = Jdk::find()?;
    let cache = Cache::open()?;
    let rust = if options.self_test { None } else { Some(RustPeer::build()?) };
    let keys = Keys::make(&cache)?;
    let mut tally = Tally::default();
    for &release in &options.releases {
        let prepared =
            spark::jars(&cache, release).and_then(|jars| jdk.harness(&cache, release, &jars));
        let java = match prepared {
            Ok(java) => java,
            // The other releases can still tell something.
            Err(error) => {
                tally.fail(&release.to_string(), &format!("set-up: {error:#}"));
                continue;
            }
        };
        for &mode in &options.modes {
            if !mode.is_in(release) {
                println!("{release} {}: skipped, as this release does not have it", mode.name());
                continue;
            }
            let peers = PeerOptions::new(mode, release, &keys, &options.settings);
            let label = |direction| format!("{release} {} {direction}", mode.name());
            let java_server = || peers.server(java.command());
            let java_client = |port| peers.client(java.command(), port);
            match &rust {
                None if !mode.has_java_client() => {}
                None => tally.run(&label("java->java"), java_server(), java_client),
                Some(rust) => {
                    let rust_client = |port| {
                        let mut client = peers.client(rust.command(), port);
                        // Decides which cases apply: before 3.2 a server cannot do all of them.
                        client.arg("--spark").arg(release.to_string());
                        client
                    };
                    tally.run(&label("rust->java"), java_server(), rust_client);
                    if mode.has_java_client() {
                        tally.run(&label("java->rust"), peers.server(rust.command()), java_client);
                    }
                }
            }
        }
    }
    tally.print();
    ensure!(tally.ran_anything(), "no case ran");
    Ok(tally.failed == 0)
}
