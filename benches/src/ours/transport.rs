//! network-common: RPCs, chunks and streams.

use std::net::SocketAddr;
use std::sync::OnceLock;

use bench_protocol::{Case, Job, Sample};
use bytes::Bytes;
use futures::future::BoxFuture;
use network_common::{
    BoxError, ManagedBuffer, NoOpRpcHandler, RpcHandler, RpcResponseCallback, StreamManager,
    TransportClient, TransportClientFactory, TransportServer,
};

use super::bulk::{Fetch, Stream, then_write, to_file};
use super::{Security, beside, bulk::MEMORY};
use crate::Chunks;
use crate::load::{Client, Request, Target, run};
use crate::process::cannot;

/// The longest body out of memory.
const LONGEST: usize = 16 << 20;

/// Echoes RPCs. The id of a stream is the size of its chunks, negative for those out of memory; by
/// name a stream is `size_index`.
struct Handler {
    chunks: Option<Chunks>,
    memory: OnceLock<Bytes>,
}

impl RpcHandler for Handler {
    fn receive(&self, _: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
        callback.reply(message);
    }

    fn stream_manager(&self) -> &dyn StreamManager {
        self
    }
}

impl Handler {
    fn body(&self, size: i64, index: u64) -> Result<ManagedBuffer, BoxError> {
        let length = size.unsigned_abs();
        if size < 0 {
            let memory = self.memory.get_or_init(|| vec![7; LONGEST].into());
            return Ok(memory.slice(..usize::try_from(length)?).into());
        }
        let chunks = self.chunks.as_ref().ok_or("no file is served")?;
        let start = chunks.start(length, index);
        Ok(ManagedBuffer::file(&chunks.path, start..start + length))
    }
}

impl StreamManager for Handler {
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
            let (size, index) = name.split_once('_').ok_or("a stream is size_index")?;
            Ok(Some(self.body(size.parse()?, index.parse()?)?))
        })
    }
}

/// A server of RPCs, chunks and streams.
///
/// # Errors
/// When it cannot listen, or cannot be secured in that way.
pub async fn serve(chunks: Option<Chunks>, security: Security) -> anyhow::Result<TransportServer> {
    let handler = Handler { chunks, memory: OnceLock::new() };
    Ok(security.context(handler)?.create_server("127.0.0.1:0").await?)
}

fn factory(security: Security) -> anyhow::Result<TransportClientFactory> {
    Ok(security.context(NoOpRpcHandler::new())?.create_client_factory())
}

/// Everything that network-common does, as jobs.
#[derive(Debug)]
pub struct TransportCalls {
    address: SocketAddr,
    factory: TransportClientFactory,
    open: Vec<TransportClient>,
}

impl TransportCalls {
    /// With the server at `address`, which is secured in the same way.
    ///
    /// # Errors
    /// When that way is not to be had.
    pub fn new(address: SocketAddr, security: Security) -> anyhow::Result<Self> {
        Ok(Self { address, factory: factory(security)?, open: Vec::new() })
    }

    /// So many connections; those that are not there yet are made, and called once.
    async fn connections(&mut self, count: usize) -> anyhow::Result<&[TransportClient]> {
        while self.open.len() < count {
            let client = self.factory.create_unmanaged_client(self.address).await?;
            client.send_rpc("x").await?;
            self.open.push(client);
        }
        Ok(&self.open[..count])
    }
}

impl Client for TransportCalls {
    async fn run(&mut self, job: Job) -> anyhow::Result<Sample> {
        let apart = usize::from(job.case == Case::EchoApartFromFetch);
        let count = if job.case == Case::Hold { job.population } else { job.connections + apart };
        let clients = self.connections(count).await?;
        let size = i64::try_from(job.bytes)?;
        match job.case {
            Case::Echo => run(&targets(clients, Echo), &job).await,
            Case::FetchFile => run(&targets(clients, |c| Fetch::new(c, size)), &job).await,
            Case::FetchMemory => {
                run(&targets(clients, |c| Fetch::new(c, size * MEMORY)), &job).await
            }
            Case::StreamFile => run(&targets(clients, |c| Stream::new(c, size)), &job).await,
            Case::StreamMemory => {
                run(&targets(clients, |c| Stream::new(c, size * MEMORY)), &job).await
            }
            Case::FetchToFile => to_file(&clients[0], &job).await,
            Case::FetchThenWrite => then_write(&clients[0], &job).await,
            Case::EchoBesideFetch | Case::EchoApartFromFetch => {
                beside::run(&clients[apart], &clients[0], &job).await
            }
            Case::Hold => Ok(Sample::default()),
            other => Err(cannot(other)),
        }
    }
}

fn targets<T>(clients: &[TransportClient], target: impl FnMut(TransportClient) -> T) -> Vec<T> {
    clients.iter().cloned().map(target).collect()
}

/// A connection whose server echoes.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "a bench")]
pub struct Echo(pub TransportClient);

impl Target for Echo {
    const CASES: &'static [Case] = &[Case::Echo];
    const QUEUES: bool = true;

    async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self(factory(Security::Plain)?.create_unmanaged_client(address).await?))
    }

    fn call(&self, request: &Request) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
        let (answer, size) = (self.0.send_rpc(request.body.clone()), request.size);
        async move {
            anyhow::ensure!(answer.await?.len() == size, "an answer of the wrong length");
            Ok(())
        }
    }
}
