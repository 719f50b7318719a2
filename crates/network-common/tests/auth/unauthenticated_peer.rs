//! Raw peers that have not authenticated: what they can send, and for how long.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use network_common::ErrorKind;
use network_common::auth::testing::{AuthMessage, SaslMessage};
use network_common::protocol::{MergedBlockMetaRequest, Message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::fixture::*;
use crate::support::*;

fn rpc(body: impl Into<Bytes>) -> Vec<u8> {
    Message::RpcRequest { request_id: 7, body: body.into() }.encode().unwrap().to_vec()
}

/// Sends bytes and reads until the peer closes.
async fn send_and_read_to_end(address: std::net::SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The peer may close before everything is written.
    let _ = stream.write_all(bytes).await;
    let mut response = Vec::new();
    let _ = within(stream.read_to_end(&mut response)).await;
    response
}

/// Row `aah_01`, extended to every type of request.
#[tokio::test(flavor = "multi_thread")]
async fn aah_01_unauthenticated_peer_is_served_nothing() {
    let meta = MergedBlockMetaRequest {
        request_id: 1,
        app_id: APP.into(),
        shuffle_id: 0,
        shuffle_merge_id: 0,
        reduce_id: 0,
    };
    let upload = Message::UploadStream { request_id: 1, meta: Bytes::from("m"), byte_count: 4 };
    let frames: Vec<(&str, Vec<u8>)> = vec![
        ("an RPC", rpc("hello")),
        ("an empty RPC", rpc("")),
        (
            "a one-way message",
            Message::OneWayMessage { body: Bytes::from("x") }.encode().unwrap().to_vec(),
        ),
        (
            "a chunk",
            Message::<Bytes>::ChunkFetchRequest { stream_id: 1, chunk_index: 0 }
                .encode()
                .unwrap()
                .to_vec(),
        ),
        (
            "a stream",
            Message::<Bytes>::StreamRequest { stream_id: "s".into() }.encode().unwrap().to_vec(),
        ),
        ("an upload", [&upload.encode().unwrap()[..], b"data"].concat()),
        (
            "merged blocks",
            Message::<Bytes>::MergedBlockMetaRequest(meta).encode().unwrap().to_vec(),
        ),
    ];
    for mode in MODES {
        let requests = Arc::new(AtomicUsize::new(0));
        let server = Server::with(mode.settings, counting_handler(&requests)).await;
        for (what, request) in &frames {
            // Sent twice, because SASL servers let a client of the auth engine try again.
            let response =
                send_and_read_to_end(server.server.local_addr(), &[&request[..], request].concat())
                    .await;
            let text = String::from_utf8_lossy(&response);
            for detail in ["secret", "app-1", "verification", "0x", "expected", "127.0.0.1"] {
                assert!(!text.contains(detail), "{what}, {}: {text}", mode.name);
            }
        }
        server.wait_until_empty().await;
        assert_eq!((server.served(), requests.load(Ordering::SeqCst)), (0, 0), "{}", mode.name);
        let failures = server.context.metrics().server().snapshot().failures;
        let total: u64 = failures.iter().map(|(_, count)| count).sum();
        assert_eq!(total, frames.len() as u64, "{}: {failures:?}", mode.name);
        // Authenticated clients are served afterwards.
        let client = Client::new(mode.settings).connect(server.server.local_addr()).await.unwrap();
        assert_echoes(&client).await;
        assert_eq!(within(client.fetch_chunk(1, 0)).await.unwrap(), "chunk");
    }
}

/// The error must not reveal whether the secret or the application was wrong.
async fn check_wrong_secret_and_unknown_app_fail(modes: &[Mode]) {
    for mode in modes {
        let server = Server::new(mode.settings).await;
        let mut texts = Vec::new();
        for (app, secret) in [(APP, "wrong"), ("unknown", SECRET)] {
            let end = Client::with(mode.settings, app, secret, None);
            let error = end.connect(server.server.local_addr()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Bootstrap, "{}", mode.name);
            texts.push(full_text(&error).replace(&server.server.local_addr().to_string(), ""));
            server.wait_until_empty().await;
        }
        assert_eq!(texts[0], texts[1], "the errors reveal which was wrong");
        assert!(texts[0].contains("Authentication failed."), "{}", texts[0]);
        assert_eq!(server.served(), 0);
        assert_eq!(
            server.context.metrics().server().snapshot().failures,
            [(ErrorKind::Bootstrap, 2)]
        );
    }
}

#[tokio::test]
async fn ai_03_ctr_auth_fails_with_wrong_secret_or_app() {
    check_wrong_secret_and_unknown_app_fail(&[CTR_1, CTR_2]).await;
    #[cfg(feature = "legacy-auth")]
    check_wrong_secret_and_unknown_app_fail(&[LEGACY]).await;
}

#[tokio::test]
async fn ai_04_gcm_auth_fails_with_wrong_secret_or_app() {
    check_wrong_secret_and_unknown_app_fail(&[GCM_1, GCM_2]).await;
}

#[tokio::test]
async fn sasl_02_auth_fails_with_wrong_secret_or_app() {
    check_wrong_secret_and_unknown_app_fail(&[SASL]).await;
    #[cfg(feature = "legacy-auth")]
    check_wrong_secret_and_unknown_app_fail(&[SASL_ENCRYPTED]).await;
}

#[tokio::test]
async fn client_without_secret_reports_missing_secret() {
    let context =
        network_common::TransportContext::new(conf(&[]), network_common::NoOpRpcHandler::new());
    let context = context.with_auth("unknown-app", secrets(APP, SECRET)).unwrap();
    let server = Server::new(SASL.settings).await;
    let factory = context.create_client_factory();
    let error = within(factory.create_client(server.server.local_addr())).await.unwrap_err();
    assert!(
        full_text(&error).contains("no secret is known for the application 'unknown-app'"),
        "{error}"
    );
}

const SHORT_TIMEOUT: Settings = &[
    ("spark.network.crypto.enabled", "true"),
    ("spark.network.crypto.saslFallback", "true"),
    ("spark.network.auth.rpcTimeout", "400ms"),
    ("spark.shuffle.auth.maxHandshakes", "2"),
];

/// A stalled handshake is closed at the timeout, and its permit is released.
#[tokio::test(flavor = "multi_thread")]
async fn stalled_handshake_times_out_and_releases_its_permit() {
    let server = Server::new(SHORT_TIMEOUT).await;
    let address = server.server.local_addr();
    let sasl = rpc(SaslMessage::new(APP, []).encode());
    // One peer sends nothing, the other stops after the first step.
    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut stopped = TcpStream::connect(address).await.unwrap();
    stopped.write_all(&sasl).await.unwrap();
    let mut challenge = [0; 64];
    within(stopped.read_exact(&mut challenge)).await.unwrap();
    // Both handshake permits are in use, so the next handshake waits. It begins later, so that its
    // own time ends clearly after theirs.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let waiting = Client::new(CTR_1.settings).connect(address).await.unwrap();
    assert_echoes(&waiting).await;
    drop(waiting);
    let mut rest = Vec::new();
    within(silent.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"");
    within(stopped.read_to_end(&mut rest)).await.unwrap();
    server.wait_until_empty().await;
    let failures = server.context.metrics().server().snapshot().failures;
    assert_eq!(failures, [(ErrorKind::Bootstrap, 2)]);
    // The permits are free again, and authenticated connections hold none.
    let end = Client::new(CTR_1.settings);
    let mut clients = Vec::new();
    for _ in 0..5 {
        let client = end.connect(address).await.unwrap();
        // A handshake could be a replay until its peer has sent an encrypted message.
        assert_echoes(&client).await;
        clients.push(client);
    }
    tokio::time::sleep(Duration::from_millis(600)).await;
    for client in &clients {
        assert_echoes(client).await;
    }
    assert_eq!(server.served(), 11);
}

/// An announced length over the limit is rejected at once; received bytes are counted.
#[tokio::test(flavor = "multi_thread")]
async fn unauthenticated_peer_cannot_exceed_memory_limits() {
    let mut announced = rpc(vec![0; 5000]);
    announced[..8].copy_from_slice(&(100_u64 << 20).to_be_bytes());
    announced[17..21].copy_from_slice(&((100_u32 << 20) - 21).to_be_bytes());
    let mut name = Message::<Bytes>::StreamRequest { stream_id: "n".repeat(1 << 20) }
        .encode()
        .unwrap()
        .to_vec();
    name.truncate(200 << 10);
    let meta = Bytes::from(vec![1; 1 << 20]);
    let mut meta =
        Message::<Bytes>::UploadStream { request_id: 1, meta, byte_count: 0 }.encode().unwrap();
    meta.truncate(200 << 10);
    let responses: Vec<u8> = (0..10_000)
        .flat_map(|_| {
            Message::RpcResponse { request_id: 1, body: Bytes::from("x") }.encode().unwrap()
        })
        .collect();
    let settings: Settings = &[("spark.network.crypto.enabled", "true")];
    for (what, bytes, kind) in [
        ("a body", &announced, ErrorKind::Limit),
        ("a name", &name, ErrorKind::Protocol),
        ("a meta", &meta, ErrorKind::Limit),
        ("many responses", &responses, ErrorKind::Limit),
    ] {
        let server = Server::new(settings).await;
        send_and_read_to_end(server.server.local_addr(), bytes).await;
        server.wait_until_empty().await;
        let snapshot = server.context.metrics().server().snapshot();
        assert_eq!(snapshot.failures, [(kind, 1)], "{what}");
        assert!(
            snapshot.received_bytes <= 128 << 10,
            "{what}: {} bytes were read",
            snapshot.received_bytes
        );
        assert_eq!(server.served(), 0);
    }
}

/// Replays a recorded handshake without knowing any key.
#[tokio::test(flavor = "multi_thread")]
async fn replayed_or_reordered_handshake_is_rejected() {
    use crate::proxy::{Direction, Fault, Proxy};
    for mode in MODES {
        let server = Server::new(mode.settings).await;
        let proxy = Proxy::before(server.server.local_addr(), Fault::None).await;
        let client = Client::new(mode.settings).connect(proxy.address).await.unwrap();
        assert_echoes(&client).await;
        let recorded = proxy.seen(Direction::ToServer);
        drop(client);
        server.wait_until_empty().await;
        assert_eq!(server.served(), 1);
        // The pauses let the server respond and install its filters between the frames.
        let mut stream = TcpStream::connect(server.server.local_addr()).await.unwrap();
        let mut rest = &recorded[..];
        while let Some(length) =
            rest.first_chunk::<8>().map(|length| u64::from_be_bytes(*length) as usize)
        {
            let (frame, more) = rest.split_at(length.min(rest.len()));
            let _ = stream.write_all(frame).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            rest = more;
        }
        stream.shutdown().await.unwrap();
        let mut response = Vec::new();
        let _ = within(stream.read_to_end(&mut response)).await;
        server.wait_until_empty().await;
        assert_eq!(server.served(), 1, "{}", mode.name);
        // The last frames before the first, then the first frame twice.
        let first = u64::from_be_bytes(*recorded.first_chunk().unwrap()) as usize;
        for order in
            [[&recorded[first..], &recorded[..first]].concat(), [&recorded[..first]; 2].concat()]
        {
            send_and_close(server.server.local_addr(), &order).await;
        }
        server.wait_until_empty().await;
        assert_eq!(server.served(), 1, "{}", mode.name);
    }
}

/// Replays a server's recorded responses to another client.
#[tokio::test(flavor = "multi_thread")]
async fn replayed_server_responses_are_rejected() {
    use crate::proxy::{Direction, Fault, Proxy};
    for mode in MODES {
        let server = Server::new(mode.settings).await;
        let proxy = Proxy::before(server.server.local_addr(), Fault::None).await;
        Client::new(mode.settings).connect(proxy.address).await.unwrap();
        let recorded = proxy.seen(Direction::ToClient);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let replaying_server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut rest = &recorded[..];
            while let Some(length) = rest.first_chunk::<8>() {
                let (response, more) = rest.split_at(u64::from_be_bytes(*length) as usize);
                rest = more;
                let mut length = [0; 8];
                if stream.read_exact(&mut length).await.is_err() {
                    return;
                }
                let mut request = vec![0; u64::from_be_bytes(length) as usize - 8];
                stream.read_exact(&mut request).await.unwrap();
                // The response carries the id of the current request.
                let response = [&response[..9], &request[1..9], &response[17..]].concat();
                let _ = stream.write_all(&response).await;
            }
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        let error = Client::new(mode.settings).connect(address).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Bootstrap, "{}", mode.name);
        assert!(
            full_text(&error).contains("verification failed"),
            "{}: {}",
            mode.name,
            full_text(&error)
        );
        within(replaying_server).await.unwrap();
    }
}

