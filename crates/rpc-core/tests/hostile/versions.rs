//! A server sends a Hello with other versions or invalid fields, sends it late, or never.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use prost::Message;
use rpc_core::{EndpointRef, ErrorKind, RpcConf, RpcEndpointRef, RpcError};

use crate::common::envelope::Notice;
use crate::common::{HelloMessage, hi, setting};
use crate::fixture::until;
use crate::raw_server::{INCARNATION, Victim, error_of, greeting, hello};

/// Asserts that the error names both ranges of versions.
#[track_caller]
fn assert_names_versions(error: &RpcError) {
    let text = error.to_string();
    assert!(["version", "1", "2", "5"].iter().all(|part| text.contains(part)), "{text}");
}

fn send_hello(victim: &Victim, min: u32, max: u32) {
    victim.notify(&Notice { hello: Some(hello(min, max)), ..Notice::default() });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_server_of_other_version_fails_everything_fast() {
    let mut victim = Victim::with(None, RpcConf::new()).await;
    victim.grants.store(false, Ordering::Relaxed);
    let asks: Vec<_> = (0..10).map(|_| tokio::spawn(victim.target.ask(hi("pending")))).collect();
    for _ in 0..10 {
        victim.target.send(hi("queued")).unwrap();
    }
    // The first message has been sent; the others are queued for credit.
    let (_, callback, _) = victim.next_ask().await;
    let started = Instant::now();
    *victim.greeting.lock().unwrap() = Some(hello(2, 5));
    send_hello(&victim, 2, 5);
    // The first ask was sent, so the server can still respond to it.
    for ask in asks.into_iter().skip(1) {
        let error = error_of(async { ask.await.unwrap() }).await;
        assert_names_versions(&error);
        assert_eq!(error.peer(), Some(&*victim.at), "{error:?}");
    }
    // Later asks fail in the same way, and none is delivered.
    for _ in 0..3 {
        let error = error_of(victim.target.ask(hi("later"))).await;
        assert_names_versions(&error);
    }
    callback.fail("this server speaks another version");
    until("nothing is pending", || victim.env.snapshot().pending_asks == 0).await;
    until("nothing is queued", || {
        victim.env.snapshot().peers.iter().all(|outbox| outbox.queued == 0)
    })
    .await;
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    victim.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_version_in_hello_fails_lookup_with_both_versions() {
    let victim = Victim::start().await;
    *victim.greeting.lock().unwrap() = Some(hello(2, 5));
    victim.peer.close();
    // Another environment connects to this server for the first time.
    let env = crate::common::client().await;
    let started = Instant::now();
    let mut failed = 0;
    for _ in 0..5 {
        // The response to the lookup may be read before the Hello.
        let found = env.setup_endpoint_ref::<HelloMessage>(&victim.at, "target");
        match crate::fixture::promptly("the lookup", found).await {
            Ok(target) => assert_names_versions(&error_of(target.ask(hi("neo"))).await),
            Err(error) => {
                failed += 1;
                assert_names_versions(&error);
            }
        }
    }
    println!("{failed} of 5 lookups failed");
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    env.shutdown().await;
}

/// The Hello has values that no environment sends: version 0, a reversed range, incarnation 0.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_hello_of_server_with_garbage_fails_clearly() {
    for n in 0..5 {
        let mut victim = Victim::with(None, RpcConf::new()).await;
        let pending = victim.target.ask(hi("pending"));
        let (_, callback, _) = victim.next_ask().await;
        let mut garbage = hello(1, 1);
        match n {
            0 => (garbage.min_version, garbage.max_version) = (0, 0),
            1 => (garbage.min_version, garbage.max_version) = (5, 2),
            2 => (garbage.min_version, garbage.max_version) = (u32::MAX, u32::MAX),
            3 => garbage.incarnation = 0,
            _ => garbage.address = "\u{0}garbage".to_owned(),
        }
        victim.notify(&Notice { hello: Some(garbage), ..Notice::default() });
        // The request was sent before the Hello, so its response counts unless the connection
        // closes.
        callback.reply(greeting("pending"));
        match crate::fixture::promptly("the end of the ask", pending).await {
            Ok(reply) => assert_eq!(reply.text, "pending"),
            Err(error) => assert!(error.to_string().contains("Hello") || n < 3, "{n}: {error}"),
        }
        if n < 3 {
            let text = error_of(victim.target.ask(hi("later"))).await.to_string();
            assert!(text.contains("version"), "{n}: {text}");
        } else {
            // The environment ignores the field, or the error names it.
            let later = victim.target.ask(hi("later"));
            match tokio::time::timeout(Duration::from_millis(300), victim.next_ask()).await {
                Ok((_, callback, _)) => {
                    callback.reply(greeting("later"));
                    assert_eq!(later.await.unwrap().text, "later");
                }
                Err(_) => {
                    let text = error_of(later).await.to_string();
                    assert!(
                        text.contains("incarnation") || text.contains("address"),
                        "{n}: {text}"
                    );
                }
            }
        }
        victim.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_second_hello_of_server_changes_nothing() {
    let mut victim = Victim::start().await;
    victim.assert_works().await;
    for _ in 0..100 {
        send_hello(&victim, 1, 1);
        let mut other = hello(1, 1);
        other.incarnation = 12345;
        victim.notify(&Notice { hello: Some(other), ..Notice::default() });
        send_hello(&victim, 2, 5);
    }
    victim.assert_works().await;
    let bound = bound_ref(&victim, INCARNATION);
    let ask = bound.ask(hi("bound"));
    victim.next_ask().await.1.reply(greeting("bound"));
    assert_eq!(crate::fixture::promptly("a reply", ask).await.unwrap().text, "bound");
    victim.finish().await;
}

/// `rpc_core.EndpointRef`.
#[derive(Clone, PartialEq, Message)]
pub struct WireRef {
    #[prost(string, tag = "1")]
    pub address: String,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(string, repeated, tag = "3")]
    pub services: Vec<String>,
    #[prost(fixed64, tag = "4")]
    pub incarnation: u64,
}

/// Returns a ref as a message contains it, bound to an incarnation of the raw server.
pub fn bound_ref(victim: &Victim, incarnation: u64) -> RpcEndpointRef<HelloMessage> {
    let wire = WireRef {
        address: victim.at.clone(),
        name: "target".to_owned(),
        services: vec!["hello.Hello".to_owned()],
        incarnation,
    };
    victim.env.resolve(&EndpointRef::decode(&wire.encode_to_vec()[..]).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_server_without_hello_serves_unbound_refs_only() {
    let mut victim = Victim::with(None, setting("spark.rpc.askTimeout", "500ms")).await;
    victim.assert_works().await;
    let bound = bound_ref(&victim, INCARNATION);
    let started = Instant::now();
    let asks: Vec<_> = (0..5).map(|_| tokio::spawn(bound.ask(hi("bound")))).collect();
    for ask in asks {
        let error = error_of(async { ask.await.unwrap() }).await;
        println!("{error}");
        assert!(error.is_timeout() || error.to_string().contains("Hello"), "{error:?}");
    }
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    victim.assert_honest_works().await;
    // Bound refs work when the Hello has arrived.
    let late = tokio::spawn(bound.ask_with_timeout(hi("late"), Duration::from_secs(4)));
    send_hello(&victim, 1, 1);
    victim.next_ask().await.1.reply(greeting("late"));
    assert_eq!(late.await.unwrap().unwrap().text, "late");
    victim.assert_works().await;
    victim.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_server_of_other_incarnation_gets_no_bound_message() {
    let mut victim = Victim::start().await;
    victim.assert_works().await;
    let bound = bound_ref(&victim, INCARNATION + 1);
    for _ in 0..10 {
        let error = error_of(bound.ask(hi("secret"))).await;
        assert_eq!(error.kind(), ErrorKind::Stopped, "{error:?}");
        assert!(error.to_string().contains("target"), "{error:?}");
    }
    let (reply, message) = victim.ask_and_respond(greeting("fine")).await;
    assert_eq!(reply.unwrap().text, "fine");
    assert!(
        !message.body.ends_with(b"secret"),
        "the bound ref sends nothing to another incarnation"
    );
    victim.finish().await;
}

/// The Hello allows no further routes, so no message can be sent over a new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_max_routes_of_zero_fails_asks_on_new_routes_clearly() {
    for max_routes in [0, 1] {
        let mut victim = Victim::with(None, setting("spark.rpc.askTimeout", "500ms")).await;
        let route = victim.assert_works().await;
        let found = victim.env.setup_endpoint_ref::<HelloMessage>(&victim.at, "other");
        let other = crate::fixture::promptly("the lookup", found).await.unwrap();
        let mut few = hello(1, 1);
        few.max_routes = max_routes;
        victim.notify(&Notice { hello: Some(few), ..Notice::default() });
        // A reply that follows the Hello shows that it has been read.
        assert_eq!(victim.assert_works().await, route);
        let error = error_of(other.ask(hi("neo"))).await;
        let text = error.to_string();
        assert!(error.is_timeout() || text.contains("spark.rpc.maxRoutesPerConnection"), "{text}");
        assert_eq!(victim.assert_works().await, route);
        victim.assert_honest_works().await;
    }
}
