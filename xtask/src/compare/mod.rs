//! `cargo xtask compare`: measures our crates, limit programs, other libraries and Spark.
//!
//! A contender is usually a server and a client process, which receive jobs over stdin
//! (`benches/protocol`). All contenders of a group run at the same time and take turns: in each run
//! each of them does each job once. A disturbance of the machine affects all of them, so only
//! ratios within one run are judged.

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
mod shuffle;
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

/// The text of `cargo xtask compare --help` below the options.
pub(crate) const HELP: &str = "\
Builds benches and benches/peers in release mode, and downloads Spark with all its jars into the
cache of `cargo xtask interop`. The groups bulk, secure, beside, transport and shuffle use
a network namespace whose loopback has the congestion control cubic, if `unshare -n` is allowed.
System calls are counted if strace is installed.
Writes compare.json and SVG charts into the output directory.
Figures of different runs are not comparable; use the ratios within one run.";

/// The options of `cargo xtask compare`.
#[derive(Args)]
pub(crate) struct CompareOptions {
    /// Run only these groups
    #[arg(long, value_delimiter = ',')]
    only: Vec<GroupName>,
    /// Number of runs; bulk, secure, beside, transport and shuffle have two more
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Duration of each job that has no fixed number of operations
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 2000)]
    millis: u64,
    /// Only check that everything runs: one run, short jobs, small populations
    #[arg(long)]
    quick: bool,
    /// Exit with status 1 if a goal is missed
    #[arg(long)]
    check: bool,
    /// Append the ratios to benches/history.jsonl and redraw docs/history.svg
    #[arg(long, conflicts_with = "quick")]
    record: bool,
    /// Do not measure other libraries
    #[arg(long)]
    no_peers: bool,
    /// Do not measure Spark
    #[arg(long)]
    no_spark: bool,
    /// Release of Spark
    #[arg(long, default_value = "4.3.0")]
    release: Release,
    /// Directory for the results
    #[arg(long, value_name = "DIRECTORY", default_value = "target/compare")]
    output: PathBuf,
}

/// The options of `cargo xtask scale`.
#[derive(Args)]
pub(crate) struct ScaleOptions {
    /// Number of measurements of each population
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Only check that everything runs, with small populations
    #[arg(long)]
    quick: bool,
    /// Do not measure other libraries
    #[arg(long)]
    no_peers: bool,
    /// Directory for the results
    #[arg(long, value_name = "DIRECTORY", default_value = "target/scale")]
    output: PathBuf,
}

