//! Runs the clients and jobs of the measured processes under criterion, both ends in one process.

use std::time::Duration;

use benches::load::Client;
use benches::protocol::{Case, Job, Until};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use tokio::runtime::Runtime;

/// Measures the rate of `client` for `job`. One operation is one iteration of criterion.
pub(crate) fn bench<C: Client>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    runtime: &Runtime,
    contender: &str,
    parameter: &str,
    client: &mut Option<C>,
    job: Job,
) {
    group.throughput(match job.case {
        Case::Echo | Case::Ask | Case::Send => Throughput::Elements(1),
        _ => Throughput::Bytes(job.bytes as u64),
    });
    group.bench_function(BenchmarkId::new(contender, parameter), |bencher| {
        bencher.iter_custom(|operations| {
            let mut taken = client.take().expect("the previous iteration has put it back");
            let job = Job { until: Until::Operations(operations), ..job };
            // A spawned task runs on a worker, as in the measured processes.
            let task = runtime.spawn(async move { (taken.run(job).await, taken) });
            let (sample, taken) = runtime.block_on(task).expect("the job panicked");
            *client = Some(taken);
            Duration::from_secs_f64(sample.expect("the job failed").seconds)
        });
    });
}

/// Returns a group with short measurements, because the number of groups is large.
pub(crate) fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    group
}
