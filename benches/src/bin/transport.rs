//! Runs Spark's `NettyTransportBenchmark` with network-common, or with plain tokio as the limit.

use std::path::PathBuf;

use anyhow::Context;
use bench_protocol::{READY, TransportJob, TransportSample};
use benches::limits::RawSuites;
use benches::ours::{Callers, TransportSuites};
use clap::{Parser, ValueEnum};

#[derive(Parser)]
struct TransportArguments {
    /// The transport, and whether tasks or threads call it
    contender: Contender,
    /// The directory of the files that chunks are read from
    files: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum Contender {
    /// network-common, called by tasks
    Tasks,
    /// network-common, called by threads
    Threads,
    /// Plain tokio instead of network-common, called by tasks
    RawTasks,
    /// Plain tokio instead of network-common, called by threads
    RawThreads,
}

fn main() -> anyhow::Result<()> {
    let arguments = TransportArguments::parse();
    let files = std::fs::read_dir(&arguments.files)?.map(|entry| Ok(entry?.path()));
    let files = files.collect::<anyhow::Result<Vec<_>>>()?;
    let callers = match arguments.contender {
        Contender::Tasks | Contender::RawTasks => Callers::Tasks,
        Contender::Threads | Contender::RawThreads => Callers::Threads,
    };
    match arguments.contender {
        Contender::Tasks | Contender::Threads => {
            let mut suites = TransportSuites::new(callers, files)?;
            run_jobs(|job| suites.run(job))
        }
        Contender::RawTasks | Contender::RawThreads => {
            let mut suites = RawSuites::new(callers, files)?;
            run_jobs(|job| suites.run(job))
        }
    }
}

/// Runs the job of each line of stdin and prints its sample, until stdin ends.
fn run_jobs<F>(mut run: F) -> anyhow::Result<()>
where
    F: FnMut(TransportJob) -> anyhow::Result<TransportSample>,
{
    println!("{READY}");
    for line in std::io::stdin().lines() {
        let line = line?;
        let sample = run(serde_json::from_str(&line)?).with_context(|| line.clone())?;
        println!("{}", serde_json::to_string(&sample)?);
    }
    Ok(())
}
