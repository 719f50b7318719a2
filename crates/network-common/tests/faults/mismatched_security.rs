//! C11: an end with TLS or authentication and one without, in all pairs.

use std::sync::Arc;

use network_common::auth::{Secret, SecretStore};
use network_common::{ErrorKind, TransportConf, TransportContext, TransportError};

use crate::support::*;

type Settings = Vec<(&'static str, String)>;

fn tls() -> Settings {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let file = |content: String| {
        file_of(content.as_bytes()).into_temp_path().keep().unwrap().to_str().unwrap().to_owned()
    };
    vec![
        ("spark.ssl.rpc.enabled", "true".into()),
        ("spark.ssl.rpc.certChain", file(certificate.pem())),
        ("spark.ssl.rpc.privateKey", file(key.serialize_pem())),
    ]
}

fn plain() -> Settings {
    Vec::new()
}

fn sasl() -> Settings {
    vec![("spark.authenticate", "true".into())]
}

fn engine() -> Settings {
    vec![("spark.authenticate", "true".into()), ("spark.network.crypto.enabled", "true".into())]
}

fn context_of(settings: &Settings, handler: Handler) -> TransportContext {
    let pairs = settings.iter().map(|(key, value)| (*key, &value[..]));
    let context =
        TransportContext::new(TransportConf::from_settings(MODULE, pairs).unwrap(), handler);
    if !settings.iter().any(|(key, _)| *key == "spark.authenticate") {
        return context;
    }
    let secrets = SecretStore::new();
    secrets.register_app("app", Secret::new("s3cret"));
    context.with_auth("app", Arc::new(secrets)).unwrap()
}

/// Returns what the client gets when it connects and sends an RPC.
async fn client_error(server: &Settings, client: &Settings, handler: Handler) -> TransportError {
    let serving = context_of(server, handler);
    let server = serve(&serving).await;
    let factory = context_of(client, Handler::new()).create_client_factory();
    let address = server.local_addr();
    match within(factory.create_client(address)).await {
        Err(error) => error,
        Ok(client) => within(client.send_rpc("x")).await.unwrap_err(),
    }
}

fn assert_asks(what: &str, error: &TransportError, setting: &str) {
    assert!(
        matches!(error.kind(), ErrorKind::Bootstrap | ErrorKind::Tls),
        "{what}: {:?} {error:#}",
        error.kind()
    );
    assert!(!error.is_retryable(), "{what}: {error:#}");
    let text = full_text(error);
    assert!(text.contains('?') && text.contains(setting), "{what}: {text}");
}

#[tokio::test]
async fn fault_c11_client_knows_that_only_one_end_has_tls() {
    let tls = tls();
    for (what, server, client) in [
        ("TLS server, plain client", &tls, &plain()),
        ("TLS client, plain server", &plain(), &tls),
        ("TLS server, client with SASL", &tls, &sasl()),
        ("TLS server, client with the auth engine", &tls, &engine()),
        ("TLS client, server with SASL", &sasl(), &tls),
        ("TLS client, server with the auth engine", &engine(), &tls),
    ] {
        let error = client_error(server, client, Handler::new()).await;
        assert_asks(what, &error, "spark.ssl.rpc.enabled=true");
    }
}

#[tokio::test]
async fn fault_c11_client_knows_that_only_one_end_authenticates() {
    let failing = || Handler::new().on_rpc(|_, _, callback| callback.fail("invalid wire type"));
    for (name, secured) in [("SASL", sasl()), ("the auth engine", engine())] {
        let what = format!("server with {name}, plain client");
        let error = client_error(&secured, &plain(), Handler::new()).await;
        assert_asks(&what, &error, "spark.authenticate=true");
        let what = format!("client with {name}, plain server");
        let error = client_error(&plain(), &secured, failing()).await;
        assert_asks(&what, &error, "spark.authenticate=true");
    }
    let error = client_error(&engine(), &sasl(), Handler::new()).await;
    assert_asks("server with the auth engine, client with SASL", &error, "spark.authenticate=true");
    let error = client_error(&sasl(), &engine(), Handler::new()).await;
    assert_asks("server with SASL, client with the auth engine", &error, "spark.authenticate=true");
}

/// The server knows as well.
#[tokio::test]
async fn fault_c11_server_counts_mismatch_as_security_failure() {
    let tls = tls();
    for (server, client, kind) in [
        (&tls, &plain(), ErrorKind::Tls),
        (&plain(), &tls, ErrorKind::Tls),
        (&engine(), &plain(), ErrorKind::Bootstrap),
    ] {
        let serving = context_of(server, Handler::new());
        let server = serve(&serving).await;
        let factory = context_of(client, Handler::new()).create_client_factory();
        if let Ok(client) = within(factory.create_client(server.local_addr())).await {
            within(client.send_rpc("x")).await.unwrap_err();
        }
        until(|| serving.metrics().server().snapshot().failures == [(kind, 1)]).await;
    }
}

/// A failure of an application with other words stays its own.
#[tokio::test]
async fn fault_c11_failures_of_applications_stay_remote() {
    let handler =
        Handler::new().on_rpc(|_, _, callback| callback.fail("no: Authentication failed."));
    let error = client_error(&plain(), &plain(), handler).await;
    assert_eq!(error.kind(), ErrorKind::Remote);
}
