//! Filters that bootstraps install after their handshake: everything on the connection passes
//! through them.

// Helper functions outside of tests unwrap as well.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::future::BoxFuture;
use network_common::{
    BoxError, ByteFilter, ErrorKind, FilterOutput, ManagedBuffer, RpcHandler, RpcResponseCallback,
    StreamBody, StreamManager, TransportClient, TransportClientBootstrap, TransportContext,
    TransportError, TransportServerBootstrap,
};
use support::*;

/// A stream cipher for tests. Its key changes with every byte, so one missing or extra byte garbles
/// the rest.
struct Xor {
    position: u64,
    key: u64,
    seen: Arc<AtomicU64>,
}

impl ByteFilter for Xor {
    fn transform(&mut self, input: &[u8], output: &mut FilterOutput<'_>) -> Result<(), BoxError> {
        for byte in input {
            let key = (self.key ^ self.position).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
            output.extend_from_slice(&[byte ^ key as u8]);
            self.position += 1;
        }
        self.seen.fetch_add(input.len() as u64, Ordering::SeqCst);
        Ok(())
    }
}

/// A block cipher for tests with blocks of 16 bytes; opening holds bytes until their block is
/// complete.
struct Blocks {
    open: bool,
    held: Vec<u8>,
}

impl ByteFilter for Blocks {
    /// Seals to a byte with the number of used bytes, then 15 bytes.
    fn transform(&mut self, input: &[u8], output: &mut FilterOutput<'_>) -> Result<(), BoxError> {
        if !self.open {
            for piece in input.chunks(15) {
                let mut block = [0xff; 16];
                block[0] = piece.len() as u8;
                block[1..=piece.len()].copy_from_slice(piece);
                output.extend_from_slice(&block);
            }
            return Ok(());
        }
        self.held.extend_from_slice(input);
        let whole = self.held.len() / 16 * 16;
        for block in self.held[..whole].chunks(16) {
            let count = usize::from(block[0]);
            if count > 15 {
                return Err("invalid block length".into());
            }
            output.extend_from_slice(&block[1..=count]);
        }
        self.held.drain(..whole);
        Ok(())
    }
}

#[derive(Clone)]
struct Handshake {
    kind: &'static str,
    seen: Arc<AtomicU64>,
    key: u64,
}

impl Handshake {
    fn new(kind: &'static str) -> Self {
        Self { kind, seen: Arc::default(), key: 5 }
    }

    fn install(&self, client: &TransportClient, to_server: bool) -> Result<(), TransportError> {
        let filter = |key, open| -> Box<dyn ByteFilter> {
            match self.kind {
                "xor" => Box::new(Xor { position: 0, key, seen: self.seen.clone() }),
                _ => Box::new(Blocks { open, held: Vec::new() }),
            }
        };
        let (seal, open) = if to_server { (self.key, 6) } else { (6, 5) };
        client.install_filters(filter(seal, false), filter(open, true))
    }
}

impl TransportClientBootstrap for Handshake {
    fn do_bootstrap<'a>(
        &'a self,
        client: &'a TransportClient,
    ) -> BoxFuture<'a, Result<(), BoxError>> {
        Box::pin(async move {
            if client.send_rpc("handshake").await? != "welcome" {
                return Err("unexpected handshake response".into());
            }
            self.install(client, true)?;
            Ok(())
        })
    }
}

impl TransportServerBootstrap for Handshake {
    fn do_bootstrap(
        &self,
        _: &TransportClient,
        handler: Arc<dyn RpcHandler>,
    ) -> Result<Arc<dyn RpcHandler>, BoxError> {
        Ok(Arc::new(HandshakeHandler { handshake: self.clone(), inner: handler }))
    }
}

/// Answers the handshake and forwards everything else.
struct HandshakeHandler {
    handshake: Handshake,
    inner: Arc<dyn RpcHandler>,
}

impl RpcHandler for HandshakeHandler {
    fn receive(&self, client: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
        if message == "handshake" {
            callback.reply("welcome");
            self.handshake.install(client, false).unwrap();
        } else {
            self.inner.receive(client, message, callback);
        }
    }

