//! Sends, asks and downloads between environments with the same security mode.

use std::fs;
use std::sync::Arc;

use network_common::{NoOpRpcHandler, TransportConf, TransportContext};
use rpc_core::{EndpointRef, RpcEndpointRef, RpcEnv, Secret, SecretStore};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;

use crate::common::{Hello, HelloMessage, address, hi, next, soon};
use crate::fixture::*;

async fn send_arrives(mode: &Mode) {
    for (server, client) in mode.pairs().await {
        let mut messages = greeter(&server);
        hello(&client, &server).await.send(hi("neo")).unwrap();
        assert_eq!(next(&mut messages).await, "neo", "{}", mode.name);
    }
}

async fn ask_is_answered(mode: &Mode) {
    for (server, client) in mode.pairs().await {
        server.setup_endpoint("hello", Hello).unwrap();
        let hello = hello(&client, &server).await;
        assert_eq!(soon(hello.ask(hi("neo"))).await.unwrap().text, "hi, neo", "{}", mode.name);
    }
}

#[tokio::test]
async fn rpc_env_26_send_works_with_authentication() {
    send_arrives(&sasl()).await;
}

#[cfg(feature = "legacy-auth")]
#[tokio::test]
async fn rpc_env_27_send_works_with_sasl_encryption() {
    send_arrives(&sasl_encrypted()).await;
}

#[tokio::test]
async fn rpc_env_28_send_works_with_aes_encryption() {
    send_arrives(&ctr()).await;
    send_arrives(&gcm()).await;
}

#[tokio::test]
async fn rpc_env_29_ask_works_with_authentication() {
    ask_is_answered(&sasl()).await;
}

#[cfg(feature = "legacy-auth")]
#[tokio::test]
async fn rpc_env_30_ask_works_with_sasl_encryption() {
    ask_is_answered(&sasl_encrypted()).await;
}

