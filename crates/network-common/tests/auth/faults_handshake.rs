//! Rows `fault_t3` and `fault_m4`: handshakes beyond the limit wait, interrupted ones may be
//! repeated, and a replayed one does not count as authentication.

use std::time::Duration;

use network_common::{ErrorKind, TransportContext, TransportError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::fixture::*;
use crate::proxy::{Direction, Fault, Proxy};
use crate::support::*;

/// The modes whose clients send the first message of the handshake, with a small limit.
fn engines() -> Vec<(&'static str, Vec<(&'static str, &'static str)>)> {
    let limits =
        [("spark.network.auth.rpcTimeout", "400ms"), ("spark.shuffle.auth.maxHandshakes", "2")];
    MODES
        .iter()
        .filter(|mode| mode.settings.contains(&("spark.network.crypto.enabled", "true")))
        .map(|mode| (mode.name, mode.settings.iter().copied().chain(limits).collect()))
        .collect()
}

async fn server(settings: &[(&'static str, &'static str)]) -> Server {
    Server::new(settings.to_vec().leak()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_t3_300_clients_at_once_authenticate_with_limit_of_4() {
    for mode in MODES {
        let settings: Vec<_> = mode
            .settings
            .iter()
            .copied()
            .chain([("spark.shuffle.auth.maxHandshakes", "4")])
            .collect();
        let server = server(&settings).await;
        let address = server.server.local_addr();
        let clients = (0..300).map(|_| {
            let end = Client::new(mode.settings);
            tokio::spawn(async move {
                let client = end.connect(address).await?;
                within(client.send_rpc("x")).await
            })
        });
        for reply in futures::future::join_all(clients.collect::<Vec<_>>()).await {
            assert_eq!(reply.unwrap().unwrap(), "x", "{}", mode.name);
        }
        assert_eq!(server.context.metrics().server().snapshot().failures, [], "{}", mode.name);
    }
}

/// Peers that wait in vain are closed, with the name of the limit.
#[tokio::test(flavor = "multi_thread")]
async fn fault_t3_handshake_that_waits_too_long_names_limit() {
    let server = server(&[
        ("spark.network.auth.rpcTimeout", "300ms"),
        ("spark.shuffle.auth.maxHandshakes", "1"),
    ])
    .await;
    let address = server.server.local_addr();
    let mut peers = Vec::new();
    for _ in 0..4 {
        peers.push(TcpStream::connect(address).await.unwrap());
    }
    for peer in &mut peers {
        let mut rest = Vec::new();
        within(peer.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest, b"");
    }
    server.wait_until_empty().await;
    let failures = server.context.metrics().server().snapshot().failures;
    assert_eq!(failures, [(ErrorKind::Bootstrap, 4)]);
    let client = Client::new(SASL.settings).connect(address).await.unwrap();
    assert_echoes(&client).await;
}

/// Closing the server ends connections that wait for their handshake.
#[tokio::test(flavor = "multi_thread")]
async fn fault_t3_server_closes_while_handshakes_wait() {
    let server = server(&[("spark.shuffle.auth.maxHandshakes", "1")]).await;
    let address = server.server.local_addr();
    let metrics = server.context.metrics();
    let _first = TcpStream::connect(address).await.unwrap();
    until(|| metrics.server().snapshot().connections == 1).await;
    let waiting = tokio::spawn(async move { Client::new(SASL.settings).connect(address).await });
    until(|| metrics.server().snapshot().connections == 2).await;
    assert_eq!(within(server.server.close(Duration::from_secs(30))).await, 0);
    let error = within(waiting).await.unwrap().unwrap_err();
    assert!(error.is_retryable(), "{error:#}");
}

/// Returns the error of a client whose server reads the first message and then does `then`.
async fn error_of(mode: &Mode, then: impl AsyncFnOnce(TcpStream)) -> TransportError {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let settings: Vec<_> =
        mode.settings.iter().copied().chain([("spark.network.auth.rpcTimeout", "300ms")]).collect();
    let client = Client::new(settings.leak());
    let serving = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut first = [0; 9];
        stream.read_exact(&mut first).await.unwrap();
        then(stream).await;
    };
    let (result, ()) = tokio::join!(client.connect(address), serving);
    result.unwrap_err()
}

#[tokio::test]
async fn fault_t3_handshake_that_is_cut_is_retryable() {
    for mode in MODES {
        let error = error_of(mode, async |stream| drop(stream)).await;
        assert_eq!(error.kind(), ErrorKind::Bootstrap, "{error:#}");
        assert!(error.is_retryable() && !error.is_timeout(), "{}: {error:#}", mode.name);
        assert!(error.to_string().contains("was interrupted"), "{error}");
        assert!(error.peer().is_some());
    }
}

#[tokio::test]
async fn fault_t3_handshake_that_times_out_is_retryable() {
    for mode in MODES {
        let silent = async |stream: TcpStream| {
            tokio::time::sleep(Duration::from_millis(700)).await;
            drop(stream);
        };
        let error = error_of(mode, silent).await;
        assert_eq!(error.kind(), ErrorKind::Bootstrap, "{error:#}");
        assert!(error.is_retryable() && error.is_timeout(), "{}: {error:#}", mode.name);
        assert!(full_text(&error).contains("spark.network.auth.rpcTimeout"), "{error:#}");
    }
}

/// A rejection by the peer is final.
#[tokio::test]
async fn fault_t3_rejected_handshake_is_not_retryable() {
    for mode in MODES {
        let server = Server::new(mode.settings).await;
        let client = Client::with(mode.settings, APP, "another secret", None);
        let error = client.connect(server.server.local_addr()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Bootstrap, "{}: {error:#}", mode.name);
        assert!(!error.is_retryable(), "{}: {error:#}", mode.name);
    }
}

/// Returns the bytes of a handshake that a client has sent to `server`.
async fn record_handshake(server: &Server, settings: &[(&'static str, &'static str)]) -> Vec<u8> {
    let proxy = Proxy::before(server.server.local_addr(), Fault::None).await;
    let client = Client::new(settings.to_vec().leak()).connect(proxy.address).await.unwrap();
    let recorded = proxy.seen(Direction::ToServer);
    assert_echoes(&client).await;
    client.close();
    server.wait_until_empty().await;
    recorded
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_m4_replayed_handshakes_are_closed_after_timeout() {
    for (name, settings) in engines() {
        let server = server(&settings).await;
        let recorded = record_handshake(&server, &settings).await;
        let mut peers = Vec::new();
        for _ in 0..20 {
            let mut peer = TcpStream::connect(server.server.local_addr()).await.unwrap();
            peer.write_all(&recorded).await.unwrap();
            peers.push(peer);
        }
        for peer in &mut peers {
            let mut rest = Vec::new();
            within(peer.read_to_end(&mut rest)).await.unwrap();
        }
        server.wait_until_empty().await;
        let failures = server.context.metrics().server().snapshot().failures;
        assert_eq!(failures, [(ErrorKind::Bootstrap, 20)], "{name}");
        // At most two of them hold a permit at a time, and in the end none.
        let client =
            Client::new(settings.leak()).connect(server.server.local_addr()).await.unwrap();
        assert_echoes(&client).await;
    }
}

/// A replayed handshake followed by bytes of the recording, or by others, gains nothing.
#[tokio::test(flavor = "multi_thread")]
async fn fault_m4_replayed_handshake_with_garbage_is_closed() {
    for (name, settings) in engines() {
        let server = server(&settings).await;
        let recorded = record_handshake(&server, &settings).await;
        for garbage in [pattern(100, 7), pattern(5, 8), pattern(40_000, 9)] {
            let mut peer = TcpStream::connect(server.server.local_addr()).await.unwrap();
            peer.write_all(&recorded).await.unwrap();
            let mut response = [0; 50];
            within(peer.read_exact(&mut response)).await.unwrap();
            peer.write_all(&garbage).await.unwrap();
            let _ = within(peer.read_to_end(&mut Vec::new())).await;
        }
        server.wait_until_empty().await;
        assert_eq!(server.served(), 1, "{name}: only the recorded client was served");
    }
}

/// A client that has sent one encrypted message stays connected when it is idle afterwards; so does
/// one of a protocol that cannot be replayed.
#[tokio::test(flavor = "multi_thread")]
async fn fault_m4_authenticated_client_stays_connected() {
    for mode in MODES {
        let limits = [("spark.network.auth.rpcTimeout", "300ms")];
        let settings: Vec<_> = mode.settings.iter().copied().chain(limits).collect();
        let server = server(&settings).await;
        let client = Client::new(mode.settings).connect(server.server.local_addr()).await.unwrap();
        if mode.settings.contains(&("spark.network.crypto.enabled", "true")) {
            client.send("one-way").unwrap();
        }
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert!(client.is_active(), "{}", mode.name);
        assert_echoes(&client).await;
    }
}

/// The kind of the first message does not matter: responses to the server count as well.
#[tokio::test(flavor = "multi_thread")]
async fn fault_m4_response_to_server_proves_client() {
    let (connected, mut clients) = tokio::sync::mpsc::unbounded_channel();
    let settings: Settings =
        &[("spark.network.crypto.enabled", "true"), ("spark.network.auth.rpcTimeout", "300ms")];
    let handler = Handler::new().on_active(move |client| connected.send(client.clone()).unwrap());
    let context = TransportContext::new(conf(settings), handler);
    let context = context.with_auth(APP, secrets(APP, SECRET)).unwrap();
    let server = serve(&context).await;
    let end = Client::with(settings, APP, SECRET, Some(Handler::new()));
    let client = end.connect(server.local_addr()).await.unwrap();
    let at_server = within(clients.recv()).await.unwrap();
    assert_eq!(
        within(at_server.send_rpc("asked by the server")).await.unwrap(),
        "asked by the server"
    );
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(within(at_server.send_rpc("again")).await.unwrap(), "again");
    drop(client);
}
