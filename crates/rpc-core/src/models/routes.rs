//! The routes to one peer: their senders, the connection, and its end.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use network_common::{
    ConnectionId, MemoryNetwork, NoOpRpcHandler, RpcHandler, RpcResponseCallback, TransportClient,
    TransportConf, TransportContext, TransportServer,
};
use prost::Message;
use shuttle::future::block_on;
use shuttle::thread::{self, JoinHandle};
use tokio::runtime::{Builder, Handle, Runtime};

use super::check;
use crate::address::RpcAddress;
use crate::error::{ErrorKind, RpcError};
use crate::limits::{ByteBudget, Volume};
use crate::method::Method;
use crate::peer::{Connections, OutboundRoute, PeerPool, PeerShared};
use crate::timeout::RpcTimeout;
use crate::wire::{self, EncodedMessage, MessageHeader, proto};

const ENDPOINT: &str = "endpoint";

/// What each sender sends: twice an ask after two that are not answered, once before the connection
/// stands and once after.
const EACH: u8 = 6;

/// Which message of which sender.
type Mark = (u8, u8);

/// The peer. It responds at once.
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
        callback.reply(MessageHeader::decode(&message).unwrap().body.to_vec());
    }

    fn receive_one_way(&self, client: &TransportClient, message: Bytes) {
        let header = MessageHeader::decode(&message).unwrap();
        // On route 0 comes the Hello.
        if header.route != 0 {
            let mut arrived = self.arrived.lock().unwrap();
            let is_first = arrived.iter().all(|(id, _)| *id != client.id());
            assert_eq!((header.route, header.endpoint), (1, if is_first { ENDPOINT } else { "" }));
            let mark = proto::Cancel::decode(header.body).unwrap().request_id;
            arrived.push((client.id(), ((mark >> 8) as u8, mark as u8)));
        }
    }
}

/// The handler of the environment that sends.
struct Sender {
    connections: Arc<Connections>,
    all: Mutex<Vec<TransportClient>>,
}

impl Sender {
    fn latest(&self) -> Option<TransportClient> {
        self.all.lock().unwrap().last().cloned()
    }
}

impl RpcHandler for Sender {
    fn receive(&self, client: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
        NoOpRpcHandler::new().receive(client, message, callback);
    }

    fn on_connected(&self, client: &TransportClient) {
        self.connections.add(client);
        self.all.lock().unwrap().push(client.clone());
    }

    fn on_disconnected(&self, client: &TransportClient) {
        self.connections.remove(client);
    }
}

/// What senders have to wait for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scarce {
    Credit,
    /// Capacity of the connection's write queue: every message fills it.
    Queue,
}

/// Two environments, as far as routes need them.
struct Fixture {
    server: Arc<Server>,
    sender: Arc<Sender>,
    pool: Arc<PeerPool>,
    address: RpcAddress,
    runtime: Handle,
    over: Arc<AtomicBool>,
    driver: JoinHandle<()>,
    _listener: TransportServer,
}

impl Fixture {
    fn new(scarce: Scarce) -> Self {
        let runtime =
            Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let handle = runtime.handle().clone();
        let network = MemoryNetwork::new();
        let write_queue = if scarce == Scarce::Queue { "1" } else { "1m" };
        let settings = [("spark.rpc.io.maxWriteQueueSize", write_queue)];
        let conf = TransportConf::from_settings("rpc", settings).unwrap();
        let server = Arc::new(Server::default());
        let listener = TransportContext::with_handler(conf.clone(), Arc::clone(&server) as _)
            .memory_network(&network);
        let listener = runtime.block_on(listener.create_server("127.0.0.1:0")).unwrap();
        let connections = Connections::new(Arc::new(PeerShared {
            budget: ByteBudget::new(u64::MAX),
            max_message: usize::MAX,
            max_routes: 1,
            route_budget: ByteBudget::new(u64::MAX),
            runtime: handle.clone(),
            incarnation: 1,
            address: OnceLock::new(),
            undelivered: AtomicU64::new(0),
            on_undelivered: Box::new(|error, _| panic!("{error}")),
        }));
        let sender =
            Arc::new(Sender { connections: Arc::clone(&connections), all: Mutex::default() });
        let context =
            TransportContext::with_handler(conf, Arc::clone(&sender) as _).memory_network(&network);
        let limits = Volume::new(100, u64::MAX);
        let pool = PeerPool::new(context.create_client_factory(), connections, limits);
        let over = Arc::<AtomicBool>::default();
        let driver = drive(runtime, &over);
        let address = listener.local_addr().into();
        Self { server, sender, pool, address, runtime: handle, over, driver, _listener: listener }
    }

