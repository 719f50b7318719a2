//! Row `fault_c14`: the grown windows of several clients share the inbox limits of an endpoint.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rpc_core::{EndpointOptions, IncomingRequest, RpcError, RpcMessage};
use tokio::sync::Notify;

use crate::common::{HelloMessage, client};
use crate::far_link::{FarClient, counted_server, message};
use crate::fixture::{LONG, look_up, within};

/// The highest number of clients in one test.
const CLIENTS: usize = 4;

/// The messages that an inbox initially grants each connection, beyond its limit.
const INITIAL_WINDOW: usize = 64;

/// `HelloMessage` with a count of arrivals, one for each test and client.
///
/// Arrivals are limited by credit, also while the endpoint is stuck.
pub struct CountedMessage<const TEST: usize>(HelloMessage);

struct Counter {
    arrived: AtomicUsize,
    changed: Notify,
}

static COUNTERS: [[Counter; CLIENTS]; 5] = [const {
    [const { Counter { arrived: AtomicUsize::new(0), changed: Notify::const_new() } }; CLIENTS]
}; 5];

impl<const TEST: usize> RpcMessage for CountedMessage<TEST> {
    const SERVICES: &'static [&'static str] = HelloMessage::SERVICES;

    fn decode(request: IncomingRequest<'_>) -> Result<Self, RpcError> {
        let message = HelloMessage::decode(request)?;
        if let HelloMessage::SayHi(hi, _) = &message {
            let client = hi.msg.bytes().next().map_or(0, |digit| usize::from(digit - b'0'));
            let counter = &COUNTERS[TEST][client];
            counter.arrived.fetch_add(1, Ordering::Relaxed);
            counter.changed.notify_one();
        }
        Ok(Self(message))
    }
}

impl<const TEST: usize> From<CountedMessage<TEST>> for HelloMessage {
    fn from(message: CountedMessage<TEST>) -> Self {
        message.0
    }
}

/// The arrivals of one test since a point in time.
pub struct Arrivals {
    counters: &'static [Counter; CLIENTS],
    before: [usize; CLIENTS],
}

impl Arrivals {
    pub fn begin<const TEST: usize>() -> Self {
        let counters = &COUNTERS[TEST];
        Self { counters, before: [0, 1, 2, 3].map(|n| counters[n].arrived.load(Ordering::Relaxed)) }
    }

    pub fn of(&self, client: usize) -> usize {
        self.counters[client].arrived.load(Ordering::Relaxed) - self.before[client]
    }

    /// Waits until `expected` messages of the client have arrived.
    pub async fn assert_reach(&self, client: usize, expected: usize) {
        let reached = async {
            while self.of(client) < expected {
                self.counters[client].changed.notified().await;
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(5), reached).await.is_ok();
        let arrived = self.of(client);
        assert!(
            in_time,
            "{arrived} messages arrived without further credit, {expected} are expected"
        );
    }
}

/// With one busy client, the window grows up to the inbox's limit and not beyond it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_c14_window_of_one_client_grows_to_inbox_limit() {
    const LIMIT: usize = 2048;
    let options = EndpointOptions::new().max_messages(LIMIT as u64);
    let (server, mut gate) = counted_server::<2>(options).await;
    let far = FarClient::start(0, &server).await;
    far.warm_up(3).await;
    gate.close().await;
    let arrivals = Arrivals::begin::<2>();
    let asks: Vec<_> =
        (0..4 * LIMIT).map(|_| far.remote.ask_with_timeout(message(0), LONG)).collect();
    arrivals.assert_reach(0, LIMIT / 4).await;
    far.settle().await;
    let arrived = arrivals.of(0);
    assert!(arrived <= LIMIT + INITIAL_WINDOW, "{arrived} messages arrived");
    gate.open();
    let replies = within(LONG, "the replies", futures::future::join_all(asks)).await;
    assert!(replies.iter().all(Result::is_ok));
}

/// The windows of four busy clients together stay within the limit, and each gets a fair share.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_c14_busy_clients_share_inbox_limit_fairly() {
    const LIMIT: usize = 4096;
    let options = EndpointOptions::new().max_messages(LIMIT as u64);
    let (server, mut gate) = counted_server::<3>(options).await;
    let mut far = vec![FarClient::start(0, &server).await];
    // The first client has the whole inbox before the others connect.
    far[0].warm_up(3).await;
    for number in 1..CLIENTS {
        far.push(FarClient::start(number, &server).await);
    }
    futures::future::join_all(far.iter().map(|client| client.warm_up(2))).await;
    gate.close().await;
    let arrivals = Arrivals::begin::<3>();
    let mut asks = Vec::new();
    for (number, client) in far.iter().enumerate() {
        asks.extend((0..LIMIT).map(|_| client.remote.ask_with_timeout(message(number), LONG)));
    }
    for number in 0..CLIENTS {
        arrivals.assert_reach(number, LIMIT / CLIENTS * 3 / 8).await;
    }
    for client in &far {
        client.settle().await;
    }
    let all: Vec<_> = (0..CLIENTS).map(|number| arrivals.of(number)).collect();
    let total: usize = all.iter().sum();
    assert!(total <= LIMIT + CLIENTS * INITIAL_WINDOW, "{all:?} messages arrived");
    gate.open();
    let replies = within(LONG, "the replies", futures::future::join_all(asks)).await;
    assert!(replies.iter().all(Result::is_ok));
}

/// An ask of an idle client waits behind at most one full inbox, and is not rejected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_c14_idle_client_is_served_beside_busy_far_client() {
    const LIMIT: usize = 1024;
    let options = EndpointOptions::new().max_messages(LIMIT as u64);
    let (server, mut gate) = counted_server::<4>(options).await;
    let (far, near) = (FarClient::start(0, &server).await, client().await);
    let idle = look_up(&near, &server).await;
    far.warm_up(3).await;
    for n in 0..10 {
        gate.close().await;
        let arrivals = Arrivals::begin::<4>();
        let busy: Vec<_> =
            (0..2 * LIMIT).map(|_| far.remote.ask_with_timeout(message(0), LONG)).collect();
        arrivals.assert_reach(0, LIMIT / 4).await;
        let reply = idle.ask_with_timeout(message(1), LONG);
        arrivals.assert_reach(1, 1).await;
        let before = arrivals.of(0);
        assert!(
            before <= LIMIT + 2 * INITIAL_WINDOW,
            "{before} messages are before the idle client's"
        );
        gate.open();
        within(LONG, &format!("the reply to the idle client's ask {n}"), reply).await.unwrap();
        let replies =
            within(LONG, "the busy client's replies", futures::future::join_all(busy)).await;
        assert!(replies.iter().all(Result::is_ok));
    }
}
