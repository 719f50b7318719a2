//! Row `fault_c14`: the window of a route grows on a link with a long round trip.

use std::time::Duration;

use rpc_core::{EndpointOptions, RpcAddress, RpcEndpointRef, RpcEnv};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::common::{HelloMessage, SayHi, address, client, server};
use crate::fixture::{Gate, LONG, NAME, within, working};
use crate::window_sharing::{Arrivals, CountedMessage};

/// Half of a round trip.
const ONE_WAY: Duration = Duration::from_millis(25);

const ASKS: usize = 8192;

/// The part of the asks that one round trip must carry.
///
/// It is 0.75 and not 0.9, because a receiver may collect credit before it grants it.
const EXPECTED: usize = ASKS * 3 / 4;

type Ref = RpcEndpointRef<HelloMessage>;

/// A proxy for a link with a long round trip and unlimited bandwidth.
///
/// It forwards the bytes of one direction when none has arrived for 25 ms. So one round trip
/// carries everything for which the sender has credit, even on a slow machine.
pub struct FarLink {
    pub address: RpcAddress,
    _task: JoinSet<()>,
}

impl FarLink {
    pub async fn start(target: RpcAddress) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().into();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(target.host_port()).await.unwrap();
                let (near_read, near_write) = near.into_split();
                let (far_read, far_write) = far.into_split();
                connections.spawn(forward(near_read, far_write));
                connections.spawn(forward(far_read, near_write));
            }
        });
        Self { address, _task: task }
    }
}

async fn forward(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let mut buffered = Vec::new();
    loop {
        let read = from.read_buf(&mut buffered);
        match tokio::time::timeout(ONE_WAY, read).await {
            Ok(Ok(1..)) => {}
            Ok(Ok(0) | Err(_)) => {
                let _ = to.write_all(&buffered).await;
                return;
            }
            Err(_) => {
                if to.write_all(&buffered).await.is_err() {
                    return;
                }
                buffered.clear();
            }
        }
    }
}

/// A message of 64 bytes, from the client `number`.
pub fn message(number: usize) -> SayHi {
    SayHi { msg: format!("{number}{}", "x".repeat(61)) }
}

/// A client at the far end of a link.
pub struct FarClient {
    pub remote: Ref,
    number: usize,
    env: RpcEnv,
    link: FarLink,
}

impl FarClient {
    pub async fn start(number: usize, server: &RpcEnv) -> Self {
        let (env, link) = (client().await, FarLink::start(address(server)).await);
        let found = env.setup_endpoint_ref::<HelloMessage>(link.address.clone(), NAME);
        let remote = within(LONG, "the lookup", found).await.unwrap();
        Self { remote, number, env, link }
    }

    /// Waits until all messages with credit have arrived.
    ///
    /// The first lookup follows the first credit, the second one the messages that used it.
    pub async fn settle(&self) {
        for _ in 0..2 {
            let lookup =
                self.env.setup_endpoint_ref::<HelloMessage>(self.link.address.clone(), NAME);
            within(LONG, "a lookup behind the messages", lookup).await.unwrap();
        }
    }

    /// Keeps 8192 asks in flight, so that credit is the limit, and the window grows.
    pub async fn warm_up(&self, bursts: usize) {
        for n in 0..bursts {
            let asks = (0..ASKS).map(|_| self.remote.ask_with_timeout(message(self.number), LONG));
            let asks: Vec<_> = asks.collect();
            let replies =
                within(LONG, &format!("warm-up {n}"), futures::future::join_all(asks)).await;
            assert!(replies.iter().all(Result::is_ok));
        }
    }
}

/// A server with an endpoint whose messages are counted when they arrive.
pub async fn counted_server<const TEST: usize>(options: EndpointOptions) -> (RpcEnv, Gate) {
    let server = server().await;
    let (endpoint, gate) = working::<CountedMessage<TEST>>("counted");
    server.setup_endpoint_with(NAME, endpoint, options).unwrap();
    (server, gate)
}

/// The endpoint is stuck and grants no credit, so the arrivals are those of one round trip.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_c14_far_link_carries_8192_asks_in_one_round_trip() {
    let (server, mut gate) = counted_server::<0>(EndpointOptions::new()).await;
    let far = FarClient::start(0, &server).await;
    far.warm_up(4).await;
    gate.close().await;
    let arrivals = Arrivals::begin::<0>();
    let asks: Vec<_> = (0..ASKS).map(|_| far.remote.ask_with_timeout(message(0), LONG)).collect();
    arrivals.assert_reach(0, EXPECTED).await;
    gate.open();
    let replies = within(LONG, "the replies", futures::future::join_all(asks)).await;
    assert!(replies.iter().all(Result::is_ok));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_c14_far_link_carries_8192_sends_in_one_round_trip() {
    let (server, mut gate) = counted_server::<1>(EndpointOptions::new()).await;
    let far = FarClient::start(0, &server).await;
    for _ in 0..4 * ASKS {
        far.remote.send_wait(message(0)).await.unwrap();
    }
    let last = far.remote.ask_with_timeout(message(0), LONG);
    within(LONG, "the reply behind the sends", last).await.unwrap();
    gate.close().await;
    let arrivals = Arrivals::begin::<1>();
    for _ in 0..ASKS {
        far.remote.send_wait(message(0)).await.unwrap();
    }
    arrivals.assert_reach(0, EXPECTED).await;
    gate.open();
}
