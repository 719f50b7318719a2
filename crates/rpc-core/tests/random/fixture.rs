//! The environments of a random run: start, restart, shutdown, and the checks at the end.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rpc_core::{MemoryNetwork, RpcAddress, RpcConf, RpcEnv, ShutdownReport};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::actor::Actor;
use crate::checked_endpoint::EndpointKind;
use crate::proxy::Proxy;
use crate::record::RunRecord;

/// A timeout for operations that must complete, sufficient for a busy machine.
pub const SOON: Duration = Duration::from_secs(20);

/// The environments of one run, with the shared record.
pub struct Fixture {
    pub record: Arc<RunRecord>,
    /// Nothing is stopped, closed or restarted in this run.
    pub no_faults: bool,
    pub slots: Vec<EnvSlot>,
    /// All environments of the run, also those that have shut down.
    envs: Mutex<Vec<RpcEnv>>,
    network: Option<MemoryNetwork>,
    pending_asks: Mutex<Vec<JoinSet<()>>>,
}

/// One environment with its address; a restart replaces the environment.
pub struct EnvSlot {
    env: Mutex<RpcEnv>,
    /// `None` in client mode.
    pub address: Option<RpcAddress>,
    pub proxy: Option<Proxy>,
    restarting: tokio::sync::Mutex<()>,
}

impl EnvSlot {
    pub fn env(&self) -> RpcEnv {
        self.env.lock().unwrap().clone()
    }
}

fn conf() -> RpcConf {
    let settings = [
        ("spark.rpc.askTimeout", "10s"),
        ("spark.rpc.lookupTimeout", "5s"),
        ("spark.rpc.shutdownTimeout", "10s"),
        ("spark.rpc.outbox.maxMessages", "20"),
    ];
    RpcConf::from_settings(settings).unwrap()
}

async fn start(
    bind: Option<&str>,
    network: Option<&MemoryNetwork>,
    record: &RunRecord,
) -> Option<RpcEnv> {
    let mut builder = RpcEnv::builder(bind.unwrap_or("client"))
        .conf(conf())
        .trace_propagator(record.environment_token());
    builder = match bind {
        Some(bind) => builder.bind(bind),
        None => builder.client_mode(),
    };
    if let Some(network) = network {
        builder = builder.memory_network(network);
    }
    builder.start().await.ok()
}

impl Fixture {
    /// Starts two servers and a client-mode environment.
    async fn start(
        record: Arc<RunRecord>,
        no_faults: bool,
        network: Option<MemoryNetwork>,
    ) -> Self {
        let mut slots = Vec::new();
        for bind in [Some("127.0.0.1:0"), Some("127.0.0.1:0"), None] {
            let env = start(bind, network.as_ref(), &record).await.expect("a free port");
            let address = env.address().cloned();
            let proxy = match &address {
                Some(address) if network.is_none() => Proxy::start(address.clone()).await.ok(),
                _ => None,
            };
            slots.push(EnvSlot {
                env: Mutex::new(env),
                address,
                proxy,
                restarting: tokio::sync::Mutex::default(),
            });
        }
        let envs = Mutex::new(slots.iter().map(EnvSlot::env).collect());
        let fixture =
            Self { record, no_faults, slots, envs, network, pending_asks: Mutex::default() };
        fixture.slots.iter().for_each(|slot| fixture.set_up_endpoints(&slot.env()));
        fixture
    }

