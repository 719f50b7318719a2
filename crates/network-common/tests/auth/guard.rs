//! The handler that authenticates connections: which calls it forwards, and when.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use network_common::protocol::Message;
use network_common::{
    BoxError, ErrorKind, ManagedBuffer, MergedBlockMetaCallback, MergedBlockMetaRequest,
    RpcHandler, RpcResponseCallback, StreamBody, StreamManager, TransportClient, TransportContext,
    TransportError, TransportServer,
};
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::fixture::*;
use crate::proxy::{Direction, Fault, Proxy};
use crate::support::*;

/// A handler that records every call.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Vec<&'static str>>>);

impl Calls {
    fn note(&self, call: &'static str) {
        self.0.lock().push(call);
    }

    fn seen(&self) -> Vec<&'static str> {
        self.0.lock().clone()
    }

    /// Waits until this call was recorded.
    async fn until_seen(&self, call: &'static str) {
        until(|| self.seen().contains(&call)).await;
    }
}

impl RpcHandler for Calls {
    fn receive(&self, _: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
        self.note("rpc");
        callback.reply(message);
    }

    fn receive_one_way(&self, _: &TransportClient, _: Bytes) {
        self.note("one-way message");
    }

    fn receive_stream(
        &self,
        _: &TransportClient,
        _: Bytes,
        data: StreamBody,
    ) -> BoxFuture<'static, Result<Bytes, BoxError>> {
        self.note("upload");
        Box::pin(async move { Ok(data.collect().await?) })
    }

    fn stream_manager(&self) -> &dyn StreamManager {
        self
    }

    fn receive_merged_block_meta(
        &self,
        _: &TransportClient,
        _: MergedBlockMetaRequest,
        callback: MergedBlockMetaCallback,
    ) {
        self.note("merged blocks");
        callback.fail("there are none");
    }

    fn on_connected(&self, _: &TransportClient) {
        self.note("active");
    }

    fn on_disconnected(&self, _: &TransportClient) {
        self.note("inactive");
    }

    fn on_network_error(&self, _: &TransportError, _: &TransportClient) {
        self.note("exception");
    }
}

impl StreamManager for Calls {
    fn get_chunk<'a>(
        &'a self,
        _: &'a TransportClient,
        _: i64,
        _: i32,
    ) -> BoxFuture<'a, Result<ManagedBuffer, BoxError>> {
        self.note("chunk");
        Box::pin(async { Ok("chunk".into()) })
    }

    fn open_stream<'a>(
        &'a self,
        _: &'a TransportClient,
        _: &'a str,
    ) -> BoxFuture<'a, Result<Option<ManagedBuffer>, BoxError>> {
        self.note("stream");
        Box::pin(async { Ok(Some("stream".into())) })
    }

    fn connection_terminated(&self, _: &TransportClient) {
        self.note("terminated");
    }
}

async fn recording_server(mode: &Mode, calls: &Calls) -> TransportServer {
    let context = TransportContext::new(conf(mode.settings), calls.clone());
    serve(&context.with_auth(APP, secrets(APP, SECRET)).unwrap()).await
}

/// Calls about the connection itself are forwarded before authentication.
#[tokio::test]
async fn sasl_10_connection_events_are_forwarded_before_auth() {
    for mode in MODES {
        let calls = Calls::default();
        let server = recording_server(mode, &calls).await;
        let mut peer = TcpStream::connect(server.local_addr()).await.unwrap();
        // No frame can have this length.
        peer.write_all(&[0xff; 8]).await.unwrap();
        calls.until_seen("inactive").await;
        calls.until_seen("terminated").await;
        let mut seen = calls.seen();
        seen.sort_unstable();
        assert_eq!(seen, ["active", "exception", "inactive", "terminated"], "{}", mode.name);
    }
}

/// Calls of an authenticated peer are forwarded to the handler.
#[tokio::test]
async fn sasl_11_all_requests_are_forwarded_after_auth() {
    for mode in MODES {
        let calls = Calls::default();
        let server = recording_server(mode, &calls).await;
        let client = Client::new(mode.settings).connect(server.local_addr()).await.unwrap();
        client.send("one-way").unwrap();
        assert_echoes(&client).await;
        assert_eq!(within(client.upload_stream("meta", "data")).await.unwrap(), "data");
        let merged = within(client.merged_block_meta(APP, 1, 2, 3)).await.unwrap_err();
        assert!(merged.to_string().contains("there are none"), "{merged}");
        assert_eq!(within(client.fetch_chunk(1, 0)).await.unwrap(), "chunk");
        let body = within(client.stream("s")).await.unwrap();
        assert_eq!(within(body.collect()).await.unwrap(), "stream");
        client.close();
        calls.until_seen("inactive").await;
        calls.until_seen("terminated").await;
        for call in
            ["active", "rpc", "one-way message", "upload", "merged blocks", "chunk", "stream"]
        {
            let times = calls.seen().iter().filter(|seen| **seen == call).count();
            assert_eq!(times, 1, "{call}, {}", mode.name);
        }
    }
}

