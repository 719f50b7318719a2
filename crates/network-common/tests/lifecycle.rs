//! Rule 9 of the design: what it means to drop or close a client, a factory, a server, and what is
//! kept.

// Outside of the test functions themselves too.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use network_common::{ErrorKind, ManagedBuffer, RpcResponseCallback, TransportClient};
use parking_lot::Mutex;
use support::*;
use tokio::sync::mpsc;
use tokio::time::Instant;

type Kept = Arc<Mutex<Vec<RpcResponseCallback>>>;

/// Echoes, keeps `keep`, and tells of connections that come and go.
fn watched()
-> (Handler, Kept, mpsc::UnboundedReceiver<TransportClient>, mpsc::UnboundedReceiver<()>) {
    let kept = Kept::default();
    let keep = Arc::clone(&kept);
    let (came, coming) = mpsc::unbounded_channel();
    let (went, going) = mpsc::unbounded_channel();
    let handler = Handler::new()
        .on_rpc(move |_, message, callback| match &message[..] {
            b"keep" => keep.lock().push(callback),
            _ => callback.reply(message),
        })
        .on_active(move |client| came.send(client.clone()).unwrap_or_default())
        .on_inactive(move |_| went.send(()).unwrap_or_default());
    (handler, kept, coming, going)
}

#[tokio::test]
async fn the_last_unmanaged_handle_closes_its_connection() {
    let (handler, _kept, mut coming, mut going) = watched();
    let pair = pair(handler).await;
    within(coming.recv()).await.unwrap();
    let address = pair.server.local_addr();
    let client = within(pair.factory.create_unmanaged_client(address)).await.unwrap();
    within(coming.recv()).await.unwrap();
    let clone = client.clone();
    drop(client);
    assert_eq!(within(clone.send_rpc("still open")).await.unwrap(), "still open");
    drop(clone);
    within(going.recv()).await.unwrap();
    assert!(going.try_recv().is_err(), "the pooled one stays");
    pair.assert_alive().await;
    pair.assert_no_failures();
}

#[tokio::test]
async fn a_waiting_future_keeps_its_connection() {
    let (handler, kept, ..) = watched();
    let pair = pair(handler).await;
    let client =
        within(pair.factory.create_unmanaged_client(pair.server.local_addr())).await.unwrap();
    let answer = client.send_rpc("keep");
    drop(client);
    until(|| kept.lock().len() == 1).await;
    kept.lock().pop().unwrap().reply("kept");
    assert_eq!(within(answer).await.unwrap(), "kept");
    until(|| pair.context.metrics().server().snapshot().connections == 1).await;
}

#[tokio::test]
async fn what_was_queued_is_written_before_a_drop_or_a_close_takes_effect() {
    for close in [false, true] {
        let (arrived, mut messages) = mpsc::unbounded_channel();
        let handler =
            Handler::new().on_one_way(move |_, message| arrived.send(message.len()).unwrap());
        let pair = pair(handler).await;
        let client =
            within(pair.factory.create_unmanaged_client(pair.server.local_addr())).await.unwrap();
        for _ in 0..10 {
            client.send(vec![1; 1 << 20]).unwrap();
        }
        if close {
            client.close();
            assert!(!client.is_active());
            assert_eq!(client.send("late").unwrap_err().kind(), ErrorKind::Closed);
            assert_eq!(within(client.closed()).await.kind(), ErrorKind::Closed);
        }
        drop(client);
        for _ in 0..10 {
            assert_eq!(within(messages.recv()).await.unwrap(), 1 << 20);
        }
        until(|| pair.context.metrics().server().snapshot().connections == 1).await;
        pair.assert_no_failures();
    }
}

#[tokio::test]
async fn closing_fails_what_is_outstanding() {
    let (handler, kept, ..) = watched();
    let pair = pair(handler).await;
    let answers: Vec<_> = (0..3).map(|_| pair.client.send_rpc("keep")).collect();
    until(|| kept.lock().len() == 3).await;
    pair.client.close();
    for answer in answers {
        let error = within(answer).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Closed);
        assert_eq!(
            error.to_string(),
            format!("Connection from {} closed", pair.server.local_addr())
        );
        assert!(error.is_retryable());
    }
    assert_eq!(pair.client.pending_requests(), 0);
    // Answering whom nobody waits for is nobody's error.
    until(|| pair.context.metrics().server().snapshot().connections == 0).await;
    kept.lock().drain(..).for_each(|callback| callback.reply("too late"));
    pair.assert_no_failures();
}

