//! Random runs with several environments, and the invariants that must hold in each of them. All
//! peers are environments of this crate; over sockets a proxy closes connections.
//!
//! `RANDOM_SEEDS=1000` runs the seeds 0 to 999, `RANDOM_SEED=17` only that one. A run over sockets
//! depends on the scheduling of threads; a run in memory is nearly reproducible.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod actor;
mod checked_endpoint;
mod fixture;
mod flood;
mod proxy;
mod record;

use std::collections::BTreeSet;
use std::panic;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use rpc_core::MemoryNetwork;
use tokio::runtime::{Builder, Runtime};

use record::RunRecord;

mod messages {
    include!("../generated/random.rs");
}

/// The text of errors and panics that are part of a run.
const INTENDED_FAILURE: &str = "intended failure";

/// The timeout of a whole run, far longer than the longest timeout in it.
const RUN_TIMEOUT: Duration = Duration::from_secs(120);

const NONE_REMAIN: (usize, (usize, usize)) = (0, (0, 0));

/// Events of which each must occur in at least one run.
const EXPECTED_EVENTS: [&str; 6] = [
    "an ask succeeded",
    "an ask failed",
    "an ask was dropped",
    "an endpoint was replaced",
    "an environment was restarted",
    // Over sockets only.
    "connections were closed",
];

/// Runs every seed on four threads, and fails with the violations of the first run that has any.
///
/// Each `expected` event must occur in at least one of the runs.
fn for_all_seeds(
    default_count: u64,
    expected: &[&str],
    run: impl Fn(u64) -> Arc<RunRecord> + Sync,
) {
    silence_intended_panics();
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match number("RANDOM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RANDOM_SEEDS").unwrap_or(default_count),
    };
    let next = AtomicU64::new(seeds.start);
    let events = Mutex::new(BTreeSet::new());
    let failed = Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while failed.lock().unwrap().is_none() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let record = run(seed);
                    events.lock().unwrap().extend(record.events().into_keys());
                    let violations = record.violations();
                    if !violations.is_empty() {
                        failed.lock().unwrap().get_or_insert((seed, violations));
                    }
                }
            });
        }
    });
    if let Some((seed, violations)) = failed.into_inner().unwrap() {
        panic!("RANDOM_SEED={seed}: {violations:#?}");
    }
    let events = events.into_inner().unwrap();
    for event in expected.iter().filter(|_| seeds.end - seeds.start >= default_count) {
        assert!(events.contains(event), "no run had the event: {event}");
    }
}

fn silence_intended_panics() {
    let default_hook = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if info.payload().downcast_ref::<&str>() != Some(&INTENDED_FAILURE) {
            default_hook(info);
        }
    }));
}

/// Runs `run` on `runtime`, and checks that it leaves no task, environment or endpoint.
fn run_on<F>(runtime: &Runtime, record: &RunRecord, run: F)
where
    F: Future<Output = ()>,
{
    runtime.block_on(async {
        if tokio::time::timeout(RUN_TIMEOUT, run).await.is_err() {
            record.report_violation(format!("the run does not end: {}", record.stage()));
        }
        let ended = Instant::now();
        let remaining =
            || (tokio::runtime::Handle::current().metrics().num_alive_tasks(), record.remaining());
        while remaining() != NONE_REMAIN && ended.elapsed() < Duration::from_secs(5) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if remaining() != NONE_REMAIN {
            let (tasks, (parts, endpoints)) = remaining();
            record.report_violation(format!(
                "{tasks} tasks, {parts} parts of environments, {endpoints} endpoints remain"
            ));
        }
    });
}

fn multi_thread_runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn paused_runtime() -> Runtime {
    Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

/// Every third run has no faults: nothing is stopped, closed or restarted, so nothing may be lost.
#[test]
fn random_runs_over_sockets_keep_invariants() {
    for_all_seeds(30, &EXPECTED_EVENTS, |seed| {
        let record = Arc::new(RunRecord::default());
        let run =
            fixture::run(StdRng::seed_from_u64(seed), Arc::clone(&record), seed % 3 == 0, None);
        run_on(&multi_thread_runtime(), &record, run);
        record
    });
}

#[test]
fn random_runs_in_memory_keep_invariants() {
    for_all_seeds(60, &EXPECTED_EVENTS[..5], |seed| {
        let record = Arc::new(RunRecord::default());
        let network = Some(MemoryNetwork::new());
        let run =
            fixture::run(StdRng::seed_from_u64(seed), Arc::clone(&record), seed % 3 == 0, network);
        run_on(&paused_runtime(), &record, run);
        record
    });
}

/// Slow endpoints, small limits, many senders that wait for capacity.
#[test]
fn floods_over_sockets_arrive_once_in_order() {
    for_all_seeds(20, &[], |seed| {
        let record = Arc::new(RunRecord::default());
        run_on(
            &multi_thread_runtime(),
            &record,
            flood::run(StdRng::seed_from_u64(seed), Arc::clone(&record), None),
        );
        record
    });
}

#[test]
fn floods_in_memory_arrive_once_in_order() {
    for_all_seeds(40, &[], |seed| {
        let record = Arc::new(RunRecord::default());
        let network = Some(MemoryNetwork::new());
        run_on(
            &paused_runtime(),
            &record,
            flood::run(StdRng::seed_from_u64(seed), Arc::clone(&record), network),
        );
        record
    });
}
