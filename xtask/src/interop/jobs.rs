//! `cargo xtask interop --jobs`: real Spark jobs that read their shuffle from `shuffle-service`.

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;

use super::cache::Cache;
use super::java::Jdk;
use super::jobs_cluster::ActionMetrics;
use super::jobs_run::Environment;
use super::jobs_service::{ServiceProgram, ServiceReport};
use super::pair::Tally;
use super::release::Release;
use super::spark;
use super::tls::Keys;

/// The secrets of the first and second application.
pub(super) const SECRETS: [&str; 2] = [super::SECRET, "another secret"];

const AUTHENTICATE: &str = "spark.authenticate=true";

/// The number of blocks that an action of `ShuffleJob` reads: 8 maps by 8 reduces.
const BLOCKS: u64 = 64;

/// A real Spark job against the shuffle service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Job {
    /// Executors read the blocks of each other from the service
    Plain,
    /// The executors are killed between two actions, so every block comes from the service
    Kill,
    /// As kill, and the service is killed and restarted
    Restart,
    /// As kill, with the fetch protocol before Spark 3.0 (`OpenBlocks`)
    Oldfetch,
    /// As kill, and blocks are fetched to the disk (`StreamRequest`)
    Disk,
    /// As kill, and executors ask for local directories and read the files themselves
    Hostlocal,
    /// With dynamic allocation, executors end when they are idle, and new ones read their blocks
    Dynamic,
    /// As kill, and the data files are damaged between the actions
    Corrupt,
    /// As kill, with SASL DIGEST-MD5 and a secret of the application
    Sasl,
    /// As sasl, with encryption
    SaslEncrypted,
    /// As kill, with version 1 of the auth engine and AES-CTR
    AuthCtr,
    /// As kill, with version 2 of the auth engine and AES-GCM; since Spark 4.1
    AuthGcm,
    /// As kill, with TLS; since Spark 4.0
    Tls,
    /// As kill, with TLS, authentication and AES-CTR; since Spark 4.0
    TlsAuth,
    /// The service has another secret than the job, so no executor can register
    WrongSecret,
    /// Two jobs with different secrets at once
    TwoApps,
    /// The example `read_shuffle` reads what Spark's client reads, from services and executors
    Client,
    /// As client, with the fetch protocol before Spark 3.0
    ClientOldfetch,
}

/// How one job runs.
pub(super) struct Plan {
    /// The steps of `ShuffleJob`.
    pub(super) steps: &'static str,
    /// Settings of the job.
    pub(super) job: Vec<String>,
    /// Settings of the service.
    pub(super) service: Vec<String>,
}

impl Plan {
    pub(super) fn authenticates(&self) -> bool {
        self.service.iter().any(|setting| setting == AUTHENTICATE)
    }
}

/// What the applications of a job and its service reported.
pub(super) struct Outcome {
    /// By step, the sum of all applications.
    pub(super) actions: Vec<ActionMetrics>,
    /// The reasons of failed tasks.
    pub(super) failures: Vec<String>,
    pub(super) report: ServiceReport,
}

/// Runs the jobs on each release, and counts each as one case.
pub(super) fn run(jobs: &[Job], releases: &[Release], tally: &mut Tally) -> Result<()> {
    let (jdk, cache) = (Jdk::find()?, Cache::open()?);
    let (program, keys) = (ServiceProgram::build()?, Keys::generate(&cache)?);
    for &release in releases {
        let prepared = spark::every_jar(&cache, release)
            .and_then(|jars| Ok((jdk.job(&cache, release, &jars)?, jars)));
        let (java, jars) = match prepared {
            Ok(prepared) => prepared,
            // The other releases can still be tested.
            Err(error) => {
                tally.fail(&release.to_string(), &format!("set-up: {error:#}"));
                continue;
            }
        };
        let environment = Environment { cache: &cache, java, jars, program: &program, keys: &keys };
        for &job in jobs {
            let label = format!("{release} job {}", job.name());
            if !job.is_supported_by(release) {
                println!("{label}: skipped: this release does not support it");
                continue;
            }
            match environment.run(job, &label) {
                Ok(()) => tally.pass(&label, job.success()),
                Err(error) => tally.fail(&label, &format!("{error:#}")),
            }
        }
    }
    Ok(())
}

