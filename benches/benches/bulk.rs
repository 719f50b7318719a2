//! `cargo bench`: chunks and streams of ours, from file and memory, beside the limits.

mod support;

use benches::groups::bodies;
use benches::limits::{RawChunks, serve_chunks};
use benches::ours::{self, TransportCalls};
use benches::protocol::Case;
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
        let server = ours::serve(Some(chunks.clone())).await.expect("a server");
        let raw_at = serve_chunks(chunks).await.expect("a server");
        (server, RawChunks::connect(raw_at).await.expect("a connection"))
    });
    let (mut ours, mut raw) = (Some(TransportCalls::new(server.local_addr())), Some(raw));
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

criterion_group!(benches, bulk);
criterion_main!(benches);
