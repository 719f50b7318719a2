//! Runs one play of network-common, and checks it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use network_common::auth::{Secret, SecretStore};
use network_common::sim::Simulation;
use network_common::{
    ErrorKind, TransportClientFactory, TransportConf, TransportContext, TransportError,
    TransportServer,
};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::handler::{BulkHandler, digest, pattern};
use super::steps::{BulkAction, Request};
use crate::outcome::{Counts, Outcome};
use crate::play::{self, HOSTS, SERVERS, ServerEnd, Step, ip};

/// A time in which everything ends that a step has started, after the faults have ended.
const SOON: Duration = Duration::from_secs(900);

const PORT: u16 = 7337;

/// The longest time that a connection attempt takes.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(61);

/// Both pooled connections to a crashed host may be half-open until they are used.
const PROBE_ATTEMPTS: usize = 3;

/// The reports of the requests of a play.
#[derive(Default)]
struct Report {
    violations: Vec<String>,
    counts: Counts,
    /// When connecting to a server has last failed, by client and server.
    failures: BTreeMap<(u8, u8), Instant>,
}

struct Server {
    handler: Arc<BulkHandler>,
    context: TransportContext,
    running: Option<TransportServer>,
}

struct BulkPlay {
    simulation: Simulation,
    seed: u64,
    report: Arc<Mutex<Report>>,
    servers: RefCell<BTreeMap<u8, Server>>,
    clients: BTreeMap<u8, (TransportContext, TransportClientFactory)>,
    tasks: RefCell<JoinSet<()>>,
}

/// Runs `steps` with the network of `seed`.
pub(crate) fn run(seed: u64, steps: &[Step<BulkAction>], with_timeline: bool) -> Outcome {
    let simulation = Simulation::new(seed);
    if with_timeline {
        simulation.record_timeline();
    }
    play::set_links(seed, &simulation);
    let report = Arc::<Mutex<Report>>::default();
    simulation.run(async {
        let mut play = BulkPlay {
            simulation: simulation.clone(),
            seed,
            report: Arc::clone(&report),
            servers: RefCell::default(),
            clients: BTreeMap::new(),
            tasks: RefCell::default(),
        };
        for host in 1..=SERVERS {
            let handler = Arc::<BulkHandler>::default();
            let context = play.context(host, Arc::clone(&handler));
            play.servers.borrow_mut().insert(host, Server { handler, context, running: None });
            play.start(host).await;
        }
        for host in SERVERS + 1..=HOSTS {
            let context = play.context(host, Arc::default());
            let factory = context.create_client_factory();
            play.clients.insert(host, (context, factory));
        }
        play::perform(&simulation, steps, async |action| play.act(action).await).await;
        play.finish().await;
    });
    let report = std::mem::take(&mut *report.lock());
    let mut counts = report.counts;
    simulation.fault_counts().iter().for_each(|(name, count)| counts.add(name, count));
    Outcome {
        violations: report.violations,
        trace_hash: simulation.trace_hash(),
        counts,
        timeline: simulation.timeline(),
    }
}

/// Every third play authenticates and encrypts; in some of them host 4 has a wrong secret.
fn is_authenticated(seed: u64) -> bool {
    seed % 3 == 1
}

fn has_wrong_secret(seed: u64, host: u8) -> bool {
    host == HOSTS && seed % 12 == 1
}

impl BulkPlay {
    fn context(&self, host: u8, handler: Arc<BulkHandler>) -> TransportContext {
        let mut settings = vec![
            ("spark.shuffle.io.numConnectionsPerPeer", "2"),
            ("spark.shuffle.io.connectionCreationTimeout", "60s"),
        ];
        if is_authenticated(self.seed) {
            settings.push(("spark.network.crypto.enabled", "true"));
        }
        let conf = TransportConf::from_settings("shuffle", settings);
        let conf = conf.unwrap_or_else(|error| {
            self.report.lock().violations.push(format!("settings: {error:#}"));
            TransportConf::new("shuffle")
        });
        let network = self.simulation.network(ip(host));
        let context = TransportContext::with_handler(conf, handler).memory_network(&network);
        if !is_authenticated(self.seed) {
            return context;
        }
        let secrets = Arc::new(SecretStore::new());
        let secret = if has_wrong_secret(self.seed, host) { "wrong" } else { "right" };
        secrets.register_app("app", Secret::new(secret));
        match context.clone().with_auth("app", secrets) {
            Ok(context) => context,
            Err(error) => {
                self.report.lock().violations.push(format!("authentication: {error:#}"));
                context
            }
        }
    }

