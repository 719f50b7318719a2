//! Pending requests and their responses: rows `rsp_01` to `rsp_10`, from Spark's
//! `TransportResponseHandlerSuite`.

use super::*;
use crate::protocol::MergedBlockMetaRequest;
use crate::session::{CloseRequest, MergedBlockMeta, StreamStart};

/// Completes a fetch and wakes its waiter, if any.
fn complete_chunk(session: &mut Session, index: i32, outcome: RequestResult) {
    let waker = session.requests.complete_fetch(1, index, outcome).expect("known");
    waker.iter().for_each(Waker::wake_by_ref);
}

fn start_stream(start: StreamStart) -> crate::session::BodySender {
    match start {
        StreamStart::Receive(pipe, _) => pipe,
        StreamStart::Discard => panic!("the stream was cancelled"),
        StreamStart::Unsolicited => panic!("the stream was not requested"),
    }
}

#[test]
fn rsp_01_fetch_succeeds() {
    let (mut session, log) = (session(), Log::default());
    let ticket = session.fetch_chunk(1, 0).unwrap();
    wait(&mut session, ticket, &log.waker("fetch"));
    assert_eq!(session.requests.len(), 1);
    assert!(session.requests.is_chunk_pending(1, 0));

    complete_chunk(&mut session, 0, body("chunk"));
    assert_eq!(log.take(), ["fetch"]);
    assert_eq!(session.requests.len(), 0);
    assert_eq!(outcome(&mut session, ticket).unwrap().into_body().unwrap(), "chunk");
    assert!(
        session.requests.complete_fetch(1, 0, body("again")).is_err(),
        "a second response must match no request"
    );
}

#[test]
fn rsp_02_fetch_fails() {
    let mut session = session();
    let ticket = session.fetch_chunk(1, 0).unwrap();
    assert_eq!(session.requests.len(), 1);
    complete_chunk(&mut session, 0, Err(failure("some error")));
    assert_eq!(outcome(&mut session, ticket).unwrap_err().to_string(), "some error");
    assert_eq!(session.requests.len(), 0);
}

#[test]
fn rsp_03_end_fails_all_pending_requests() {
    let mut session = session();
    let tickets: Vec<_> = (0..3).map(|index| session.fetch_chunk(1, index).unwrap()).collect();
    assert_eq!(session.requests.len(), 3);
    complete_chunk(&mut session, 0, body("chunk"));
    drop(session.close_with(TransportError::new(ErrorKind::Io, "duh duh duhhhh"), &mut Vec::new()));

    assert!(outcome(&mut session, tickets[0]).is_ok());
    for ticket in &tickets[1..] {
        let error = outcome(&mut session, *ticket).unwrap_err();
        assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Io, "duh duh duhhhh"));
    }
    assert_eq!(session.requests.len(), 0);
}

/// Fetches fail first, then RPCs, then streams, each once.
#[test]
fn rsp_03_requests_fail_in_fixed_order() {
    let (mut session, log) = (session(), Log::default());
    let tickets = [
        (session.stream("first").unwrap(), "first stream"),
        (session.send_rpc(&mut Bytes::new()).unwrap(), "rpc"),
        (session.fetch_chunk(1, 0).unwrap(), "fetch"),
        (session.stream("second").unwrap(), "second stream"),
        (session.upload(&mut Bytes::new(), &"data".into()).unwrap(), "rpc"),
        (session.fetch_chunk(1, 1).unwrap(), "fetch"),
    ];
    for (ticket, name) in tickets {
        wait(&mut session, ticket, &log.waker(name));
    }
    session.requests.is_receiving_stream = true;
    assert_eq!(session.requests.len(), 7);

    let mut wakers = Vec::new();
    drop(session.close_with(failure("lost"), &mut wakers));
    assert_eq!(log.take(), Vec::<&str>::new(), "no waker may run under the lock");
    wakers.drain(..).for_each(Waker::wake);
    assert_eq!(log.take(), ["fetch", "fetch", "rpc", "rpc", "first stream", "second stream"]);
    assert_eq!(session.requests.len(), 0);
    drop(session.close_with(failure("again"), &mut wakers));
    assert!(wakers.is_empty());
    for (ticket, _) in tickets {
        assert_eq!(outcome(&mut session, ticket).unwrap_err().to_string(), "lost");
    }
    assert_eq!(
        session.send_rpc(&mut Bytes::new()).unwrap_err().to_string(),
        "again",
        "a closed session must return its reason"
    );
}

