//! An outbox, its senders, its connection and what becomes of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use network_common::{
    ConnectionId, MemoryNetwork, NoOpRpcHandler, RpcHandler, RpcResponseCallback, TransportClient,
    TransportConf, TransportContext, TransportServer,
};
use shuttle::future::block_on;
use shuttle::thread::{self, JoinHandle};
use tokio::runtime::{Builder, Handle, Runtime};

use super::check;
use crate::address::RpcAddress;
use crate::credit::Volume;
use crate::error::{ErrorKind, RpcError};
use crate::limits::Budget;
use crate::link::Links;
use crate::outbox::Outboxes;
use crate::post::Wire;

const ENDPOINT: &str = "endpoint";

/// What each sender sends: twice an ask after two that are not answered, once before the connection stands and once after.
const EACH: u8 = 6;

/// Which message of which sender.
type Mark = (u8, u8);

/// The environment that is sent to: it answers at once.
#[derive(Default)]
struct Server {
    arrived: Mutex<Vec<(ConnectionId, Mark)>>,
}

impl Server {
    fn arrived(&self) -> Vec<(ConnectionId, Mark)> {
        self.arrived.lock().unwrap().clone()
    }
}

impl RpcHandler for Server {
    fn receive(&self, client: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
        self.receive_one_way(client, message.clone());
        callback.reply(message);
    }

    fn receive_one_way(&self, client: &TransportClient, message: Bytes) {
        self.arrived.lock().unwrap().push((client.id(), (message[0], message[1])));
    }
}

/// The connections of the environment that sends.
struct Connections {
    links: Arc<Links>,
    all: Mutex<Vec<TransportClient>>,
}

impl Connections {
    fn latest(&self) -> Option<TransportClient> {
        self.all.lock().unwrap().last().cloned()
    }
}

impl RpcHandler for Connections {
    fn receive(&self, client: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
        NoOpRpcHandler::new().receive(client, message, callback);
    }

    fn channel_active(&self, client: &TransportClient) {
        self.links.add(client);
        self.all.lock().unwrap().push(client.clone());
    }

    fn channel_inactive(&self, client: &TransportClient) {
        self.links.remove(client);
    }
}

/// What senders have to wait for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scarce {
    Credit,
    /// Room in the connection's write queue: every message fills it.
    Queue,
}

/// Two environments, as far as outboxes need them.
struct World {
    server: Arc<Server>,
    connections: Arc<Connections>,
    outboxes: Arc<Outboxes>,
    address: RpcAddress,
    runtime: Handle,
    over: Arc<AtomicBool>,
    driver: JoinHandle<()>,
    _listener: TransportServer,
}

impl World {
    fn new(scarce: Scarce) -> Self {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let handle = runtime.handle().clone();
        let network = MemoryNetwork::new();
        let write_queue = if scarce == Scarce::Queue { "1" } else { "1m" };
        let settings = [("spark.rpc.io.maxWriteQueueSize", write_queue)];
        let conf = TransportConf::from_settings("rpc", settings).unwrap();
        let server = Arc::new(Server::default());
        let listener =
            TransportContext::with_handler(conf.clone(), Arc::clone(&server) as _).on_network(&network);
        let listener = runtime.block_on(listener.create_server("127.0.0.1:0")).unwrap();
        let links = Links::new(Budget::new(u64::MAX), usize::MAX, handle.clone());
        let connections = Arc::new(Connections { links: Arc::clone(&links), all: Mutex::default() });
        let context =
            TransportContext::with_handler(conf, Arc::clone(&connections) as _).on_network(&network);
        let limits = Volume::new(100, u64::MAX);
        let outboxes = Outboxes::new(context.create_client_factory(), links, limits, handle.clone());
        let over = Arc::<AtomicBool>::default();
        let driver = drive(runtime, &over);
        let address = listener.local_addr().into();
        Self { server, connections, outboxes, address, runtime: handle, over, driver, _listener: listener }
    }

