//! Chunks from memory, by `sendfile` and by copying: Spark's `ChunkFetchIntegrationSuite` and
//! `ChunkFetchRequestHandlerSuite` (rows `cfi_01` to `cfi_05` and `cfh_01`).

// Helper functions outside of tests unwrap as well.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use bytes::Bytes;
use network_common::protocol::{Event, FrameDecoder, Message};
use network_common::{BoxError, ErrorKind, ManagedBuffer, OneForOneStreamManager, StreamOptions};
use support::*;
use tempfile::NamedTempFile;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

const STREAM: i64 = 1;
const BUFFER_CHUNK: i32 = 0;
const FILE_CHUNK: i32 = 1;
const MISSING_FILE: i32 = 2;
const SHORT_FILE: i32 = 3;
const SIZE: usize = 100_000;

/// The modes in which the kernel sends files, and in which they are copied.
const MODES: [&str; 2] = ["AUTO", "NIO"];

struct Chunks {
    pair: Pair,
    buffer: Bytes,
    file: Bytes,
    _file: NamedTempFile,
}

/// Serves chunk 0 from memory and chunk 1 from a file region, as in Spark's suite, and broken
/// files.
async fn chunks(mode: &str, lazy: &str) -> Chunks {
    let buffer = pattern(SIZE, 1);
    let content = pattern(SIZE, 2);
    let file = file_of(&content);
    let path = file.path().to_owned();
    let memory = buffer.clone();
    let handler = Handler::new().on_chunk(move |stream_id, index| {
        assert_eq!(stream_id, STREAM);
        match index {
            BUFFER_CHUNK => Ok(memory.clone().into()),
            FILE_CHUNK => Ok(ManagedBuffer::file(&path, 10..(SIZE - 15) as u64)),
            MISSING_FILE => Ok(ManagedBuffer::file("/nowhere/to/be/found", 0..10)),
            SHORT_FILE => Ok(ManagedBuffer::file(&path, 0..SIZE as u64 + 1)),
            other => Err(format!("Invalid chunk index: {other}").into()),
        }
    });
    let settings = [("spark.shuffle.io.mode", mode), ("spark.shuffle.io.lazyFD", lazy)];
    let pair = pair_with(handler, &settings, &[]).await;
    Chunks { pair, buffer, file: content.slice(10..SIZE - 15), _file: file }
}

impl Chunks {
    async fn fetch(&self, index: i32) -> Result<Bytes, network_common::TransportError> {
        within(self.pair.client.fetch_chunk(STREAM, index)).await
    }

    /// Checks how many bytes of files were sent by the kernel or copied, according to the mode.
    async fn assert_file_bytes(&self, mode: &str, expected: u64) {
        let metrics = self.pair.context.metrics();
        let sent = move || {
            let snapshot = metrics.server().snapshot();
            (snapshot.sendfile_bytes, snapshot.copied_file_bytes)
        };
        let native = mode == "AUTO" && cfg!(target_os = "linux") && is_plain();
        // The kernel sends the bytes before the metric counts them.
        until(|| sent().0 + sent().1 >= expected).await;
        assert_eq!(sent(), if native { (expected, 0) } else { (0, expected) }, "{mode}");
    }
}

#[tokio::test]
async fn cfi_01_buffer_chunk_is_fetched() {
    for mode in MODES {
        let chunks = chunks(mode, "true").await;
        assert_eq!(chunks.fetch(BUFFER_CHUNK).await.unwrap(), chunks.buffer);
        chunks.assert_file_bytes(mode, 0).await;
        chunks.pair.assert_no_failures();
    }
}

#[tokio::test]
async fn cfi_02_file_chunk_is_fetched() {
    for mode in MODES {
        for lazy in ["true", "false"] {
            let chunks = chunks(mode, lazy).await;
            assert_eq!(chunks.fetch(FILE_CHUNK).await.unwrap(), chunks.file);
            chunks.assert_file_bytes(mode, chunks.file.len() as u64).await;
            chunks.pair.assert_no_failures();
        }
    }
}

