//! Runs seeded plays on a simulated network, and reports the first seed that violates a promise.

mod bulk;
mod outcome;
mod play;
mod rpc;
mod shrink;

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::{Parser, ValueEnum};
use parking_lot::Mutex;

use outcome::{Counts, Outcome};

/// The text of errors and panics that are part of a play.
const INTENDED_FAILURE: &str = "intended failure";

/// Every kind of event that must have occurred in this many seeds or more.
const SEEDS_FOR_EVERY_KIND: u64 = 2_000;

#[derive(Parser)]
struct Options {
    /// Number of seeds to run
    #[arg(long, default_value_t = 20_000)]
    seeds: u64,
    /// First seed
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Plays to run
    #[arg(long, value_enum, default_value_t = PlayKind::All)]
    play: PlayKind,
    /// Run this many seeds twice and compare the traces
    #[arg(long, default_value_t = 0)]
    replay: u64,
    /// Print the timeline of the seed `--from` instead
    #[arg(long)]
    timeline: bool,
    /// Do not look for fewer steps that fail as well
    #[arg(long)]
    no_shrink: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum PlayKind {
    Rpc,
    Bulk,
    All,
}

fn main() -> ExitCode {
    silence_intended_panics();
    let options = Options::parse();
    let kinds: &[PlayKind] = match options.play {
        PlayKind::All => &[PlayKind::Rpc, PlayKind::Bulk],
        PlayKind::Rpc => &[PlayKind::Rpc],
        PlayKind::Bulk => &[PlayKind::Bulk],
    };
    let is_ok = kinds.iter().all(|kind| {
        if options.timeline {
            print_timeline(*kind, options.from)
        } else {
            run_seeds(*kind, &options)
        }
    });
    if is_ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Panics that endpoints raise on purpose print nothing.
fn silence_intended_panics() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if info.payload().downcast_ref() != Some(&INTENDED_FAILURE) {
            default(info);
        }
    }));
}

fn name(kind: PlayKind) -> &'static str {
    match kind {
        PlayKind::Rpc => "rpc",
        PlayKind::Bulk => "bulk",
        PlayKind::All => "all",
    }
}

fn run_seed(kind: PlayKind, seed: u64, with_timeline: bool) -> Outcome {
    match kind {
        PlayKind::Bulk => bulk::run(seed, &bulk::generate_steps(seed), with_timeline),
        PlayKind::Rpc | PlayKind::All => rpc::run(seed, &rpc::generate_steps(seed), with_timeline),
    }
}

/// Runs all seeds on two threads. Returns whether all promises held.
fn run_seeds(kind: PlayKind, options: &Options) -> bool {
    let started = Instant::now();
    let end = options.from + options.seeds;
    let next = AtomicU64::new(options.from);
    let counts = Mutex::new(Counts::default());
    let failed = Mutex::new(None::<(u64, Vec<String>)>);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while failed.lock().is_none() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let mut outcome = run_seed(kind, seed, false);
                    if seed < options.from + options.replay {
                        let again = run_seed(kind, seed, false);
                        if again.trace_hash != outcome.trace_hash {
                            outcome.violations.push("the same seed made two runs".to_owned());
                        }
                    }
                    counts.lock().add_all(&outcome.counts);
                    if !outcome.violations.is_empty() {
                        let mut failed = failed.lock();
                        failed.get_or_insert((seed, outcome.violations));
                    }
                }
            });
        }
    });
    let seconds = started.elapsed().as_secs_f64();
    println!("{}: {} seeds in {seconds:.1} s", name(kind), options.seeds);
    let counts = counts.into_inner();
    counts.0.iter().for_each(|(name, count)| println!("  {name}: {count}"));
    if let Some((seed, violations)) = failed.into_inner() {
        report(kind, seed, &violations, !options.no_shrink);
        return false;
    }
    let never: Vec<&String> =
        counts.0.iter().filter(|(_, count)| **count == 0).map(|(name, _)| name).collect();
    if options.seeds >= SEEDS_FOR_EVERY_KIND && !never.is_empty() {
        println!("{}: these never occurred: {never:?}", name(kind));
        return false;
    }
    true
}

/// Prints the violations of a seed, and if `shrinks` the fewest steps that still cause one.
fn report(kind: PlayKind, seed: u64, violations: &[String], shrinks: bool) {
    println!("{} play of seed {seed} violates:", name(kind));
    violations.iter().for_each(|text| println!("  {text}"));
    if !shrinks {
        return;
    }
    let timeline = match kind {
        PlayKind::Bulk => shrink::shrink(bulk::generate_steps(seed), |steps, with_timeline| {
            bulk::run(seed, steps, with_timeline)
        }),
        PlayKind::Rpc | PlayKind::All => {
            shrink::shrink(rpc::generate_steps(seed), |steps, with_timeline| {
                rpc::run(seed, steps, with_timeline)
            })
        }
    };
    println!("the timeline of the fewest steps that violate a promise:");
    timeline.iter().for_each(|line| println!("{line}"));
}

fn print_timeline(kind: PlayKind, seed: u64) -> bool {
    let outcome = run_seed(kind, seed, true);
    outcome.timeline.iter().for_each(|line| println!("{line}"));
    outcome.violations.iter().for_each(|text| println!("violation: {text}"));
    outcome.violations.is_empty()
}