    fn lane(&self) -> Arc<dyn Wire> {
        Arc::new(self.outboxes.lane(self.outboxes.get(&self.address), ENDPOINT))
    }

    /// Sends through a lane of its own, from a thread of its own; gives what was not refused, and what was answered.
    fn sender(&self, sender: u8) -> JoinHandle<Sent> {
        let lane = self.lane();
        thread::spawn(move || {
            let mut sent = Sent::default();
            for mark in (1..=EACH).map(|number| (sender, number)) {
                if mark.1 % 3 == 0 {
                    match ask(&*lane, mark) {
                        Ok(()) => sent.answered.push(mark),
                        Err(error) => sent.failed.push(error.kind()),
                    }
                } else if send(&*lane, mark) {
                    sent.accepted.push(mark);
                }
            }
            sent
        })
    }

    /// The server's credit: so much for each message that has arrived. Until `over`.
    fn granter(&self, credit: u64) -> JoinHandle<()> {
        let (server, connections) = (Arc::clone(&self.server), Arc::clone(&self.connections));
        let over = Arc::clone(&self.over);
        thread::spawn(move || {
            let mut answered = 0;
            while !over.load(Ordering::Relaxed) {
                let arrived = server.arrived().len() as u64;
                // Every connection begins with one.
                let allowed = answered * credit + connections.all.lock().unwrap().len() as u64;
                assert!(arrived <= allowed, "{arrived} messages have arrived, {allowed} are allowed");
                if let (Some(client), true) = (connections.latest(), answered < arrived) {
                    answered += 1;
                    connections.links.granted(&client, ENDPOINT, Volume::new(credit, 100 * credit));
                }
                thread::yield_now();
            }
        })
    }

    /// Ends the first connection, as its driver would on another thread.
    fn cutter(&self) -> JoinHandle<()> {
        let connections = Arc::clone(&self.connections);
        thread::spawn(move || {
            let client = loop {
                match connections.latest() {
                    Some(client) => break client,
                    None => thread::yield_now(),
                }
            };
            client.close();
            connections.channel_inactive(&client);
        })
    }

    fn end(self, granter: JoinHandle<()>) {
        self.over.store(true, Ordering::Relaxed);
        granter.join().unwrap();
        drop(self.outboxes);
        self.driver.join().unwrap();
    }
}

/// Runs tokio's tasks on a thread of the model. It never sleeps, as that would stop all others too.
fn drive(runtime: Runtime, over: &Arc<AtomicBool>) -> JoinHandle<()> {
    let over = Arc::clone(over);
    thread::spawn(move || {
        while !over.load(Ordering::Relaxed) {
            runtime.block_on(tokio::task::yield_now());
            thread::yield_now();
        }
    })
}

/// What became of a sender's messages.
#[derive(Default)]
struct Sent {
    /// One-way messages.
    accepted: Vec<Mark>,
    answered: Vec<Mark>,
    failed: Vec<ErrorKind>,
}

fn message(mark: Mark) -> Bytes {
    Bytes::from(vec![mark.0, mark.1])
}

/// Waits for room where there is none. False if the outbox is stopped.
fn send(lane: &dyn Wire, mark: Mark) -> bool {
    while let Err(error) = lane.send(message(mark)) {
        match error.kind() {
            ErrorKind::Limit => block_on(lane.room()),
            ErrorKind::Stopped => return false,
            // The connection has ended, and the outbox did not know.
            ErrorKind::Network => {}
            _ => panic!("{error}"),
        }
    }
    true
}

fn ask(lane: &dyn Wire, mark: Mark) -> Result<(), RpcError> {
    loop {
        match block_on(lane.ask(message(mark))) {
            Ok(answer) => {
                assert_eq!(answer, message(mark));
                return Ok(());
            }
            Err(error) if error.kind() == ErrorKind::Limit => block_on(lane.room()),
            Err(error) => return Err(error),
        }
    }
}

