//! Asks and lookups that are repeated, on a simulated network.

#![cfg(feature = "sim")]
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::error::Error;
use std::future::Future;
use std::time::Duration;

use network_common::ErrorKind as TransportErrorKind;
use rpc_core::sim::Simulation;
use rpc_core::{
    EndpointContext, ErrorKind, RetryPolicy, RpcEndpointRef, RpcEnv, RpcError,
    ThreadSafeRpcEndpoint,
};
use tokio::sync::mpsc;

use common::{Greeting, Hello, HelloMessage, Keep, bye, hi, setting};

const SERVER: [u8; 4] = [10, 0, 0, 1];
const OTHER: [u8; 4] = [10, 0, 0, 3];
const CLIENT: [u8; 4] = [10, 0, 0, 2];
const SECOND: Duration = Duration::from_secs(1);

async fn start_server(simulation: &Simulation) -> RpcEnv {
    let server = RpcEnv::builder("server").memory_network(&simulation.network(SERVER));
    server.bind("10.0.0.1:7077").start().await.unwrap()
}

async fn start_client(simulation: &Simulation) -> RpcEnv {
    let client = RpcEnv::builder("client").memory_network(&simulation.network(CLIENT));
    let client = client.conf(setting("spark.rpc.retry.budget", "20"));
    client.client_mode().start().await.unwrap()
}

/// Runs a test with the environments of a server and of a client.
fn with_both<F: Future<Output = ()>>(test: impl FnOnce(Simulation, RpcEnv, RpcEnv) -> F) {
    let simulation = Simulation::new(7);
    simulation.run(async {
        let (server, client) = (start_server(&simulation).await, start_client(&simulation).await);
        test(simulation.clone(), server, client).await;
    });
}

async fn look_up(client: &RpcEnv, name: &str) -> RpcEndpointRef<HelloMessage> {
    client.lookup("10.0.0.1:7077", name).await.unwrap()
}

fn policy() -> RetryPolicy {
    RetryPolicy::new().attempts(4).first_wait(SECOND).factor(1.0).jitter(false)
}

fn refused_retries(client: &RpcEnv) -> u64 {
    client.snapshot().peers.iter().map(|peer| peer.refused_retries).sum()
}

#[test]
fn retry_11_timed_out_ask_is_repeated_only_if_rpc_is_idempotent() {
    with_both(|_, server, client| async move {
        let (kept, mut contexts) = mpsc::unbounded_channel();
        server.setup_endpoint("keep", Keep(kept)).unwrap();
        let keep = look_up(&client, "keep").await;

        let error = keep.ask_with(bye("neo"), policy()).attempt_timeout(SECOND).await.unwrap_err();
        assert!(error.is_timeout() && !error.is_retryable());
        assert!(!error.to_string().contains("attempts"), "{error}");
        assert!(contexts.recv().await.is_some() && contexts.try_recv().is_err());

        let error = keep.ask_with(hi("neo"), policy()).attempt_timeout(SECOND).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(
            error.to_string().ends_with("no success after 4 attempts (RetryPolicy)"),
            "{error}"
        );
        assert!(error.source().unwrap().to_string().starts_with("Cannot receive any reply"));
        for _ in 0..4 {
            assert!(contexts.try_recv().is_ok());
        }
        assert!(contexts.try_recv().is_err());
    });
}

#[test]
fn retry_11_ask_on_lost_connection_is_repeated_only_if_rpc_is_idempotent() {
    with_both(|simulation, server, client| async move {
        let (kept, mut contexts) = mpsc::unbounded_channel();
        server.setup_endpoint("keep", Keep(kept)).unwrap();
        let keep = look_up(&client, "keep").await;

        let ask = tokio::spawn(keep.ask_with(bye("neo"), policy()).into_future());
        let _pending = contexts.recv().await.unwrap();
        assert_eq!(simulation.reset_connections(SERVER, CLIENT), 1);
        assert_eq!(ask.await.unwrap().unwrap_err().kind(), ErrorKind::Network);

        let ask = tokio::spawn(keep.ask_with(hi("neo"), policy()).into_future());
        let _pending = contexts.recv().await.unwrap();
        assert_eq!(simulation.reset_connections(SERVER, CLIENT), 1);
        contexts.recv().await.unwrap().reply(Greeting { text: "again".to_owned() }).unwrap();
        assert_eq!(ask.await.unwrap().unwrap().text, "again");
        assert!(contexts.try_recv().is_err());
    });
}

#[test]
fn retry_11_ask_that_was_not_executed_is_repeated_until_peer_is_there() {
    with_both(|simulation, server, client| async move {
        server.setup_endpoint("hello", Hello).unwrap();
        let hello = look_up(&client, "hello").await;
        server.shutdown().await;
        let ask = tokio::spawn(hello.ask_with(bye("neo"), policy()).into_future());
        tokio::time::sleep(2 * SECOND).await;
        let server = start_server(&simulation).await;
        server.setup_endpoint("hello", Hello).unwrap();
        assert_eq!(ask.await.unwrap().unwrap().text, "bye, neo");
    });
}

