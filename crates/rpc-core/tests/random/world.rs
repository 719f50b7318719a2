//! The environments of a random run: start, restart, shutdown, and the checks at the end.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rpc_core::{MemoryNetwork, RpcAddress, RpcConf, RpcEnv, ShutdownReport};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::book::Book;
use crate::player::Player;
use crate::proxy::Proxy;
use crate::witness::Kind;

/// A timeout for operations that must complete, sufficient for a busy machine.
pub const SOON: Duration = Duration::from_secs(20);

pub struct World {
    pub book: Arc<Book>,
    /// Nothing is stopped, closed or restarted in this run.
    pub calm: bool,
    pub homes: Vec<Home>,
    /// All environments of the run, also those that have shut down.
    envs: Mutex<Vec<RpcEnv>>,
    network: Option<MemoryNetwork>,
    waiting: Mutex<Vec<JoinSet<()>>>,
}

/// One environment with its address; a restart replaces the environment.
pub struct Home {
    env: Mutex<RpcEnv>,
    /// `None` in client mode.
    pub address: Option<RpcAddress>,
    pub proxy: Option<Proxy>,
    restarting: tokio::sync::Mutex<()>,
}

impl Home {
    pub fn env(&self) -> RpcEnv {
        self.env.lock().unwrap().clone()
    }
}

fn conf() -> RpcConf {
    let settings = [
        ("spark.rpc.askTimeout", "10s"),
        ("spark.rpc.lookupTimeout", "5s"),
        ("spark.rpc.shutdownTimeout", "10s"),
        ("spark.rpc.route.maxQueuedMessages", "20"),
    ];
    RpcConf::from_settings(settings).unwrap()
}

async fn start(bind: Option<&str>, network: Option<&MemoryNetwork>, book: &Book) -> Option<RpcEnv> {
    let mut builder =
        RpcEnv::builder(bind.unwrap_or("client")).conf(conf()).trace_propagator(book.environment());
    builder = match bind {
        Some(bind) => builder.bind(bind),
        None => builder.client_mode(),
    };
    if let Some(network) = network {
        builder = builder.memory_network(network);
    }
    builder.start().await.ok()
}

impl World {
    /// Starts two servers and a client-mode environment.
    async fn begin(book: Arc<Book>, calm: bool, network: Option<MemoryNetwork>) -> Self {
        let mut homes = Vec::new();
        for bind in [Some("127.0.0.1:0"), Some("127.0.0.1:0"), None] {
            let env = start(bind, network.as_ref(), &book).await.expect("a free port");
            let address = env.address().cloned();
            let proxy = match &address {
                Some(address) if network.is_none() => Proxy::start(address.clone()).await.ok(),
                _ => None,
            };
            homes.push(Home {
                env: Mutex::new(env),
                address,
                proxy,
                restarting: tokio::sync::Mutex::default(),
            });
        }
        let envs = Mutex::new(homes.iter().map(Home::env).collect());
        let world = Self { book, calm, homes, envs, network, waiting: Mutex::default() };
        world.homes.iter().for_each(|home| world.furnish(&home.env()));
        world
    }

    pub fn kinds(&self) -> &'static [Kind] {
        // Isolated endpoints have threads, which tokio's paused clock does not take into account.
        if self.network.is_some() { Kind::IN_MEMORY } else { Kind::ALL }
    }

    fn furnish(&self, env: &RpcEnv) {
        for kind in self.kinds() {
            match kind.setup(env, &self.book) {
                Ok(endpoint) => self.book.offer(endpoint),
                Err(error) => self.book.complain(format!("{kind:?} cannot be set up: {error}")),
            }
        }
    }

    /// Shuts an environment down and starts another one at its address.
    pub async fn restart(&self, home: &Home) {
        let Ok(_restarting) = home.restarting.try_lock() else { return };
        self.shut_down(&home.env()).await;
        let bind = home.address.as_ref().map(RpcAddress::host_port);
        // Another process may have bound the port.
        if let Some(env) = start(bind.as_deref(), self.network.as_ref(), &self.book).await {
            self.book.happened("an environment was restarted");
            self.furnish(&env);
            self.envs.lock().unwrap().push(env.clone());
            *home.env.lock().unwrap() = env;
        }
    }

    async fn shut_down(&self, env: &RpcEnv) {
        let name = env.name().to_owned();
        let Ok(report) = timeout(SOON, env.shutdown()).await else {
            return self.book.complain(format!("the shutdown of {name} does not complete"));
        };
        self.check_report(&name, &report);
        let snapshot = env.snapshot();
        if snapshot.inbox_bytes != 0 {
            self.book
                .complain(format!("{name} holds {} bytes after its shutdown", snapshot.inbox_bytes));
        }
        if !snapshot.endpoints.is_empty() {
            self.book
                .complain(format!("{name} has endpoints after its shutdown: {:?}", snapshot.endpoints));
        }
        if snapshot.peers.iter().any(|outbox| outbox.queued > 0) {
            self.book.complain(format!(
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
            self.book.complain(format!("{name} did not stop or abandoned messages: {endpoint:?}"));
        }
    }

    /// Waits until every message that may not be lost has been handled.
    async fn settled(&self) {
        let settled = async {
            while !self.book.missing().is_empty() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        if timeout(SOON, settled).await.is_err() {
            self.book.complain(format!("accepted and not handled: {:?}", self.book.missing()));
        }
    }

    async fn asks_end(&self) {
        self.book.set_stage("waiting for asks");
        let asks = std::mem::take(&mut *self.waiting.lock().unwrap());
        for asks in asks {
            asks.join_all().await;
        }
    }

    async fn end(&self, random: &mut StdRng) {
        if self.calm {
            self.book.set_stage("waiting until messages are handled");
            self.settled().await;
        }
        if self.calm || random.random() {
            self.book.forget();
        }
        if self.calm || random.random_bool(0.3) {
            self.book.forget();
            self.asks_end().await;
        }
        self.book.set_stage("shutting down");
        let envs: Vec<RpcEnv> = self.homes.iter().map(Home::env).collect();
        futures::future::join_all(envs.iter().map(|env| self.shut_down(env))).await;
        self.book.forget();
        self.asks_end().await;
        for env in self.envs.lock().unwrap().iter() {
            let pending = env.snapshot().pending_asks;
            if pending != 0 {
                self.book.complain(format!("{} counts {pending} pending asks", env.name()));
            }
        }
        let living = self.book.lives().iter().filter(|life| !life.has_stopped()).count();
        if living > 0 {
            self.book.complain(format!("{living} endpoints were never stopped"));
        }
    }
}

/// Runs 1 to 3 actors, then checks the invariants and shuts all environments down.
pub async fn play(mut random: StdRng, book: Arc<Book>, calm: bool, network: Option<MemoryNetwork>) {
    book.set_stage("starting");
    let world = Arc::new(World::begin(Arc::clone(&book), calm, network).await);
    let mut players = JoinSet::new();
    for _ in 0..random.random_range(1..=3) {
        let player = Player::new(Arc::clone(&world), StdRng::seed_from_u64(random.random()));
        players.spawn(player.play(random.random_range(10..80)));
    }
    book.set_stage("acting");
    while let Some(asks) = players.join_next().await {
        match asks {
            Ok(asks) => world.waiting.lock().unwrap().push(asks),
            Err(error) => book.complain(format!("an actor panicked: {error}")),
        }
    }
    world.end(&mut random).await;
}