/// Runs the comparison. Returns false if `--check` is set and a goal is missed.
pub(crate) fn run(options: &CompareOptions) -> Result<bool> {
    let release = (!options.no_spark).then_some(options.release);
    let wanted = |group| options.only.is_empty() || options.only.contains(&group);
    // These groups have their own files and programs.
    let is_separate = |group| matches!(group, GroupName::Transport | GroupName::Shuffle);
    let only_separate = !options.only.is_empty() && options.only.iter().copied().all(is_separate);
    let file_size = match options.quick {
        _ if only_separate => 0,
        true => 64 << 20,
        false => 1 << 30,
    };
    let bench = Bench {
        programs: if only_separate {
            Programs::default()
        } else {
            Programs::build(!options.no_peers, release)?
        },
        places: Places::new(),
        files: Files::new(file_size)?,
        runs: if options.quick { 1 } else { options.runs },
        millis: if options.quick { 100 } else { options.millis },
        quick: options.quick,
        release,
    };
    let mut results = Results::default();
    let measurements = measurements();
    for group in GroupName::value_variants().iter().copied().filter(|group| wanted(*group)) {
        // These groups are more than a list of independent jobs.
        match group {
            GroupName::Scale => scale::measure(&bench, &mut results)?,
            GroupName::Rate => rate::measure(&bench, &mut results)?,
            GroupName::Transport => transport::measure(&bench, &mut results)?,
            GroupName::Shuffle => shuffle::measure(&bench, &options.output, &mut results)?,
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

/// Measures idle populations. Returns true.
pub(crate) fn scale(options: &ScaleOptions) -> Result<bool> {
    let bench = Bench {
        programs: Programs::build(!options.no_peers, None)?,
        places: Places::new(),
        files: Files::new(0)?,
        runs: if options.quick { 1 } else { options.runs },
        millis: if options.quick { 100 } else { 2000 },
        quick: options.quick,
        release: None,
    };
    let mut results = Results::default();
    scale::measure(&bench, &mut results)?;
    finish(&bench, &[], &results, &options.output, false)?;
    Ok(true)
}

/// Prints and writes the results. Returns whether all judged goals are met.
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
    shuffle::print(results);
    report::print_goals(&verdicts);
    fs::create_dir_all(output).with_context(|| output.display().to_string())?;
    report::write_json(&output.join("compare.json"), &conditions, results, &verdicts)?;
    picture::draw(output, measurements, results)?;
    shuffle::draw(output, bench.release, results)?;
    println!("\nwritten to {}", output.display());
    if is_recorded {
        history::record(&conditions, &verdicts)?;
    }
    Ok(verdicts.iter().all(|verdict| verdict.met))
}

/// The programs and parameters of all measurements.
struct Bench {
    programs: Programs,
    places: Places,
    files: Files,
    runs: usize,
    millis: u64,
    quick: bool,
    /// The release of Spark, if it is measured.
    release: Option<Release>,
}

impl Bench {
    /// Starts the processes of a contender.
    fn start(&self, place: Place, name: &str) -> Result<Pair> {
        eprintln!("starting {name}");
        Pair::start(&self.programs, &self.places, place, contender(name), &self.files.path)
            .with_context(|| name.to_owned())
    }

    /// Returns `job` with the duration or the number of operations of this run.
    fn timed(&self, job: Job) -> Job {
        let until = match job.until {
            Until::Millis(_) => Until::Millis(self.millis),
            Until::Operations(count) if self.quick => Until::Operations(count.min(10_000)),
            counted => counted,
        };
        Job { until, ..job }
    }

    /// Does all runs of measurements that share a place.
    fn group(&self, measurements: &[&Measurement], results: &mut Results) -> Result<()> {
        let mut pairs = BTreeMap::new();
        for name in measurements.iter().flat_map(|measurement| measurement.contenders) {
            if self.programs.has(contender(name)) && !pairs.contains_key(name) {
                pairs.insert(*name, self.start(measurements[0].place, name)?);
            }
        }
        let has_more_runs = measurements
            .iter()
            .any(|m| matches!(m.group, GroupName::Bulk | GroupName::Secure | GroupName::Beside));
        let runs = if has_more_runs && !self.quick { self.runs + 2 } else { self.runs };
        for run in 0..=runs {
            for measurement in measurements {
                let job = self.timed(measurement.job);
                for name in measurement.contenders {
                    let Some(pair) = pairs.get_mut(name) else { continue };
                    let context = || format!("{name}, {}", measurement.id);
                    let measured = match pair.run(&job).with_context(context) {
                        Ok(measured) => measured,
                        // The other contenders can still be measured.
                        Err(error) if contender(name).side == Side::Peer => {
                            eprintln!("{name} failed and is not measured further: {error:?}");
                            pairs.remove(name);
                            continue;
                        }
                        Err(error) => return Err(error),
                    };
                    // The first run warms up connections, allocators and JVMs.
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

/// The file that chunks are read from.
struct Files {
    path: PathBuf,
    _directory: TempDir,
}

impl Files {
    /// Creates a file of `size` bytes. It is in the page cache because it was just written.
    fn new(size: usize) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("chunks");
        write_file(&path, size).with_context(|| path.display().to_string())?;
        Ok(Self { path, _directory: directory })
    }
}
