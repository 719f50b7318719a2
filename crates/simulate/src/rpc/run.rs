//! Runs one play of rpc-core.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use network_common::sim::Simulation;
use rpc_core::{ErrorKind, RpcConf, RpcEndpointRef, RpcEnv, RpcError};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::auditor::Auditor;
use super::endpoint::set_up;
use super::messages::order::Behaviour;
use super::messages::{Done, Order, WorkDo, WorkMessage, WorkNotify};
use super::steps::{ENDPOINTS, HolderKey, RpcAction};
use crate::outcome::Outcome;
use crate::play::{self, Fault, HOSTS, SERVERS, ServerEnd, Step, ip};

/// A time in which everything ends that a step has started, after the faults have ended.
const SOON: Duration = Duration::from_secs(400);

/// The time in which both ends notice a reset: also that of a connection that is being opened,
/// whose packets are repeated every second.
const NOTICE_TIME: Duration = Duration::from_millis(2500);

/// The attempts to start a server, one each second.
const START_ATTEMPTS: usize = 100;

/// The asks that every ref sends at the end of a play, to find capacity that was lost.
const PROBES: usize = 40;

/// A ref with the number of messages that were sent through it.
struct Holder {
    id: u64,
    sent: Cell<u64>,
    endpoint: RpcEndpointRef<WorkMessage>,
}

/// A ref that a lookup has found.
type FoundRef = (HolderKey, RpcEndpointRef<WorkMessage>);

struct RpcPlay {
    seed: u64,
    simulation: Simulation,
    auditor: Arc<Auditor>,
    envs: RefCell<BTreeMap<u8, RpcEnv>>,
    holders: RefCell<BTreeMap<HolderKey, Rc<Holder>>>,
    lookups: RefCell<JoinSet<Option<FoundRef>>>,
    tasks: RefCell<JoinSet<()>>,
    next_id: Cell<u64>,
    /// The pair of hosts between which each one-way message travels.
    ways: RefCell<BTreeMap<u64, (u8, u8)>>,
    /// The end of the time in which messages between two hosts may be lost.
    lossy: RefCell<BTreeMap<(u8, u8), Instant>>,
}

/// Runs `steps` with the network of `seed`.
pub(crate) fn run(seed: u64, steps: &[Step<RpcAction>], with_timeline: bool) -> Outcome {
    let simulation = Simulation::new(seed);
    if with_timeline {
        simulation.record_timeline();
    }
    play::set_links(seed, &simulation);
    let auditor = Auditor::new();
    simulation.run(async {
        let play = RpcPlay {
            seed,
            simulation: simulation.clone(),
            auditor: Arc::clone(&auditor),
            envs: RefCell::default(),
            holders: RefCell::default(),
            lookups: RefCell::default(),
            tasks: RefCell::default(),
            next_id: Cell::new(1),
            ways: RefCell::default(),
            lossy: RefCell::default(),
        };
        for host in 1..=HOSTS {
            play.start(host).await;
        }
        play.look_up_all();
        play::perform(&simulation, steps, async |action| play.act(action).await).await;
        play.finish().await;
    });
    let (violations, mut counts) = auditor.finish();
    simulation.fault_counts().iter().for_each(|(name, count)| counts.add(name, count));
    Outcome {
        violations,
        trace_hash: simulation.trace_hash(),
        counts,
        timeline: simulation.timeline(),
    }
}

/// In every fifth play routes are closed and their numbers reused all the time.
fn has_few_routes(seed: u64) -> bool {
    seed % 5 == 2
}

fn conf(seed: u64) -> Result<RpcConf, RpcError> {
    let max_routes =
        if has_few_routes(seed) { ENDPOINTS.len().to_string() } else { "1000".to_owned() };
    RpcConf::from_settings([
        ("spark.rpc.maxRoutesPerConnection", max_routes.as_str()),
        // The next port would be another address.
        ("spark.port.maxRetries", "0"),
        ("spark.rpc.askTimeout", "30s"),
        ("spark.rpc.lookupTimeout", "20s"),
        ("spark.rpc.shutdownTimeout", "20s"),
        ("spark.rpc.outbox.maxMessages", "50"),
    ])
}