#[tokio::test]
async fn cfi_03_unknown_chunk_fails() {
    let chunks = chunks("AUTO", "true").await;
    let error = chunks.fetch(12345).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ChunkFetchFailure);
    assert!(error.is_remote() && !error.is_retryable());
    assert_eq!(
        error.to_string(),
        "Failure while fetching StreamChunkId[streamId=1,chunkIndex=12345]: \
         Invalid chunk index: 12345"
    );
    assert_eq!(error.peer(), Some(chunks.pair.server.local_addr().to_string().as_str()));
    assert_eq!(chunks.pair.client.pending_requests(), 0);
    chunks.pair.assert_no_failures();
}

#[tokio::test]
async fn cfi_04_buffer_and_file_chunk_are_fetched_concurrently() {
    for mode in MODES {
        let chunks = chunks(mode, "true").await;
        let (buffer, file) = tokio::join!(chunks.fetch(BUFFER_CHUNK), chunks.fetch(FILE_CHUNK));
        assert_eq!(buffer.unwrap(), chunks.buffer);
        assert_eq!(file.unwrap(), chunks.file);
        chunks.assert_file_bytes(mode, chunks.file.len() as u64).await;
    }
}

#[tokio::test]
async fn cfi_05_unknown_chunk_does_not_affect_others() {
    for mode in MODES {
        let chunks = chunks(mode, "true").await;
        let (buffer, missing) = tokio::join!(chunks.fetch(BUFFER_CHUNK), chunks.fetch(12345));
        assert_eq!(buffer.unwrap(), chunks.buffer);
        assert_eq!(missing.unwrap_err().kind(), ErrorKind::ChunkFetchFailure);
        assert_eq!(chunks.fetch(FILE_CHUNK).await.unwrap(), chunks.file);
        chunks.pair.assert_alive().await;
    }
}

/// Many concurrent fetches from files and memory: each gets its own content.
#[tokio::test(flavor = "multi_thread")]
async fn concurrent_fetches_get_their_own_chunks() {
    for mode in MODES {
        let content = pattern(1 << 20, 3);
        let file = file_of(&content);
        let (path, memory) = (file.path().to_owned(), content.clone());
        let region = |index: i32| {
            (index as usize * 7919) % 500_000..(index as usize * 7919) % 500_000 + 33_000
        };
        let handler = Handler::new().on_chunk(move |_, index| {
            let range = region(index);
            Ok(if index % 2 == 0 {
                ManagedBuffer::file(&path, range.start as u64..range.end as u64)
            } else {
                memory.slice(range).into()
            })
        });
        let pair = pair_with(handler, &[("spark.shuffle.io.mode", mode)], &[]).await;
        let fetches: Vec<_> = (0..200).map(|index| pair.client.fetch_chunk(7, index)).collect();
        for (index, chunk) in
            within(futures::future::join_all(fetches)).await.into_iter().enumerate()
        {
            assert_eq!(
                chunk.unwrap(),
                content.slice(region(index as i32)),
                "chunk {index} by {mode}"
            );
        }
        pair.assert_no_failures();
    }
}

/// A cancelled fetch stays pending until its response; other fetches are correct.
#[tokio::test]
async fn cancelled_fetch_stays_pending_until_response() {
    for size in [10, 3 << 20] {
        let (release, released) = oneshot::channel::<()>();
        let released = parking_lot::Mutex::new(Some(released));
        let content = pattern(size, 4);
        let served = content.clone();
        let handler = Handler::new().on_chunk_later(move |_, index| {
            let wait = released.lock().take();
            let chunk = served.slice(index as usize..);
            async move {
                if let Some(wait) = wait {
                    wait.await?;
                }
                Ok(chunk.into())
            }
        });
        let pair = pair(handler).await;
        drop(pair.client.fetch_chunk(STREAM, 0));
        assert_eq!(pair.client.pending_requests(), 1, "a fetch cannot be cancelled on the wire");
        let again = within(pair.client.fetch_chunk(STREAM, 0)).await.unwrap_err();
        assert_eq!(
            again.kind(),
            ErrorKind::AlreadyPending,
            "a fetch of the cancelled chunk must be rejected"
        );
        let other = pair.client.fetch_chunk(STREAM, 1);
        release.send(()).unwrap();
        assert_eq!(within(other).await.unwrap(), content.slice(1..));
        assert_eq!(within(pair.client.fetch_chunk(STREAM, 0)).await.unwrap(), content);
        pair.assert_alive().await;
        pair.assert_no_failures();
    }
}

