//! The latency of RPCs while network-common fetches large bodies.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bench_protocol::{Case, Job, Sample};
use network_common::TransportClient;

use super::{EchoTarget, FetchTarget};
use crate::load::{self, Meter, Request, Target};

/// The number of fetches that are always in flight.
const FETCHES: usize = 4;

/// Makes 64-byte echoes with `echoing`, one at a time, while `fetching` fetches file chunks.
///
/// The sample counts the fetches of `job.bytes` each, and has the latency of the echoes.
pub(super) async fn run(
    echoing: &TransportClient,
    fetching: &TransportClient,
    job: &Job,
) -> anyhow::Result<Sample> {
    let fetches = Job { case: Case::FetchFile, window: FETCHES, connections: 1, ..*job };
    let targets = [FetchTarget::new(fetching.clone(), i64::try_from(job.bytes)?)];
    let is_finished = Arc::new(AtomicBool::new(false));
    let echoes = tokio::spawn(echo(EchoTarget(echoing.clone()), Arc::clone(&is_finished)));
    let fetched = load::run(&targets, &fetches).await;
    is_finished.store(true, Ordering::Relaxed);
    Ok(Sample { latency: echoes.await??.latency, ..fetched? })
}

async fn echo(target: EchoTarget, is_finished: Arc<AtomicBool>) -> anyhow::Result<Sample> {
    let job = Job { until: bench_protocol::Until::Operations(u64::MAX), ..Job::new(Case::Echo) };
    let request = Request::new(&job);
    let mut meter = Meter::new(&job);
    let start = Instant::now();
    while !is_finished.load(Ordering::Relaxed) {
        let operation = meter.begin().flatten();
        target.call(&request).await?;
        meter.end(operation)?;
    }
    Ok(meter.sample(start.elapsed()))
}
