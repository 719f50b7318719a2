//! Limits on what hostile peers can make a server hold: memory, threads, tasks and file
//! descriptors. Everything is released when they have gone.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(unsafe_code, reason = "a counting allocator")]

mod hostile_support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::join_all;
use hostile_support::*;
use network_common::{
    ErrorKind, MergedBlockMetaCallback, MergedBlockMetaRequest, NoOpRpcHandler, RpcHandler,
    RpcResponseCallback, TransportClient, TransportConf, TransportContext,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Counts live bytes and their peak.
struct CountingAllocator;

static LIVE: AtomicIsize = AtomicIsize::new(0);
static PEAK: AtomicIsize = AtomicIsize::new(0);

fn count(bytes: isize) {
    let live = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(live, Ordering::Relaxed);
}

// SAFETY: every call is handed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: the caller keeps the contract.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const MIB: isize = 1 << 20;

fn live() -> isize {
    LIVE.load(Ordering::Relaxed)
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Runs one test at a time in a runtime of its own, because the counters are those of the process.
fn run_alone(blocking_threads: usize, test: impl Future<Output = ()> + Send + 'static) {
    static LOCK: parking_lot::Mutex<()> = parking_lot::Mutex::new(());
    let _lock = LOCK.lock();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(blocking_threads)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { runtime.spawn(test).await.unwrap() });
}

/// Measures the peak of live bytes above those at its start.
struct Peak(isize);

impl Peak {
    fn start() -> Self {
        let now = live();
        PEAK.store(now, Ordering::Relaxed);
        Self(now)
    }

    fn so_far(&self) -> isize {
        PEAK.load(Ordering::Relaxed) - self.0
    }
}

/// Waits until no byte has moved for 200 ms, because the sockets of stalled peers are full.
async fn wait_until_stalled(fixture: &Fixture) {
    let metrics = fixture.context.metrics();
    let mut last = (0, 0);
    let mut quiet = 0;
    within("the server to stall", async {
        while quiet < 20 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let now = metrics.server().snapshot();
            let moved = (now.received_bytes, now.sent_bytes);
            quiet = if moved == last { quiet + 1 } else { 0 };
            last = moved;
        }
    })
    .await;
}

#[test]
fn chunks_for_peer_that_does_not_read_are_created_on_demand() {
    run_alone(8, async {
        let fixture = Fixture::new(&[("spark.test.io.maxWriteQueueSize", "16m")]).await;
        let mut raw = fixture.raw().await;
        let peak = Peak::start();
        let requests: Vec<u8> = (0..256).flat_map(|i| chunk_request(MEBIBYTES, i)).collect();
        raw.send(&requests).await;
        wait_until_stalled(&fixture).await;
        fixture.assert_serves().await;
        // Four chunks fill the queue, one more may be in progress, and one batch is being written.
        let bodies = &fixture.handler.bodies;
        assert!((1..=8).contains(&bodies.peak()), "{} chunks of 4 MiB alive", bodies.peak());
        assert!(peak.so_far() < 40 * MIB, "{} MiB", peak.so_far() / MIB);
        // All chunks arrive once the peer reads.
        let mut answer = vec![0; (4 << 20) + 21];
        for i in 0..256_usize {
            within("a chunk", raw.0.read_exact(&mut answer)).await.unwrap();
            assert_eq!(answer[8..21], chunk_success(MEBIBYTES, i as i32, &[])[8..]);
            assert!(answer[21] == i as u8 && answer[answer.len() - 1] == i as u8);
        }
        assert!(bodies.peak() <= 8, "{} chunks of 4 MiB alive", bodies.peak());
        assert!(peak.so_far() < 44 * MIB, "{} MiB", peak.so_far() / MIB);
        raw.echo(b"alive").await;
        eventually("all bodies are released", || bodies.now() == 0).await;
    });
}