    fn route(&self) -> OutboundRoute {
        self.pool.route(self.pool.peer(&self.address), ENDPOINT, 0)
    }

    /// Sends from a thread of its own. Returns what was accepted and what was responded to.
    fn sender(&self, sender: u8) -> JoinHandle<Sent> {
        let route = self.route();
        thread::spawn(move || {
            let mut sent = Sent::default();
            for mark in (1..=EACH).map(|number| (sender, number)) {
                if mark.1 % 3 == 0 {
                    match ask(&route, mark) {
                        Ok(()) => sent.answered.push(mark),
                        Err(error) => sent.failed.push(error.kind()),
                    }
                } else if send(&route, mark) {
                    sent.accepted.push(mark);
                }
            }
            sent
        })
    }

    /// Grants so much credit for each message that has arrived, until `over`.
    fn granter(&self, credit: u64) -> JoinHandle<()> {
        let (server, sender) = (Arc::clone(&self.server), Arc::clone(&self.sender));
        let over = Arc::clone(&self.over);
        thread::spawn(move || {
            let mut answered = 0;
            while !over.load(Ordering::Relaxed) {
                let arrived = server.arrived().len() as u64;
                // Every connection begins with one.
                let allowed = answered * credit + sender.all.lock().unwrap().len() as u64;
                assert!(
                    arrived <= allowed,
                    "{arrived} messages have arrived, {allowed} are allowed"
                );
                if let (Some(client), true) = (sender.latest(), answered < arrived) {
                    answered += 1;
                    let connection = sender.connections.get(&client);
                    let peer = connection.as_ref().and_then(|connection| connection.route_owner());
                    if let Some(peer) = peer {
                        let (messages, bytes) = (credit, 1000 * credit);
                        let credit = proto::Credit { route: 1, messages, bytes, keeps_open: false };
                        connection.inspect(|connection| peer.on_credit(connection, &credit));
                    }
                }
                thread::yield_now();
            }
        })
    }

    /// Ends the first connection, as its driver would on another thread.
    fn cutter(&self) -> JoinHandle<()> {
        let sender = Arc::clone(&self.sender);
        thread::spawn(move || {
            let client = loop {
                match sender.latest() {
                    Some(client) => break client,
                    None => thread::yield_now(),
                }
            };
            client.close();
            sender.on_disconnected(&client);
        })
    }

