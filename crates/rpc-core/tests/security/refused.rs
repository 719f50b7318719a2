//! Peers that do not prove who they are: they learn nothing, and nothing of theirs arrives.

use std::error::Error;
use std::time::Duration;

use rpc_core::{ErrorKind, RpcConf, RpcEnv, RpcError};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::common::{address, hi, next, soon};
use crate::world::*;

fn nothing_arrived(messages: &mut UnboundedReceiver<String>) {
    assert!(messages.try_recv().is_err(), "a message was delivered");
}

/// The error's text and those of its causes.
fn full_text(error: &RpcError) -> String {
    let causes = std::iter::successors(Some(error as &dyn Error), |&error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[tokio::test]
async fn wrong_secret_fails_lookup_and_delivers_nothing() {
    for mode in modes().into_iter().filter(Mode::authenticates) {
        let server = mode.server().await;
        let mut messages = greeter(&server);
        let stranger = client_with(mode.with_secret("wrong")).await;
        let error = hello_at(&stranger, address(&server)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Authentication, "{}: {error}", mode.name);
        assert!(!error.is_retryable() && !error.is_timeout());
        let text = full_text(&error);
        for part in [&address(&server).host_port(), "Authentication failed."] {
            assert!(text.contains(part), "{}: {text}", mode.name);
        }

        // Whose connection stands is served, and after that nothing else has arrived.
        hello(&mode.client().await, &server).await.send(hi("neo")).unwrap();
        assert_eq!(next(&mut messages).await, "neo");
        nothing_arrived(&mut messages);
    }
}

/// What was queued before the connection failed is failed with it.
#[tokio::test]
async fn queued_asks_fail_when_authentication_fails() {
    let server = gcm().server().await;
    let mut messages = greeter(&server);
    let (friend, stranger) = (gcm().client().await, client_with(gcm().with_secret("wrong")).await);
    let field = rpc_core::EndpointRef::try_from(&hello(&friend, &server).await).unwrap();
    let hello = stranger.resolve::<crate::common::HelloMessage>(&field).unwrap();
    let asks: Vec<_> = (0..10).map(|i| hello.ask(hi(&i.to_string()))).collect();
    for ask in asks {
        assert_eq!(soon(ask).await.unwrap_err().kind(), ErrorKind::Authentication);
    }
    nothing_arrived(&mut messages);
}

#[tokio::test]
async fn files_are_not_served_to_unauthenticated_peers() {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("secret"), "content").unwrap();
    for mode in modes() {
        let server = mode.server().await;
        let uri =
            soon(server.file_server().add_file(directory.path().join("secret"))).await.unwrap();
        // Who does not even try is told so, where the server can make out what it asks for.
        let refusals = [ErrorKind::FileUnavailable, ErrorKind::Network];
        let mut strangers = vec![(client_with(RpcConf::new()).await, &refusals[..])];
        if mode.authenticates() {
            strangers
                .push((client_with(mode.with_secret("wrong")).await, &[ErrorKind::Authentication]));
        }
        for (stranger, expected) in strangers {
            let error = soon(stranger.open_channel(&uri)).await.unwrap_err();
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
            // A client that asks for less than the server allows gets on with it.
            let negotiated = ["sasl", "sasl, encrypted"];
            if [client_mode, server_mode].iter().all(|mode| negotiated.contains(&mode.name)) {
                continue;
            }
            let impatient = client_mode.conf().with("spark.rpc.lookupTimeout", "2s").unwrap();
            let error =
                hello_at(&client_with(impatient).await, address(&server)).await.unwrap_err();
            let expected = [
                ErrorKind::Authentication,
                // A peer without security cannot tell a handshake from other requests, or simply
                // closes.
                ErrorKind::Network,
                ErrorKind::Rejected,
                // Engines of different versions, or ciphers, notice only that nothing sensible
                // comes.
                ErrorKind::Timeout,
            ];
            assert!(expected.contains(&error.kind()), "{both}: {error}");
        }
        nothing_arrived(&mut messages);
    }
}

/// The bytes of a plain client, envelopes and all, in front of every kind of server.
#[tokio::test]
async fn envelopes_of_unauthenticated_peer_are_not_read() {
    let recorded = {
        let (server, client) =
            (RpcEnv::builder("plain").bind("127.0.0.1:0"), client_with(RpcConf::new()).await);
        let server = server.start().await.unwrap();
        let mut messages = greeter(&server);
        let listener = Listener::before(&server).await;
        hello_at(&client, listener.address.clone()).await.unwrap().send(hi("neo")).unwrap();
        assert_eq!(next(&mut messages).await, "neo");
        listener.to_server()
    };
    for mode in modes() {
        let server = mode.server().await;
        let mut messages = greeter(&server);
        let mut stream = TcpStream::connect(address(&server).host_port()).await.unwrap();
        let _ = stream.write_all(&recorded).await;
        let mut answer = Vec::new();
        // The server ends it by itself.
        let _ = soon(stream.read_to_end(&mut answer)).await;
        assert!(!contains(&answer, b"neo") && !contains(&answer, b"hello"), "{}", mode.name);
        soon(server.shutdown()).await;
        nothing_arrived(&mut messages);
    }
}

/// Who connects and says nothing is closed, and holds nobody up meanwhile.
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
