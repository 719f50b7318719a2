//! Runs one job of `jobs` with its service.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::cache::Cache;
use super::java::JavaPeer;
use super::jobs::{Job, Outcome, Plan, SECRETS};
use super::jobs_client::Dump;
use super::jobs_cluster::{ActionMetrics, Cluster, Event, RunningJob};
use super::jobs_service::{RunningService, ServiceProgram};
use super::tls::Keys;

/// The log lines of each process that are printed after a failure.
const LOG_LINES: usize = 60;

/// Enough for an executor that tries to register three times, 5 s apart.
const REJECTION_TIMEOUT: Duration = Duration::from_secs(180);
/// What the driver logs for an executor that the service has rejected.
const REJECTION: &str = "Unable to register with external shuffle server";

/// What all jobs of one release share.
pub(super) struct Environment<'a> {
    pub(super) cache: &'a Cache,
    pub(super) java: JavaPeer,
    pub(super) jars: PathBuf,
    pub(super) program: &'a ServiceProgram,
    pub(super) keys: &'a Keys,
}

impl Environment<'_> {
    /// Runs a job, and checks its result.
    pub(super) fn run(&self, job: Job, label: &str) -> Result<()> {
        let clusters: Vec<_> = SECRETS[..job.applications()]
            .iter()
            .map(|_| Cluster::create(self.cache, &self.java, &self.jars))
            .collect::<Result<_>>()?;
        let plan = job.plan(self.keys);
        let mut settings = plan.service.clone();
        settings.push(directory_setting("spark.shuffle.service.db.dir", &clusters[0], "db")?);
        let secrets = clusters[0].create_directory("secrets")?;
        if plan.authenticates() {
            settings.push(format!("spark.shuffle.service.secrets.dir={}", secrets.display()));
        }
        let mut service = self.program.start(0, &settings)?;
        let mut running = Vec::new();
        for (cluster, secret) in clusters.iter().zip(SECRETS) {
            running.push(start_job(job, &plan, cluster, service.port, &secrets, secret)?);
        }
        if job == Job::WrongSecret {
            return expect_rejection(&running[0], service);
        }
        let on_pause = |service: &mut RunningService, dump: &Dump| match job {
            Job::Restart => {
                service.kill()?;
                *service = self.program.start(service.port, &settings)?;
                Ok(())
            }
            Job::Corrupt => damage_files(&clusters[0].local_dir()),
            Job::Client => dump.check(label, service.port, false),
            Job::ClientOldfetch => dump.check(label, service.port, true),
            _ => bail!("the job has no pause"),
        };
        let mut outcomes = Vec::new();
        for running in &mut running {
            let result = follow(running, &mut service, label, on_pause);
            if result.is_err() {
                print_log(label, "job", &running.log());
                print_log(label, "service", &service.log());
            }
            outcomes.push(result?);
        }
        let (actions, failures) = add_up(outcomes);
        job.check(&Outcome { actions, failures, report: service.stop()? })
    }
}

fn start_job(
    job: Job,
    plan: &Plan,
    cluster: &Cluster<'_>,
    port: u16,
    secrets: &Path,
    secret: &str,
) -> Result<RunningJob> {
    let mut settings = plan.job.clone();
    if plan.authenticates() {
        settings.push(format!("spark.authenticate.secret={secret}"));
    }
    // The job does not write its secret into the directory that the service reads.
    let hidden = cluster.create_directory("other-secrets")?;
    let written = if job == Job::WrongSecret { &hidden } else { secrets };
    let written = plan.authenticates().then_some(written);
    cluster.start_job(plan.steps, port, written, &settings)
}

fn directory_setting(key: &str, cluster: &Cluster<'_>, name: &str) -> Result<String> {
    Ok(format!("{key}={}", cluster.create_directory(name)?.display()))
}

/// Adds the actions of several applications.
fn add_up(outcomes: Vec<(Vec<ActionMetrics>, Vec<String>)>) -> (Vec<ActionMetrics>, Vec<String>) {
    let (mut sums, mut failures) = (Vec::new(), Vec::new());
    for (actions, failed) in outcomes {
        sums.resize_with(sums.len().max(actions.len()), ActionMetrics::default);
        sums.iter_mut().zip(actions).for_each(|(sum, action)| sum.add(action));
        failures.extend(failed);
    }
    (sums, failures)
}

/// Waits until the driver reports that its executors cannot register.
fn expect_rejection(job: &RunningJob, service: RunningService) -> Result<()> {
    let deadline = Instant::now() + REJECTION_TIMEOUT;
    while !job.log().iter().any(|line| line.contains(REJECTION)) {
        ensure!(Instant::now() < deadline, "the driver has not logged: {REJECTION}");
        thread::sleep(Duration::from_millis(100));
    }
    let report = service.stop()?;
    let requests = report.value("registerExecutorRequests")?;
    ensure!(requests == 0, "the service got {requests} registrations");
    Ok(())
}

/// Follows a job until it has ended; returns its actions and the reasons of failed tasks.
fn follow(
    running: &mut RunningJob,
    service: &mut RunningService,
    label: &str,
    on_pause: impl Fn(&mut RunningService, &Dump) -> Result<()>,
) -> Result<(Vec<ActionMetrics>, Vec<String>)> {
    let (mut actions, mut failures, mut dump) = (Vec::new(), Vec::new(), Dump::default());
    loop {
        match running.next_event(label)? {
            Event::Action(metrics) => actions.push(metrics),
            Event::Failure(reason) => failures.push(reason),
            Event::Paused => {
                on_pause(service, &dump)?;
                running.resume()?;
            }
            Event::Done => break,
            event => dump.record(event),
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
