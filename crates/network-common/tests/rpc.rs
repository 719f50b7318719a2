//! RPCs and uploads between two ends of this crate: Spark's `RpcIntegrationSuite` (rows `rpc_01` to
//! `rpc_10`), calls in both directions, and handlers that panic or never reply.

// Helper functions outside of tests unwrap as well.
#![allow(clippy::unwrap_used)]

mod support;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use futures::future::join_all;
use network_common::{BoxError, ErrorKind, ManagedBuffer, RpcResponseCallback, TransportError};
use parking_lot::Mutex;
use support::*;
use tokio::sync::{mpsc, oneshot};

/// Returns a handler for `hello/x`, `return error/x` and `throw error/x`.
fn command_handler() -> Handler {
    Handler::new().on_rpc(|_, message, callback| {
        let text = std::str::from_utf8(&message).unwrap();
        match text.split_once('/') {
            Some(("hello", name)) => callback.reply(format!("Hello, {name}!")),
            Some(("return error", error)) => callback.fail(format_args!("Returned: {error}")),
            Some(("throw error", error)) => panic!("Thrown: {error}"),
            _ => callback.reply(message),
        }
    })
}

/// Sends all commands at once. Returns the replies and the errors.
async fn send_all(pair: &Pair, commands: &[&'static str]) -> (Vec<Bytes>, Vec<TransportError>) {
    let sent: Vec<_> = commands.iter().map(|command| pair.client.send_rpc(*command)).collect();
    let (mut answers, mut errors) = (Vec::new(), Vec::new());
    for outcome in within(join_all(sent)).await {
        match outcome {
            Ok(answer) => answers.push(answer),
            Err(error) => errors.push(error),
        }
    }
    pair.assert_alive().await;
    (answers, errors)
}

fn assert_remote(error: &TransportError, text: &str) {
    assert_eq!(error.kind(), ErrorKind::Remote);
    assert!(error.is_remote() && !error.is_timeout() && !error.is_retryable());
    assert!(error.peer().is_some());
    assert!(error.to_string().contains(text), "{error}");
}

#[tokio::test]
async fn rpc_01_single_rpc_returns_reply() {
    let pair = pair(command_handler()).await;
    let (answers, errors) = send_all(&pair, &["hello/Aaron"]).await;
    assert_eq!(answers, ["Hello, Aaron!"]);
    assert!(errors.is_empty());
    pair.assert_no_failures();
}

#[tokio::test]
async fn rpc_02_two_rpcs_return_their_replies() {
    let pair = pair(command_handler()).await;
    let (answers, errors) = send_all(&pair, &["hello/Aaron", "hello/Reynold"]).await;
    assert_eq!(answers, ["Hello, Aaron!", "Hello, Reynold!"]);
    assert!(errors.is_empty());
}

#[tokio::test]
async fn rpc_03_failed_rpc_returns_remote_error() {
    let pair = pair(command_handler()).await;
    let (answers, errors) = send_all(&pair, &["return error/OK"]).await;
    assert!(answers.is_empty());
    assert_remote(&errors[0], "Returned: OK");
    pair.assert_no_failures();
}

/// Throwing maps to panicking. Unlike Java's stack trace, the panic's text is not sent.
#[tokio::test]
async fn rpc_04_panicking_handler_returns_remote_error() {
    let pair = pair(command_handler()).await;
    let (answers, errors) = send_all(&pair, &["throw error/uh-oh"]).await;
    assert!(answers.is_empty());
    assert_remote(&errors[0], "panicked");
    pair.assert_no_failures();
}

#[tokio::test]
async fn rpc_05_two_failing_rpcs_return_both_errors() {
    let pair = pair(command_handler()).await;
    let (answers, errors) = send_all(&pair, &["return error/OK", "throw error/uh-oh"]).await;
    assert!(answers.is_empty());
    assert_eq!(errors.len(), 2);
    assert_remote(&errors[0], "Returned: OK");
    assert_remote(&errors[1], "panicked");
}

#[tokio::test]
async fn rpc_06_successes_and_failures_reach_their_callers() {
    let pair = pair(command_handler()).await;
    let commands = ["hello/Bob", "throw error/the", "hello/Builder", "return error/!"];
    let (answers, errors) = send_all(&pair, &commands).await;
    assert_eq!(answers, ["Hello, Bob!", "Hello, Builder!"]);
    assert_remote(&errors[0], "panicked");
    assert_remote(&errors[1], "Returned: !");
}

#[tokio::test]
async fn rpc_07_one_way_message_arrives_once() {
    let (arrived, mut messages) = mpsc::unbounded_channel();
    let handler = command_handler().on_one_way(move |_, message| arrived.send(message).unwrap());
    let pair = pair(handler).await;
    pair.client.send("no reply").unwrap();
    assert_eq!(pair.client.pending_requests(), 0);
    assert_eq!(within(messages.recv()).await.unwrap(), "no reply");
    // A duplicate would arrive before the message that is sent later.
    pair.client.send(pattern(100_000, 1)).unwrap();
    pair.assert_alive().await;
    assert_eq!(messages.try_recv().unwrap(), pattern(100_000, 1));
    assert!(messages.try_recv().is_err());
}

/// Messages of one caller arrive in the order of the calls, whatever their type.
#[tokio::test(flavor = "multi_thread")]
async fn rpcs_and_one_way_messages_arrive_in_call_order() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (rpcs, one_ways) = (Arc::clone(&seen), Arc::clone(&seen));
    let number = |message: &Bytes| u32::from_be_bytes(message[..4].try_into().unwrap());
    let handler = Handler::new()
        .on_rpc(move |_, message, callback| {
            rpcs.lock().push(number(&message));
            callback.reply(message);
        })
        .on_one_way(move |_, message| one_ways.lock().push(number(&message)));
    let pair = pair(handler).await;
    let mut answers = Vec::new();
    for i in 0..3000_u32 {
        // Small messages, and some larger than every buffer on the way.
        let mut message = BytesMut::zeroed(if i % 100 == 0 { 200_000 } else { 4 });
        message[..4].copy_from_slice(&i.to_be_bytes());
        if i % 3 == 0 {
            pair.client.send(message).unwrap();
        } else {
            answers.push((i, pair.client.send_rpc(message)));
        }
        if i % 500 == 0 {
            tokio::task::yield_now().await;
        }
    }
    for (i, answer) in answers {
        assert_eq!(number(&within(answer).await.unwrap()), i);
    }
    assert!(seen.lock().iter().copied().eq(0..3000));
}