    fn receive_one_way(&self, client: &TransportClient, message: Bytes) {
        self.inner.receive_one_way(client, message);
    }

    fn receive_stream(
        &self,
        client: &TransportClient,
        meta: Bytes,
        data: StreamBody,
    ) -> BoxFuture<'static, Result<Bytes, BoxError>> {
        self.inner.receive_stream(client, meta, data)
    }

    fn stream_manager(&self) -> &dyn StreamManager {
        self.inner.stream_manager()
    }
}

const SIZE: u64 = 3 << 20;

async fn filtered_pair(
    handshake: Handshake,
    at_server: Handshake,
) -> (Pair, Bytes, tempfile::NamedTempFile) {
    let content = pattern(SIZE as usize, 9);
    let file = file_of(&content);
    let (path, path2, memory) = (file.path().to_owned(), file.path().to_owned(), content.clone());
    let handler = Handler::new()
        .on_chunk(move |_, index| {
            Ok(if index == 0 { memory.clone().into() } else { ManagedBuffer::file(&path, 0..SIZE) })
        })
        .on_stream(move |_| Ok(Some(ManagedBuffer::file(&path2, 0..SIZE))))
        .on_upload(|_, data| async move { Ok(data.collect().await?) });
    let context = TransportContext::new(conf(&[]), handler);
    let server =
        context.create_server_with("127.0.0.1:0", vec![Arc::new(at_server)]).await.unwrap();
    let client_context = TransportContext::new(conf(&[]), Handler::new());
    let factory = client_context.create_client_factory_with(vec![Arc::new(handshake)]);
    let client = within(factory.create_client(server.local_addr())).await.unwrap();
    (Pair { context, server, client_context, factory, client }, content, file)
}

#[tokio::test(flavor = "multi_thread")]
async fn all_messages_pass_through_filters() {
    for kind in ["xor", "blocks"] {
        let handshake = Handshake::new(kind);
        let (pair, content, file) = filtered_pair(handshake.clone(), handshake.clone()).await;
        let client = &pair.client;
        assert_eq!(within(client.send_rpc("small")).await.unwrap(), "small");
        assert!(within(client.send_rpc(content.clone())).await.unwrap() == content);
        assert!(within(client.fetch_chunk(1, 0)).await.unwrap() == content, "from memory");
        assert!(within(client.fetch_chunk(1, 1)).await.unwrap() == content, "from a file");
        let body = within(client.stream("s")).await.unwrap();
        assert!(within(body.collect()).await.unwrap() == content);
        let uploads =
            [ManagedBuffer::from(content.clone()), ManagedBuffer::file(file.path(), 0..SIZE)];
        for data in uploads {
            assert!(within(client.upload_stream("u", data)).await.unwrap() == content);
        }
        client.send("ignored").unwrap();
        // All types concurrently.
        let (a, b, c, d, e) = within(async {
            tokio::join!(
                client.send_rpc("with the others"),
                client.fetch_chunk(1, 1),
                client.fetch_chunk(1, 0),
                async { client.stream("s").await?.collect().await },
                client.upload_stream("u", content.clone())
            )
        })
        .await;
        assert_eq!(a.unwrap(), "with the others");
        for body in [b, c, d, e] {
            assert!(body.unwrap() == content);
        }
        // Filters can be installed only once.
        assert_eq!(handshake.install(client, true).unwrap_err().kind(), ErrorKind::InvalidState);
        // No file bypassed the filter.
        let (at_server, at_client) = (
            pair.context.metrics().server().snapshot(),
            pair.client_context.metrics().client().snapshot(),
        );
        assert_eq!((at_server.sendfile_bytes, at_client.sendfile_bytes), (0, 0));
        assert_eq!((at_server.copied_file_bytes, at_client.copied_file_bytes), (4 * SIZE, SIZE));
        if kind == "xor" {
            // Both ends filtered all bytes of both directions except the handshake.
            let moved = at_server.received_bytes
                + at_server.sent_bytes
                + at_client.received_bytes
                + at_client.sent_bytes;
            let handshake_bytes = (8 + 13 + "handshake".len() + 8 + 13 + "welcome".len()) as u64;
            assert_eq!(handshake.seen.load(Ordering::SeqCst), moved - 2 * handshake_bytes);
        }
        pair.assert_alive().await;
        pair.assert_no_failures();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_pass_through_filters_and_keep_connection() {
    let handshake = Handshake::new("blocks");
    let (pair, content, file) = filtered_pair(handshake.clone(), handshake).await;
    std::fs::write(file.path(), "truncated").unwrap();
    let failed = within(pair.client.fetch_chunk(1, 1)).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::ChunkFetchFailure);
    let failed = within(pair.client.stream("s")).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::StreamFailure);
    let missing = pair.client.upload_stream("u", ManagedBuffer::file("/nowhere", 0..1));
    assert_eq!(within(missing).await.unwrap_err().kind(), ErrorKind::Io);
    assert!(within(pair.client.fetch_chunk(1, 0)).await.unwrap() == content);
    pair.assert_alive().await;
}

