//! The measurements, in groups whose contenders run at the same time and take turns.

use bench_protocol::{Case, Job, Until};
use clap::ValueEnum;

use super::place::Place;

/// The groups of measurements that `--only` selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum GroupName {
    /// Echo with one request at a time, on one core and on all (E1, A1).
    Latency,
    /// Echo with many concurrent requests (E2 to E5).
    Echo,
    /// Typed asks and one-way messages to another process (A2, A3).
    Ask,
    /// Messages within a process (L1).
    Local,
    /// Chunks and streams from files and memory (B1 to B5).
    Bulk,
    /// Chunks over secured connections (C1 to C3).
    Secure,
    /// Echo during transfers of chunks (B6).
    Beside,
    /// Idle connections, endpoints, actors and pending asks (S1 to S3, L2).
    Scale,
    /// Latency at fixed request rates (R1).
    Rate,
    /// Spark's own transport benchmark (N1).
    Transport,
    /// External shuffle services and block clients (S4 to S8).
    Shuffle,
}

/// A job and the contenders that run it.
pub(crate) struct Measurement {
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    pub(crate) group: GroupName,
    pub(crate) place: Place,
    pub(crate) job: Job,
    pub(crate) contenders: &'static [&'static str],
    /// System calls are counted in an additional run.
    pub(crate) traced: bool,
}

const MIB: usize = 1 << 20;
const LATENCY: &[&str] = &[
    "ours",
    "ours-rpc",
    "ping-pong",
    "smallest",
    "tarpc",
    "tonic",
    "ractor-cluster",
    "kameo-remote",
];
const ECHO: &[&str] = &["ours", "batched", "smallest", "tarpc", "tonic", "spark"];
const SHARED: &[&str] = &["ours", "smallest", "yielding", "tarpc", "tonic"];
const ASK: &[&str] = &["ours-rpc", "ractor-cluster", "kameo-remote", "spark-rpc"];
const LOCAL: &[&str] = &["ours-local", "channel", "actix", "kameo", "ractor"];
const FILE: &[&str] = &["ours", "chunks", "flight", "spark"];
const MEMORY: &[&str] = &["ours", "chunks", "hyper", "flight"];

const SECURED: &[&str] =
    &["ours", "ours-ctr", "ours-gcm", "ours-tls", "cipher-ctr", "cipher-gcm", "cipher-tls"];