/// Meta and data of each upload that arrived completely.
type Received = Arc<Mutex<Vec<(Bytes, Bytes)>>>;

/// Returns a handler that stores each upload's data and replies with the number of bytes. Metas
/// `fail/...` fail in the three ways of row `rpc_10`.
fn upload_handler() -> (Handler, Received) {
    let received = Received::default();
    let store = Arc::clone(&received);
    let handler = Handler::new().on_upload(move |meta, mut data| {
        let store = Arc::clone(&store);
        async move {
            match &meta[..] {
                b"fail/data" => {
                    data.next_piece().await.ok_or("no data")??;
                    return Err("fail/data".into());
                }
                b"fail/null" => return Err("fail/null".into()),
                b"fail/panic" => panic!("fail/panic"),
                b"skip" => return Ok("skipped".into()),
                _ => {}
            }
            let content = data.collect().await?;
            let length = content.len();
            store.lock().push((meta.clone(), content));
            match &meta[..] {
                b"fail/complete" => Err("fail/complete".into()),
                b"fail/complete with a panic" => panic!("fail/complete"),
                _ => Ok(length.to_string().into()),
            }
        }
    });
    (handler, received)
}

struct Uploads {
    bodies: Vec<(&'static str, Bytes, ManagedBuffer)>,
    _file: tempfile::NamedTempFile,
}

fn uploads() -> Uploads {
    let (large, small, file) = (pattern(100_000, 1), pattern(100, 2), pattern(512 << 10, 3));
    let temporary = file_of(&file);
    let region = ManagedBuffer::file(temporary.path(), 0..512 << 10);
    let bodies = vec![
        ("largeBuffer", large.clone(), large.into()),
        ("smallBuffer", small.clone(), small.into()),
        ("emptyBuffer", Bytes::new(), Bytes::new().into()),
        ("file", file, region),
    ];
    Uploads { bodies, _file: temporary }
}

#[tokio::test]
async fn rpc_08_uploads_arrive_one_at_a_time() {
    for mode in ["AUTO", "NIO"] {
        let (handler, received) = upload_handler();
        let pair = pair_with(handler, &[], &[("spark.shuffle.io.mode", mode)]).await;
        let uploads = uploads();
        for (meta, content, body) in &uploads.bodies {
            let answer = within(pair.client.upload_stream(*meta, body.clone())).await.unwrap();
            assert_eq!(answer, content.len().to_string());
            let (received_meta, received) = received.lock().pop().unwrap();
            assert_eq!((received_meta, received), (Bytes::from(*meta), content.clone()));
        }
        let metrics = pair.client_context.metrics();
        let sent = || {
            (
                metrics.client().snapshot().sendfile_bytes,
                metrics.client().snapshot().copied_file_bytes,
            )
        };
        until(|| sent().0 + sent().1 >= 512 << 10).await;
        let native = mode == "AUTO" && cfg!(target_os = "linux") && is_plain();
        assert_eq!(sent(), if native { (512 << 10, 0) } else { (0, 512 << 10) }, "{mode}");
        pair.assert_alive().await;
        pair.assert_no_failures();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rpc_09_concurrent_uploads_arrive() {
    for mode in ["AUTO", "NIO"] {
        let (handler, received) = upload_handler();
        let pair = pair_with(handler, &[], &[("spark.shuffle.io.mode", mode)]).await;
        let uploads = uploads();
        let sent: Vec<_> = (0..10)
            .map(|i| {
                let (_, content, body) = &uploads.bodies[i % 4];
                (content, pair.client.upload_stream(i.to_string(), body.clone()))
            })
            .collect();
        for (content, answer) in sent {
            assert_eq!(within(answer).await.unwrap(), content.len().to_string());
        }
        let mut received = std::mem::take(&mut *received.lock());
        received.sort();
        assert_eq!(received.len(), 10);
        for (i, (meta, content)) in received.into_iter().enumerate() {
            assert_eq!(meta, i.to_string());
            assert!(content == uploads.bodies[i % 4].1, "upload {i}");
        }
        pair.assert_alive().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rpc_10_failing_upload_closes_connection_only_before_its_end() {
    // Cases (a) and (b): the handler stops before the end of the data, so the connection closes and
    // the next upload fails too. The data exceeds every buffer on the way, so that the second
    // upload cannot be complete before that.
    for (meta, text) in
        [("fail/data", "fail/data"), ("fail/null", "fail/null"), ("fail/panic", "panicked")]
    {
        let (handler, received) = upload_handler();
        let pair = pair(handler).await;
        let failing = pair.client.upload_stream(meta, pattern(16 << 20, 1));
        let behind = pair.client.upload_stream("behind it", pattern(100, 2));
        let error = within(failing).await.unwrap_err();
        // The failure is sent before the connection closes.
        assert_remote(&error, "Destination failed while reading stream");
        assert!(error.to_string().contains(text), "{error}");
        assert_ne!(within(behind).await.unwrap_err().kind(), ErrorKind::Remote);
        within(pair.client.closed()).await;
        assert!(!pair.client.is_active());
        assert!(received.lock().is_empty());
    }
    // Case (c): the handler fails after all data, and the connection stays open.
    for (meta, text) in
        [("fail/complete", "fail/complete"), ("fail/complete with a panic", "panicked")]
    {
        let (handler, received) = upload_handler();
        let pair = pair(handler).await;
        let failing = pair.client.upload_stream(meta, pattern(100_000, 1));
        let behind = pair.client.upload_stream("behind it", pattern(100, 2));
        let error = within(failing).await.unwrap_err();
        assert_remote(&error, "Failure post-processing");
        assert!(error.to_string().contains(text), "{error}");
        assert_eq!(within(behind).await.unwrap(), "100");
        assert_eq!(received.lock().len(), 2);
        pair.assert_alive().await;
        pair.assert_no_failures();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unread_upload_data_is_discarded() {
    let (handler, received) = upload_handler();
    let pair = pair(handler).await;
    for data in [pattern(8 << 20, 1), pattern(10, 1), Bytes::new()] {
        let skipped = pair.client.upload_stream("skip", data);
        let behind = pair.client.upload_stream("behind it", pattern(50, 2));
        assert_eq!(within(skipped).await.unwrap(), "skipped");
        assert_eq!(within(behind).await.unwrap(), "50");
        assert_eq!(received.lock().pop().unwrap().1, pattern(50, 2));
    }
    pair.assert_alive().await;
}

/// A handler that panics before it returns a future.
#[tokio::test(flavor = "multi_thread")]
async fn panic_at_start_of_upload_fails_it() {
    struct Panics;
    impl network_common::RpcHandler for Panics {
        fn receive(
            &self,
            _: &network_common::TransportClient,
            message: Bytes,
            callback: network_common::RpcResponseCallback,
        ) {
            callback.reply(message);
        }
        fn receive_stream(
            &self,
            _: &network_common::TransportClient,
            _: Bytes,
            _: network_common::StreamBody,
        ) -> futures::future::BoxFuture<'static, Result<Bytes, BoxError>> {
            panic!("at once")
        }
    }
    let client_context = context(conf(&[]), Handler::new());
    let pair = pair_of(context(conf(&[]), Panics), client_context).await;
    for size in [0, 100, 4 << 20] {
        let error = within(pair.client.upload_stream("", pattern(size, 1))).await.unwrap_err();
        assert_remote(&error, "panicked");
    }
    // The server still accepts connections, even if this one is closed.
    let client = within(pair.factory.create_client(pair.server.local_addr())).await.unwrap();
    assert_eq!(within(client.send_rpc("next")).await.unwrap(), "next");
}

/// `lazyFD` concerns the files that are served. The file of an upload is always opened when the
/// upload is written.
#[tokio::test]
async fn upload_of_missing_file_fails_only_that_upload() {
    for mode in ["AUTO", "NIO"] {
        for lazy in ["true", "false"] {
            let (handler, received) = upload_handler();
            let settings = [("spark.shuffle.io.mode", mode), ("spark.shuffle.io.lazyFD", lazy)];
            let pair = pair_with(handler, &[], &settings).await;
            let before = pair.client.upload_stream("before", pattern(10, 1));
            let missing =
                pair.client.upload_stream("missing", ManagedBuffer::file("/nowhere/at/all", 0..10));
            let short = {
                let file = file_of(b"short");
                let opened = Arc::new(file.reopen().unwrap());
                pair.client.upload_stream("short", ManagedBuffer::open_file(opened, 0..100))
            };
            let after = pair.client.upload_stream("after", pattern(20, 1));
            assert_eq!(within(before).await.unwrap(), "10");
            for (failed, text) in [(missing, "/nowhere/at/all"), (short, "Reached EOF")] {
                let error = within(failed).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Io);
                assert!(format!("{error:#}").contains(text), "{error}");
                assert!(error.peer().is_some() && std::error::Error::source(&error).is_some());
            }
            assert_eq!(within(after).await.unwrap(), "20");
            let metas: Vec<_> = received.lock().iter().map(|(meta, _)| meta.clone()).collect();
            assert_eq!(metas, ["before", "after"], "the failed uploads must not reach the peer");
            pair.assert_alive().await;
            pair.assert_no_failures();
        }
    }
}

/// The default handler ignores one-way messages and fails all other requests.
#[tokio::test]
async fn default_handler_fails_every_request() {
    let nothing = context(conf(&[]), network_common::NoOpRpcHandler::new());
    let pair = pair_of(nothing.clone(), nothing).await;
    let client = &pair.client;
    client.send("ignored").unwrap();
    let rpc = within(client.send_rpc("hi")).await.unwrap_err();
    assert_remote(&rpc, "java.lang.UnsupportedOperationException: Cannot handle messages");
    let chunk = within(client.fetch_chunk(1, 0)).await.unwrap_err();
    assert_eq!(chunk.kind(), ErrorKind::ChunkFetchFailure);
    let stream = within(client.stream("x")).await.unwrap_err();
    assert_eq!(stream.kind(), ErrorKind::StreamFailure);
    let meta = within(client.merged_block_meta("a", 0, 0, 0)).await.unwrap_err();
    assert_eq!(meta.kind(), ErrorKind::Remote);
    assert!(client.is_active());
    let upload = within(client.upload_stream("x", vec![0; 1 << 20])).await.unwrap_err();
    assert_eq!(upload.kind(), ErrorKind::Remote);
}

/// A panic in a callback fails its request; connection and server continue.
#[tokio::test]
async fn panicking_handlers_fail_only_their_request() {
    let handler = command_handler()
        .on_one_way(|_, _| panic!("one-way"))
        .on_chunk(|_, _| panic!("chunk"))
        .on_stream(|_| panic!("stream"))
        .on_active(|_| panic!("active"))
        .on_inactive(|_| panic!("inactive"))
        .on_terminated(|_| panic!("terminated"));
    let pair = pair(handler).await;
    pair.client.send("x").unwrap();
    assert_remote(&within(pair.client.send_rpc("throw error/x")).await.unwrap_err(), "panicked");
    let chunk = within(pair.client.fetch_chunk(1, 0)).await.unwrap_err();
    assert_eq!(chunk.kind(), ErrorKind::ChunkFetchFailure);
    let stream = within(pair.client.stream("x")).await.unwrap_err();
    assert_eq!(stream.kind(), ErrorKind::StreamFailure);
    pair.assert_alive().await;
    pair.client.close();
    within(pair.client.closed()).await;
    until(|| pair.context.metrics().server().snapshot().connections == 0).await;
    let client = within(pair.factory.create_client(pair.server.local_addr())).await.unwrap();
    assert_eq!(within(client.send_rpc("next")).await.unwrap(), "next");
}

/// A panic in `stream_manager`, which is called for chunk and stream requests.
#[tokio::test]
async fn panicking_stream_manager_getter_fails_request() {
    struct NoManager;
    impl network_common::RpcHandler for NoManager {
        fn receive(
            &self,
            _: &network_common::TransportClient,
            message: Bytes,
            callback: network_common::RpcResponseCallback,
        ) {
            callback.reply(message);
        }
        fn stream_manager(&self) -> &dyn network_common::StreamManager {
            panic!("no manager")
        }
    }
    let client_context = context(conf(&[]), Handler::new());
    let pair = pair_of(context(conf(&[]), NoManager), client_context).await;
    for _ in 0..2 {
        let chunk = within(pair.client.fetch_chunk(1, 0)).await.unwrap_err();
        assert_eq!(chunk.kind(), ErrorKind::ChunkFetchFailure);
        let stream = within(pair.client.stream("x")).await.unwrap_err();
        assert_eq!(stream.kind(), ErrorKind::StreamFailure);
    }
    pair.assert_alive().await;
}

#[tokio::test]
async fn dropped_callback_fails_request() {
    let handler = Handler::new().on_rpc(|_, message, callback| match &message[..] {
        b"now" => drop(callback),
        b"later" => drop(tokio::spawn(async move {
            tokio::task::yield_now().await;
            drop(callback);
        })),
        _ => callback.reply(message),
    });
    let pair = pair(handler).await;
    for when in ["now", "later"] {
        let error = within(pair.client.send_rpc(when)).await.unwrap_err();
        assert_remote(&error, "without a response");
    }
    pair.assert_alive().await;
    assert_eq!(pair.context.metrics().server().snapshot().active_requests, 0);
}

/// A thread drops its thread-locals when it ends. The thread-locals of this crate may be gone by
/// then.
#[tokio::test]
async fn callback_dropped_at_thread_end_fails_request() {
    thread_local! {
        static KEPT: Cell<Option<RpcResponseCallback>> = const { Cell::new(None) };
    }
    let (callbacks, to_thread) = std::sync::mpsc::channel::<RpcResponseCallback>();
    let (end, ends) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        KEPT.set(to_thread.recv().ok());
        to_thread.recv().unwrap().reply("answered");
        let _ = ends.recv();
    });
    let pair =
        pair(Handler::new().on_rpc(move |_, _, callback| callbacks.send(callback).unwrap())).await;
    let (kept, answered) = (pair.client.send_rpc("keep"), pair.client.send_rpc("answer"));
    assert_eq!(within(answered).await.unwrap(), "answered");
    drop(end);
    assert_remote(
        &within(kept).await.unwrap_err(),
        "the handler dropped the request without a response",
    );
}

#[tokio::test]
async fn cancelled_rpc_releases_its_slot_and_late_response_is_discarded() {
    let callbacks = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&callbacks);
    let handler = Handler::new().on_rpc(move |_, message, callback| match &message[..] {
        b"keep" => kept.lock().push(callback),
        _ => callback.reply(message),
    });
    let pair = pair(handler).await;
    let (first, second) = (pair.client.send_rpc("keep"), pair.client.send_rpc("keep"));
    assert_eq!(within(pair.client.send_rpc("x")).await.unwrap(), "x");
    drop(first);
    assert_eq!(pair.client.pending_requests(), 1);
    // These reuse the released slot; the late responses must not complete them.
    let newer: Vec<_> = (0..3).map(|_| pair.client.send_rpc("keep")).collect();
    until(|| callbacks.lock().len() == 5).await;
    for (i, callback) in std::mem::take(&mut *callbacks.lock()).into_iter().enumerate() {
        // One small response, and one that is discarded while it arrives.
        if i == 0 { callback.reply(vec![b'L'; 1 << 20]) } else { callback.reply(i.to_string()) }
    }
    assert_eq!(within(second).await.unwrap(), "1");
    for (i, answer) in within(join_all(newer)).await.into_iter().enumerate() {
        assert_eq!(answer.unwrap(), (i + 2).to_string());
    }
    pair.assert_alive().await;
}

/// Handlers send requests over the connection of the request, in the callback or from a task.
#[tokio::test(flavor = "multi_thread")]
async fn handlers_send_requests_over_same_connection() {
    let server = Handler::new()
        .on_rpc(|client, message, callback| {
            let client = client.clone();
            // Queues the request in the callback or in the task: both must work.
            let early = message.starts_with(b"early").then(|| client.send_rpc(message.clone()));
            tokio::spawn(async move {
                let call = match early {
                    Some(call) => call,
                    None => client.send_rpc(message),
                };
                match call.await {
                    Ok(answer) => callback.reply(answer),
                    Err(error) => callback.fail(error),
                }
            });
        })
        .on_one_way(|client, message| client.send(message).unwrap());
    let (came_back, mut one_ways) = mpsc::unbounded_channel();
    let file = file_of(&pattern(300_000, 1));
    let path = file.path().to_owned();
    let client = Handler::new()
        .on_rpc(|_, message, callback| callback.reply([b"client saw ", &message[..]].concat()))
        .on_one_way(move |_, message| came_back.send(message).unwrap())
        .on_chunk(move |_, _| Ok(ManagedBuffer::file(&path, 0..300_000)));
    let pair = pair_of(context(conf(&[]), server), context(conf(&[]), client)).await;
    assert_eq!(within(pair.client.send_rpc("early")).await.unwrap(), "client saw early");
    assert_eq!(
        within(pair.client.send_rpc("from a task")).await.unwrap(),
        "client saw from a task"
    );
    pair.client.send("ping").unwrap();
    assert_eq!(within(one_ways.recv()).await.unwrap(), "ping");
    assert_eq!(pair.context.metrics().server().snapshot().connections_total, 1);
}

/// Requests of every type in both directions at once, over one connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn requests_in_both_directions_succeed_concurrently() {
    let content = pattern(400_000, 1);
    let file = file_of(&content);
    let both = || {
        let path = file.path().to_owned();
        let stream = content.clone();
        Handler::new()
            .on_chunk(move |_, _| Ok(ManagedBuffer::file(&path, 0..400_000)))
            .on_stream(move |_| Ok(Some(stream.clone().into())))
            .on_upload(|_, data| async move { Ok(data.collect().await?) })
    };
    let (accepted, reverse) = oneshot::channel();
    let accepted = Mutex::new(Some(accepted));
    let server = both().on_active(move |client| {
        if let Some(accepted) = accepted.lock().take() {
            accepted.send(client.clone()).unwrap();
        }
    });
    let pair = pair_of(context(conf(&[]), server), context(conf(&[]), both())).await;
    let reverse = within(reverse).await.unwrap();
    assert_eq!(reverse.peer_addr(), pair.client.local_addr());
    assert_eq!(reverse.local_addr(), pair.client.peer_addr());
    let traffic = |client: network_common::TransportClient| {
        let content = content.clone();
        tokio::spawn(async move {
            for round in 0..6_i32 {
                let (rpc, chunk, stream, upload) = tokio::join!(
                    client.send_rpc(round.to_string()),
                    client.fetch_chunk(1, round),
                    async { client.stream("s").await?.collect().await },
                    client.upload_stream("", content.clone())
                );
                assert_eq!(rpc.unwrap(), round.to_string());
                assert!(
                    chunk.unwrap() == content
                        && stream.unwrap() == content
                        && upload.unwrap() == content
                );
            }
        })
    };
    let (forward, backward) = (traffic(pair.client.clone()), traffic(reverse));
    within(async { (forward.await.unwrap(), backward.await.unwrap()) }).await;
    pair.assert_alive().await;
    pair.assert_no_failures();
}

/// Requests of one connection are passed to the handler one at a time and in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn receive_is_never_called_concurrently_for_one_connection() {
    let (inside, worst) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now, most) = (Arc::clone(&inside), Arc::clone(&worst));
    let handler = Handler::new().on_rpc(move |_, message, callback| {
        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::yield_now();
        now.fetch_sub(1, Ordering::SeqCst);
        callback.reply(message);
    });
    let pair = pair(handler).await;
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let client = pair.client.clone();
            tokio::spawn(async move {
                for _ in 0..200 {
                    client.send_rpc("x").await.unwrap();
                }
            })
        })
        .collect();
    for caller in callers {
        within(caller).await.unwrap();
    }
    assert_eq!(worst.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn body_over_frame_limit_is_rejected_before_sending() {
    let (handler, _) = upload_handler();
    let pair = pair(handler).await;
    // Untouched zero pages, which take no memory.
    let huge = Bytes::from(vec![0; (1 << 31) - 1]);
    let error = within(pair.client.send_rpc(huge.clone())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit);
    assert!(error.to_string().contains("upload"), "the error must suggest an upload: {error}");
    assert_eq!(pair.client.send(huge).unwrap_err().kind(), ErrorKind::Limit);
    pair.assert_alive().await;
}

/// Responses are written before later requests of the same read are handled.
#[tokio::test(flavor = "multi_thread")]
async fn first_responses_are_sent_while_last_requests_are_handled() {
    const REQUESTS: usize = 64;
    let (arrived, first_answer) = std::sync::mpsc::channel::<()>();
    let (first_answer, count) = (Mutex::new(first_answer), AtomicUsize::new(0));
    let handler = Handler::new().on_rpc(move |_, message, callback| {
        if count.fetch_add(1, Ordering::Relaxed) + 1 < REQUESTS {
            return callback.reply(message);
        }
        // Lets another thread poll the sockets meanwhile.
        match tokio::task::block_in_place(|| first_answer.lock().recv_timeout(TIMEOUT)) {
            Ok(()) => callback.reply(message),
            Err(error) => callback.fail(error),
        }
    });
    let pair = pair(handler).await;
    let mut sent: Vec<_> = (0..REQUESTS).map(|_| pair.client.send_rpc("x")).collect();
    let last = sent.split_off(1);
    within(join_all(sent)).await.into_iter().for_each(|answer| assert_eq!(answer.unwrap(), "x"));
    arrived.send(()).unwrap();
    within(join_all(last)).await.into_iter().for_each(|answer| assert_eq!(answer.unwrap(), "x"));
}
