//! A client sends its Hello late, never, twice, truncated, with another version, or with the
//! incarnation of another peer.

use std::time::Duration;

use bytes::Bytes;
use network_common::{
    RpcHandler, RpcResponseCallback, TransportClient, TransportConf, TransportContext,
};
use prost::Message;
use rpc_core::{EndpointContext, RpcAddress, RpcEnv, RpcError, ThreadSafeRpcEndpoint};
use tokio::sync::mpsc;

use crate::common::HelloMessage;
use crate::common::envelope::{self, Hello, Notice, RoutedMessage};
use crate::fixture::{Fixture, promptly};
use crate::raw_peer::{Outcome, RawPeer, say_hi};

fn hello(change: impl FnOnce(&mut Hello)) -> Notice {
    let mut hello = Hello {
        min_version: 1,
        max_version: 1,
        incarnation: 77,
        max_routes: 65_536,
        ..Hello::default()
    };
    change(&mut hello);
    Notice { hello: Some(hello), ..Notice::default() }
}

/// The environment serves a peer without Hello, or the error says that the Hello is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_messages_without_hello_are_served_or_fail_clearly() {
    let fixture = Fixture::start().await;
    let mut peer = RawPeer::connect(&fixture.server).await;
    for _ in 0..50 {
        if let Err(outcome) = peer.ask_hello(1, "hello").await {
            let text = outcome.error();
            assert!(text.contains("Hello"), "{text}");
        }
        peer.send(&say_hi(2, "missing", ""));
        peer.close_route(2);
        peer.close_route(1);
    }
    // A late Hello is accepted.
    peer.notify(&envelope::hello(76));
    assert_ne!(peer.next_hello().await.incarnation, 0);
    fixture.assert_connected(&peer, 1).await;
    fixture.finish(peer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_connection_without_hello_leaves_nothing_behind() {
    let fixture = Fixture::start().await;
    let peer = RawPeer::connect(&fixture.server).await;
    let pending = peer.ask(&say_hi(1, "stuck", ""));
    peer.send(&say_hi(2, "hello", ""));
    peer.close_route(3);
    peer.send_bytes(b"\xff".to_vec());
    let settled = peer.ask_bytes(b"\xff\xff".to_vec()).await;
    assert!(settled.error().contains("envelope"));
    fixture.finish(peer).await;
    assert!(matches!(pending.await, Outcome::Transport(_) | Outcome::Failure(_)));
}

/// A second Hello does not change the identity of the peer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_second_hello_is_ignored() {
    let fixture = Fixture::start().await;
    let mut peer = RawPeer::greeted(&fixture.server).await;
    peer.ask_hello(1, "hello").await.unwrap();
    for n in 0..1000 {
        peer.notify(&envelope::hello(n));
        peer.notify(&hello(|hello| (hello.min_version, hello.max_version) = (2, 5)));
    }
    peer.settle().await;
    let replies =
        peer.arrived_notices().into_iter().filter(|notice| notice.hello.is_some()).count();
    assert_eq!(replies, 0, "Hello is sent once in each direction");
    peer.ask_hello(1, "").await.unwrap();
    fixture.finish(peer).await;
}

/// The error names both versions, as a response or as an RpcFailure.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_hello_of_other_versions_fails_clearly() {
    let fixture = Fixture::start().await;
    for (min, max) in [(2, 5), (0, 0), (5, 2), (u32::MAX, u32::MAX)] {
        let peer = RawPeer::connect(&fixture.server).await;
        peer.notify(&hello(|hello| (hello.min_version, hello.max_version) = (min, max)));
        let text = peer.ask(&say_hi(1, "stuck", "")).await.error();
        println!("{min}..{max}: {text}");
        // A closed connection has no error text.
        if peer.is_connected() {
            let named = [min, max, 1].iter().all(|version| text.contains(&version.to_string()));
            assert!(named && text.contains("version"), "{min}..{max}: {text}");
            let again = peer.ask(&say_hi(2, "stuck", "")).await.error();
            assert!(again.contains("version"), "{again}");
        }
        assert_eq!(fixture.endpoint("stuck").held, 0);
        peer.close();
    }
    // A range that contains version 1 is compatible.
    let mut peer = RawPeer::connect(&fixture.server).await;
    peer.notify(&hello(|hello| (hello.min_version, hello.max_version) = (0, u32::MAX)));
    let reply = peer.next_hello().await;
    assert!(reply.min_version <= 1 && reply.max_version >= 1, "{reply:?}");
    fixture.assert_connected(&peer, 1).await;
    fixture.finish(peer).await;
}

