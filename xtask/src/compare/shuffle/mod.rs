//! Compares external shuffle services (S4 to S7), and block clients of ours (S8).
//!
//! Both services serve the same files to the same load, `benches/shuffle`. They run until the last
//! row is done and take turns.

mod bars;
mod rows;
mod services;
mod table;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use bench_protocol::{Sample, ShuffleJob, ShuffleStep};
use tempfile::TempDir;

use super::Bench;
use super::goals::Results;
use super::pair::{self, Measured};
use crate::process::Process;

pub(crate) use bars::draw;
use rows::{Blocks, CLIENT_ROWS, LARGE, MEDIUM, READ_ROWS, SMALL};
use services::{ServiceSetup, ShufflePrograms};
pub(crate) use table::print;

/// The names of the contenders in the results, as services and as block clients.
const OURS: &str = "ours";
const SPARK: &str = "spark";

/// The runs of each row before the first one that counts, in which a JVM compiles its code.
const WARM_UP_RUNS: usize = 2;
/// The registered executors and the open connections of goal S5.
const EXECUTORS: usize = 50_000;
const CONNECTIONS: usize = 5000;

/// Measures all rows. The shuffle files are in a temporary directory below `output`.
pub(super) fn measure(bench: &Bench, output: &Path, results: &mut Results) -> Result<()> {
    let programs = ShufflePrograms::build(bench.release)?;
    std::fs::create_dir_all(output)?;
    let directory = tempfile::Builder::new().prefix("shuffle-").tempdir_in(output)?;
    let executors = directory.path().canonicalize()?;
    let mut comparison = Comparison { bench, programs, executors, results, _directory: directory };
    comparison.write_files()?;
    comparison.measure_population()?;
    comparison.measure_services()?;
    comparison.measure_clients()
}

struct Comparison<'a> {
    bench: &'a Bench,
    programs: ShufflePrograms,
    /// The directory below which executors have their local directories.
    executors: PathBuf,
    results: &'a mut Results,
    _directory: TempDir,
}

/// A service that is ready, and its load.
struct RunningPair {
    name: &'static str,
    setup: ServiceSetup,
    load: Process,
    service: Process,
    /// The time from the start of the process until it had accepted a registration.
    start: Sample,
}