#[test]
fn echoes_for_peer_that_does_not_read_stay_in_sockets() {
    run_alone(8, async {
        let fixture = Fixture::new(&[("spark.test.io.maxWriteQueueSize", "16m")]).await;
        let (mut read, mut write) = fixture.raw().await.0.into_split();
        let request = rpc(5, &vec![6; 4 << 20]);
        let size = request.len();
        let peak = Peak::start();
        let writing = tokio::spawn(async move {
            for _ in 0..256 {
                write.write_all(&request).await.unwrap();
            }
            write
        });
        wait_until_stalled(&fixture).await;
        fixture.assert_serves().await;
        let metrics = fixture.context.metrics();
        let received = metrics.server().snapshot().received_bytes;
        assert!(
            received < 64 << 20,
            "{} MiB were read from a peer that reads nothing",
            received >> 20
        );
        assert!(peak.so_far() < 64 * MIB, "{} MiB", peak.so_far() / MIB);
        let mut answer = vec![0; size];
        for _ in 0..256 {
            within("an echo", read.read_exact(&mut answer)).await.unwrap();
            assert_eq!((answer[8], answer[21], answer[size - 1]), (RPC_RESPONSE, 6, 6));
        }
        // Up to 64 MiB of idle buffers are kept for later bodies.
        assert!(peak.so_far() < 128 * MIB, "{} MiB", peak.so_far() / MIB);
        drop(within("the writer", writing).await.unwrap());
    });
}

#[test]
fn large_replies_to_small_requests_are_not_created_at_once() {
    run_alone(8, async {
        let fixture = Fixture::new(&[("spark.test.io.maxWriteQueueSize", "16m")]).await;
        let mut raw = fixture.raw().await;
        // All requests fit into one read of the server.
        let requests: Vec<u8> = (0..256).flat_map(|i| rpc(i, b"big 4194304")).collect();
        raw.send(&requests).await;
        wait_until_stalled(&fixture).await;
        fixture.assert_serves().await;
        let bodies = &fixture.handler.bodies;
        assert!((1..=8).contains(&bodies.peak()), "{} responses of 4 MiB alive", bodies.peak());
        let mut answer = vec![0; (4 << 20) + 21];
        for i in 0..256_i64 {
            within("a response", raw.0.read_exact(&mut answer)).await.unwrap();
            assert_eq!((answer[8], &answer[9..17]), (RPC_RESPONSE, &i.to_be_bytes()[..]));
        }
        raw.echo(b"alive").await;
        eventually("all bodies are released", || bodies.now() == 0).await;
    });
}

/// Replies to every merged-block meta request with this many zero bytes.
struct MetaHandler(usize);

impl RpcHandler for MetaHandler {
    fn receive(&self, _: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
        callback.reply(message);
    }

    fn receive_merged_block_meta(
        &self,
        _: &TransportClient,
        _: MergedBlockMetaRequest,
        callback: MergedBlockMetaCallback,
    ) {
        callback.reply(0, vec![0; self.0]);
    }
}

/// These responses use the bulk lane, which is limited by bytes, and by number if they are empty.
#[test]
fn merged_block_meta_responses_are_bounded() {
    for (size, requests) in [(0, 500_000), (4 << 20, 256)] {
        run_alone(8, async move {
            let conf =
                TransportConf::from_settings("test", [("spark.test.io.maxWriteQueueSize", "1m")])
                    .unwrap();
            let context = TransportContext::new(conf, MetaHandler(size));
            let server = context.create_server("127.0.0.1:0").await.unwrap();
            let request = frame(META_REQUEST, &[&[0; 8], &text("a"), &[0; 12]]);
            let requests = request.repeat(requests);
            let (_read, mut write) = RawPeer::connect(server.local_addr()).await.0.into_split();
            let peak = Peak::start();
            let writing = tokio::spawn(async move { write.write_all(&requests).await });
            let bytes_in = || context.metrics().server().snapshot().received_bytes;
            let (mut last, mut quiet) = (0, 0);
            while quiet < 20 {
                tokio::time::sleep(Duration::from_millis(10)).await;
                let now = bytes_in();
                quiet = if now == last && now > 0 { quiet + 1 } else { 0 };
                last = now;
            }
            assert!(
                peak.so_far() < 16 * MIB,
                "{} MiB for responses of {size} bytes",
                peak.so_far() / MIB
            );
            writing.abort();
        });
    }
}