#[test]
fn rsp_04_rpc_succeeds() {
    let (mut session, log) = (session(), Log::default());
    let ticket = session.send_rpc(&mut Bytes::from("request")).unwrap();
    wait(&mut session, ticket, &log.waker("rpc"));
    for unknown in
        [0, -1, i64::MIN, i64::MAX, ticket.id() + 1, ticket.id() + (1 << 32), !ticket.id()]
    {
        assert!(!session.requests.is_rpc_pending(unknown));
        assert!(
            session.requests.complete_rpc(unknown, body("other")).is_err(),
            "{unknown} is unknown"
        );
    }
    assert_eq!((session.requests.len(), log.take().len()), (1, 0));

    assert!(session.requests.is_rpc_pending(ticket.id()));
    let waker = session.requests.complete_rpc(ticket.id(), body("answer")).unwrap();
    waker.unwrap().wake();
    assert_eq!(log.take(), ["rpc"]);
    assert_eq!(session.requests.len(), 0);
    assert!(session.requests.complete_rpc(ticket.id(), body("again")).is_err(), "once");
    assert_eq!(outcome(&mut session, ticket).unwrap().into_body().unwrap(), "answer");
}

#[test]
fn rsp_05_rpc_fails() {
    let mut session = session();
    let ticket = session.send_rpc(&mut Bytes::from("request")).unwrap();
    assert!(session.requests.complete_rpc(ticket.id() ^ 1, Err(failure("unknown"))).is_err());
    assert_eq!(session.requests.len(), 1);
    assert!(session.requests.complete_rpc(ticket.id(), Err(failure("the reason"))).is_ok());
    assert_eq!(outcome(&mut session, ticket).unwrap_err().to_string(), "the reason");
    assert_eq!(session.requests.len(), 0);
}

/// Responses are matched by the id on the wire, which is positive as in Spark.
#[test]
fn rsp_04_wire_ids_match_responses_to_requests() {
    let mut session = session();
    let tickets: Vec<_> =
        (0..10).map(|_| session.send_rpc(&mut Bytes::from("x")).unwrap()).collect();
    let sent = messages(&drain(&mut session.outgoing));
    for (ticket, message) in tickets.into_iter().zip(sent) {
        let Message::RpcRequest { request_id, .. } = message else { panic!("{message:?}") };
        assert!(request_id > 0);
        assert!(session.requests.complete_rpc(request_id, body("y")).is_ok());
        assert!(outcome(&mut session, ticket).is_ok());
    }
}

/// One request completes before its first poll. Another is polled twice, and the second waker is
/// woken.
#[test]
fn rsp_04_response_before_first_poll_and_between_polls_is_returned() {
    let (mut session, log) = (session(), Log::default());
    let early = session.send_rpc(&mut Bytes::new()).unwrap();
    assert!(session.requests.complete_rpc(early.id(), body("early")).unwrap().is_none());
    assert!(outcome(&mut session, early).is_ok());

    let moved = session.send_rpc(&mut Bytes::new()).unwrap();
    wait(&mut session, moved, &log.waker("old task"));
    wait(&mut session, moved, &log.waker("new task"));
    session.requests.complete_rpc(moved.id(), body("answer")).unwrap().unwrap().wake();
    assert_eq!(log.take(), ["new task"]);
}