#[tokio::test]
async fn a_pooled_connection_survives_its_handles() {
    let (handler, ..) = watched();
    let pair = pair(handler).await;
    let id = pair.client.id();
    let address = pair.server.local_addr();
    drop(pair.client);
    let again = within(pair.factory.create_client(address)).await.unwrap();
    assert_eq!(again.id(), id);
    assert_eq!(within(again.send_rpc("x")).await.unwrap(), "x");
}

#[tokio::test]
async fn dropping_the_last_factory_closes_what_it_pooled() {
    let (handler, _kept, _coming, mut going) = watched();
    let pair = pair(handler).await;
    let address = pair.server.local_addr();
    let unmanaged = within(pair.factory.create_unmanaged_client(address)).await.unwrap();
    let clone = pair.factory.clone();
    drop(pair.factory);
    assert_eq!(within(pair.client.send_rpc("a clone lives")).await.unwrap(), "a clone lives");
    drop(clone);
    within(going.recv()).await.unwrap();
    assert!(!pair.client.is_active());
    assert_eq!(within(pair.client.closed()).await.kind(), ErrorKind::Closed);
    assert_eq!(within(unmanaged.send_rpc("mine")).await.unwrap(), "mine");
}

#[tokio::test]
async fn dropping_the_context_changes_nothing() {
    let context = context(conf(&[]), Handler::new());
    let server = serve(&context).await;
    let factory = context.create_client_factory();
    drop(context);
    let client = within(factory.create_client(server.local_addr())).await.unwrap();
    assert_eq!(within(client.send_rpc("x")).await.unwrap(), "x");
}

#[tokio::test]
async fn dropping_the_server_cuts_its_connections() {
    let (handler, kept, ..) = watched();
    let pair = pair(handler).await;
    let answer = pair.client.send_rpc("keep");
    until(|| kept.lock().len() == 1).await;
    let address = pair.server.local_addr();
    drop(pair.server);
    assert_eq!(within(answer).await.unwrap_err().kind(), ErrorKind::Closed);
    within(pair.client.closed()).await;
    assert!(!pair.client.is_active());
    until(|| pair.context.metrics().server().snapshot().connections == 0).await;
    until(|| std::net::TcpStream::connect(address).is_err()).await;
    let error = within(pair.factory.create_client(address)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect);
}

#[tokio::test]
async fn close_lets_a_slow_rpc_finish_and_refuses_new_ones() {
    let (handler, kept, ..) = watched();
    let chunks = handler.on_chunk(|_, _| Ok(ManagedBuffer::from("chunk")));
    let pair = pair(chunks.on_upload(|_, data| async move { Ok(data.collect().await?) })).await;
    let address = pair.server.local_addr();
    let slow = pair.client.send_rpc("keep");
    until(|| kept.lock().len() == 1).await;
    let closing = tokio::spawn(pair.server.close(Duration::from_secs(20)));
    // From the moment nobody can connect any more it is closing.
    until(|| std::net::TcpStream::connect(address).is_err()).await;
    let refused = within(pair.client.send_rpc("new")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Remote);
    assert!(refused.to_string().contains("shutting down"), "{refused}");
    let refused = within(pair.client.upload_stream("new", vec![0; 1 << 20])).await.unwrap_err();
    assert!(refused.to_string().contains("shutting down"), "{refused}");
    assert!(!closing.is_finished());
    kept.lock().pop().unwrap().reply("finished");
    assert_eq!(within(slow).await.unwrap(), "finished");
    assert_eq!(within(closing).await.unwrap(), 0, "nothing was cut");
    assert_eq!(within(pair.client.closed()).await.kind(), ErrorKind::Closed);
}

/// New requests fail while the server closes, whatever they ask for.
#[tokio::test]
async fn close_refuses_new_chunks_streams_and_questions() {
    let (handler, kept, ..) = watched();
    let handler = handler
        .on_chunk(|_, _| Ok(ManagedBuffer::from("chunk")))
        .on_stream(|_| Ok(Some(ManagedBuffer::from("stream"))))
        .on_meta(|_, _, callback| callback.reply(0, Bytes::new()));
    let pair = pair(handler).await;
    let address = pair.server.local_addr();
    let slow = pair.client.send_rpc("keep");
    until(|| kept.lock().len() == 1).await;
    let closing = tokio::spawn(pair.server.close(Duration::from_secs(20)));
    until(|| std::net::TcpStream::connect(address).is_err()).await;
    within(pair.client.send_rpc("closing?")).await.unwrap_err();
    let chunk = within(pair.client.fetch_chunk(1, 0)).await;
    let stream = within(pair.client.stream("s")).await.map(|body| body.len());
    let meta = within(pair.client.merged_block_meta("a", 0, 0, 0)).await;
    kept.lock().pop().unwrap().reply("");
    within(slow).await.unwrap();
    assert_eq!(within(closing).await.unwrap(), 0);
    assert_eq!(meta.unwrap_err().kind(), ErrorKind::Remote);
    assert_eq!(chunk.unwrap_err().kind(), ErrorKind::ChunkFetchFailure);
    assert_eq!(stream.unwrap_err().kind(), ErrorKind::StreamFailure);
}

