//! The server and the client of network-common: RPCs, chunks and streams.

use std::net::SocketAddr;
use std::sync::OnceLock;

use bench_protocol::{Case, Job, Sample};
use bytes::Bytes;
use futures::future::BoxFuture;
use network_common::{
    BoxError, ManagedBuffer, NoOpRpcHandler, RpcHandler, RpcResponseCallback, StreamManager,
    TransportClient, TransportClientFactory, TransportServer,
};

use super::bulk::{FetchTarget, StreamTarget, then_write, to_file};
use super::{Security, beside, bulk::MEMORY};
use crate::Chunks;
use crate::load::{Client, Request, Target, run};
use crate::process::unsupported;

/// The maximum length of a body that is served from memory.
const MAX_MEMORY_BODY: usize = 16 << 20;

/// Echoes RPCs, and serves chunks and streams.
///
/// A stream id is the size of its chunks; a negative size means that they are served from memory.
/// The name of a stream is `SIZE_INDEX`, where `SIZE` has the same meaning.
struct BenchHandler {
    chunks: Option<Chunks>,
    memory: OnceLock<Bytes>,
}

impl RpcHandler for BenchHandler {
    fn receive(&self, _: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
        callback.reply(message);
    }

    fn stream_manager(&self) -> &dyn StreamManager {
        self
    }
}

impl BenchHandler {
    fn body(&self, size: i64, index: u64) -> Result<ManagedBuffer, BoxError> {
        let length = size.unsigned_abs();
        if size < 0 {
            let memory = self.memory.get_or_init(|| vec![7; MAX_MEMORY_BODY].into());
            return Ok(memory.slice(..usize::try_from(length)?).into());
        }
        let chunks = self.chunks.as_ref().ok_or("the server has no file")?;
        let start = chunks.offset(length, index);
        Ok(ManagedBuffer::file(&chunks.path, start..start + length))
    }
}

impl StreamManager for BenchHandler {
    fn get_chunk<'a>(
        &'a self,
        _: &'a TransportClient,
        size: i64,
        index: i32,
    ) -> BoxFuture<'a, Result<ManagedBuffer, BoxError>> {
        Box::pin(async move { self.body(size, u64::from(index.unsigned_abs())) })
    }

    fn open_stream<'a>(
        &'a self,
        _: &'a TransportClient,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<ManagedBuffer>, BoxError>> {
        Box::pin(async move {
            let (size, index) = name.split_once('_').ok_or("the stream name is not SIZE_INDEX")?;
            Ok(Some(self.body(size.parse()?, index.parse()?)?))
        })
    }
}

/// Starts a server of RPCs, chunks and streams.
///
/// # Errors
/// Fails if the server cannot listen, or if this build does not support `security`.
pub async fn serve(chunks: Option<Chunks>, security: Security) -> anyhow::Result<TransportServer> {
    let handler = BenchHandler { chunks, memory: OnceLock::new() };
    Ok(security.context(handler)?.create_server("127.0.0.1:0").await?)
}

fn factory(security: Security) -> anyhow::Result<TransportClientFactory> {
    Ok(security.context(NoOpRpcHandler::new())?.create_client_factory())
}

/// A client that runs jobs over network-common.
#[derive(Debug)]
pub struct TransportCallClient {
    address: SocketAddr,
    factory: TransportClientFactory,
    open: Vec<TransportClient>,
}

impl TransportCallClient {
    /// Creates a client of the server at `address`, which has the same `security`.
    ///
    /// # Errors
    /// Fails if this build does not support `security`.
    pub fn new(address: SocketAddr, security: Security) -> anyhow::Result<Self> {
        Ok(Self { address, factory: factory(security)?, open: Vec::new() })
    }

    /// Returns `count` connections; opens those that do not exist yet, and calls once on each.
    async fn connections(&mut self, count: usize) -> anyhow::Result<&[TransportClient]> {
        while self.open.len() < count {
            let client = self.factory.create_unmanaged_client(self.address).await?;
            client.send_rpc("x").await?;
            self.open.push(client);
        }
        Ok(&self.open[..count])
    }
}

impl Client for TransportCallClient {
    async fn run(&mut self, job: Job) -> anyhow::Result<Sample> {
        let extra = usize::from(job.case == Case::EchoApartFromFetch);
        let count = if job.case == Case::Hold { job.population } else { job.connections + extra };
        let clients = self.connections(count).await?;
        let size = i64::try_from(job.bytes)?;
        match job.case {
            Case::Echo => run(&targets(clients, EchoTarget), &job).await,
            Case::FetchFile => run(&targets(clients, |c| FetchTarget::new(c, size)), &job).await,
            Case::FetchMemory => {
                run(&targets(clients, |c| FetchTarget::new(c, size * MEMORY)), &job).await
            }
            Case::StreamFile => run(&targets(clients, |c| StreamTarget::new(c, size)), &job).await,
            Case::StreamMemory => {
                run(&targets(clients, |c| StreamTarget::new(c, size * MEMORY)), &job).await
            }
            Case::FetchToFile => to_file(&clients[0], &job).await,
            Case::FetchThenWrite => then_write(&clients[0], &job).await,
            Case::EchoBesideFetch | Case::EchoApartFromFetch => {
                beside::run(&clients[extra], &clients[0], &job).await
            }
            Case::Hold => Ok(Sample::default()),
            other => Err(unsupported(other)),
        }
    }
}

fn targets<T>(clients: &[TransportClient], target: impl FnMut(TransportClient) -> T) -> Vec<T> {
    clients.iter().cloned().map(target).collect()
}

/// Makes one echo RPC per call.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "the crate is not published")]
pub struct EchoTarget(pub TransportClient);

impl Target for EchoTarget {
    const CASES: &'static [Case] = &[Case::Echo];
    const IS_EAGER: bool = true;

    async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self(factory(Security::Plain)?.create_unmanaged_client(address).await?))
    }

    fn call(&self, request: &Request) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
        let (response, size) = (self.0.send_rpc(request.body.clone()), request.size);
        async move {
            anyhow::ensure!(response.await?.len() == size, "the response has a wrong length");
            Ok(())
        }
    }
}
