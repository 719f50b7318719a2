//! Runs the Java program `ShuffleJob` on a local cluster of a Spark release.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use super::cache::{self, Cache};
use super::java::JavaPeer;
use crate::process::Process;

/// A step takes a few seconds on an idle machine.
const STEP_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// A directory of one run: Spark's home, its working directories and the local directories.
pub(crate) struct Cluster<'a> {
    java: &'a JavaPeer,
    directory: TempDir,
    scala_version: &'static str,
}

/// A running job.
pub(crate) struct RunningJob {
    process: Process,
}

/// The shuffle metrics of all tasks of an action.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ActionMetrics {
    pub(crate) remote_blocks: u64,
    pub(crate) remote_bytes: u64,
    pub(crate) remote_bytes_to_disk: u64,
    pub(crate) local_blocks: u64,
    pub(crate) failed_tasks: u64,
}

/// A block that a client has read from the output of an executor.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DumpedBlock {
    pub(crate) exec_id: String,
    pub(crate) block_id: String,
    pub(crate) len: u64,
    pub(crate) digest: String,
}

/// A line of a job's output.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The application has this id.
    App(String),
    Action(ActionMetrics),
    /// A task failed for this reason.
    Failure(String),
    /// Spark's client has read this block.
    Block(DumpedBlock),
    /// A live executor has this id and port.
    Executor(String, u16),
    /// A service of Spark listens on this port.
    SparkService(u16),
    /// The job waits for a line.
    Paused,
    Done,
}

impl ActionMetrics {
    /// Adds the metrics of another application.
    pub(crate) fn add(&mut self, other: Self) {
        self.remote_blocks += other.remote_blocks;
        self.remote_bytes += other.remote_bytes;
        self.remote_bytes_to_disk += other.remote_bytes_to_disk;
        self.local_blocks += other.local_blocks;
        self.failed_tasks += other.failed_tasks;
    }
}

impl<'a> Cluster<'a> {
    /// Creates the directories; `jars` has all jars of the release.
    pub(crate) fn create(cache: &Cache, java: &'a JavaPeer, jars: &Path) -> Result<Self> {
        let directory = cache.scratch()?;
        let home = directory.path().join("home");
        fs::create_dir_all(home.join("bin"))?;
        std::os::unix::fs::symlink(jars, home.join("jars"))?;
        let has = |prefix: &str| -> Result<bool> {
            let jars = cache::files(jars, "jar")?;
            let name = |jar: &PathBuf| jar.file_name()?.to_str().map(str::to_owned);
            Ok(jars.iter().filter_map(name).any(|name| name.starts_with(prefix)))
        };
        let scala_version = if has("spark-core_2.13")? { "2.13" } else { "2.12" };
        Ok(Self { java, directory, scala_version })
    }

    /// Returns the directory in which executors create their local directories.
    pub(crate) fn local_dir(&self) -> PathBuf {
        self.directory.path().join("local")
    }

    /// Creates and returns an empty directory of this run.
    pub(crate) fn create_directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.directory.path().join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// Starts a job with these steps and settings against the service at `port`.
    pub(crate) fn start_job(
        &self,
        steps: &str,
        port: u16,
        secrets: Option<&Path>,
        settings: &[String],
    ) -> Result<RunningJob> {
        let mut command = self.java.command();
        command
            .current_dir(self.directory.path())
            .env("SPARK_HOME", self.directory.path().join("home"))
            .env("SPARK_SCALA_VERSION", self.scala_version)
            .env("SPARK_LOCAL_IP", "127.0.0.1")
            .arg(steps);
        if let Some(secrets) = secrets {
            command.arg("--secrets").arg(secrets);
        }
        let classes = self.java.classes()?;
        let fixed = [
            "spark.shuffle.service.enabled=true".to_owned(),
            format!("spark.shuffle.service.port={port}"),
            // Blocks come over the network, although all executors are on one host.
            "spark.shuffle.readHostLocalDisk=false".to_owned(),
            format!("spark.executor.extraClassPath={}", classes.display()),
            format!("spark.local.dir={}", self.local_dir().display()),
            "spark.driver.host=127.0.0.1".to_owned(),
            "spark.ui.enabled=false".to_owned(),
        ];
        for setting in fixed.iter().chain(settings) {
            command.args(["--conf", setting]);
        }
        Ok(RunningJob { process: Process::start("the job", &mut command)? })
    }
}

