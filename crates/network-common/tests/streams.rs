//! Streams from memory, by `sendfile` and by copying: Spark's `StreamSuite` (rows `str_01` to
//! `str_04`) and the streams of `TransportRequestHandlerSuite` (row `trh_01`).

// Helper functions outside of tests unwrap as well.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use network_common::{BoxError, ErrorKind, ManagedBuffer, OneForOneStreamManager, StreamOptions};
use support::*;
use tempfile::NamedTempFile;
use tokio::io::AsyncReadExt;
use tokio::sync::oneshot;

const MODES: [&str; 2] = ["AUTO", "NIO"];
const KINDS: [&str; 4] = ["largeBuffer", "smallBuffer", "emptyBuffer", "file"];

struct Streams {
    pair: Pair,
    large: Bytes,
    small: Bytes,
    file: Bytes,
    _file: NamedTempFile,
}

/// Serves the four streams of Spark's suite; the file region is in the middle of the file.
async fn streams(mode: &str, lazy: &str) -> Streams {
    let (large, small, content) = (pattern(100_000, 1), pattern(100, 2), pattern(512 << 10, 3));
    let file = file_of(&content);
    let (path, bodies) = (file.path().to_owned(), (large.clone(), small.clone()));
    let handler = Handler::new().on_stream(move |name| match name {
        "largeBuffer" => Ok(Some(bodies.0.clone().into())),
        "smallBuffer" => Ok(Some(bodies.1.clone().into())),
        "emptyBuffer" => Ok(Some(Bytes::new().into())),
        "file" => Ok(Some(ManagedBuffer::file(&path, 7..(512 << 10) - 9))),
        "missingFile" => Ok(Some(ManagedBuffer::file("/nowhere/to/be/found", 0..5))),
        "shortFile" => Ok(Some(ManagedBuffer::file(&path, 0..1 << 30))),
        "none" => Ok(None),
        "panic" => panic!("a stream manager that panics"),
        other => Err(format!("Invalid stream: {other}").into()),
    });
    let settings = [("spark.shuffle.io.mode", mode), ("spark.shuffle.io.lazyFD", lazy)];
    let pair = pair_with(handler, &settings, &[]).await;
    Streams { pair, large, small, file: content.slice(7..(512 << 10) - 9), _file: file }
}

impl Streams {
    fn expected(&self, name: &str) -> Bytes {
        match name {
            "largeBuffer" => self.large.clone(),
            "smallBuffer" => self.small.clone(),
            "file" => self.file.clone(),
            _ => Bytes::new(),
        }
    }

    async fn check(&self, name: &str) {
        let body = within(self.pair.client.stream(name)).await.unwrap();
        let expected = self.expected(name);
        assert_eq!(body.stream_id(), name);
        assert_eq!((body.len(), body.remaining()), (expected.len() as u64, expected.len() as u64));
        assert_eq!(within(body.collect()).await.unwrap(), expected, "{name}");
    }
}

#[tokio::test]
async fn str_01_empty_stream_has_no_pieces() {
    let streams = streams("AUTO", "true").await;
    let mut body = within(streams.pair.client.stream("emptyBuffer")).await.unwrap();
    assert!(body.is_empty());
    assert!(within(body.next_piece()).await.is_none());
    streams.pair.assert_alive().await;
}

#[tokio::test]
async fn str_02_single_stream_is_complete() {
    let streams = streams("AUTO", "true").await;
    streams.check("largeBuffer").await;
    streams.pair.assert_alive().await;
}

/// The metrics show whether the bytes of files were sent by the kernel or copied.
#[tokio::test]
async fn str_02_single_stream_of_file_is_complete() {
    for mode in MODES {
        for lazy in ["true", "false"] {
            let streams = streams(mode, lazy).await;
            streams.check("file").await;
            let metrics = streams.pair.context.metrics();
            let sent = || {
                (
                    metrics.server().snapshot().sendfile_bytes,
                    metrics.server().snapshot().copied_file_bytes,
                )
            };
            let size = streams.file.len() as u64;
            until(|| sent().0 + sent().1 >= size).await;
            let native = mode == "AUTO" && cfg!(target_os = "linux") && is_plain();
            assert_eq!(sent(), if native { (size, 0) } else { (0, size) }, "{mode}, lazyFD={lazy}");
            streams.pair.assert_no_failures();
        }
    }
}