/// The peer is served, or gets an error that names the field.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_hello_with_garbage_is_served_or_fails_clearly() {
    let fixture = Fixture::start().await;
    let long = "x".repeat(1 << 20);
    let addresses =
        ["garbage", "", ":", "host:99999", "[::1", "a b:1", "host:1\nhost:2", "\u{0}:1", &long];
    let mut greetings = vec![(hello(|hello| hello.incarnation = 0), "incarnation")];
    for address in addresses {
        greetings.push((hello(|hello| address.clone_into(&mut hello.address)), "address"));
    }
    greetings.push((hello(|hello| hello.max_routes = 0), "routes"));
    greetings.push((
        hello(|hello| (hello.max_routes, hello.features) = (u32::MAX, u64::MAX)),
        "features",
    ));
    for (greeting, field) in greetings {
        let peer = RawPeer::connect(&fixture.server).await;
        peer.notify(&greeting);
        if let Err(outcome) = peer.ask_hello(1, "hello").await {
            let text = outcome.error();
            println!("{field}: {}", &text[..text.len().min(300)]);
            assert!(text.contains(field) || !peer.is_connected(), "{field}: {text}");
            assert!(text.len() < 2000, "{} bytes of error", text.len());
        }
        fixture.assert_others_served().await;
        peer.close();
    }
    fixture.assert_nothing_remains().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_truncated_hello_is_ignored_or_fails_clearly() {
    let fixture = Fixture::start().await;
    let Some(whole) = hello(|hello| hello.address = "host:1".to_owned()).hello else {
        unreachable!()
    };
    let whole = whole.encode_to_vec();
    for length in 0..whole.len() {
        let peer = RawPeer::connect(&fixture.server).await;
        // Field 1 of a Notice is the truncated Hello, with its actual length or the original one.
        for announced in [length, whole.len()] {
            let mut body = vec![0x0a, announced as u8];
            body.extend(&whole[..length]);
            peer.send(&RoutedMessage { body, ..RoutedMessage::default() });
        }
        if let Err(outcome) = peer.ask_hello(1, "hello").await {
            let text = outcome.error();
            assert!(!text.is_empty());
            assert!(
                ["version", "incarnation", "address", "Hello"]
                    .iter()
                    .any(|word| text.contains(word))
                    || !peer.is_connected(),
                "{length}: {text}"
            );
        }
        peer.close();
    }
    fixture.assert_nothing_remains().await;
}

/// Without authentication two connections can have one incarnation, as a process may connect twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_incarnation_of_live_peer_works_for_both() {
    let fixture = Fixture::start().await;
    let mut peers = Vec::new();
    for _ in 0..5 {
        let mut peer = RawPeer::connect(&fixture.server).await;
        peer.notify(&envelope::hello(4242));
        peer.next_hello().await;
        peer.ask_hello(1, "hello").await.unwrap();
        peers.push(peer);
    }
    for peer in &peers {
        peer.ask_hello(1, "").await.unwrap();
    }
    // Closing one connection does not affect the others.
    peers.pop().unwrap().close();
    fixture.assert_others_served().await;
    for peer in &peers {
        peer.ask_hello(1, "").await.unwrap();
    }
    for peer in peers {
        peer.close();
    }
    fixture.assert_nothing_remains().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_incarnation_of_server_itself_is_harmless() {
    let fixture = Fixture::start().await;
    let mut peer = RawPeer::greeted(&fixture.server).await;
    peer.close_route(1);
    let mut other = RawPeer::connect(&fixture.server).await;
    other.notify(&envelope::hello(5));
    let own = other.next_hello().await;
    let mut impersonator = RawPeer::connect(&fixture.server).await;
    impersonator.notify(&hello(|hello| {
        hello.incarnation = own.incarnation;
        hello.address = own.address.clone();
    }));
    match impersonator.ask_hello(1, "hello").await {
        Ok(()) => assert_eq!(impersonator.next_hello().await.incarnation, own.incarnation),
        Err(outcome) => {
            let text = outcome.error();
            assert!(text.contains("incarnation") || !impersonator.is_connected(), "{text}");
        }
    }
    // The server's own endpoints can still be reached.
    peer.ask_hello(1, "hello").await.unwrap();
    fixture.assert_others_served().await;
    impersonator.close();
    other.close();
    peer.ask_hello(1, "").await.unwrap();
    assert!(peer.arrived_notices().iter().all(|notice| notice.hello.is_none()));
    promptly("other clients are served", fixture.assert_others_served()).await;
    tokio::time::timeout(Duration::from_secs(5), fixture.finish(peer))
        .await
        .expect("nothing remains");
}

/// Sends a Hello with an address of another host as soon as a peer has connected.
struct EagerServer;

impl RpcHandler for EagerServer {
    fn receive(&self, client: &TransportClient, _: Bytes, callback: RpcResponseCallback) {
        callback.fail("this server has no endpoints");
        client.close();
    }

    fn on_connected(&self, client: &TransportClient) {
        let notice = hello(|hello| hello.address = "10.9.9.9:1".to_owned());
        client.send(notice.envelope()).unwrap();
    }
}

/// Sends the addresses of connected peers, and `None` at the end of a connection.
struct Watch(mpsc::UnboundedSender<Option<RpcAddress>>);

impl ThreadSafeRpcEndpoint for Watch {
    type Message = HelloMessage;

    async fn receive(
        &mut self,
        _: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        Ok(())
    }

    async fn on_connected(
        &mut self,
        peer: RpcAddress,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        let _ = self.0.send(Some(peer));
        Ok(())
    }

    async fn on_disconnected(
        &mut self,
        _: RpcAddress,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        let _ = self.0.send(None);
        Ok(())
    }
}

/// A server cannot pass for the peer at another address: only the side that opens a connection
/// announces an address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_early_hello_of_server_announces_no_address() {
    let context = TransportContext::new(TransportConf::new("rpc"), EagerServer);
    let server = context.create_server("127.0.0.1:0").await.unwrap();
    let at = RpcAddress::new("127.0.0.1", server.local_addr().port());
    let env = RpcEnv::builder("client").client_mode().start().await.unwrap();
    let (sender, mut events) = mpsc::unbounded_channel();
    env.setup_endpoint("watch", Watch(sender)).unwrap();
    for _ in 0..20 {
        promptly("the lookup", env.lookup::<HelloMessage>(&at, "x")).await.unwrap_err();
        while let Some(peer) = promptly("an event", events.recv()).await.unwrap() {
            assert_eq!(peer, at);
        }
    }
    promptly("the shutdown", env.shutdown()).await;
}
