//! Raw servers that misbehave towards a client of this crate.

#![allow(clippy::unwrap_used, reason = "tests")]

mod hostile_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use hostile_support::*;
use network_common::{
    BoxError, ErrorKind, ManagedBuffer, RpcHandler, RpcResponseCallback, StreamBody,
    TransportClient, TransportConf, TransportContext, TransportError,
};
use tokio::io::AsyncWriteExt;

/// Returns the id of the next request, which must be of type `kind`. Reads only the frame of an
/// upload, not its data.
async fn request_id(raw: &mut RawPeer, kind: u8) -> i64 {
    let frame = raw.frame().await.expect("a request");
    assert_eq!(frame.kind, kind);
    frame.long(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rsp_04_05_unordered_duplicate_and_unknown_responses_complete_rpcs_once() {
    let (mut raw, client, _context) = raw_server().await;
    let calls: Vec<_> = (0..8_u8).map(|i| client.send_rpc(vec![i])).collect();
    let mut ids = Vec::new();
    for _ in &calls {
        ids.push(request_id(&mut raw, RPC_REQUEST).await);
    }
    let mut answers = Vec::new();
    for (i, id) in ids.iter().enumerate().rev() {
        // Unknown ids that differ from the real one by few bits.
        for wrong in
            [!id, id ^ (1 << 63), id ^ (1 << 32), id ^ 0x7fff_ffff, 0, -1, i64::MIN, i64::MAX]
        {
            answers.push(rpc_response(wrong, b"wrong"));
            answers.push(rpc_failure(wrong, "wrong"));
            answers.push(rpc_response(wrong, &[9; 10_000]));
        }
        if i == 3 {
            answers.push(rpc_failure(*id, "the third fails"));
        }
        answers.push(rpc_response(*id, &[i as u8, 1]));
        answers.push(rpc_response(*id, b"twice"));
        answers.push(rpc_response(*id, &vec![8; 100_000]));
        answers.push(rpc_failure(*id, "twice"));
    }
    raw.send(&answers.concat()).await;
    for (i, call) in calls.into_iter().enumerate() {
        let result = within("a response", call).await;
        if i == 3 {
            let error = result.unwrap_err();
            assert_eq!((error.kind(), error.is_remote()), (ErrorKind::Remote, true));
            assert!(format!("{error:#}").contains("the third fails"));
        } else {
            assert_eq!(result.unwrap(), [i as u8, 1][..]);
        }
    }
    assert_eq!(client.pending_requests(), 0);
    assert!(client.is_active());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_responses_do_not_complete_newer_request_in_same_slot() {
    let (mut raw, client, _context) = raw_server().await;
    let mut old = Vec::new();
    for _ in 0..50 {
        let cancelled = client.send_rpc("cancelled");
        old.push(request_id(&mut raw, RPC_REQUEST).await);
        drop(cancelled);
        assert_eq!(client.pending_requests(), 0);
    }
    let call = client.send_rpc("kept");
    let id = request_id(&mut raw, RPC_REQUEST).await;
    assert!(!old.contains(&id));
    let late: Vec<u8> = old.iter().flat_map(|id| rpc_response(*id, b"late")).collect();
    raw.send(&late).await;
    raw.send(&rpc_response(id, b"in time")).await;
    assert_eq!(within("the response", call).await.unwrap(), "in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn responses_of_wrong_type_fail_only_their_request() {
    let (mut raw, client, _context) = raw_server().await;
    for large in [0, 100_000] {
        let body = vec![0; large];
        let call = client.send_rpc("rpc");
        let id = request_id(&mut raw, RPC_REQUEST).await;
        raw.send(&meta_success(id, 0, &body)).await;
        let error = within("a response", call).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol);
        assert!(format!("{error:#}").contains("another kind"), "{error}");

        let call = client.merged_block_meta("app", 1, 2, 3);
        let id = request_id(&mut raw, META_REQUEST).await;
        raw.send(&rpc_response(id, &body)).await;
        assert_eq!(within("a response", call).await.unwrap_err().kind(), ErrorKind::Protocol);

        let call = client.upload_stream("meta", "data");
        let id = request_id(&mut raw, UPLOAD).await;
        let mut data = [0; 4];
        within("data", tokio::io::AsyncReadExt::read_exact(&mut raw.0, &mut data)).await.unwrap();
        raw.send(&meta_success(id, 1, &body)).await;
        assert_eq!(within("a response", call).await.unwrap_err().kind(), ErrorKind::Protocol);

        // Chunks and streams have no request id, so these responses match no request.
        let mut chunk = client.fetch_chunk(5, 6);
        let mut stream = client.stream("s");
        raw.frame().await.unwrap();
        raw.frame().await.unwrap();
        for id in [5, 6, (5 << 32) | 6] {
            raw.send(&[rpc_response(id, &body), rpc_failure(id, "no")].concat()).await;
        }
        raw.send(&chunk_failure(6, 5, "another chunk")).await;
        let call = client.send_rpc("barrier");
        let id = request_id(&mut raw, RPC_REQUEST).await;
        raw.send(&rpc_response(id, b"")).await;
        within("the barrier", call).await.unwrap();
        assert!((&mut chunk).now_or_never().is_none() && (&mut stream).now_or_never().is_none());
        raw.send(&chunk_failure(5, 6, "this chunk")).await;
        raw.send(&stream_failure("whatever name", "this stream")).await;
        let error = within("the chunk", chunk).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ChunkFetchFailure);
        assert!(format!("{error:#}").contains("this chunk"));
        let error = within("the stream", stream).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StreamFailure);
    }
    let call = client.merged_block_meta("app", 1, 2, 3);
    let id = request_id(&mut raw, META_REQUEST).await;
    raw.send(&meta_success(id, i32::MAX, b"no bitmaps")).await;
    let meta = within("the meta", call).await.unwrap();
    assert_eq!(meta.num_chunks, i32::MAX);
    // Invalid bitmaps are reported by the call that decodes them.
    #[cfg(feature = "merged-blocks")]
    meta.bitmaps().unwrap_err();
    assert_eq!(client.pending_requests(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unsolicited_chunks_and_stream_failures_are_discarded() {
    let (mut raw, client, context) = raw_server().await;
    let fetch = client.fetch_chunk(1, 1);
    raw.frame().await.unwrap();
    raw.send(&stream_failure("unsolicited", "failure")).await;
    raw.send(&chunk_success(1, 2, b"small")).await;
    raw.send(&chunk_success(2, 1, &vec![1; 10 << 20])).await;
    raw.send(&chunk_failure(3, 3, "no")).await;
    raw.send(&chunk_success(1, 1, &vec![2; 10 << 20])).await;
    let body = within("the chunk", fetch).await.unwrap();
    assert!(body.len() == 10 << 20 && body.iter().all(|byte| *byte == 2));
    // The same chunk once more, unsolicited.
    raw.send(&chunk_success(1, 1, &vec![3; 10 << 20])).await;
    let call = client.send_rpc("alive?");
    let id = request_id(&mut raw, RPC_REQUEST).await;
    raw.send(&rpc_response(id, b"yes")).await;
    assert_eq!(within("the response", call).await.unwrap(), "yes");
    assert_eq!(client.pending_requests(), 0);
    let direct = context.metrics().client().snapshot().direct_body_bytes;
    assert!(direct <= 10 << 20, "discarded bodies must not be collected");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_fetch_keeps_its_slot_until_response_arrives() {
    let (mut raw, client, _context) = raw_server().await;
    for length in [10, 5 << 20] {
        drop(client.fetch_chunk(1, 1));
        raw.frame().await.unwrap();
        assert_eq!(client.pending_requests(), 1);
        let error = within("the rejection", client.fetch_chunk(1, 1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyPending);
        raw.send(&chunk_success(1, 1, &vec![0; length])).await;
        let c = client.clone();
        eventually("the cancelled fetch is removed", move || c.pending_requests() == 0).await;
        let again = client.fetch_chunk(1, 1);
        raw.frame().await.unwrap();
        raw.send(&chunk_success(1, 1, b"again")).await;
        assert_eq!(within("the chunk", again).await.unwrap(), "again");
    }
    // Cancelled streams stay in the queue, and their bodies are discarded.
    let (first, second, third) = (client.stream("1"), client.stream("2"), client.stream("3"));
    drop((first, second));
    raw.send(&[stream_response("1", 3 << 20), vec![0; 3 << 20]].concat()).await;
    raw.send(
        &[stream_response("2", 2), b"no".to_vec(), stream_response("3", 3), b"yes".to_vec()]
            .concat(),
    )
    .await;
    let body = within("the third", third).await.unwrap();
    assert_eq!(within("its body", body.collect()).await.unwrap(), "yes");
    assert_eq!(client.pending_requests(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unsolicited_stream_response_closes_connection() {
    for count in [5, 0, -1] {
        let (mut raw, client, _context) = raw_server().await;
        let peer = client.peer_addr();
        let (rpc, chunk) = (client.send_rpc("no response"), client.fetch_chunk(1, 1));
        raw.frame().await.unwrap();
        raw.frame().await.unwrap();
        raw.send(&stream_response("surprise", count)).await;
        raw.assert_closed_without_data("unsolicited stream").await;
        for error in [
            within("the rpc", rpc).await.unwrap_err(),
            within("the chunk", chunk).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Protocol);
            let text = format!("{error:#}");
            assert!(text.contains("unsolicited stream response 'surprise'"), "{text}");
            assert!(text.contains(&peer.to_string()), "{text}");
        }
        assert_eq!(within("closed", client.closed()).await.kind(), ErrorKind::Protocol);
        assert!(!client.is_active());
        assert_eq!(client.pending_requests(), 0);
        assert!(within("the rejection", client.send_rpc("x")).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rsp_06_stream_bodies_of_every_announced_length_are_received() {
    let (mut raw, client, _context) = raw_server().await;
    for count in [0, -1, i64::MIN] {
        let stream = client.stream("s");
        raw.frame().await.unwrap();
        raw.send(&stream_response("the server's name", count)).await;
        let body = within("the stream", stream).await.unwrap();
        assert_eq!((body.len(), body.stream_id()), (0, "the server's name"));
        assert_eq!(within("the body", body.collect()).await.unwrap(), "");
        assert_eq!(client.pending_requests(), 0);
    }
    // A huge announced length, then EOF: received bytes are delivered, then the error.
    for arrives in [0, 1, 70_000, 3_000_000] {
        let (mut raw, client, _context) = raw_server().await;
        let peer = client.peer_addr();
        let (stream, rpc) = (client.stream("s"), client.send_rpc("pending"));
        raw.frame().await.unwrap();
        raw.send(&stream_response("s", i64::MAX)).await;
        let mut body: StreamBody = within("the stream", stream).await.unwrap();
        assert_eq!(body.len(), i64::MAX as u64);
        let sending = tokio::spawn(async move {
            raw.send(&pattern(arrives)).await;
            drop(raw.0.shutdown().await);
            raw
        });
        let mut got = Vec::new();
        let error = loop {
            match within("a piece", body.next_piece())
                .await
                .expect("an error before the body is complete")
            {
                Ok(piece) => got.extend_from_slice(&piece),
                Err(error) => break error,
            }
        };
        assert_eq!(got, pattern(arrives));
        assert_lost(&error, peer);
        assert!(within("after the error", body.next_piece()).await.is_none());
        assert_lost(&within("the rpc", rpc).await.unwrap_err(), peer);
        drop(sending.await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn responses_split_byte_by_byte_are_decoded() {
    let (mut raw, client, _context) = raw_server().await;
    let (rpc, failing, chunk, stream, meta) = (
        client.send_rpc("1"),
        client.send_rpc("2"),
        client.fetch_chunk(3, 4),
        client.stream("5"),
        client.merged_block_meta("app", 1, 2, 3),
    );
    let first = request_id(&mut raw, RPC_REQUEST).await;
    let second = request_id(&mut raw, RPC_REQUEST).await;
    raw.frame().await.unwrap();
    raw.frame().await.unwrap();
    let third = request_id(&mut raw, META_REQUEST).await;
    let answers = [
        rpc_response(first, b"body"),
        rpc_failure(second, "why not"),
        chunk_success(3, 4, b"chunk"),
        stream_response("5", 6),
        b"stream".to_vec(),
        meta_success(third, 9, b"meta"),
    ];
    let sending = tokio::spawn(async move {
        for byte in answers.concat() {
            raw.send(&[byte]).await;
        }
        raw
    });
    assert_eq!(within("the rpc", rpc).await.unwrap(), "body");
    assert!(within("the failure", failing).await.unwrap_err().to_string().contains("why not"));
    assert_eq!(within("the chunk", chunk).await.unwrap(), "chunk");
    let body = within("the stream", stream).await.unwrap();
    assert_eq!(within("its body", body.collect()).await.unwrap(), "stream");
    let meta = within("the meta", meta).await.unwrap();
    assert_eq!((meta.num_chunks, &meta.body[..]), (9, &b"meta"[..]));
    drop(sending.await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_lost_inside_response_fails_all_pending_requests() {
    for length in [0_usize, 100, 5_000, 1 << 20, 100 << 20] {
        for (which, reset) in [(0, false), (1, false), (2, false), (1, true)] {
            let (mut raw, client, context) = raw_server().await;
            let peer = client.peer_addr();
            let rpc = client.send_rpc("rpc");
            let chunk = client.fetch_chunk(7, 7);
            let upload = client.upload_stream("meta", "");
            let id = request_id(&mut raw, RPC_REQUEST).await;
            raw.frame().await.unwrap();
            raw.frame().await.unwrap();
            let mut answer = match which {
                0 => rpc_response(id, &[]),
                1 => chunk_success(7, 7, &[]),
                _ => rpc_failure(id, ""),
            };
            // Announces one byte more than is sent.
            let announced = (answer.len() + length + 1) as i64;
            answer[..8].copy_from_slice(&announced.to_be_bytes());
            answer.resize(answer.len() + length.min(200_000), 1);
            if which == 2 && length > 1 << 20 {
                // A header over 16 MiB is rejected; the tests of the server cover that.
                continue;
            }
            raw.send(&answer).await;
            if reset {
                raw.reset();
            } else {
                raw.finish_sending().await;
            }
            for error in [
                within("the rpc", rpc).await.unwrap_err(),
                within("the chunk", chunk).await.unwrap_err(),
                within("the upload", upload).await.unwrap_err(),
            ] {
                assert_lost(&error, peer);
                assert!(!error.is_retryable(), "the peer may have executed it");
            }
            assert_lost(&within("closed", client.closed()).await, peer);
            let metrics = context.metrics();
            eventually("the gauges return to 0", || {
                let now = metrics.client().snapshot();
                (now.connections, now.pending_requests, now.write_queue_bytes) == (0, 0, 0)
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upload_fails_when_peer_disconnects() {
    for reset in [false, true] {
        for file in [false, true] {
            let sparse = sparse_file(1 << 30);
            let (raw, client, _context) = raw_server().await;
            let released = LiveCount::default();
            let data = if file {
                ManagedBuffer::file(sparse.path(), 0..1 << 30)
            } else {
                ManagedBuffer::from(vec![0; 64 << 20])
            };
            let upload = client.upload_stream("meta", data.on_release(released.up()));
            let c = client.clone();
            let mut raw = raw;
            let header = raw.frame().await.unwrap();
            assert_eq!(header.kind, UPLOAD);
            if reset {
                raw.reset()
            } else {
                drop(raw)
            }
            let error = within("the upload", upload).await.unwrap_err();
            assert_lost(&error, c.peer_addr());
            eventually("the data is released", || released.now() == 0).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upload_continues_after_early_response() {
    let (mut raw, client, _context) = raw_server().await;
    let upload = client.upload_stream("meta", vec![5; 32 << 20]);
    let id = request_id(&mut raw, UPLOAD).await;
    raw.send(&rpc_response(id, b"early response")).await;
    assert_eq!(within("the response", upload).await.unwrap(), "early response");
    // The protocol cannot cancel an upload: the rest of the data is sent, then the next request.
    let call = client.send_rpc("next");
    let mut data = vec![0; 32 << 20];
    within("the data", tokio::io::AsyncReadExt::read_exact(&mut raw.0, &mut data)).await.unwrap();
    assert!(data.iter().all(|byte| *byte == 5));
    let id = request_id(&mut raw, RPC_REQUEST).await;
    raw.send(&rpc_response(id, b"ok")).await;
    assert_eq!(within("the response", call).await.unwrap(), "ok");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_responses_close_connection_and_fail_pending_requests() {
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (7_i64.to_be_bytes().to_vec(), "Frame length should be positive"),
        (frame(RPC_RESPONSE, &[&[0; 11]]), "body length"),
        (frame(13, &[]), "Unknown message type: 13"),
        (b"HTTP/1.1 400 Bad Request\r\n".to_vec(), "HTTP"),
        (frame(CHUNK_FAILURE, &[&[0; 12], &[0xff; 4]]), "error text"),
    ];
    for (bytes, part) in cases {
        let (mut raw, client, _context) = raw_server().await;
        let calls =
            [client.send_rpc("1"), client.fetch_chunk(1, 1), client.upload_stream("m", "data")];
        let stream = client.stream("s");
        for _ in 0..3 {
            raw.frame().await.unwrap();
        }
        raw.send(&bytes).await;
        for call in calls {
            let error = within("a failure", call).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Protocol);
            assert!(format!("{error:#}").contains(part), "{error}");
            assert!(format!("{error:#}").contains(&client.peer_addr().to_string()));
        }
        assert_eq!(within("the stream", stream).await.unwrap_err().kind(), ErrorKind::Protocol);
    }
}

/// Counts its wake-ups.
struct WakeCounter(AtomicUsize);

impl Wake for WakeCounter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runtime_shutdown_fails_pending_requests_of_other_runtimes() {
    let other =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let context = TransportContext::new(TransportConf::new("test"), ScriptedHandler::default());
    let factory = context.create_client_factory();
    let (f, handle) = (factory.clone(), other.handle().clone());
    let connecting = handle.spawn(async move { f.create_client(address).await });
    let mut raw = RawPeer::accept(&listener).await;
    let client = within("connecting", connecting).await.unwrap().unwrap();
    let peer = client.peer_addr();
    // One stream whose body has begun, and one pending request of every kind.
    let begun = client.stream("begun");
    raw.frame().await.unwrap();
    raw.send(&[stream_response("begun", 100), vec![1; 10]].concat()).await;
    let mut begun = within("the stream", begun).await.unwrap();
    assert_eq!(within("a piece", begun.next_piece()).await.unwrap().unwrap().len(), 10);
    let mut calls =
        vec![client.send_rpc("1"), client.fetch_chunk(1, 1), client.upload_stream("m", "data")];
    let (mut stream, mut meta) = (client.stream("s"), client.merged_block_meta("a", 1, 2, 3));
    let waker = Arc::new(WakeCounter(AtomicUsize::new(0)));
    let task = std::task::Waker::from(Arc::clone(&waker));
    let mut cx = Context::from_waker(&task);
    for call in &mut calls {
        assert!(call.poll_unpin(&mut cx).is_pending());
    }
    assert!(stream.poll_unpin(&mut cx).is_pending() && meta.poll_unpin(&mut cx).is_pending());
    let (c, d) = (client.clone(), client.clone());
    let closed = tokio::spawn(async move { c.closed().await });
    // A task that waits for the next piece of the body.
    let reading =
        tokio::spawn(async move { (begun.next_piece().await, begun.next_piece().await.is_none()) });
    // A connection attempt that never completes: the backlog accepts it, and the bootstrap hangs.
    let bootstrapped = context.create_client_factory_with(vec![Arc::new(EndlessBootstrap)]);
    let attempt = bootstrapped.clone();
    let in_other = handle.spawn(async move { attempt.create_client(address).await.map(drop) });
    let waiting = RawPeer::accept(&listener).await;
    let attempt = bootstrapped.clone();
    // Joins the attempt that runs in the other runtime.
    let mut shared = Box::pin(async move { attempt.create_client(address).await.map(drop) });
    assert!(shared.poll_unpin(&mut cx).is_pending());

    tokio::task::spawn_blocking(move || drop(other)).await.unwrap();
    for call in calls {
        assert_lost(&within("a failure", call).await.unwrap_err(), peer);
    }
    assert_lost(&within("the stream", stream).await.unwrap_err(), peer);
    assert_lost(&within("the meta", meta).await.unwrap_err(), peer);
    assert!(waker.0.load(Ordering::SeqCst) >= 5, "every pending request must be woken");
    assert_lost(&within("closed", closed).await.unwrap(), peer);
    let (error, ended) = within("the reader", reading).await.unwrap();
    assert_lost(&error.unwrap().unwrap_err(), peer);
    assert!(ended);
    assert_lost(&within("afterwards", d.send_rpc("late")).await.unwrap_err(), peer);
    let error = within("the shared attempt", shared).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    drop((in_other, waiting));
    // The factory connects again in this runtime.
    let again = within("connecting again", factory.create_client(address)).await.unwrap();
    let mut raw = RawPeer::accept(&listener).await;
    let call = again.send_rpc("hello");
    let id = request_id(&mut raw, RPC_REQUEST).await;
    raw.send(&rpc_response(id, b"again")).await;
    assert_eq!(within("the response", call).await.unwrap(), "again");
}

struct EndlessBootstrap;

impl network_common::TransportClientBootstrap for EndlessBootstrap {
    fn do_bootstrap<'a>(&'a self, _: &'a TransportClient) -> BoxFuture<'a, Result<(), BoxError>> {
        std::future::pending().boxed()
    }
}

#[test]
fn server_whose_runtime_shuts_down_notifies_handler_and_frees_port() {
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    };
    let (server_side, client_side) = (runtime(), runtime());
    let fixture = server_side.block_on(Fixture::new(&[]));
    let mut raw = client_side.block_on(fixture.raw());
    let peer = local(&raw);
    client_side.block_on(async {
        raw.echo(b"x").await;
        raw.send(&[rpc(1, b"never"), chunk_request(NEVER, 1), upload(2, "sum", 100)].concat())
            .await;
    });
    let handler = Arc::clone(&fixture.handler);
    client_side.block_on(eventually("all requests are active", || {
        handler.futures.now() == 2 && handler.kept.lock().len() == 1
    }));
    drop(server_side);
    client_side.block_on(async {
        raw.read_to_end().await;
        fixture.handler.assert_ended_without_error(peer).await;
        // A late reply has no effect.
        fixture.handler.kept.lock().pop().unwrap().reply("late");
        assert_eq!(fixture.handler.futures.now(), 0);
        let now = fixture.context.metrics().server().snapshot();
        assert_eq!((now.connections, now.active_requests, now.chunks_being_transferred), (0, 0, 0));
        let _ =
            fixture.context.create_server(fixture.address).await.expect("the port must be free");
    });
}

/// Sends over the connection from the release hook of a body.
#[derive(Default)]
struct SendsOnRelease;

impl RpcHandler for SendsOnRelease {
    fn receive(&self, client: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
        drop(message);
        struct Owner(TransportClient);
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                &[1; 100_000]
            }
        }
        impl Drop for Owner {
            fn drop(&mut self) {
                drop(self.0.send("released"));
            }
        }
        callback.reply(Bytes::from_owner(Owner(client.clone())));
    }

    fn receive_merged_block_meta(
        &self,
        client: &TransportClient,
        _: network_common::MergedBlockMetaRequest,
        callback: network_common::MergedBlockMetaCallback,
    ) {
        let client = client.clone();
        let body = ManagedBuffer::from(vec![2; 100_000]);
        callback.reply(1, body.on_release(move || drop(client.send("released"))));
    }

    fn on_network_error(&self, _: &TransportError, _: &TransportClient) {}
}

/// Runs the test in a runtime of its own, so that a deadlock fails the test instead of blocking it.
fn assert_no_deadlock(what: &str, test: impl Future<Output = ()> + Send + 'static) {
    let (done, is_done) = std::sync::mpsc::channel();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.spawn(async move {
        test.await;
        done.send(()).unwrap();
    });
    let result = is_done.recv_timeout(TIMEOUT);
    runtime.shutdown_background();
    result.unwrap_or_else(|_| panic!("{what}"));
}

#[test]
fn release_hooks_can_use_connection() {
    for kind in [RPC_REQUEST, META_REQUEST] {
        assert_no_deadlock("deadlock in a release hook that sends", async move {
            let context = TransportContext::new(TransportConf::new("test"), SendsOnRelease);
            let server = context.create_server("127.0.0.1:0").await.unwrap();
            let mut raw = RawPeer::connect(server.local_addr()).await;
            let request = match kind {
                RPC_REQUEST => rpc(1, b""),
                _ => frame(META_REQUEST, &[&[0; 8], &text("app"), &[0; 12]]),
            };
            raw.send(&request).await;
            let answer = raw.frame().await.unwrap();
            assert_eq!(answer.rest.len(), 100_000 + 12);
            let hook = raw.frame().await.unwrap();
            assert_eq!((hook.kind, &hook.rest[4..]), (ONE_WAY, &b"released"[..]));
            // The same when the connection ends with unsent bodies: the peer requests many, reads
            // nothing, and resets the connection.
            let many: Vec<u8> = (0..200).flat_map(|_| request.clone()).collect();
            raw.send(&many).await;
            raw.reset();
            let metrics = context.metrics();
            eventually("the end", || metrics.server().snapshot().connections == 0).await;
        });
    }
}

#[test]
fn release_hooks_of_rejected_or_unsent_uploads_can_use_connection() {
    assert_no_deadlock("deadlock in a release hook that queries the client", async {
        let (mut raw, client, _context) =
            raw_server_with(&[("spark.test.io.maxWriteQueueSize", "1m")]).await;
        let body = || {
            let client = client.clone();
            ManagedBuffer::from(vec![1; 16 << 20]).on_release(move || {
                let _ = client.pending_requests();
            })
        };
        let first = client.upload_stream("fits into the empty queue", body());
        raw.frame().await.unwrap();
        let refused = within("the rejection", client.upload_stream("refused", body())).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Limit);
        let queued = client.upload_stream(
            "",
            ManagedBuffer::from("").on_release({
                let client = client.clone();
                move || {
                    let _ = client.pending_requests();
                }
            }),
        );
        raw.reset();
        within("the first", first).await.unwrap_err();
        within("the queued", queued).await.unwrap_err();
        // After the connection has ended.
        within("the late", client.upload_stream("late", body())).await.unwrap_err();
    });
}

/// Passes the data of uploads to another task and replies at once.
struct PassesDataOn(tokio::sync::mpsc::UnboundedSender<Result<Bytes, TransportError>>);

impl RpcHandler for PassesDataOn {
    fn receive(&self, _: &TransportClient, _: Bytes, callback: RpcResponseCallback) {
        callback.reply("");
    }

    fn receive_stream(
        &self,
        _: &TransportClient,
        _: Bytes,
        data: StreamBody,
    ) -> BoxFuture<'static, Result<Bytes, BoxError>> {
        let results = self.0.clone();
        async move {
            tokio::spawn(async move { results.send(data.collect().await) });
            Ok(Bytes::from("passed on"))
        }
        .boxed()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upload_data_can_be_read_after_handler_has_completed() {
    let (sender, mut results) = tokio::sync::mpsc::unbounded_channel();
    let context = TransportContext::new(TransportConf::new("test"), PassesDataOn(sender));
    let server = context.create_server("127.0.0.1:0").await.unwrap();
    for _ in 0..5 {
        let mut raw = RawPeer::connect(server.local_addr()).await;
        raw.send(&upload(1, "", 5_000_000)).await;
        let data = pattern(5_000_000);
        for piece in data.chunks(100_000) {
            raw.send(piece).await;
        }
        let answer = raw.frame().await.unwrap();
        assert_eq!((answer.kind, &answer.rest[12..]), (RPC_RESPONSE, &b"passed on"[..]));
        let result = within("the data", results.recv()).await.unwrap();
        assert_eq!(result.unwrap(), data);
    }
}

/// A reset by the peer while this side is closing is an expected end, not an error.
#[tokio::test]
async fn reset_while_closing_is_no_error() {
    let (raw, client, context) = raw_server().await;
    client.send(vec![0; 32 << 20]).unwrap();
    eventually("the socket is full", || context.metrics().client().snapshot().sent_bytes > 0).await;
    client.close();
    raw.reset();
    assert_eq!(within("the end", client.closed()).await.kind(), ErrorKind::Closed);
    assert_eq!(context.metrics().client().snapshot().failures, []);
}
