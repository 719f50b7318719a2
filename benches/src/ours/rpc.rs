//! Endpoints of rpc-core, in this process and in another one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::Context;
use bench_protocol::{Case, Job, Sample};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::try_join_all;
use rpc_core::{
    AskFuture, EndpointContext, RpcAddress, RpcCallContext, RpcEndpointRef, RpcEnv, RpcError,
    ThreadSafeRpcEndpoint,
};

use super::messages::{BenchMessage, Count, Counted, Hang, Ping, Pong, Post};
use crate::actors::{Actor, LocalActors, Received, run_sends};
use crate::load::{Client, Meter, Request, Target, run};
use crate::process::unsupported;

/// The measured endpoint.
#[derive(Default)]
struct BenchEndpoint {
    received: Received,
    /// The contexts of asks that never get a reply.
    hanging: Vec<RpcCallContext<Pong>>,
}

impl ThreadSafeRpcEndpoint for BenchEndpoint {
    type Message = BenchMessage;

    async fn receive(
        &mut self,
        message: BenchMessage,
        _: &EndpointContext<BenchMessage>,
    ) -> Result<(), RpcError> {
        match message {
            BenchMessage::Echo(ping, context) => context.reply(Pong { payload: ping.payload }),
            BenchMessage::Post(post) => {
                self.received.record(post.producer, post.sequence);
                Ok(())
            }
            BenchMessage::Count(Count {}, context) => {
                let (received, in_order) = self.received.report();
                context.reply(Counted { received, in_order })
            }
            BenchMessage::Hang(Hang {}, context) => {
                self.hanging.push(context);
                Ok(())
            }
        }
    }
}

/// A ref to a local or remote `BenchEndpoint`.
#[derive(Clone, Debug)]
pub struct BenchRef(RpcEndpointRef<BenchMessage>);

impl Actor for BenchRef {
    const IS_EAGER: bool = true;

    async fn send(&self, producer: u32, sequence: u64, body: &Bytes) -> anyhow::Result<()> {
        Ok(self.0.send_wait(Post { producer, sequence, payload: body.clone() }).await?)
    }

    fn ask(&self) -> impl Future<Output = anyhow::Result<(u64, bool)>> + Send + 'static {
        let reply = self.0.ask(Count {});
        reply.map(|counted| {
            counted.map(|counted| (counted.received, counted.in_order)).map_err(Into::into)
        })
    }
}

/// Returns a client that starts and calls endpoints in this process.
///
/// # Errors
/// Fails if the environment cannot start.
pub async fn local_endpoints() -> anyhow::Result<impl Client> {
    let env = RpcEnv::builder("bench").client_mode().start().await?;
    let mut indices = 0..;
    Ok(LocalActors::new(move || {
        let name = indices.next().map(endpoint_name).context("no index is left")?;
        Ok(BenchRef(env.setup_endpoint(&name, BenchEndpoint::default())?))
    }))
}

fn endpoint_name(index: usize) -> String {
    format!("bench-{index}")
}

/// An environment that serves endpoints to other processes.
#[derive(Debug)]
pub struct RpcServer {
    env: RpcEnv,
    endpoints: usize,
}

impl RpcServer {
    /// Starts an environment with one endpoint. [`Case::Hold`] adds endpoints.
    ///
    /// # Errors
    /// Fails if the environment cannot listen.
    pub async fn start() -> anyhow::Result<Self> {
        let env = RpcEnv::builder("bench-server").bind("127.0.0.1:0").start().await?;
        let mut server = Self { env, endpoints: 0 };
        server.hold(1)?;
        Ok(server)
    }

    /// Returns the address on which the environment listens.
    ///
    /// # Errors
    /// Never fails for an environment in server mode.
    pub fn address(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.env.address().context("the server has no address")?.to_string().parse()?)
    }

    /// Registers endpoints until there are `count`.
    ///
    /// # Errors
    /// Fails if an endpoint cannot be registered.
    pub fn hold(&mut self, count: usize) -> anyhow::Result<()> {
        while self.endpoints < count {
            self.env.setup_endpoint(&endpoint_name(self.endpoints), BenchEndpoint::default())?;
            self.endpoints += 1;
        }
        Ok(())
    }
}

impl Client for RpcServer {
    async fn run(&mut self, job: Job) -> anyhow::Result<Sample> {
        match job.case {
            Case::Hold => self.hold(job.population)?,
            other => return Err(unsupported(other)),
        }
        Ok(Sample::default())
    }
}