impl RpcPlay {
    /// Starts an environment; a server as soon as the last one has freed its port.
    async fn start(&self, host: u8) {
        let mut started = self.try_start(host).await;
        for _ in 0..START_ATTEMPTS {
            if !matches!(&started, Err(error) if error.kind() == ErrorKind::Bind) {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            started = self.try_start(host).await;
        }
        match started {
            Ok(env) => {
                if host <= SERVERS {
                    (0..ENDPOINTS.len()).for_each(|index| set_up(&env, index, &self.auditor));
                }
                self.envs.borrow_mut().insert(host, env);
            }
            Err(error) => self.auditor.violation(format!("env{host} cannot start: {error:#}")),
        }
    }

    async fn try_start(&self, host: u8) -> Result<RpcEnv, RpcError> {
        let builder = RpcEnv::builder(format!("env{host}"))
            .conf(conf(self.seed)?)
            .trace_propagator(self.auditor.environment_token())
            .memory_network(&self.simulation.network(ip(host)));
        if host > SERVERS {
            return builder.client_mode().start().await;
        }
        let address = SocketAddr::from((ip(host), 7000));
        builder.bind(address.to_string()).advertise(play::name(host)).start().await
    }

    fn env(&self, host: u8) -> Option<RpcEnv> {
        self.envs.borrow().get(&host).cloned()
    }

    async fn act(&self, action: &RpcAction) {
        self.collect_lookups();
        match action {
            RpcAction::LookUp(holder) => self.look_up(*holder),
            RpcAction::Ask { holder, behaviour, millis, timeout, cancel_after, payload } => {
                let order = Order {
                    behaviour: (*behaviour).into(),
                    millis: *millis,
                    payload: vec![7; *payload].into(),
                    ..Order::default()
                };
                self.ask(*holder, order, Duration::from_millis(*timeout), *cancel_after);
            }
            RpcAction::Send { holder, count, payload } => self.send(*holder, *count, *payload),
            RpcAction::SendWait { holder, count } => self.send_wait(*holder, *count),
            RpcAction::ReplyToKept => {
                if let Some((id, context)) = self.auditor.take_kept() {
                    drop(context.reply(Done { id }));
                }
            }
            RpcAction::Replace { server, endpoint } => {
                if let Some(env) = self.env(*server) {
                    self.auditor.count("endpoints replaced");
                    self.lose(|_, to| to == *server);
                    if let Some(one) = self.any_ref_to(*server, *endpoint) {
                        env.stop(&one);
                    }
                    set_up(&env, *endpoint, &self.auditor);
                }
            }
            RpcAction::Fault(fault) => {
                self.lose(|from, to| fault.resets(from, to));
                if fault.is_long() {
                    // The connection may end at any time until the fault ends.
                    self.lose_always(|_, _| true);
                }
                if let Fault::NoName { host, .. } = fault {
                    // Messages that wait for a connection are lost when it cannot be made.
                    self.lose_always(|_, to| to == *host);
                }
                fault.start(&self.simulation);
            }
            RpcAction::EndServer { server, end } => self.end_server(*server, *end).await,
        }
    }

    /// Ends a server, and starts another incarnation.
    async fn end_server(&self, server: u8, end: ServerEnd) {
        let Some(env) = self.env(server) else { return };
        // A partition or a crash may hide the end of the connections from the clients.
        self.lose_always(|from, to| from == server || to == server);
        if let ServerEnd::Restart = end {
            self.auditor.count("servers restarted");
            if timeout(SOON, env.shutdown()).await.is_err() {
                self.auditor.violation("a shutdown does not complete");
            }
            drop(env);
            return self.start(server).await;
        }
        self.envs.borrow_mut().remove(&server);
        let shutdown = async move { env.shutdown().await };
        match end {
            ServerEnd::Restart => {}
            ServerEnd::Kill { millis } => {
                self.auditor.count("servers killed");
                self.simulation.reset_host(ip(server));
                tokio::spawn(shutdown);
                self.forget_refs_of(server);
                tokio::time::sleep(Duration::from_millis(millis)).await;
            }
            ServerEnd::Crash { millis } => {
                self.auditor.count("servers crashed");
                self.simulation.crash(ip(server));
                let ended = tokio::spawn(shutdown);
                self.forget_refs_of(server);
                tokio::time::sleep(Duration::from_millis(millis)).await;
                drop(timeout(SOON, ended).await);
                self.simulation.restart(ip(server));
            }
        }
        self.start(server).await;
    }

    /// Drops the refs that a host uses, because its environment has ended.
    fn forget_refs_of(&self, host: u8) {
        self.holders.borrow_mut().retain(|(from, ..), _| *from != host);
    }

    fn any_ref_to(&self, server: u8, endpoint: usize) -> Option<RpcEndpointRef<WorkMessage>> {
        let holders = self.holders.borrow();
        let own = holders.get(&(server, server, endpoint));
        own.map(|holder| holder.endpoint.clone())
    }

    /// Allows the loss of all messages so far, and of those in the next moments.
    fn lose(&self, is_affected: impl Fn(u8, u8) -> bool) {
        self.lose_until(Instant::now() + NOTICE_TIME, is_affected);
    }

    /// Allows losses until the end of the play, because a fault may be noticed at any time.
    fn lose_always(&self, is_affected: impl Fn(u8, u8) -> bool) {
        self.lose_until(Instant::now() + Duration::from_secs(1 << 20), is_affected);
    }

    fn lose_until(&self, until: Instant, is_affected: impl Fn(u8, u8) -> bool) {
        let hosts = || 1..=HOSTS;
        let pairs = hosts().flat_map(|from| hosts().map(move |to| (from, to)));
        for pair in pairs.filter(|(from, to)| is_affected(*from, *to)) {
            let mut lossy = self.lossy.borrow_mut();
            let known = lossy.entry(pair).or_insert(until);
            *known = until.max(*known);
        }
        let ways = self.ways.borrow();
        self.auditor
            .allow_losses(|id| ways.get(&id).is_some_and(|(from, to)| is_affected(*from, *to)));
    }

    fn look_up(&self, key: HolderKey) {
        let (from, to, endpoint) = key;
        let Some(env) = self.env(from) else { return };
        self.lookups.borrow_mut().spawn(async move {
            let address = (play::name(to), 7000);
            let found = timeout(SOON, env.lookup(address, ENDPOINTS[endpoint])).await;
            Some((key, found.ok()?.ok()?))
        });
    }

    /// Looks up every endpoint from every client.
    fn look_up_all(&self) {
        for server in 1..=SERVERS {
            for client in SERVERS + 1..=HOSTS {
                (0..ENDPOINTS.len()).for_each(|index| self.look_up((client, server, index)));
            }
        }
    }

    fn collect_lookups(&self) {
        while let Some(found) = self.lookups.borrow_mut().try_join_next() {
            if let Ok(Some((key, endpoint))) = found {
                let id = self.next();
                let holder = Rc::new(Holder { id, sent: Cell::new(0), endpoint });
                self.holders.borrow_mut().insert(key, holder);
            }
        }
    }

    fn next(&self) -> u64 {
        self.next_id.replace(self.next_id.get() + 1)
    }

    fn holder(&self, key: HolderKey) -> Option<Rc<Holder>> {
        self.holders.borrow().get(&key).cloned()
    }

    /// Numbers an order of a ref.
    fn number(&self, key: HolderKey, holder: &Holder, order: Order) -> Order {
        holder.sent.set(holder.sent.get() + 1);
        let id = self.next();
        self.ways.borrow_mut().insert(id, (key.0, key.1));
        Order { id, holder: holder.id, number: holder.sent.get(), ..order }
    }

    fn ask(&self, key: HolderKey, order: Order, limit: Duration, cancel_after: Option<u64>) {
        let Some(holder) = self.holder(key) else { return };
        let order = self.number(key, &holder, order);
        let (id, started) = (order.id, Instant::now());
        self.auditor.on_ask_started(id);
        let ask = holder.endpoint.ask_with_timeout(WorkDo(order), limit);
        let auditor = Arc::clone(&self.auditor);
        self.tasks.borrow_mut().spawn(async move {
            let result = match cancel_after {
                Some(millis) => timeout(Duration::from_millis(millis), ask).await.ok(),
                None => Some(ask.await),
            };
            auditor.on_ask_ended(id, started, limit, result);
        });
    }

    fn must_arrive(&self, key: HolderKey) -> bool {
        // A queued message is discarded, with a report, while a lookup has the last route.
        if has_few_routes(self.seed) {
            return false;
        }
        let lossy = self.lossy.borrow();
        lossy.get(&(key.0, key.1)).is_none_or(|until| *until < Instant::now())
    }

    fn send(&self, key: HolderKey, count: usize, payload: usize) {
        let Some(holder) = self.holder(key) else { return };
        for _ in 0..count {
            let payload = vec![1; payload].into();
            let order = self.number(key, &holder, Order { payload, ..Order::default() });
            let id = order.id;
            let is_accepted = holder.endpoint.send(WorkNotify(order)).is_ok();
            self.auditor.on_sent(id, is_accepted, self.must_arrive(key));
        }
    }

    /// Sends several messages, one after the other, in a task of its own.
    fn send_wait(&self, key: HolderKey, count: usize) {
        let Some(holder) = self.holder(key) else { return };
        // A ref of its own, because the task sends while other steps send.
        let own = Holder { id: self.next(), sent: Cell::new(0), endpoint: holder.endpoint.clone() };
        let orders: Vec<Order> = (0..count)
            .map(|_| self.number(key, &own, Order { millis: 5, ..Order::default() }))
            .collect();
        let auditor = Arc::clone(&self.auditor);
        // A fault during the wait may lose the message, so only the absence of faults is checked.
        let must_arrive = self.must_arrive(key);
        let endpoint = own.endpoint;
        self.tasks.borrow_mut().spawn(async move {
            for order in orders {
                let id = order.id;
                auditor.on_sent(id, true, false);
                let sent = timeout(SOON, endpoint.send_wait(WorkNotify(order))).await;
                match sent {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => auditor.on_sent(id, false, must_arrive),
                    Err(_) => auditor.violation(format!("send_wait {id} does not complete")),
                }
            }
        });
    }

    async fn finish(&self) {
        // All faults with a duration have ended after that.
        tokio::time::sleep(Duration::from_secs(310)).await;
        self.simulation.note("the faults have ended");
        self.auditor.drop_kept();
        self.join_tasks("asks and sends").await;
        self.probe().await;
        self.await_arrivals().await;
        let envs = std::mem::take(&mut *self.envs.borrow_mut());
        self.check_idle(&envs);
        self.holders.borrow_mut().clear();
        // Clients first, as a program does it.
        for (host, env) in envs.into_iter().rev() {
            if timeout(SOON, env.shutdown()).await.is_err() {
                self.auditor.violation(format!("the shutdown of env{host} does not complete"));
            }
            let snapshot = env.snapshot();
            if snapshot.pending_asks != 0 || snapshot.inbox_bytes != 0 {
                let text = format!("env{host} holds something after its shutdown: {snapshot:?}");
                self.auditor.violation(text);
            }
        }
        // Lingering connections and tasks of the timers end.
        tokio::time::sleep(Duration::from_secs(60)).await;
        let connections = self.simulation.connection_count();
        if connections != 0 {
            self.auditor.violation(format!("{connections} connections are open at the end"));
        }
        let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        if tasks != 0 {
            self.auditor.violation(format!("{tasks} tasks run at the end"));
        }
    }

    async fn join_tasks(&self, what: &str) {
        let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        let lookups = std::mem::take(&mut *self.lookups.borrow_mut());
        let all = async {
            lookups.join_all().await;
            tasks.join_all().await;
        };
        if timeout(SOON, all).await.is_err() {
            self.auditor.violation(format!("{what} do not end"));
        }
    }

    /// Asks every endpoint through every ref more often than its initial credit allows.
    async fn probe(&self) {
        self.holders.borrow_mut().clear();
        self.look_up_all();
        let lookups = std::mem::take(&mut *self.lookups.borrow_mut());
        let found = lookups.join_all().await;
        for (key, endpoint) in found.into_iter().flatten() {
            let holder = Holder { id: self.next(), sent: Cell::new(0), endpoint };
            for _ in 0..PROBES {
                let order = self.number(
                    key,
                    &holder,
                    Order { behaviour: Behaviour::Reply.into(), ..Order::default() },
                );
                let id = order.id;
                let result = holder.endpoint.ask_with_timeout(WorkDo(order), SOON).await;
                if let Err(error) = result {
                    let text = format!("ask {id} fails after the faults have ended: {error:#}");
                    self.auditor.violation(text);
                }
            }
        }
    }

    async fn await_arrivals(&self) {
        for _ in 0..100 {
            if self.auditor.missing().is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Checks that nothing is queued or counted while nothing happens.
    fn check_idle(&self, envs: &BTreeMap<u8, RpcEnv>) {
        if envs.len() != usize::from(HOSTS) {
            self.auditor.violation("an environment did not start");
        }
        for (host, env) in envs {
            let snapshot = env.snapshot();
            let held: u64 = snapshot.endpoints.iter().map(|one| one.held).sum();
            let queued: u64 = snapshot.peers.iter().map(|one| one.queued).sum();
            let pending = snapshot.pending_asks;
            let bytes = snapshot.inbox_bytes;
            if (held, queued, pending, bytes) != (0, 0, 0, 0) {
                let text = format!(
                    "env{host} is idle and holds {held} messages of {bytes} bytes, {queued} queued \
                     messages and {pending} asks"
                );
                self.auditor.violation(text);
            }
        }
    }
}