#[tokio::test]
async fn second_fetch_of_pending_chunk_is_rejected_without_affecting_first() {
    let (release, released) = oneshot::channel::<()>();
    let released = parking_lot::Mutex::new(Some(released));
    let handler = Handler::new().on_chunk_later(move |_, _| {
        let wait = released.lock().take();
        async move {
            wait.ok_or("requested twice")?.await?;
            Ok(ManagedBuffer::from("once"))
        }
    });
    let pair = pair(handler).await;
    let first = pair.client.fetch_chunk(STREAM, 0);
    let second = within(pair.client.fetch_chunk(STREAM, 0)).await.unwrap_err();
    assert_eq!(second.kind(), ErrorKind::AlreadyPending);
    assert_eq!(pair.client.pending_requests(), 1);
    release.send(()).unwrap();
    assert_eq!(within(first).await.unwrap(), "once");
}

/// Missing and truncated files fail their chunk, with early and with late opening.
#[tokio::test]
async fn unreadable_file_fails_only_its_chunk() {
    for mode in MODES {
        for lazy in ["true", "false"] {
            let chunks = chunks(mode, lazy).await;
            for (index, text) in
                [(MISSING_FILE, "/nowhere/to/be/found"), (SHORT_FILE, "Reached EOF")]
            {
                // Other requests before and after, so that the failure has to keep the order.
                let (before, failed, after) = tokio::join!(
                    chunks.fetch(BUFFER_CHUNK),
                    chunks.fetch(index),
                    chunks.fetch(FILE_CHUNK)
                );
                assert_eq!(before.unwrap(), chunks.buffer);
                assert_eq!(after.unwrap(), chunks.file);
                let error = failed.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ChunkFetchFailure, "{mode}, lazyFD={lazy}");
                assert!(error.to_string().contains(text), "{error}");
            }
            chunks.pair.assert_alive().await;
            chunks.pair.assert_no_failures();
        }
    }
}

#[tokio::test]
async fn empty_chunks_are_fetched() {
    let file = file_of(b"abc");
    let path = file.path().to_owned();
    let handler = Handler::new().on_chunk(move |_, index| {
        Ok(if index == 0 { Bytes::new().into() } else { ManagedBuffer::file(&path, 3..3) })
    });
    let pair = pair(handler).await;
    assert_eq!(within(pair.client.fetch_chunk(STREAM, 0)).await.unwrap(), "");
    assert_eq!(within(pair.client.fetch_chunk(STREAM, 1)).await.unwrap(), "");
    pair.assert_alive().await;
}

/// A large body is read or decrypted into its own buffer, except the bytes that arrived with its
/// header.
#[tokio::test]
async fn large_chunk_is_read_directly_into_its_buffer() {
    let not_directly = if is_plain() { 128 << 10 } else { 2 << 20 };
    let content = pattern(8 << 20, 5);
    let file = file_of(&content);
    let (path, memory) = (file.path().to_owned(), content.clone());
    let handler = Handler::new().on_chunk(move |_, index| {
        Ok(if index == 0 { memory.clone().into() } else { ManagedBuffer::file(&path, 0..8 << 20) })
    });
    let pair = pair(handler).await;
    let direct = || pair.client_context.metrics().client().snapshot().direct_body_bytes;
    for index in 0..2 {
        let before = direct();
        assert_eq!(within(pair.client.fetch_chunk(STREAM, index)).await.unwrap(), content);
        let read = direct() - before;
        let copied = content.len() as u64 - read;
        assert!(copied <= not_directly, "{copied} of {} bytes were copied", content.len());
    }
    // A small body gets no buffer of its own.
    let before = direct();
    assert_eq!(pair.client.send_rpc("small").await.unwrap(), "small");
    assert_eq!(direct(), before);
}

