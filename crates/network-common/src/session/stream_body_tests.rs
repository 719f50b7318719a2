//! The pipe between a connection and the reader of a streamed body.

use super::*;
use crate::session::body_channel;

fn taken(body: &mut StreamBody) -> Bytes {
    match next_piece(body) {
        Poll::Ready(Some(Ok(piece))) => piece,
        other => panic!("{other:?}"),
    }
}

#[test]
fn rsp_06_a_body_is_delivered_in_order_and_ends() {
    let (writer, mut body) = body_channel("s".into(), 6);
    assert!(next_piece(&mut body).is_pending());
    writer.push("abc".into());
    writer.push("def".into());
    writer.finish(Ok(()));
    assert_eq!((taken(&mut body), body.remaining()), ("abc".into(), 3));
    assert_eq!((taken(&mut body), body.remaining()), ("def".into(), 0));
    assert!(matches!(next_piece(&mut body), Poll::Ready(None)));
    assert!(matches!(next_piece(&mut body), Poll::Ready(None)));
}

/// What was delivered before an error is valid; the error comes once, then nothing.
#[test]
fn rsp_08_a_body_that_is_lost_ends_with_the_reason() {
    let (writer, mut body) = body_channel("s".into(), 6);
    writer.push("abc".into());
    writer.finish(Err(failure("lost")));
    assert_eq!(taken(&mut body), "abc");
    let Poll::Ready(Some(Err(error))) = next_piece(&mut body) else { panic!("no error") };
    assert_eq!(error.to_string(), "lost");
    assert!(matches!(next_piece(&mut body), Poll::Ready(None)));
}

/// Rule 1: also when the writer is dropped without a word.
#[test]
fn rsp_07_a_body_whose_connection_vanishes_ends() {
    let (writer, mut body) = body_channel("s".into(), 6);
    let log = Log::default();
    assert!(body.poll_piece(&Context::from_waker(&log.waker("reader"))).is_pending());
    drop(writer);
    assert_eq!(log.take(), ["reader"]);
    assert!(
        matches!(next_piece(&mut body), Poll::Ready(Some(Err(error))) if error.kind() == ErrorKind::Closed)
    );
    assert!(matches!(next_piece(&mut body), Poll::Ready(None)));
}

#[test]
fn rsp_06_an_empty_body_is_complete_from_the_start() {
    let (writer, mut body) = body_channel("s".into(), 0);
    assert!(body.is_empty());
    assert!(matches!(next_piece(&mut body), Poll::Ready(None)));
    drop(writer);
    assert!(matches!(next_piece(&mut body), Poll::Ready(None)));
}

/// Rule 5: a reader that does not read stops the writer at 1 MiB, and wakes it when it does.
#[test]
fn rsp_06_an_unread_body_stops_its_connection() {
    let (writer, mut body) = body_channel("s".into(), 10 << 20);
    let log = Log::default();
    let (connection, reader) = (log.waker("connection"), log.waker("reader"));
    let mut pieces = 0;
    while writer.poll_capacity(&Context::from_waker(&connection)).is_ready() {
        writer.push(vec![0; 256 << 10].into());
        pieces += 1;
    }
    assert_eq!(pieces, 4);
    assert_eq!(taken(&mut body).len(), 256 << 10);
    assert_eq!(log.take(), ["connection"]);
    (0..3).for_each(|_| drop(taken(&mut body)));
    assert!(body.poll_piece(&Context::from_waker(&reader)).is_pending());
    writer.push("x".into());
    assert_eq!(log.take(), ["reader"]);
}

/// A reader that has gone frees what waits, never stops the connection, and is noticed at once.
#[test]
fn rsp_06_a_dropped_body_lets_the_connection_go_on() {
    let (writer, body) = body_channel("s".into(), 10 << 20);
    let log = Log::default();
    let held = Bytes::from(vec![0; 1 << 20]);
    writer.push(held.clone());
    let connection = log.waker("connection");
    assert!(writer.poll_capacity(&Context::from_waker(&connection)).is_pending());
    drop(body);
    log.add("dropped");
    assert_eq!(log.take(), ["connection", "dropped"]);
    assert!(held.is_unique(), "the waiting piece is freed");
    writer.push(held.clone());
    assert!(held.is_unique(), "later ones are not kept");
    assert!(writer.poll_capacity(&Context::from_waker(&connection)).is_ready());
}

#[test]
fn rsp_06_the_probe_tells_whether_every_byte_was_taken() {
    let (writer, mut body) = body_channel("s".into(), 2);
    let probe = writer.probe();
    writer.push("a".into());
    drop(taken(&mut body));
    assert!(!probe.drained());
    writer.push("b".into());
    writer.finish(Ok(()));
    drop(taken(&mut body));
    drop(body);
    assert!(probe.drained());
}

/// A piece costs more than its bytes: a peer that sends them one by one must not fill the memory of
/// who does not read.
#[test]
fn rsp_06_many_small_pieces_stop_the_connection_too() {
    let (writer, mut body) = body_channel("s".into(), 10 << 20);
    let mut pieces = 0;
    while writer.poll_capacity(&Context::from_waker(Waker::noop())).is_ready() && pieces < 1 << 20 {
        writer.push(vec![0].into());
        pieces += 1;
    }
    assert!(pieces <= 20_000, "{pieces} pieces are held");
    (0..pieces).for_each(|_| drop(taken(&mut body)));
    assert!(next_piece(&mut body).is_pending());
    assert!(
        writer.poll_capacity(&Context::from_waker(Waker::noop())).is_ready(),
        "all are forgotten"
    );
}
