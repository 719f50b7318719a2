//! `cargo xtask interop`: runs network-common against released versions of Spark.
//!
//! Both sides run the application protocol of `interop/README.md`: the Java harness in
//! `interop/java`, compiled against the jars of each release, and the example `spark_peer` of
//! network-common.

pub(crate) mod cache;
pub(crate) mod java;
mod jobs;
mod jobs_client;
mod jobs_cluster;
mod jobs_run;
mod jobs_service;
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
use jobs::Job;
use pair::Tally;
use release::Release;
use rust::RustPeer;
use tls::Keys;

/// The text of `cargo xtask interop --help` below the options.
pub(crate) const HELP: &str = "\
The first run with a release downloads it from PyPI (200 to 450 MB) and keeps 15 to 30 MB of jars in
$SPARK_INTEROP_CACHE, else in $XDG_CACHE_HOME/network-common-interop, else in
~/.cache/network-common-interop. --jobs keeps 350 MB for each release.
Requires on the PATH: java, javac and keytool of version 17 or later, pip (or python3 -m pip), tar.
The last line of the output is `N passed, M failed`.
The exit status is 1 if a case failed or no case ran.";

/// A secret of the length that Spark generates. Its Base64 text is longer than one line.
const SECRET: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0";

/// The options of `cargo xtask interop`.
#[derive(Args)]
pub(crate) struct InteropOptions {
    /// Spark releases to run against; default: 2.4.8,3.5.7,4.1.4,4.3.0, or 3.5.7,4.3.0 for --jobs
    #[arg(long, value_delimiter = ',')]
    releases: Vec<Release>,
    /// Authentication and encryption of the connections
    #[arg(long, value_delimiter = ',', default_value = "none")]
    modes: Vec<Mode>,
    /// Run these jobs on local clusters of Spark against shuffle-service, instead of the peers
    #[arg(long, value_delimiter = ',', conflicts_with_all = ["modes", "settings", "self_test"])]
    jobs: Vec<Job>,
    /// Spark setting for all peers; can be repeated
    #[arg(long = "conf", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Test the harness: run Spark against Spark of the same release
    #[arg(long)]
    self_test: bool,
}

/// The authentication and encryption of the connections between two peers.
#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    /// No authentication and no encryption
    None,
    /// SASL DIGEST-MD5, without encryption
    Sasl,
    /// SASL with encryption
    SaslEncrypted,
    /// Version 1 of the auth engine with AES-CTR; before Spark 3.2 the legacy engine
    Auth,
    /// Version 2 of the auth engine with AES-CTR; since Spark 3.5
    Auth2,
    /// Version 2 of the auth engine with AES-GCM; since Spark 4.1
    AuthGcm,
    /// TLS with key and trust stores of the JDK; since Spark 4.0
    Tls,
    /// TLS with PEM files, only with Spark as the server; since Spark 4.0
    TlsPem,
    /// TLS and SASL without encryption
    TlsSasl,
    /// TLS and SASL with encryption
    TlsSaslEncrypted,
    /// TLS and version 1 of the auth engine with AES-CTR
    TlsAuth,
    /// TLS and version 2 of the auth engine with AES-GCM; since Spark 4.1
    TlsAuthGcm,
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
            Self::TlsSasl => "tls-sasl",
            Self::TlsSaslEncrypted => "tls-sasl-encrypted",
            Self::TlsAuth => "tls-auth",
            Self::TlsAuthGcm => "tls-auth-gcm",
        }
    }

    /// Returns the authentication that runs inside of TLS, if this mode has both.
    fn inside_tls(self) -> Option<Self> {
        match self {
            Self::TlsSasl => Some(Self::Sasl),
            Self::TlsSaslEncrypted => Some(Self::SaslEncrypted),
            Self::TlsAuth => Some(Self::Auth),
            Self::TlsAuthGcm => Some(Self::AuthGcm),
            _ => None,
        }
    }

    fn is_supported_by(self, release: Release) -> bool {
        match self {
            Self::None | Self::Sasl | Self::SaslEncrypted | Self::Auth => true,
            Self::Auth2 => release.is_at_least(3, 5),
            Self::AuthGcm | Self::TlsAuthGcm => release.is_at_least(4, 1),
            Self::Tls | Self::TlsPem | Self::TlsSasl | Self::TlsSaslEncrypted | Self::TlsAuth => {
                release.is_at_least(4, 0)
            }
        }
    }

    fn authenticates(self) -> bool {
        !matches!(self, Self::None | Self::Tls | Self::TlsPem)
    }

    /// Returns whether Spark's client supports this mode.
    ///
    /// With PEM files it (4.1.4, 4.3.0) verifies a host name that it does not set, so it cannot
    /// connect to any server.
    fn has_java_client(self) -> bool {
        !matches!(self, Self::TlsPem)
    }

    fn settings(self, release: Release, keys: &Keys) -> Vec<String> {
        let crypto = "spark.network.crypto";
        match self {
            Self::None | Self::Sasl => Vec::new(),
            Self::SaslEncrypted => vec!["spark.authenticate.enableSaslEncryption=true".to_owned()],
            Self::Auth => {
                let legacy = !release.is_at_least(3, 2);
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
            Self::TlsSasl | Self::TlsSaslEncrypted | Self::TlsAuth | Self::TlsAuthGcm => {
                let inside = self.inside_tls().map(|mode| mode.settings(release, keys));
                keys.stores().into_iter().chain(inside.into_iter().flatten()).collect()
            }
        }
    }
}