#[tokio::test(flavor = "multi_thread")]
async fn close_lets_bodies_finish() {
    let content = pattern(24 << 20, 1);
    let file = file_of(&content);
    let path = file.path().to_owned();
    let (open, gate) = tokio::sync::watch::channel(false);
    let upload_gate = gate.clone();
    let handler = Handler::new()
        .on_chunk_later(move |_, _| {
            let (path, mut gate) = (path.clone(), gate.clone());
            async move {
                gate.wait_for(|open| *open).await?;
                Ok(ManagedBuffer::file(path, 0..24 << 20))
            }
        })
        .on_upload(move |_, data| {
            let mut gate = upload_gate.clone();
            async move {
                gate.wait_for(|open| *open).await?;
                Ok(data.collect().await?.len().to_string().into())
            }
        });
    let pair = pair(handler).await;
    let chunks: Vec<_> = (0..3).map(|index| pair.client.fetch_chunk(1, index)).collect();
    let upload = pair.client.upload_stream("", content.clone());
    until(|| pair.context.metrics().server().snapshot().chunks_being_transferred == 3).await;
    until(|| pair.context.metrics().server().snapshot().active_requests == 1).await;
    let address = pair.server.local_addr();
    let closing = tokio::spawn(pair.server.close(Duration::from_secs(20)));
    until(|| std::net::TcpStream::connect(address).is_err()).await;
    open.send(true).unwrap();
    for chunk in chunks {
        assert!(within(chunk).await.unwrap() == content);
    }
    assert_eq!(within(upload).await.unwrap(), (24 << 20).to_string());
    assert_eq!(within(closing).await.unwrap(), 0);
}

/// Release hooks are the user's code: they may use the connection, wherever its buffers are let go.
#[tokio::test(flavor = "multi_thread")]
async fn a_release_hook_may_use_the_connection() {
    let file = file_of(b"a file");
    let path = file.path().to_owned();
    let (released, mut releases) = mpsc::unbounded_channel();
    let connection = Arc::new(Mutex::new(None::<TransportClient>));
    let hook = move |connection: &Arc<Mutex<Option<TransportClient>>>| {
        let (connection, released) = (Arc::clone(connection), released.clone());
        move || {
            if let Some(client) = &*connection.lock() {
                // Takes the lock of the session; whether it succeeds depends on when.
                let _ = client.send("released");
                client.pending_requests();
            }
            released.send(()).unwrap_or_default();
        }
    };
    let (at_server, server_hook) = (Arc::clone(&connection), hook.clone());
    let handler = Handler::new()
        .on_active(move |client| *at_server.lock() = Some(client.clone()))
        .on_chunk(move |_, index| {
            let body = match index {
                0 => ManagedBuffer::from(vec![0; 100_000]),
                1 => ManagedBuffer::file(&path, 0..6),
                _ => ManagedBuffer::from(vec![0; 32 << 20]),
            };
            let at_server = Arc::clone(&connection);
            Ok(body.on_release(server_hook(&at_server)))
        })
        .on_stream(|_| Ok(Some(vec![0; 32 << 20].into())));
    let pair = pair(handler).await;
    let at_client = Arc::new(Mutex::new(Some(pair.client.clone())));
    for index in 0..2 {
        within(pair.client.fetch_chunk(1, index)).await.unwrap();
        within(releases.recv()).await.unwrap();
    }
    // Queued when the connection ends, behind a body that nobody reads.
    let unread = within(pair.client.stream("unread")).await.unwrap();
    let chunk = pair.client.fetch_chunk(1, 2);
    until(|| pair.context.metrics().server().snapshot().write_queue_bytes >= 64 << 20).await;
    drop(pair.server);
    within(releases.recv()).await.unwrap();
    drop(unread);
    within(chunk).await.unwrap_err();
    // Refused.
    let data = ManagedBuffer::from("data").on_release(hook(&at_client));
    within(pair.client.upload_stream("", data)).await.unwrap_err();
    within(releases.recv()).await.unwrap();
}