/// The stream manager of a connection is used after authentication, at both ends.
#[tokio::test(flavor = "multi_thread")]
async fn aah_02_stream_manager_is_used_after_auth() {
    for mode in MODES {
        let (of_server, of_client) = (Calls::default(), Calls::default());
        let server_side = Arc::new(Mutex::new(None));
        let active_client = server_side.clone();
        let handler = Handler::new()
            .on_active(move |client| *active_client.lock() = Some(client.clone()))
            .with_manager(Arc::new(of_server.clone()));
        let server = Server::with(mode.settings, handler).await;
        let at_client = Handler::new().with_manager(Arc::new(of_client.clone()));
        let end = Client::with(mode.settings, APP, SECRET, Some(at_client));
        let client = end.connect(server.server.local_addr()).await.unwrap();
        assert_echoes(&client).await;
        let back: TransportClient = server_side.lock().clone().unwrap();
        for (from, calls) in [(&client, &of_server), (&back, &of_client)] {
            assert_eq!(within(from.fetch_chunk(1, 0)).await.unwrap(), "chunk", "{}", mode.name);
            let body = within(from.stream("s")).await.unwrap();
            assert_eq!(within(body.collect()).await.unwrap(), "stream", "{}", mode.name);
            assert_eq!(calls.seen(), ["chunk", "stream"]);
        }
    }
}

/// Requests that a handler sends in `on_connected` fail, at both ends, because the peer is
/// unauthenticated. Nothing of them reaches the wire.
#[tokio::test(flavor = "multi_thread")]
async fn requests_to_unauthenticated_peer_fail_and_are_not_sent() {
    for mode in MODES {
        let (results, mut outcomes) = tokio::sync::mpsc::unbounded_channel();
        let sending_handler = move || {
            let results = results.clone();
            Handler::new().on_active(move |client| {
                let (rpc, stream) = (client.send_rpc("secret"), client.stream("secret"));
                let (upload, chunk) =
                    (client.upload_stream("secret", "secret"), client.fetch_chunk(1, 1));
                let (one_way, results) = (client.send("secret"), results.clone());
                tokio::spawn(async move {
                    for failed in
                        [one_way.err(), rpc.await.err(), upload.await.err(), chunk.await.err()]
                    {
                        results.send(failed.map(|error| error.kind())).unwrap();
                    }
                    results.send(stream.await.err().map(|error| error.kind())).unwrap();
                });
            })
        };
        let server = Server::with(mode.settings, sending_handler()).await;
        let proxy = Proxy::before(server.server.local_addr(), Fault::None).await;
        let end = Client::with(mode.settings, APP, SECRET, Some(sending_handler()));
        let client = end.connect(proxy.address).await.unwrap();
        for _ in 0..2 * 5 {
            assert_eq!(
                within(outcomes.recv()).await.unwrap(),
                Some(ErrorKind::InvalidState),
                "{}",
                mode.name
            );
        }
        assert_echoes(&client).await;
        for direction in [Direction::ToServer, Direction::ToClient] {
            let seen = proxy.seen(direction);
            assert!(!seen.windows(6).any(|window| window == b"secret"), "{}", mode.name);
        }
    }
}

/// A request in one write with an incomplete handshake is not served.
#[tokio::test]
async fn aah_01_request_after_first_sasl_message_is_rejected() {
    let calls = Calls::default();
    let server = recording_server(&SASL, &calls).await;
    let first = network_common::auth::testing::SaslMessage::new(APP, []).encode();
    let first = Message::RpcRequest { request_id: 1, body: Bytes::from(first) }.encode().unwrap();
    let chunk =
        Message::<Bytes>::ChunkFetchRequest { stream_id: 1, chunk_index: 0 }.encode().unwrap();
    let mut peer = TcpStream::connect(server.local_addr()).await.unwrap();
    peer.write_all(&[&first[..], &chunk].concat()).await.unwrap();
    calls.until_seen("inactive").await;
    assert!(!calls.seen().contains(&"chunk"));
}