impl Comparison<'_> {
    fn write_files(&self) -> Result<()> {
        let setup = ServiceSetup::new(&self.executors)?;
        let mut load = self.programs.start_load(&self.bench.places, &setup)?;
        for blocks in [LARGE, MEDIUM, SMALL] {
            self.run(&mut load, self.job(ShuffleStep::Write, &blocks))?;
        }
        let executors = ShuffleJob {
            population: self.scaled(EXECUTORS),
            ..self.job(ShuffleStep::CreateExecutors, &SMALL)
        };
        self.run(&mut load, executors).map(drop)
    }

    /// Measures the start of services, and their memory with many executors and connections.
    fn measure_population(&mut self) -> Result<()> {
        let job = |comparison: &Self, step, population| ShuffleJob {
            population: comparison.scaled(population),
            ..comparison.job(step, &SMALL)
        };
        for _ in 0..self.bench.runs {
            for name in self.programs.names() {
                let mut pair = self.start(name)?;
                let measured = pair.measured(pair.start.clone(), 0.0)?;
                self.add("shuffle-start", name, measured);
                let register = job(self, ShuffleStep::RegisterExecutors, EXECUTORS);
                let before = pair::cpu_seconds(pair.service.id())?;
                let sample = self.run(&mut pair.load, register)?;
                let measured = pair.measured(sample, before)?;
                self.add("shuffle-register", name, measured);
                let connect = job(self, ShuffleStep::Connect, CONNECTIONS);
                let sample = self.run(&mut pair.load, connect)?;
                let measured = pair.measured(sample, before)?;
                self.add("shuffle-population", name, measured);
            }
        }
        Ok(())
    }

    /// Measures reads and single fetches.
    fn measure_services(&mut self) -> Result<()> {
        let names = self.programs.names();
        let mut pairs: Vec<_> =
            names.into_iter().map(|name| self.start(name)).collect::<Result<_>>()?;
        let mut bulk_loads: Vec<_> = pairs
            .iter()
            .map(|pair| self.programs.start_load(&self.bench.places, &pair.setup))
            .collect::<Result<_>>()?;
        for run in 0..self.runs() {
            let is_counted = run >= self.warm_up_runs();
            for row in READ_ROWS {
                for pair in &mut pairs {
                    let job = self.timed(self.job(ShuffleStep::Read, &row.blocks), row.reducers);
                    let measured = pair.run(&job).with_context(|| pair.name)?;
                    if is_counted {
                        self.add(row.id, pair.name, measured);
                    }
                }
            }
            for (pair, bulk_load) in pairs.iter_mut().zip(&mut bulk_loads) {
                let bulk = self.timed(self.job(ShuffleStep::Read, &LARGE), 1);
                pair::send_job(bulk_load, &bulk)?;
                let fetch = self.timed(self.job(ShuffleStep::Fetch, &SMALL), SMALL.reducers);
                let measured = pair.run(&fetch).with_context(|| pair.name)?;
                let bulk = Measured { sample: pair::read_sample(bulk_load)?, ..measured.clone() };
                if is_counted {
                    self.add("shuffle-beside", pair.name, measured);
                    self.add("shuffle-beside-bulk", pair.name, bulk);
                }
            }
            // Each run has another order, so that no service always follows the same one.
            pairs.reverse();
            bulk_loads.reverse();
        }
        Ok(())
    }

    /// Measures block clients, which read from our service.
    fn measure_clients(&mut self) -> Result<()> {
        let RunningPair { setup, load, service: _service, .. } = self.start(OURS)?;
        let mut clients = vec![(OURS, load)];
        let spark = self.programs.start_spark_client(&self.bench.places, &setup)?;
        clients.extend(spark.map(|client| (SPARK, client)));
        for run in 0..self.runs() {
            for row in CLIENT_ROWS {
                for (name, client) in &mut clients {
                    let mut job =
                        self.timed(self.job(ShuffleStep::Read, &row.blocks), row.reducers);
                    if row.is_short {
                        job.millis = 0;
                    }
                    pair::reset_peak(client.id());
                    let before = pair::cpu_seconds(client.id())?;
                    let sample = self.run(client, job).with_context(|| *name)?;
                    if run >= self.warm_up_runs() {
                        self.add(row.id, name, measured(client, sample, before)?);
                    }
                }
            }
            clients.reverse();
        }
        Ok(())
    }

    /// Starts a service and its load, and waits until the service has accepted a registration.
    fn start(&self, name: &'static str) -> Result<RunningPair> {
        let setup = ServiceSetup::new(&self.executors)?;
        let mut load = self.programs.start_load(&self.bench.places, &setup)?;
        let started = Instant::now();
        let service = self.programs.start_service(name, &self.bench.places, &setup)?;
        let registered = self.run(&mut load, self.job(ShuffleStep::Register, &SMALL));
        let log = || format!("the service {name}:\n{}", service.stderr().join("\n"));
        registered.with_context(log)?;
        let seconds = started.elapsed().as_secs_f64();
        let start = Sample { operations: 1, seconds, latency: None };
        Ok(RunningPair { name, setup, load, service, start })
    }

    fn run(&self, process: &mut Process, job: ShuffleJob) -> Result<Sample> {
        pair::run_job(process, &job)
    }

    fn add(&mut self, id: &'static str, name: &'static str, measured: Measured) {
        eprintln!("{id:<18} {name:<14} {:.0}/s", super::rate(&measured));
        self.results.add(id, name, measured);
    }

    fn warm_up_runs(&self) -> usize {
        if self.bench.quick { 1 } else { WARM_UP_RUNS }
    }

    /// Returns the number of runs with those that do not count.
    fn runs(&self) -> usize {
        let more = if self.bench.quick { 0 } else { 2 };
        self.warm_up_runs() + self.bench.runs + more
    }

    /// Returns a number of files, executors or connections, which is smaller in a quick run.
    fn scaled(&self, count: usize) -> usize {
        if self.bench.quick { count.div_ceil(50) } else { count }
    }

    /// Returns a job that reads the shuffle of `blocks` once.
    fn job(&self, step: ShuffleStep, blocks: &Blocks) -> ShuffleJob {
        ShuffleJob {
            step,
            bytes: blocks.bytes,
            maps: self.scaled(blocks.maps),
            reducers: blocks.reducers,
            population: 0,
            millis: 0,
        }
    }

    fn timed(&self, job: ShuffleJob, reducers: usize) -> ShuffleJob {
        ShuffleJob { reducers, millis: self.bench.millis, ..job }
    }
}

impl RunningPair {
    /// Runs a job in the load, and measures the service.
    fn run(&mut self, job: &ShuffleJob) -> Result<Measured> {
        pair::reset_peak(self.service.id());
        let before = pair::cpu_seconds(self.service.id())?;
        let sample = pair::run_job(&mut self.load, job)?;
        self.measured(sample, before)
    }

    fn measured(&self, sample: Sample, cpu_before: f64) -> Result<Measured> {
        measured(&self.service, sample, cpu_before)
    }
}

/// Returns a sample with the CPU time and the memory of one process.
fn measured(process: &Process, sample: Sample, cpu_before: f64) -> Result<Measured> {
    let id = process.id();
    Ok(Measured {
        sample,
        cpu_seconds: pair::cpu_seconds(id)? - cpu_before,
        peak_bytes: pair::status(id, "VmHWM:")?,
        server_bytes: pair::status(id, "VmRSS:")?,
        client_bytes: 0,
        system_calls: None,
    })
}
