//! The load of `cargo xtask compare --only shuffle`: `shuffle-load DIRECTORY ADDRESS`.
//!
//! It writes shuffle files below `DIRECTORY`, registers executors with the shuffle service at
//! `ADDRESS`, and fetches blocks from it. Each line of stdin is a [`ShuffleJob`], and the program
//! prints one line with the [`Sample`].

#![forbid(unsafe_code)]

mod files;
mod population;
mod read;

use std::env;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use bench_protocol::{READY, Sample, ShuffleJob, ShuffleStep};
use network_common::{NoOpRpcHandler, TransportClientFactory, TransportConf, TransportContext};

use files::Files;
use population::Population;
use read::Readers;

/// The application and the executor whose blocks are read.
const APP: &str = "app-1";
const EXECUTOR: &str = "1";

fn main() -> anyhow::Result<()> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [directory, address] = &arguments[..] else {
        bail!("the arguments are not DIRECTORY ADDRESS")
    };
    let address = address.parse().with_context(|| address.clone())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut load = Load::new(directory.into(), address);
    println!("{READY}");
    for line in std::io::stdin().lines() {
        let line = line?;
        let job: ShuffleJob = serde_json::from_str(&line).with_context(|| line.clone())?;
        // A spawned task runs on a worker thread, which the main thread is not.
        let task = runtime.spawn(async move { (load.run(&job).await, load) });
        let (sample, same_load) = runtime.block_on(task)?;
        load = same_load;
        println!("{}", serde_json::to_string(&sample.with_context(|| line)?)?);
    }
    Ok(())
}

/// The state of the client between its jobs.
struct Load {
    files: Files,
    readers: Readers,
    population: Population,
}

impl Load {
    fn new(directory: PathBuf, address: SocketAddr) -> Self {
        Self {
            files: Files::new(directory),
            readers: Readers::new(address),
            population: Population::new(address),
        }
    }

    async fn run(&mut self, job: &ShuffleJob) -> anyhow::Result<Sample> {
        let start = Instant::now();
        let operations = match job.step {
            ShuffleStep::Write => self.files.write(job)?,
            ShuffleStep::Register => self.population.register(&self.files).await?,
            ShuffleStep::Read => self.readers.read(job).await?,
            ShuffleStep::Fetch => return self.readers.fetch(job).await,
            ShuffleStep::CreateExecutors => self.files.create_executors(job.population)?,
            ShuffleStep::RegisterExecutors => {
                self.population.register_executors(&self.files, job.population).await?
            }
            ShuffleStep::Connect => self.population.connect(job).await?,
        };
        let seconds = start.elapsed().as_secs_f64();
        Ok(Sample { operations, seconds, latency: None })
    }
}

/// Returns a pool of connections with the defaults of the module `shuffle`.
fn connections() -> TransportClientFactory {
    context().create_client_factory()
}

fn context() -> TransportContext {
    TransportContext::new(TransportConf::new("shuffle"), NoOpRpcHandler::new())
}
