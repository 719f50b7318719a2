//! Measures memory and message cost with many idle connections, endpoints, asks and actors (S1 to
//! S3, L2). The cost of a message should not grow with them.

use anyhow::Result;
use bench_protocol::{Case, Job, Sample};

use super::Bench;
use super::contenders::contender;
use super::goals::Results;
use super::pair::{Measured, Pair};
use super::place::Place;

/// The traffic that is measured beside the idle population.
const TRAFFIC: Job = Job { connections: 8, window: 16, population: 1000, ..job(Case::Ask) };
const LOCAL: [&str; 5] = ["ours-local", "channel", "actix", "kameo", "ractor"];

const fn job(case: Case) -> Job {
    Job {
        case,
        bytes: 64,
        connections: 1,
        tasks: 1,
        window: 1,
        population: 1,
        rate: None,
        until: bench_protocol::Until::Millis(1000),
    }
}

const fn hold(case: Case, population: usize) -> Job {
    Job { population, ..job(case) }
}

/// Runs the group.
pub(super) fn measure(bench: &Bench, results: &mut Results) -> Result<()> {
    endpoints(bench, results)?;
    asks(bench, results)?;
    connections(bench, results)?;
    fan_out(bench, results)?;
    for name in LOCAL {
        if bench.programs.has(contender(name)) {
            actor_memory(bench, name, results)?;
        }
    }
    Ok(())
}

/// Returns the populations. A quick run has only those up to 1000.
fn steps<const N: usize>(
    bench: &Bench,
    steps: [(&'static str, usize); N],
) -> impl Iterator<Item = (&'static str, usize)> {
    let most = if bench.quick { 1000 } else { usize::MAX };
    steps.into_iter().filter(move |(_, population)| *population <= most)
}

/// Measures `TRAFFIC` with `pair`, once per run.
fn traffic(bench: &Bench, pair: &mut Pair, id: &'static str, results: &mut Results) -> Result<()> {
    pair.run(&bench.timed(TRAFFIC))?;
    for _ in 0..bench.runs {
        let measured = pair.run(&bench.timed(TRAFFIC))?;
        eprintln!("{id:<18} {:.0}/s", super::rate(&measured));
        results.add(id, "scale", measured);
    }
    Ok(())
}

/// Measures idle endpoints.
fn endpoints(bench: &Bench, results: &mut Results) -> Result<()> {
    let mut pair = bench.start(Place::Free, "ours-rpc")?;
    for (id, idle) in steps(
        bench,
        [
            ("endpoints-1", 1),
            ("endpoints-1000", 1000),
            ("endpoints-10000", 10_000),
            ("endpoints-100000", 100_000),
        ],
    ) {
        pair.run_on_server(&hold(Case::Hold, TRAFFIC.population + idle))?;
        traffic(bench, &mut pair, id, results)?;
    }
    Ok(())
}

/// Measures pending asks.
fn asks(bench: &Bench, results: &mut Results) -> Result<()> {
    let mut pair = bench.start(Place::Free, "ours-rpc")?;
    pair.run_on_server(&hold(Case::Hold, TRAFFIC.population))?;
    for (id, idle) in steps(
        bench,
        [("asks-1", 1), ("asks-1000", 1000), ("asks-10000", 10_000), ("asks-100000", 100_000)],
    ) {
        pair.run(&hold(Case::HoldAsks, idle))?;
        traffic(bench, &mut pair, id, results)?;
    }
    Ok(())
}

/// Measures idle transport connections. They share a server with the traffic.
fn connections(bench: &Bench, results: &mut Results) -> Result<()> {
    let echo = Job { case: Case::Echo, population: 1, ..TRAFFIC };
    let mut pair = bench.start(Place::Free, "ours")?;
    let mut first = None;
    for (id, idle) in steps(
        bench,
        [
            ("connections-1", 1),
            ("connections-100", 100),
            ("connections-1000", 1000),
            ("connections-5000", 5000),
        ],
    ) {
        let held = pair.run(&hold(Case::Hold, TRAFFIC.connections + idle))?;
        for run in 0..=bench.runs {
            let measured = pair.run(&bench.timed(echo))?;
            if run > 0 {
                eprintln!("{id:<18} {:.0}/s", super::rate(&measured));
                results.add(id, "scale", measured);
            }
        }
        // The first connections also grow allocators and tables.
        match &first {
            None if idle >= 100 => first = Some((idle, held)),
            Some((before, warm)) if idle >= 1000 => {
                let each = |now: u64, then: u64| now.saturating_sub(then) / (idle - before) as u64;
                let bytes = [
                    ("server", each(held.server_bytes, warm.server_bytes)),
                    ("client", each(held.client_bytes, warm.client_bytes)),
                ];
                for (end, bytes) in bytes {
                    results.add(
                        if idle == 5000 || bench.quick {
                            "bytes-per-connection"
                        } else {
                            "bytes-per-early-connection"
                        },
                        end,
                        value(bytes),
                    );
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Measures asks to many endpoints at the same time.
fn fan_out(bench: &Bench, results: &mut Results) -> Result<()> {
    let mut pair = bench.start(Place::Free, "ours-rpc")?;
    pair.run_on_server(&hold(Case::Hold, 1000))?;
    let rounds = Job { connections: 50, population: 1000, ..job(Case::FanOut) };
    for run in 0..=bench.runs {
        let measured = pair.run(&bench.timed(rounds))?;
        if run > 0 {
            results.add("fan-out", "scale", measured);
        }
    }
    Ok(())
}

/// Measures the memory per idle actor.
fn actor_memory(bench: &Bench, name: &'static str, results: &mut Results) -> Result<()> {
    let (few, many) = if bench.quick { (100, 1000) } else { (10_000, 110_000) };
    let mut pair = bench.start(Place::Free, name)?;
    let before = pair.run(&hold(Case::Hold, few))?;
    let after = pair.run(&hold(Case::Hold, many))?;
    let grown = after.client_bytes.saturating_sub(before.client_bytes);
    results.add("bytes-per-actor", name, value(grown / (many - few) as u64));
    Ok(())
}

/// Returns a sample for a number that was not measured by a job.
fn value(number: u64) -> Measured {
    Measured {
        sample: Sample { operations: number, seconds: 1.0, latency: None },
        cpu_seconds: 0.0,
        peak_bytes: 0,
        server_bytes: 0,
        client_bytes: 0,
        system_calls: None,
    }
}
