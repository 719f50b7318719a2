//! Random runs with several environments, and the invariants that must hold in each of them. All
//! peers are environments of this crate; over sockets a proxy closes connections.
//!
//! `RANDOM_SEEDS=1000` runs the seeds 0 to 999, `RANDOM_SEED=17` only that one. A run over sockets
//! depends on the scheduling of threads; a run in memory is nearly reproducible.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod book;
mod flood;
mod player;
mod proxy;
mod witness;
mod world;

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

use book::Book;

mod messages {
    rpc_core::include_proto!("random");
}

/// The text of errors and panics that are part of a run.
const ON_PURPOSE: &str = "on purpose";

/// The timeout of a whole run, far longer than the longest timeout in it.
const TOO_LONG: Duration = Duration::from_secs(120);

const NOTHING: (usize, (usize, usize)) = (0, (0, 0));

/// Events of which each must occur in at least one run.
const EVENTS: [&str; 6] = [
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
fn for_all_seeds(by_default: u64, expected: &[&str], play: impl Fn(u64) -> Arc<Book> + Sync) {
    quiet_panics();
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match number("RANDOM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RANDOM_SEEDS").unwrap_or(by_default),
    };
    let next = AtomicU64::new(seeds.start);
    let happened = Mutex::new(BTreeSet::new());
    let failed = Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while failed.lock().unwrap().is_none() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let book = play(seed);
                    happened.lock().unwrap().extend(book.all_that_happened().into_keys());
                    let complaints = book.complaints();
                    if !complaints.is_empty() {
                        failed.lock().unwrap().get_or_insert((seed, complaints));
                    }
                }
            });
        }
    });
    if let Some((seed, complaints)) = failed.into_inner().unwrap() {
        panic!("RANDOM_SEED={seed}: {complaints:#?}");
    }
    let happened = happened.into_inner().unwrap();
    for what in expected.iter().filter(|_| seeds.end - seeds.start >= by_default) {
        assert!(happened.contains(what), "no run had the event: {what}");
    }
}

fn quiet_panics() {
    let loud = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if info.payload().downcast_ref::<&str>() != Some(&ON_PURPOSE) {
            loud(info);
        }
    }));
}

/// Runs `play` on `runtime`, and checks that it leaves no task, environment or endpoint.
fn on_a_runtime<F>(runtime: &Runtime, book: &Book, play: F)
where
    F: Future<Output = ()>,
{
    runtime.block_on(async {
        if tokio::time::timeout(TOO_LONG, play).await.is_err() {
            book.complain(format!("the run does not end: {}", book.stage()));
        }
        let ended = Instant::now();
        let left = || (tokio::runtime::Handle::current().metrics().num_alive_tasks(), book.left());
        while left() != NOTHING && ended.elapsed() < Duration::from_secs(5) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if left() != NOTHING {
            let (tasks, (parts, endpoints)) = left();
            book.complain(format!(
                "{tasks} tasks, {parts} parts of environments, {endpoints} endpoints remain"
            ));
        }
    });
}

fn threads() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn paused() -> Runtime {
    Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

/// Every third run has no faults: nothing is stopped, closed or restarted, so nothing may be lost.
#[test]
fn random_runs_over_sockets_keep_invariants() {
    for_all_seeds(30, &EVENTS, |seed| {
        let book = Arc::new(Book::default());
        let play = world::play(StdRng::seed_from_u64(seed), Arc::clone(&book), seed % 3 == 0, None);
        on_a_runtime(&threads(), &book, play);
        book
    });
}

#[test]
fn random_runs_in_memory_keep_invariants() {
    for_all_seeds(60, &EVENTS[..5], |seed| {
        let book = Arc::new(Book::default());
        let network = Some(MemoryNetwork::new());
        let play =
            world::play(StdRng::seed_from_u64(seed), Arc::clone(&book), seed % 3 == 0, network);
        on_a_runtime(&paused(), &book, play);
        book
    });
}

/// Slow endpoints, small limits, many senders that wait for capacity.
#[test]
fn floods_over_sockets_arrive_once_in_order() {
    for_all_seeds(20, &[], |seed| {
        let book = Arc::new(Book::default());
        on_a_runtime(
            &threads(),
            &book,
            flood::play(StdRng::seed_from_u64(seed), Arc::clone(&book), None),
        );
        book
    });
}

#[test]
fn floods_in_memory_arrive_once_in_order() {
    for_all_seeds(40, &[], |seed| {
        let book = Arc::new(Book::default());
        let network = Some(MemoryNetwork::new());
        on_a_runtime(
            &paused(),
            &book,
            flood::play(StdRng::seed_from_u64(seed), Arc::clone(&book), network),
        );
        book
    });
}
