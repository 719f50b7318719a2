//! The part of [`bench_protocol`] that runs in a measured process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use bench_protocol::{Case, Job, READY, Sample, TransportSample};
use clap::{Parser, Subcommand};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::load::Client;

/// The command line of all measured programs.
#[derive(Debug, Parser)]
#[allow(clippy::exhaustive_structs, reason = "the crate is not published")]
pub struct Arguments {
    /// The role of this process.
    #[command(subcommand)]
    pub role: Role,
}

/// The role of a process.
#[derive(Debug, Subcommand)]
#[allow(clippy::exhaustive_enums, reason = "the crate is not published")]
pub enum Role {
    /// Runs the server of a contender.
    Serve {
        /// The name of the server.
        kind: String,
        /// The file that chunks are read from.
        #[arg(long)]
        file: Option<PathBuf>,
    },
    /// Runs the client of a contender.
    Drive {
        /// The name of the contender.
        kind: String,
        /// The server's address; absent for contenders without a server process.
        address: Option<SocketAddr>,
    },
}

/// Measures the elapsed time and the CPU time of this process.
#[derive(Debug)]
pub struct Stopwatch {
    started: Instant,
    cpu_seconds: f64,
}

impl Stopwatch {
    /// Starts measuring.
    #[must_use]
    pub fn start() -> Self {
        Self { started: Instant::now(), cpu_seconds: cpu_seconds() }
    }

    /// Returns the elapsed time and the CPU time since the start.
    #[must_use]
    pub fn stop(&self) -> TransportSample {
        let seconds = self.started.elapsed().as_secs_f64();
        TransportSample { seconds, cpu_seconds: cpu_seconds() - self.cpu_seconds }
    }
}

fn cpu_seconds() -> f64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

/// Keeps a server alive and rejects all jobs.
#[derive(Debug)]
#[allow(clippy::exhaustive_structs, reason = "the crate is not published")]
pub struct ServerOnly<S>(pub S);

impl<S: Send + 'static> Client for ServerOnly<S> {
    async fn run(&mut self, job: Job) -> anyhow::Result<Sample> {
        Err(unsupported(job.case))
    }
}

/// Announces the server's address, and runs the server's jobs until stdin ends.
///
/// # Errors
/// Fails if a job fails.
pub async fn serve(address: SocketAddr, server: impl Client) -> anyhow::Result<()> {
    println!("{READY} {address}");
    run_jobs(server).await
}

/// Runs the client's jobs until stdin ends.
///
/// # Errors
/// Fails if a job fails.
pub async fn drive(client: impl Client) -> anyhow::Result<()> {
    println!("{READY}");
    run_jobs(client).await
}

async fn run_jobs(mut client: impl Client) -> anyhow::Result<()> {
    // A spawned task runs on a worker thread. The main thread is none, so each wake-up between it
    // and the task of a connection would cross threads.
    let task = tokio::spawn(async move {
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Some(line) = lines.next_line().await? {
            let job: Job = serde_json::from_str(&line).with_context(|| line.clone())?;
            let sample = client.run(job).await.with_context(|| line.clone())?;
            println!("{}", serde_json::to_string(&sample)?);
        }
        anyhow::Ok(())
    });
    task.await?
}

/// Returns the error for a job that a contender does not support.
#[must_use]
pub fn unsupported(case: Case) -> anyhow::Error {
    anyhow::anyhow!("this contender does not support {case:?}")
}