impl Job {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Returns what a passed job has shown.
    fn success(self) -> &'static str {
        match self {
            Self::WrongSecret => "no executor could register",
            Self::Client | Self::ClientOldfetch => "read_shuffle read the blocks of Spark's client",
            _ => "the job read its shuffle from the service",
        }
    }

    /// Returns the number of applications that run at once.
    pub(super) fn applications(self) -> usize {
        if self == Self::TwoApps { 2 } else { 1 }
    }

    pub(super) fn plan(self, keys: &Keys) -> Plan {
        let steps = match self {
            Self::Plain => "action,action",
            Self::Restart | Self::Corrupt => "action,kill,pause,action",
            Self::Dynamic => "action,idle,action",
            Self::Client | Self::ClientOldfetch => "action,dump,pause,action",
            _ => "action,kill,action",
        };
        let job: &[&str] = match self {
            Self::Oldfetch => &["spark.shuffle.useOldFetchProtocol=true"],
            Self::Disk => &["spark.network.maxRemoteBlockSizeFetchToMem=204800"],
            Self::Hostlocal => &["spark.shuffle.readHostLocalDisk=true"],
            Self::Dynamic => &[
                "spark.dynamicAllocation.enabled=true",
                "spark.dynamicAllocation.initialExecutors=2",
                "spark.dynamicAllocation.executorIdleTimeout=3s",
            ],
            _ => &[],
        };
        let mut job: Vec<String> = job.iter().map(|word| (*word).to_owned()).collect();
        let security = self.security(keys);
        job.extend_from_slice(&security);
        Plan { steps, job, service: security }
    }

    /// Returns the settings of both sides that protect their connections.
    fn security(self, keys: &Keys) -> Vec<String> {
        let authenticate = AUTHENTICATE.to_owned();
        let crypto = "spark.network.crypto.enabled=true".to_owned();
        match self {
            Self::Sasl | Self::WrongSecret => vec![authenticate],
            Self::SaslEncrypted => {
                vec![authenticate, "spark.authenticate.enableSaslEncryption=true".to_owned()]
            }
            Self::AuthCtr | Self::TwoApps => vec![authenticate, crypto],
            Self::AuthGcm => vec![
                authenticate,
                crypto,
                "spark.network.crypto.authEngineVersion=2".to_owned(),
                "spark.network.crypto.cipher=AES/GCM/NoPadding".to_owned(),
            ],
            Self::Tls => keys.stores(),
            Self::TlsAuth => keys.stores().into_iter().chain([authenticate, crypto]).collect(),
            _ => Vec::new(),
        }
    }

    fn is_supported_by(self, release: Release) -> bool {
        match self {
            Self::AuthGcm => release.is_at_least(4, 1),
            Self::Tls | Self::TlsAuth => release.is_at_least(4, 0),
            _ => true,
        }
    }

    /// Checks where the blocks came from.
    pub(super) fn check(self, outcome: &Outcome) -> Result<()> {
        let Outcome { actions, failures, report } = outcome;
        let [first, last] = actions[..] else {
            bail!("the job ran {} actions instead of 2", actions.len());
        };
        if self == Self::Corrupt {
            ensure!(
                failures.iter().any(|reason| reason.contains("corrupted due to DISK_ISSUE")),
                "no task failed because of the damaged file: {}",
                failures.join(" | ")
            );
            ensure!(report.value("diagnoseCorruptionRequests")? > 0, "nothing was diagnosed");
            return Ok(());
        }
        ensure!(failures.is_empty(), "tasks failed: {}", failures.join(" | "));
        // A handshake before the service has read the secret fails without a request.
        check_equal("failed requests", report.value("failedRequests")?, 0)?;
        check_equal("failed chunks", report.value("failedChunks")?, 0)?;
        if matches!(self, Self::Client | Self::ClientOldfetch) {
            // The blocks were compared in the pause.
            return Ok(());
        }
        if self == Self::Hostlocal {
            ensure!(report.value("getLocalDirsRequests")? > 0, "no executor asked for directories");
            check_equal("remote blocks", last.remote_blocks, 0)?;
            return check_equal("local blocks", last.local_blocks, BLOCKS);
        }
        // A service that was killed reports nothing, so that only its successor is compared.
        let counted = if self == Self::Restart { ActionMetrics::default() } else { first };
        let blocks = report.value("blockTransferRate")?;
        let bytes = report.value("blockTransferRateBytes")?;
        check_equal("blocks", blocks, counted.remote_blocks + last.remote_blocks)?;
        check_equal("bytes", bytes, counted.remote_bytes + last.remote_bytes)?;
        match self {
            Self::Plain => ensure!(last.remote_blocks > 0, "no block came over the network"),
            _ => {
                let expected = BLOCKS * self.applications() as u64;
                check_equal("remote blocks", last.remote_blocks, expected)?;
            }
        }
        match self {
            Self::Oldfetch => {
                ensure!(report.value("openBlocksRequests")? > 0, "OpenBlocks was not sent");
                check_equal("new requests", report.value("fetchShuffleBlocksRequests")?, 0)
            }
            Self::Disk => {
                check_equal("bytes to disk", last.remote_bytes_to_disk, last.remote_bytes)?;
                check_equal("streams", report.value("streamRequests")?, blocks)
            }
            _ => Ok(()),
        }
    }
}

fn check_equal(name: &str, reported: u64, expected: u64) -> Result<()> {
    ensure!(reported == expected, "the number of {name} is {reported} instead of {expected}");
    Ok(())
}
