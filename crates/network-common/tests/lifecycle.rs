//! The effects of dropping or closing a client, a factory or a server, between two ends of this
//! crate.

// Helper functions outside of tests unwrap as well.
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

/// Returns a handler that echoes, keeps the callback of `keep`, and reports new and closed
/// connections.
fn watched_handler()
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
async fn last_unmanaged_handle_closes_its_connection() {
    let (handler, _kept, mut coming, mut going) = watched_handler();
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
    assert!(going.try_recv().is_err(), "the pooled connection must stay open");
    pair.assert_alive().await;
    pair.assert_no_failures();
}

#[tokio::test]
async fn pending_future_keeps_its_connection() {
    let (handler, kept, ..) = watched_handler();
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
async fn queued_messages_are_written_before_drop_or_close() {
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
async fn close_fails_pending_requests() {
    let (handler, kept, ..) = watched_handler();
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
        assert!(!error.is_retryable(), "the peer may have executed it");
    }
    assert_eq!(pair.client.pending_requests(), 0);
    // A reply after the caller has gone is no error.
    until(|| pair.context.metrics().server().snapshot().connections == 0).await;
    kept.lock().drain(..).for_each(|callback| callback.reply("too late"));
    pair.assert_no_failures();
}

#[tokio::test]
async fn pooled_connection_survives_its_handles() {
    let (handler, ..) = watched_handler();
    let pair = pair(handler).await;
    let id = pair.client.id();
    let address = pair.server.local_addr();
    drop(pair.client);
    let again = within(pair.factory.create_client(address)).await.unwrap();
    assert_eq!(again.id(), id);
    assert_eq!(within(again.send_rpc("x")).await.unwrap(), "x");
}

#[tokio::test]
async fn fault_u7_dropping_last_factory_closes_unused_connections_only() {
    let (handler, _kept, _coming, mut going) = watched_handler();
    let pair = pair(handler).await;
    let address = pair.server.local_addr();
    let unmanaged = within(pair.factory.create_unmanaged_client(address)).await.unwrap();
    let clone = pair.factory.clone();
    drop(pair.factory);
    assert_eq!(within(pair.client.send_rpc("a clone lives")).await.unwrap(), "a clone lives");
    drop(clone);
    assert_eq!(within(pair.client.send_rpc("a handle lives")).await.unwrap(), "a handle lives");
    assert_eq!(within(unmanaged.send_rpc("mine")).await.unwrap(), "mine");
    assert!(going.try_recv().is_err());
    drop(pair.client);
    within(going.recv()).await.unwrap();
}

#[tokio::test]
async fn dropping_context_has_no_effect() {
    let context = context(conf(&[]), Handler::new());
    let server = serve(&context).await;
    let factory = context.create_client_factory();
    drop(context);
    let client = within(factory.create_client(server.local_addr())).await.unwrap();
    assert_eq!(within(client.send_rpc("x")).await.unwrap(), "x");
}

#[tokio::test]
async fn dropping_server_closes_its_connections() {
    let (handler, kept, ..) = watched_handler();
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
async fn close_waits_for_active_rpc_and_rejects_new_ones() {
    let (handler, kept, ..) = watched_handler();
    let chunks = handler.on_chunk(|_, _| Ok(ManagedBuffer::from("chunk")));
    let pair = pair(chunks.on_upload(|_, data| async move { Ok(data.collect().await?) })).await;
    let address = pair.server.local_addr();
    let slow = pair.client.send_rpc("keep");
    until(|| kept.lock().len() == 1).await;
    let closing = tokio::spawn(pair.server.close(Duration::from_secs(20)));
    // Once connecting fails, the server is closing.
    until(|| std::net::TcpStream::connect(address).is_err()).await;
    let error = within(pair.client.send_rpc("new")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Remote);
    assert!(error.to_string().contains("shutting down"), "{error}");
    let error = within(pair.client.upload_stream("new", vec![0; 1 << 20])).await.unwrap_err();
    assert!(error.to_string().contains("shutting down"), "{error}");
    assert!(!closing.is_finished());
    kept.lock().pop().unwrap().reply("finished");
    assert_eq!(within(slow).await.unwrap(), "finished");
    assert_eq!(within(closing).await.unwrap(), 0, "no connection may be closed early");
    assert_eq!(within(pair.client.closed()).await.kind(), ErrorKind::Closed);
}

/// While the server closes, new requests of the other types fail too.
#[tokio::test]
async fn close_rejects_new_chunks_streams_and_meta_requests() {
    let (handler, kept, ..) = watched_handler();
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
async fn close_waits_for_bodies() {
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

/// User code in release hooks may use the connection, wherever its buffers are released.
#[tokio::test(flavor = "multi_thread")]
async fn release_hook_can_use_connection() {
    let file = file_of(b"a file");
    let path = file.path().to_owned();
    let (released, mut releases) = mpsc::unbounded_channel();
    let connection = Arc::new(Mutex::new(None::<TransportClient>));
    let hook = move |connection: &Arc<Mutex<Option<TransportClient>>>| {
        let (connection, released) = (Arc::clone(connection), released.clone());
        move || {
            if let Some(client) = &*connection.lock() {
                // Takes the lock of the session; the connection may be closed already.
                let _ = client.send("released");
                let _ = client.pending_requests();
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
    // The chunk is queued behind an unread body when the connection ends.
    let unread = within(pair.client.stream("unread")).await.unwrap();
    let chunk = pair.client.fetch_chunk(1, 2);
    until(|| pair.context.metrics().server().snapshot().write_queue_bytes >= 64 << 20).await;
    drop(pair.server);
    within(releases.recv()).await.unwrap();
    drop(unread);
    within(chunk).await.unwrap_err();
    // The upload is rejected.
    let data = ManagedBuffer::from("data").on_release(hook(&at_client));
    within(pair.client.upload_stream("", data)).await.unwrap_err();
    within(releases.recv()).await.unwrap();
}

#[tokio::test]
async fn close_ends_active_connections_at_deadline_and_counts_them() {
    let (handler, kept, ..) = watched_handler();
    let pair = pair(handler).await;
    let address = pair.server.local_addr();
    let idle = within(pair.factory.create_unmanaged_client(address)).await.unwrap();
    let other = within(pair.factory.create_unmanaged_client(address)).await.unwrap();
    within(idle.send_rpc("x")).await.unwrap();
    let (first, second) = (pair.client.send_rpc("keep"), other.send_rpc("keep"));
    until(|| kept.lock().len() == 2).await;
    let begun = Instant::now();
    let cut = within(pair.server.close(Duration::from_millis(1500))).await;
    assert_eq!(cut, 2, "only the two active connections may count");
    assert!(begun.elapsed() >= Duration::from_millis(1500));
    for answer in [first, second] {
        assert_eq!(within(answer).await.unwrap_err().kind(), ErrorKind::Closed);
    }
    assert_eq!(within(idle.closed()).await.kind(), ErrorKind::Closed);
    assert_eq!(
        pair.context.metrics().server().snapshot().connections,
        0,
        "all connections must be closed when `close` returns"
    );
}

#[tokio::test]
async fn dropping_close_future_closes_at_once() {
    let (handler, kept, ..) = watched_handler();
    let pair = pair(handler).await;
    let answer = pair.client.send_rpc("keep");
    until(|| kept.lock().len() == 1).await;
    let close = pair.server.close(Duration::from_secs(60));
    assert!(tokio::time::timeout(Duration::from_millis(50), close).await.is_err());
    assert_eq!(within(answer).await.unwrap_err().kind(), ErrorKind::Closed);
}

/// Handles that handlers keep neither keep a connection open nor close it.
#[tokio::test]
async fn handle_kept_by_handler_does_not_keep_connection_open() {
    let (handler, _kept, mut coming, mut going) = watched_handler();
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
    // Such a handle does not delay a closing server either.
    let client = within(pair.factory.create_client(pair.server.local_addr())).await.unwrap();
    let kept = within(coming.recv()).await.unwrap();
    assert_eq!(within(pair.server.close(Duration::from_secs(20))).await, 0);
    within(client.closed()).await;
    assert!(!kept.is_active());
}

/// A reply that was queued before `close` still arrives.
#[tokio::test]
async fn handler_can_close_connection_after_reply() {
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
async fn connection_events_are_reported_once() {
    let (handler, _kept, mut coming, mut going) = watched_handler();
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

#[tokio::test]
async fn client_id_can_be_set_only_once() {
    if !is_plain() {
        return; // Authentication has set the id already.
    }
    let (handler, ..) = watched_handler();
    let pair = pair(handler).await;
    assert_eq!(pair.client.client_id(), None);
    pair.client.set_client_id("app-1").unwrap();
    let error = pair.client.set_client_id("app-2").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidState);
    assert_eq!(pair.client.clone().client_id(), Some("app-1"));
}