#[tokio::test]
async fn str_03_consecutive_streams_are_complete() {
    for mode in MODES {
        let streams = streams(mode, "true").await;
        for i in 0..20 {
            streams.check(KINDS[i % 4]).await;
        }
        streams.pair.assert_alive().await;
        assert_eq!(streams.pair.context.metrics().server().snapshot().connections_total, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn str_04_concurrent_streams_are_complete() {
    for mode in MODES {
        let streams = Arc::new(streams(mode, "true").await);
        let readers: Vec<_> = (0..20)
            .map(|i| {
                let streams = Arc::clone(&streams);
                tokio::spawn(async move { streams.check(KINDS[i % 4]).await })
            })
            .collect();
        for reader in readers {
            within(reader).await.unwrap();
        }
        streams.pair.assert_alive().await;
        streams.pair.assert_no_failures();
    }
}

/// A body larger than the 1 MiB window of its reader, read in all three ways.
#[tokio::test(flavor = "multi_thread")]
async fn large_stream_is_complete_for_every_way_of_reading() {
    let content = pattern(9 << 20, 8);
    let file = file_of(&content);
    for mode in MODES {
        let path = file.path().to_owned();
        let handler =
            Handler::new().on_stream(move |_| Ok(Some(ManagedBuffer::file(&path, 0..9 << 20))));
        let pair = pair_with(handler, &[("spark.shuffle.io.mode", mode)], &[]).await;

        let mut body = within(pair.client.stream("pieces")).await.unwrap();
        let mut all = Vec::new();
        while let Some(piece) = within(body.next_piece()).await {
            let piece = piece.unwrap();
            assert!(!piece.is_empty());
            all.extend_from_slice(&piece);
            assert_eq!(body.remaining(), (content.len() - all.len()) as u64);
        }
        assert!(all == content);

        let body = within(pair.client.stream("as a Stream")).await.unwrap();
        let pieces: Vec<_> = within(StreamExt::collect(body)).await;
        assert!(pieces.into_iter().flat_map(Result::unwrap).eq(content.iter().copied()));

        let mut body = within(pair.client.stream("as AsyncRead")).await.unwrap();
        let mut start = [0; 3];
        body.read_exact(&mut start).await.unwrap();
        assert_eq!(body.remaining(), (9 << 20) - 3);
        let mut rest = Vec::new();
        within(body.read_to_end(&mut rest)).await.unwrap();
        assert!(start == content[..3] && rest == content[3..]);
        pair.assert_alive().await;
    }
}

#[tokio::test]
async fn streams_that_cannot_be_served_fail_alone() {
    for mode in MODES {
        for lazy in ["true", "false"] {
            let streams = streams(mode, lazy).await;
            let cases = [
                ("missingFile", "/nowhere/to/be/found"),
                ("shortFile", "Reached EOF"),
                ("none", "Stream 'none' was not found."),
                ("else", "Invalid stream: else"),
                ("panic", "panicked"),
            ];
            for (name, text) in cases {
                let (before, failed, after) = tokio::join!(
                    streams.check("largeBuffer"),
                    within(streams.pair.client.stream(name)),
                    streams.check("file")
                );
                let ((), ()) = (before, after);
                let error = failed.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::StreamFailure, "{name} {mode} {lazy}");
                assert!(error.to_string().contains(text), "{error}");
                assert!(error.is_remote() && error.peer().is_some());
            }
            streams.pair.assert_alive().await;
            streams.pair.assert_no_failures();
        }
    }
}

/// Row `trh_01` without pending writes. Row `cfh_01` tests those; chunks and streams share one
/// counter.
#[tokio::test]
async fn trh_01_stream_requests_return_bodies_or_failure() {
    let manager = Arc::new(OneForOneStreamManager::new());
    let body = |text: &'static str| -> Result<_, BoxError> { Ok(Some(ManagedBuffer::from(text))) };
    let buffers = vec![body("A"), body("B"), Ok(None), body("C"), body("D")];
    // The stream is bound to the connection as the server sees it.
    let (found, server_side) = std::sync::mpsc::channel();
    let handler = Handler::new()
        .with_manager(manager.clone())
        .on_active(move |client| found.send(client.clone()).unwrap());
    let pair = pair(handler).await;
    let client = pair.client.clone();
    client.send_rpc("connected").await.unwrap();
    let server_side = server_side.recv().unwrap();
    let id = manager
        .register_fallible_stream(buffers, StreamOptions::default().connection(&server_side));

    for (index, text) in [(0, "A"), (1, "B")] {
        let body = within(client.stream(&format!("{id}_{index}"))).await.unwrap();
        assert_eq!(within(body.collect()).await.unwrap(), text);
    }
    let error = within(client.stream(&format!("{id}_2"))).await.unwrap_err();
    assert_eq!(error.to_string(), format!("Stream '{id}_2' was not found."));
    let body = within(client.stream(&format!("{id}_3"))).await.unwrap();
    assert_eq!(within(body.collect()).await.unwrap(), "C");
    assert_eq!(manager.stream_count(), 1);
    client.close();
    until(|| manager.stream_count() == 0).await;
}

/// Row `trh_01` at the limit: a stream beyond it closes the connection without a response.
#[tokio::test(flavor = "multi_thread")]
async fn trh_01_stream_over_limit_closes_connection() {
    let body = pattern(32 << 20, 1);
    let served = body.clone();
    let handler = Handler::new().on_stream(move |_| Ok(Some(served.clone().into())));
    let pair = pair_with(handler, &[("spark.shuffle.maxChunksBeingTransferred", "1")], &[]).await;
    let first = within(pair.client.stream("first")).await.unwrap();
    // The first body is not read, so it is still being transferred.
    let second = pair.client.stream("second");
    until(|| pair.context.metrics().server().snapshot().connections == 0).await;
    assert!(within(first.collect()).await.is_err(), "the body must be incomplete");
    let kind = within(second).await.unwrap_err().kind();
    assert!(matches!(kind, ErrorKind::Closed | ErrorKind::Io), "{kind:?}");
    assert_eq!(pair.context.metrics().server().snapshot().failures, [(ErrorKind::Limit, 1)]);
    assert_eq!(pair.context.metrics().server().snapshot().chunks_being_transferred, 0);
}

/// A stream request cannot be cancelled on the wire, so it keeps its place in the order.
#[tokio::test]
async fn cancelled_stream_keeps_its_place_in_order() {
    let (release, released) = oneshot::channel::<()>();
    let released = parking_lot::Mutex::new(Some(released));
    let handler = Handler::new().on_rpc(move |_, message, callback| match released.lock().take() {
        None => callback.reply(message),
        Some(released) => drop(tokio::spawn(async move {
            released.await.unwrap();
            callback.reply(message);
        })),
    });
    let content = pattern(300_000, 1);
    let served = content.clone();
    let handler = handler.on_stream(move |name| match name.parse::<usize>() {
        Ok(start) => Ok(Some(served.slice(start..).into())),
        Err(error) => Err(error.into()),
    });
    let pair = pair(handler).await;
    let slow = pair.client.send_rpc("slow");
    drop(pair.client.stream("0"));
    drop(pair.client.stream("not a number"));
    let third = pair.client.stream("7");
    drop(pair.client.stream("8"));
    assert_eq!(pair.client.pending_requests(), 5, "cancelled streams count as pending");
    let body = within(third).await.unwrap();
    assert_eq!(body.stream_id(), "7");
    assert_eq!(within(body.collect()).await.unwrap(), content.slice(7..));
    release.send(()).unwrap();
    assert_eq!(within(slow).await.unwrap(), "slow");
    until(|| pair.client.pending_requests() == 0).await;
    pair.assert_alive().await;
    pair.assert_no_failures();
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_stream_body_is_discarded_and_connection_continues() {
    for mode in MODES {
        let content = pattern(6 << 20, 1);
        let file = file_of(&content);
        let path = file.path().to_owned();
        let handler =
            Handler::new().on_stream(move |_| Ok(Some(ManagedBuffer::file(&path, 0..6 << 20))));
        let pair = pair_with(handler, &[("spark.shuffle.io.mode", mode)], &[]).await;
        let unread = within(pair.client.stream("unread")).await.unwrap();
        let next = pair.client.stream("next");
        drop(unread);
        let mut next = within(next).await.unwrap();
        let piece = within(next.next_piece()).await.unwrap().unwrap();
        assert!(content.starts_with(&piece));
        drop(next);
        // This RPC is answered after both bodies.
        within(pair.client.send_rpc("after")).await.unwrap();
        let last = within(pair.client.stream("last")).await.unwrap();
        assert!(within(last.collect()).await.unwrap() == content);
        pair.assert_alive().await;
        pair.assert_no_failures();
    }
}

/// An unread body blocks its connection, as documented; reading it ends that.
#[tokio::test(flavor = "multi_thread")]
async fn unread_body_blocks_connection_until_it_is_read() {
    let handler = Handler::new().on_stream(|_| Ok(Some(Bytes::from(vec![7; 64 << 20]).into())));
    let pair = pair(handler).await;
    let body = within(pair.client.stream("large")).await.unwrap();
    // Control messages overtake queued bodies only, and this body is being written.
    let mut rpc = pair.client.send_rpc("behind it");
    let early = tokio::time::timeout(std::time::Duration::from_millis(200), &mut rpc).await;
    assert!(early.is_err(), "the response must not overtake the body");
    assert_eq!(within(body.collect()).await.unwrap().len(), 64 << 20);
    assert_eq!(within(rpc).await.unwrap(), "behind it");
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_body_delivers_its_bytes_and_then_the_error() {
    let handler = Handler::new().on_stream(|_| Ok(Some(Bytes::from(vec![7; 32 << 20]).into())));
    let pair = pair(handler).await;
    let mut body = within(pair.client.stream("large")).await.unwrap();
    let first = within(body.next_piece()).await.unwrap().unwrap();
    assert!(!first.is_empty());
    drop(pair.server);
    let mut received = first.len();
    let error = loop {
        match within(body.next_piece()).await.expect("an error before the body is complete") {
            Ok(piece) => received += piece.len(),
            Err(error) => break error,
        }
    };
    assert!(received < 32 << 20);
    assert!(matches!(error.kind(), ErrorKind::Closed | ErrorKind::Io), "{error}");
    assert!(within(body.next_piece()).await.is_none(), "nothing follows the error");
}
