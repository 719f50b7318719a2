//! A client sends invalid values in the fields path, body, timeout and traceparent.

use prost::Message;

use crate::common::envelope::{self, RoutedMessage};
use crate::fixture::{Fixture, until};
use crate::raw_peer::{NOT_DELIVERED, Outcome, RawPeer, failure_of, say_hi};

fn with_path(path: &str) -> RoutedMessage {
    RoutedMessage { path: path.to_owned(), endpoint: String::new(), ..say_hi(1, "", "") }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_paths_fail_their_message_only() {
    let fixture = Fixture::start().await;
    let mut peer = RawPeer::greeted(&fixture.server).await;
    peer.ask_hello(1, "hello").await.unwrap();
    let long = "x".repeat(1 << 20);
    let long_method = format!("/hello.Hello/{long}");
    let paths = [
        "",
        "/",
        "//",
        "///",
        "SayHi",
        "hello.Hello/SayHi",
        "/hello.Hello",
        "/hello.Hello/",
        "/SayHi",
    ];
    let odd = [
        "/hello.Hello/SayHi/",
        "/hello.Hello/SayHi\u{0}",
        "/hello.Hello//SayHi",
        &long,
        &long_method,
    ];
    for path in paths.into_iter().chain(odd) {
        let short = &path[..path.len().min(40)];
        let failure = peer.ask(&with_path(path)).await.failure();
        assert_eq!(failure.kind, NOT_DELIVERED, "{short}: {failure:?}");
        assert!(failure.message.contains("hello"), "{short}: {failure:?}");
        assert!(failure.message.len() < 2000, "{short}: {} bytes of error", failure.message.len());
        peer.send(&with_path(path));
        let undelivered = peer.next_undelivered().await;
        assert!(undelivered.path.len() <= path.len(), "{short}");
        assert_eq!(failure_of(&undelivered).kind, NOT_DELIVERED, "{short}");
    }
    peer.ask_hello(1, "").await.unwrap();
    fixture.finish(peer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_texts_that_are_not_utf8_fail_their_message_only() {
    let fixture = Fixture::start().await;
    let peer = RawPeer::greeted(&fixture.server).await;
    peer.ask_hello(1, "hello").await.unwrap();
    // The tags of path, traceparent and endpoint.
    for tag in [0x1a, 0x22, 0x2a] {
        for text in [&b"\xff"[..], b"\xc3", b"\xed\xa0\x80", b"a\xf5"] {
            let mut bytes = say_hi(1, "", "raw").encode_to_vec();
            bytes.extend([tag, text.len() as u8]);
            bytes.extend(text);
            // No trace propagator is set, so the traceparent is not read.
            match peer.ask_bytes(bytes.clone()).await {
                Outcome::Value(_) if tag == 0x22 => {}
                other => assert!(!other.error().is_empty()),
            }
            peer.send_bytes(bytes);
        }
    }
    peer.ask_hello(1, "").await.unwrap();
    fixture.finish(peer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_bodies_fail_their_message_only() {
    let fixture = Fixture::start().await;
    let peer = RawPeer::greeted(&fixture.server).await;
    // Without a body the request has its defaults.
    let missing = envelope::message(1, "hello", "/hello.Hello/SayHi", b"");
    assert_eq!(peer.ask(&missing).await.value(), b"\x0a\x04hi, ");
    for body in [
        &b"\xff"[..],
        b"\x0a",
        b"\x0a\x7f",
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\x0b",
        b"\x00",
        b"\x0a\x01\xff",
    ] {
        let message = envelope::message(1, "", "/hello.Hello/SayHi", body);
        let failure = peer.ask(&message).await.failure();
        assert!(failure.message.contains("/hello.Hello/SayHi"), "{body:?}: {failure:?}");
        assert!(failure.message.contains("decode"), "{body:?}: {failure:?}");
    }
    // With two bodies, the last one counts, as in protobuf.
    let mut twice = envelope::message(1, "", "/hello.Hello/SayHi", b"\xff").encode_to_vec();
    twice.extend(
        RoutedMessage { body: b"\x0a\x01x".to_vec(), ..RoutedMessage::default() }.encode_to_vec(),
    );
    let outcome = peer.ask_bytes(twice).await;
    assert!(matches!(outcome, Outcome::Value(_) | Outcome::Failure(_) | Outcome::Transport(_)));
    peer.ask_hello(1, "").await.unwrap();
    fixture.finish(peer).await;
}

/// An ask with an elapsed timeout may get a reply or a failure; the endpoint continues.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_timeouts_are_harmless() {
    let fixture = Fixture::start().await;
    let peer = RawPeer::greeted(&fixture.server).await;
    peer.ask_hello(1, "hello").await.unwrap();
    for timeout_us in [0, 1 << 40, u64::MAX - 1, u64::MAX] {
        let message = RoutedMessage { timeout_us, ..say_hi(1, "", "raw") };
        assert_eq!(peer.ask(&message).await.value(), b"\x0a\x07hi, raw", "{timeout_us}");
    }
    for _ in 0..100 {
        let ask = peer.ask(&RoutedMessage { timeout_us: 1, ..say_hi(1, "", "raw") });
        if let Outcome::Value(value) = ask.await {
            assert_eq!(value, b"\x0a\x07hi, raw");
        }
    }
    // Asks that expire in the queue are not handled and hold no memory.
    let first = peer.ask(&say_hi(2, "stuck", ""));
    let late: Vec<_> = (0..3)
        .map(|_| peer.ask(&RoutedMessage { timeout_us: 1000, ..say_hi(2, "", "") }))
        .collect();
    until("four are queued", || fixture.endpoint("stuck").held == 4).await;
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    fixture.permits.add_permits(1);
    assert_eq!(first.await.value(), b"\x0a\x07handled");
    until("the queue is empty", || fixture.endpoint("stuck").held == 0).await;
    assert_eq!((fixture.endpoint("stuck").expired, fixture.endpoint("stuck").held_bytes), (3, 0));
    drop(late);
    // The timeout of a one-way message is ignored.
    fixture.permits.add_permits(1);
    peer.send(&RoutedMessage { timeout_us: 1, ..say_hi(2, "", "") });
    until("the message is handled", || {
        fixture.endpoint("stuck").handled + fixture.endpoint("stuck").expired == 5
    })
    .await;
    peer.ask_hello(1, "").await.unwrap();
    fixture.finish(peer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_traceparents_are_harmless() {
    let fixture = Fixture::start().await;
    let peer = RawPeer::greeted(&fixture.server).await;
    peer.ask_hello(1, "hello").await.unwrap();
    let long = "0".repeat(1 << 20);
    let zero = format!("00-{}-{}-00", "0".repeat(32), "0".repeat(16));
    for traceparent in [&*long, &zero, "00-", "\u{0}", "ff-é-\n-01", "00-1-1-1"] {
        let message = RoutedMessage { traceparent: traceparent.to_owned(), ..say_hi(1, "", "raw") };
        assert_eq!(peer.ask(&message).await.value(), b"\x0a\x07hi, raw");
        peer.send(&message);
    }
    peer.ask_hello(1, "").await.unwrap();
    fixture.finish(peer).await;
}

/// Unknown fields, reserved ones, and known ones with another wire type.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_unknown_fields_are_ignored() {
    let fixture = Fixture::start().await;
    let peer = RawPeer::greeted(&fixture.server).await;
    peer.ask_hello(1, "hello").await.unwrap();
    let valid = say_hi(1, "", "raw").encode_to_vec();
    for unknown in [
        &b"\x38\x01"[..],
        b"\x72\x00",
        b"\xf8\xff\xff\xff\x0f\x00",
        b"\xa2\x06\x03abc",
        b"\x3b\x3c",
    ] {
        for bytes in [[unknown, &valid].concat(), [&valid, unknown].concat()] {
            assert_eq!(peer.ask_bytes(bytes).await.value(), b"\x0a\x07hi, raw", "{unknown:?}");
        }
    }
    // Tag 0, wire types 6 and 7, route as a varint, a group without its end.
    for wrong in [&b"\x00"[..], b"\x06", b"\x07", b"\x08\x01", b"\x3b", b"\x7d\x00\x00\x00\x00"] {
        let text = peer.ask_bytes([&valid, wrong].concat()).await.error();
        assert!(text.contains("envelope"), "{wrong:?}: {text}");
    }
    peer.ask_hello(1, "").await.unwrap();
    fixture.finish(peer).await;
}
