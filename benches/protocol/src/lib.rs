//! What the measured programs and their conductor (`cargo xtask compare`) say to each other.
//!
//! Every program, whatever it is written in, runs in two processes: `PROGRAM serve KIND` and
//! `PROGRAM drive KIND ADDRESS`. Both print a line when they are ready, the server with its address
//! behind [`READY`]. From then on each line of stdin is a [`Job`] and is answered with one line of
//! stdout, a [`Sample`], both in flat JSON. The end of stdin ends the process. So connections stay,
//! JVMs stay warm, and the conductor interleaves the programs as it likes.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The first word of the line that a process prints when it is ready.
pub const READY: &str = "READY";

/// What is done in a [`Job`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::exhaustive_enums, reason = "both sides are built from one tree")]
pub enum Case {
    /// Bytes there and the same bytes back, over the transport.
    Echo,
    /// The same with typed messages to an endpoint or actor.
    Ask,
    /// One-way messages to an endpoint or actor. Ends with a question that shows that all arrived,
    /// in order.
    Send,
    /// Chunks of a file.
    FetchFile,
    /// Chunks out of memory.
    FetchMemory,
    /// One stream of a file, read piece by piece.
    StreamFile,
    /// One stream out of memory, read piece by piece.
    StreamMemory,
    /// A file's chunks as streams, each written to a file as its pieces come.
    FetchToFile,
    /// A file's chunks fetched into memory, and then written to a file.
    FetchThenWrite,
    /// Echoes, one at a time, while four fetches of file chunks are in flight on the same
    /// connection. The operations are the fetches, the latency is that of the echoes.
    EchoBesideFetch,
    /// The same with the fetches on another connection.
    EchoApartFromFetch,
    /// Asks every one of `population` endpoints once, over all connections, and begins again when
    /// all have answered. An operation is such a round.
    FanOut,
    /// Server: registers endpoints until there are `population`. Client: opens connections until
    /// there are that many, and calls once on each; or starts that many actors, if it has no
    /// server.
    Hold,
    /// Client: asks until `population` asks are outstanding. Nobody answers them.
    HoldAsks,
}

/// When a job ends.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::exhaustive_enums, reason = "both sides are built from one tree")]
pub enum Until {
    /// When so many operations have been begun.
    Operations(u64),
    /// After so many milliseconds.
    Millis(u64),
}

/// A piece of work for a measured program.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "both sides are built from one tree")]
pub struct Job {
    /// What is done.
    pub case: Case,
    /// The body of a message or the length of a chunk.
    pub bytes: usize,
    /// Connections that are used, of those to one server.
    pub connections: usize,
    /// Tasks on each connection; producers, where there is none.
    pub tasks: usize,
    /// What each task has in flight.
    pub window: usize,
    /// Endpoints or actors that are used, or what the [`Case`] says.
    pub population: usize,
    /// Requests per second, sent on schedule by one task, whatever is in flight; `None`: each task
    /// sends the next request when it has fewer than `window` in flight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// When it ends.
    #[serde(flatten)]
    pub until: Until,
}

impl Job {
    /// One at a time on one connection, 64 bytes, for a second.
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

/// What a job came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "both sides are built from one tree")]
pub struct Sample {
    /// Operations that were completed.
    pub operations: u64,
    /// How long that took, without preparations.
    pub seconds: f64,
    /// Of every operation if they went one at a time, else of one in 64; none if nothing was timed.
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

/// Points of a latency histogram, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "both sides are built from one tree")]
pub struct Latency {
    /// Half took no longer.
    pub p50: f64,
    /// 90 in 100 took no longer.
    pub p90: f64,
    /// 99 in 100 took no longer.
    pub p99: f64,
    /// 999 in 1000 took no longer.
    pub p999: f64,
    /// 9999 in 10 000 took no longer.
    #[serde(default)]
    pub p9999: f64,
    /// The slowest.
    pub max: f64,
}

/// Writes the file that chunks are taken from, of `size` bytes; so it is in the page cache.
///
/// # Errors
/// When it cannot be written.
pub fn write_file(path: &Path, size: usize) -> io::Result<()> {
    let piece: Vec<u8> = (0..1usize << 20).map(|i| (i % 251) as u8).collect();
    let mut file = File::create(path)?;
    for _ in 0..size / piece.len() {
        file.write_all(&piece)?;
    }
    Ok(())
}
