//! The bounded queue between a connection and the reader of a streamed body.

use super::*;
use crate::session::body_channel;

fn take_piece(body: &mut StreamBody) -> Bytes {
    match next_piece(body) {
        Poll::Ready(Some(Ok(piece))) => piece,
        other => panic!("{other:?}"),
    }
}

#[test]
fn rsp_06_body_is_delivered_in_order_and_ends() {
    let (writer, mut body) = body_channel("s".into(), 6);
    assert!(next_piece(&mut body).is_pending());
    writer.push("abc".into());
    writer.push("def".into());
    writer.finish(Ok(()));
    assert_eq!((take_piece(&mut body), body.remaining()), ("abc".into(), 3));
    assert_eq!((take_piece(&mut body), body.remaining()), ("def".into(), 0));
    assert!(matches!(next_piece(&mut body), Poll::Ready(None)));
    assert!(matches!(next_piece(&mut body), Poll::Ready(None)));
}

/// Pieces before an error are valid; the error is returned once, then `None`.
#[test]
fn rsp_08_lost_body_ends_with_error() {
    let (writer, mut body) = body_channel("s".into(), 6);
    writer.push("abc".into());
    writer.finish(Err(failure("lost")));
    assert_eq!(take_piece(&mut body), "abc");
    let Poll::Ready(Some(Err(error))) = next_piece(&mut body) else { panic!("no error") };
    assert_eq!(error.to_string(), "lost");
    assert!(matches!(next_piece(&mut body), Poll::Ready(None)));
}

/// A body also ends if its writer is dropped without a result.
#[test]
fn rsp_07_body_ends_when_its_connection_is_dropped() {
    let (writer, mut body) = body_channel("s".into(), 6);
    let log = Log::default();
    assert!(body.poll_piece(&Context::from_waker(&log.waker("reader"))).is_pending());
    drop(writer);
    assert_eq!(log.take(), ["reader"]);
    let Poll::Ready(Some(Err(error))) = next_piece(&mut body) else { panic!("no error") };
    assert_eq!(error.kind(), ErrorKind::Closed);
    assert!(matches!(next_piece(&mut body), Poll::Ready(None)));
}

#[test]
fn rsp_06_empty_body_is_complete_at_once() {
    let (writer, mut body) = body_channel("s".into(), 0);
    assert!(body.is_empty());
    assert!(matches!(next_piece(&mut body), Poll::Ready(None)));
    drop(writer);
    assert!(matches!(next_piece(&mut body), Poll::Ready(None)));
}

/// A full queue of 1 MiB stops the writer; reading wakes it.
#[test]
fn rsp_06_unread_body_stops_its_connection() {
    let (writer, mut body) = body_channel("s".into(), 10 << 20);
    let log = Log::default();
    let (connection, reader) = (log.waker("connection"), log.waker("reader"));
    let mut pieces = 0;
    while writer.poll_capacity(&Context::from_waker(&connection)).is_ready() {
        writer.push(vec![0; 256 << 10].into());
        pieces += 1;
    }
    assert_eq!(pieces, 4);
    assert_eq!(take_piece(&mut body).len(), 256 << 10);
    assert_eq!(log.take(), ["connection"]);
    (0..3).for_each(|_| drop(take_piece(&mut body)));
    assert!(body.poll_piece(&Context::from_waker(&reader)).is_pending());
    writer.push("x".into());
    assert_eq!(log.take(), ["reader"]);
}

/// A dropped reader releases the queued pieces, never stops the connection, and wakes the writer.
#[test]
fn rsp_06_dropped_body_lets_connection_continue() {
    let (writer, body) = body_channel("s".into(), 10 << 20);
    let log = Log::default();
    let held = Bytes::from(vec![0; 1 << 20]);
    writer.push(held.clone());
    let connection = log.waker("connection");
    assert!(writer.poll_capacity(&Context::from_waker(&connection)).is_pending());
    drop(body);
    log.add("dropped");
    assert_eq!(log.take(), ["connection", "dropped"]);
    assert!(held.is_unique(), "the queued piece must be released");
    writer.push(held.clone());
    assert!(held.is_unique(), "later pieces must not be kept");
    assert!(writer.poll_capacity(&Context::from_waker(&connection)).is_ready());
}

#[test]
fn rsp_06_probe_reports_whether_every_byte_was_read() {
    let (writer, mut body) = body_channel("s".into(), 2);
    let probe = writer.progress();
    writer.push("a".into());
    drop(take_piece(&mut body));
    assert!(!probe.is_consumed());
    writer.push("b".into());
    writer.finish(Ok(()));
    drop(take_piece(&mut body));
    drop(body);
    assert!(probe.is_consumed());
}

/// A piece counts more than its bytes, so that a peer which sends single bytes cannot exhaust the
/// memory.
#[test]
fn rsp_06_many_small_pieces_stop_connection() {
    let (writer, mut body) = body_channel("s".into(), 10 << 20);
    let mut pieces = 0;
    while writer.poll_capacity(&Context::from_waker(Waker::noop())).is_ready() && pieces < 1 << 20 {
        writer.push(vec![0].into());
        pieces += 1;
    }
    assert!(pieces <= 20_000, "{pieces} pieces are queued");
    (0..pieces).for_each(|_| drop(take_piece(&mut body)));
    assert!(next_piece(&mut body).is_pending());
    assert!(
        writer.poll_capacity(&Context::from_waker(Waker::noop())).is_ready(),
        "the queue must be empty"
    );
}
