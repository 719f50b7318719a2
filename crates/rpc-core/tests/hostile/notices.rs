//! A server sends invalid notices to its client; where they apply to servers, a client sends them.

use crate::common::envelope::{Cancel, Credit, Notice, RoutedMessage, Undelivered};
use crate::common::{hi, next};
use crate::fixture::{Fixture, promptly, until};
use crate::raw_peer::{Failure, RawPeer, say_hi};
use crate::raw_server::{Arrival, Victim, greeting};
use prost::Message;
use rpc_core::RpcCallContext;
use tokio::sync::mpsc;

use crate::common::{Greeting, Keep, UndeliveredWatch};

fn credit(route: u32, messages: u64, bytes: u64, keeps_open: bool) -> Notice {
    Notice { credit: Some(Credit { route, messages, bytes, keeps_open }), ..Notice::default() }
}

fn route_closed(route: u32) -> Notice {
    Notice { route_closed: Some(Credit { route, ..Credit::default() }), ..Notice::default() }
}

fn cancel(request_id: i64) -> Notice {
    Notice { cancel: Some(Cancel { request_id }), ..Notice::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_credit_for_unknown_routes_is_ignored() {
    let mut victim = Victim::start().await;
    victim.assert_works().await;
    for route in [0, 3, 100, 65_535, 65_536, u32::MAX] {
        for keeps_open in [false, true] {
            victim.notify(&credit(route, 1000, 1000, keeps_open));
        }
    }
    victim.assert_works().await;
    victim.finish().await;
}

/// Credit saturates instead of overflowing, and the client continues to send.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_credit_of_maximum_does_not_overflow() {
    let mut victim = Victim::start().await;
    let route = victim.assert_works().await;
    for _ in 0..5 {
        victim.notify(&credit(route, u64::MAX, u64::MAX, false));
        victim.notify(&credit(route, i64::MAX as u64, i64::MAX as u64, false));
        victim.notify(&credit(route, 0, u64::MAX, false));
        victim.notify(&credit(route, u64::MAX, 0, false));
        victim.assert_works().await;
    }
    let asks: Vec<_> = (0..1000).map(|_| victim.target.ask(hi("many"))).collect();
    for ask in asks {
        victim.next_ask().await.1.reply(greeting("fine"));
        assert_eq!(promptly("a reply", ask).await.unwrap().text, "fine");
    }
    victim.finish().await;
}

/// The client has not sent CloseRoute for the route that it uses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_keeps_open_without_close_route_is_credit_or_ignored() {
    let mut victim = Victim::start().await;
    let route = victim.assert_works().await;
    for _ in 0..10 {
        victim.notify(&credit(route, 5, 5000, true));
        assert_eq!(victim.assert_works().await, route);
    }
    victim.notify(&credit(route, u64::MAX, u64::MAX, true));
    assert_eq!(victim.assert_works().await, route);
    victim.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_route_closed_for_other_routes_is_ignored() {
    let mut victim = Victim::start().await;
    let route = victim.assert_works().await;
    for unknown in [0, route + 10, 65_535, 65_536, u32::MAX] {
        victim.notify(&route_closed(unknown));
    }
    assert_eq!(victim.assert_works().await, route);
    victim.finish().await;
}

/// The client has not sent CloseRoute: later messages reopen the route, and a pending ask still
/// gets its response.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_route_closed_for_route_in_use_lets_it_be_opened_again() {
    let mut victim = Victim::start().await;
    let mut route = victim.assert_works().await;
    for n in 0..20 {
        let pending = victim.target.ask(hi("pending"));
        let (_, callback, _) = victim.next_ask().await;
        // The ask is queued without credit, or sent at once with credit.
        let queued = victim.target.ask(hi("queued"));
        victim.notify(&route_closed(route));
        victim.notify(&route_closed(route));
        victim.notify(&credit(route, 10, 10_000, false));
        callback.reply(greeting("first"));
        assert_eq!(promptly("the reply", pending).await.unwrap().text, "first", "{n}");
        let (message, callback, _) = victim.next_ask().await;
        callback.reply(greeting("second"));
        assert_eq!(promptly("the queued reply", queued).await.unwrap().text, "second", "{n}");
        route = message.route;
        victim.notify(&credit(route, 10, 10_000, false));
        route = victim.assert_works().await;
        victim.notify(&credit(route, 10, 10_000, false));
    }
    victim.notify(&route_closed(route));
    // A response that follows the notice shows that the client has read it.
    victim.assert_works().await;
    victim.notify(&credit(route, 10, 10_000, false));
    let (reply, message) = victim.ask_and_respond(greeting("again")).await;
    assert_eq!(reply.unwrap().text, "again");
    println!("{message:?}");
    victim.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_undelivered_with_long_text_is_reported_or_ignored() {
    let mut victim = Victim::start().await;
    let (sender, mut errors) = mpsc::unbounded_channel();
    victim.env.setup_endpoint("watch", UndeliveredWatch(sender)).unwrap();
    let route = victim.assert_works().await;
    let message = "line\n\r\n\u{1b}[2J".repeat(100_000);
    let failure =
        Failure { kind: 7, message, causes: vec!["\n".repeat(1000); 10], retryable: true };
    for route in [0, route + 10, 65_536, u32::MAX, route] {
        for failure in [failure.encode_to_vec(), Vec::new(), b"\xff".to_vec()] {
            let undelivered = Some(Undelivered { route, path: "\n/x/y".to_owned(), failure });
            let _ = victim.peer.send(Notice { undelivered, ..Notice::default() }.envelope());
        }
        victim.assert_works().await;
    }
    // At least the last notice is reported, as its route is open.
    let (error, _) = next(&mut errors).await;
    println!("{} bytes", error.to_string().len());
    let undelivered = victim.env.snapshot().undelivered;
    assert!((1..=10).contains(&undelivered), "{undelivered}");
    victim.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_cancels_of_unknown_requests_are_ignored() {
    let mut victim = Victim::start().await;
    let fixture = Fixture::start().await;
    let peer = RawPeer::greeted(&fixture.server).await;
    // A peer that cancels ids before it uses them cancels only its own requests.
    for request_id in [0, 1, -1, i64::MIN + 77_777, i64::MAX, (1 << 62) + 77_777] {
        victim.notify(&cancel(request_id));
        peer.notify(&cancel(request_id));
    }
    for request_id in 0..10_000 {
        peer.notify(&cancel(request_id));
    }
    victim.assert_works().await;
    victim.finish().await;
    fixture.assert_connected(&peer, 1).await;
    fixture.finish(peer).await;
}

/// A server asks an endpoint of its client; request ids are random, so guessed ids do not match.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_cancels_with_guessed_ids_cancel_no_ask() {
    let mut victim = Victim::start().await;
    let (sender, mut kept): (_, mpsc::UnboundedReceiver<RpcCallContext<Greeting>>) =
        mpsc::unbounded_channel();
    victim.env.setup_endpoint("keep", Keep(sender)).unwrap();
    let mut pending = victim.peer.send_rpc(say_hi(1, "keep", "raw").encode_to_vec());
    let context = next(&mut kept).await;
    assert!(!context.is_cancelled());
    for request_id in 0..10_000 {
        victim.notify(&cancel(request_id));
    }
    assert!(futures::poll!(&mut pending).is_pending());
    victim.assert_works().await;
    assert!(!context.is_cancelled(), "no notice names this request");
    context.reply(Greeting { text: "kept".to_owned() }).unwrap();
    assert!(promptly("the response", pending).await.is_ok());
    victim.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_notices_of_unknown_kind_are_ignored() {
    let mut victim = Victim::start().await;
    let fixture = Fixture::start().await;
    let peer = RawPeer::greeted(&fixture.server).await;
    let route = victim.assert_works().await;
    // The reserved kind 7, the unknown kind 1000, an empty notice, kinds without content, a wrong
    // wire type, and bytes that are not protobuf.
    let bodies = [
        &b""[..],
        b"\x3a\x00",
        b"\xc2\x3e\x03abc",
        b"\x12\x00",
        b"\x1a\x00",
        b"\x22\x00",
        b"\x2a\x00",
    ];
    let garbage =
        [&b"\x32\x00"[..], b"\x0a\x00", b"\x08\x01", b"\x12\x02\x08", b"\xff\xff", b"\x12\x7f\x00"];
    for body in bodies.into_iter().chain(garbage) {
        let envelope =
            RoutedMessage { body: body.to_vec(), ..RoutedMessage::default() }.encode_to_vec();
        victim.peer.send(envelope.clone()).unwrap();
        peer.send_bytes(envelope);
    }
    for envelope in [&b""[..], b"\xff", b"\x0d", b"\x7a\x01", b"\x0d\x00\x00\x00\x00"] {
        victim.peer.send(envelope.to_vec()).unwrap();
        peer.send_bytes(envelope.to_vec());
    }
    // Two kinds in one notice.
    let both = Notice { cancel: cancel(1).cancel, ..credit(route, 1, 1, false) };
    victim.notify(&both);
    peer.notify(&both);
    victim.assert_works().await;
    victim.finish().await;
    fixture.assert_connected(&peer, 1).await;
    fixture.finish(peer).await;
}

/// A server sends to endpoints that do not exist and on routes that it never opened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_messages_to_client_without_endpoints_are_rejected() {
    let mut victim = Victim::start().await;
    victim.assert_works().await;
    for route in 1..100 {
        victim.peer.send(say_hi(route, "missing", "").encode_to_vec()).unwrap();
        victim.peer.send(say_hi(route + 1000, "", "").encode_to_vec()).unwrap();
    }
    let mut reported = 0;
    while reported < 198 {
        if let Arrival::Notice(Notice { undelivered: Some(_), .. }, _) = victim.next().await {
            reported += 1;
        }
    }
    assert!(victim.env.snapshot().route_bytes < 100 * 300);
    victim.peer.close();
    until("the routes are freed", || victim.env.snapshot().route_bytes == 0).await;
    victim.assert_works().await;
    victim.finish().await;
}
