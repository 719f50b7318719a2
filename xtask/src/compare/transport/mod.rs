//! Runs Spark's own transport benchmark with ours, plain sockets and Spark (goal N1).
//!
//! Client and server of a contender are in one process, as in Spark's `NettyTransportBenchmark`.
//! All processes run until the last row is done and take turns in repeating each row.

mod rows;
mod table;

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bench_protocol::{Sample, TransportJob, TransportSample, write_file};

use super::Bench;
use super::goals::Results;
use super::pair::{self, Measured};
use super::place::Place;
use crate::build;
use crate::interop::cache::Cache;
use crate::interop::java::Jdk;
use crate::interop::spark;
use crate::process::Process;

use rows::{FILE, rows};
pub(crate) use table::{judge, print};

/// The names of the contenders in the results. Spark's callers are threads that block for each
/// response; ours are measured as tasks, too.
const TASKS: &str = "ours";
const THREADS: &str = "ours-threads";
const RAW_TASKS: &str = "raw";
const RAW_THREADS: &str = "raw-threads";
const SPARK: &str = "spark";

/// Spark's `Benchmark` class repeats a row for this long before it measures.
const WARM_UP: Duration = Duration::from_secs(2);
const START_TIMEOUT: Duration = Duration::from_secs(60);
const EXIT_TIMEOUT: Duration = Duration::from_secs(20);

/// A quick run divides the number of Spark's calls by this.
const QUICK: usize = 20;

/// Measures the time and the CPU time of each repetition of all rows.
pub(super) fn measure(bench: &Bench, results: &mut Results) -> Result<()> {
    let rows = rows();
    let share = if bench.quick { QUICK } else { 1 };
    let files = tempfile::tempdir()?;
    for index in 0..rows::FILES / share {
        let path = files.path().join(index.to_string());
        // Synced now, so that the disk is idle while chunks are read from the page cache.
        write_file(&path, FILE).and_then(|()| File::open(&path)?.sync_all())?;
    }
    let mut contenders = start(bench, files.path())?;
    let repetitions = if bench.quick { 1 } else { bench.runs + 2 };
    for row in rows {
        let job = TransportJob { calls: row.job.calls / share, ..row.job };
        for (_, process) in &mut contenders {
            let started = Instant::now();
            repeat(process, &job)?;
            while !bench.quick && started.elapsed() < WARM_UP {
                repeat(process, &job)?;
            }
        }
        for _ in 0..repetitions {
            for (name, process) in &mut contenders {
                let measured = repeat(process, &job);
                let measured = measured.with_context(|| format!("{name}, {}", row.id))?;
                eprintln!("{:<18} {name:<14} {:.1} ms", row.id, measured.sample.seconds * 1e3);
                results.add(row.id, name, measured);
            }
            // Each repetition has another order, so that no contender always follows the same one.
            contenders.rotate_left(1);
        }
    }
    for (_, mut process) in contenders {
        process.exit(Instant::now() + EXIT_TIMEOUT)?;
    }
    Ok(())
}

type Contender = (&'static str, Process);

/// Starts a process for each contender.
fn start(bench: &Bench, files: &Path) -> Result<Vec<Contender>> {
    let program = build::bench_program("transport")?;
    let mut commands = Vec::new();
    let forms = [("tasks", TASKS, RAW_TASKS), ("threads", THREADS, RAW_THREADS)];
    let ours = forms.map(|(callers, ours, _)| (ours, callers.to_owned()));
    let raw = forms.map(|(callers, _, raw)| (raw, format!("raw-{callers}")));
    for (name, argument) in ours.into_iter().chain(raw) {
        let mut command = Command::new(&program);
        command.arg(argument);
        commands.push((name, command));
    }
    if let Some(release) = bench.release {
        let (jdk, cache) = (Jdk::find()?, Cache::open()?);
        let jars = spark::every_jar(&cache, release)?;
        commands.push((SPARK, jdk.suites(&cache, release, &jars)?.command()));
    }
    commands
        .into_iter()
        .map(|(name, mut command)| {
            command.arg(files);
            let process =
                Process::start(name, &mut bench.places.command_in(Place::Cubic, command))?;
            pair::ready(&process, Instant::now() + START_TIMEOUT)?;
            Ok((name, process))
        })
        .collect()
}

/// Runs one repetition of `job`.
fn repeat(process: &mut Process, job: &TransportJob) -> Result<Measured> {
    pair::reset_peak(process.id());
    let TransportSample { seconds, cpu_seconds } = pair::run_job(process, job)?;
    let operations = (job.calls / job.callers * job.callers) as u64;
    Ok(Measured {
        sample: Sample { operations, seconds, latency: None },
        cpu_seconds,
        peak_bytes: pair::status(process.id(), "VmHWM:")?,
        server_bytes: 0,
        client_bytes: pair::status(process.id(), "VmRSS:")?,
        system_calls: None,
    })
}
