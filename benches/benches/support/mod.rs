//! Criterion around what the measured processes run: the same clients and jobs, here with both ends
//! in one process.

use std::time::Duration;

use benches::load::Client;
use benches::protocol::{Case, Job, Until};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use tokio::runtime::Runtime;

/// How many operations of `job` a second `client` does; an operation is one of criterion's
/// iterations.
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
            let mut used = client.take().expect("nobody else has it");
            let job = Job { until: Until::Operations(operations), ..job };
            // On a worker, as in the measured processes.
            let done = runtime.spawn(async move { (used.run(job).await, used) });
            let (sample, used) = runtime.block_on(done).expect("no panic");
            *client = Some(used);
            Duration::from_secs_f64(sample.expect("a job that this contender does").seconds)
        });
    });
}

/// A group with short measurements: there are many.
pub(crate) fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    group
}