/// A request in front of a valid handshake is not served after the handshake.
#[tokio::test]
async fn requests_sent_before_handshake_are_not_served_after_it() {
    use crate::proxy::{Direction, Fault, Proxy};
    let chunk = Message::<Bytes>::ChunkFetchRequest { stream_id: 1, chunk_index: 0 };
    let stream = Message::<Bytes>::StreamRequest { stream_id: "s".into() };
    for mode in [CTR_1, GCM_2] {
        for request in [&chunk, &stream] {
            let requests = Arc::new(AtomicUsize::new(0));
            let server = Server::with(mode.settings, counting_handler(&requests)).await;
            let proxy = Proxy::before(server.server.local_addr(), Fault::None).await;
            let client = Client::new(mode.settings).connect(proxy.address).await.unwrap();
            let handshake = proxy.seen(Direction::ToServer);
            drop(client);
            send_and_read_to_end(
                server.server.local_addr(),
                &[&request.encode().unwrap()[..], &handshake].concat(),
            )
            .await;
            server.wait_until_empty().await;
            assert_eq!(requests.load(Ordering::SeqCst), 0, "{}: {request:?}", mode.name);
        }
    }
}

async fn send_and_close(address: std::net::SocketAddr, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let _ = within(stream.read_to_end(&mut Vec::new())).await;
}