/// Returns the measurements of all groups except `Scale`, `Rate`, `Transport` and `Shuffle`.
pub(crate) fn measurements() -> Vec<Measurement> {
    use GroupName::{Ask, Beside, Bulk, Echo, Latency, Local, Secure};
    use Place::{Cubic, Free, Pinned};
    let of = |group, place, contenders| {
        move |id, title, job| Measurement {
            id,
            title,
            group,
            place,
            job,
            contenders,
            traced: false,
        }
    };
    let (echo, ask, send) = (Job::new(Case::Echo), Job::new(Case::Ask), Job::new(Case::Send));
    let window = |job: Job, window| Job { window, ..job };
    let long = |job: Job| Job { bytes: 1024, ..job };
    let chunks = |case, bytes| Job { bytes, window: 4, ..Job::new(case) };
    let tasks = Job { tasks: 64, ..echo };
    // A fixed number of operations, because a producer faster than its actor could use all memory.
    let local = |tasks, population| {
        let until = Until::Operations(1_000_000);
        Job { bytes: 0, tasks, population, until, ..send }
    };

    let (pinned, latency) = (of(Latency, Pinned, LATENCY), of(Latency, Free, LATENCY));
    let (echoes, shared) = (of(Echo, Free, ECHO), of(Echo, Free, SHARED));
    let (asks, sends) = (of(Ask, Free, ASK), of(Ask, Free, &["ours-rpc"]));
    let locals = of(Local, Free, LOCAL);
    let (file, memory, ours) =
        (of(Bulk, Cubic, FILE), of(Bulk, Cubic, MEMORY), of(Bulk, Cubic, &["ours"]));
    let secured = of(Secure, Cubic, SECURED);
    let beside = of(Beside, Cubic, &["ours", "mixed"]);
    vec![
        pinned("echo-1-pinned", "echo, 1 in flight, both ends on one core", echo),
        latency("echo-1", "echo, 1 in flight", echo),
        echoes("echo-16", "echo, 16 in flight", window(echo, 16)),
        Measurement {
            traced: true,
            ..echoes("echo-128", "echo, 128 in flight", window(echo, 128))
        },
        echoes("echo-1024", "echo, 1024 in flight", window(echo, 1024)),
        echoes("echo-8x16", "echo, 8 connections x 16", Job { connections: 8, ..window(echo, 16) }),
        shared("echo-64-tasks", "echo, 64 tasks on one connection", tasks),
        echoes("kib-16", "echo of 1 KiB, 16 in flight", window(long(echo), 16)),
        Measurement {
            traced: true,
            ..echoes("kib-128", "echo of 1 KiB, 128 in flight", window(long(echo), 128))
        },
        echoes("kib-1024", "echo of 1 KiB, 1024 in flight", window(long(echo), 1024)),
        shared("kib-64-tasks", "echo of 1 KiB, 64 tasks on one connection", long(tasks)),
        asks("ask-128", "typed ask, 128 in flight", window(ask, 128)),
        sends("send", "typed one-way messages, 1 producer", send),
        of(Ask, Free, &["ours"])(
            "ask-echo-128",
            "echo, 128 in flight, in the run of the asks",
            window(echo, 128),
        ),
        locals("local-send-1", "local send, 1 producer", local(1, 1)),
        locals("local-send-4", "local send, 4 producers", local(4, 1)),
        locals("local-send-1000", "local send, 4 producers to 1000", local(4, 1000)),
        locals("local-ask-1", "local ask, 1 in flight", ask),
        locals("local-ask-128", "local ask, 128 in flight", window(ask, 128)),
        file("file-1", "file chunks of 1 MiB", chunks(Case::FetchFile, MIB)),
        file("file-4", "file chunks of 4 MiB", chunks(Case::FetchFile, 4 * MIB)),
        file("file-16", "file chunks of 16 MiB", chunks(Case::FetchFile, 16 * MIB)),
        memory("memory-1", "memory chunks of 1 MiB", chunks(Case::FetchMemory, MIB)),
        memory("memory-4", "memory chunks of 4 MiB", chunks(Case::FetchMemory, 4 * MIB)),
        memory("memory-16", "memory chunks of 16 MiB", chunks(Case::FetchMemory, 16 * MIB)),
        ours(
            "file-4-short",
            "file chunks of 4 MiB, 64 of them",
            counted(chunks(Case::FetchFile, 4 * MIB), 64),
        ),
        ours(
            "file-4-long",
            "file chunks of 4 MiB, 1024 of them",
            counted(chunks(Case::FetchFile, 4 * MIB), 1024),
        ),
        ours("to-file", "streams of 4 MiB into a file", chunks(Case::FetchToFile, 4 * MIB)),
        ours(
            "then-write",
            "chunks of 4 MiB into memory, then into a file",
            chunks(Case::FetchThenWrite, 4 * MIB),
        ),
        of(Bulk, Free, FILE)(
            "file-4-default",
            "file chunks of 4 MiB, the machine's congestion control",
            chunks(Case::FetchFile, 4 * MIB),
        ),
        secured("secured-file", "file chunks of 4 MiB, secured", chunks(Case::FetchFile, 4 * MIB)),
        secured(
            "secured-memory",
            "memory chunks of 4 MiB, secured",
            chunks(Case::FetchMemory, 4 * MIB),
        ),
        beside(
            "beside",
            "echo beside 4 fetches of 16 MiB on its connection",
            chunks(Case::EchoBesideFetch, 16 * MIB),
        ),
        beside(
            "apart",
            "echo beside 4 fetches of 16 MiB on another connection",
            chunks(Case::EchoApartFromFetch, 16 * MIB),
        ),
        of(Beside, Cubic, &["ours"])("alone", "echo, 1 in flight, before that", echo),
    ]
}

fn counted(job: Job, operations: u64) -> Job {
    Job { until: Until::Operations(operations), ..job }
}
