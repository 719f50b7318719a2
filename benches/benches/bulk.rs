//! `cargo bench`: chunks and streams of ours, from file and memory, beside the limits.

mod support;

use benches::groups::bodies;
use benches::limits::{Cipher, RawChunks, serve_chunks};
use benches::ours::{self, Security, TransportCalls};
use benches::protocol::{Case, Job};
use benches::{Chunks, write_file};
use criterion::{Criterion, criterion_group, criterion_main};
use support::{bench, group};
use tempfile::NamedTempFile;
use tokio::runtime::Runtime;

const FILE: usize = 256 << 20;

fn bulk(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let file = NamedTempFile::new().expect("a file");
    write_file(file.path(), FILE).expect("space for it");
    let chunks = Chunks::of(file.path()).expect("a file");
    let (server, raw) = runtime.block_on(async {
        let server = ours::serve(Some(chunks.clone()), Security::Plain).await.expect("a server");
        let raw_at = serve_chunks(chunks).await.expect("a server");
        (server, RawChunks::connect(raw_at).await.expect("a connection"))
    });
    let ours =
        TransportCalls::new(server.local_addr(), Security::Plain).expect("nothing is asked for");
    let (mut ours, mut raw) = (Some(ours), Some(raw));
    for (name, case, limited) in [
        ("fetch_file", Case::FetchFile, true),
        ("fetch_memory", Case::FetchMemory, true),
        ("stream_file", Case::StreamFile, false),
        ("stream_memory", Case::StreamMemory, false),
    ] {
        let mut group = group(criterion, name);
        for (parameter, job) in bodies(case) {
            bench(&mut group, &runtime, "ours", parameter, &mut ours, job);
            if limited {
                bench(&mut group, &runtime, "raw", parameter, &mut raw, job);
            }
        }
        group.finish();
    }
}

/// Every way of securing connections beside what its cipher does on one core, sealing and opening.
fn secured(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let file = NamedTempFile::new().expect("a file");
    write_file(file.path(), FILE).expect("space for it");
    let chunks = Chunks::of(file.path()).expect("a file");
    let mut secured: Vec<_> = Security::ALL
        .into_iter()
        .map(|security| {
            let serving = ours::serve(Some(chunks.clone()), security);
            let server = runtime.block_on(serving).expect("a server");
            let calls = TransportCalls::new(server.local_addr(), security)
                .expect("it is part of this build");
            (security, server, Some(calls))
        })
        .collect();
    for (name, case) in [("secured_file", Case::FetchFile), ("secured_memory", Case::FetchMemory)] {
        let job = Job { bytes: 4 << 20, window: 4, ..Job::new(case) };
        let mut group = group(criterion, name);
        for (security, _, calls) in &mut secured {
            bench(&mut group, &runtime, security.name(), "4MiB", calls, job);
        }
        for (name, cipher) in [("ctr", Cipher::Ctr), ("gcm", Cipher::Gcm), ("tls", Cipher::Tls)] {
            bench(&mut group, &runtime, &format!("cipher-{name}"), "4MiB", &mut Some(cipher), job);
        }
        group.finish();
    }
}

criterion_group!(benches, bulk, secured);
criterion_main!(benches);
