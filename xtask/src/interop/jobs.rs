//! `cargo xtask interop --jobs`: real Spark jobs that read their shuffle from `shuffle-service`.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::ValueEnum;

use super::cache::Cache;
use super::java::{JavaPeer, Jdk};
use super::jobs_cluster::{ActionMetrics, Cluster, Event, RunningJob};
use super::jobs_service::{ServiceProgram, ServiceReport};
use super::pair::Tally;
use super::release::Release;
use super::spark;

/// The log lines of each process that are printed after a failure.
const LOG_LINES: usize = 60;

/// A real Spark job against the shuffle service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Job {
    /// Executors read the blocks of each other from the service
    Plain,
    /// The executors are killed between two actions, so every block comes from the service
    Kill,
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
            Self::Kill => "action,kill,action",
        };
        Plan { steps, job: Vec::new(), service: Vec::new() }
    }

    /// Checks where the blocks came from.
    fn check(self, outcome: &Outcome) -> Result<()> {
        let Outcome { actions, failures, report } = outcome;
        ensure!(failures.is_empty(), "tasks failed: {}", failures.join(" | "));
        let [_, last] = actions[..] else {
            anyhow::bail!("the job ran {} actions instead of 2", actions.len());
        };
        ensure!(last.remote_blocks > 0, "no block came over the network");
        let (blocks, bytes) = actions.iter().fold((0, 0), |(blocks, bytes), action| {
            (blocks + action.remote_blocks, bytes + action.remote_bytes)
        });
        check_equal("blocks", report.value("blockTransferRate")?, blocks)?;
        check_equal("bytes", report.value("blockTransferRateBytes")?, bytes)?;
        check_equal("failed chunks", report.value("failedChunks")?, 0)?;
        check_equal("failed requests", report.value("failedRequests")?, 0)?;
        if self == Self::Kill {
            check_equal("local blocks", last.local_blocks, 0)?;
        }
        Ok(())
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
        let mut options = vec!["--conf".to_owned(), conf("spark.shuffle.service.db.dir", &db)];
        options.extend(plan.service);
        let service = self.program.start(0, &options)?;
        let mut running = cluster.start_job(plan.steps, service.port, None, &plan.job)?;
        let result = self.follow(&mut running, label);
        if result.is_err() {
            print_log(label, "job", &running.log());
            print_log(label, "service", &service.log());
        }
        let (actions, failures) = result?;
        let report = service.stop()?;
        job.check(&Outcome { actions, failures, report })
    }

    fn follow(
        &self,
        running: &mut RunningJob,
        label: &str,
    ) -> Result<(Vec<ActionMetrics>, Vec<String>)> {
        let (mut actions, mut failures) = (Vec::new(), Vec::new());
        loop {
            match running.next_event(label)? {
                Event::App(_) => {}
                Event::Action(metrics) => actions.push(metrics),
                Event::Failure(reason) => failures.push(reason),
                Event::Paused => running.resume()?,
                Event::Done => break,
            }
        }
        running.finish()?;
        Ok((actions, failures))
    }
}

fn conf(key: &str, path: &Path) -> String {
    format!("{key}={}", path.display())
}

fn print_log(label: &str, process: &str, lines: &[String]) {
    for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
        println!("{label}: {process} log: {line}");
    }
}
