//! Criterion benches of chunks and streams, from files and from memory, and of their limits.

mod support;

use benches::groups::bodies;
#[cfg(feature = "security")]
use benches::limits::Cipher;
use benches::limits::{RawChunks, serve_chunks};
use benches::ours::{self, Security, TransportCallClient};
use benches::protocol::Case;
#[cfg(feature = "security")]
use benches::protocol::Job;
use benches::{Chunks, write_file};
use criterion::{Criterion, criterion_group, criterion_main};
use support::{bench, group};
use tempfile::NamedTempFile;
use tokio::runtime::Runtime;

const FILE_SIZE: usize = 256 << 20;

fn bulk(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("the runtime cannot be created");
    let file = NamedTempFile::new().expect("the file cannot be created");
    write_file(file.path(), FILE_SIZE).expect("the file cannot be written");
    let chunks = Chunks::from_file(file.path()).expect("the file cannot be read");
    let (server, raw) = runtime.block_on(async {
        let server = ours::serve(Some(chunks.clone()), Security::Plain).await;
        let raw_address = serve_chunks(chunks).await.expect("the raw server cannot start");
        let raw = RawChunks::connect(raw_address).await.expect("the raw client cannot connect");
        (server.expect("the server cannot start"), raw)
    });
    let ours = TransportCallClient::new(server.local_addr(), Security::Plain)
        .expect("plain connections are always supported");
    let (mut ours, mut raw) = (Some(ours), Some(raw));
    for (name, case, has_limit) in [
        ("fetch_file", Case::FetchFile, true),
        ("fetch_memory", Case::FetchMemory, true),
        ("stream_file", Case::StreamFile, false),
        ("stream_memory", Case::StreamMemory, false),
    ] {
        let mut group = group(criterion, name);
        for (parameter, job) in bodies(case) {
            bench(&mut group, &runtime, "ours", parameter, &mut ours, job);
            if has_limit {
                bench(&mut group, &runtime, "raw", parameter, &mut raw, job);
            }
        }
        group.finish();
    }
}

#[cfg(feature = "security")]
/// Compares each security mode with its cipher alone, which seals and opens on one core.
fn secured(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("the runtime cannot be created");
    let file = NamedTempFile::new().expect("the file cannot be created");
    write_file(file.path(), FILE_SIZE).expect("the file cannot be written");
    let chunks = Chunks::from_file(file.path()).expect("the file cannot be read");
    let mut secured: Vec<_> = Security::ALL
        .into_iter()
        .map(|security| {
            let server = runtime.block_on(ours::serve(Some(chunks.clone()), security));
            let server = server.expect("the server cannot start");
            let client = TransportCallClient::new(server.local_addr(), security)
                .expect("the benches are built with all security modes");
            (security, server, Some(client))
        })
        .collect();
    for (name, case) in [("secured_file", Case::FetchFile), ("secured_memory", Case::FetchMemory)] {
        let job = Job { bytes: 4 << 20, window: 4, ..Job::new(case) };
        let mut group = group(criterion, name);
        for (security, _, client) in &mut secured {
            bench(&mut group, &runtime, security.name(), "4MiB", client, job);
        }
        for (name, cipher) in [("ctr", Cipher::Ctr), ("gcm", Cipher::Gcm), ("tls", Cipher::Tls)] {
            bench(&mut group, &runtime, &format!("cipher-{name}"), "4MiB", &mut Some(cipher), job);
        }
        group.finish();
    }
}

#[cfg(feature = "security")]
criterion_group!(benches, bulk, secured);
#[cfg(not(feature = "security"))]
criterion_group!(benches, bulk);
criterion_main!(benches);
