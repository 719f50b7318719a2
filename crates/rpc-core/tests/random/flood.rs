//! Many senders that wait for capacity, and slow endpoints with small limits.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rpc_core::{
    EndpointContext, ErrorKind, MemoryNetwork, RpcAddress, RpcConf, RpcEndpointRef, RpcEnv,
    RpcError, ThreadSafeRpcEndpoint,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::fixture::SOON;
use crate::messages::{Order, WorkDo, WorkMessage, WorkNotify};
use crate::record::{LeakToken, MessageId, RunRecord};

const ENDPOINTS: [&str; 3] = ["first", "second", "third"];

/// An endpoint that reports each message, after the delay that the message contains.
struct Slow {
    handled: mpsc::UnboundedSender<MessageId>,
    _token: LeakToken,
}

impl ThreadSafeRpcEndpoint for Slow {
    type Message = WorkMessage;
    async fn receive(
        &mut self,
        message: WorkMessage,
        _: &EndpointContext<WorkMessage>,
    ) -> Result<(), RpcError> {
        let (WorkMessage::Do(order, _) | WorkMessage::Notify(order)) = message;
        if order.millis > 0 {
            tokio::time::sleep(Duration::from_millis(order.millis.into())).await;
        }
        self.handled.send((order.holder, order.number)).map_err(RpcError::application)
    }
}

struct Sender {
    record: Arc<RunRecord>,
    random: StdRng,
    env: RpcEnv,
    to: RpcAddress,
}

impl Sender {
    /// Sends messages to one endpoint, and returns the id of the holder and their number.
    async fn send_all(mut self) -> Result<(u64, u64), RpcError> {
        let (holder, total) = (self.record.new_holder(), self.random.random_range(1..200));
        let name = ENDPOINTS[self.random.random_range(0..ENDPOINTS.len())];
        let mut endpoint = self.look_up(name).await?;
        for number in 1..=total {
            if self.random.random_bool(0.02) {
                endpoint = self.look_up(name).await?;
            }
            let order = Order {
                holder,
                number,
                millis: self.random.random_range(0_u32..60).saturating_sub(58),
                payload: vec![0; self.random.random_range(0..400)].into(),
                ..Order::default()
            };
            if self.random.random() {
                endpoint.send_wait(WorkNotify(order)).await?;
            } else {
                endpoint.send_wait(WorkDo(order)).await?;
            }
        }
        Ok((holder, total))
    }

    async fn look_up(&self, name: &str) -> Result<RpcEndpointRef<WorkMessage>, RpcError> {
        loop {
            match self.env.setup_endpoint_ref(self.to.clone(), name).await {
                // An ask fails instead of waiting when there is no capacity.
                Err(error) if error.kind() == ErrorKind::Limit => {
                    tokio::time::sleep(Duration::from_millis(1)).await
                }
                looked_up => return looked_up,
            }
        }
    }
}

fn conf(random: &mut StdRng) -> RpcConf {
    let mut conf = RpcConf::new();
    let settings = [
        ("spark.rpc.inbox.maxMessages", 40),
        ("spark.rpc.inbox.maxBytes", 4000),
        ("spark.rpc.route.maxQueuedMessages", 10),
        ("spark.rpc.route.maxQueuedBytes", 2000),
        ("spark.rpc.io.maxWriteQueueSize", 4000),
    ];
    for (key, most) in settings {
        if random.random() {
            conf = conf.with(key, &random.random_range(1..=most).to_string()).unwrap();
        }
    }
    conf
}

async fn start_environment(
    random: &mut StdRng,
    server: bool,
    network: Option<&MemoryNetwork>,
    record: &RunRecord,
) -> RpcEnv {
    let mut builder =
        RpcEnv::builder("flood").conf(conf(random)).trace_propagator(record.environment_token());
    builder = if server { builder.bind("127.0.0.1:0") } else { builder.client_mode() };
    if let Some(network) = network {
        builder = builder.memory_network(network);
    }
    builder.start().await.unwrap()
}

pub async fn run(mut random: StdRng, record: Arc<RunRecord>, network: Option<MemoryNetwork>) {
    record.set_stage("starting");
    let server = start_environment(&mut random, true, network.as_ref(), &record).await;
    let (handled, mut arrived) = mpsc::unbounded_channel();
    for name in ENDPOINTS {
        server
            .setup_endpoint(
                name,
                Slow { handled: handled.clone(), _token: record.endpoint_token() },
            )
            .unwrap();
    }
    let mut envs = vec![server.clone()];
    let mut senders = JoinSet::new();
    for _ in 0..random.random_range(1..=2) {
        let is_server = random.random();
        let env = start_environment(&mut random, is_server, network.as_ref(), &record).await;
        for _ in 0..random.random_range(1..=3) {
            let (to, random) =
                (server.address().unwrap().clone(), StdRng::seed_from_u64(random.random()));
            senders.spawn(
                Sender { record: Arc::clone(&record), random, env: env.clone(), to }.send_all(),
            );
        }
        envs.push(env);
    }
    record.set_stage("flooding");
    let mut sent = Vec::new();
    while let Some(result) = senders.join_next().await {
        match result.unwrap() {
            Ok(flood) => sent.push(flood),
            Err(error) => record.report_violation(format!("a send_wait failed: {error}")),
        }
    }
    record.set_stage("waiting until all messages arrive");
    let total: u64 = sent.iter().map(|(_, total)| total).sum();
    let mut received: Vec<MessageId> = Vec::new();
    while (received.len() as u64) < total {
        match timeout(SOON, arrived.recv()).await {
            Ok(id) => received.extend(id),
            Err(_) => break,
        }
    }
    for env in envs {
        env.shutdown().await;
    }
    for (holder, total) in sent {
        let numbers: Vec<u64> =
            received.iter().filter(|id| id.0 == holder).map(|id| id.1).collect();
        if !numbers.iter().copied().eq(1..=total) {
            record.report_violation(format!(
                "of {total} messages of holder {holder} these arrived: {numbers:?}"
            ));
        }
    }
}
