//! Environments on a simulated network.

#![cfg(feature = "sim")]
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::time::Duration;

use rpc_core::sim::Simulation;
use rpc_core::{
    EndpointContext, EndpointOptions, ErrorKind, RpcEnv, RpcError, ThreadSafeRpcEndpoint,
};

use common::{Hello, HelloMessage, hi};

const SERVER: [u8; 4] = [10, 0, 0, 1];
const CLIENT: [u8; 4] = [10, 0, 0, 2];

async fn start_both(simulation: &Simulation) -> (RpcEnv, RpcEnv) {
    let server = RpcEnv::builder("server").memory_network(&simulation.network(SERVER));
    let server = server.bind("10.0.0.1:7077").start().await.unwrap();
    server.setup_endpoint("hello", Hello).unwrap();
    let client = RpcEnv::builder("client").memory_network(&simulation.network(CLIENT));
    (server, client.client_mode().start().await.unwrap())
}

#[test]
fn sim_20_lost_connection_fails_pending_ask_and_next_ask_reconnects() {
    let simulation = Simulation::new(7);
    simulation.run(async {
        let (_server, client) = start_both(&simulation).await;
        let hello = client.lookup::<HelloMessage>("10.0.0.1:7077", "hello").await.unwrap();
        assert_eq!(hello.ask(hi("Neo")).await.unwrap().text, "hi, Neo");
        simulation.block(SERVER, CLIENT);
        let pending = hello.ask(hi("Trinity"));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(simulation.reset_connections(SERVER, CLIENT), 1);
        assert_eq!(pending.await.unwrap_err().kind(), ErrorKind::Network);
        simulation.unblock(SERVER, CLIENT);
        assert_eq!(hello.ask(hi("Morpheus")).await.unwrap().text, "hi, Morpheus");
    });
}

#[test]
fn sim_21_ask_over_partition_times_out_at_its_simulated_deadline() {
    let simulation = Simulation::new(7);
    simulation.run(async {
        let (_server, client) = start_both(&simulation).await;
        let hello = client.lookup::<HelloMessage>("10.0.0.1:7077", "hello").await.unwrap();
        simulation.partition(SERVER, CLIENT);
        let before = simulation.now();
        let error = hello.ask_with_timeout(hi("Neo"), Duration::from_secs(30)).await.unwrap_err();
        assert!(error.is_timeout());
        let took = (simulation.now() - before).as_millis();
        assert!((30_000..30_100).contains(&took), "{took} ms");
    });
}

#[test]
fn sim_22_same_seed_makes_the_same_run_of_two_environments() {
    let run = |seed| {
        let simulation = Simulation::new(seed);
        simulation.run(async {
            let (server, client) = start_both(&simulation).await;
            let hello = client.lookup::<HelloMessage>("10.0.0.1:7077", "hello").await.unwrap();
            for round in 0..20 {
                let asks = (0..10).map(|_| hello.ask_with_timeout(hi("x"), Duration::from_secs(9)));
                let asks: Vec<_> = asks.collect();
                if round % 5 == 4 {
                    simulation.reset_connections(SERVER, CLIENT);
                }
                futures::future::join_all(asks).await;
            }
            client.shutdown().await;
            server.shutdown().await;
            assert_eq!(simulation.connection_count(), 0);
        });
        simulation.trace_hash()
    };
    for seed in 0..20 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
    assert_ne!(run(0), run(1));
}

/// An endpoint that handles its first message without end.
struct Stuck;

impl ThreadSafeRpcEndpoint for Stuck {
    type Message = HelloMessage;

    async fn receive(
        &mut self,
        _: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        std::future::pending().await
    }
}

#[test]
fn sim_23_messages_without_credit_end_after_restart_of_host() {
    let simulation = Simulation::new(7);
    simulation.run(async {
        let (server, client) = start_both(&simulation).await;
        let small = EndpointOptions::new().max_messages(4);
        server.setup_endpoint_with("stuck", Stuck, small).unwrap();
        let stuck = client.lookup::<HelloMessage>("10.0.0.1:7077", "stuck").await.unwrap();
        (0..100).for_each(|_| stuck.send(hi("Neo")).unwrap());
        tokio::time::sleep(Duration::from_secs(1)).await;
        let queued = || client.snapshot().peers.iter().map(|peer| peer.queued).sum::<u64>();
        assert!(queued() > 0, "some messages wait for credit");
        simulation.crash(SERVER);
        let ended = tokio::spawn(async move { server.shutdown().await });
        tokio::time::sleep(Duration::from_secs(60)).await;
        simulation.restart(SERVER);
        ended.abort();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(queued(), 0);
        assert!(simulation.fault_counts().stale_resets > 0);
    });
}
