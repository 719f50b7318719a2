//! Measures latency at fixed request rates (R1).
//!
//! A closed loop measures the capacity of each contender. An open loop then measures its latency at
//! shares of that capacity, and the latency of all contenders at half of tonic's capacity.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use bench_protocol::{Case, Job};

use super::Bench;
use super::contenders::{Side, contender};
use super::goals::{Metric, Results};
use super::pair::{Measured, Pair};
use super::place::Place;

/// `batched` is the limit program on plain tokio. `timer` completes its own requests, so its
/// latency is the error of the open loop.
const CONTENDERS: [&str; 6] = ["ours", "ours-rpc", "batched", "timer", "tarpc", "tonic"];
const CAPACITY: &str = "capacity";
/// The names of the points, and the share of the contender's own capacity.
const SHARES: [(&str, f64); 3] = [("rate-10", 0.1), ("rate-50", 0.5), ("rate-80", 0.8)];
/// The point at which all contenders have the same rate: half of tonic's capacity.
const SAME_RATE: &str = "rate-tonic";

/// Runs the group.
pub(super) fn measure(bench: &Bench, results: &mut Results) -> Result<()> {
    let mut pairs = BTreeMap::new();
    for name in CONTENDERS.into_iter().filter(|name| bench.programs.has(contender(name))) {
        pairs.insert(name, bench.start(Place::Free, name)?);
    }
    let closed_loop = bench.timed(Job { window: 128, ..Job::new(Case::Echo) });
    for run in 0..=bench.runs {
        let mut capacities = BTreeMap::new();
        for (name, pair) in pairs.iter_mut().filter(|(name, _)| **name != "timer") {
            let measured = pair.run(&closed_loop).with_context(|| (*name).to_owned())?;
            capacities.insert(*name, super::rate(&measured));
            // The first run warms up connections and allocators.
            if run > 0 {
                results.add(CAPACITY, name, measured);
            }
        }
        if run == 0 {
            continue;
        }
        for (point, share) in SHARES {
            for (name, capacity) in &capacities {
                let pair = pairs.get_mut(name).context("no contender of this name")?;
                let measured = at_rate(bench, pair, name, point, share * capacity)?;
                results.add(point, name, measured);
            }
        }
        let Some(tonic) = capacities.get("tonic") else { continue };
        for (name, pair) in &mut pairs {
            results.add(SAME_RATE, name, at_rate(bench, pair, name, SAME_RATE, tonic / 2.0)?);
        }
    }
    Ok(())
}

fn at_rate(bench: &Bench, pair: &mut Pair, name: &str, point: &str, rate: f64) -> Result<Measured> {
    let job = bench.timed(Job { rate: Some(rate), ..Job::new(Case::Echo) });
    let measured = pair.run(&job).with_context(|| format!("{name}, {point}"))?;
    eprintln!("{point:<18} {name:<14} {rate:.0}/s");
    Ok(measured)
}

/// Prints the latencies of all points for which there are samples.
pub(super) fn print(results: &Results) {
    let points = SHARES.map(|(point, _)| point).into_iter().chain([SAME_RATE]);
    for point in points {
        let mut title = Some(point);
        for name in CONTENDERS {
            let median = |metric| results.median(point, name, metric);
            let Some(rate) = median(Metric::Rate) else { continue };
            if let Some(title) = title.take() {
                println!(
                    "\n{title}: open loop, latency from the scheduled start of the request, us"
                );
                println!(
                    "  {:<14} {:>10} {:>9} {:>9} {:>9} {:>9}",
                    "", "k/s", "p50", "p99", "p99.9", "p99.99"
                );
            }
            let [p50, p99, p999, p9999] = [Metric::P50, Metric::P99, Metric::P999, Metric::P9999]
                .map(|metric| median(metric).unwrap_or(f64::NAN));
            let kind = if contender(name).side == Side::Limit { "limit " } else { "" };
            let name = format!("{kind}{name}");
            let rate = rate / 1e3;
            println!("  {name:<14} {rate:10.1} {p50:9.0} {p99:9.0} {p999:9.0} {p9999:9.0}");
        }
    }
}