/// A cipher that passes bytes on or fails at once.
struct Cipher {
    broken: bool,
    calls: Arc<AtomicU64>,
}

impl ByteFilter for Cipher {
    fn transform(&mut self, input: &[u8], output: &mut FilterOutput<'_>) -> Result<(), BoxError> {
        if self.broken {
            self.calls.fetch_add(1, Ordering::SeqCst);
            return Err("the cipher is broken".into());
        }
        output.extend_from_slice(input);
        Ok(())
    }
}

/// The error closes the connection, the cipher is not called again, and unsent bodies are released.
#[tokio::test]
async fn tc_01_failing_cipher_closes_connection_and_releases_bodies() {
    for seal_is_broken in [true, false] {
        let pair = pair(Handler::new()).await;
        let calls = Arc::new(AtomicU64::new(0));
        let cipher = |broken| Box::new(Cipher { broken, calls: Arc::clone(&calls) });
        pair.client.install_filters(cipher(seal_is_broken), cipher(!seal_is_broken)).unwrap();
        let (released, is_released) = tokio::sync::oneshot::channel();
        let body =
            ManagedBuffer::from(pattern(100_000, 1)).on_release(move || released.send(()).unwrap());
        let (upload, rpc) = (pair.client.upload_stream("u", body), pair.client.send_rpc("x"));
        for failed in [within(upload).await.unwrap_err(), within(rpc).await.unwrap_err()] {
            assert_eq!(failed.kind(), ErrorKind::Io);
            assert!(full_text(&failed).contains("the cipher is broken"), "{}", full_text(&failed));
        }
        within(is_released).await.unwrap();
        let later = within(pair.client.send_rpc("y")).await.unwrap_err();
        assert!(matches!(later.kind(), ErrorKind::Closed | ErrorKind::Io), "{later}");
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }
}

/// Filters with different keys cause an error and the end of the connection, not a panic or a hang.
#[tokio::test(flavor = "multi_thread")]
async fn mismatched_filters_end_connection() {
    let (good, bad) = (Handshake::new("xor"), Handshake { key: 77, ..Handshake::new("xor") });
    let (pair, ..) = filtered_pair(bad, good).await;
    let kind = within(pair.client.send_rpc("garbage to the server")).await.unwrap_err().kind();
    assert!(matches!(kind, ErrorKind::Closed | ErrorKind::Io | ErrorKind::Protocol), "{kind:?}");
    until(|| pair.context.metrics().server().snapshot().connections == 0).await;
    assert_eq!(pair.context.metrics().server().snapshot().failures, [(ErrorKind::Protocol, 1)]);

    // A filter that rejects its input.
    let (pair, ..) = filtered_pair(Handshake::new("xor"), Handshake::new("blocks")).await;
    within(pair.client.send_rpc(vec![0xff; 100])).await.unwrap_err();
    until(|| pair.context.metrics().server().snapshot().connections == 0).await;
    assert_eq!(pair.context.metrics().server().snapshot().failures, [(ErrorKind::Io, 1)]);
}
