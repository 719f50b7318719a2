//! Routes between two environments: idle routes, the limit of routes, one-way rpcs.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{Hello, HelloMessage, address, envelope, hi, server, setting, soon};
use network_common::{NoOpRpcHandler, TransportConf, TransportContext};
use prost::Message;
use rpc_core::{
    EndpointContext, ErrorKind, MemoryNetwork, RpcConf, RpcEndpointRef, RpcEnv, RpcError,
    ThreadSafeRpcEndpoint,
};

mod coverage {
    include!("generated/coverage.rs");
}

use coverage::{Mark, StoreMessage};

async fn lookup(client: &RpcEnv, server: &RpcEnv, name: &str) -> RpcEndpointRef<HelloMessage> {
    soon(client.setup_endpoint_ref(address(server), name)).await.unwrap()
}

async fn client_with(conf: RpcConf) -> RpcEnv {
    RpcEnv::builder("client").client_mode().conf(conf).start().await.unwrap()
}

/// Closing idle routes makes the credit of an idle client available to others.
#[tokio::test(start_paused = true)]
async fn idle_routes_are_closed_and_reopened_on_use() {
    let network = MemoryNetwork::new();
    let server = RpcEnv::builder("server")
        .bind("10.0.0.1:7077")
        .memory_network(&network)
        .start()
        .await
        .unwrap();
    let client =
        RpcEnv::builder("client").client_mode().memory_network(&network).start().await.unwrap();
    let mut refs = Vec::new();
    for name in ["one", "two", "three"] {
        server.setup_endpoint(name, Hello).unwrap();
        refs.push(client.setup_endpoint_ref::<HelloMessage>(address(&server), name).await.unwrap());
    }
    for _ in 0..3 {
        for hello in &refs {
            assert_eq!(hello.ask(hi("neo")).await.unwrap().text, "hi, neo");
        }
        assert!(server.snapshot().route_bytes > 0);
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!(server.snapshot().route_bytes, 0);
    }
    // A route that is used every 30 s stays open.
    for _ in 0..10 {
        refs[0].ask(hi("neo")).await.unwrap();
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
    assert_eq!(server.snapshot().route_bytes, 256 + "one".len() as u64);
}

#[tokio::test]
async fn refs_beyond_route_limit_fail_until_route_is_free() {
    let server = server().await;
    let client = client_with(setting("spark.rpc.maxRoutesPerConnection", "4")).await;
    let mut refs = Vec::new();
    for n in 0..10 {
        let name = format!("endpoint-{n}");
        server.setup_endpoint(&name, Hello).unwrap();
        // The lookup itself needs one of the routes.
        if n < 3 {
            let hello = lookup(&client, &server, &name).await;
            soon(hello.ask(hi("neo"))).await.unwrap();
            refs.push(hello);
        }
    }
    let error =
        soon(client.setup_endpoint_ref::<HelloMessage>(address(&server), "endpoint-9")).await;
    // The route to the verifier has no ref, so the new route reuses its number.
    let last = error.unwrap();
    soon(last.ask(hi("neo"))).await.unwrap();
    let error =
        soon(client.setup_endpoint_ref::<HelloMessage>(address(&server), "endpoint-8")).await;
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit);
    assert!(error.to_string().contains("spark.rpc.maxRoutesPerConnection"), "{error}");
    assert!(!error.is_retryable(), "send_wait would retry in a loop");
    for hello in &refs {
        assert_eq!(soon(hello.ask(hi("neo"))).await.unwrap().text, "hi, neo");
    }
    let sent = soon(last.send_wait(hi("neo"))).await;
    sent.unwrap();
    drop(last);
    let next = lookup(&client, &server, "endpoint-8").await;
    assert_eq!(soon(next.ask(hi("neo"))).await.unwrap().text, "hi, neo");
}

/// Refs in use do not take routes from each other when the limit is reached.
#[tokio::test]
async fn refs_in_use_keep_their_routes_at_limit() {
    let server = server().await;
    let client = client_with(setting("spark.rpc.maxRoutesPerConnection", "64")).await;
    let mut refs = Vec::new();
    for n in 0..63 {
        let name = format!("endpoint-{n}");
        server.setup_endpoint(&name, Hello).unwrap();
        refs.push(lookup(&client, &server, &name).await);
    }
    for _ in 0..3 {
        for hello in &refs {
            soon(hello.ask(hi("neo"))).await.unwrap();
        }
    }
    // The 63 routes and that to the verifier were each opened once.
    let names: u64 = (0..63).map(|n| format!("endpoint-{n}").len() as u64).sum();
    assert_eq!(server.snapshot().route_bytes, 64 * 256 + names + "endpoint-verifier".len() as u64);
}

struct Store;

impl ThreadSafeRpcEndpoint for Store {
    type Message = StoreMessage;
    async fn receive(
        &mut self,
        _: StoreMessage,
        _: &EndpointContext<StoreMessage>,
    ) -> Result<(), RpcError> {
        Ok(())
    }
}

/// A one-way rpc has no context, so an ask of it fails.
#[tokio::test]
async fn ask_of_one_way_rpc_fails() {
    let server = server().await;
    server.setup_endpoint("store", Store).unwrap();
    let context = TransportContext::new(TransportConf::new("rpc"), NoOpRpcHandler::new());
    let at = address(&server);
    let factory = context.create_client_factory();
    let client = soon(factory.create_unmanaged_client((at.host(), at.port()))).await.unwrap();
    client.send(envelope::hello(7).envelope()).unwrap();
    let touch =
        envelope::message(1, "store", "/coverage.Store/Touch", &Mark::default().encode_to_vec());
    let response = soon(client.send_rpc(touch.encode_to_vec())).await.unwrap();
    assert!(String::from_utf8_lossy(&response).contains("without a reply"), "{response:?}");
}