#[test]
fn long_stream_ids_are_counted_by_their_bytes() {
    run_alone(8, async {
        let fixture = Fixture::new(&[("spark.test.io.maxWriteQueueSize", "16m")]).await;
        let request = stream_request(&format!("missing {}", "x".repeat(8 << 20)));
        let first = stream_request("never");
        let peak = Peak::start();
        // First a request without a response blocks the later ones; then the peer does not read its
        // responses.
        for hold in [true, false] {
            let (mut read, mut write) = fixture.raw().await.0.into_split();
            if hold {
                within("writing", write.write_all(&first)).await.unwrap();
            }
            let request = request.clone();
            let writing = tokio::spawn(async move {
                for _ in 0..64 {
                    write.write_all(&request).await?;
                }
                std::io::Result::Ok(write)
            });
            wait_until_stalled(&fixture).await;
            fixture.assert_serves().await;
            assert!(peak.so_far() < 128 * MIB, "hold {hold}: {} MiB", peak.so_far() / MIB);
            if hold {
                writing.abort();
                drop(writing.await);
            } else {
                let mut answer = vec![0; 256 << 10];
                let length = within("responses", read.read_u64()).await.unwrap();
                let mut left = 64 * length - 8;
                while left > 0 {
                    let count = answer.len().min(left as usize);
                    left -= within("responses", read.read_exact(&mut answer[..count]))
                        .await
                        .unwrap() as u64;
                }
                drop(within("the writer", writing).await.unwrap().unwrap());
            }
        }
    });
}

#[test]
fn announced_lengths_reserve_no_memory() {
    run_alone(8, async {
        let fixture = Fixture::new(&[]).await;
        let peak = Peak::start();
        let mut raws = Vec::new();
        for i in 0..200_i64 {
            let mut raw = fixture.raw().await;
            let mut bytes = match i % 4 {
                0 => rpc(1, b"x"),
                1 => one_way(b"x"),
                2 => stream_request("some"),
                _ => upload(1, "hold", i64::MAX),
            };
            if i % 4 < 2 {
                bytes[..8].copy_from_slice(&(200_i64 << 20).to_be_bytes());
            } else if i % 4 == 2 {
                bytes[..8].copy_from_slice(&(15_i64 << 20).to_be_bytes());
            }
            raw.send(&bytes).await;
            raws.push(raw);
        }
        wait_until_stalled(&fixture).await;
        // 50 uploads with a buffer of 256 KiB, 100 requests with one of 64 KiB, and 200
        // connections.
        let expected = 50 * 256 + 100 * 64 + 200 * 16;
        assert!(peak.so_far() < expected * 1024, "{} KiB", peak.so_far() / 1024);
        fixture.assert_serves().await;
    });
}

#[test]
fn unread_uploads_hold_about_one_mebibyte_each() {
    run_alone(8, async {
        let fixture = Fixture::new(&[]).await;
        let peak = Peak::start();
        let mut uploads = Vec::new();
        for _ in 0..8 {
            let (read, mut write) = fixture.raw().await.0.into_split();
            let writing = tokio::spawn(async move {
                write.write_all(&upload(1, "hold", i64::MAX)).await?;
                let block = [0; 16 << 10];
                loop {
                    write.write_all(&block).await?;
                }
                #[allow(unreachable_code, reason = "gives the block its type")]
                Ok::<(), std::io::Error>(())
            });
            uploads.push((read, writing));
        }
        wait_until_stalled(&fixture).await;
        assert!(peak.so_far() < 8 * (3 * MIB / 2) + 4 * MIB, "{} KiB", peak.so_far() / 1024);
        fixture.assert_serves().await;
        for (read, writing) in uploads {
            writing.abort();
            drop((read, writing.await));
        }
    });
}