#[tokio::test]
async fn close_cuts_what_is_not_finished_at_the_deadline_and_counts_it() {
    let (handler, kept, ..) = watched();
    let pair = pair(handler).await;
    let address = pair.server.local_addr();
    let idle = within(pair.factory.create_unmanaged_client(address)).await.unwrap();
    let other = within(pair.factory.create_unmanaged_client(address)).await.unwrap();
    within(idle.send_rpc("x")).await.unwrap();
    let (first, second) = (pair.client.send_rpc("keep"), other.send_rpc("keep"));
    until(|| kept.lock().len() == 2).await;
    let begun = Instant::now();
    let cut = within(pair.server.close(Duration::from_millis(1500))).await;
    assert_eq!(cut, 2, "the idle one had finished");
    assert!(begun.elapsed() >= Duration::from_millis(1500));
    for answer in [first, second] {
        assert_eq!(within(answer).await.unwrap_err().kind(), ErrorKind::Closed);
    }
    assert_eq!(within(idle.closed()).await.kind(), ErrorKind::Closed);
    assert_eq!(
        pair.context.metrics().server().snapshot().connections,
        0,
        "after close, not some time later"
    );
}

#[tokio::test]
async fn dropping_a_close_cuts_at_once() {
    let (handler, kept, ..) = watched();
    let pair = pair(handler).await;
    let answer = pair.client.send_rpc("keep");
    until(|| kept.lock().len() == 1).await;
    let close = pair.server.close(Duration::from_secs(60));
    assert!(tokio::time::timeout(Duration::from_millis(50), close).await.is_err());
    assert_eq!(within(answer).await.unwrap_err().kind(), ErrorKind::Closed);
}

/// Handles that a server's handlers keep neither hold a connection open nor close it.
#[tokio::test]
async fn a_handle_kept_by_a_handler_keeps_nothing_open() {
    let (handler, _kept, mut coming, mut going) = watched();
    let pair = pair(handler).await;
    let kept = within(coming.recv()).await.unwrap();
    drop(kept.clone());
    pair.assert_alive().await;
    assert!(kept.is_active());
    pair.client.close();
    within(going.recv()).await.unwrap();
    assert!(!kept.is_active());
    assert_eq!(within(kept.closed()).await.kind(), ErrorKind::Closed);
    assert_eq!(within(kept.send_rpc("late")).await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(kept.send("late").unwrap_err().kind(), ErrorKind::Closed);
    // Nor does it keep a closing server waiting.
    let client = within(pair.factory.create_client(pair.server.local_addr())).await.unwrap();
    let kept = within(coming.recv()).await.unwrap();
    assert_eq!(within(pair.server.close(Duration::from_secs(20))).await, 0);
    within(client.closed()).await;
    assert!(!kept.is_active());
}

/// A handler may close the connection it serves: its answer still arrives.
#[tokio::test]
async fn a_handler_closes_its_connection_after_the_answer() {
    let handler = Handler::new().on_rpc(|client, message, callback| {
        callback.reply(message);
        client.close();
    });
    let pair = pair(handler).await;
    let large = pattern(4 << 20, 1);
    assert!(within(pair.client.send_rpc(large.clone())).await.unwrap() == large);
    assert_eq!(within(pair.client.closed()).await.kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn active_and_inactive_come_once_per_connection() {
    let (handler, _kept, mut coming, mut going) = watched();
    let pair = pair(handler).await;
    let first = within(coming.recv()).await.unwrap();
    assert_eq!(first.peer_addr(), pair.client.local_addr());
    let second =
        within(pair.factory.create_unmanaged_client(pair.server.local_addr())).await.unwrap();
    assert_eq!(within(coming.recv()).await.unwrap().peer_addr(), second.local_addr());
    drop(second);
    within(going.recv()).await.unwrap();
    pair.client.close();
    within(going.recv()).await.unwrap();
    assert_eq!(within(pair.server.close(Duration::from_secs(20))).await, 0);
    assert!(coming.try_recv().is_err() && going.try_recv().is_err());
}

/// An identity is set once.
#[tokio::test]
async fn a_client_id_is_set_once() {
    if !is_plain() {
        return; // It is set already.
    }
    let (handler, ..) = watched();
    let pair = pair(handler).await;
    assert_eq!(pair.client.client_id(), None);
    pair.client.set_client_id("app-1").unwrap();
    let error = pair.client.set_client_id("app-2").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert_eq!(pair.client.clone().client_id(), Some("app-1"));
}