/// The release hook of every buffer runs exactly once.
#[tokio::test]
async fn every_chunk_is_released_once() {
    let file = file_of(&pattern(50_000, 6));
    let path = file.path().to_owned();
    let released = Arc::new(parking_lot::Mutex::new(vec![0; 40]));
    let count = Arc::clone(&released);
    let handler = Handler::new().on_chunk(move |_, index| {
        let count = Arc::clone(&count);
        let body = match index % 4 {
            0 => Bytes::from(vec![1; 50_000]).into(),
            1 => ManagedBuffer::file(&path, 0..50_000),
            2 => ManagedBuffer::file("/nowhere", 0..1),
            _ => Bytes::new().into(),
        };
        Ok(body.on_release(move || count.lock()[index as usize] += 1))
    });
    let pair = pair(handler).await;
    let fetches: Vec<_> = (0..40).map(|index| pair.client.fetch_chunk(STREAM, index)).collect();
    within(futures::future::join_all(fetches)).await;
    until(|| released.lock().iter().all(|count| *count == 1)).await;
    until(|| pair.context.metrics().server().snapshot().chunks_being_transferred == 0).await;
}

/// A raw peer, which reads only when the test reads.
struct RawPeer {
    socket: TcpStream,
    decoder: FrameDecoder,
    unread: Vec<u8>,
}

impl RawPeer {
    async fn connect(address: std::net::SocketAddr) -> Self {
        let socket = TcpStream::connect(address).await.unwrap();
        Self { socket, decoder: FrameDecoder::default(), unread: Vec::new() }
    }

    async fn send(&mut self, message: Message<Bytes>) {
        self.socket.write_all(&message.encode().unwrap()).await.unwrap();
    }

    /// Returns the next message with its body, or `None` at the end of the connection.
    async fn next(&mut self) -> Option<Message<Bytes>> {
        within(async {
            loop {
                let mut input = self.unread.as_slice();
                let event = self.decoder.next_event(&mut input).unwrap();
                self.unread = input.to_vec();
                match event {
                    Some(Event::Message(message)) => return Some(message),
                    Some(_) => self.decoder.collect_body(true),
                    None => {
                        let mut block = vec![0; 64 << 10];
                        match self.socket.read(&mut block).await {
                            Ok(0) | Err(_) => return None,
                            Ok(count) => self.unread.extend_from_slice(&block[..count]),
                        }
                    }
                }
            }
        })
        .await
    }
}

/// Follows Spark's test, with writes that are pending because the peer does not read more than its
/// socket buffers hold.
#[tokio::test(flavor = "multi_thread")]
async fn cfh_01_chunk_requests_over_transfer_limit_close_connection() {
    if !is_plain() {
        return; // Raw peers send unencrypted bytes.
    }
    const LARGE: usize = 16 << 20;
    let streams = Arc::new(OneForOneStreamManager::new());
    let (a, b) = (pattern(LARGE, 1), pattern(LARGE, 2));
    let body =
        |bytes: &Bytes| -> Result<_, BoxError> { Ok(Some(ManagedBuffer::from(bytes.clone()))) };
    let chunks = vec![
        body(&a),
        body(&b),
        Ok(None),
        body(&Bytes::from("C")),
        body(&a),
        body(&b),
        body(&Bytes::from("never sent")),
    ];
    let id = streams.register_fallible_stream(chunks, StreamOptions::default());
    let handler = Handler::new().with_manager(streams);
    let context = context(conf(&[("spark.shuffle.maxChunksBeingTransferred", "2")]), handler);
    let server = serve(&context).await;
    let transferred = || context.metrics().server().snapshot().chunks_being_transferred;
    let mut peer = RawPeer::connect(server.local_addr()).await;
    let fetch = |index| Message::ChunkFetchRequest { stream_id: id, chunk_index: index };
    let success = |index, bytes: &Bytes| {
        Some(Message::ChunkFetchSuccess { stream_id: id, chunk_index: index, body: bytes.clone() })
    };

    peer.send(fetch(0)).await;
    peer.send(fetch(1)).await;
    until(|| transferred() == 2).await;
    assert!(peer.next().await == success(0, &a));
    // The first chunk is written, so one more is allowed, which has no body.
    until(|| transferred() < 2).await;
    peer.send(fetch(2)).await;
    assert!(peer.next().await == success(1, &b));
    match peer.next().await {
        Some(Message::ChunkFetchFailure { stream_id, chunk_index: 2, error }) => {
            assert_eq!(stream_id, id);
            let first_line = error.lines().next().unwrap();
            assert_eq!(first_line, "java.lang.IllegalStateException: Chunk was not found");
        }
        other => panic!("{other:?}"),
    }
    until(|| transferred() == 0).await;
    peer.send(fetch(3)).await;
    assert_eq!(peer.next().await, success(3, &Bytes::from("C")));
    until(|| transferred() == 0).await;

    // Two chunks that the peer does not read, then one over the limit: closed without a response.
    peer.send(fetch(4)).await;
    peer.send(fetch(5)).await;
    until(|| transferred() == 2).await;
    peer.send(fetch(6)).await;
    until(|| context.metrics().server().snapshot().connections == 0).await;
    assert_eq!(context.metrics().server().snapshot().failures, [(ErrorKind::Limit, 1)]);
    while let Some(message) = peer.next().await {
        let Message::ChunkFetchSuccess { chunk_index: 4 | 5, .. } = message else {
            panic!("{message:?}");
        };
    }
    until(|| transferred() == 0).await;
}