#[test]
fn retry_12_all_attempts_end_at_total_timeout() {
    with_both(|simulation, server, client| async move {
        let (kept, _contexts) = mpsc::unbounded_channel();
        server.setup_endpoint("keep", Keep(kept)).unwrap();
        let keep = look_up(&client, "keep").await;
        let start = simulation.now();
        let policy = policy().attempts(100).total_timeout(10 * SECOND);
        let ask = keep.ask_with(hi("neo"), policy).attempt_timeout(2 * SECOND);
        let error = ask.await.unwrap_err();
        // Attempts at 0, 3, 6 and 9 s.
        assert!(error.to_string().contains("4 attempts"), "{error}");
        let last = error.source().unwrap().to_string();
        assert!(last.ends_with("controlled by RetryPolicy::total_timeout"), "{last}");
        let took = (simulation.now() - start).as_millis();
        assert!((10_000..10_100).contains(&took), "{took} ms");
    });
}

/// An endpoint that repeats an ask to another one for as long as its own caller waits.
struct Repeats(RpcEndpointRef<HelloMessage>);

impl ThreadSafeRpcEndpoint for Repeats {
    type Message = HelloMessage;
    async fn receive(
        &mut self,
        message: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        let HelloMessage::SayHi(request, context) = message else { return Ok(()) };
        let ask = self.0.ask_with(request, policy().attempts(100)).attempt_timeout(2 * SECOND);
        context.reply(ask.await?)
    }
}

#[test]
fn retry_12_attempts_in_handler_end_at_deadline_of_its_request() {
    with_both(|simulation, server, client| async move {
        let (kept, mut contexts) = mpsc::unbounded_channel();
        let keep = server.setup_endpoint("keep", Keep(kept)).unwrap();
        server.setup_endpoint("repeats", Repeats(keep)).unwrap();
        let repeats = look_up(&client, "repeats").await;
        let error = repeats.ask_with_timeout(hi("neo"), 10 * SECOND).await.unwrap_err();
        assert!(error.is_timeout());
        tokio::time::sleep(30 * SECOND).await;
        let received = std::iter::from_fn(|| contexts.try_recv().ok()).count();
        assert_eq!(received, 4, "at 0, 3, 6 and 9 s");
        assert!(simulation.now() >= 40 * SECOND);
    });
}

#[test]
fn retry_13_hedged_ask_takes_first_reply_and_cancels_other_request() {
    with_both(|simulation, server, client| async move {
        let (kept, mut contexts) = mpsc::unbounded_channel();
        server.setup_endpoint("keep", Keep(kept)).unwrap();
        let keep = look_up(&client, "keep").await;
        for replies_first in [false, true] {
            let start = simulation.now();
            let ask = keep.ask_with(hi("neo"), policy()).hedge_after(SECOND);
            let ask = tokio::spawn(ask.into_future());
            let mut both = [contexts.recv().await.unwrap(), contexts.recv().await.unwrap()];
            let waited = (simulation.now() - start).as_millis();
            assert!((1000..1100).contains(&waited), "{waited} ms");
            both.rotate_left(usize::from(!replies_first));
            let [replying, other] = both;
            replying.reply(Greeting { text: "hedged".to_owned() }).unwrap();
            assert_eq!(ask.await.unwrap().unwrap().text, "hedged");
            tokio::time::timeout(SECOND, other.cancelled()).await.expect("it was cancelled");
        }
        assert!(contexts.try_recv().is_err());
    });
}

#[test]
fn retry_13_fast_reply_or_empty_budget_prevents_second_request() {
    with_both(|_, server, client| async move {
        let (kept, mut contexts) = mpsc::unbounded_channel();
        server.setup_endpoint("keep", Keep(kept)).unwrap();
        let keep = look_up(&client, "keep").await;
        let hedged = || {
            let ask = keep.ask_with(hi("neo"), policy().attempts(1)).hedge_after(2 * SECOND);
            tokio::spawn(ask.attempt_timeout(5 * SECOND).into_future())
        };
        let ask = hedged();
        contexts.recv().await.unwrap().reply(Greeting::default()).unwrap();
        ask.await.unwrap().unwrap();
        tokio::time::sleep(5 * SECOND).await;
        assert!(contexts.try_recv().is_err());

        // 20 tokens: after 10 failures half of them are left.
        for _ in 0..10 {
            let ask = keep.ask_with(hi("neo"), policy().attempts(1)).attempt_timeout(SECOND);
            ask.await.unwrap_err();
            drop(contexts.recv().await.unwrap());
        }
        hedged().await.unwrap().unwrap_err();
        assert!(contexts.recv().await.is_some() && contexts.try_recv().is_err());
    });
}

