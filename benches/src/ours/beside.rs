//! What control messages suffer from bodies.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bench_protocol::{Case, Job, Sample};
use network_common::TransportClient;

use super::{Echo, Fetch};
use crate::load::{self, Pace, Request, Target};

/// Bodies that are always in flight.
const FETCHES: usize = 4;

/// Echoes of 64 bytes with `echoing`, one at a time, while `fetching` fetches chunks of
/// `job.bytes`. The operations are the fetches, the latency is that of the echoes.
pub(super) async fn run(
    echoing: &TransportClient,
    fetching: &TransportClient,
    job: &Job,
) -> anyhow::Result<Sample> {
    let fetches = Job { case: Case::FetchFile, window: FETCHES, connections: 1, ..*job };
    let targets = [Fetch::new(fetching.clone(), i64::try_from(job.bytes)?)];
    let over = Arc::new(AtomicBool::new(false));
    let echoes = tokio::spawn(echo(Echo(echoing.clone()), Arc::clone(&over)));
    let fetched = load::run(&targets, &fetches).await;
    over.store(true, Ordering::Relaxed);
    Ok(Sample { latency: echoes.await??.latency, ..fetched? })
}

async fn echo(target: Echo, over: Arc<AtomicBool>) -> anyhow::Result<Sample> {
    let job = Job { until: bench_protocol::Until::Operations(u64::MAX), ..Job::new(Case::Echo) };
    let request = Request::new(&job);
    let mut pace = Pace::new(&job);
    let begun = Instant::now();
    while !over.load(Ordering::Relaxed) {
        let at = pace.begin().flatten();
        target.call(&request).await?;
        pace.end(at)?;
    }
    Ok(pace.sample(begun.elapsed()))
}
