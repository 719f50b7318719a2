//! `cargo xtask compare`: ours beside the limits of the machine, other libraries and real Spark.
//!
//! Every contender is a server process and a client process that are driven as `benches/protocol`
//! says. In a group all of them run, and in every run each does each job once, in turns: what
//! disturbs the machine disturbs them alike, and only ratios inside one run are judged.

mod contenders;
mod goals;
mod history;
mod pair;
mod picture;
mod place;
mod plan;
mod rate;
mod report;
mod scale;
mod transport;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bench_protocol::{Job, Until, write_file};
use clap::{Args, ValueEnum};
use tempfile::TempDir;

use contenders::{Programs, Side, contender};
use goals::Results;
use pair::Pair;
use place::{Place, Places};
use plan::{GroupName, Measurement, measurements};

use crate::interop::release::Release;

/// What the options do not say.
pub(crate) const HELP: &str = "\
Builds benches and benches/peers in release mode, and fetches Spark as `cargo xtask interop` does (here with all its jars).
Bulk groups run in a network namespace whose loopback uses cubic, if `unshare -n` is allowed. System calls are counted if strace
is there. Writes compare.json and a picture for each plane into the output directory. Only ratios inside one run mean anything.";

/// What `cargo xtask compare` takes.
#[derive(Args)]
pub(crate) struct Options {
    /// Only these groups
    #[arg(long, value_delimiter = ',')]
    only: Vec<GroupName>,
    /// Interleaved runs; bulk, secure, beside and transport have two more
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// How long each job takes
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 2000)]
    millis: u64,
    /// A smoke run: one run of short jobs and small populations; says nothing about speed
    #[arg(long)]
    quick: bool,
    /// Exit with 1 when a goal is missed
    #[arg(long)]
    check: bool,
    /// Append the judged ratios to benches/history.jsonl, and draw docs/history.svg anew
    #[arg(long, conflicts_with = "quick")]
    record: bool,
    /// Leave the other libraries out
    #[arg(long)]
    no_peers: bool,
    /// Leave real Spark out
    #[arg(long)]
    no_spark: bool,
    /// The release of real Spark
    #[arg(long, default_value = "4.3.0")]
    release: Release,
    /// Where the results go
    #[arg(long, value_name = "DIRECTORY", default_value = "target/compare")]
    output: PathBuf,
}

/// What `cargo xtask scale` takes.
#[derive(Args)]
pub(crate) struct ScaleOptions {
    /// Measurements of each population
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// A smoke run with small populations
    #[arg(long)]
    quick: bool,
    /// Leave the other libraries out
    #[arg(long)]
    no_peers: bool,
    /// Where the results go
    #[arg(long, value_name = "DIRECTORY", default_value = "target/scale")]
    output: PathBuf,
}

/// Compares; false when goals were to be checked and one was missed.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let release = (!options.no_spark).then_some(options.release);
    let wanted = |group| options.only.is_empty() || options.only.contains(&group);
    // The transport group has files and programs of its own.
    let is_transport_only = options.only == [GroupName::Transport];
    let file_size = match options.quick {
        _ if is_transport_only => 0,
        true => 64 << 20,
        false => 1 << 30,
    };
    let bench = Bench {
        programs: Programs::build(!is_transport_only && !options.no_peers, release)?,
        places: Places::new(),
        files: Files::new(file_size)?,
        runs: if options.quick { 1 } else { options.runs },
        millis: if options.quick { 100 } else { options.millis },
        quick: options.quick,
    };
    let mut results = Results::default();
    let measurements = measurements();
    for group in GroupName::value_variants().iter().copied().filter(|group| wanted(*group)) {
        // Groups that are more than a list of independent jobs run themselves.
        match group {
            GroupName::Scale => scale::measure(&bench, &mut results)?,
            GroupName::Rate => rate::measure(&bench, &mut results)?,
            GroupName::Transport => transport::measure(&bench, release, &mut results)?,
            _ => {}
        }
        for place in [Place::Pinned, Place::Free, Place::Cubic] {
            let together: Vec<_> =
                measurements.iter().filter(|m| (m.group, m.place) == (group, place)).collect();
            bench.group(&together, &mut results)?;
        }
    }
    let met = finish(&bench, &measurements, &results, &options.output, options.record)?;
    Ok(met || !options.check)
}

