//! `cargo bench`: echo RPCs and chunk fetches of ours beside the limits, in one process over loopback.

use std::time::Duration;

use benches::{cached_file, ours, raw};
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::Runtime;

const BODY: usize = 64;
const FILE: usize = 256 << 20;

fn echo(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let (_server, client, raw_at) = runtime.block_on(async {
        let server = ours::serve("127.0.0.1:0", ours::Chunks::Memory(Bytes::new())).await.expect("a server");
        let client = ours::connect(server.local_addr()).await.expect("a connection");
        (server, client, raw::serve_echo("127.0.0.1:0").await.expect("a server"))
    });
    let body = Bytes::from(vec![7; BODY]);
    let mut group = criterion.benchmark_group("echo_64B");
    group.measurement_time(Duration::from_secs(3)).sample_size(10);
    for window in [1, 16, 128] {
        let count = 200 * window;
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::new("ours", window), |bencher| {
            bencher.to_async(&runtime).iter(|| ours::echo(&client, body.clone(), window, count));
        });
        group.bench_function(BenchmarkId::new("batched_limit", window), |bencher| {
            bencher.to_async(&runtime).iter(|| raw::echo(raw_at, BODY + raw::HEADER, window, count));
        });
    }
    let count = 64 * 200;
    group.throughput(Throughput::Elements(count as u64));
    group.bench_function("ours/64_tasks", |bencher| {
        bencher.to_async(&runtime).iter(|| ours::echo_tasks(&client, body.clone(), 64, count));
    });
    group.finish();
}

fn chunks(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let file = cached_file(FILE).expect("a file");
    let (_servers, client, memory_client, raw_at) = runtime.block_on(async {
        let from_file = ours::Chunks::File(file.path().to_owned(), FILE as u64);
        let server = ours::serve("127.0.0.1:0", from_file).await.expect("a server");
        let client = ours::connect(server.local_addr()).await.expect("a connection");
        let from_memory = ours::Chunks::Memory(vec![7; 16 << 20].into());
        let memory = ours::serve("127.0.0.1:0", from_memory).await.expect("a server");
        let memory_client = ours::connect(memory.local_addr()).await.expect("a connection");
        let raw_at =
            raw::serve_file("127.0.0.1:0", file.path().to_owned(), FILE as u64).await.expect("a server");
        ([server, memory], client, memory_client, raw_at)
    });
    let mut group = criterion.benchmark_group("fetch_chunk");
    group.measurement_time(Duration::from_secs(3)).sample_size(10);
    for size in [1 << 20, 4 << 20, 16 << 20] {
        let count = FILE / size;
        let name = format!("{}MiB", size >> 20);
        group.throughput(Throughput::Bytes(FILE as u64));
        group.bench_function(BenchmarkId::new("ours_file", &name), |bencher| {
            bencher.to_async(&runtime).iter(|| ours::fetch(&client, size, 4, count));
        });
        group.bench_function(BenchmarkId::new("ours_memory", &name), |bencher| {
            bencher.to_async(&runtime).iter(|| ours::fetch(&memory_client, size, 4, count));
        });
        group.bench_function(BenchmarkId::new("sendfile_limit", &name), |bencher| {
            bencher.to_async(&runtime).iter(|| raw::fetch(raw_at, size, 4, count));
        });
    }
    group.finish();
}

criterion_group!(benches, echo, chunks);
criterion_main!(benches);
