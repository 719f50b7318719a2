//! A client opens too many routes, routes with unusual numbers, and routes that are open already.

use crate::common::{envelope, setting};
use crate::fixture::Fixture;
use crate::raw_peer::{ENDPOINT_NOT_FOUND, LIMIT, NOT_DELIVERED, RawPeer, failure_of, say_hi};

const MAX_ROUTES: &str = "spark.rpc.maxRoutesPerConnection";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_routes_are_rejected_beyond_small_limit() {
    let fixture = Fixture::with(setting(MAX_ROUTES, "8")).await;
    let mut peer = RawPeer::greeted(&fixture.server).await;
    peer.ask_hello(1, "hello").await.unwrap();
    let mut rejected = 0;
    for route in 2..100 {
        let failure = peer.ask(&say_hi(route, &format!("name-{route}"), "")).await.failure();
        if failure.kind == ENDPOINT_NOT_FOUND {
            continue;
        }
        rejected += 1;
        assert_eq!(failure.kind, LIMIT, "{failure:?}");
        assert!(failure.message.contains(MAX_ROUTES), "{failure:?}");
        assert_eq!(peer.next_route_closed().await, route);
    }
    // The implementation may reject a route at the limit or only above it: 7 or 8 are open.
    assert!((91..=92).contains(&rejected), "{rejected} routes were rejected");
    // A one-way message is reported.
    peer.send(&say_hi(50, "hello-50", ""));
    let undelivered = peer.next_undelivered().await;
    assert_eq!((undelivered.route, failure_of(&undelivered).kind), (50, LIMIT));
    // Open routes still work.
    peer.ask_hello(1, "").await.unwrap();
    fixture.finish(peer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_routes_are_bounded_with_default_limit() {
    let fixture = Fixture::start().await;
    let peer = RawPeer::greeted(&fixture.server).await;
    peer.ask_hello(1, "hello").await.unwrap();
    let asks: Vec<_> =
        (2..70_000).map(|route| peer.ask(&say_hi(route, &format!("{route:x}"), ""))).collect();
    let mut rejected = Vec::new();
    for (ask, route) in asks.into_iter().zip(2_u32..) {
        let failure = ask.await.failure();
        if failure.kind == LIMIT {
            rejected.push((route, failure.message));
        } else {
            assert_eq!(failure.kind, ENDPOINT_NOT_FOUND, "{failure:?}");
        }
    }
    let (first, text) = rejected.first().expect("the limit is reached");
    assert!((65_536..=65_537).contains(first), "route {first} is the first to be rejected");
    assert!(text.contains(MAX_ROUTES), "{text}");
    let bytes = fixture.server.snapshot().route_bytes;
    assert!((65_000 * 256..65_600 * 262).contains(&bytes), "{bytes} bytes of routes");
    peer.ask_hello(1, "").await.unwrap();
    fixture.finish(peer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_routes_that_are_not_dense_hold_little_memory() {
    let fixture = Fixture::start().await;
    let peer = RawPeer::greeted(&fixture.server).await;
    let before = fixture.server.snapshot().route_bytes;
    // Valid senders use dense numbers, but a gap takes no memory.
    let text = peer.ask(&say_hi(65_535, "absent", "")).await.error();
    assert!(text.contains("Could not find absent"), "{text}");
    assert!(fixture.server.snapshot().route_bytes < before + 100_000);
    for route in [0, 65_536 + 1, 1 << 31, u32::MAX] {
        let text = peer.ask(&say_hi(route, "stuck", "")).await.error();
        assert!(text.contains(&format!("route {route}")), "{route}: {text}");
        assert!(route == 0 || text.contains(MAX_ROUTES), "{route}: {text}");
    }
    assert!(fixture.server.snapshot().route_bytes < before + 100_000);
    let other = fixture.endpoint("stuck");
    assert_eq!((other.held, other.handled), (0, 0));
    fixture.assert_connected(&peer, 1).await;
    fixture.finish(peer).await;
}

/// The second opening may succeed or fail; afterwards the route leads to its endpoint.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_route_opened_twice_with_one_name_serves_on() {
    let fixture = Fixture::start().await;
    let mut peer = RawPeer::greeted(&fixture.server).await;
    peer.ask_hello(1, "hello").await.unwrap();
    for _ in 0..100 {
        if let Err(outcome) = peer.ask_hello(1, "hello").await {
            let text = outcome.error();
            assert!(text.contains("route 1"), "{text}");
        }
    }
    peer.settle().await;
    let closed = peer.arrived_notices().iter().any(|notice| notice.route_closed.is_some());
    peer.ask_hello(1, if closed { "hello" } else { "" }).await.unwrap();
    fixture.assert_others_served().await;
    fixture.finish(peer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_route_opened_twice_with_other_name_is_rejected() {
    let fixture = Fixture::start().await;
    let mut peer = RawPeer::greeted(&fixture.server).await;
    peer.ask_hello(1, "hello").await.unwrap();
    for name in ["stuck", "missing", &"x".repeat(1000)] {
        let failure = peer.ask(&say_hi(1, name, "")).await.failure();
        assert!(failure.message.contains("route 1"), "{failure:?}");
        assert!([NOT_DELIVERED, LIMIT].contains(&failure.kind), "{failure:?}");
    }
    peer.send(&say_hi(1, "stuck", ""));
    let undelivered = peer.next_undelivered().await;
    assert_eq!(undelivered.route, 1);
    peer.settle().await;
    let stuck = fixture.endpoint("stuck");
    assert_eq!((stuck.held, stuck.handled), (0, 0));
    let closed = peer.arrived_notices().iter().any(|notice| notice.route_closed.is_some());
    assert!(!closed, "RouteClosed says that number 1 is free, but `hello` has it");
    peer.ask_hello(1, "").await.unwrap();
    fixture.finish(peer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_second_number_for_one_name_is_rejected() {
    let fixture = Fixture::start().await;
    let mut peer = RawPeer::greeted(&fixture.server).await;
    peer.ask_hello(1, "hello").await.unwrap();
    for route in 2..50 {
        let failure = peer.ask(&say_hi(route, "hello", "")).await.failure();
        let text = &failure.message;
        assert!(
            text.contains(&format!("route {route}")) || text.contains("route 1"),
            "{failure:?}"
        );
        assert!(text.contains("hello"), "{failure:?}");
        assert_eq!(peer.next_route_closed().await, route);
    }
    // The first route still works, and the other numbers are free.
    peer.ask_hello(1, "").await.unwrap();
    fixture.permits.add_permits(1);
    assert_eq!(peer.ask(&say_hi(2, "stuck", "")).await.value(), b"\x0a\x07handled");
    fixture.finish(peer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_messages_on_unknown_routes_are_rejected() {
    let fixture = Fixture::start().await;
    let mut peer = RawPeer::greeted(&fixture.server).await;
    for route in [1, 2, 100, 65_535, 65_536, u32::MAX] {
        let failure = peer.ask(&say_hi(route, "", "")).await.failure();
        assert!(failure.message.contains(&format!("route {route}")), "{failure:?}");
        assert_eq!(failure.kind, NOT_DELIVERED, "{failure:?}");
        peer.send(&say_hi(route, "", ""));
        let undelivered = peer.next_undelivered().await;
        assert_eq!((undelivered.route, &*undelivered.path), (route, "/hello.Hello/SayHi"));
        let failure = failure_of(&undelivered);
        assert!(failure.message.contains(&format!("route {route}")), "{failure:?}");
    }
    fixture.assert_connected(&peer, 1).await;
    fixture.finish(peer).await;
}

/// Route 0 carries notices: a request on it is rejected, an invalid one-way message is ignored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_messages_on_route_0_reach_no_endpoint() {
    let fixture = Fixture::start().await;
    let peer = RawPeer::greeted(&fixture.server).await;
    for endpoint in ["", "stuck", "endpoint-verifier"] {
        let text = peer.ask(&say_hi(0, endpoint, "")).await.error();
        assert!(text.contains("route 0"), "{text}");
        peer.send(&say_hi(0, endpoint, ""));
        let hello = envelope::hello(7);
        peer.send(&envelope::message(0, endpoint, "/x/y", &hello.envelope()));
    }
    let stuck = fixture.endpoint("stuck");
    assert_eq!((stuck.held, stuck.handled), (0, 0));
    fixture.assert_connected(&peer, 1).await;
    fixture.finish(peer).await;
}
