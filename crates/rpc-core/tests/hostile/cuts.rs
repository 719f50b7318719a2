//! A client truncates envelopes, sends malformed frames, or closes its connection at any byte.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use prost::Message;

use crate::common::address;
use crate::common::envelope::{self, Credit, Notice};
use crate::fixture::{Fixture, promptly};
use crate::raw_peer::{Outcome, RawPeer, say_hi};

/// A frame of Spark's transport: OneWayMessage, or RpcRequest with an id.
fn frame(request_id: Option<u64>, body: &[u8]) -> Vec<u8> {
    let header = if request_id.is_some() { 21 } else { 13 };
    let mut frame = (header + body.len() as u64).to_be_bytes().to_vec();
    frame.push(if request_id.is_some() { 3 } else { 9 });
    frame.extend(request_id.map(u64::to_be_bytes).into_iter().flatten());
    frame.extend((body.len() as u32).to_be_bytes());
    frame.extend(body);
    frame
}

async fn connect(fixture: &Fixture) -> TcpStream {
    TcpStream::connect(address(&fixture.server).host_port()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_first_message_truncated_at_every_byte_fails_alone() {
    let fixture = Fixture::start().await;
    let mut first = say_hi(1, "hello", "raw");
    (first.timeout_us, first.blocked_by) = (5_000_000, 3);
    first.traceparent = format!("00-{}-{}-01", "1".repeat(32), "2".repeat(16));
    let whole = first.encode_to_vec();
    for length in 0..whole.len() {
        let peer = RawPeer::greeted(&fixture.server).await;
        peer.send_bytes(whole[..length].to_vec());
        match peer.ask_bytes(whole[..length].to_vec()).await {
            // A message cut between two fields is valid, with default values.
            Outcome::Value(value) => assert_eq!(value, b"\x0a\x04hi, ", "{length}"),
            other => assert!(!other.error().is_empty(), "{length}"),
        }
        // The route is open or free now.
        let opened = peer.ask_hello(1, "").await.is_ok();
        if !opened {
            peer.ask_hello(1, "hello").await.unwrap();
        }
        peer.close();
    }
    fixture.assert_nothing_remains().await;
}

/// Returns the frames of a session that opens routes, sends, cancels and closes.
fn script() -> Vec<u8> {
    let one = Some(Credit { route: 1, messages: u64::MAX, bytes: u64::MAX, keeps_open: true });
    let mut bytes = frame(None, &envelope::hello(31).envelope());
    bytes.extend(frame(Some(1), &say_hi(1, "stuck", "x").encode_to_vec()));
    bytes.extend(frame(None, &say_hi(1, "", "y").encode_to_vec()));
    bytes.extend(frame(None, &Notice { close_route: one.clone(), ..Notice::default() }.envelope()));
    bytes.extend(frame(Some(2), &say_hi(65_535, "hello", "x").encode_to_vec()));
    bytes.extend(frame(None, &Notice { credit: one, ..Notice::default() }.envelope()));
    bytes.extend(frame(Some(3), &say_hi(2, "missing", "x").encode_to_vec()));
    bytes.extend(frame(Some(4), b"\xff"));
    bytes
}

/// The connection closes after each prefix of the script, with and without a reset.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_connection_that_ends_at_every_byte_leaves_nothing() {
    let fixture = Fixture::start().await;
    let script = script();
    for length in 0..script.len() {
        let mut peer = connect(&fixture).await;
        peer.write_all(&script[..length]).await.unwrap();
        if length % 2 == 0 {
            // Unread responses make this a reset.
            drop(peer);
        } else {
            peer.shutdown().await.unwrap();
            let mut rest = Vec::new();
            let _ = promptly("the end of the connection", peer.read_to_end(&mut rest)).await;
        }
    }
    fixture.release();
    fixture.assert_nothing_remains().await;
}

/// A malformed frame closes its connection, other connections stay open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_malformed_frames_close_their_connection_only() {
    let fixture = Fixture::start().await;
    let survivor = RawPeer::greeted(&fixture.server).await;
    survivor.ask_hello(1, "hello").await.unwrap();
    let negative = (-5_i64).to_be_bytes();
    let malformed: [&[u8]; 5] = [
        &[0; 8],
        &negative,
        &[0, 0, 0, 0, 0, 0, 0, 9, 0xff],
        &[0, 0, 0, 0, 0, 0, 0, 9, 100],
        &[0x7f; 8],
    ];
    for bytes in malformed {
        let mut peer = connect(&fixture).await;
        peer.write_all(&script()).await.unwrap();
        peer.write_all(bytes).await.unwrap();
        let mut rest = Vec::new();
        let _ = promptly("the server closes the connection", peer.read_to_end(&mut rest)).await;
        survivor.ask_hello(1, "").await.unwrap();
    }
    fixture.release();
    fixture.finish(survivor).await;
}

/// The peer repeats the cancel of a request whose id it chose.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_ten_thousand_cancels_of_active_request_are_harmless() {
    let fixture = Fixture::start().await;
    let mut peer = connect(&fixture).await;
    let id = 1 << 62;
    let mut bytes = frame(None, &envelope::hello(33).envelope());
    bytes.extend(frame(Some(id), &say_hi(1, "stuck", "x").encode_to_vec()));
    let cancel = Some(envelope::Cancel { request_id: id as i64 });
    let cancel = frame(None, &Notice { cancel, ..Notice::default() }.envelope());
    bytes.extend(cancel.repeat(10_000));
    // A request with the id of an active one, and requests that are cancelled in the queue.
    bytes.extend(frame(Some(id), &say_hi(1, "", "again").encode_to_vec()));
    bytes.extend(cancel.repeat(10));
    bytes.extend(frame(Some(7), &say_hi(2, "hello", "raw").encode_to_vec()));
    peer.write_all(&bytes).await.unwrap();
    // The reply to the last request shows that all frames were read.
    let mut read = Vec::new();
    let needle = b"hi, raw";
    promptly("the reply behind the cancels", async {
        while !read.windows(needle.len()).any(|window| window == needle) {
            assert_ne!(peer.read_buf(&mut read).await.unwrap(), 0, "the connection is open");
        }
    })
    .await;
    assert!(read.len() < 10_000, "{} bytes in reply to the cancels", read.len());
    assert!(fixture.endpoint("stuck").held <= 2);
    fixture.release();
    drop(peer);
    fixture.assert_nothing_remains().await;
}

/// The peer closes the connection while it sends, opens routes and closes routes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_close_during_flood_leaves_nothing() {
    let fixture = Fixture::start().await;
    for n in 0..6 {
        let peer = RawPeer::greeted(&fixture.server).await;
        let mut asks = Vec::new();
        for route in 1..5000 {
            match n {
                0 => peer.send(&say_hi(1, if route == 1 { "stuck" } else { "" }, "x")),
                1 => asks.push(peer.ask(&say_hi(1, if route == 1 { "stuck" } else { "" }, "x"))),
                2 => peer.send(&say_hi(route, &format!("name-{route}"), "x")),
                3 => peer.send(&say_hi(route, "stuck", "x")),
                4 => peer.close_route(route),
                _ => {
                    peer.send(&say_hi(route, "hello", "x"));
                    peer.close_route(route);
                }
            }
        }
        peer.close();
        for ask in asks {
            assert!(!ask.await.error().is_empty());
        }
    }
    fixture.assert_others_served().await;
    fixture.release();
    fixture.assert_nothing_remains().await;
}
