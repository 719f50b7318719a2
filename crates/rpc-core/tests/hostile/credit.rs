//! A client sends messages beyond its credit, and claims more credit with forged values.

use std::time::Instant;

use crate::common::envelope::Credit;
use crate::common::setting;
use crate::fixture::{Fixture, INITIAL_WINDOW, STUCK_LIMIT, until};
use crate::raw_peer::{LIMIT, RawPeer, failure_of, say_hi};

/// The highest number of messages that a stuck endpoint holds for one peer.
const MAX_HELD: u64 = STUCK_LIMIT + INITIAL_WINDOW;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_flood_of_sends_without_credit_is_rejected() {
    const FLOOD: u64 = 100_000;
    let fixture = Fixture::start().await;
    let mut peer = RawPeer::greeted(&fixture.server).await;
    peer.send(&say_hi(1, "stuck", ""));
    let message = say_hi(1, "", "x");
    for n in 1..FLOOD {
        peer.send(&message);
        if n % 10_000 == 0 {
            peer.settle().await;
            let snapshot = fixture.server.snapshot();
            assert!(snapshot.inbox_bytes < 100 * MAX_HELD, "{snapshot:?}");
        }
    }
    peer.settle().await;
    let held = fixture.endpoint("stuck").held;
    assert!(held <= MAX_HELD, "{held} messages are queued");
    for n in held..FLOOD {
        let undelivered = peer.next_undelivered().await;
        let failure = failure_of(&undelivered);
        assert_eq!((undelivered.route, failure.kind), (1, LIMIT), "{n}: {failure:?}");
        assert!(failure.message.contains("stuck"), "{failure:?}");
        assert!(
            failure.message.contains("credit") || failure.message.contains("max"),
            "{failure:?}"
        );
    }
    fixture.assert_connected(&peer, 2).await;
    // The endpoint works again for this peer.
    fixture.release();
    until("the queue is empty", || fixture.endpoint("stuck").held == 0).await;
    assert_eq!(fixture.endpoint("stuck").handled, held);
    assert_eq!(peer.ask(&say_hi(1, "", "")).await.value(), b"\x0a\x07handled");
    fixture.finish(peer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_flood_of_asks_without_credit_is_rejected() {
    const FLOOD: usize = 20_000;
    let fixture = Fixture::start().await;
    let peer = RawPeer::greeted(&fixture.server).await;
    let mut asks: Vec<_> = vec![peer.ask(&say_hi(1, "stuck", ""))];
    asks.extend((1..FLOOD).map(|_| peer.ask(&say_hi(1, "", "x"))));
    peer.settle().await;
    let held = fixture.endpoint("stuck").held;
    assert!(held <= MAX_HELD, "{held} messages are queued");
    fixture.release();
    let (mut handled, mut rejected) = (0, 0);
    for ask in asks {
        match ask.await {
            crate::raw_peer::Outcome::Failure(failure) => {
                assert_eq!(failure.kind, LIMIT, "{failure:?}");
                assert!(failure.retryable && failure.message.contains("stuck"), "{failure:?}");
                rejected += 1;
            }
            other => {
                assert_eq!(other.value(), b"\x0a\x07handled");
                handled += 1;
            }
        }
    }
    assert_eq!((handled, rejected), (held as usize, FLOOD - held as usize));
    fixture.finish(peer).await;
}

/// The byte limit holds although credit always allows one message of any size.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_large_messages_stay_within_total_bytes() {
    // The endpoint cannot use the whole budget, so that others are served.
    let conf = setting("spark.rpc.inbox.maxTotalBytes", "1m")
        .with("spark.rpc.inbox.maxBytes", "500k")
        .unwrap();
    let fixture = Fixture::with(conf).await;
    let peer = RawPeer::greeted(&fixture.server).await;
    let large = "x".repeat(300_000);
    let mut asks = vec![peer.ask(&say_hi(1, "stuck", &large))];
    asks.extend((1..50).map(|_| peer.ask(&say_hi(1, "", &large))));
    peer.settle().await;
    let bytes = fixture.server.snapshot().inbox_bytes;
    // One message may exceed the limit.
    assert!(bytes <= (1 << 20) + 300_100, "{bytes} bytes are held");
    fixture.release();
    let mut rejected = 0;
    for ask in asks {
        if let crate::raw_peer::Outcome::Failure(failure) = ask.await {
            assert_eq!(failure.kind, LIMIT, "{failure:?}");
            rejected += 1;
        }
    }
    assert!(rejected >= 45, "{rejected} were rejected");
    fixture.assert_connected(&peer, 2).await;
    fixture.finish(peer).await;
}

/// Forged values of `blocked_by` do not grow the window beyond the inbox limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_blocked_by_does_not_grow_window_beyond_inbox() {
    let fixture = Fixture::start().await;
    for blocked_by in [1, 2, 3, 4, 255, u32::MAX] {
        let mut peer = RawPeer::greeted(&fixture.server).await;
        let mut message = say_hi(1, "stuck", "");
        message.blocked_by = blocked_by;
        let mut balance = 1;
        // Windows grow while the endpoint handles messages as fast as they arrive.
        for _ in 0..500 {
            fixture.permits.add_permits(1);
            assert_eq!(peer.ask(&message).await.value(), b"\x0a\x07handled");
            message.endpoint.clear();
            balance -= 1;
            balance += granted(&mut peer, 1);
        }
        // The endpoint is stuck now, and the peer uses all its credit.
        let before = fixture.endpoint("stuck").held;
        let mut sent = 0;
        while balance > 0 && sent < 10_000 {
            peer.send(&message);
            (sent, balance) = (sent + 1, balance - 1);
            if balance == 0 {
                peer.settle().await;
                balance += granted(&mut peer, 1);
            }
        }
        peer.settle().await;
        assert!(sent <= MAX_HELD as i64, "{blocked_by}: credit for {sent} messages");
        assert_eq!(
            fixture.endpoint("stuck").held - before,
            sent as u64,
            "messages within the credit are accepted"
        );
        fixture.permits.add_permits(sent as usize);
        until("the queue is empty", || fixture.endpoint("stuck").held == 0).await;
        peer.close();
    }
    fixture.assert_nothing_remains().await;
}

/// Returns the number of messages that the arrived notices grant for the route `of`.
fn granted(peer: &mut RawPeer, of: u32) -> i64 {
    let credits = peer.arrived_notices().into_iter().filter_map(|notice| notice.credit);
    credits
        .map(|Credit { route, messages, .. }| if route == of { messages as i64 } else { 0 })
        .sum()
}

/// Credit for routes that the server has not opened is ignored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_credit_to_server_for_routes_it_never_opened_is_ignored() {
    let fixture = Fixture::start().await;
    let peer = RawPeer::greeted(&fixture.server).await;
    let started = Instant::now();
    for route in [0, 1, 2, 65_535, u32::MAX] {
        for keeps_open in [false, true] {
            let credit = Some(Credit { route, messages: u64::MAX, bytes: u64::MAX, keeps_open });
            let notice = crate::common::envelope::Notice { credit, ..Default::default() };
            peer.notify(&notice);
            let route_closed = Some(Credit { route, ..Credit::default() });
            peer.notify(&crate::common::envelope::Notice { route_closed, ..Default::default() });
        }
    }
    fixture.assert_connected(&peer, 1).await;
    assert!(started.elapsed().as_secs() < 3);
    fixture.finish(peer).await;
}