impl RunningJob {
    /// Returns the next event, and prints it.
    pub(crate) fn next_event(&self, label: &str) -> Result<Event> {
        let deadline = Instant::now() + STEP_TIMEOUT;
        while let Some(line) = self.process.read_line(deadline)? {
            println!("{label}: {line}");
            if let Some(event) = parse_event(&line)? {
                return Ok(event);
            }
        }
        bail!("the job exited before it was done")
    }

    /// Ends a pause.
    pub(crate) fn resume(&mut self) -> Result<()> {
        self.process.write_line("continue")
    }

    /// Waits until the job has exited, and checks that it succeeded.
    pub(crate) fn finish(&mut self) -> Result<()> {
        let status = self.process.exit(Instant::now() + STEP_TIMEOUT)?;
        ensure!(status.success(), "the job exited with {status}");
        Ok(())
    }

    /// Returns the lines that the job has logged.
    pub(crate) fn log(&self) -> Vec<String> {
        self.process.stderr()
    }
}

fn parse_event(line: &str) -> Result<Option<Event>> {
    let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
    Ok(Some(match kind {
        "APP" => Event::App(rest.to_owned()),
        "ACTION" => Event::Action(parse_metrics(rest)?),
        "FAILURE" => Event::Failure(rest.to_owned()),
        "BLOCK" => Event::Block(parse_block(rest)?),
        "EXECUTOR" => {
            let (id, port) = rest.split_once(' ').context("an executor has no port")?;
            Event::Executor(id.to_owned(), port.parse()?)
        }
        "SPARK_SERVICE" => Event::SparkService(rest.parse()?),
        "PAUSED" => Event::Paused,
        "DONE" => Event::Done,
        _ => return Ok(None),
    }))
}

fn parse_block(text: &str) -> Result<DumpedBlock> {
    let [exec_id, block_id, len, digest] = text.split(' ').collect::<Vec<_>>()[..] else {
        bail!("a block is not EXECUTOR ID LENGTH DIGEST: {text}");
    };
    let (exec_id, block_id) = (exec_id.to_owned(), block_id.to_owned());
    Ok(DumpedBlock { exec_id, block_id, len: len.parse()?, digest: digest.to_owned() })
}

fn parse_metrics(text: &str) -> Result<ActionMetrics> {
    let mut metrics = ActionMetrics::default();
    for pair in text.split(' ') {
        let (name, value) = pair.split_once('=').context("a metric is not NAME=VALUE")?;
        let value = value.parse()?;
        match name {
            "remoteBlocks" => metrics.remote_blocks = value,
            "remoteBytes" => metrics.remote_bytes = value,
            "remoteBytesToDisk" => metrics.remote_bytes_to_disk = value,
            "localBlocks" => metrics.local_blocks = value,
            "failedTasks" => metrics.failed_tasks = value,
            _ => bail!("unknown metric {name}"),
        }
    }
    Ok(metrics)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_jobs_are_parsed() {
        let metrics = ActionMetrics { remote_blocks: 3, local_blocks: 4, ..Default::default() };
        for (line, event) in [
            ("APP app-1", Some(Event::App("app-1".to_owned()))),
            ("ACTION remoteBlocks=3 localBlocks=4", Some(Event::Action(metrics))),
            ("FAILURE lost executor", Some(Event::Failure("lost executor".to_owned()))),
            ("EXECUTOR 1 4000", Some(Event::Executor("1".to_owned(), 4000))),
            ("SPARK_SERVICE 7337", Some(Event::SparkService(7337))),
            ("PAUSED", Some(Event::Paused)),
            ("DONE", Some(Event::Done)),
            ("Picked up JAVA_TOOL_OPTIONS", None),
        ] {
            assert_eq!(parse_event(line).unwrap(), event);
        }
        assert!(parse_event("ACTION remoteBlocks=x").is_err());
        assert!(parse_event("ACTION other=3").is_err());
    }
}
