//! Builds, starts and stops the program `shuffle-service`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::build;
use crate::process::{self, Process};

const PROGRAM: &str = "shuffle-service";
const START_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// The built program.
pub(crate) struct ServiceProgram {
    path: PathBuf,
}

/// A running service on 127.0.0.1.
pub(crate) struct RunningService {
    process: Process,
    pub(crate) port: u16,
}

/// The counters that a service prints when it stops.
#[derive(Debug, Default)]
pub(crate) struct ServiceReport(BTreeMap<String, u64>);

impl ServiceProgram {
    /// Builds the program in release mode.
    pub(crate) fn build() -> Result<Self> {
        let words = ["--package", "network-shuffle", "--bin", PROGRAM];
        Ok(Self { path: build::program(".", PROGRAM, &words)? })
    }

    /// Starts a service on `port`, or a free port if it is 0, and waits until it listens.
    pub(crate) fn start(&self, port: u16, settings: &[String]) -> Result<RunningService> {
        let mut command = Command::new(&self.path);
        command
            // The settings of this machine must not change the result.
            .env_remove("SPARK_HOME")
            .env_remove("SPARK_CONF_DIR")
            .args(["--log-level", "debug"])
            .args(["--conf", "spark.shuffle.service.host=127.0.0.1"])
            .args(["--conf", &format!("spark.shuffle.service.port={port}")])
            .args(settings.iter().flat_map(|setting| ["--conf", setting]));
        let process = Process::start(PROGRAM, &mut command)?;
        let deadline = Instant::now() + START_TIMEOUT;
        while let Some(line) = process.read_line(deadline)? {
            if let Some((_, port)) = line
                .strip_prefix("shuffle-service is listening on ")
                .and_then(|address| address.rsplit_once(':'))
            {
                let port = port.parse().context("the service printed no port")?;
                return Ok(RunningService { process, port });
            }
        }
        bail!("{PROGRAM} exited before it listened: {}", process.stderr().join(" | "))
    }
}

impl RunningService {
    /// Stops the service with SIGTERM, and returns its counters.
    pub(crate) fn stop(mut self) -> Result<ServiceReport> {
        self.signal("TERM")?;
        let deadline = Instant::now() + STOP_TIMEOUT;
        let mut report = ServiceReport::default();
        while let Some(line) = self.process.read_line(deadline)? {
            if let Some((name, value)) = line.split_once(' ')
                && let Ok(value) = value.parse()
            {
                report.0.insert(name.to_owned(), value);
            }
        }
        let status = self.process.exit(deadline)?;
        ensure!(status.success(), "{PROGRAM} exited with {status}");
        if let Some(panic) = self.log().iter().find(|line| line.contains("panicked at")) {
            bail!("a panic in {PROGRAM}: {panic}");
        }
        Ok(report)
    }

    /// Ends the service at once (SIGKILL).
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.signal("KILL")?;
        self.process.exit(Instant::now() + KILL_TIMEOUT)?;
        Ok(())
    }

    fn signal(&self, signal: &str) -> Result<()> {
        let mut kill = Command::new("kill");
        kill.args(["-s", signal, &self.process.id().to_string()]);
        process::output("kill", &mut kill, KILL_TIMEOUT)?;
        Ok(())
    }

    /// Returns the lines that the service has logged.
    pub(crate) fn log(&self) -> Vec<String> {
        self.process.stderr()
    }
}

impl ServiceReport {
    /// Returns a counter.
    pub(crate) fn value(&self, name: &str) -> Result<u64> {
        self.0.get(name).copied().with_context(|| format!("{PROGRAM} reported no {name}"))
    }
}
