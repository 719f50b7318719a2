//! Everything that connections do, over TLS: the TLS variants of Spark's
//! `ChunkFetchIntegrationSuite` and `TransportClientFactorySuite`, its encoder suites, and filters
//! above TLS.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use network_common::{
    BoxError, ByteFilter, ErrorKind, FilterOutput, ManagedBuffer, RpcHandler, TransportClient,
    TransportClientBootstrap, TransportServerBootstrap,
};
use tempfile::NamedTempFile;

use crate::fixture::*;
use crate::support::*;

const SIZE: usize = 100_000;

/// Serves chunk 0 from memory and chunk 1 from a file (offset 10, length `SIZE - 25`); others fail.
struct Chunks {
    pair: Pair,
    memory: Bytes,
    of_file: Bytes,
    _file: NamedTempFile,
    _world: Fixture,
}

async fn chunks() -> Chunks {
    let fixture = Fixture::new();
    let (memory, content) = (pattern(SIZE, 1), pattern(SIZE, 2));
    let file = file_of(&content);
    let (path, served) = (file.path().to_owned(), memory.clone());
    let handler = Handler::new().on_chunk(move |_, index| match index {
        0 => Ok(served.clone().into()),
        1 => Ok(ManagedBuffer::file(&path, 10..(SIZE - 15) as u64)),
        _ => Err(format!("Invalid chunk index: {index}").into()),
    });
    let pair = fixture.pair(handler).await;
    Chunks { pair, memory, of_file: content.slice(10..SIZE - 15), _file: file, _world: fixture }
}

#[tokio::test]
async fn cfi_06_buffer_chunk_is_fetched() {
    let chunks = chunks().await;
    assert_eq!(within(chunks.pair.client.fetch_chunk(1, 0)).await.unwrap(), chunks.memory);
}

#[tokio::test]
async fn cfi_07_file_chunk_is_fetched() {
    let chunks = chunks().await;
    assert_eq!(within(chunks.pair.client.fetch_chunk(1, 1)).await.unwrap(), chunks.of_file);
    let metrics = chunks.pair.context.metrics().server().snapshot();
    assert_eq!(metrics.sendfile_bytes, 0, "`sendfile` would send the file unencrypted");
}

#[tokio::test]
async fn cfi_08_unknown_chunk_fails() {
    let chunks = chunks().await;
    let error = within(chunks.pair.client.fetch_chunk(1, 12345)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ChunkFetchFailure);
    assert_contains(&error, &["12345"]);
}

#[tokio::test]
async fn cfi_09_buffer_and_file_chunk_are_fetched_concurrently() {
    let chunks = chunks().await;
    let client = &chunks.pair.client;
    let (first, second) =
        within(async { tokio::join!(client.fetch_chunk(1, 0), client.fetch_chunk(1, 1)) }).await;
    assert_eq!((first.unwrap(), second.unwrap()), (chunks.memory, chunks.of_file));
}

#[tokio::test]
async fn cfi_10_unknown_chunk_does_not_affect_others() {
    let chunks = chunks().await;
    let client = &chunks.pair.client;
    let (good, bad) =
        within(async { tokio::join!(client.fetch_chunk(1, 0), client.fetch_chunk(1, 12345)) })
            .await;
    assert_eq!(good.unwrap(), chunks.memory);
    assert_eq!(bad.unwrap_err().kind(), ErrorKind::ChunkFetchFailure);
    chunks.pair.assert_alive().await;
    chunks.pair.assert_no_failures();
}

/// Requests `count` clients from a pool of `connections`. Returns the number of different clients.
async fn distinct_clients(connections: usize, count: usize, at_once: bool) -> usize {
    let mut fixture = Fixture::new();
    fixture.client =
        fixture.client.and("spark.shuffle.io.numConnectionsPerPeer", &connections.to_string());
    let context = fixture.server.context(Handler::new());
    let server = serve(&context).await;
    let factory = fixture.client.client_context().create_client_factory();
    let address = server.local_addr();
    let clients = if at_once {
        within(futures::future::try_join_all((0..count).map(|_| factory.create_client(address))))
            .await
            .unwrap()
    } else {
        let mut clients = Vec::new();
        for _ in 0..count {
            clients.push(within(factory.create_client(address)).await.unwrap());
        }
        clients
    };
    assert!(clients.iter().all(TransportClient::is_active));
    clients.iter().map(TransportClient::id).collect::<HashSet<_>>().len()
}