/// Measures populations; always true.
pub(crate) fn scale(options: &ScaleOptions) -> Result<bool> {
    let bench = Bench {
        programs: Programs::build(!options.no_peers, None)?,
        places: Places::new(),
        files: Files::new(0)?,
        runs: if options.quick { 1 } else { options.runs },
        millis: if options.quick { 100 } else { 2000 },
        quick: options.quick,
    };
    let mut results = Results::default();
    scale::measure(&bench, &mut results)?;
    finish(&bench, &[], &results, &options.output, false)?;
    Ok(true)
}

/// Prints, writes, draws and records; returns whether all goals that could be judged are met.
fn finish(
    bench: &Bench,
    measurements: &[Measurement],
    results: &Results,
    output: &Path,
    is_recorded: bool,
) -> Result<bool> {
    let mut verdicts = goals::judge(results);
    verdicts.extend(transport::judge(results));
    let conditions = report::conditions(&bench.places, bench.quick, bench.runs);
    report::print(&conditions, measurements, results);
    rate::print(results);
    transport::print(results);
    report::print_goals(&verdicts);
    fs::create_dir_all(output).with_context(|| output.display().to_string())?;
    report::write_json(&output.join("compare.json"), &conditions, results, &verdicts)?;
    picture::draw(output, measurements, results)?;
    println!("\nwritten to {}", output.display());
    if is_recorded {
        history::record(&conditions, &verdicts)?;
    }
    Ok(verdicts.iter().all(|verdict| verdict.met))
}

/// What all measurements need.
struct Bench {
    programs: Programs,
    places: Places,
    files: Files,
    runs: usize,
    millis: u64,
    quick: bool,
}

impl Bench {
    /// Starts a contender.
    fn start(&self, place: Place, name: &str) -> Result<Pair> {
        eprintln!("starting {name}");
        Pair::start(&self.programs, &self.places, place, contender(name), &self.files.path)
            .with_context(|| name.to_owned())
    }

    /// `job` as long as this run's jobs are.
    fn timed(&self, job: Job) -> Job {
        let until = match job.until {
            Until::Millis(_) => Until::Millis(self.millis),
            Until::Operations(count) if self.quick => Until::Operations(count.min(10_000)),
            counted => counted,
        };
        Job { until, ..job }
    }

    /// All runs of measurements that share a place.
    fn group(&self, measurements: &[&Measurement], results: &mut Results) -> Result<()> {
        let mut pairs = BTreeMap::new();
        for name in measurements.iter().flat_map(|measurement| measurement.contenders) {
            if self.programs.have(contender(name)) && !pairs.contains_key(name) {
                pairs.insert(*name, self.start(measurements[0].place, name)?);
            }
        }
        let more = measurements
            .iter()
            .any(|m| matches!(m.group, GroupName::Bulk | GroupName::Secure | GroupName::Beside));
        let runs = if more && !self.quick { self.runs + 2 } else { self.runs };
        for run in 0..=runs {
            for measurement in measurements {
                let job = self.timed(measurement.job);
                for name in measurement.contenders {
                    let Some(pair) = pairs.get_mut(name) else { continue };
                    let context = || format!("{name}, {}", measurement.id);
                    let measured = match pair.run(&job).with_context(context) {
                        Ok(measured) => measured,
                        // The others can still be measured.
                        Err(error) if contender(name).side == Side::Peer => {
                            eprintln!("left out from here on: {error:?}");
                            pairs.remove(name);
                            continue;
                        }
                        Err(error) => return Err(error),
                    };
                    // The first one warms up: connections, allocators, and JVMs more than all.
                    if run > 0 {
                        eprintln!("{:<18} {name:<14} {:.0}/s", measurement.id, rate(&measured));
                        results.add(measurement.id, name, measured);
                    } else if measurement.traced
                        && let Some(traced) = pair.run_traced(&job).with_context(context)?
                    {
                        results.add(measurement.id, name, traced);
                    }
                }
            }
        }
        Ok(())
    }
}

fn rate(measured: &pair::Measured) -> f64 {
    measured.sample.operations as f64 / measured.sample.seconds
}

/// The file that chunks are taken from.
struct Files {
    path: PathBuf,
    _directory: TempDir,
}

impl Files {
    /// One of `size` bytes, which is in the page cache as it has just been written.
    fn new(size: usize) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("chunks");
        write_file(&path, size).with_context(|| path.display().to_string())?;
        Ok(Self { path, _directory: directory })
    }
}