#[test]
fn rsp_06_streams_are_pending_until_their_body_ends() {
    let mut session = session();
    let ticket = session.stream("stream").unwrap();
    assert_eq!(session.requests.len(), 1);
    let pipe = start_stream(session.requests.start_stream("stream", 1234));
    session.requests.is_receiving_stream = true;
    assert_eq!(session.requests.len(), 1, "a stream is pending while its body arrives");
    session.requests.is_receiving_stream = false;
    assert_eq!(session.requests.len(), 0);
    let stream = outcome(&mut session, ticket).unwrap().into_stream().unwrap();
    assert_eq!((stream.len(), stream.remaining(), stream.stream_id()), (1234, 1234, "stream"));
    drop(pipe);

    let ticket = session.stream("stream").unwrap();
    assert_eq!(session.requests.len(), 1);
    assert!(session.requests.fail_stream(failure("no such stream")).is_ok());
    assert_eq!(session.requests.len(), 0);
    assert_eq!(outcome(&mut session, ticket).unwrap_err().to_string(), "no such stream");
}

/// A queued stream fails when the connection ends, by a close or by an error.
#[test]
fn rsp_07_and_08_queued_streams_fail_on_close_and_on_error() {
    for end in [TransportError::closed("peer:1"), TransportError::new(ErrorKind::Protocol, "Oops!")]
    {
        let (mut session, log) = (session(), Log::default());
        let ticket = session.stream("stream").unwrap();
        wait(&mut session, ticket, &log.waker("stream"));
        let mut wakers = Vec::new();
        drop(session.close_with(end.clone(), &mut wakers));
        wakers.into_iter().for_each(Waker::wake);
        assert_eq!(log.take(), ["stream"]);
        let error = outcome(&mut session, ticket).unwrap_err();
        assert_eq!((error.kind(), error.to_string()), (end.kind(), end.to_string()));
        assert_eq!(session.requests.len(), 0);
    }
}

fn meta_request() -> MergedBlockMetaRequest {
    MergedBlockMetaRequest {
        request_id: 0,
        app_id: "app".into(),
        shuffle_id: 1,
        shuffle_merge_id: 2,
        reduce_id: 3,
    }
}

#[test]
fn rsp_09_merged_block_meta_succeeds() {
    let mut session = session();
    let ticket = session.merged_block_meta(meta_request()).unwrap();
    let sent = messages(&drain(&mut session.outgoing));
    let request = MergedBlockMetaRequest { request_id: ticket.id(), ..meta_request() };
    assert_eq!(sent, [Message::MergedBlockMetaRequest(request)]);

    let body = Bytes::from_static(b"bitmaps");
    let meta = MergedBlockMeta { num_chunks: 2, body: body.clone() };
    assert!(
        session
            .requests
            .complete_rpc(ticket.id() + 1, Ok(Response::MergedBlockMeta(meta.clone())))
            .is_err()
    );
    assert_eq!(session.requests.len(), 1);
    assert!(
        session.requests.complete_rpc(ticket.id(), Ok(Response::MergedBlockMeta(meta))).is_ok()
    );
    assert_eq!(session.requests.len(), 0);
    let meta = outcome(&mut session, ticket).unwrap().into_meta().unwrap();
    assert_eq!((meta.num_chunks, meta.body), (2, body));
}

#[test]
fn rsp_10_merged_block_meta_fails() {
    let mut session = session();
    let ticket = session.merged_block_meta(meta_request()).unwrap();
    assert!(session.requests.complete_rpc(ticket.id(), Err(failure("no meta"))).is_ok());
    assert_eq!(outcome(&mut session, ticket).unwrap_err().to_string(), "no meta");
    assert_eq!(session.requests.len(), 0);
}