/// Sends a failure if the first bytes of the file cannot be read, as nothing was written yet.
#[tokio::test]
async fn read_error_at_start_of_file_fails_only_its_chunk() {
    let path = file_of(&pattern(SIZE, 3)).into_temp_path();
    for mode in MODES {
        let unreadable = Arc::new(std::fs::File::options().write(true).open(&path).unwrap());
        let handler = Handler::new()
            .on_chunk(move |_, _| Ok(ManagedBuffer::open_file(unreadable.clone(), 0..SIZE as u64)));
        let pair = pair_with(handler, &[("spark.shuffle.io.mode", mode)], &[]).await;
        let error = within(pair.client.fetch_chunk(STREAM, 0)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ChunkFetchFailure, "{mode}: {error}");
        assert!(error.to_string().contains("<open file>"), "{error}");
        pair.assert_alive().await;
        pair.assert_no_failures();
    }
}

/// Opening a named pipe would block its thread and the bulk lane until another process opens it.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn named_pipe_is_rejected() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pipe");
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    for lazy in ["true", "false"] {
        let path = path.clone();
        let handler = Handler::new().on_chunk(move |_, _| Ok(ManagedBuffer::file(&path, 0..10)));
        let pair = pair_with(handler, &[("spark.shuffle.io.lazyFD", lazy)], &[]).await;
        let error = within(pair.client.fetch_chunk(STREAM, 0)).await.unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");
        pair.assert_alive().await;
    }
}

/// A file length near `u64::MAX` must not overflow the check of the frame length.
#[tokio::test]
async fn chunk_of_impossible_length_fails_alone() {
    let handler = Handler::new().on_chunk(|_, _| Ok(ManagedBuffer::file("/dev/null", 0..u64::MAX)));
    let pair = pair(handler).await;
    let error = within(pair.client.fetch_chunk(STREAM, 0)).await.unwrap_err();
    assert!(error.to_string().contains("does not fit into a frame"), "{error}");
    pair.assert_alive().await;
}

/// Later requests must end even if the error of a stream manager panics in `Display`.
#[tokio::test]
async fn error_that_panics_in_display_leaves_no_request_pending() {
    #[derive(Debug)]
    struct PanicsInDisplay;
    impl std::fmt::Display for PanicsInDisplay {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            panic!("scripted failure")
        }
    }
    impl std::error::Error for PanicsInDisplay {}
    let handler = Handler::new().on_chunk(|_, index| {
        if index == 0 { Err(PanicsInDisplay.into()) } else { Ok(Bytes::new().into()) }
    });
    let pair = pair(handler).await;
    let chunks: Vec<_> = (0..3).map(|index| pair.client.fetch_chunk(STREAM, index)).collect();
    for chunk in chunks {
        drop(within(chunk).await);
    }
}
