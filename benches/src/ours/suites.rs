//! network-common under Spark's `NettyTransportBenchmark`, with both ends in this process.

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

/// The form of the callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "a bench")]
pub enum Callers {
    /// Tasks, which await each response.
    Tasks,
    /// Threads of the operating system, which block for each response, as Spark's callers do.
    Threads,
}

/// Runs the rows of the benchmark.
#[derive(Debug)]
pub struct TransportSuites {
    runtime: Runtime,
    callers: Callers,
    files: Arc<[PathBuf]>,
    kept: Option<(TransportJob, Transport)>,
}

/// A server and the factory of its clients.
#[derive(Debug)]
struct Transport {
    server: TransportServer,
    factory: TransportClientFactory,
}

impl TransportSuites {
    /// Creates a runtime with tokio's defaults. `files` are the chunks.
    ///
    /// # Errors
    /// When the runtime cannot be created.
    pub fn new(callers: Callers, files: Vec<PathBuf>) -> Result<Self> {
        Ok(Self { runtime: Runtime::new()?, callers, files: files.into(), kept: None })
    }

    /// Runs one repetition. Connections are opened and called once before the time begins.
    ///
    /// # Errors
    /// When a call fails.
    pub fn run(&mut self, job: TransportJob) -> Result<TransportSample> {
        let transport = match self.kept.take() {
            Some((kept, transport)) if kept == job && job.keeps_transport => transport,
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
        self.kept = Some((job, transport));
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
            // Spark has no limit, and a burst queues 5 GB.
            ("spark.shuffle.io.maxWriteQueueSize", "16g"),
        ];
        let conf = TransportConf::from_settings("shuffle", settings)?;
        let context = TransportContext::new(conf, Handler { files });
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
    for ended in try_join_all(tasks).await? {
        ended?;
    }
    Ok(())
}

fn run_threads(callers: impl Iterator<Item = Caller>, runtime: &Handle) -> Result<()> {
    thread::scope(|scope| {
        let threads = callers.map(|caller| scope.spawn(move || caller.run_blocking(runtime)));
        for ended in threads.collect::<Vec<_>>() {
            ended.join().map_err(|_| anyhow::anyhow!("a caller panicked"))??;
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

    /// Does the same, but blocks for each response.
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
            // There are far fewer files than an index can count.
            TransportCall::Chunk => self.client.fetch_chunk(0, index as i32),
        }
    }

    fn check(&self, response: &Bytes) -> Result<()> {
        let expected = match self.job.call {
            TransportCall::Rpc => RESPONSE.len(),
            TransportCall::Chunk => self.job.bytes,
        };
        let length = response.len();
        ensure!(length == expected, "a response of {length} bytes, not {expected}");
        Ok(())
    }
}

/// Answers RPCs with 8 bytes, and serves one file per chunk index.
struct Handler {
    files: Arc<[PathBuf]>,
}

impl RpcHandler for Handler {
    fn receive(&self, _: &TransportClient, _: Bytes, callback: RpcResponseCallback) {
        callback.reply(RESPONSE);
    }

    fn stream_manager(&self) -> &dyn StreamManager {
        self
    }
}

impl StreamManager for Handler {
    fn get_chunk<'a>(
        &'a self,
        _: &'a TransportClient,
        _: i64,
        index: i32,
    ) -> BoxFuture<'a, Result<ManagedBuffer, BoxError>> {
        Box::pin(async move {
            let path = self.files.get(usize::try_from(index)?).ok_or("there is no such file")?;
            // Spark asks for the length with every chunk, too.
            let length = std::fs::metadata(path)?.len();
            Ok(ManagedBuffer::file(path, 0..length))
        })
    }
}