#[tokio::test]
async fn rpc_env_31_ask_works_with_aes_encryption() {
    ask_is_answered(&ctr()).await;
    ask_is_answered(&gcm()).await;
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn rpc_env_28_send_works_with_tls() {
    send_arrives(&tls::alone()).await;
    send_arrives(&tls::with_secret()).await;
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn rpc_env_31_ask_works_with_tls() {
    ask_is_answered(&tls::alone()).await;
    ask_is_answered(&tls::with_secret()).await;
}

/// The server asks the client over the connection that the client made.
#[tokio::test]
async fn rpc_env_03_server_can_ask_client_in_every_mode() {
    for mode in modes() {
        for (server, client) in mode.pairs().await {
            let mut messages = greeter(&server);
            // The message creates the connection.
            hello(&client, &server).await.send(hi("connect")).unwrap();
            next(&mut messages).await;
            let of_client = client.setup_endpoint("hello", Hello).unwrap();
            let back: RpcEndpointRef<HelloMessage> =
                server.resolve(&EndpointRef::try_from(&of_client).unwrap()).unwrap();
            assert_eq!(soon(back.ask(hi("neo"))).await.unwrap().text, "hi, neo", "{}", mode.name);
        }
    }
}

/// Downloads use connections of their own, with the same mode as messages.
#[tokio::test]
async fn rpc_env_34_download_works_in_every_mode() {
    let directory = TempDir::new().unwrap();
    let content: Vec<u8> = (0..3_000_017_u32).map(|i| (i * 7 + i / 251) as u8).collect();
    let path = directory.path().join("content");
    fs::write(&path, &content).unwrap();
    for mode in modes() {
        // 3DES is too slow for the whole content in a build without optimization.
        let length = if mode.name == "sasl, encrypted" { 300_000 } else { content.len() };
        fs::write(&path, &content[..length]).unwrap();
        for (server, client) in mode.pairs().await {
            let uri = soon(server.file_server().add_file(&path)).await.unwrap();
            let mut arrived = Vec::new();
            let mut download = soon(client.open_channel(&uri)).await.unwrap();
            soon(download.read_to_end(&mut arrived)).await.unwrap();
            assert!(arrived == content[..length], "{}", mode.name);
        }
    }
}

/// Bulk data of a transport context has the mode of the environment that made it.
#[tokio::test]
async fn transport_context_has_security_of_its_env_in_every_mode() {
    for mode in modes() {
        for (server, client) in mode.pairs().await {
            let echo = server.transport_context("shuffle", Echo).unwrap();
            let bulk = soon(echo.create_server("127.0.0.1:0")).await.unwrap();
            let context = client.transport_context("shuffle", NoOpRpcHandler::new()).unwrap();
            let factory = context.create_client_factory();
            let client = soon(factory.create_client(bulk.local_addr())).await.unwrap();
            assert_eq!(soon(client.send_rpc("ping")).await.unwrap(), "ping", "{}", mode.name);

            let plain = TransportContext::new(TransportConf::new("shuffle"), NoOpRpcHandler::new());
            let plain = plain.create_client_factory();
            let reply = async { plain.create_client(bulk.local_addr()).await?.send_rpc("x").await };
            soon(reply).await.unwrap_err();
        }
    }
}

/// Requests, replies and downloads are readable on the wire only in modes without encryption.
#[tokio::test]
async fn plaintext_is_not_visible_in_encrypting_modes() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("content");
    fs::write(&path, "the content of the file".repeat(1000)).unwrap();
    for mode in modes() {
        let (server, client) = (mode.server().await, mode.client().await);
        server.setup_endpoint("hello", Hello).unwrap();
        let proxy = RecordingProxy::in_front_of(&server).await;
        let hello = hello_at(&client, proxy.address.clone()).await.unwrap();
        assert_eq!(soon(hello.ask(hi("a message"))).await.unwrap().text, "hi, a message");
        let uri = soon(server.file_server().add_file(&path)).await.unwrap();
        let uri = uri.replace(&address(&server).host_port(), &proxy.address.host_port());
        let mut download = soon(client.open_channel(&uri)).await.unwrap();
        soon(download.read_to_end(&mut Vec::new())).await.unwrap();
        let (to_server, to_client) = (proxy.to_server(), proxy.to_client());
        for (bytes, text) in [
            (&to_server, "a message"),
            (&to_server, "SayHi"),
            (&to_server, "/files/content"),
            (&to_client, "hi, a message"),
            (&to_client, "the content of the file"),
        ] {
            assert_eq!(contains(bytes, text.as_bytes()), !mode.encrypts, "{}: {text}", mode.name);
        }
    }
}

/// Each of two applications has a secret; the secret of one changes, and its connections stay
/// open.
#[tokio::test]
async fn secrets_rotate_without_dropping_connections() {
    let mode = gcm();
    let secrets = |app: &str, secret: &str| {
        let secrets = SecretStore::new();
        secrets.register_app(app, Secret::new(secret));
        Arc::new(secrets)
    };
    let server_secrets = secrets("app-1", "first");
    server_secrets.register_app("app-2", Secret::new("another"));
    let server = RpcEnv::builder("server").conf(mode.conf()).bind("127.0.0.1:0");
    let server = server.auth("app-1", server_secrets.clone()).start().await.unwrap();
    server.setup_endpoint("hello", Hello).unwrap();
    let client = async |app: &str, secret: &str| {
        let client = RpcEnv::builder("client").conf(mode.conf()).client_mode();
        client.auth(app, secrets(app, secret)).start().await.unwrap()
    };

    let (one, two) = (client("app-1", "first").await, client("app-2", "another").await);
    let (first, second) = (hello(&one, &server).await, hello(&two, &server).await);
    server_secrets.register_app("app-1", Secret::new("rotated"));
    for hello in [&first, &second] {
        assert_eq!(soon(hello.ask(hi("again"))).await.unwrap().text, "hi, again");
    }
    assert!(hello_at(&client("app-1", "first").await, address(&server)).await.is_err());
    hello(&client("app-1", "rotated").await, &server).await;
}