/// Serves files to 16 peers that do not read, in a runtime with 4 blocking threads.
fn check_stalled_file_readers(mode: &'static str, name: &'static str) {
    run_alone(4, async move {
        let file = sparse_file(64 << 20);
        let fixture = Fixture::new(&[("spark.test.io.mode", mode)]).await;
        *fixture.handler.file.lock() = file.path().to_owned();
        let peak = Peak::start();
        let mut stalled = Vec::new();
        for _ in 0..16 {
            let mut raw = fixture.raw().await;
            let requests: Vec<u8> = (0..100).flat_map(|_| chunk_request(FILE, 64)).collect();
            raw.send(&requests).await;
            stalled.push(raw);
        }
        wait_until_stalled(&fixture).await;
        for _ in 0..5 {
            let mut raw = fixture.raw().await;
            raw.send(&chunk_request(FILE, 2)).await;
            let answer = raw.frame().await.expect(name);
            assert_eq!((answer.kind, answer.rest.len()), (CHUNK_SUCCESS, 12 + (2 << 20)));
            raw.echo(b"and others").await;
        }
        assert!(peak.so_far() < 100 * MIB, "{} MiB", peak.so_far() / MIB);
        // One of the peers reads after all.
        let mut answer = vec![0; 21 + (64 << 20)];
        within("a chunk", stalled[7].0.read_exact(&mut answer)).await.unwrap();
        assert_eq!(answer[8], CHUNK_SUCCESS);
        // Everything is released when the peers disconnect.
        drop(stalled);
        let metrics = fixture.context.metrics();
        eventually("all gauges return to 0", || {
            let now = metrics.server().snapshot();
            (now.connections, now.chunks_being_transferred, fixture.handler.bodies.now())
                == (0, 0, 0)
        })
        .await;
    });
}

#[test]
fn peers_stalled_in_sendfile_hold_no_blocking_thread() {
    check_stalled_file_readers("AUTO", "sendfile");
}

#[test]
fn peers_stalled_in_copied_files_hold_no_blocking_thread() {
    check_stalled_file_readers("NIO", "pieces");
}

#[test]
fn cfh_01_unsent_chunks_are_no_longer_counted_after_close() {
    run_alone(8, async {
        let fixture = Fixture::new(&[
            ("spark.shuffle.maxChunksBeingTransferred", "1000"),
            ("spark.test.io.maxWriteQueueSize", "8m"),
        ])
        .await;
        let metrics = fixture.context.metrics();
        for round in 0..8 {
            let mut raw = fixture.raw().await;
            let stream = if round % 2 == 0 { MEBIBYTES } else { NEVER };
            raw.send(&(0..300).flat_map(|i| chunk_request(stream, i)).collect::<Vec<u8>>()).await;
            eventually("all chunks are counted", || {
                metrics.server().snapshot().chunks_being_transferred == 300
            })
            .await;
            if round % 4 < 2 {
                raw.reset()
            } else {
                drop(raw)
            }
            eventually_or(
                || {
                    format!(
                        "round {round}: the gauge does not return to 0: {:?}",
                        metrics.server().snapshot()
                    )
                },
                || metrics.server().snapshot().chunks_being_transferred == 0,
            )
            .await;
        }
        // Over the limit the connection closes without a response, and the error names the setting.
        let mut raw = fixture.raw().await;
        let peer = local(&raw);
        raw.send(&(0..2000).flat_map(|i| chunk_request(NEVER, i)).collect::<Vec<u8>>()).await;
        raw.assert_closed_without_data("over the limit").await;
        let (kind, text) = fixture.handler.exception(peer).await;
        assert_eq!(kind, ErrorKind::Limit);
        assert!(
            text.contains("spark.shuffle.maxChunksBeingTransferred") && text.contains("1000"),
            "{text}"
        );
        eventually("the gauge returns to 0", || {
            metrics.server().snapshot().chunks_being_transferred == 0
        })
        .await;
        fixture.assert_serves().await;
    });
}