    fn end(self, granter: JoinHandle<()>) {
        self.over.store(true, Ordering::Relaxed);
        granter.join().unwrap();
        drop(self.pool);
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

fn message(mark: Mark) -> EncodedMessage {
    let mark = proto::Cancel { request_id: i64::from(mark.0) << 8 | i64::from(mark.1) };
    wire::encode_message(Method::new("/model.Model/Mark"), false, None, |body| {
        body.put_message(&mark)
    })
    .unwrap()
}

/// Waits for capacity where there is none. False if the pool is stopped.
fn send(route: &OutboundRoute, mark: Mark) -> bool {
    while let Err(error) = route.send(message(mark)) {
        match error.kind() {
            ErrorKind::Limit => block_on(route.wait_for_capacity()),
            ErrorKind::Stopped => return false,
            // The connection has ended, and the peer had no notice of it.
            ErrorKind::Network => {}
            _ => panic!("{error}"),
        }
    }
    true
}

fn ask(route: &OutboundRoute, mark: Mark) -> Result<(), RpcError> {
    let timeout = RpcTimeout::from(Duration::from_secs(100));
    loop {
        let response = match route.ask(message(mark), &timeout, None) {
            Ok(response) => block_on(response),
            Err(error) => Err(error),
        };
        match response {
            Ok(response) => {
                let response = proto::Cancel::decode(response).unwrap();
                assert_eq!(response.request_id as u8, mark.1);
                return Ok(());
            }
            Err(error) if error.kind() == ErrorKind::Limit => block_on(route.wait_for_capacity()),
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

/// All messages queued for the connection or for credit are sent in order, once.
fn all_arrives(scarce: Scarce) {
    let fixture = Fixture::new(scarce);
    let granter = fixture.granter(if scarce == Scarce::Credit { 1 } else { 3 });
    for sender in [fixture.sender(0), fixture.sender(1)] {
        let sent = sender.join().unwrap();
        assert_eq!((sent.answered.len(), sent.failed), (2, Vec::new()));
    }
    let arrived = fixture.server.arrived();
    assert_eq!(arrived.len(), 2 * usize::from(EACH), "{arrived:?}");
    is_in_order(&arrived);
    fixture.end(granter);
}

/// A connection that ends takes messages with it, but none is sent twice, and every ask ends.
fn the_connection_ends(scarce: Scarce) {
    let fixture = Fixture::new(scarce);
    let granter = fixture.granter(if scarce == Scarce::Credit { 1 } else { 3 });
    let (senders, cutter) = ([fixture.sender(0), fixture.sender(1)], fixture.cutter());
    let answered = senders.into_iter().flat_map(|sender| {
        let sent = sender.join().unwrap();
        assert!(sent.failed.iter().all(|kind| *kind == ErrorKind::Network), "{:?}", sent.failed);
        sent.answered
    });
    let answered: Vec<Mark> = answered.collect();
    cutter.join().unwrap();
    // Later messages arrive over a new connection.
    let route = fixture.route();
    assert!(send(&route, (2, 1)));
    ask(&route, (2, 2)).unwrap();
    let arrived = fixture.server.arrived();
    is_in_order(&arrived);
    let marks: Vec<Mark> = arrived.iter().map(|(_, mark)| *mark).collect();
    assert!(answered.iter().chain(&[(2, 1), (2, 2)]).all(|mark| marks.contains(mark)));
    drop(route);
    fixture.end(granter);
}

/// Messages that are accepted while the environment stops arrive, or are counted as unsent.
fn the_environment_stops(scarce: Scarce) {
    let fixture = Fixture::new(scarce);
    let granter = fixture.granter(if scarce == Scarce::Credit { 1 } else { 3 });
    let senders = [fixture.sender(0), fixture.sender(1)];
    let pool = Arc::clone(&fixture.pool);
    let stopped = fixture.runtime.spawn(async move { pool.stop(Duration::from_secs(1)).await });
    let unsent = block_on(stopped).unwrap() as usize;
    let mut accepted = 0;
    for sender in senders {
        let sent = sender.join().unwrap();
        let refused = |kind| matches!(kind, &ErrorKind::Stopped | &ErrorKind::Network);
        assert!(sent.failed.iter().all(refused), "{:?}", sent.failed);
        accepted += sent.accepted.len() + sent.answered.len();
    }
    while fixture.server.arrived().len() + unsent < accepted {
        thread::yield_now();
    }
    is_in_order(&fixture.server.arrived());
    fixture.end(granter);
}

#[test]
fn queued_messages_are_sent_in_order() {
    check(1000, || all_arrives(Scarce::Credit));
    check(1000, || all_arrives(Scarce::Queue));
}

#[test]
fn no_message_is_sent_twice_when_connection_ends() {
    check(1000, || the_connection_ends(Scarce::Credit));
    check(1000, || the_connection_ends(Scarce::Queue));
}

#[test]
fn unsent_messages_are_counted_when_pool_stops() {
    check(1000, || the_environment_stops(Scarce::Credit));
    check(1000, || the_environment_stops(Scarce::Queue));
}
