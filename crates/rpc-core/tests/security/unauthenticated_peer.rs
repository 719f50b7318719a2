//! Peers that do not authenticate or use another mode: they receive no data, and their messages
//! are not delivered.

use std::error::Error;
use std::time::Duration;

use rpc_core::{ErrorKind, RpcConf, RpcEnv, RpcError};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::common::{address, hi, next, soon};
use crate::fixture::*;

fn assert_nothing_arrived(messages: &mut UnboundedReceiver<String>) {
    assert!(messages.try_recv().is_err(), "a message was delivered");
}

/// Returns the text of the error and of its causes.
fn full_text(error: &RpcError) -> String {
    let causes = std::iter::successors(Some(error as &dyn Error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[tokio::test]
async fn wrong_secret_fails_lookup_and_delivers_nothing() {
    for mode in modes().into_iter().filter(Mode::authenticates) {
        let server = mode.server().await;
        let mut messages = greeter(&server);
        let unauthenticated = client_with(mode.with_secret("wrong")).await;
        let error = hello_at(&unauthenticated, address(&server)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Authentication, "{}: {error}", mode.name);
        assert!(!error.is_retryable() && !error.is_timeout());
        let text = full_text(&error);
        for part in [&address(&server).host_port(), "Authentication failed."] {
            assert!(text.contains(part), "{}: {text}", mode.name);
        }

        // An authenticated client is served; no other message has arrived before its own.
        hello(&mode.client().await, &server).await.send(hi("neo")).unwrap();
        assert_eq!(next(&mut messages).await, "neo");
        assert_nothing_arrived(&mut messages);
    }
}

/// Messages queued before the connection failed end with the error of the connection.
#[tokio::test]
async fn queued_asks_fail_when_authentication_fails() {
    let server = gcm().server().await;
    let mut messages = greeter(&server);
    let (authenticated, unauthenticated) =
        (gcm().client().await, client_with(gcm().with_secret("wrong")).await);
    let field = rpc_core::EndpointRef::try_from(&hello(&authenticated, &server).await).unwrap();
    let hello = unauthenticated.resolve::<crate::common::HelloMessage>(&field).unwrap();
    let asks: Vec<_> = (0..10).map(|i| hello.ask(hi(&i.to_string()))).collect();
    for ask in asks {
        assert_eq!(soon(ask).await.unwrap_err().kind(), ErrorKind::Authentication);
    }
    assert_nothing_arrived(&mut messages);
}

#[tokio::test]
async fn files_are_not_served_to_unauthenticated_peers() {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("secret"), "content").unwrap();
    for mode in modes() {
        let server = mode.server().await;
        let uri =
            soon(server.file_server().add_file(directory.path().join("secret"))).await.unwrap();
        // A client without security gets `FileUnavailable` if the server can parse its request, and
        // `Authentication` if it sees that the server speaks TLS.
        let expected = [ErrorKind::FileUnavailable, ErrorKind::Network, ErrorKind::Authentication];
        let mut peers = vec![(client_with(RpcConf::new()).await, &expected[..])];
        if mode.authenticates() {
            peers
                .push((client_with(mode.with_secret("wrong")).await, &[ErrorKind::Authentication]));
        }
        for (unauthenticated, expected) in peers {
            let error = soon(unauthenticated.open_channel(&uri)).await.unwrap_err();
            assert!(expected.contains(&error.kind()), "{}: {error}", mode.name);
            assert!(error.to_string().contains(&uri), "{error}");
        }
        let download = soon(mode.client().await.open_channel(&uri)).await.unwrap();
        assert_eq!(download.len(), 7, "{}", mode.name);
    }
}

#[tokio::test]
async fn peers_with_different_modes_cannot_connect() {
    let plain = Mode { name: "plain", encrypts: false, settings: Vec::new() };
    let all: Vec<Mode> = modes().into_iter().chain([plain]).collect();
    for server_mode in &all {
        let server = server_mode.server().await;
        let mut messages = greeter(&server);
        for client_mode in all.iter().filter(|mode| mode.name != server_mode.name) {
            let both = format!("{} to {}", client_mode.name, server_mode.name);
            // SASL clients and servers negotiate the encryption, so these pairs connect.
            let negotiated = ["sasl", "sasl, encrypted"];
            if [client_mode, server_mode].iter().all(|mode| negotiated.contains(&mode.name)) {
                continue;
            }
            let short_timeout = client_mode.conf().with("spark.rpc.lookupTimeout", "2s").unwrap();
            let error =
                hello_at(&client_with(short_timeout).await, address(&server)).await.unwrap_err();
            let expected = [
                ErrorKind::Authentication,
                // A peer without security rejects the handshake as an unknown request, or closes.
                ErrorKind::Network,
                ErrorKind::Rejected,
                // Different engine versions or ciphers produce no valid data, until the timeout.
                ErrorKind::Timeout,
            ];
            assert!(expected.contains(&error.kind()), "{both}: {error}");
        }
        assert_nothing_arrived(&mut messages);
    }
}

/// The recorded bytes of a client without security are sent to a server of each mode.
#[tokio::test]
async fn envelopes_of_unauthenticated_peer_are_not_read() {
    let recorded = {
        let (server, client) =
            (RpcEnv::builder("plain").bind("127.0.0.1:0"), client_with(RpcConf::new()).await);
        let server = server.start().await.unwrap();
        let mut messages = greeter(&server);
        let proxy = RecordingProxy::in_front_of(&server).await;
        hello_at(&client, proxy.address.clone()).await.unwrap().send(hi("neo")).unwrap();
        assert_eq!(next(&mut messages).await, "neo");
        proxy.to_server()
    };
    for mode in modes() {
        let server = mode.server().await;
        let mut messages = greeter(&server);
        let mut stream = TcpStream::connect(address(&server).host_port()).await.unwrap();
        let _ = stream.write_all(&recorded).await;
        let mut response = Vec::new();
        // The server closes the connection.
        let _ = soon(stream.read_to_end(&mut response)).await;
        assert!(!contains(&response, b"neo") && !contains(&response, b"hello"), "{}", mode.name);
        soon(server.shutdown()).await;
        assert_nothing_arrived(&mut messages);
    }
}

/// A client that sends nothing is disconnected after the handshake timeout of 1 s.
#[tokio::test]
async fn silent_unauthenticated_peer_is_closed_after_timeout() {
    for mode in modes() {
        let conf = mode.conf().with("spark.network.auth.rpcTimeout", "1s").unwrap();
        let conf = conf.with("spark.ssl.rpc.handshakeTimeout", "1s").unwrap();
        let server =
            RpcEnv::builder("server").conf(conf).bind("127.0.0.1:0").start().await.unwrap();
        let mut messages = greeter(&server);
        let mut silent = TcpStream::connect(address(&server).host_port()).await.unwrap();
        hello(&mode.client().await, &server).await.send(hi("neo")).unwrap();
        assert_eq!(next(&mut messages).await, "neo", "{}", mode.name);
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(5), silent.read_to_end(&mut rest));
        assert!(closed.await.is_ok() && rest.is_empty(), "{}", mode.name);
    }
}