#[test]
fn thousand_connections_leave_no_resources() {
    run_alone(8, async {
        let fixture = Fixture::new(&[("spark.test.io.maxWriteQueueSize", "1m")]).await;
        let file = sparse_file(64 << 20);
        *fixture.handler.file.lock() = file.path().to_owned();
        let metrics = fixture.context.metrics();
        let runtime = tokio::runtime::Handle::current();
        let alive = || runtime.metrics().num_alive_tasks();
        let is_quiet = || {
            let now = metrics.server().snapshot();
            now.connections == 0
                && fixture.handler.bodies.now() == 0
                && fixture.handler.futures.now() == 0
        };
        let files_before = open_files();
        let tasks_before = alive();
        // Starts with more concurrent uploads than later, because the buffers that the context
        // keeps are no leak.
        let mut uploads = join_all((0..20).map(|_| fixture.raw())).await;
        for raw in &mut uploads {
            raw.send(&[upload(1, "sum", 1 << 20), vec![0; 1000]].concat()).await;
        }
        eventually("all uploads are active", || fixture.handler.futures.now() == uploads.len())
            .await;
        wait_until_stalled(&fixture).await;
        drop(uploads);
        let mut after_warm_up = 0;
        for round in 0..6 {
            for batch in 0..4 {
                let raws = join_all((0..50).map(|_| fixture.raw())).await;
                for (i, mut raw) in raws.into_iter().enumerate() {
                    let bytes = match (i + batch) % 10 {
                        0 => Vec::new(),
                        1 => rpc(1, b"echo"),
                        2 => rpc(1, b"echo")[..15].to_vec(),
                        3 => rpc(1, &vec![1; 100_000])[..50_000].to_vec(),
                        4 => [upload(1, "sum", 1 << 20), vec![0; 1000]].concat(),
                        5 => (0..100).flat_map(|i| chunk_request(MEBIBYTES, i)).collect(),
                        6 => [chunk_request(FILE, 64), chunk_request(FILE, 64)].concat(),
                        7 => chunk_request(NEVER, 1),
                        8 => rpc(1, b"later"),
                        _ => vec![0xff; 100],
                    };
                    // The connection may already be closed.
                    drop(within("writing", raw.0.write_all(&bytes)).await);
                    match i % 3 {
                        0 => raw.reset(),
                        1 => drop(raw),
                        _ => {
                            drop(raw.0.shutdown().await);
                            raw.read_to_end().await;
                        }
                    }
                }
                eventually_or(
                    || format!("{:?} {:?}", metrics.server().snapshot(), fixture.handler.futures),
                    is_quiet,
                )
                .await;
            }
            fixture.handler.seen.lock().clear();
            fixture.handler.seen.lock().shrink_to_fit();
            eventually_or(
                || format!("{} tasks instead of {tasks_before}", alive()),
                || alive() <= tasks_before && is_quiet(),
            )
            .await;
            // One file more is allowed: the first `sendfile` opens /dev/null and keeps it.
            eventually_or(
                || format!("{} files", open_files()),
                || open_files() <= files_before + 1,
            )
            .await;
            if round == 0 {
                after_warm_up = live();
            }
        }
        let now = metrics.server().snapshot();
        // Connections that were reset early may never have been accepted.
        assert!(now.connections_total >= 800);
        assert_eq!(
            (now.active_requests, now.write_queue_bytes, now.chunks_being_transferred),
            (0, 0, 0)
        );
        // 1000 connections have come and gone since the first measurement.
        eventually_or(
            || format!("{} bytes more than after the first round", live() - after_warm_up),
            || live() - after_warm_up < 200_000,
        )
        .await;
    });
}