#[tokio::test]
async fn tcf_10_pool_reuses_clients_up_to_configured_number() {
    for connections in 1..=4 {
        let distinct = distinct_clients(connections, connections * 10, false).await;
        assert!((1..=connections).contains(&distinct), "{distinct} of {connections}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tcf_11_pool_reuses_clients_up_to_number_for_concurrent_callers() {
    for connections in 1..=4 {
        let distinct = distinct_clients(connections, connections * 10, true).await;
        assert!((1..=connections).contains(&distinct), "{distinct} of {connections}");
    }
}

#[tokio::test]
async fn tcf_12_different_servers_get_different_clients() {
    let fixture = Fixture::new();
    let pair = fixture.pair(Handler::new()).await;
    let other = serve(&pair.context).await;
    let second = within(pair.factory.create_client(other.local_addr())).await.unwrap();
    assert!(pair.client.is_active() && second.is_active());
    assert_ne!(pair.client.id(), second.id());
}

#[tokio::test]
async fn tcf_13_inactive_client_is_never_returned() {
    let pair = Fixture::new().pair(Handler::new()).await;
    pair.client.close();
    let second = within(pair.factory.create_client(pair.server.local_addr())).await.unwrap();
    assert_ne!(pair.client.id(), second.id());
    assert!(!pair.client.is_active() && second.is_active());
}

#[tokio::test]
async fn tcf_14_closing_factory_closes_pooled_clients() {
    let pair = Fixture::new().pair(Handler::new()).await;
    pair.factory.close();
    within(pair.client.closed()).await;
    assert!(!pair.client.is_active());
}

#[tokio::test]
async fn tcf_15_idle_connection_is_closed_after_timeout() {
    let mut fixture = Fixture::new();
    fixture.client = fixture.client.and("spark.shuffle.io.connectionTimeout", "1s");
    let context = fixture.server.context(Handler::new());
    let server = serve(&context).await;
    let factory =
        fixture.client.client_context().close_idle_connections(true).create_client_factory();
    let client = within(factory.create_client(server.local_addr())).await.unwrap();
    assert_eq!(within(client.closed()).await.kind(), ErrorKind::Closed);
    assert!(!client.is_active());
}

#[tokio::test]
async fn tcf_16_closed_factory_creates_no_client() {
    let pair = Fixture::new().pair(Handler::new()).await;
    pair.factory.close();
    let error = within(pair.factory.create_client(pair.server.local_addr())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn tcf_17_connecting_fails_fast_within_time_window() {
    let pair = Fixture::new().pair(Handler::new()).await;
    let address = pair.server.local_addr();
    pair.server.close(Duration::ZERO).await;
    within(pair.client.closed()).await;
    let first = within(pair.factory.create_client_fast_fail(address)).await.unwrap_err();
    assert_eq!(first.kind(), ErrorKind::Connect);
    let second = within(pair.factory.create_client_fast_fail(address)).await.unwrap_err();
    assert_eq!(second.kind(), ErrorKind::FastFail);
    assert_contains(&second, &["fail this connection directly"]);
}

#[tokio::test]
async fn tcf_18_unlimited_timeouts_are_respected() {
    let mut fixture = Fixture::new();
    for key in ["spark.shuffle.io.connectionTimeout", "spark.shuffle.io.connectionCreationTimeout"]
    {
        fixture.client = fixture.client.and(key, "-1");
    }
    let context = fixture.server.context(Handler::new());
    let server = serve(&context).await;
    let address = server.local_addr();
    let factory =
        fixture.client.client_context().close_idle_connections(true).create_client_factory();
    let client = within(factory.create_client(address)).await.unwrap();
    tokio::time::timeout(Duration::from_secs(2), client.closed()).await.unwrap_err();
    assert!(client.is_active());
    server.close(Duration::ZERO).await;
    within(client.closed()).await;
    let error = within(factory.create_client(address)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect);
    assert!(std::error::Error::source(&error).is_some());
}

const LARGE: usize = 5 << 20;

/// Connects with this version of TLS. Returns also the content that the server has in memory and in
/// a file.
async fn connect_with_version(protocol: &str) -> (Pair, Bytes, NamedTempFile) {
    let mut fixture = Fixture::new();
    fixture.server = fixture.server.with("protocol", protocol);
    fixture.client = fixture.client.with("protocol", protocol);
    let content = pattern(LARGE, 3);
    let file = file_of(&content);
    let (path, path2, memory) = (file.path().to_owned(), file.path().to_owned(), content.clone());
    let handler = Handler::new()
        .on_chunk(move |_, length| {
            let length = length as usize;
            Ok(if length.is_multiple_of(2) {
                memory.slice(..length).into()
            } else {
                ManagedBuffer::file(&path, 0..length as u64)
            })
        })
        .on_stream(move |_| Ok(Some(ManagedBuffer::file(&path2, 0..LARGE as u64))))
        .on_upload(|_, data| async move { Ok(data.collect().await?) });
    (fixture.pair(handler).await, content, file)
}

const VERSIONS: [&str; 3] = ["TLSv1.3", "TLSv1.2", "TLS"];

/// Bodies of many sizes, from memory and from files.
#[tokio::test(flavor = "multi_thread")]
async fn emh_01_bodies_arrive_complete() {
    for protocol in VERSIONS {
        let (pair, content, _file) = connect_with_version(protocol).await;
        let client = &pair.client;
        for length in [0, 1, 128, 129, 16_383, 16_384, 16_385, 1 << 20, (1 << 20) + 1, LARGE] {
            assert_eq!(
                within(client.fetch_chunk(1, length as i32)).await.unwrap(),
                content[..length]
            );
            let echo = within(client.send_rpc(content.slice(..length))).await.unwrap();
            assert_eq!(echo, content[..length]);
        }
        pair.assert_alive().await;
        pair.assert_no_failures();
    }
}

/// Bodies that are sent in pieces, alone and concurrently.
#[tokio::test(flavor = "multi_thread")]
async fn emh_02_streams_arrive_complete() {
    for protocol in VERSIONS {
        let (pair, content, file) = connect_with_version(protocol).await;
        let client = &pair.client;
        let body = within(client.stream("s")).await.unwrap();
        assert!(within(body.collect()).await.unwrap() == content);
        let file = ManagedBuffer::file(file.path(), 0..LARGE as u64);
        let (small, chunk, from_file, from_memory, stream) = within(async {
            tokio::join!(
                client.send_rpc("concurrent"),
                client.fetch_chunk(1, LARGE as i32),
                client.upload_stream("u", file),
                client.upload_stream("u", content.clone()),
                async { client.stream("s").await?.collect().await }
            )
        })
        .await;
        assert_eq!(small.unwrap(), "concurrent");
        for body in [chunk, from_file, from_memory, stream] {
            assert!(body.unwrap() == content);
        }
        pair.assert_alive().await;
        pair.assert_no_failures();
    }
}

/// The release hook of an upload runs once, after the upload was sent.
#[tokio::test]
async fn sslenc_01_upload_bodies_are_released_after_sending() {
    let handler = Handler::new().on_upload(|_, data| async move { Ok(data.collect().await?) });
    let pair = Fixture::new().pair(handler).await;
    let (released, mut releases) = tokio::sync::mpsc::unbounded_channel();
    for index in 0..3 {
        let released = released.clone();
        let body = ManagedBuffer::from(pattern(200_000, 4))
            .on_release(move || released.send(index).unwrap());
        within(pair.client.upload_stream("meta", body)).await.unwrap();
        assert_eq!(within(releases.recv()).await, Some(index));
    }
    pair.assert_alive().await;
    assert!(releases.is_empty());
}

/// The release hook of a chunk runs once, after the chunk was sent.
#[tokio::test]
async fn emh_03_chunk_bodies_are_released_after_sending() {
    let (released, mut releases) = tokio::sync::mpsc::unbounded_channel();
    let handler = Handler::new().on_chunk(move |_, index| {
        let released = released.clone();
        Ok(ManagedBuffer::from(pattern(200_000, 4))
            .on_release(move || released.send(index).unwrap()))
    });
    let pair = Fixture::new().pair(handler).await;
    for index in 0..3 {
        within(pair.client.fetch_chunk(1, index)).await.unwrap();
        assert_eq!(within(releases.recv()).await, Some(index));
    }
    pair.assert_alive().await;
    assert!(releases.is_empty());
}

/// A stream cipher for tests, as an authentication would install; its key changes with every byte.
struct Rolling(u8);

impl ByteFilter for Rolling {
    fn transform(&mut self, input: &[u8], output: &mut FilterOutput<'_>) -> Result<(), BoxError> {
        for byte in input {
            output.extend_from_slice(&[byte ^ self.0]);
            self.0 = self.0.wrapping_add(1);
        }
        Ok(())
    }
}

/// A bootstrap that installs filters after a handshake of one RPC.
struct Authentication;

impl TransportClientBootstrap for Authentication {
    fn do_bootstrap<'a>(
        &'a self,
        client: &'a TransportClient,
    ) -> BoxFuture<'a, Result<(), BoxError>> {
        Box::pin(async move {
            assert_eq!(client.send_rpc("authenticate").await?, "go on");
            Ok(client.install_filters(Box::new(Rolling(1)), Box::new(Rolling(2)))?)
        })
    }
}

impl TransportServerBootstrap for Authentication {
    fn do_bootstrap(
        &self,
        _: &TransportClient,
        handler: Arc<dyn RpcHandler>,
    ) -> Result<Arc<dyn RpcHandler>, BoxError> {
        let guard = Handler::new().on_rpc(move |client, message, callback| {
            if message == "authenticate" {
                callback.reply("go on");
                client.install_filters(Box::new(Rolling(2)), Box::new(Rolling(1))).unwrap();
            } else {
                handler.receive(client, message, callback);
            }
        });
        Ok(Arc::new(guard))
    }
}

#[tokio::test]
async fn filters_of_bootstrap_work_above_tls() {
    let fixture = Fixture::new();
    let context = fixture.server.context(Handler::new());
    let server =
        context.create_server_with("127.0.0.1:0", vec![Arc::new(Authentication)]).await.unwrap();
    let client_context = fixture.client.client_context();
    let factory = client_context.create_client_factory_with(vec![Arc::new(Authentication)]);
    let client = within(factory.create_client(server.local_addr())).await.unwrap();
    for length in [10, 100_000, 3_000_000] {
        let message = pattern(length, 5);
        assert!(within(client.send_rpc(message.clone())).await.unwrap() == message);
    }
    client.close();
    assert_eq!(within(client.closed()).await.kind(), ErrorKind::Closed);
    until(|| context.metrics().server().snapshot().connections == 0).await;
    assert_eq!(context.metrics().server().snapshot().failures, []);
}
