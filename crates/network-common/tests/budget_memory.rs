//! Row `fault_m7`: the memory of this process while peers do not read, or do not complete their
//! requests. It has one test, because others would change the memory.

#![cfg(all(target_os = "linux", target_env = "gnu"))]
#![allow(unsafe_code, reason = "settings of the allocator")]
// Helper functions outside of tests unwrap as well.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use network_common::protocol::Message;
use network_common::{ByteBudget, ManagedBuffer};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use support::*;

const MIB: u64 = 1 << 20;
const PEERS: usize = 50;
/// The most bytes over the budget.
const ALLOWANCE: u64 = 64 * MIB;

unsafe extern "C" {
    fn malloc_trim(pad: usize) -> i32;
    fn mallopt(parameter: i32, value: i32) -> i32;
}

/// Makes glibc return large freed blocks to the system at once.
///
/// By default it raises its thresholds and keeps up to 64 MiB for each thread, so that the resident
/// bytes would include freed blocks. docs/guide/src/back-pressure.md describes the settings.
fn return_freed_memory() {
    const M_TRIM_THRESHOLD: i32 = -1;
    const M_MMAP_THRESHOLD: i32 = -3;
    for parameter in [M_TRIM_THRESHOLD, M_MMAP_THRESHOLD] {
        // SAFETY: the threads of the runtime do not exist yet.
        let is_set = unsafe { mallopt(parameter, 128 << 10) };
        assert_eq!(is_set, 1);
    }
}

/// Returns a field of `/proc/self/status` in bytes.
fn status(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Returns freed memory to the system, and the resident bytes.
fn trimmed_memory() -> u64 {
    // SAFETY: the function has no requirements.
    unsafe { malloc_trim(0) };
    status("VmRSS")
}

/// The requests of hostile peers.
#[derive(Clone, Copy, Debug)]
enum Demand {
    Streams,
    LateStreams,
    Chunks,
    Answers,
    LateAnswers,
    SmallAnswers,
    Failures,
    Names,
    HalfRequests,
}

impl Demand {
    /// Returns the requests of one peer, which together ask for more than 20 MiB.
    fn requests(self) -> Vec<u8> {
        let requests: Vec<Message> = match self {
            Self::Streams => vec![Message::StreamRequest { stream_id: "large".into() }],
            Self::LateStreams => vec![Message::StreamRequest { stream_id: "late".into() }],
            Self::Chunks => (0..21)
                .map(|chunk_index| Message::ChunkFetchRequest { stream_id: 1, chunk_index })
                .collect(),
            Self::Answers | Self::LateAnswers | Self::Failures => (0..24)
                .map(|request_id| {
                    let body = format!("{self:?}").into();
                    Message::RpcRequest { request_id, body }
                })
                .collect(),
            Self::SmallAnswers => (0..5400)
                .map(|request_id| Message::RpcRequest { request_id, body: "small".into() })
                .collect(),
            Self::Names => (0..320)
                .map(|index| Message::StreamRequest { stream_id: format!("{index:065000}") })
                .collect(),
            Self::HalfRequests => {
                let body = Bytes::from(vec![1; 60 << 20]);
                vec![Message::RpcRequest { request_id: 1, body }]
            }
        };
        let mut bytes: Vec<u8> =
            requests.iter().flat_map(|request| request.encode().unwrap()).collect();
        if let Self::HalfRequests = self {
            bytes.truncate(59 << 20);
        }
        bytes
    }
}

fn fresh(length: usize) -> Vec<u8> {
    // Not `vec![0; n]`, whose pages would not be resident.
    vec![7; length]
}

fn hostile_handler() -> Handler {
    Handler::new()
        .on_rpc(|_, message, callback| match &message[..] {
            b"Answers" => callback.reply(fresh(1 << 20)),
            b"LateAnswers" => {
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    callback.reply(fresh(1 << 20));
                });
            }
            b"small" => callback.reply(fresh(4000)),
            b"Failures" => callback.fail("x".repeat(900_000)),
            _ => callback.reply(message),
        })
        .on_chunk_later(|stream_id, _| async move {
            Ok(fresh(if stream_id == 1 { 1 << 20 } else { 10 }).into())
        })
        .on_stream_later(|name| async move {
            let length = match &name[..] {
                "large" => 21 << 20,
                "late" => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    21 << 20
                }
                _ => return Ok(None),
            };
            Ok(Some(ManagedBuffer::from(fresh(length))))
        })
}