    pub fn kinds(&self) -> &'static [EndpointKind] {
        // Isolated endpoints have threads, which tokio's paused clock does not take into account.
        if self.network.is_some() { EndpointKind::IN_MEMORY } else { EndpointKind::ALL }
    }

    fn set_up_endpoints(&self, env: &RpcEnv) {
        for kind in self.kinds() {
            match kind.set_up(env, &self.record) {
                Ok(endpoint) => self.record.share_ref(endpoint),
                Err(error) => {
                    self.record.report_violation(format!("{kind:?} cannot be set up: {error}"))
                }
            }
        }
    }

    /// Shuts an environment down and starts another one at its address.
    pub async fn restart(&self, slot: &EnvSlot) {
        let Ok(_restarting) = slot.restarting.try_lock() else { return };
        self.shut_down(&slot.env()).await;
        let bind = slot.address.as_ref().map(RpcAddress::host_port);
        // Another process may have bound the port.
        if let Some(env) = start(bind.as_deref(), self.network.as_ref(), &self.record).await {
            self.record.count_event("an environment was restarted");
            self.set_up_endpoints(&env);
            self.envs.lock().unwrap().push(env.clone());
            *slot.env.lock().unwrap() = env;
        }
    }

    async fn shut_down(&self, env: &RpcEnv) {
        let name = env.name().to_owned();
        let Ok(report) = timeout(SOON, env.shutdown()).await else {
            return self
                .record
                .report_violation(format!("the shutdown of {name} does not complete"));
        };
        self.check_report(&name, &report);
        let snapshot = env.snapshot();
        if snapshot.inbox_bytes != 0 {
            self.record.report_violation(format!(
                "{name} holds {} bytes after its shutdown",
                snapshot.inbox_bytes
            ));
        }
        if !snapshot.endpoints.is_empty() {
            self.record.report_violation(format!(
                "{name} has endpoints after its shutdown: {:?}",
                snapshot.endpoints
            ));
        }
        if snapshot.peers.iter().any(|outbox| outbox.queued > 0) {
            self.record.report_violation(format!(
                "{name} has queued messages after its shutdown: {:?}",
                snapshot.peers
            ));
        }
    }

    fn check_report(&self, name: &str, report: &ShutdownReport) {
        // No handler of a run takes longer than the shutdown timeout.
        for endpoint in
            report.endpoints.iter().filter(|endpoint| !endpoint.stopped || endpoint.abandoned > 0)
        {
            self.record.report_violation(format!(
                "{name} did not stop or abandoned messages: {endpoint:?}"
            ));
        }
    }

    /// Waits until every message that may not be lost has been handled.
    async fn wait_until_handled(&self) {
        let all_handled = async {
            while !self.record.unhandled().is_empty() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        if timeout(SOON, all_handled).await.is_err() {
            self.record.report_violation(format!(
                "accepted and not handled: {:?}",
                self.record.unhandled()
            ));
        }
    }

    async fn await_asks(&self) {
        self.record.set_stage("waiting for asks");
        let asks = std::mem::take(&mut *self.pending_asks.lock().unwrap());
        for asks in asks {
            asks.join_all().await;
        }
    }

    async fn finish(&self, random: &mut StdRng) {
        if self.no_faults {
            self.record.set_stage("waiting until messages are handled");
            self.wait_until_handled().await;
        }
        if self.no_faults || random.random() {
            self.record.drop_kept();
        }
        if self.no_faults || random.random_bool(0.3) {
            self.record.drop_kept();
            self.await_asks().await;
        }
        self.record.set_stage("shutting down");
        let envs: Vec<RpcEnv> = self.slots.iter().map(EnvSlot::env).collect();
        futures::future::join_all(envs.iter().map(|env| self.shut_down(env))).await;
        self.record.drop_kept();
        self.await_asks().await;
        for env in self.envs.lock().unwrap().iter() {
            let pending = env.snapshot().pending_asks;
            if pending != 0 {
                self.record
                    .report_violation(format!("{} counts {pending} pending asks", env.name()));
            }
        }
        let running =
            self.record.histories().iter().filter(|history| !history.has_stopped()).count();
        if running > 0 {
            self.record.report_violation(format!("{running} endpoints were never stopped"));
        }
    }
}

/// Runs 1 to 3 actors, then checks the invariants and shuts all environments down.
pub async fn run(
    mut random: StdRng,
    record: Arc<RunRecord>,
    no_faults: bool,
    network: Option<MemoryNetwork>,
) {
    record.set_stage("starting");
    let fixture = Arc::new(Fixture::start(Arc::clone(&record), no_faults, network).await);
    let mut actors = JoinSet::new();
    for _ in 0..random.random_range(1..=3) {
        let actor = Actor::new(Arc::clone(&fixture), StdRng::seed_from_u64(random.random()));
        actors.spawn(actor.run(random.random_range(10..80)));
    }
    record.set_stage("acting");
    while let Some(asks) = actors.join_next().await {
        match asks {
            Ok(asks) => fixture.pending_asks.lock().unwrap().push(asks),
            Err(error) => record.report_violation(format!("an actor panicked: {error}")),
        }
    }
    fixture.finish(&mut random).await;
}