    /// Starts a server, as soon as the last one has freed its port.
    async fn start(&self, host: u8) {
        let Some(context) = self.servers.borrow().get(&host).map(|one| one.context.clone()) else {
            return;
        };
        for _ in 0..100 {
            let address = (std::net::IpAddr::from(ip(host)), PORT);
            if let Ok(server) = context.create_server(address).await {
                if let Some(one) = self.servers.borrow_mut().get_mut(&host) {
                    one.running = Some(server);
                }
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        self.report.lock().violations.push(format!("server {host} cannot start"));
    }

    fn stop(&self, host: u8) -> Option<TransportServer> {
        self.servers.borrow_mut().get_mut(&host)?.running.take()
    }

    async fn act(&self, action: &BulkAction) {
        match *action {
            BulkAction::Request { client, server, request, cancel_after } => {
                self.request(client, server, request, cancel_after);
            }
            BulkAction::Fault(fault) => fault.start(&self.simulation),
            BulkAction::EndServer { server, end } => self.end_server(server, end).await,
        }
    }

    /// Ends a server, and starts it again.
    async fn end_server(&self, server: u8, end: ServerEnd) {
        let count = |name| self.report.lock().counts.add(name, 1);
        match end {
            ServerEnd::Restart => {
                count("servers restarted");
                if let Some(running) = self.stop(server) {
                    running.close(Duration::from_secs(5)).await;
                }
            }
            ServerEnd::Kill { millis } => {
                count("servers killed");
                self.simulation.reset_host(ip(server));
                drop(self.stop(server));
                tokio::time::sleep(Duration::from_millis(millis)).await;
            }
            ServerEnd::Crash { millis } => {
                count("servers crashed");
                self.simulation.crash(ip(server));
                drop(self.stop(server));
                tokio::time::sleep(Duration::from_millis(millis)).await;
                self.simulation.restart(ip(server));
            }
        }
        self.start(server).await;
    }

    fn request(&self, client: u8, server: u8, request: Request, cancel_after: Option<u64>) {
        let Some((context, factory)) = self.clients.get(&client) else { return };
        let retry_wait = context.conf().retry_wait();
        let (factory, report) = (factory.clone(), Arc::clone(&self.report));
        let may_fail = !self.seed.is_multiple_of(4);
        let must_fail = has_wrong_secret(self.seed, client);
        let pair = (client, server);
        self.tasks.borrow_mut().spawn(async move {
            let exchange = exchange(&factory, pair, request, &report, retry_wait);
            let result = match cancel_after {
                Some(millis) => timeout(Duration::from_millis(millis), exchange).await.ok(),
                None => Some(exchange.await),
            };
            let mut report = report.lock();
            match result {
                None => {
                    report.counts.add("requests cancelled", 1);
                    // Its connection attempt continues, and may fail later.
                    report.failures.insert(pair, Instant::now() + ATTEMPT_TIMEOUT);
                }
                Some(Ok(())) if must_fail => {
                    report.violations.push(format!("{request:?} passed with a wrong secret"));
                }
                Some(Ok(())) => report.counts.add("requests succeeded", 1),
                Some(Err(error)) => {
                    let kind = format!("requests failed: {:?}", error.kind());
                    report.counts.add(&kind, 1);
                    let is_intended = matches!(request, Request::Misbehave(_)) || must_fail;
                    if !may_fail && !is_intended {
                        let text = format!("{request:?} failed without a fault: {error:#}");
                        report.violations.push(text);
                    }
                }
            }
        });
    }

    async fn finish(&self) {
        // All faults with a duration have ended after that.
        tokio::time::sleep(Duration::from_secs(310)).await;
        self.simulation.note("the faults have ended");
        for server in self.servers.borrow().values() {
            server.handler.drop_kept();
        }
        self.join_tasks("requests do not end").await;
        for client in self.clients.keys() {
            for server in 1..=SERVERS {
                if !has_wrong_secret(self.seed, *client) {
                    self.probe(*client, server).await;
                }
            }
        }
        for (host, (context, factory)) in &self.clients {
            factory.close();
            self.check_idle(*host, context).await;
        }
        let servers = std::mem::take(&mut *self.servers.borrow_mut());
        for (host, server) in servers {
            if let Some(running) = server.running
                && timeout(SOON, running.close(Duration::from_secs(5))).await.is_err()
            {
                self.report.lock().violations.push(format!("server {host} does not close"));
            }
            self.check_idle(host, &server.context).await;
            let streams = server.handler.stream_count();
            if streams != 0 {
                let text = format!("server {host} has {streams} streams at the end");
                self.report.lock().violations.push(text);
            }
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        let connections = self.simulation.connection_count();
        let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        if connections + tasks != 0 {
            let text = format!("{connections} connections and {tasks} tasks exist at the end");
            self.report.lock().violations.push(text);
        }
    }

    async fn join_tasks(&self, text: &str) {
        let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        if timeout(SOON, tasks.join_all()).await.is_err() {
            self.report.lock().violations.push(text.to_owned());
        }
    }

    /// Sends one request of each kind, which must succeed while there are no faults.
    async fn probe(&self, client: u8, server: u8) {
        let requests = [
            Request::Echo { size: 10 },
            Request::Chunks { count: 5, size: 70_000 },
            Request::Stream { size: 300_000, pieces: None },
            Request::Upload { size: 300_000 },
        ];
        let Some((context, factory)) = self.clients.get(&client) else { return };
        let retry_wait = context.conf().retry_wait();
        for request in requests {
            let mut failure = String::new();
            for _ in 0..PROBE_ATTEMPTS {
                let pair = (client, server);
                let exchange = exchange(factory, pair, request, &self.report, retry_wait);
                match timeout(SOON, exchange).await {
                    Ok(Ok(())) => {
                        failure.clear();
                        break;
                    }
                    Ok(Err(error)) => failure = format!("{error:#}"),
                    Err(_) => "it does not end".clone_into(&mut failure),
                }
            }
            if !failure.is_empty() {
                let text = format!("{request:?} fails after the faults have ended: {failure}");
                self.report.lock().violations.push(text);
            }
        }
    }

    /// Checks that the gauges of a context are 0, after its connections have ended.
    async fn check_idle(&self, host: u8, context: &TransportContext) {
        tokio::time::sleep(Duration::from_secs(30)).await;
        let metrics = context.metrics();
        for side in [metrics.server().snapshot(), metrics.client().snapshot()] {
            let gauges = [
                side.connections,
                side.pending_requests,
                side.active_requests,
                side.write_queue_bytes,
                side.chunks_being_transferred,
            ];
            if gauges != [0; 5] {
                let text = format!("the gauges of host {host} are {gauges:?} at the end");
                self.report.lock().violations.push(text);
            }
        }
    }
}

/// Makes one request, and checks the content of its response.
async fn exchange(
    factory: &TransportClientFactory,
    (client, server): (u8, u8),
    request: Request,
    report: &Mutex<Report>,
    retry_wait: Duration,
) -> Result<(), TransportError> {
    let address = (play::name(server), PORT);
    let connected = match request {
        Request::FastFail => factory.create_client_fast_fail(address).await,
        _ => factory.create_client(address).await,
    };
    let transport = match connected {
        Ok(transport) => transport,
        Err(error) => {
            let mut report = report.lock();
            let last = report.failures.get(&(client, server)).copied();
            if error.kind() == ErrorKind::FastFail {
                if last.is_none_or(|last| last.elapsed() > retry_wait) {
                    report.violations.push(format!("{request:?} failed fast without a failure"));
                }
            } else {
                report.failures.insert((client, server), Instant::now());
            }
            return Err(error);
        }
    };
    let check = |what: &str, received: &[u8], expected: &[u8]| {
        if received != expected {
            let (received, expected) = (received.len(), expected.len());
            let text = format!("{what}: {received} bytes differ from the {expected} expected ones");
            report.lock().violations.push(text);
        }
    };
    match request {
        Request::FastFail => {}
        Request::Echo { size } => {
            let body = pattern(3, size);
            check("echo", &transport.send_rpc(body.clone()).await?, &body);
        }
        Request::Chunks { count, size } => {
            let opened = transport.send_rpc(format!("open:{count}:{size}")).await?;
            let id = i64::from_be_bytes(opened[..].try_into().unwrap_or_default());
            let chunks: Vec<_> =
                (0..count).map(|index| transport.fetch_chunk(id, i32::from(index))).collect();
            for (index, chunk) in chunks.into_iter().enumerate() {
                check("chunk", &chunk.await?, &pattern(index, size));
            }
        }
        Request::Stream { size, pieces } => {
            let mut body = transport.stream(&size.to_string()).await?;
            match pieces {
                Some(pieces) => {
                    for _ in 0..pieces {
                        body.next_piece().await.transpose()?;
                    }
                }
                None => check("stream", &body.collect().await?, &pattern(0, size)),
            }
        }
        Request::Upload { size } => {
            let data = pattern(1, size);
            let response = transport.upload_stream("meta", data.clone()).await?;
            check("upload", &response, &digest(&data));
        }
        Request::Misbehave(kind) => {
            let body = ["panic:", "drop:", "hang:"][usize::from(kind % 3)];
            transport.send_rpc(Bytes::from(body)).await?;
        }
    }
    Ok(())
}