/// Serves hostile peers and one good client; returns the figures as a text.
async fn run(demand: Demand, limit: u64) -> String {
    let base = trimmed_memory();
    let budget = ByteBudget::new(limit);
    let context = context(conf(&[]), hostile_handler()).with_byte_budget(&budget);
    let server = serve(&context).await;
    let address = server.local_addr();
    let other = ByteBudget::new(u64::MAX);
    let clients = support::context(conf(&[]), Handler::new()).with_byte_budget(&other);
    let factory = clients.create_client_factory();
    let client = within(factory.create_unmanaged_client(address)).await.unwrap();
    within(client.fetch_chunk(2, 0)).await.unwrap();

    let requests: Arc<[u8]> = demand.requests().into();
    let before = trimmed_memory();
    // 5 resets the peak.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let is_done = Arc::new(AtomicBool::new(false));
    let peak = Arc::new(AtomicU64::new(0));
    let sampling = std::thread::spawn({
        let (is_done, peak, budget) = (is_done.clone(), peak.clone(), budget.clone());
        move || {
            while !is_done.load(Ordering::Relaxed) {
                peak.fetch_max(budget.held(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    });
    let count = if let Demand::HalfRequests = demand { 20 } else { PEERS };
    let mut peers = Vec::new();
    for _ in 0..count {
        let mut peer = TcpStream::connect(address).await.unwrap();
        let requests = Arc::clone(&requests);
        peers.push(tokio::spawn(async move {
            // The server may close the connection while it is sent.
            let _ = peer.write_all(&requests).await;
            peer
        }));
    }
    let (mut rpcs, mut chunks) = (Vec::new(), Vec::new());
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        let start = Instant::now();
        assert_eq!(within(client.send_rpc("echo")).await.unwrap(), "echo");
        rpcs.push(start.elapsed());
        let start = Instant::now();
        assert_eq!(within(client.fetch_chunk(2, 0)).await.unwrap().len(), 10);
        chunks.push(start.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let memory = status("VmHWM").saturating_sub(before);
    let closed = context.metrics().server().snapshot().closed_for_budget;
    peers.iter().for_each(|peer| peer.abort());
    for peer in peers {
        drop(peer.await);
    }
    until(|| context.metrics().server().snapshot().connections == 1).await;
    until(|| budget.held() == 0).await;
    drop((client, server, requests));
    is_done.store(true, Ordering::Relaxed);
    sampling.join().unwrap();
    until(|| trimmed_memory().saturating_sub(base) <= ALLOWANCE).await;
    let after = trimmed_memory().saturating_sub(base);
    rpcs.sort();
    chunks.sort();
    let peak = peak.load(Ordering::Relaxed);
    let text = format!(
        "{demand:?}, budget {} MiB: held {}, resident {}, {} left MiB; {closed} closed; RPC p99 \
         {:?} max {:?}, chunk p99 {:?} max {:?}",
        limit / MIB,
        peak / MIB,
        memory / MIB,
        after / MIB,
        rpcs[rpcs.len() * 99 / 100],
        rpcs[rpcs.len() - 1],
        chunks[chunks.len() * 99 / 100],
        chunks[chunks.len() - 1],
    );
    assert!(peak <= limit + ALLOWANCE, "{text}");
    assert!(memory <= limit + ALLOWANCE, "{text}");
    // The median, because a loaded machine pauses this process for longer than that.
    assert!(rpcs[rpcs.len() / 2] < Duration::from_millis(50), "{text}");
    assert!(chunks[chunks.len() / 2] < Duration::from_millis(50), "{text}");
    text
}

#[test]
fn fault_m7_memory_stays_within_budget_while_peers_do_not_read() {
    return_freed_memory();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
    let demands = [
        Demand::Streams,
        Demand::LateStreams,
        Demand::Chunks,
        Demand::Answers,
        Demand::LateAnswers,
        Demand::SmallAnswers,
        Demand::Failures,
        Demand::Names,
        Demand::HalfRequests,
    ];
    for limit in [128 * MIB, 256 * MIB] {
        for demand in demands {
            println!("{}", runtime.block_on(run(demand, limit)));
        }
    }
}
