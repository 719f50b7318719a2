//! A client closes routes: with unhandled messages, twice, or without having opened them, and
//! sends over closed routes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::fixture::{Fixture, INITIAL_WINDOW, STUCK_LIMIT, until};
use crate::raw_peer::{NOT_DELIVERED, Outcome, RawPeer, failure_of, say_hi};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_route_stays_open_while_its_messages_are_unhandled() {
    let fixture = Fixture::start().await;
    let mut peer = RawPeer::greeted(&fixture.server).await;
    peer.send(&say_hi(1, "stuck", ""));
    for _ in 0..3 {
        peer.close_route(1);
        let credit = peer.next_close_reply().await.unwrap_err();
        assert_eq!(credit.route, 1);
        assert!(credit.messages <= STUCK_LIMIT + INITIAL_WINDOW, "{credit:?}");
    }
    assert_eq!(fixture.endpoint("stuck").held, 1);
    fixture.permits.add_permits(1);
    until("the message is handled", || fixture.endpoint("stuck").held == 0).await;
    peer.close_idle_route(1).await;
    fixture.assert_connected(&peer, 1).await;
    fixture.finish(peer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_close_of_route_that_is_not_open_is_harmless() {
    let fixture = Fixture::start().await;
    let mut peer = RawPeer::greeted(&fixture.server).await;
    for route in [0, 1, 65_535, 65_536, u32::MAX] {
        peer.close_route(route);
        peer.close_route(route);
    }
    peer.settle().await;
    // The environment may reply to each CloseRoute, but it must not grant credit.
    assert!(peer.arrived_notices().iter().all(|notice| notice.credit.is_none()));
    peer.ask_hello(1, "hello").await.unwrap();
    peer.close_idle_route(1).await;
    peer.close_route(1);
    peer.close_route(1);
    peer.settle().await;
    assert!(peer.arrived_notices().iter().all(|notice| notice.credit.is_none()));
    fixture.assert_connected(&peer, 1).await;
    fixture.finish(peer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_messages_on_closed_route_are_rejected() {
    let fixture = Fixture::start().await;
    let mut peer = RawPeer::greeted(&fixture.server).await;
    peer.ask_hello(1, "hello").await.unwrap();
    peer.close_idle_route(1).await;
    for _ in 0..10 {
        let failure = peer.ask(&say_hi(1, "", "")).await.failure();
        assert!(failure.message.contains("no route 1"), "{failure:?}");
        assert_eq!(failure.kind, NOT_DELIVERED, "{failure:?}");
        peer.send(&say_hi(1, "", ""));
        let undelivered = peer.next_undelivered().await;
        assert!(failure_of(&undelivered).message.contains("no route 1"), "{undelivered:?}");
    }
    // The number can be used for any endpoint.
    fixture.permits.add_permits(1);
    assert_eq!(peer.ask(&say_hi(1, "stuck", "")).await.value(), b"\x0a\x07handled");
    fixture.finish(peer).await;
}

/// The peer reuses a route without waiting for RouteClosed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_reuse_before_route_closed_is_harmless() {
    let fixture = Fixture::start().await;
    let mut peer = RawPeer::greeted(&fixture.server).await;
    peer.ask_hello(1, "hello").await.unwrap();
    peer.close_route(1);
    let reopened = peer.ask(&say_hi(1, "hello", ""));
    peer.close_route(1);
    let not_opened = peer.ask(&say_hi(1, "", ""));
    // Thread scheduling decides whether a close arrives before the last request is handled.
    for ask in [reopened, not_opened] {
        match ask.await {
            Outcome::Value(_) => {}
            other => assert!(other.error().contains("route 1")),
        }
    }
    peer.settle().await;
    peer.arrived_notices();
    if peer.ask_hello(1, "").await.is_err() {
        peer.ask_hello(1, "hello").await.unwrap();
    }

    // A route that stays open cannot be opened for another endpoint.
    peer.send(&say_hi(2, "stuck", ""));
    peer.close_route(2);
    let other = peer.ask(&say_hi(2, "missing", ""));
    let text = other.await.error();
    assert!(text.contains("route 2"), "{text}");
    let stuck = fixture.endpoint("stuck");
    assert_eq!((stuck.held, stuck.handled), (1, 0));
    peer.ask_hello(1, "").await.unwrap();
    fixture.finish(peer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_number_is_reused_right_after_route_closed() {
    let fixture = Fixture::start().await;
    let mut peer = RawPeer::greeted(&fixture.server).await;
    let (before, names) =
        (fixture.server.snapshot().route_bytes, ["hello", "missing", "endpoint-verifier"]);
    for n in 0..300 {
        let name = names[n % names.len()];
        // The number leads to another endpoint each time, or to one that does not exist.
        let outcome = peer.ask(&say_hi(1, name, "raw")).await;
        match name {
            "hello" => assert_eq!(outcome.value(), b"\x0a\x07hi, raw"),
            _ => assert!(outcome.error().contains(name)),
        }
        peer.close_idle_route(1).await;
    }
    assert_eq!(fixture.server.snapshot().route_bytes, before);
    fixture.finish(peer).await;
}

/// Records the longest queue of `stuck` until the flag is set.
fn watch_queue(fixture: &Fixture) -> (Arc<AtomicBool>, tokio::task::JoinHandle<u64>) {
    let stop = Arc::new(AtomicBool::new(false));
    let (server, stopped) = (fixture.server.clone(), Arc::clone(&stop));
    let watch = tokio::spawn(async move {
        let mut longest = 0;
        while !stopped.load(Ordering::Relaxed) {
            let endpoints = server.snapshot().endpoints;
            longest =
                endpoints.iter().map(|endpoint| endpoint.held).max().unwrap_or(0).max(longest);
            tokio::task::yield_now().await;
        }
        longest
    });
    (stop, watch)
}

/// Closing and reopening routes gains no credit beyond the limit of the inbox.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_loop_of_open_send_close_gains_no_capacity() {
    let fixture = Fixture::start().await;
    let mut peer = RawPeer::greeted(&fixture.server).await;
    let (stop, watch) = watch_queue(&fixture);
    for n in 0..1000 {
        // The number of the last round, which may be open, and a new one.
        for route in [1, 2 + n] {
            peer.send(&say_hi(route, "stuck", "x"));
            peer.send(&say_hi(route, "", "x"));
            peer.close_route(route);
        }
    }
    peer.settle().await;
    let rejected = peer
        .arrived_notices()
        .into_iter()
        .filter_map(|notice| notice.undelivered)
        .collect::<Vec<_>>();
    let queued = fixture.endpoint("stuck").held;
    stop.store(true, Ordering::Relaxed);
    let longest = watch.await.unwrap().max(queued);
    assert!(longest <= STUCK_LIMIT + INITIAL_WINDOW, "{longest} messages were queued");
    assert_eq!(rejected.len() as u64 + queued, 4000, "each message is either queued or rejected");
    fixture.assert_connected(&peer, 2).await;
    fixture.finish(peer).await;
}

/// A peer that follows the protocol, and repeatedly takes the initial credit of a new route.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_valid_loop_of_open_send_close_gains_no_capacity() {
    let fixture = Fixture::start().await;
    let mut peer = RawPeer::greeted(&fixture.server).await;
    peer.send(&say_hi(1, "stuck", "x"));
    let mut sent = 1;
    for _ in 0..300 {
        peer.close_route(1);
        let credit = peer.next_close_reply().await.unwrap_err();
        for _ in 0..credit.messages.min(1000) {
            peer.send(&say_hi(1, "", "x"));
            sent += 1;
        }
        assert!(sent <= STUCK_LIMIT + INITIAL_WINDOW, "credit for {sent} messages");
    }
    peer.settle().await;
    assert_eq!(fixture.endpoint("stuck").held, sent, "messages within the credit are not rejected");
    fixture.finish(peer).await;
}