/// The options of both peers of a pair, the same for Rust and Java.
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

    /// Adds the arguments of a server on a free port to `command`.
    fn server(&self, mut command: Command) -> Command {
        command.args(["server", "0"]).args(&self.0);
        command
    }

    /// Adds the arguments of a client of `port` to `command`.
    fn client(&self, mut command: Command, port: u16) -> Command {
        command.args(["client", "127.0.0.1", &port.to_string()]).args(&self.0);
        command
    }
}

/// Runs all releases and modes. Returns whether all cases passed.
pub(crate) fn run(options: &InteropOptions) -> Result<bool> {
    let mut tally = Tally::default();
    if options.jobs.is_empty() {
        run_peers(options, &mut tally)?;
    } else {
        let releases = options.releases_or(&["3.5.7", "4.3.0"])?;
        jobs::run(&options.jobs, &releases, &mut tally)?;
    }
    tally.print();
    ensure!(tally.has_run(), "no case ran");
    Ok(tally.failed == 0)
}

impl InteropOptions {
    fn releases_or(&self, default: &[&str]) -> Result<Vec<Release>> {
        if self.releases.is_empty() {
            return default.iter().map(|release| release.parse()).collect();
        }
        Ok(self.releases.clone())
    }
}

fn run_peers(options: &InteropOptions, tally: &mut Tally) -> Result<()> {
    let jdk = Jdk::find()?;
    let cache = Cache::open()?;
    let rust = if options.self_test { None } else { Some(RustPeer::build()?) };
    let keys = Keys::generate(&cache)?;
    for release in options.releases_or(&["2.4.8", "3.5.7", "4.1.4", "4.3.0"])? {
        let prepared =
            spark::jars(&cache, release).and_then(|jars| jdk.harness(&cache, release, &jars));
        let java = match prepared {
            Ok(java) => java,
            // The other releases can still be tested.
            Err(error) => {
                tally.fail(&release.to_string(), &format!("set-up: {error:#}"));
                continue;
            }
        };
        for &mode in &options.modes {
            if !mode.is_supported_by(release) {
                println!("{release} {}: skipped: this release does not support it", mode.name());
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
                        // Selects the cases: before 3.2 a server does not support all of them.
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
    Ok(())
}
