//! rpc-core: endpoints in this process and in another one.

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

use super::messages::{BenchMessage, Count, Hang, Ping, Pong, Tell};
use crate::actors::{Actor, Local, Received, send};
use crate::load::{Client, Pace, Request, Target, run};
use crate::process::cannot;

/// What all contenders' actors do; and it keeps the contexts of asks that are never answered.
#[derive(Default)]
struct Bench {
    received: Received,
    hanging: Vec<RpcCallContext<Pong>>,
}

impl ThreadSafeRpcEndpoint for Bench {
    type Message = BenchMessage;

    async fn receive(
        &mut self,
        message: BenchMessage,
        _: &EndpointContext<BenchMessage>,
    ) -> Result<(), RpcError> {
        match message {
            BenchMessage::Echo(ping, context) => context.reply(Pong { payload: ping.payload }),
            BenchMessage::Tell(tell) => {
                self.received.take(tell.producer, tell.sequence);
                Ok(())
            }
            BenchMessage::Count(Count {}, context) => {
                let (received, in_order) = self.received.report();
                context.reply(super::messages::Counted { received, in_order })
            }
            BenchMessage::Hang(Hang {}, context) => {
                self.hanging.push(context);
                Ok(())
            }
        }
    }
}

/// A ref, in this process or to another one.
#[derive(Clone, Debug)]
pub struct LocalEndpoint(RpcEndpointRef<BenchMessage>);

impl Actor for LocalEndpoint {
    const QUEUES: bool = true;

    async fn tell(&self, producer: u32, sequence: u64, body: &Bytes) -> anyhow::Result<()> {
        Ok(self.0.send_wait(Tell { producer, sequence, payload: body.clone() }).await?)
    }

    fn ask(&self) -> impl Future<Output = anyhow::Result<(u64, bool)>> + Send + 'static {
        let answer = self.0.ask(Count {});
        answer.map(|counted| {
            counted.map(|counted| (counted.received, counted.in_order)).map_err(Into::into)
        })
    }
}

/// Endpoints in this process.
///
/// # Errors
/// When the environment cannot start.
pub async fn local_endpoints() -> anyhow::Result<impl Client> {
    let env = RpcEnv::builder("bench").client_mode().start().await?;
    let mut names = 0..;
    Ok(Local::new(move || {
        let name = names.next().map(name).context("no name")?;
        Ok(LocalEndpoint(env.setup_endpoint(&name, Bench::default())?))
    }))
}

fn name(index: usize) -> String {
    format!("bench-{index}")
}

/// An environment with endpoints for others.
#[derive(Debug)]
pub struct RpcServer {
    env: RpcEnv,
    endpoints: usize,
}

impl RpcServer {
    /// Starts one; [`Case::Hold`] adds endpoints.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start() -> anyhow::Result<Self> {
        let env = RpcEnv::builder("bench-server").bind("127.0.0.1:0").start().await?;
        let mut server = Self { env, endpoints: 0 };
        server.hold(1)?;
        Ok(server)
    }

    /// Where it listens.
    ///
    /// # Errors
    /// Never, as a server has an address.
    pub fn address(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.env.address().context("a server has an address")?.to_string().parse()?)
    }

    /// Registers endpoints until there are `count`.
    ///
    /// # Errors
    /// When one cannot be registered.
    pub fn hold(&mut self, count: usize) -> anyhow::Result<()> {
        while self.endpoints < count {
            self.env.setup_endpoint(&name(self.endpoints), Bench::default())?;
            self.endpoints += 1;
        }
        Ok(())
    }
}

impl Client for RpcServer {
    async fn run(&mut self, job: Job) -> anyhow::Result<Sample> {
        match job.case {
            Case::Hold => self.hold(job.population)?,
            other => return Err(cannot(other)),
        }
        Ok(Sample::default())
    }
}

/// Environments that call those endpoints, each over a connection of its own.
#[derive(Debug)]
pub struct RpcClient {
    address: RpcAddress,
    /// Each with refs to the first endpoints of the server.
    open: Vec<(RpcEnv, Vec<RpcEndpointRef<BenchMessage>>)>,
    hanging: Vec<AskFuture<Pong>>,
}

impl RpcClient {
    /// Of the server at `address`.
    ///
    /// # Errors
    /// Never, as this is an address.
    pub fn new(address: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self { address: address.to_string().parse()?, open: Vec::new(), hanging: Vec::new() })
    }

    /// The refs of each of the connections, to so many endpoints in all, dealt out in turns; at
    /// least one each.
    async fn refs(
        &mut self,
        connections: usize,
        endpoints: usize,
    ) -> anyhow::Result<Vec<Vec<LocalEndpoint>>> {
        while self.open.len() < connections {
            let env = RpcEnv::builder("bench-client").client_mode().start().await?;
            self.open.push((env, Vec::new()));
        }
        let each = endpoints.div_ceil(connections);
        for (index, (env, refs)) in self.open[..connections].iter_mut().enumerate() {
            while refs.len() < each {
                let name = name((index * each + refs.len()) % endpoints);
                refs.push(env.setup_endpoint_ref(self.address.clone(), &name).await?);
            }
        }
        let first = |refs: &[_]| refs[..each].iter().cloned().map(LocalEndpoint).collect();
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
                    // They came in order, so when this is answered they are there.
                    endpoint.0.ask(Ping::default()).await?;
                }
            }
            return Ok(Sample::default());
        }
        let refs = self.refs(job.connections, job.population).await?;
        match job.case {
            // An echo of this crate is a typed one.
            Case::Ask | Case::Echo => {
                let targets: Vec<_> = refs.into_iter().map(Turns::new).collect();
                run(&targets, &job).await
            }
            Case::Send => send(&refs.concat(), &job).await,
            Case::FanOut => fan_out(&refs.concat(), &job).await,
            other => Err(cannot(other)),
        }
    }
}

async fn fan_out(endpoints: &[LocalEndpoint], job: &Job) -> anyhow::Result<Sample> {
    let mut pace = Pace::new(&Job { connections: 1, ..*job });
    let begun = Instant::now();
    while let Some(round) = pace.begin() {
        try_join_all(endpoints.iter().map(|endpoint| endpoint.0.ask(Ping::default()))).await?;
        pace.end(round)?;
    }
    Ok(pace.sample(begun.elapsed()))
}

/// Asks each of its endpoints in turn.
#[derive(Clone)]
struct Turns {
    endpoints: Arc<[LocalEndpoint]>,
    next: Arc<AtomicUsize>,
}

impl Turns {
    fn new(endpoints: Vec<LocalEndpoint>) -> Self {
        Self { endpoints: endpoints.into(), next: Arc::default() }
    }
}

impl Target for Turns {
    const CASES: &'static [Case] = &[Case::Ask, Case::Echo];
    const QUEUES: bool = true;

    async fn connect(_: SocketAddr) -> anyhow::Result<Self> {
        anyhow::bail!("made from refs")
    }

    fn call(&self, request: &Request) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.endpoints.len();
        let answer = self.endpoints[turn].0.ask(Ping { payload: request.body.clone() });
        let size = request.size;
        answer.map(move |pong| {
            anyhow::ensure!(pong?.payload.len() == size, "an answer of the wrong length");
            Ok(())
        })
    }
}
