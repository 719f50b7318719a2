//! The server and client processes of a contender, with their CPU time and memory.

use std::fmt::Debug;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench_protocol::{Job, READY, Sample};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::contenders::{Contender, Programs};
use super::place::{Place, Places};
use crate::process::{self, Process};

/// A JVM loads most of Spark before it is ready.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// The timeout of a job.
const JOB_TIMEOUT: Duration = Duration::from_secs(180);

/// The result of one job.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Measured {
    #[serde(flatten)]
    pub(crate) sample: Sample,
    /// CPU seconds of both processes together; in the group shuffle, of the measured process.
    pub(crate) cpu_seconds: f64,
    /// The sum of the peak resident memory of these processes, in bytes.
    pub(crate) peak_bytes: u64,
    /// Resident memory of the server after the job in bytes; 0 if there is no server.
    pub(crate) server_bytes: u64,
    /// Resident memory of the client after the job in bytes.
    pub(crate) client_bytes: u64,
    /// System calls of both processes, if they were counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) system_calls: Option<u64>,
}

/// The processes of a contender.
pub(crate) struct Pair {
    server: Option<Process>,
    client: Process,
}

impl Pair {
    /// Starts the processes and waits until they are ready.
    pub(crate) fn start(
        programs: &Programs,
        places: &Places,
        place: Place,
        contender: Contender,
        file: &Path,
    ) -> Result<Self> {
        let deadline = Instant::now() + START_TIMEOUT;
        let mut client = programs.client(contender)?;
        let mut server = None;
        if let Some(mut command) = programs.server(contender)? {
            command.arg("--file").arg(file);
            let started = Process::start(
                format!("server {}", contender.name),
                &mut places.command_in(place, command),
            )?;
            client.arg(ready(&started, deadline)?);
            server = Some(started);
        }
        let client = Process::start(
            format!("client {}", contender.name),
            &mut places.command_in(place, client),
        )?;
        ready(&client, deadline)?;
        Ok(Self { server, client })
    }

    /// Runs `job` in the client.
    pub(crate) fn run(&mut self, job: &Job) -> Result<Measured> {
        for id in self.ids() {
            reset_peak(id);
        }
        let before = self.sum(cpu_seconds)?;
        let sample = run_job(&mut self.client, job)?;
        Ok(Measured {
            sample,
            cpu_seconds: self.sum(cpu_seconds)? - before,
            peak_bytes: self.sum(|id| status(id, "VmHWM:"))?,
            server_bytes: self
                .server
                .as_ref()
                .map_or(Ok(0), |server| status(server.id(), "VmRSS:"))?,
            client_bytes: status(self.client.id(), "VmRSS:")?,
            system_calls: None,
        })
    }

    /// Runs `job` under strace, which counts the system calls and slows the job down.
    ///
    /// Returns `None` if strace is not installed or not allowed.
    pub(crate) fn run_traced(&mut self, job: &Job) -> Result<Option<Measured>> {
        let counts = tempfile::NamedTempFile::new()?;
        let mut strace = Command::new("strace");
        strace.args(["-f", "-c", "-U", "calls,name", "-o"]).arg(counts.path());
        for id in self.ids() {
            strace.args(["-p", &id.to_string()]);
        }
        let Ok(mut tracer) = Process::start("strace", &mut strace) else { return Ok(None) };
        // strace reports only on stderr when it is attached, so this waits long enough.
        std::thread::sleep(Duration::from_millis(500));
        let mut measured = self.run(job)?;
        process::output(
            "kill",
            Command::new("kill").args(["-INT", &tracer.id().to_string()]),
            JOB_TIMEOUT,
        )
        .ok();
        tracer.exit(Instant::now() + JOB_TIMEOUT)?;
        let total = fs::read_to_string(counts.path())?;
        let total = total.lines().find(|line| line.trim_end().ends_with("total"));
        measured.system_calls = total.and_then(|line| line.split_whitespace().next()?.parse().ok());
        Ok(measured.system_calls.is_some().then_some(measured))
    }

    /// Runs `job` in the server.
    pub(crate) fn run_on_server(&mut self, job: &Job) -> Result<()> {
        let server = self.server.as_mut().context("there is no server")?;
        run_job::<_, Sample>(server, job).map(drop)
    }

    fn ids(&self) -> Vec<u32> {
        self.server.iter().chain([&self.client]).map(Process::id).collect()
    }

    fn sum<T: std::iter::Sum>(&self, of: impl Fn(u32) -> Result<T>) -> Result<T> {
        self.ids().into_iter().map(of).sum()
    }
}

/// Waits until the process is ready and returns the argument of its ready line.
pub(super) fn ready(process: &Process, deadline: Instant) -> Result<String> {
    while let Some(line) = process.read_line(deadline)? {
        if let Some(rest) = line.strip_prefix(READY) {
            return Ok(rest.trim().to_owned());
        }
    }
    anyhow::bail!("the process exited before it was ready: {}", process.stderr().join("\n"))
}

/// Runs `job` in a process and returns its sample.
pub(super) fn run_job<J, S>(process: &mut Process, job: &J) -> Result<S>
where
    J: Serialize + Debug,
    S: DeserializeOwned,
{
    send_job(process, job)?;
    read_sample(process).with_context(|| format!("{job:?}"))
}

/// Begins `job` in a process.
pub(super) fn send_job<J: Serialize>(process: &mut Process, job: &J) -> Result<()> {
    process.write_line(&serde_json::to_string(job)?)
}

/// Returns the sample of the job that a process has begun.
pub(super) fn read_sample<S: DeserializeOwned>(process: &Process) -> Result<S> {
    let line = process.read_line(Instant::now() + JOB_TIMEOUT)?;
    ensure!(line.is_some(), "the job failed:\n{}", process.stderr().join("\n"));
    let line = line.unwrap_or_default();
    serde_json::from_str(&line).with_context(|| format!("not a sample: {line}"))
}

/// Returns the user and system time of a process in seconds.
pub(super) fn cpu_seconds(id: u32) -> Result<f64> {
    /// The clock ticks per second in /proc, the same on all Linux systems.
    const TICKS: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
    // The process name may contain spaces and ends with the last parenthesis. utime and stime
    // are fields 14 and 15.
    let fields = stat.rsplit(')').next().context("no fields")?.split_whitespace().skip(11).take(2);
    fields.map(|ticks| Ok(ticks.parse::<f64>()? / TICKS)).sum()
}

/// Resets the peak of a process's resident memory.
///
/// If the system does not allow it, the peak counts from the start of the process.
pub(super) fn reset_peak(id: u32) {
    let _ = fs::write(format!("/proc/{id}/clear_refs"), "5");
}

/// Returns the value of a line in /proc/ID/status, in bytes.
pub(super) fn status(id: u32, name: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .with_context(|| format!("no {name}"))?;
    Ok(line.split_whitespace().next().context("no value")?.parse::<u64>()? << 10)
}