/// What each sender sent over each connection came in order.
fn is_in_order(arrived: &[(ConnectionId, Mark)]) {
    let mut sorted = arrived.to_vec();
    sorted.sort_by_key(|(connection, (sender, _))| (*connection, *sender));
    assert!(sorted.is_sorted(), "{arrived:?}");
    sorted.sort_by_key(|(_, mark)| *mark);
    assert!(sorted.is_sorted_by(|one, other| one.1 < other.1), "one came twice: {arrived:?}");
}

/// What waits for the connection or for credit is sent in order, all of it, once.
fn all_arrives(scarce: Scarce) {
    let world = World::new(scarce);
    let granter = world.granter(if scarce == Scarce::Credit { 1 } else { 3 });
    for sender in [world.sender(0), world.sender(1)] {
        let sent = sender.join().unwrap();
        assert_eq!((sent.answered.len(), sent.failed), (2, Vec::new()));
    }
    let arrived = world.server.arrived();
    assert_eq!(arrived.len(), 2 * usize::from(EACH), "{arrived:?}");
    is_in_order(&arrived);
    world.end(granter);
}

/// A connection that ends takes messages with it, but none is sent twice, and every ask ends.
fn the_connection_ends(scarce: Scarce) {
    let world = World::new(scarce);
    let granter = world.granter(if scarce == Scarce::Credit { 1 } else { 3 });
    let (senders, cutter) = ([world.sender(0), world.sender(1)], world.cutter());
    let answered = senders.into_iter().flat_map(|sender| {
        let sent = sender.join().unwrap();
        assert!(sent.failed.iter().all(|kind| *kind == ErrorKind::Network), "{:?}", sent.failed);
        sent.answered
    });
    let answered: Vec<Mark> = answered.collect();
    cutter.join().unwrap();
    // What is sent from now on arrives over a new connection.
    let lane = world.lane();
    assert!(send(&*lane, (2, 1)));
    ask(&*lane, (2, 2)).unwrap();
    let arrived = world.server.arrived();
    is_in_order(&arrived);
    let marks: Vec<Mark> = arrived.iter().map(|(_, mark)| *mark).collect();
    assert!(answered.iter().chain(&[(2, 1), (2, 2)]).all(|mark| marks.contains(mark)));
    drop(lane);
    world.end(granter);
}

/// Of what is accepted while the environment stops, the report knows what was not sent, and the rest arrives.
fn the_environment_stops(scarce: Scarce) {
    let world = World::new(scarce);
    let granter = world.granter(if scarce == Scarce::Credit { 1 } else { 3 });
    let senders = [world.sender(0), world.sender(1)];
    let outboxes = Arc::clone(&world.outboxes);
    let stopped = world.runtime.spawn(async move { outboxes.stop(Duration::from_secs(1)).await });
    let unsent = block_on(stopped).unwrap() as usize;
    let mut accepted = 0;
    for sender in senders {
        let sent = sender.join().unwrap();
        let refused = |kind| matches!(kind, &ErrorKind::Stopped | &ErrorKind::Network);
        assert!(sent.failed.iter().all(refused), "{:?}", sent.failed);
        accepted += sent.accepted.len() + sent.answered.len();
    }
    while world.server.arrived().len() + unsent < accepted {
        thread::yield_now();
    }
    is_in_order(&world.server.arrived());
    world.end(granter);
}

#[test]
fn what_waits_is_sent_in_order() {
    check(1000, || all_arrives(Scarce::Credit));
    check(1000, || all_arrives(Scarce::Queue));
}

#[test]
fn nothing_is_sent_twice_when_the_connection_ends() {
    check(1000, || the_connection_ends(Scarce::Credit));
    check(1000, || the_connection_ends(Scarce::Queue));
}

#[test]
fn a_stop_loses_nothing_untold() {
    check(1000, || the_environment_stops(Scarce::Credit));
    check(1000, || the_environment_stops(Scarce::Queue));
}
