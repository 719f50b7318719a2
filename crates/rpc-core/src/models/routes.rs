//! Models of the route to one peer: concurrent senders, grants, and the end of the connection.

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
use crate::limits::{ByteLimit, Volume};
use crate::method::Method;
use crate::peer::{Connections, OutboundRoute, PeerPool, PeerShared};
use crate::timeout::RpcTimeout;
use crate::wire::{self, EncodedMessage, MessageHeader, proto};

const ENDPOINT: &str = "endpoint";

/// The number of messages of each sender: every third one is an ask, the others are one-way.
const EACH: u8 = 6;

/// The id of a message: its sender, and its number among the sender's messages.
type MessageId = (u8, u8);

/// The handler of the peer, which responds at once.
#[derive(Default)]
struct Server {
    arrived: Mutex<Vec<(ConnectionId, MessageId)>>,
}

impl Server {
    fn arrived(&self) -> Vec<(ConnectionId, MessageId)> {
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
        // The Hello arrives on route 0.
        if header.route != 0 {
            let mut arrived = self.arrived.lock().unwrap();
            let is_first = arrived.iter().all(|(id, _)| *id != client.id());
            assert_eq!((header.route, header.endpoint), (1, if is_first { ENDPOINT } else { "" }));
            let id = proto::Cancel::decode(header.body).unwrap().request_id;
            arrived.push((client.id(), ((id >> 8) as u8, id as u8)));
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

/// The resource that is scarce, so that senders wait for it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scarce {
    Credit,
    /// Capacity of the connection's write queue: every message fills it.
    Queue,
}

/// The parts of two environments that routes need.
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
            budget: Arc::new(ByteLimit::new(u64::MAX, &network_common::ByteBudget::new(u64::MAX))),
            max_message: usize::MAX,
            max_routes: 1,
            route_budget: ByteLimit::new(u64::MAX, &network_common::ByteBudget::new(u64::MAX)),
            retry_budget: 0,
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

    /// Starts a thread that sends, and returns the outcome of its messages.
    fn sender(&self, sender: u8) -> JoinHandle<Sent> {
        let route = self.route();
        thread::spawn(move || {
            let mut sent = Sent::default();
            for id in (1..=EACH).map(|number| (sender, number)) {
                if id.1 % 3 == 0 {
                    match ask(&route, id) {
                        Ok(()) => sent.replied.push(id),
                        Err(error) => sent.failed.push(error.kind()),
                    }
                } else if send(&route, id) {
                    sent.accepted.push(id);
                }
            }
            sent
        })
    }

    /// Grants credit for `credit` messages per arrived message, until `over` is true.
    fn granter(&self, credit: u64) -> JoinHandle<()> {
        let (server, sender) = (Arc::clone(&self.server), Arc::clone(&self.sender));
        let over = Arc::clone(&self.over);
        thread::spawn(move || {
            let mut replied = 0;
            while !over.load(Ordering::Relaxed) {
                let arrived = server.arrived().len() as u64;
                // Every connection starts with credit for one message.
                let allowed = replied * credit + sender.all.lock().unwrap().len() as u64;
                assert!(
                    arrived <= allowed,
                    "{arrived} messages have arrived, {allowed} are allowed"
                );
                if let (Some(client), true) = (sender.latest(), replied < arrived) {
                    replied += 1;
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

    /// Closes the first connection from another thread, as its driver does.
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

/// Runs tokio's tasks on a thread of the model, without sleeping, which would block all threads.
fn drive(runtime: Runtime, over: &Arc<AtomicBool>) -> JoinHandle<()> {
    let over = Arc::clone(over);
    thread::spawn(move || {
        while !over.load(Ordering::Relaxed) {
            runtime.block_on(tokio::task::yield_now());
            thread::yield_now();
        }
    })
}

/// The outcomes of the messages of one sender.
#[derive(Default)]
struct Sent {
    /// One-way messages.
    accepted: Vec<MessageId>,
    replied: Vec<MessageId>,
    failed: Vec<ErrorKind>,
}

fn message(id: MessageId) -> EncodedMessage {
    let id = proto::Cancel { request_id: i64::from(id.0) << 8 | i64::from(id.1) };
    wire::encode_message(Method::new("/model.Model/Send"), false, None, |body| {
        body.put_message(&id)
    })
    .unwrap()
}

/// Sends a one-way message, and waits for capacity. Returns false if the pool has stopped.
fn send(route: &OutboundRoute, id: MessageId) -> bool {
    while let Err(error) = route.send(message(id)) {
        match error.kind() {
            ErrorKind::Limit => block_on(route.wait_for_capacity()),
            ErrorKind::Stopped => return false,
            // The connection has ended and the route has not been notified yet.
            ErrorKind::Network => {}
            _ => panic!("{error}"),
        }
    }
    true
}

fn ask(route: &OutboundRoute, id: MessageId) -> Result<(), RpcError> {
    let timeout = RpcTimeout::from(Duration::from_secs(100));
    loop {
        let response = match route.ask(message(id), &timeout, None) {
            Ok(response) => block_on(response),
            Err(error) => Err(error),
        };
        match response {
            Ok(response) => {
                let response = proto::Cancel::decode(response).unwrap();
                assert_eq!(response.request_id as u8, id.1);
                return Ok(());
            }
            Err(error) if error.kind() == ErrorKind::Limit => block_on(route.wait_for_capacity()),
            Err(error) => return Err(error),
        }
    }
}

/// Asserts that the messages of each sender arrived in order on each connection, and once.
fn assert_in_order(arrived: &[(ConnectionId, MessageId)]) {
    let mut sorted = arrived.to_vec();
    sorted.sort_by_key(|(connection, (sender, _))| (*connection, *sender));
    assert!(sorted.is_sorted(), "{arrived:?}");
    sorted.sort_by_key(|(_, id)| *id);
    assert!(sorted.is_sorted_by(|one, other| one.1 < other.1), "one came twice: {arrived:?}");
}

/// All messages that are queued for the connection or for credit arrive once and in order.
fn queued_messages_arrive(scarce: Scarce) {
    let fixture = Fixture::new(scarce);
    let granter = fixture.granter(if scarce == Scarce::Credit { 1 } else { 3 });
    for sender in [fixture.sender(0), fixture.sender(1)] {
        let sent = sender.join().unwrap();
        assert_eq!((sent.replied.len(), sent.failed), (2, Vec::new()));
    }
    let arrived = fixture.server.arrived();
    assert_eq!(arrived.len(), 2 * usize::from(EACH), "{arrived:?}");
    assert_in_order(&arrived);
    fixture.end(granter);
}

/// Messages may be lost with their connection, but none is sent twice, and every ask ends.
fn connection_ends(scarce: Scarce) {
    let fixture = Fixture::new(scarce);
    let granter = fixture.granter(if scarce == Scarce::Credit { 1 } else { 3 });
    let (senders, cutter) = ([fixture.sender(0), fixture.sender(1)], fixture.cutter());
    let replied = senders.into_iter().flat_map(|sender| {
        let sent = sender.join().unwrap();
        assert!(sent.failed.iter().all(|kind| *kind == ErrorKind::Network), "{:?}", sent.failed);
        sent.replied
    });
    let replied: Vec<MessageId> = replied.collect();
    cutter.join().unwrap();
    // Later messages arrive over a new connection.
    let route = fixture.route();
    assert!(send(&route, (2, 1)));
    ask(&route, (2, 2)).unwrap();
    let arrived = fixture.server.arrived();
    assert_in_order(&arrived);
    let ids: Vec<MessageId> = arrived.iter().map(|(_, id)| *id).collect();
    assert!(replied.iter().chain(&[(2, 1), (2, 2)]).all(|id| ids.contains(id)));
    drop(route);
    fixture.end(granter);
}

/// Messages that are accepted while the pool stops arrive, or are counted as unsent.
fn pool_stops(scarce: Scarce) {
    let fixture = Fixture::new(scarce);
    let granter = fixture.granter(if scarce == Scarce::Credit { 1 } else { 3 });
    let senders = [fixture.sender(0), fixture.sender(1)];
    let pool = Arc::clone(&fixture.pool);
    let stopped = fixture.runtime.spawn(async move { pool.stop(Duration::from_secs(1)).await });
    let unsent = block_on(stopped).unwrap() as usize;
    let mut accepted = 0;
    for sender in senders {
        let sent = sender.join().unwrap();
        let rejected = |kind| matches!(kind, &ErrorKind::Stopped | &ErrorKind::Network);
        assert!(sent.failed.iter().all(rejected), "{:?}", sent.failed);
        accepted += sent.accepted.len() + sent.replied.len();
    }
    while fixture.server.arrived().len() + unsent < accepted {
        thread::yield_now();
    }
    assert_in_order(&fixture.server.arrived());
    fixture.end(granter);
}

#[test]
fn queued_messages_are_sent_in_order() {
    check(1000, || queued_messages_arrive(Scarce::Credit));
    check(1000, || queued_messages_arrive(Scarce::Queue));
}

#[test]
fn no_message_is_sent_twice_when_connection_ends() {
    check(1000, || connection_ends(Scarce::Credit));
    check(1000, || connection_ends(Scarce::Queue));
}

#[test]
fn unsent_messages_are_counted_when_pool_stops() {
    check(1000, || pool_stops(Scarce::Credit));
    check(1000, || pool_stops(Scarce::Queue));
}