#[test]
fn clients_and_factories_leave_no_resources() {
    run_alone(8, async {
        let fixture = Fixture::new(&[]).await;
        let runtime = tokio::runtime::Handle::current();
        let alive = || runtime.metrics().num_alive_tasks();
        let (files_before, tasks_before) = (open_files(), alive());
        let mut after_warm_up = 0;
        for round in 0..5 {
            for i in 0..40 {
                let context =
                    TransportContext::new(TransportConf::new("test"), ScriptedHandler::default());
                let factory = context.create_client_factory();
                let client = match i % 4 {
                    3 => within("connecting", factory.create_unmanaged_client(fixture.address))
                        .await
                        .unwrap(),
                    _ => {
                        within("connecting", factory.create_client(fixture.address)).await.unwrap()
                    }
                };
                let calls = [
                    client.send_rpc("never"),
                    client.fetch_chunk(NEVER, 1),
                    client.send_rpc("echo"),
                ];
                match i % 4 {
                    0 => {
                        drop(factory);
                        client.close();
                    }
                    1 => factory.close(),
                    2 => client.close(),
                    _ => drop((client, factory)),
                }
                for (index, call) in calls.into_iter().enumerate() {
                    if i % 4 == 3 {
                        // Futures keep the connection open, so only the echo completes.
                        if index == 2 {
                            assert_eq!(within("the echo", call).await.unwrap(), "echo");
                        } else {
                            let mut call = call;
                            assert!(
                                (&mut call).now_or_never().is_none_or(|result| result.is_err())
                            );
                        }
                    } else if let Err(error) = within("the end", call).await {
                        assert_lost(&error, fixture.address);
                    }
                }
                fixture.handler.kept.lock().clear();
                let metrics = context.metrics();
                eventually_or(
                    || format!("{i}: {:?}", metrics.client().snapshot()),
                    || {
                        let now = metrics.client().snapshot();
                        (now.connections, now.pending_requests, now.write_queue_bytes) == (0, 0, 0)
                    },
                )
                .await;
            }
            fixture.handler.kept.lock().clear();
            fixture.handler.seen.lock().clear();
            fixture.handler.seen.lock().shrink_to_fit();
            eventually_or(
                || format!("{} tasks, {tasks_before} before", alive()),
                || alive() <= tasks_before,
            )
            .await;
            eventually_or(|| format!("{} files", open_files()), || open_files() <= files_before)
                .await;
            if round == 0 {
                after_warm_up = live();
            }
        }
        eventually_or(
            || format!("{} bytes more than after the first round", live() - after_warm_up),
            || live() - after_warm_up < 200_000,
        )
        .await;
    });
}

#[test]
fn disconnect_is_noticed_while_stream_manager_hangs() {
    run_alone(8, async {
        let fixture = Fixture::new(&[]).await;
        // Few enough requests that the server still reads, and so sees the end of the connection.
        for reset in [false, true] {
            let mut raw = fixture.raw().await;
            let peer = local(&raw);
            raw.send(&(0..1000).flat_map(|i| chunk_request(NEVER, i)).collect::<Vec<u8>>()).await;
            wait_until_stalled(&fixture).await;
            if reset {
                raw.reset()
            } else {
                drop(raw)
            }
            let handler = &fixture.handler;
            eventually("the end", || handler.seen(peer).last() == Some(&ConnectionEvent::Inactive))
                .await;
            eventually("the stream manager's future is dropped", || handler.futures.now() == 0)
                .await;
        }
    });
}

/// A peer may use another address every time, so nothing may be kept for closed ones.
#[test]
fn closed_addresses_leave_nothing_in_pool() {
    run_alone(8, async {
        let context = TransportContext::new(TransportConf::new("test"), NoOpRpcHandler::new());
        let factory = context.create_client_factory();
        let kept = Fixture::new(&[]).await;
        let client = within("connecting", factory.create_client(kept.address)).await.unwrap();
        let mut after_warm_up = 0;
        for round in 0..1200 {
            let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = gone.local_addr().unwrap();
            let passing = within("connecting", factory.create_client(address)).await.unwrap();
            drop(gone);
            within("the end", passing.closed()).await;
            if round == 200 {
                after_warm_up = live();
            }
        }
        eventually_or(
            || format!("{} bytes for 1000 addresses", live() - after_warm_up),
            || live() - after_warm_up < 200_000,
        )
        .await;
        let again = within("connecting", factory.create_client(kept.address)).await.unwrap();
        assert_eq!(again.id(), client.id(), "an open connection must stay in the pool");
    });
}
