//! A measured process: its side of [`bench_protocol`].

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use bench_protocol::{Case, Job, READY, Sample, TransportSample};
use clap::{Parser, Subcommand};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::load::Client;

/// The command line that all measured programs have.
#[derive(Debug, Parser)]
#[allow(clippy::exhaustive_structs, reason = "a bench")]
pub struct Arguments {
    /// What this process is.
    #[command(subcommand)]
    pub role: Role,
}

/// What a process is.
#[derive(Debug, Subcommand)]
#[allow(clippy::exhaustive_enums, reason = "a bench")]
pub enum Role {
    /// Serves.
    Serve {
        /// Which contender.
        kind: String,
        /// The file that chunks are taken from.
        #[arg(long)]
        file: Option<PathBuf>,
    },
    /// Does jobs.
    Drive {
        /// Which contender.
        kind: String,
        /// Where it is served; none for those that are in one process.
        address: Option<SocketAddr>,
    },
}

/// Measures the time and the CPU time of a repetition in this process.
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

    /// Returns the time and the CPU time since the start.
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

/// A server without jobs of its own.
#[derive(Debug)]
#[allow(clippy::exhaustive_structs, reason = "a bench")]
pub struct Serving<S>(pub S);

impl<S: Send + 'static> Client for Serving<S> {
    async fn run(&mut self, job: Job) -> anyhow::Result<Sample> {
        Err(cannot(job.case))
    }
}

/// Serves at `address` until stdin ends.
///
/// # Errors
/// When a job fails.
pub async fn serve(address: SocketAddr, server: impl Client) -> anyhow::Result<()> {
    println!("{READY} {address}");
    answer(server).await
}

/// Does jobs until stdin ends.
///
/// # Errors
/// When a job fails.
pub async fn drive(client: impl Client) -> anyhow::Result<()> {
    println!("{READY}");
    answer(client).await
}

async fn answer(mut client: impl Client) -> anyhow::Result<()> {
    // On a worker: the main thread is not one, and every wake from there to a connection would
    // cross threads.
    let answering = tokio::spawn(async move {
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Some(line) = lines.next_line().await? {
            let job: Job = serde_json::from_str(&line).with_context(|| line.clone())?;
            let sample = client.run(job).await.with_context(|| line.clone())?;
            println!("{}", serde_json::to_string(&sample)?);
        }
        anyhow::Ok(())
    });
    answering.await?
}

/// The error for a job that a contender was not made for.
#[must_use]
pub fn cannot(case: Case) -> anyhow::Error {
    anyhow::anyhow!("{case:?} is not what this contender does")
}