/// A raw server that has not authenticated.
#[tokio::test(flavor = "multi_thread")]
async fn unauthenticated_server_is_served_nothing_by_client() {
    const SETTINGS: Settings = &[
        ("spark.network.crypto.enabled", "true"),
        ("spark.network.crypto.saslFallback", "false"),
        ("spark.network.auth.rpcTimeout", "400ms"),
    ];
    let failure = |text: &str| {
        Message::<Bytes>::RpcFailure { request_id: 0, error: text.to_owned() }
            .encode()
            .unwrap()
            .to_vec()
    };
    let response = |body: Vec<u8>| {
        Message::RpcResponse { request_id: 0, body: Bytes::from(body) }.encode().unwrap().to_vec()
    };
    let forged = AuthMessage::new(APP, [1; 16], [2; 60]).encode();
    let mut huge = response(vec![0; 5000]);
    huge[..8].copy_from_slice(&(1_u64 << 30).to_be_bytes());
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("an RPC", rpc("serve me"), "before it was authenticated"),
        (
            "a one-way message",
            Message::OneWayMessage { body: Bytes::from("x") }.encode().unwrap().to_vec(),
            "before it was authenticated",
        ),
        (
            "a chunk request",
            Message::<Bytes>::ChunkFetchRequest { stream_id: 1, chunk_index: 0 }
                .encode()
                .unwrap()
                .to_vec(),
            "before it was authenticated",
        ),
        ("a failure", failure("no such thing"), "no such thing"),
        ("a forged response", response(forged), "verification failed"),
        ("an empty response", response(Vec::new()), "not an authentication message"),
        ("a large response", response(vec![0xfb; 5000]), "announces a body"),
        ("a huge response", huge, "announces a body"),
        ("silence", Vec::new(), "spark.network.auth.rpcTimeout"),
    ];
    for (what, bytes, expected) in cases {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 8 + 13 + 1 + 4 + APP.len() + 4 + 16 + 4 + 60];
            stream.read_exact(&mut request).await.unwrap();
            // Responses and failures carry the id of the request that was received.
            let mut bytes = bytes;
            if matches!(bytes.get(8), Some(4 | 5)) {
                bytes[9..17].copy_from_slice(&request[9..17]);
            }
            let _ = stream.write_all(&bytes).await;
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            rest
        });
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&requests);
        let handler = counting_handler(&requests).on_rpc(move |_, _, callback| {
            counted.fetch_add(1, Ordering::SeqCst);
            callback.reply("served");
        });
        let end = Client::with(SETTINGS, APP, SECRET, Some(handler));
        let error = end.connect(address).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Bootstrap, "{what}");
        assert!(full_text(&error).contains(expected), "{what}: {}", full_text(&error));
        assert_eq!(requests.load(Ordering::SeqCst), 0, "{what}");
        let sent = within(server).await.unwrap();
        if what == "a failure" {
            assert_eq!(sent, b"", "the client fell back without permission");
        }
    }
}
