//! Criterion around what the measured processes run: the same clients and jobs, here with both ends in one process.

use std::time::Duration;

use benches::load::Client;
use benches::protocol::{Case, Job, Until};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use tokio::runtime::Runtime;

/// How many operations of `job` a second `client` does; an operation is one of criterion's iterations.
pub fn bench<C: Client>(
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
pub fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    group
}

/// The echo jobs: name and job.
pub fn echoes(bytes: usize) -> [(&'static str, Job); 5] {
    let job = Job { bytes, ..Job::new(Case::Echo) };
    [
        ("1", job),
        ("16", Job { window: 16, ..job }),
        ("128", Job { window: 128, ..job }),
        ("64_tasks", Job { tasks: 64, ..job }),
        ("8_connections_x16", Job { connections: 8, window: 16, ..job }),
    ]
}

/// The jobs of local actors: group, name and job.
pub fn local() -> [(&'static str, &'static str, Job); 5] {
    let (send, ask) = (Job { bytes: 0, ..Job::new(Case::Send) }, Job::new(Case::Ask));
    [
        ("send_local", "1_producer", send),
        ("send_local", "4_producers", Job { tasks: 4, ..send }),
        ("send_local", "4_producers_to_1000", Job { tasks: 4, population: 1000, ..send }),
        ("ask_local", "1", ask),
        ("ask_local", "128", Job { window: 128, ..ask }),
    ]
}

/// The jobs of bodies: name and job.
pub fn bodies(case: Case) -> [(&'static str, Job); 3] {
    [("1MiB", 1 << 20), ("4MiB", 4 << 20), ("16MiB", 16 << 20)]
        .map(|(name, bytes)| (name, Job { bytes, window: 4, ..Job::new(case) }))
}