/// A fetch cannot be cancelled on the wire, so its chunk stays pending until the response.
#[test]
fn rsp_01_cancelled_fetch_stays_pending_until_response() {
    let mut session = session();
    let dropped = session.fetch_chunk(1, 0).unwrap();
    let refused = session.fetch_chunk(1, 0).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::AlreadyPending);
    assert!(refused.to_string().contains("chunk 0 of stream 1"), "{refused}");
    let other = session.fetch_chunk(1, 1).unwrap();

    assert!(session.requests.cancel(dropped).is_none());
    assert!(
        !session.requests.is_chunk_pending(1, 0),
        "the body of a cancelled fetch must be discarded"
    );
    assert_eq!(session.requests.len(), 2, "the cancelled fetch must stay pending");
    assert_eq!(session.fetch_chunk(1, 0).unwrap_err().kind(), ErrorKind::AlreadyPending);

    assert!(session.requests.complete_fetch(1, 0, body("late")).unwrap().is_none());
    assert_eq!(session.requests.len(), 1);
    assert!(is_pending(&mut session, other));
    let again = session.fetch_chunk(1, 0).unwrap();
    complete_chunk(&mut session, 0, body("new"));
    assert_eq!(outcome(&mut session, again).unwrap().into_body().unwrap(), "new");
    // Three requests were queued: the rejected ones sent nothing.
    assert_eq!(messages(&drain(&mut session.outgoing)).len(), 3);
}

/// A cancelled stream keeps its place in the order, and its body is discarded.
#[test]
fn rsp_06_cancelled_stream_keeps_its_place_in_order() {
    let mut session = session();
    let [first, second, third] =
        ["first", "second", "third"].map(|name| session.stream(name).unwrap());
    assert!(session.requests.cancel(first).is_none());
    assert!(session.requests.cancel(second).is_none());
    assert_eq!(session.requests.len(), 3);
    assert!(matches!(session.requests.start_stream("first", 10), StreamStart::Discard));
    assert!(session.requests.fail_stream(failure("of the second")).unwrap().is_none());
    assert!(is_pending(&mut session, third));
    assert_eq!(session.requests.len(), 1);
    // Streams are matched by their order, not by the id in the response.
    let _pipe = start_stream(session.requests.start_stream("another name", 10));
    let stream = outcome(&mut session, third).unwrap().into_stream().unwrap();
    assert_eq!((stream.len(), stream.stream_id()), (10, "another name"));
}

#[test]
fn rsp_06_unsolicited_streams_are_distinguished() {
    let mut session = session();
    assert!(matches!(session.requests.start_stream("s", 1), StreamStart::Unsolicited));
    assert!(session.requests.fail_stream(failure("s")).is_err());
    let rpc = session.send_rpc(&mut Bytes::new()).unwrap();
    let fetch = session.fetch_chunk(1, 0).unwrap();
    assert!(matches!(session.requests.start_stream("s", 1), StreamStart::Unsolicited));
    assert!(is_pending(&mut session, rpc) && is_pending(&mut session, fetch));
    assert_eq!(session.requests.len(), 2);
}

/// A cancelled RPC is removed, so its response is unknown.
#[test]
fn rsp_04_cancelled_rpc_is_removed() {
    let mut session = session();
    let ticket = session.send_rpc(&mut Bytes::new()).unwrap();
    assert!(session.requests.cancel(ticket).is_none());
    assert_eq!(session.requests.len(), 0);
    assert!(!session.requests.is_rpc_pending(ticket.id()));
    assert!(session.requests.complete_rpc(ticket.id(), body("late")).is_err());
    assert!(session.requests.cancel(ticket).is_none(), "a second cancel must have no effect");
    assert_eq!(session.requests.len(), 0);
}

/// A response that was not polled is returned by the cancel, for the caller to drop outside of the
/// lock.
#[test]
fn rsp_04_unread_response_is_returned_on_cancel() {
    let mut session = session();
    let ticket = session.send_rpc(&mut Bytes::new()).unwrap();
    assert!(session.requests.complete_rpc(ticket.id(), body("answer")).is_ok());
    let unclaimed = session.requests.cancel(ticket).expect("the response");
    assert_eq!(unclaimed.unwrap().into_body().unwrap(), "answer");
    assert_eq!(session.requests.len(), 0);
}

