//! Latency at a fixed rate (R1): the capacity of each contender, and its latency at shares of it.

use std::collections::BTreeMap;

use anyhow::Result;
use bench_protocol::{Case, Job};

use super::Bench;
use super::contenders::contender;
use super::goals::Results;
use super::place::Place;

const CONTENDERS: [&str; 5] = ["ours", "ours-rpc", "batched", "tarpc", "tonic"];

/// Runs the whole group.
pub(super) fn measure(bench: &Bench, results: &mut Results) -> Result<()> {
    let mut pairs = BTreeMap::new();
    for name in CONTENDERS.into_iter().filter(|name| bench.programs.have(contender(name))) {
        pairs.insert(name, bench.start(Place::Free, name)?);
    }
    let closed_loop = bench.timed(Job { window: 128, ..Job::new(Case::Echo) });
    for run in 0..=bench.runs {
        for (name, pair) in &mut pairs {
            let capacity = pair.run(&closed_loop)?;
            // The first run warms up connections and allocators.
            if run > 0 {
                results.add("capacity", name, capacity);
            }
        }
    }
    Ok(())
}