#[test]
fn retry_14_asks_are_not_repeated_when_budget_of_peer_is_used_up() {
    with_both(|simulation, server, client| async move {
        let other = RpcEnv::builder("other").memory_network(&simulation.network(OTHER));
        let other = other.bind("10.0.0.3:7077").start().await.unwrap();
        server.setup_endpoint("hello", Hello).unwrap();
        other.setup_endpoint("hello", Hello).unwrap();
        let hello = look_up(&client, "hello").await;
        let to_other = client.lookup::<HelloMessage>("10.0.0.3:7077", "hello").await.unwrap();
        server.shutdown().await;

        // 20 tokens: the 10th failure leaves half of them.
        let mut errors = Vec::new();
        for _ in 0..5 {
            errors.push(hello.ask_with(hi("neo"), policy()).await.unwrap_err().to_string());
        }
        let is_refused = |error: &String| error.contains("spark.rpc.retry.budget");
        let expected = ["4 attempts", "4 attempts", "2 attempts", "1 attempt ", "1 attempt "];
        for (error, expected) in errors.iter().zip(expected) {
            assert!(error.contains(expected), "{errors:#?}");
        }
        assert_eq!(errors.iter().filter(|error| is_refused(error)).count(), 3);
        assert_eq!(refused_retries(&client), 3);

        // Another ref to the same peer shares the budget; another peer has its own.
        let error = hello.clone().ask_with_retry(hi("neo")).await.unwrap_err();
        assert!(is_refused(&error.to_string()), "{error}");
        other.shutdown().await;
        let error = to_other.ask_with(hi("neo"), policy()).await.unwrap_err();
        assert!(error.to_string().contains("4 attempts"), "{error}");

        // 7 tokens are left. 50 successes return 5.
        let server = start_server(&simulation).await;
        server.setup_endpoint("hello", Hello).unwrap();
        for _ in 0..50 {
            hello.ask_with(hi("neo"), policy()).await.unwrap();
        }
        server.shutdown().await;
        let error = hello.ask_with(hi("neo"), policy()).await.unwrap_err();
        assert!(error.to_string().contains("2 attempts"), "{error}");
    });
}

#[test]
fn retry_15_lookup_waits_for_server_and_for_endpoint() {
    let simulation = Simulation::new(7);
    simulation.run(async {
        let client = start_client(&simulation).await;
        let lookup = client.lookup::<HelloMessage>("10.0.0.1:7077", "hello");
        let lookup = tokio::spawn(lookup.wait_up_to(60 * SECOND));
        tokio::time::sleep(20 * SECOND).await;
        let server = start_server(&simulation).await;
        tokio::time::sleep(20 * SECOND).await;
        assert!(!lookup.is_finished());
        server.setup_endpoint("hello", Hello).unwrap();
        let registered = simulation.now();
        let hello = lookup.await.unwrap().unwrap();
        assert!(simulation.now() - registered < 2 * SECOND);
        assert_eq!(hello.ask(hi("neo")).await.unwrap().text, "hi, neo");
    });
}

#[test]
fn retry_15_lookup_ends_after_longest_wait_or_at_once_after_final_error() {
    with_both(|simulation, server, client| async move {
        let start = simulation.now();
        let lookup = client.lookup::<HelloMessage>("10.0.0.1:7077", "hello");
        let error = lookup.wait_up_to(30 * SECOND).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::EndpointNotFound);
        assert!(error.to_string().contains("attempts (wait_up_to 30s)"), "{error}");
        assert!(error.source().is_some_and(|last| last.to_string().contains("hello")));
        let took = (simulation.now() - start).as_secs();
        assert!((28..=30).contains(&took), "{took} s");

        let start = simulation.now();
        let lookup = client.lookup::<HelloMessage>("no address", "hello");
        let error = lookup.wait_up_to(30 * SECOND).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidAddress);
        assert_eq!(simulation.now(), start);
        drop(server);
    });
}

#[test]
fn retry_16_asks_in_loop_to_dead_peer_make_few_connection_attempts() {
    with_both(|simulation, server, client| async move {
        server.setup_endpoint("hello", Hello).unwrap();
        let hello = look_up(&client, "hello").await;
        server.shutdown().await;
        let (start, mut failed) = (simulation.now(), 0);
        while simulation.now() - start < 30 * SECOND {
            assert!(hello.ask(hi("neo")).await.unwrap_err().is_retryable());
            failed += 1;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(failed > 10_000, "{failed}: asks fail without a wait");
        // The average wait is 250 ms.
        let attempts = client.snapshot().client.failures;
        let attempts = attempts.iter().find(|(kind, _)| *kind == TransportErrorKind::Connect);
        let attempts = attempts.unwrap().1;
        assert!((90..=180).contains(&attempts), "{attempts} attempts in 30 s");

        let server = start_server(&simulation).await;
        server.setup_endpoint("hello", Hello).unwrap();
        let start = simulation.now();
        while hello.ask(hi("neo")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(simulation.now() - start < SECOND / 2 + SECOND / 10);
        // A connection that was established is opened again without a wait.
        simulation.reset_connections(SERVER, CLIENT);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let start = simulation.now();
        hello.ask(hi("neo")).await.unwrap();
        assert!(simulation.now() - start < SECOND / 10);
    });
}
