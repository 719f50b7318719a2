//! Peers that have not authenticated: what they may do, and for how long.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use network_common::ErrorKind;
use network_common::auth::{AuthMessage, SaslMessage};
use network_common::protocol::{MergedBlockMetaRequest, Message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::*;
use crate::world::*;

fn rpc(body: impl Into<Bytes>) -> Vec<u8> {
    Message::RpcRequest { request_id: 7, body: body.into() }.encode().unwrap().to_vec()
}

/// Sends bytes and reads what comes back until the peer closes.
async fn say(address: std::net::SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The peer may close in the middle of it.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = within(stream.read_to_end(&mut answer)).await;
    answer
}

/// Row AAH-01, and the same for everything else that can be asked for.
#[tokio::test(flavor = "multi_thread")]
async fn aah_01_nothing_is_served_before_authentication() {
    let meta = MergedBlockMetaRequest {
        request_id: 1,
        app_id: APP.into(),
        shuffle_id: 0,
        shuffle_merge_id: 0,
        reduce_id: 0,
    };
    let upload = Message::UploadStream { request_id: 1, meta: Bytes::from("m"), byte_count: 4 };
    let requests: Vec<(&str, Vec<u8>)> = vec![
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
        let asked = Arc::new(AtomicUsize::new(0));
        let server = Server::with(mode.settings, counting(&asked)).await;
        for (what, request) in &requests {
            // Twice: servers of SASL let a client of the auth engine try again.
            let answer = say(server.server.local_addr(), &[&request[..], request].concat()).await;
            let text = String::from_utf8_lossy(&answer);
            for detail in ["secret", "app-1", "Mismatched", "0x", "expected", "127.0.0.1"] {
                assert!(!text.contains(detail), "{what}, {}: {text}", mode.name);
            }
        }
        server.is_empty().await;
        assert_eq!((server.served(), asked.load(Ordering::SeqCst)), (0, 0), "{}", mode.name);
        let failures = server.context.metrics().server().snapshot().failures;
        let total: u64 = failures.iter().map(|(_, count)| count).sum();
        assert_eq!(total, requests.len() as u64, "{}: {failures:?}", mode.name);
        // And afterwards those who are known are served.
        let client = Client::new(mode.settings).connect(server.server.local_addr()).await.unwrap();
        echoes(&client).await;
        assert_eq!(within(client.fetch_chunk(1, 0)).await.unwrap(), "chunk");
    }
}

/// The peer does not learn which of the two it was.
async fn wrong_secrets_and_unknown_applications_fail(modes: &[Mode]) {
    for mode in modes {
        let server = Server::new(mode.settings).await;
        let mut texts = Vec::new();
        for (app, secret) in [(APP, "wrong"), ("unknown", SECRET)] {
            let end = Client::with(mode.settings, app, secret, None);
            let error = end.connect(server.server.local_addr()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Bootstrap, "{}", mode.name);
            texts.push(full_text(&error).replace(&server.server.local_addr().to_string(), ""));
            server.is_empty().await;
        }
        assert_eq!(texts[0], texts[1], "the peer can tell one from the other");
        assert!(texts[0].contains("Authentication failed."), "{}", texts[0]);
        assert_eq!(server.served(), 0);
        assert_eq!(
            server.context.metrics().server().snapshot().failures,
            [(ErrorKind::Bootstrap, 2)]
        );
    }
}

#[tokio::test]
async fn ai_03_ctr_auth_failure() {
    wrong_secrets_and_unknown_applications_fail(&[CTR_1, CTR_2]).await;
    #[cfg(feature = "legacy-auth")]
    wrong_secrets_and_unknown_applications_fail(&[LEGACY]).await;
}

#[tokio::test]
async fn ai_04_gcm_auth_failure() {
    wrong_secrets_and_unknown_applications_fail(&[GCM_1, GCM_2]).await;
}

#[tokio::test]
async fn sasl_02_non_matching() {
    wrong_secrets_and_unknown_applications_fail(&[SASL]).await;
    #[cfg(feature = "legacy-auth")]
    wrong_secrets_and_unknown_applications_fail(&[SASL_ENCRYPTED]).await;
}

#[tokio::test]
async fn a_client_without_a_secret_says_so() {
    let context =
        network_common::TransportContext::new(conf(&[]), network_common::NoOpRpcHandler::new());
    let context = context.with_auth("nobody", secrets(APP, SECRET)).unwrap();
    let server = Server::new(SASL.settings).await;
    let factory = context.create_client_factory();
    let error = within(factory.create_client(server.server.local_addr())).await.unwrap_err();
    assert!(
        full_text(&error).contains("no secret is known for the application 'nobody'"),
        "{error}"
    );
}

const IMPATIENT: Settings = &[
    ("spark.network.crypto.enabled", "true"),
    ("spark.network.crypto.saslFallback", "true"),
    ("spark.network.auth.rpcTimeout", "400ms"),
    ("spark.shuffle.auth.maxHandshakes", "2"),
];

/// Who stops in the middle is closed, and its place is free again.
#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_stops_times_out_and_frees_its_place() {
    let server = Server::new(IMPATIENT).await;
    let address = server.server.local_addr();
    let sasl = rpc(SaslMessage::new(APP, []).encode());
    // Silent, and stopped after the first step.
    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut stopped = TcpStream::connect(address).await.unwrap();
    stopped.write_all(&sasl).await.unwrap();
    let mut challenge = [0; 64];
    within(stopped.read_exact(&mut challenge)).await.unwrap();
    // All places are taken.
    let refused = Client::new(CTR_1.settings).connect(address).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Bootstrap);
    let mut rest = Vec::new();
    within(silent.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"");
    within(stopped.read_to_end(&mut rest)).await.unwrap();
    server.is_empty().await;
    let failures = server.context.metrics().server().snapshot().failures;
    assert_eq!(failures, [(ErrorKind::Bootstrap, 3)]);
    // Free again, and those who are authenticated take no place.
    let end = Client::new(CTR_1.settings);
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(end.connect(address).await.unwrap());
    }
    tokio::time::sleep(Duration::from_millis(600)).await;
    for client in &clients {
        echoes(client).await;
    }
    assert_eq!(server.served(), 5);
}

