//! Rows C5 and C13: nobody drives the runtime of the caller, for a while or at all.

use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rpc_core::{ErrorKind, RpcAddress, RpcEndpointRef, RpcEnv};
use tokio::runtime::{Builder, Runtime};

use crate::common::{Hello, HelloMessage, SayHi, address, client, hi, server};
use crate::fixture::{NAME, stuck};

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Starts an environment on a runtime that is driven until the returned value is dropped.
fn driven_server() -> (RpcAddress, crate::fixture::Gate, Runtime) {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (address, gate) = runtime.block_on(async {
        let env = server().await;
        let (endpoint, gate) = stuck::<HelloMessage>("slow");
        env.setup_endpoint(NAME, endpoint).unwrap();
        (address(&env), gate)
    });
    (address, gate, runtime)
}

/// Joins a thread that must have ended within 10 s.
fn join_soon<T>(what: &str, thread: JoinHandle<T>) -> T {
    let started = Instant::now();
    while !thread.is_finished() {
        assert!(started.elapsed() < Duration::from_secs(10), "{what} does not end");
        thread::sleep(Duration::from_millis(5));
    }
    thread.join().unwrap()
}

/// The endpoint is in an environment whose runtime nobody drives.
#[test]
fn fault_c5_ask_sync_to_runtime_that_is_not_driven_times_out() {
    let runtime = current_thread();
    let (env, local) = runtime.block_on(async {
        let env = client().await;
        let local = env.setup_endpoint("hello", Hello).unwrap();
        (env, local)
    });
    assert_sync_asks_time_out(&env, &local);
    // The owning thread is not driving the runtime either.
    let started = Instant::now();
    let error = local.ask_sync_with_timeout(hi("neo"), Duration::from_millis(300)).unwrap_err();
    assert!(error.is_timeout() && started.elapsed() < Duration::from_secs(5), "{error:?}");
    // Driven again, it replies.
    let asked = thread::spawn(move || local.ask_sync(hi("neo")).map(|greeting| greeting.text));
    let reply = runtime.block_on(async { tokio::task::spawn_blocking(|| asked.join()).await });
    assert_eq!(reply.unwrap().unwrap().unwrap(), "hi, neo");
    assert_eq!(env.snapshot().pending_asks, 0);
}

/// The connection to the peer is driven by a runtime that nobody drives.
#[test]
fn fault_c5_ask_sync_over_connection_that_is_not_driven_times_out() {
    let (address, _gate, _server) = driven_server();
    let runtime = current_thread();
    let (env, remote) = runtime.block_on(async {
        let env = client().await;
        let remote = env.lookup::<HelloMessage>(address, NAME).await.unwrap();
        (env, remote)
    });
    assert_sync_asks_time_out(&env, &remote);
}

fn assert_sync_asks_time_out(env: &RpcEnv, endpoint: &RpcEndpointRef<HelloMessage>) {
    let asks: Vec<_> = (0..4)
        .map(|_| {
            let endpoint = endpoint.clone();
            thread::spawn(move || {
                let started = Instant::now();
                let timeout = Duration::from_millis(500);
                let error = endpoint.ask_sync_with_timeout(hi("neo"), timeout).unwrap_err();
                (error, started.elapsed())
            })
        })
        .collect();
    for ask in asks {
        let (error, elapsed) = join_soon("ask_sync", ask);
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
        assert!(error.to_string().contains("in 500ms"), "{error}");
        assert!(elapsed >= Duration::from_millis(500) && elapsed < Duration::from_secs(3));
    }
    assert_eq!(env.snapshot().pending_asks, 0);
}

/// Suspends the runtime of the caller past the deadline of its asks. The replies arrive before.
///
/// A blocked runtime stands for a process that was stopped: no task of it runs, and its socket
/// receives.
async fn ask_and_suspend(
    endpoint: &RpcEndpointRef<HelloMessage>,
    mut gate: crate::fixture::Gate,
    asks: usize,
) -> Vec<tokio::task::JoinHandle<Result<String, rpc_core::RpcError>>> {
    // The first message of a route has credit for itself only.
    gate.open();
    endpoint.ask(hi("first")).await.unwrap();
    gate.next().await;
    gate.close().await;
    let asks: Vec<_> = (0..asks)
        .map(|_| {
            let ask = endpoint.ask_with_timeout(SayHi::default(), Duration::from_secs(1));
            tokio::spawn(async move { ask.await.map(|greeting| greeting.text) })
        })
        .collect();
    gate.next().await;
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        gate.open();
        // Keeps the endpoint's channel open.
        thread::sleep(Duration::from_secs(5));
    });
    thread::sleep(Duration::from_millis(1600));
    asks
}

#[test]
fn fault_c13_replies_in_socket_are_read_after_suspension() {
    for count in [1, 16] {
        let (address, gate, _server) = driven_server();
        current_thread().block_on(async {
            let env = client().await;
            let remote = env.lookup::<HelloMessage>(address, NAME).await.unwrap();
            for ask in ask_and_suspend(&remote, gate, count).await {
                let reply = ask.await.unwrap();
                assert_eq!(reply.as_deref().map_err(ToString::to_string), Ok("slow"));
            }
        });
    }
}

/// The caller polls its ask for another reason before the task of the deadlines runs.
#[test]
fn fault_c13_ask_polled_after_suspension_waits_for_its_reply() {
    let (address, mut gate, _server) = driven_server();
    current_thread().block_on(async {
        let env = client().await;
        let remote = env.lookup::<HelloMessage>(address, NAME).await.unwrap();
        let mut ask = remote.ask_with_timeout(hi("neo"), Duration::from_secs(1));
        assert!(futures::poll!(&mut ask).is_pending());
        gate.next().await;
        gate.open();
        thread::sleep(Duration::from_millis(1600));
        assert_eq!(ask.await.unwrap().text, "slow");
    });
}

/// Without a reply, the asks time out soon after the suspension.
#[test]
fn fault_c13_asks_without_reply_time_out_after_suspension() {
    let (address, mut gate, _server) = driven_server();
    current_thread().block_on(async {
        let env = client().await;
        let remote = env.lookup::<HelloMessage>(address, NAME).await.unwrap();
        let ask = remote.ask_with_timeout(hi("neo"), Duration::from_millis(300));
        let ask = tokio::spawn(ask);
        gate.next().await;
        thread::sleep(Duration::from_millis(900));
        let resumed = Instant::now();
        assert!(ask.await.unwrap().unwrap_err().is_timeout());
        assert!(resumed.elapsed() < Duration::from_secs(1), "{:?}", resumed.elapsed());
    });
}
