//! The environment under attack, its endpoints, and a well-behaved client that must be served
//! during the attack.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rpc_core::{
    EndpointContext, EndpointOptions, EndpointSnapshot, RpcConf, RpcEnv, RpcError,
    ThreadSafeRpcEndpoint,
};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use crate::common::{Greeting, Hello, HelloMessage, address, client, hi};
use crate::raw_peer::RawPeer;

/// The limit of messages of the endpoint `stuck`.
pub const STUCK_LIMIT: u64 = 4;

/// The messages that an inbox initially grants each connection, beyond its limit.
pub const INITIAL_WINDOW: u64 = 64;

/// The longest time that a request of the well-behaved client may take, on a busy machine.
const LOW_LATENCY: Duration = Duration::from_secs(2);

/// Awaits `future` for at most 5 s, and names `what` when that has elapsed.
pub async fn promptly<T>(what: &str, future: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(5);
    match tokio::time::timeout(limit, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {limit:?}: {what}"),
    }
}

/// Waits until `holds` returns true for a state that has no event.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    promptly(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// An endpoint that handles one message for each permit.
struct Stuck(Arc<Semaphore>);

impl ThreadSafeRpcEndpoint for Stuck {
    type Message = HelloMessage;

    async fn receive(
        &mut self,
        message: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        self.0.acquire().await.map_err(RpcError::application)?.forget();
        let (HelloMessage::SayHi(_, context) | HelloMessage::SayBye(_, context)) = message;
        context.reply(Greeting { text: "handled".to_owned() })
    }
}

/// A server with the endpoints `hello`, which replies, and `stuck`, which handles one message for
/// each permit; and a well-behaved client that asks `hello` without a pause.
pub struct Fixture {
    pub server: RpcEnv,
    pub permits: Arc<Semaphore>,
    asked: Arc<AtomicUsize>,
    stop: watch::Sender<bool>,
    well_behaved: JoinHandle<Duration>,
}

impl Fixture {
    pub async fn start() -> Self {
        Self::with(RpcConf::new()).await
    }

    pub async fn with(conf: RpcConf) -> Self {
        let server =
            RpcEnv::builder("server").bind("127.0.0.1:0").conf(conf).start().await.unwrap();
        server.setup_endpoint("hello", Hello).unwrap();
        let permits = Arc::new(Semaphore::new(0));
        let options = EndpointOptions::new().max_messages(STUCK_LIMIT);
        server.setup_endpoint_with("stuck", Stuck(Arc::clone(&permits)), options).unwrap();
        let (stop, stopped) = watch::channel(false);
        let asked = Arc::new(AtomicUsize::new(0));
        let well_behaved = tokio::spawn(ask_until(server.clone(), Arc::clone(&asked), stopped));
        let fixture = Self { server, permits, asked, stop, well_behaved };
        fixture.assert_others_served().await;
        fixture
    }

    pub fn endpoint(&self, name: &str) -> EndpointSnapshot {
        self.server.snapshot().endpoints.into_iter().find(|endpoint| endpoint.name == name).unwrap()
    }

    /// Releases all messages of `stuck`.
    pub fn release(&self) {
        self.permits.add_permits(Semaphore::MAX_PERMITS / 2);
    }

    /// Waits for further replies to the well-behaved client.
    pub async fn assert_others_served(&self) {
        let before = self.asked.load(Ordering::Relaxed);
        until("the well-behaved client is served", || {
            self.asked.load(Ordering::Relaxed) > before + 2
        })
        .await;
    }

    /// Asserts that the connection of the peer is open: a new route to `hello` works.
    pub async fn assert_connected(&self, peer: &RawPeer, route: u32) {
        peer.ask_hello(route, "hello").await.unwrap();
        assert!(peer.is_connected());
        self.assert_others_served().await;
    }

    /// Closes the connection of the peer and asserts that nothing of it remains.
    pub async fn finish(self, peer: RawPeer) {
        peer.close();
        self.assert_nothing_remains().await;
    }

    /// Asserts that the well-behaved client was served all the time, and that all memory is freed
    /// after it has disconnected.
    pub async fn assert_nothing_remains(self) {
        self.assert_others_served().await;
        self.stop.send(true).unwrap();
        let slowest = promptly("the well-behaved client ends", self.well_behaved).await.unwrap();
        assert!(slowest < LOW_LATENCY, "a request of the well-behaved client took {slowest:?}");
        self.permits.add_permits(Semaphore::MAX_PERMITS / 4);
        let empty = || {
            let snapshot = self.server.snapshot();
            let queued: u64 = snapshot.endpoints.iter().map(|endpoint| endpoint.held).sum();
            (snapshot.inbox_bytes, snapshot.route_bytes, queued) == (0, 0, 0)
        };
        let emptied = async {
            while !empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(5), emptied).await.is_ok();
        assert!(in_time, "memory is held without a connection: {:?}", self.server.snapshot());
    }
}

/// Asks `hello` until `stopped`, and returns the longest time that a reply took.
async fn ask_until(
    server: RpcEnv,
    asked: Arc<AtomicUsize>,
    stopped: watch::Receiver<bool>,
) -> Duration {
    let client = client().await;
    let found = client.setup_endpoint_ref::<HelloMessage>(address(&server), "hello");
    let hello = promptly("the lookup", found).await.unwrap();
    let mut slowest = Duration::ZERO;
    while !*stopped.borrow() {
        let start = Instant::now();
        assert_eq!(promptly("a reply", hello.ask(hi("neo"))).await.unwrap().text, "hi, neo");
        slowest = slowest.max(start.elapsed());
        asked.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    client.shutdown().await;
    slowest
}
