//! Spark's `NettyTransportBenchmark` over network-common, with both ends in one process.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use anyhow::{Result, ensure};
use bench_protocol::{IoMode, TransportCall, TransportJob, TransportSample};
use bytes::Bytes;
use futures::future::{BoxFuture, try_join_all};
use network_common::{BoxError, ManagedBuffer, RequestFuture, RpcHandler, RpcResponseCallback};
use network_common::{StreamManager, TransportClient, TransportClientFactory, TransportConf};
use network_common::{TransportContext, TransportServer};
use tokio::runtime::{Handle, Runtime};

use crate::process::Stopwatch;

/// The body of every RPC response.
const RESPONSE: Bytes = Bytes::from_static(&[0, 0, 0, 0, 0, 0, 0, 1]);

/// The kind of callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "the crate is not published")]
pub enum Callers {
    /// The callers are tasks that await each response.
    Tasks,
    /// The callers are threads that block for each response, as in Spark.
    Threads,
}

/// Runs the rows of the benchmark.
#[derive(Debug)]
pub struct TransportSuites {
    runtime: Runtime,
    callers: Callers,
    files: Arc<[PathBuf]>,
    /// The transport of the latest repetition.
    latest: Option<(TransportJob, Transport)>,
}

/// A server and the client factory for it.
#[derive(Debug)]
struct Transport {
    server: TransportServer,
    factory: TransportClientFactory,
}

impl TransportSuites {
    /// Creates a runtime with tokio's defaults. Chunk i is the whole of `files[i]`.
    ///
    /// # Errors
    /// Fails if the runtime cannot be created.
    pub fn new(callers: Callers, files: Vec<PathBuf>) -> Result<Self> {
        Ok(Self { runtime: Runtime::new()?, callers, files: files.into(), latest: None })
    }

    /// Runs one repetition.
    ///
    /// The measured time does not contain the set-up of the connections and a first call on each.
    ///
    /// # Errors
    /// Fails if a call fails.
    pub fn run(&mut self, job: TransportJob) -> Result<TransportSample> {
        let transport = match self.latest.take() {
            Some((latest, transport)) if latest == job && job.keeps_transport => transport,
            _ => self.runtime.block_on(Transport::new(job, Arc::clone(&self.files)))?,
        };
        let body = Bytes::from(vec![0; job.bytes]);
        let clients = self.runtime.block_on(transport.clients(job, &body))?;
        let callers = job.shares().zip(clients.iter().cycle()).map(|(calls, client)| Caller {
            client: client.clone(),
            job,
            body: body.clone(),
            calls,
        });
        let stopwatch = Stopwatch::start();
        match self.callers {
            Callers::Tasks => self.runtime.block_on(run_tasks(callers)),
            Callers::Threads => run_threads(callers, self.runtime.handle()),
        }?;
        let sample = stopwatch.stop();
        for client in clients {
            client.close();
        }
        self.latest = Some((job, transport));
        Ok(sample)
    }
}

impl Transport {
    async fn new(job: TransportJob, files: Arc<[PathBuf]>) -> Result<Self> {
        let threads = job.server_threads.to_string();
        let io_mode = match job.io_mode {
            IoMode::Nio => "NIO",
            IoMode::Auto => "AUTO",
        };
        let settings = [
            ("spark.shuffle.io.mode", io_mode),
            ("spark.shuffle.io.serverThreads", &threads),
            ("spark.shuffle.io.clientThreads", "4"),
            // Spark has no such limit, and the burst suite queues 5 GB.
            ("spark.shuffle.io.maxWriteQueueSize", "16g"),
        ];
        let conf = TransportConf::from_settings("shuffle", settings)?;
        let context = TransportContext::new(conf, SuiteHandler { files });
        let server = context.create_server("127.0.0.1:0").await?;
        Ok(Self { server, factory: context.create_client_factory() })
    }

    /// Opens the connections and calls once on each.
    async fn clients(&self, job: TransportJob, body: &Bytes) -> Result<Vec<TransportClient>> {
        let mut clients = Vec::new();
        for _ in 0..job.connections {
            let client = self.factory.create_unmanaged_client(self.server.local_addr()).await?;
            let body = body.clone();
            Caller { client: client.clone(), job, body, calls: 0..1 }.run().await?;
            clients.push(client);
        }
        Ok(clients)
    }
}

async fn run_tasks(callers: impl Iterator<Item = Caller>) -> Result<()> {
    let tasks: Vec<_> = callers.map(|caller| tokio::spawn(caller.run())).collect();
    for result in try_join_all(tasks).await? {
        result?;
    }
    Ok(())
}

fn run_threads(callers: impl Iterator<Item = Caller>, runtime: &Handle) -> Result<()> {
    thread::scope(|scope| {
        let threads = callers.map(|caller| scope.spawn(move || caller.run_blocking(runtime)));
        for thread in threads.collect::<Vec<_>>() {
            thread.join().map_err(|_| anyhow::anyhow!("a caller panicked"))??;
        }
        Ok(())
    })
}

/// Makes a part of the calls of a repetition.
struct Caller {
    client: TransportClient,
    job: TransportJob,
    body: Bytes,
    calls: Range<usize>,
}

impl Caller {
    async fn run(self) -> Result<()> {
        if self.job.at_once {
            for response in self.send_all() {
                self.check(&response.await?)?;
            }
            return Ok(());
        }
        for index in self.calls.clone() {
            self.check(&self.send(index).await?)?;
        }
        Ok(())
    }

    /// Does the same as [`run`](Self::run), but blocks for each response.
    fn run_blocking(self, runtime: &Handle) -> Result<()> {
        if self.job.at_once {
            for response in self.send_all() {
                self.check(&runtime.block_on(response)?)?;
            }
            return Ok(());
        }
        for index in self.calls.clone() {
            self.check(&runtime.block_on(self.send(index))?)?;
        }
        Ok(())
    }

    fn send_all(&self) -> Vec<RequestFuture<Bytes>> {
        self.calls.clone().map(|index| self.send(index)).collect()
    }

    fn send(&self, index: usize) -> RequestFuture<Bytes> {
        match self.job.call {
            TransportCall::Rpc => self.client.send_rpc(self.body.clone()),
            // The number of files is far below `i32::MAX`.
            TransportCall::Chunk => self.client.fetch_chunk(0, index as i32),
        }
    }

    fn check(&self, response: &Bytes) -> Result<()> {
        let expected = match self.job.call {
            TransportCall::Rpc => RESPONSE.len(),
            TransportCall::Chunk => self.job.bytes,
        };
        let length = response.len();
        ensure!(length == expected, "the response has {length} bytes instead of {expected}");
        Ok(())
    }
}

/// Responds to RPCs with 8 bytes, and serves one whole file per chunk index.
struct SuiteHandler {
    files: Arc<[PathBuf]>,
}

impl RpcHandler for SuiteHandler {
    fn receive(&self, _: &TransportClient, _: Bytes, callback: RpcResponseCallback) {
        callback.reply(RESPONSE);
    }

    fn stream_manager(&self) -> &dyn StreamManager {
        self
    }
}

impl StreamManager for SuiteHandler {
    fn get_chunk<'a>(
        &'a self,
        _: &'a TransportClient,
        _: i64,
        index: i32,
    ) -> BoxFuture<'a, Result<ManagedBuffer, BoxError>> {
        Box::pin(async move {
            let path = self.files.get(usize::try_from(index)?).ok_or("there is no such file")?;
            // Spark also reads the file's length for every chunk.
            let length = std::fs::metadata(path)?.len();
            Ok(ManagedBuffer::file(path, 0..length))
        })
    }
}
