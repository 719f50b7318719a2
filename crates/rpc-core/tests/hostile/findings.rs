//! Regression tests for defects that the other tests of this folder found in the first version of
//! the routes.

use std::time::Duration;

use prost::Message;
use rpc_core::{EndpointRef, RpcConf, RpcEndpointRef, RpcEnv};

use crate::common::envelope::Notice;
use crate::common::{Hello, HelloMessage, address, client, hi, setting};
use crate::fixture::{Fixture, promptly};
use crate::raw_peer::{Outcome, RawPeer, say_hi};
use crate::raw_server::{INCARNATION, Victim, error_of, hello, value};
use crate::versions::{WireRef, bound_ref};

/// A request sent before an incompatible Hello arrives fails at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_server_of_other_version_fails_sent_ask_fast() {
    let mut victim = Victim::with(None, RpcConf::new()).await;
    let ask = victim.target.ask(hi("sent"));
    let (_, _callback, _) = victim.next_ask().await;
    victim.notify(&Notice { hello: Some(hello(2, 5)), ..Notice::default() });
    assert!(error_of(ask).await.to_string().contains("version"));
}

/// Asks of a bound ref wait for the Hello; after their timeout they do not block other messages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_expired_bound_asks_do_not_block_looked_up_ref() {
    let mut victim = Victim::with(None, setting("spark.rpc.askTimeout", "1s")).await;
    victim.assert_works().await;
    let bound = bound_ref(&victim, INCARNATION);
    assert!(
        error_of(bound.ask_with_timeout(hi("bound"), Duration::from_millis(50))).await.is_timeout()
    );
    victim.assert_works().await;
}

/// The only queued message is an ask that has timed out, so the shutdown has nothing to send.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_expired_bound_asks_do_not_delay_shutdown() {
    let mut victim = Victim::with(None, RpcConf::new()).await;
    victim.assert_works().await;
    let bound = bound_ref(&victim, INCARNATION);
    assert!(
        error_of(bound.ask_with_timeout(hi("bound"), Duration::from_millis(50))).await.is_timeout()
    );
    assert_eq!(promptly("the shutdown", victim.env.shutdown()).await.unsent, 0);
}

/// Every error of an ask of a remote endpoint names the endpoint or its peer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_reply_that_cannot_be_decoded_names_peer() {
    let mut victim = Victim::start().await;
    let error = victim.ask_and_respond(value(b"\x0a\x7f")).await.0.unwrap_err();
    let text = format!("{error} {:?}", error.peer());
    assert!(text.contains(&victim.at), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_stale_incarnation_error_names_peer() {
    let mut victim = Victim::start().await;
    victim.assert_works().await;
    let error = error_of(bound_ref(&victim, INCARNATION + 1).ask(hi("neo"))).await;
    let text = format!("{error} {:?}", error.peer());
    assert!(text.contains(&victim.at), "{text}");
}

/// A sender that waits for RouteClosed of a rejected route opens the next number meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_rejected_route_does_not_fail_next_number() {
    let fixture = Fixture::start().await;
    let peer = RawPeer::greeted(&fixture.server).await;
    let long = "x".repeat((1 << 20) + 1);
    let rejected = [peer.ask(&say_hi(1, &long, "")), peer.ask(&say_hi(2, &long, ""))];
    let next = peer.ask(&say_hi(3, "hello", "raw"));
    for ask in rejected {
        assert!(matches!(ask.await, Outcome::Failure(_)));
    }
    assert_eq!(next.await.value(), b"\x0a\x07hi, raw");
    fixture.finish(peer).await;
}

/// Between two environments, refs whose names are too long do not affect the other refs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_names_of_client_do_not_fail_its_other_refs() {
    let (server, client) = (crate::common::server().await, client().await);
    server.setup_endpoint("hello", Hello).unwrap();
    let at = address(&server).to_string();
    let resolve = |name: &str| -> RpcEndpointRef<HelloMessage> {
        let (address, name) = (at.clone(), name.to_owned());
        let wire =
            WireRef { address, name, services: vec!["hello.Hello".to_owned()], incarnation: 0 };
        client.resolve(&EndpointRef::decode(&wire.encode_to_vec()[..]).unwrap()).unwrap()
    };
    // The names of 17 refs fit into 1 MiB.
    let long: Vec<_> = (0..20).map(|n| resolve(&format!("{n:060000}"))).collect();
    let good = resolve("hello");
    let asks: Vec<_> = long.iter().map(|endpoint| endpoint.ask(hi("neo"))).collect();
    let reply = good.ask(hi("neo"));
    for ask in asks {
        error_of(ask).await;
    }
    assert_eq!(promptly("the reply", reply).await.unwrap().text, "hi, neo");
}

/// Routes without messages do not use up the capacity for messages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_routes_leave_capacity_for_messages_of_others() {
    let conf = setting("spark.rpc.inbox.maxTotalBytes", "64k");
    let server = RpcEnv::builder("server").bind("127.0.0.1:0").conf(conf).start().await.unwrap();
    server.setup_endpoint("hello", Hello).unwrap();
    let client = client().await;
    let found = client.setup_endpoint_ref::<HelloMessage>(address(&server), "hello");
    let hello = promptly("the lookup", found).await.unwrap();
    let peer = RawPeer::greeted(&server).await;
    for route in 1..200 {
        peer.ask(&say_hi(route, &format!("{route:0300}"), "")).await.error();
    }
    assert_eq!(promptly("the reply", hello.ask(hi("neo"))).await.unwrap().text, "hi, neo");
    assert_eq!(promptly("the reply", greeted(&server)).await, "hi, raw");
}

async fn greeted(server: &RpcEnv) -> &'static str {
    RawPeer::greeted(server).await.ask_hello(1, "hello").await.map(|()| "hi, raw").unwrap()
}
