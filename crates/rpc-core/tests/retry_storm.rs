//! 1000 clients of a server that dies for 30 s, on a simulated network.

#![cfg(feature = "sim")]
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use network_common::ErrorKind as TransportErrorKind;
use rpc_core::sim::Simulation;
use rpc_core::{
    DecodeBuf, EncodeBuf, Method, RpcCallContext, RpcEndpointRef, RpcEnv, RpcError, RpcRequest,
};

use common::{Greeting, Hello, HelloMessage, SayHi, hi};

const SERVER: [u8; 4] = [10, 0, 0, 1];
const ENVIRONMENTS: u8 = 20;
const CLIENTS: u8 = 50;
const CALL_INTERVAL: Duration = Duration::from_secs(1);
/// Of each environment; the default of `spark.rpc.retry.budget`.
const TOKENS: u64 = 100;

/// A request that counts how often it is sent.
#[derive(Clone)]
struct Counted(SayHi, Arc<Counters>);

impl RpcRequest<HelloMessage> for Counted {
    type Reply = Greeting;
    const METHOD: Option<Method> = <SayHi as RpcRequest<HelloMessage>>::METHOD;

    fn into_message(self, context: RpcCallContext<Greeting>) -> HelloMessage {
        HelloMessage::SayHi(self.0, context)
    }

    fn encode(&self, body: &mut EncodeBuf<'_>) -> Result<(), RpcError> {
        self.1.attempts.fetch_add(1, Ordering::Relaxed);
        body.put_message(&self.0)
    }

    fn decode_reply(body: DecodeBuf) -> Result<Greeting, RpcError> {
        body.decode()
    }
}

#[derive(Default)]
struct Counters {
    calls: AtomicU64,
    attempts: AtomicU64,
    successes: AtomicU64,
}

/// How a client makes one call.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    /// A loop as an application writes it: three attempts, 3 s apart.
    PlainLoop,
    /// [`RpcEndpointRef::ask_with_retry`], with the same number and the same longest wait.
    AskWithRetry,
}

async fn call(
    mode: Mode,
    server: &RpcEndpointRef<HelloMessage>,
    request: Counted,
) -> Result<Greeting, RpcError> {
    if mode == Mode::AskWithRetry {
        return server.ask_with_retry(request).await;
    }
    for _ in 1..3 {
        match server.ask(request.clone()).await {
            Err(error) if error.is_retryable() => {}
            result => return result,
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    server.ask(request).await
}

async fn start_server(simulation: &Simulation) -> RpcEnv {
    let server = RpcEnv::builder("server").memory_network(&simulation.network(SERVER));
    let server = server.bind("10.0.0.1:7077").start().await.unwrap();
    server.setup_endpoint("hello", Hello).unwrap();
    server
}

/// Starts a client that makes a call every second; returns the time of its first success in ms.
fn start_client(
    mode: Mode,
    simulation: &Simulation,
    server: &RpcEndpointRef<HelloMessage>,
    counters: &Arc<Counters>,
) -> Arc<AtomicU64> {
    let first_success = Arc::new(AtomicU64::new(u64::MAX));
    let (simulation, server, counters) = (simulation.clone(), server.clone(), counters.clone());
    let returned = Arc::clone(&first_success);
    tokio::spawn(async move {
        tokio::time::sleep(CALL_INTERVAL.mul_f64(fastrand::f64())).await;
        loop {
            let (simulation, server, counters) =
                (simulation.clone(), server.clone(), counters.clone());
            let first_success = Arc::clone(&first_success);
            tokio::spawn(async move {
                counters.calls.fetch_add(1, Ordering::Relaxed);
                let request = Counted(hi("neo"), Arc::clone(&counters));
                if call(mode, &server, request).await.is_ok() {
                    counters.successes.fetch_add(1, Ordering::Relaxed);
                    let now = simulation.now().as_millis() as u64;
                    first_success.fetch_min(now, Ordering::Relaxed);
                }
            });
            tokio::time::sleep(CALL_INTERVAL).await;
        }
    });
    returned
}

#[derive(Debug)]
struct Figures {
    /// In the 30 s without a server and the 10 s after its restart.
    calls: u64,
    extra_attempts: u64,
    successes: u64,
    connection_attempts: u64,
    /// The time from the restart until every client had a success.
    recovery: Duration,
}

fn connection_attempts(environments: &[RpcEnv]) -> u64 {
    let failures = environments.iter().flat_map(|env| env.snapshot().client.failures);
    failures.filter(|(kind, _)| *kind == TransportErrorKind::Connect).map(|(_, count)| count).sum()
}

fn run(mode: Mode, seed: u64) -> Figures {
    let simulation = Simulation::new(seed);
    simulation.run(async {
        let server = start_server(&simulation).await;
        let counters = Arc::<Counters>::default();
        let (mut environments, mut first_successes) = (Vec::new(), Vec::new());
        for host in 0..ENVIRONMENTS {
            let client = RpcEnv::builder("client").client_mode();
            let client = client.memory_network(&simulation.network([10, 0, 1, host]));
            let client = client.start().await.unwrap();
            let hello = client.lookup::<HelloMessage>("10.0.0.1:7077", "hello").await.unwrap();
            for _ in 0..CLIENTS {
                first_successes.push(start_client(mode, &simulation, &hello, &counters));
            }
            environments.push(client);
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        assert_eq!(load(&counters.attempts), load(&counters.calls), "no repetition before");
        let before = (load(&counters.calls), load(&counters.successes));

        simulation.reset_host(SERVER);
        server.shutdown().await;
        tokio::time::sleep(Duration::from_secs(30)).await;
        let restart = simulation.now();
        first_successes.iter().for_each(|first| first.store(u64::MAX, Ordering::Relaxed));
        let _server = start_server(&simulation).await;
        tokio::time::sleep(Duration::from_secs(10)).await;

        let last = first_successes.iter().map(|first| load(first)).max().unwrap();
        Figures {
            calls: load(&counters.calls) - before.0,
            extra_attempts: load(&counters.attempts) - load(&counters.calls),
            successes: load(&counters.successes) - before.1,
            connection_attempts: connection_attempts(&environments),
            recovery: Duration::from_millis(last).saturating_sub(restart),
        }
    })
}

#[test]
fn retry_20_dead_server_gets_few_extra_calls_and_recovers_within_2_s() {
    let plain = run(Mode::PlainLoop, 1);
    let paced = run(Mode::AskWithRetry, 1);
    println!("plain loop: {plain:?}\nask_with_retry: {paced:?}");

    assert_eq!((plain.calls, paced.calls), (40_000, 40_000), "the same load");
    assert!(plain.extra_attempts > 50_000, "it would be a storm: {plain:?}");
    let share = u64::from(ENVIRONMENTS) * TOKENS / 2 + paced.successes / 10;
    assert!(paced.extra_attempts <= share, "{} > {share}", paced.extra_attempts);
    assert!(paced.extra_attempts > 0, "the budget permits some");
    assert!(paced.recovery <= Duration::from_secs(2), "{:?}", paced.recovery);
    // Each environment makes about four attempts to connect per second.
    assert!(paced.connection_attempts <= 6 * 30 * u64::from(ENVIRONMENTS));
}