/// Environments that call the endpoints of an [`RpcServer`], each over its own connection.
#[derive(Debug)]
pub struct RpcClient {
    address: RpcAddress,
    /// The environments, each with its refs to endpoints of the server.
    open: Vec<(RpcEnv, Vec<RpcEndpointRef<BenchMessage>>)>,
    hanging: Vec<AskFuture<Pong>>,
}

impl RpcClient {
    /// Creates a client of the server at `address`, without a connection.
    ///
    /// # Errors
    /// Never fails, because every `SocketAddr` is a valid `RpcAddress`.
    pub fn new(address: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self { address: address.to_string().parse()?, open: Vec::new(), hanging: Vec::new() })
    }

    /// Returns the refs of each connection.
    ///
    /// The endpoints are distributed evenly over the connections, at least one for each.
    async fn refs(
        &mut self,
        connections: usize,
        endpoints: usize,
    ) -> anyhow::Result<Vec<Vec<BenchRef>>> {
        while self.open.len() < connections {
            let env = RpcEnv::builder("bench-client").client_mode().start().await?;
            self.open.push((env, Vec::new()));
        }
        let per_connection = endpoints.div_ceil(connections);
        for (index, (env, refs)) in self.open[..connections].iter_mut().enumerate() {
            while refs.len() < per_connection {
                let name = endpoint_name((index * per_connection + refs.len()) % endpoints);
                refs.push(env.setup_endpoint_ref(self.address.clone(), &name).await?);
            }
        }
        let first = |refs: &[_]| refs[..per_connection].iter().cloned().map(BenchRef).collect();
        Ok(self.open[..connections].iter().map(|(_, refs)| first(refs)).collect())
    }
}

impl Client for RpcClient {
    async fn run(&mut self, job: Job) -> anyhow::Result<Sample> {
        if job.case == Case::HoldAsks {
            let endpoint = self.refs(1, 1).await?[0][0].clone();
            while self.hanging.len() < job.population {
                self.hanging.push(endpoint.0.ask(Hang {}));
                if self.hanging.len().is_multiple_of(1000) {
                    // Messages are handled in order, so this reply shows that the server has
                    // received the asks before it.
                    endpoint.0.ask(Ping::default()).await?;
                }
            }
            return Ok(Sample::default());
        }
        let refs = self.refs(job.connections, job.population).await?;
        match job.case {
            // rpc-core has only typed messages, so an echo is an ask.
            Case::Ask | Case::Echo => {
                let targets: Vec<_> = refs.into_iter().map(AskTarget::new).collect();
                run(&targets, &job).await
            }
            Case::Send => run_sends(&refs.concat(), &job).await,
            Case::FanOut => fan_out(&refs.concat(), &job).await,
            other => Err(unsupported(other)),
        }
    }
}

async fn fan_out(endpoints: &[BenchRef], job: &Job) -> anyhow::Result<Sample> {
    let mut meter = Meter::new(&Job { connections: 1, ..*job });
    let start = Instant::now();
    while let Some(round) = meter.begin() {
        try_join_all(endpoints.iter().map(|endpoint| endpoint.0.ask(Ping::default()))).await?;
        meter.end(round)?;
    }
    Ok(meter.sample(start.elapsed()))
}

/// Asks the endpoints of one connection in turn.
#[derive(Clone)]
struct AskTarget {
    endpoints: Arc<[BenchRef]>,
    next: Arc<AtomicUsize>,
}

impl AskTarget {
    fn new(endpoints: Vec<BenchRef>) -> Self {
        Self { endpoints: endpoints.into(), next: Arc::default() }
    }
}

impl Target for AskTarget {
    const CASES: &'static [Case] = &[Case::Ask, Case::Echo];
    const IS_EAGER: bool = true;

    async fn connect(_: SocketAddr) -> anyhow::Result<Self> {
        anyhow::bail!("this target is created from refs")
    }

    fn call(&self, request: &Request) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
        let index = self.next.fetch_add(1, Ordering::Relaxed) % self.endpoints.len();
        let reply = self.endpoints[index].0.ask(Ping { payload: request.body.clone() });
        let size = request.size;
        reply.map(move |pong| {
            anyhow::ensure!(pong?.payload.len() == size, "the reply has a wrong length");
            Ok(())
        })
    }
}