/// Rows for lengths: what is announced is refused at once, what is sent is counted.
#[tokio::test(flavor = "multi_thread")]
async fn strangers_cannot_make_the_server_hold_much() {
    let mut announced = rpc(vec![0; 5000]);
    announced[..8].copy_from_slice(&(100_u64 << 20).to_be_bytes());
    announced[17..21].copy_from_slice(&((100_u32 << 20) - 21).to_be_bytes());
    let mut name = Message::<Bytes>::StreamRequest { stream_id: "n".repeat(1 << 20) }
        .encode()
        .unwrap()
        .to_vec();
    name.truncate(200 << 10);
    let answers: Vec<u8> = (0..10_000)
        .flat_map(|_| {
            Message::RpcResponse { request_id: 1, body: Bytes::from("x") }.encode().unwrap()
        })
        .collect();
    let patient: Settings = &[("spark.network.crypto.enabled", "true")];
    for (what, bytes) in [("a body", &announced), ("a name", &name), ("many answers", &answers)] {
        let server = Server::new(patient).await;
        say(server.server.local_addr(), bytes).await;
        server.is_empty().await;
        let snapshot = server.context.metrics().server().snapshot();
        assert_eq!(snapshot.failures, [(ErrorKind::Limit, 1)], "{what}");
        assert!(
            snapshot.received_bytes <= 128 << 10,
            "{what}: {} bytes were read",
            snapshot.received_bytes
        );
        assert_eq!(server.served(), 0);
    }
}

/// A recorded handshake, played again: its player knows no key.
#[tokio::test(flavor = "multi_thread")]
async fn replayed_and_reordered_handshakes_get_nowhere() {
    use crate::proxy::{Direction, Fault, Proxy};
    for mode in MODES {
        let server = Server::new(mode.settings).await;
        let proxy = Proxy::before(server.server.local_addr(), Fault::None).await;
        let client = Client::new(mode.settings).connect(proxy.address).await.unwrap();
        echoes(&client).await;
        let recorded = proxy.seen(Direction::ToServer);
        drop(client);
        server.is_empty().await;
        assert_eq!(server.served(), 1);
        // A pause between the frames lets the server answer, and install what it would.
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
        let mut answer = Vec::new();
        let _ = within(stream.read_to_end(&mut answer)).await;
        server.is_empty().await;
        assert_eq!(server.served(), 1, "{}", mode.name);
        // The last frame first, and the first one twice.
        let first = u64::from_be_bytes(*recorded.first_chunk().unwrap()) as usize;
        for order in
            [[&recorded[first..], &recorded[..first]].concat(), [&recorded[..first]; 2].concat()]
        {
            say_and_end(server.server.local_addr(), &order).await;
        }
        server.is_empty().await;
        assert_eq!(server.served(), 1, "{}", mode.name);
    }
}

