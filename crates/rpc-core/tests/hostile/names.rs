//! A client opens routes with endpoint names at and over the limit of 1 MiB, many long names, and
//! names with unusual characters.

use rpc_core::RpcEnv;

use crate::common::{Hello, setting};
use crate::fixture::{Fixture, promptly, until};
use crate::raw_peer::{ENDPOINT_NOT_FOUND, LIMIT, RawPeer, failure_of, say_hi};

const MIB: usize = 1 << 20;

fn assert_names_limit(text: &str) {
    let limits = ["1 MiB", "1048576", "spark.rpc.inbox.maxTotalBytes"];
    assert!(limits.iter().any(|limit| text.contains(limit)), "{}", &text[..text.len().min(500)]);
    assert!(text.len() < 2000, "{} bytes of error", text.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_name_of_one_mib_opens_route() {
    let fixture = Fixture::start().await;
    let mut peer = RawPeer::greeted(&fixture.server).await;
    let before = fixture.server.snapshot().route_bytes;
    let failure = peer.ask(&say_hi(1, &"x".repeat(MIB), "")).await.failure();
    assert_eq!(failure.kind, ENDPOINT_NOT_FOUND);
    println!("{} bytes of error", failure.message.len());
    assert!(failure.message.len() < 2000, "{} bytes of error", failure.message.len());
    let held = fixture.server.snapshot().route_bytes - before;
    assert!((MIB as u64..MIB as u64 + 1000).contains(&held), "{held} bytes");
    // No capacity remains for another name.
    let failure = peer.ask(&say_hi(2, "hello", "")).await.failure();
    assert_eq!(failure.kind, LIMIT, "{failure:?}");
    assert_names_limit(&failure.message);
    assert_eq!(peer.next_route_closed().await, 2);
    peer.close_idle_route(1).await;
    assert_eq!(fixture.server.snapshot().route_bytes, before);
    fixture.assert_connected(&peer, 1).await;
    fixture.finish(peer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_name_over_one_mib_is_rejected() {
    let fixture = Fixture::start().await;
    let mut peer = RawPeer::greeted(&fixture.server).await;
    let before = fixture.server.snapshot().route_bytes;
    for length in [MIB + 1, 4 * MIB] {
        let failure = peer.ask(&say_hi(1, &"x".repeat(length), "")).await.failure();
        assert_eq!(failure.kind, LIMIT);
        assert_names_limit(&failure.message);
        assert_eq!(peer.next_route_closed().await, 1);
        peer.send(&say_hi(1, &"y".repeat(length), ""));
        // The two notices arrive in any order.
        let (mut closed, mut undelivered) = (None, None);
        while closed.is_none() || undelivered.is_none() {
            let notice = peer.next_notice().await;
            closed = closed.or(notice.route_closed);
            undelivered = undelivered.or(notice.undelivered);
        }
        let failure = failure_of(&undelivered.unwrap());
        assert_eq!((failure.kind, closed.unwrap().route), (LIMIT, 1));
        assert_names_limit(&failure.message);
    }
    assert_eq!(fixture.server.snapshot().route_bytes, before);
    fixture.assert_connected(&peer, 1).await;
    fixture.finish(peer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_long_names_are_limited_in_sum() {
    let fixture = Fixture::start().await;
    let peer = RawPeer::greeted(&fixture.server).await;
    peer.ask_hello(1, "hello").await.unwrap();
    let before = fixture.server.snapshot().route_bytes;
    let (mut opened, mut rejected) = (0, 0);
    for n in 0..100 {
        // The lowest free number.
        let name = format!("{n:060000}");
        let failure = peer.ask(&say_hi(opened as u32 + 2, &name, "")).await.failure();
        if failure.kind == ENDPOINT_NOT_FOUND {
            opened += 1;
        } else {
            assert_eq!(failure.kind, LIMIT);
            assert_names_limit(&failure.message);
            rejected += 1;
        }
    }
    assert_eq!((opened, rejected), (MIB / 60_000, 100 - MIB / 60_000));
    let held = fixture.server.snapshot().route_bytes - before;
    assert!(held <= (MIB + 100 * 256) as u64, "{held} bytes");
    peer.ask_hello(1, "").await.unwrap();
    fixture.finish(peer).await;
}

/// Routes count against the byte budget of the inboxes, on all connections together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_routes_are_limited_by_small_byte_budget() {
    const BUDGET: u64 = 20 << 10;
    // A route takes 256 bytes and 500 for its name.
    const ROUTE: u64 = 756;
    let server = RpcEnv::builder("server").bind("127.0.0.1:0");
    let server =
        server.conf(setting("spark.rpc.inbox.maxTotalBytes", "20k")).start().await.unwrap();
    server.setup_endpoint("hello", Hello).unwrap();
    let mut peers = Vec::new();
    let (mut opened, mut rejected) = (0, 0);
    for _ in 0..4 {
        let (mut peer, mut route) = (RawPeer::greeted(&server).await, 1);
        for n in 0..29 {
            let failure = peer.ask(&say_hi(route, &format!("{n:0500}"), "")).await.failure();
            if failure.kind == ENDPOINT_NOT_FOUND {
                route += 1;
                opened += 1;
            } else {
                assert_eq!(failure.kind, LIMIT, "{failure:?}");
                assert!(failure.message.contains("spark.rpc.inbox.maxTotalBytes"), "{failure:?}");
                // The message may have been rejected alone, for its own bytes.
                peer.settle().await;
                let closed =
                    peer.arrived_notices().iter().any(|notice| notice.route_closed.is_some());
                (route, opened) = if closed { (route, opened) } else { (route + 1, opened + 1) };
                rejected += 1;
            }
        }
        // The last route may exceed the budget.
        assert!(server.snapshot().route_bytes < BUDGET / 4 + ROUTE);
        peers.push(peer);
    }
    // Routes may use a quarter of the budget; the rest is for messages.
    assert_eq!(opened, BUDGET / 4 / ROUTE + 1);
    assert!(rejected > 80, "{rejected} messages were rejected");
    // The capacity of a closed connection becomes available to others.
    let last = peers.pop().unwrap();
    for peer in peers {
        peer.close();
    }
    let open = async {
        while last.ask_hello(1, "hello").await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    promptly("capacity for a route", open).await;
    last.close();
    until("all routes are freed", || server.snapshot().route_bytes == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_names_with_odd_characters_are_not_found() {
    let fixture = Fixture::start().await;
    let peer = RawPeer::greeted(&fixture.server).await;
    for (route, name) in
        (1..).zip(["\u{0}", "hello\u{0}", " hello", "hello\n", "/hello", "HELLO", "é", "..", "@"])
    {
        let failure = peer.ask(&say_hi(route, name, "")).await.failure();
        assert_eq!(failure.kind, ENDPOINT_NOT_FOUND, "{name:?}: {failure:?}");
    }
    fixture.assert_connected(&peer, 10).await;
    fixture.finish(peer).await;
}
