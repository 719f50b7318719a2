//! `cargo xtask interop --jobs`: real Spark jobs that read their shuffle from `shuffle-service`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;

use super::cache::Cache;
use super::java::{JavaPeer, Jdk};
use super::jobs_cluster::{ActionMetrics, Cluster, Event, RunningJob};
use super::jobs_service::{RunningService, ServiceProgram, ServiceReport};
use super::pair::Tally;
use super::release::Release;
use super::spark;

/// The log lines of each process that are printed after a failure.
const LOG_LINES: usize = 60;

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
    /// Executors end when they are idle, and new ones read their blocks and cached partitions
    Dynamic,
    /// As kill, and the data files are damaged between the actions
    Corrupt,
}

/// How one job runs.
struct Plan {
    /// The steps of `ShuffleJob`.
    steps: &'static str,
    /// Settings of the job.
    job: Vec<String>,
    /// Options of the service.
    service: Vec<String>,
}

/// What a job and its services reported.
struct Outcome {
    actions: Vec<ActionMetrics>,
    failures: Vec<String>,
    report: ServiceReport,
}

/// What all jobs of one release share.
#[allow(dead_code)]
struct Environment<'a> {
    release: Release,
    cache: &'a Cache,
    java: JavaPeer,
    jars: PathBuf,
    program: &'a ServiceProgram,
}

/// Runs the jobs on each release, and counts each as one case.
pub(super) fn run(jobs: &[Job], releases: &[Release], tally: &mut Tally) -> Result<()> {
    let (jdk, cache) = (Jdk::find()?, Cache::open()?);
    let program = ServiceProgram::build()?;
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
        let environment = Environment { release, cache: &cache, java, jars, program: &program };
        for &job in jobs {
            let label = format!("{release} job {}", job.name());
            match environment.run(job, &label) {
                Ok(()) => tally.pass(&label, "the job read its shuffle from the service"),
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

    fn plan(self) -> Plan {
        let steps = match self {
            Self::Plain => "action,action",
            Self::Kill | Self::Oldfetch | Self::Disk | Self::Hostlocal => "action,kill,action",
            Self::Restart | Self::Corrupt => "action,kill,pause,action",
            Self::Dynamic => "persist,action,idle,action",
        };
        let job: &[&str] = match self {
            Self::Oldfetch => &["spark.shuffle.useOldFetchProtocol=true"],
            Self::Disk => &["spark.network.maxRemoteBlockSizeFetchToMem=204800"],
            Self::Hostlocal => &["spark.shuffle.readHostLocalDisk=true"],
            Self::Dynamic => &[
                "spark.dynamicAllocation.enabled=true",
                "spark.dynamicAllocation.initialExecutors=2",
                "spark.dynamicAllocation.executorIdleTimeout=3s",
                "spark.dynamicAllocation.cachedExecutorIdleTimeout=3s",
                "spark.shuffle.service.fetch.rdd.enabled=true",
            ],
            _ => &[],
        };
        let service: &[&str] = match self {
            Self::Dynamic => &["--conf", "spark.shuffle.service.fetch.rdd.enabled=true"],
            _ => &[],
        };
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Plan { steps, job: owned(job), service: owned(service) }
    }

    /// Checks where the blocks came from.
    fn check(self, outcome: &Outcome) -> Result<()> {
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
        check_equal("failed requests", report.value("failedRequests")?, 0)?;
        check_equal("failed chunks", report.value("failedChunks")?, 0)?;
        if self == Self::Hostlocal {
            ensure!(report.value("getLocalDirsRequests")? > 0, "no executor asked for directories");
            check_equal("remote blocks", last.remote_blocks, 0)?;
            return check_equal("local blocks", last.local_blocks, BLOCKS);
        }
        // A service that was killed reports nothing, so that only its successor is compared.
        let counted = if self == Self::Restart { ActionMetrics::default() } else { first };
        let blocks = report.value("blockTransferRate")?;
        let bytes = report.value("blockTransferRateBytes")?;
        if self == Self::Dynamic {
            ensure!(blocks > first.remote_blocks + last.remote_blocks, "no RDD block was fetched");
        } else {
            check_equal("blocks", blocks, counted.remote_blocks + last.remote_blocks)?;
            check_equal("bytes", bytes, counted.remote_bytes + last.remote_bytes)?;
        }
        match self {
            Self::Plain => ensure!(last.remote_blocks > 0, "no block came over the network"),
            _ => check_equal("remote blocks", last.remote_blocks, BLOCKS)?,
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

impl Environment<'_> {
    fn run(&self, job: Job, label: &str) -> Result<()> {
        let cluster = Cluster::create(self.cache, &self.java, &self.jars)?;
        let plan = job.plan();
        let db = cluster.create_directory("db")?;
        let mut options =
            vec!["--conf".to_owned(), format!("spark.shuffle.service.db.dir={}", db.display())];
        options.extend(plan.service);
        let mut service = self.program.start(0, &options)?;
        let mut running = cluster.start_job(plan.steps, service.port, None, &plan.job)?;
        let on_pause = |service: &mut RunningService| match job {
            Job::Restart => {
                service.kill()?;
                *service = self.program.start(service.port, &options)?;
                Ok(())
            }
            Job::Corrupt => damage_files(&cluster.local_dir()),
            _ => bail!("the job {} has no pause", job.name()),
        };
        let result = follow(&mut running, &mut service, label, on_pause);
        if result.is_err() {
            print_log(label, "job", &running.log());
            print_log(label, "service", &service.log());
        }
        let (actions, failures) = result?;
        let report = service.stop()?;
        job.check(&Outcome { actions, failures, report })
    }
}

/// Follows a job until it has ended; returns its actions and the reasons of failed tasks.
fn follow(
    running: &mut RunningJob,
    service: &mut RunningService,
    label: &str,
    on_pause: impl Fn(&mut RunningService) -> Result<()>,
) -> Result<(Vec<ActionMetrics>, Vec<String>)> {
    let (mut actions, mut failures) = (Vec::new(), Vec::new());
    loop {
        match running.next_event(label)? {
            Event::App(_) => {}
            Event::Action(metrics) => actions.push(metrics),
            Event::Failure(reason) => failures.push(reason),
            Event::Paused => {
                on_pause(service)?;
                running.resume()?;
            }
            Event::Done => break,
        }
    }
    running.finish()?;
    Ok((actions, failures))
}

/// Changes bytes in the middle of each shuffle data file below `directory`.
fn damage_files(directory: &Path) -> Result<()> {
    let mut damaged = 0;
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension() == Some("data".as_ref()) {
                let mut content = fs::read(&path)?;
                let middle = content.len() / 2;
                content[middle..middle + 100].iter_mut().for_each(|byte| *byte = !*byte);
                fs::write(&path, content)?;
                damaged += 1;
            }
        }
    }
    ensure!(damaged > 0, "there are no data files in {}", directory.display());
    Ok(())
}

fn print_log(label: &str, process: &str, lines: &[String]) {
    for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
        println!("{label}: {process} log: {line}");
    }
}
