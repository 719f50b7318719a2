//! The protocol between `cargo xtask compare` and the programs that it measures.
//!
//! Every program, in any language, runs as two processes: `PROGRAM serve KIND` and `PROGRAM drive
//! KIND ADDRESS`. Each prints a line that begins with [`READY`] when it is ready; the server adds
//! its address. After that, each line of stdin is a [`Job`], and the process prints one line with
//! the [`Sample`], both in flat JSON. A process exits at the end of stdin.
//!
//! The processes live for all jobs, so connections stay open, JVMs stay warm, and `compare` can run
//! the programs in turns.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The first word of the line that a process prints when it is ready.
pub const READY: &str = "READY";

/// The kind of operation of a [`Job`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::exhaustive_enums, reason = "both sides are built from one tree")]
pub enum Case {
    /// Sends bytes over the transport and receives the same bytes.
    Echo,
    /// Sends a typed message to an endpoint or actor and receives its reply.
    Ask,
    /// Sends one-way messages to an endpoint or actor.
    ///
    /// A last ask checks that all of them were received in order.
    Send,
    /// Fetches a chunk of a file.
    FetchFile,
    /// Fetches a chunk that the server has in memory.
    FetchMemory,
    /// Reads a stream of a file piece by piece.
    StreamFile,
    /// Reads a stream that the server has in memory piece by piece.
    StreamMemory,
    /// Reads a chunk of a file as a stream and writes each piece to another file as it arrives.
    FetchToFile,
    /// Fetches a chunk of a file into memory and then writes it to another file.
    FetchThenWrite,
    /// Echoes, one at a time, while the same connection fetches file chunks.
    ///
    /// Four fetches are always in flight. The sample counts the fetches and has the latency of the
    /// echoes.
    EchoBesideFetch,
    /// Does the same as `EchoBesideFetch`, but fetches over another connection.
    EchoApartFromFetch,
    /// Asks each of `population` endpoints once, over all connections, and awaits all replies.
    ///
    /// An operation is one such round.
    FanOut,
    /// Creates a population without traffic, to measure its memory.
    ///
    /// A server registers endpoints until it has `population` of them. A client opens connections
    /// until it has that many and calls once on each, or starts that many actors if it has no
    /// server.
    Hold,
    /// Sends asks until `population` asks are pending. The server never replies to them.
    HoldAsks,
}

/// The condition that ends a job.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::exhaustive_enums, reason = "both sides are built from one tree")]
pub enum Until {
    /// The job ends after this number of operations.
    Operations(u64),
    /// The job ends after this number of milliseconds.
    Millis(u64),
}

/// The work that a measured program does for one sample.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "both sides are built from one tree")]
pub struct Job {
    /// The kind of operation.
    pub case: Case,
    /// The length of the body of a message, or of a chunk.
    pub bytes: usize,
    /// The number of connections to the server that the job uses.
    pub connections: usize,
    /// The number of tasks on each connection, or of producers if there is no connection.
    pub tasks: usize,
    /// The number of requests that each task has in flight.
    pub window: usize,
    /// The number of endpoints or actors, or as the [`Case`] defines it.
    pub population: usize,
    /// The requests per second that one task sends, independent of the number in flight.
    ///
    /// `None`: each task sends the next request when it has fewer than `window` in flight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// The condition that ends the job.
    #[serde(flatten)]
    pub until: Until,
}

impl Job {
    /// Returns a job of one 64-byte request at a time on one connection, for 1 s.
    #[must_use]
    pub fn new(case: Case) -> Self {
        Self {
            case,
            bytes: 64,
            connections: 1,
            tasks: 1,
            window: 1,
            population: 1,
            rate: None,
            until: Until::Millis(1000),
        }
    }
}

/// The result of a [`Job`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "both sides are built from one tree")]
pub struct Sample {
    /// The number of completed operations.
    pub operations: u64,
    /// The duration of the operations, without preparations.
    pub seconds: f64,
    /// The latency of the timed operations; `None` if no operation was timed.
    ///
    /// Rust programs time all operations if one is in flight at a time or `bytes` is at least
    /// 64 KiB, otherwise one in 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
}