/// The other end of a recorded handshake: what a server has said once proves nothing to the next
/// client.
#[tokio::test(flavor = "multi_thread")]
async fn replayed_answers_of_a_server_get_nowhere() {
    use crate::proxy::{Direction, Fault, Proxy};
    for mode in MODES {
        let server = Server::new(mode.settings).await;
        let proxy = Proxy::before(server.server.local_addr(), Fault::None).await;
        Client::new(mode.settings).connect(proxy.address).await.unwrap();
        let recorded = proxy.seen(Direction::ToClient);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let player = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut rest = &recorded[..];
            while let Some(length) = rest.first_chunk::<8>() {
                let (answer, more) = rest.split_at(u64::from_be_bytes(*length) as usize);
                rest = more;
                let mut length = [0; 8];
                if stream.read_exact(&mut length).await.is_err() {
                    return;
                }
                let mut request = vec![0; u64::from_be_bytes(length) as usize - 8];
                stream.read_exact(&mut request).await.unwrap();
                // The answer to this very request, by its id.
                let answer = [&answer[..9], &request[1..9], &answer[17..]].concat();
                let _ = stream.write_all(&answer).await;
            }
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        let error = Client::new(mode.settings).connect(address).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Bootstrap, "{}", mode.name);
        assert!(
            full_text(&error).contains("Mismatched response"),
            "{}: {}",
            mode.name,
            full_text(&error)
        );
        within(player).await.unwrap();
    }
}

/// A request that came before the handshake is not served because a handshake came behind it.
#[tokio::test]
async fn requests_of_strangers_are_not_served_once_they_are_known() {
    use crate::proxy::{Direction, Fault, Proxy};
    let chunk = Message::<Bytes>::ChunkFetchRequest { stream_id: 1, chunk_index: 0 };
    let stream = Message::<Bytes>::StreamRequest { stream_id: "s".into() };
    for mode in [CTR_1, GCM_2] {
        for request in [&chunk, &stream] {
            let asked = Arc::new(AtomicUsize::new(0));
            let server = Server::with(mode.settings, counting(&asked)).await;
            let proxy = Proxy::before(server.server.local_addr(), Fault::None).await;
            let client = Client::new(mode.settings).connect(proxy.address).await.unwrap();
            let handshake = proxy.seen(Direction::ToServer);
            drop(client);
            say(server.server.local_addr(), &[&request.encode().unwrap()[..], &handshake].concat())
                .await;
            server.is_empty().await;
            assert_eq!(asked.load(Ordering::SeqCst), 0, "{}: {request:?}", mode.name);
        }
    }
}

async fn say_and_end(address: std::net::SocketAddr, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let _ = within(stream.read_to_end(&mut Vec::new())).await;
}

/// The other way round: a server that is none of ours.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_serves_nothing_to_a_server_that_is_not_authenticated() {
    const PATIENCE: Settings = &[
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
    let answer = |body: Vec<u8>| {
        Message::RpcResponse { request_id: 0, body: Bytes::from(body) }.encode().unwrap().to_vec()
    };
    let forged = AuthMessage::new(APP, [1; 16], [2; 60]).encode();
    let mut huge = answer(vec![0; 5000]);
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
        ("a forged answer", answer(forged), "Mismatched response"),
        ("an empty answer", answer(Vec::new()), "not an authentication message"),
        ("a large answer", answer(vec![0xfb; 5000]), "announces a body"),
        ("a huge answer", huge, "announces a body"),
        ("silence", Vec::new(), "spark.network.auth.rpcTimeout"),
    ];
    for (what, bytes, expected) in cases {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 8 + 13 + 1 + 4 + APP.len() + 4 + 16 + 4 + 60];
            stream.read_exact(&mut request).await.unwrap();
            // Where the answer names the request, it names this one.
            let mut bytes = bytes;
            if matches!(bytes.get(8), Some(4 | 5)) {
                bytes[9..17].copy_from_slice(&request[9..17]);
            }
            let _ = stream.write_all(&bytes).await;
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            rest
        });
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let handler = counting(&asked).on_rpc(move |_, _, callback| {
            counted.fetch_add(1, Ordering::SeqCst);
            callback.reply("served");
        });
        let end = Client::with(PATIENCE, APP, SECRET, Some(handler));
        let error = end.connect(address).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Bootstrap, "{what}");
        assert!(full_text(&error).contains(expected), "{what}: {}", full_text(&error));
        assert_eq!(asked.load(Ordering::SeqCst), 0, "{what}");
        let sent = within(server).await.unwrap();
        if what == "a failure" {
            assert_eq!(sent, b"", "a fallback that is not allowed");
        }
    }
}