/// Ids are not reused directly: a late response matches no request, even if the slot is in use
/// again.
#[test]
fn rsp_04_late_response_does_not_complete_newer_request() {
    let mut session = session();
    let mut dropped = Vec::new();
    for round in 0..100 {
        let old = session.send_rpc(&mut Bytes::new()).unwrap();
        session.requests.cancel(old);
        dropped.push(old.id());
        let new = match round % 3 {
            0 => session.send_rpc(&mut Bytes::new()).unwrap(),
            1 => session.fetch_chunk(1, round).unwrap(),
            _ => session.stream("s").unwrap(),
        };
        for id in &dropped {
            assert!(session.requests.complete_rpc(*id, body("late")).is_err());
        }
        assert!(is_pending(&mut session, new));
    }
    dropped.sort_unstable();
    dropped.dedup();
    assert_eq!(dropped.len(), 100);
    assert_eq!(session.requests.len(), 100);
}

/// The id of a fetch or stream matches no RPC response, even if a peer guesses it.
#[test]
fn rsp_04_fetches_and_streams_are_not_completed_by_id() {
    let mut session = session();
    let fetch = session.fetch_chunk(1, 0).unwrap();
    let stream = session.stream("s").unwrap();
    for ticket in [fetch, stream] {
        assert!(session.requests.complete_rpc(ticket.id(), body("wrong")).is_err());
        assert!(is_pending(&mut session, ticket));
    }
    assert_eq!(session.requests.len(), 2);
}

/// The end of the connection removes cancelled requests without a wake-up, and keeps received
/// responses.
#[test]
fn rsp_03_end_removes_cancelled_requests_and_keeps_responses() {
    let (mut session, log) = (session(), Log::default());
    let fetch = session.fetch_chunk(1, 0).unwrap();
    let stream = session.stream("s").unwrap();
    let rpc = session.send_rpc(&mut Bytes::new()).unwrap();
    for (ticket, name) in [(fetch, "fetch"), (stream, "stream"), (rpc, "rpc")] {
        wait(&mut session, ticket, &log.waker(name));
    }
    session.requests.cancel(fetch);
    session.requests.cancel(stream);
    assert!(session.requests.complete_rpc(rpc.id(), body("answer")).is_ok());
    let mut wakers = Vec::new();
    drop(session.close_with(failure("lost"), &mut wakers));
    assert!(wakers.is_empty());
    assert_eq!(session.requests.len(), 0);
    assert_eq!(outcome(&mut session, rpc).unwrap().into_body().unwrap(), "answer");
}

/// Waiters for capacity or for the end are woken once.
#[test]
fn rsp_03_capacity_waiters_are_woken_at_end() {
    let (mut session, log) = (session(), Log::default());
    let waker = log.waker("waiter");
    session.register_capacity_waker(&waker);
    session.register_capacity_waker(&waker);
    let mut wakers = Vec::new();
    drop(session.close_with(failure("lost"), &mut wakers));
    wakers.drain(..).for_each(Waker::wake);
    assert_eq!(log.take(), ["waiter"]);
    drop(session.close_with(failure("lost"), &mut wakers));
    assert!(wakers.is_empty());
}

/// A closing session accepts no requests. A flush may become an immediate close, not the reverse.
#[test]
fn rsp_03_closing_session_rejects_requests() {
    let mut session = session();
    let early = session.send_rpc(&mut Bytes::new()).unwrap();
    session.close(CloseRequest::AfterFlush(failure("flush")));
    assert!(!session.is_open());
    assert_eq!(session.send_rpc(&mut Bytes::new()).unwrap_err().to_string(), "flush");
    assert_eq!(session.send_one_way(&mut Bytes::new()).unwrap_err().to_string(), "flush");
    session.close(CloseRequest::Immediate(failure("now")));
    session.close(CloseRequest::AfterFlush(failure("too late")));
    assert!(
        matches!(session.close_request(), Some(CloseRequest::Immediate(error)) if error.to_string() == "now")
    );
    assert!(session.fetch_chunk(1, 0).is_err() && session.stream("s").is_err());
    assert!(session.upload(&mut Bytes::new(), &"data".into()).is_err());
    assert!(session.merged_block_meta(meta_request()).is_err());
    assert_eq!(session.requests.len(), 1);
    assert!(is_pending(&mut session, early), "earlier requests must stay pending");
}