/// One repetition of a row of Spark's `NettyTransportBenchmark`.
///
/// A program receives it on stdin, as one line of flat JSON, and answers with one line, a
/// [`TransportSample`]. It has both ends of the transport in its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "both sides are built from one tree")]
pub struct TransportJob {
    /// The request.
    pub call: TransportCall,
    /// The length of the body of an RPC, or of a chunk.
    pub bytes: usize,
    /// The number of calls, which the callers share.
    pub calls: usize,
    /// The number of connections.
    pub connections: usize,
    /// The number of callers. Caller `i` uses connection `i % connections`.
    pub callers: usize,
    /// A caller sends all its requests before it waits for the first response.
    pub at_once: bool,
    /// The setting `spark.shuffle.io.mode`.
    pub io_mode: IoMode,
    /// The setting `spark.shuffle.io.serverThreads`.
    pub server_threads: usize,
    /// All repetitions of a row use one server and one client factory.
    pub keeps_transport: bool,
}

impl TransportJob {
    /// Returns the indices of the calls of each caller.
    pub fn shares(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let each = self.calls / self.callers;
        (0..self.callers).map(move |caller| caller * each..(caller + 1) * each)
    }
}

/// The request of a [`TransportJob`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::exhaustive_enums, reason = "both sides are built from one tree")]
pub enum TransportCall {
    /// An RPC, whose response is 8 bytes.
    Rpc,
    /// The fetch of a chunk, which is a whole file.
    Chunk,
}

/// A value of `spark.<module>.io.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(clippy::exhaustive_enums, reason = "both sides are built from one tree")]
pub enum IoMode {
    /// The system calls that every platform has.
    Nio,
    /// The best system calls of the platform.
    Auto,
}

/// The result of a [`TransportJob`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "both sides are built from one tree")]
pub struct TransportSample {
    /// The duration of all calls, without the set-up of connections.
    pub seconds: f64,
    /// The CPU time of the process in that duration.
    pub cpu_seconds: f64,
}

/// One step of the comparison of external shuffle services.
///
/// `benches/shuffle` and the Java program `ShuffleBench` receive it on stdin, as one line of flat
/// JSON, and answer with one line, a [`Sample`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "both sides are built from one tree")]
pub struct ShuffleJob {
    /// The work of this step.
    pub step: ShuffleStep,
    /// The length of each block. It is also the id of the shuffle.
    pub bytes: usize,
    /// The number of maps of the shuffle, each of which has one data file.
    pub maps: usize,
    /// The number of reducers, each of which reads one block of every map.
    pub reducers: usize,
    /// The number of executors, or of connections, that the step creates.
    pub population: usize,
    /// The duration of reads in milliseconds.
    ///
    /// A reducer ends with the last block of a shuffle, so 0 reads the shuffle once.
    pub millis: u64,
}

/// The work of a [`ShuffleJob`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::exhaustive_enums, reason = "both sides are built from one tree")]
pub enum ShuffleStep {
    /// Writes the files of a shuffle.
    Write,
    /// Registers the executor of all shuffles, and repeats this until the service accepts it.
    Register,
    /// Reads the shuffle with all reducers at the same time, over one connection for each.
    ///
    /// An operation is a block.
    Read,
    /// Fetches single blocks one after the other. Each has a stream of its own.
    ///
    /// The sample has the latency of the fetches.
    Fetch,
    /// Creates the local directories of `population` executors.
    CreateExecutors,
    /// Registers these executors.
    RegisterExecutors,
    /// Opens `population` connections and fetches a block over each. They stay open.
    Connect,
}

/// Points of a latency histogram, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "both sides are built from one tree")]
pub struct Latency {
    /// The median.
    pub p50: f64,
    /// The 90th percentile.
    pub p90: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The 99.9th percentile.
    pub p999: f64,
    /// The 99.99th percentile.
    #[serde(default)]
    pub p9999: f64,
    /// The latency of the slowest operation.
    pub max: f64,
}

/// Writes a file of `size` bytes that servers read chunks from.
///
/// After that the file is in the page cache. `size` is a multiple of 1 MiB.
///
/// # Errors
/// Fails if the file cannot be written.
pub fn write_file(path: &Path, size: usize) -> io::Result<()> {
    let piece: Vec<u8> = (0..1usize << 20).map(|i| (i % 251) as u8).collect();
    let mut file = File::create(path)?;
    for _ in 0..size / piece.len() {
        file.write_all(&piece)?;
    }
    Ok(())
}
