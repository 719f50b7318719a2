//! Tests that pass in every authentication mode, between a client and a server of this crate.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use network_common::auth::Secret;
use network_common::{ErrorKind, ManagedBuffer, TransportContext};

use crate::fixture::*;
use crate::proxy::{Direction, Fault, Proxy};
use crate::support::*;

/// Returns a body size above that of one sealed step; smaller for SASL encryption, which is slow in
/// unoptimised builds.
fn size(mode: &Mode) -> u64 {
    if mode.name.starts_with("sasl, ") { 300_017 } else { (2 << 20) + 17 }
}

/// Sends every type of message, and checks whether a proxy can read the content.
async fn check_all_messages_and_secrecy(modes: &[Mode]) {
    for mode in modes {
        let size = size(mode);
        let content = pattern(size as usize, 9);
        let file = file_of(&content);
        let (path, path2, memory) =
            (file.path().to_owned(), file.path().to_owned(), content.clone());
        let handler = Handler::new()
            .on_chunk(move |_, index| {
                Ok(if index == 0 {
                    memory.clone().into()
                } else {
                    ManagedBuffer::file(&path, 0..size)
                })
            })
            .on_stream(move |_| Ok(Some(ManagedBuffer::file(&path2, 0..size))))
            .on_upload(|_, data| async move { Ok(data.collect().await?) });
        let server = Server::with(mode.settings, handler).await;
        let proxy = Proxy::before(server.server.local_addr(), Fault::None).await;
        let end = Client::new(mode.settings);
        let client = end.connect(proxy.address).await.unwrap();
        assert_eq!(client.client_id(), Some(APP), "{}", mode.name);

        assert_echoes(&client).await;
        assert_eq!(within(client.send_rpc("")).await.unwrap(), "");
        assert!(
            within(client.send_rpc(content.clone())).await.unwrap() == content,
            "{}",
            mode.name
        );
        assert!(
            within(client.fetch_chunk(1, 0)).await.unwrap() == content,
            "from memory, {}",
            mode.name
        );
        assert!(
            within(client.fetch_chunk(1, 1)).await.unwrap() == content,
            "from a file, {}",
            mode.name
        );
        let body = within(client.stream("s")).await.unwrap();
        assert!(within(body.collect()).await.unwrap() == content, "{}", mode.name);
        for data in
            [ManagedBuffer::from(content.clone()), ManagedBuffer::file(file.path(), 0..size)]
        {
            assert!(
                within(client.upload_stream("u", data)).await.unwrap() == content,
                "{}",
                mode.name
            );
        }
        client.send("one-way").unwrap();
        let (a, b, c, d) = within(async {
            tokio::join!(
                client.send_rpc("with the others"),
                client.fetch_chunk(1, 1),
                async { client.stream("s").await?.collect().await },
                client.upload_stream("u", content.clone())
            )
        })
        .await;
        assert_eq!(a.unwrap(), "with the others");
        assert!([b, c, d].into_iter().all(|body| body.unwrap() == content), "{}", mode.name);

        let marks: [&[u8]; 3] = [b"still there?", b"with the others", &content[100_000..100_040]];
        for direction in [Direction::ToServer, Direction::ToClient] {
            let seen = proxy.seen(direction);
            for mark in marks {
                let shown = seen.windows(mark.len()).any(|window| window == mark);
                assert_eq!(shown, !mode.encrypts, "{}, {direction:?}", mode.name);
            }
        }
        let snapshot = server.context.metrics().server().snapshot();
        assert_eq!(snapshot.sendfile_bytes > 0, !mode.encrypts, "{}", mode.name);
        assert_eq!(snapshot.failures, []);
        assert_eq!(end.context.metrics().client().snapshot().failures, []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ai_01_ctr_connection_carries_all_messages_encrypted() {
    check_all_messages_and_secrecy(&[CTR_1, CTR_2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ai_02_gcm_connection_carries_all_messages_encrypted() {
    check_all_messages_and_secrecy(&[GCM_1, GCM_2]).await;
}

#[cfg(feature = "legacy-auth")]
#[tokio::test(flavor = "multi_thread")]
async fn ai_01_legacy_engine_carries_all_messages_encrypted() {
    check_all_messages_and_secrecy(&[LEGACY]).await;
}

/// SASL without encryption: each handler is called once when the connection has ended.
#[tokio::test(flavor = "multi_thread")]
async fn sasl_03_sasl_connection_carries_all_messages_in_plain_text() {
    check_all_messages_and_secrecy(&[SASL]).await;
    let closed_connections = Arc::new(AtomicUsize::new(0));
    let counting_handler = || {
        let closed_connections = Arc::clone(&closed_connections);
        Handler::new().on_inactive(move |_| {
            closed_connections.fetch_add(1, Ordering::SeqCst);
        })
    };
    let server = Server::with(SASL.settings, counting_handler()).await;
    let end = Client::with(SASL.settings, APP, SECRET, Some(counting_handler()));
    let client = end.connect(server.server.local_addr()).await.unwrap();
    assert_echoes(&client).await;
    client.close();
    within(client.closed()).await;
    server.wait_until_empty().await;
    until(|| end.context.metrics().client().snapshot().connections == 0).await;
    assert_eq!(closed_connections.load(Ordering::SeqCst), 2);
}

#[cfg(feature = "legacy-auth")]
#[tokio::test(flavor = "multi_thread")]
async fn sasl_04_sasl_connection_carries_all_messages_encrypted() {
    check_all_messages_and_secrecy(&[SASL_ENCRYPTED]).await;
}

/// Spark 2.1 and earlier had AES inside of SASL. It is neither offered nor requested here.
#[tokio::test]
async fn sasl_12_aes_inside_sasl_is_never_negotiated() {
    let settings: Settings = &[("spark.authenticate.sasl.encryption.aes.enabled", "true")];
    let server = Server::new(settings).await;
    let proxy = Proxy::before(server.server.local_addr(), Fault::None).await;
    let end = Client::new(settings);
    assert_echoes(&end.connect(proxy.address).await.unwrap()).await;
    for direction in [Direction::ToServer, Direction::ToClient] {
        let seen = proxy.seen(direction);
        assert!(
            seen.windows(12).any(|window| window == b"still there?"),
            "the content must not be encrypted"
        );
        assert!(!seen.to_ascii_lowercase().windows(3).any(|window| window == b"aes"));
    }
}

#[tokio::test]
async fn ai_08_long_failure_text_arrives_in_every_mode() {
    for mode in MODES {
        let server = Server::new(mode.settings).await;
        let client = Client::new(mode.settings).connect(server.server.local_addr()).await.unwrap();
        let text = "D".repeat(32_768);
        let error = within(client.send_rpc(format!("fail:{text}"))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Remote);
        // The error has the first KiB of the peer's text.
        assert!(text.starts_with(error.to_string().trim_end_matches("...")), "{}", mode.name);
        assert!(error.to_string().len() > 1000, "{error}");
        assert_echoes(&client).await;
    }
}

/// Bytes that arrive in one read with the last handshake message pass through the filter.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_read_with_end_of_handshake_are_decrypted() {
    for mode in MODES {
        let handler = Handler::new().on_active(|client| {
            let client = client.clone();
            tokio::spawn(async move {
                while client.client_id().is_none() {
                    tokio::task::yield_now().await;
                }
                client.send("at once").unwrap();
            });
        });
        let server = Server::with(mode.settings, handler).await;
        let fault = Fault::Gather(Direction::ToClient, Duration::from_millis(50));
        let proxy = Proxy::before(server.server.local_addr(), fault).await;
        let (arrived, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
        let at_client = Handler::new().on_one_way(move |_, body| arrived.send(body).unwrap());
        let end = Client::with(mode.settings, APP, SECRET, Some(at_client));
        let client = end.connect(proxy.address).await.unwrap();
        assert_eq!(within(arrivals.recv()).await.unwrap(), "at once", "{}", mode.name);
        assert_echoes(&client).await;
    }
}

/// A message that the server sends as soon as it has the client id is sealed, and the client can
/// read it.
#[tokio::test(flavor = "multi_thread")]
async fn filters_are_installed_when_client_id_is_visible() {
    let handler = Handler::new().on_active(|client| {
        let client = client.clone();
        // A thread polls more often than a task.
        std::thread::spawn(move || {
            while client.client_id().is_none() && client.is_active() {
                std::hint::spin_loop();
            }
            let _ = client.send("at once");
        });
    });
    let server = Server::with(GCM_2.settings, handler).await;
    for _ in 0..50 {
        let (arrived, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
        let at_client = Handler::new().on_one_way(move |_, body| arrived.send(body).unwrap());
        let end = Client::with(GCM_2.settings, APP, SECRET, Some(at_client));
        let client = end.connect(server.server.local_addr()).await.unwrap();
        assert_eq!(within(arrivals.recv()).await.unwrap(), "at once");
        assert_echoes(&client).await;
    }
}

/// More bytes than an unauthenticated peer may send, in one read with the end of the handshake. The
/// peer is authenticated by then, so the limit no longer applies.
#[tokio::test(flavor = "multi_thread")]
async fn unauthenticated_limit_ends_with_handshake() {
    let handler = Handler::new().on_active(|client| {
        let client = client.clone();
        tokio::spawn(async move {
            while client.client_id().is_none() {
                tokio::task::yield_now().await;
            }
            client.send(vec![1; 200 << 10]).unwrap();
        });
    });
    let server = Server::with(SASL.settings, handler).await;
    let fault = Fault::Gather(Direction::ToClient, Duration::from_millis(50));
    let proxy = Proxy::before(server.server.local_addr(), fault).await;
    let (arrived, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
    let at_client = Handler::new().on_one_way(move |_, body| arrived.send(body).unwrap());
    let end = Client::with(SASL.settings, APP, SECRET, Some(at_client));
    let client = end.connect(proxy.address).await.unwrap();
    assert_eq!(within(arrivals.recv()).await.unwrap().len(), 200 << 10);
    assert_echoes(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_succeed_after_authentication() {
    for mode in MODES {
        let handler = Handler::new();
        let server = Server::with(mode.settings, handler).await;
        let at_client = Handler::new().on_rpc(|_, _, callback| callback.reply("the client"));
        let end = Client::with(mode.settings, APP, SECRET, Some(at_client));
        let client = end.connect(server.server.local_addr()).await.unwrap();
        let calls = (0..100).map(|i| client.send_rpc(vec![i; 5000]));
        for (i, answer) in within(futures::future::join_all(calls)).await.into_iter().enumerate() {
            assert_eq!(answer.unwrap(), vec![i as u8; 5000], "{}", mode.name);
        }
    }
}

#[tokio::test]
async fn secrets_rotate_without_dropping_connections() {
    for mode in MODES {
        let server = Server::new(mode.settings).await;
        let address = server.server.local_addr();
        let early = Client::new(mode.settings).connect(address).await.unwrap();
        server.secrets.register_app(APP, Secret::new("rotated"));
        let late = Client::new(mode.settings).connect(address).await.unwrap_err();
        assert_eq!(late.kind(), ErrorKind::Bootstrap);
        Client::with(mode.settings, APP, "rotated", None).connect(address).await.unwrap();
        server.secrets.unregister_app(APP);
        let gone = Client::with(mode.settings, APP, "rotated", None).connect(address).await;
        assert_eq!(gone.unwrap_err().kind(), ErrorKind::Bootstrap);
        assert_echoes(&early).await;
    }
}

#[tokio::test]
async fn each_application_uses_its_own_secret_on_one_port() {
    for mode in MODES {
        let server = Server::new(mode.settings).await;
        server.secrets.register_app("app-2", Secret::new("another secret"));
        let address = server.server.local_addr();
        let two = Client::with(mode.settings, "app-2", "another secret", None);
        let client = two.connect(address).await.unwrap();
        assert_eq!(client.client_id(), Some("app-2"));
        assert_echoes(&client).await;
        let stolen = Client::with(mode.settings, "app-2", SECRET, None).connect(address).await;
        assert_eq!(stolen.unwrap_err().kind(), ErrorKind::Bootstrap, "{}", mode.name);
    }
}

const FALLS_BACK: Settings =
    &[("spark.network.crypto.enabled", "true"), ("spark.network.crypto.saslFallback", "true")];

#[tokio::test]
async fn ai_05_server_accepts_sasl_client_with_fallback() {
    let server = Server::new(FALLS_BACK).await;
    let client = Client::new(SASL.settings).connect(server.server.local_addr()).await.unwrap();
    assert_echoes(&client).await;
    // Clients of the auth engine still connect.
    let client = Client::new(CTR_1.settings).connect(server.server.local_addr()).await.unwrap();
    assert_echoes(&client).await;
}

#[tokio::test]
async fn ai_06_client_falls_back_to_sasl_server() {
    let server = Server::new(SASL.settings).await;
    let client = Client::new(FALLS_BACK).connect(server.server.local_addr()).await.unwrap();
    assert_echoes(&client).await;
}

/// Without the explicit setting there is no fallback, because a proxy could force it.
#[tokio::test]
async fn downgrade_to_sasl_is_rejected_by_default() {
    let never: Settings =
        &[("spark.network.crypto.enabled", "true"), ("spark.network.crypto.saslFallback", "false")];
    for strict in [CTR_1.settings, never] {
        let server = Server::new(SASL.settings).await;
        let error = Client::new(strict).connect(server.server.local_addr()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Bootstrap);
        let server = Server::new(strict).await;
        let error =
            Client::new(SASL.settings).connect(server.server.local_addr()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Bootstrap);
        server.wait_until_empty().await;
        assert_eq!(server.served(), 0);
    }
}

#[cfg(feature = "legacy-auth")]
mod with_legacy {
    use super::*;

    const ENCRYPTS: Settings = &[("spark.authenticate.enableSaslEncryption", "true")];

    const EITHER: Settings = &[
        ("spark.network.crypto.enabled", "true"),
        ("spark.network.crypto.legacyEngine", "true"),
        ("spark.network.crypto.saslFallback", "true"),
    ];

    #[tokio::test]
    async fn sasl_08_server_that_always_encrypts_rejects_plain_client() {
        let server = Server::new(SASL_ENCRYPTED.settings).await;
        let error =
            Client::new(SASL.settings).connect(server.server.local_addr()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Bootstrap);
        assert!(full_text(&error).contains("no common protection layer"), "{}", full_text(&error));
    }

    #[tokio::test]
    async fn fallback_to_encrypted_sasl_needs_permission() {
        let server = Server::new(CTR_1.settings).await;
        let error = Client::new(ENCRYPTS).connect(server.server.local_addr()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Bootstrap);
        let server = Server::new(FALLS_BACK).await;
        let client = Client::new(ENCRYPTS).connect(server.server.local_addr()).await.unwrap();
        assert_echoes(&client).await;
    }

    #[tokio::test]
    async fn server_accepts_both_engines() {
        let server = Server::new(LEGACY.settings).await;
        for settings in [LEGACY.settings, CTR_1.settings] {
            let client = Client::new(settings).connect(server.server.local_addr()).await.unwrap();
            assert_echoes(&client).await;
        }
        // A server without the old engine lets the client fall back on the same connection.
        let server = Server::new(FALLS_BACK).await;
        let client = Client::new(EITHER).connect(server.server.local_addr()).await.unwrap();
        assert_echoes(&client).await;
        let server = Server::new(CTR_1.settings).await;
        let error = Client::new(LEGACY.settings).connect(server.server.local_addr()).await;
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Bootstrap);
    }
}

#[cfg(not(feature = "legacy-auth"))]
#[test]
fn feature_missing_in_build_is_rejected_by_setting_name() {
    for setting in [
        "spark.authenticate.enableSaslEncryption",
        "spark.network.sasl.serverAlwaysEncrypt",
        "spark.network.crypto.legacyEngine",
    ] {
        let context = TransportContext::new(conf(&[(setting, "true")]), Handler::new());
        let error = context.with_auth(APP, secrets(APP, SECRET)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(
            error.to_string().contains(setting) && error.to_string().contains("legacy-auth"),
            "{error}"
        );
    }
}

/// A configuration that requires authentication is never served without it.
#[tokio::test]
async fn authenticate_without_secrets_is_config_error() {
    let context = TransportContext::new(conf(&[("spark.authenticate", "true")]), Handler::new());
    assert_eq!(context.create_server("127.0.0.1:0").await.unwrap_err().kind(), ErrorKind::Config);
    let factory = context.create_client_factory();
    let open = serve(&TransportContext::new(conf(&[]), Handler::new())).await;
    let error = within(factory.create_client(open.local_addr())).await.unwrap_err();
    assert!(full_text(&error).contains("spark.authenticate"), "{error}");
    let context = context.with_auth(APP, secrets(APP, SECRET)).unwrap();
    let server = serve(&context).await;
    assert_echoes(
        &within(context.create_client_factory().create_client(server.local_addr())).await.unwrap(),
    )
    .await;
}

/// A configuration that requires encryption is never served without authentication.
#[tokio::test]
async fn encryption_without_authentication_is_config_error() {
    for key in ["spark.network.crypto.enabled", "spark.authenticate.enableSaslEncryption"] {
        let context = TransportContext::new(conf(&[(key, "true")]), Handler::new());
        for error in
            [context.check_security(), context.create_server("127.0.0.1:0").await.map(drop)]
        {
            let error = error.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains("spark.authenticate must be enabled"), "{error}");
        }
        let open = serve(&TransportContext::new(conf(&[]), Handler::new())).await;
        let factory = context.create_client_factory();
        let error = within(factory.create_client(open.local_addr())).await.unwrap_err();
        assert!(full_text(&error).contains("spark.authenticate must be enabled"), "{error}");
    }
}

/// A second context shares the security of the first; its other settings are its own.
#[tokio::test]
async fn context_shares_security_with_another() {
    for mode in MODES {
        let server = Server::new(mode.settings).await;
        let known = Client::new(mode.settings);
        let other =
            TransportContext::new(conf(&[]), Handler::new()).share_security_with(&known.context);
        let factory = other.create_client_factory();
        let client = within(factory.create_client(server.server.local_addr())).await.unwrap();
        assert_eq!(client.client_id(), Some(APP), "{}", mode.name);
        assert_echoes(&client).await;
        // The second context's server accepts the same clients as the first one's.
        let serves = serve(&other).await;
        within(known.connect(serves.local_addr())).await.unwrap();
        let wrong_secret =
            Client::with(mode.settings, APP, "wrong", None).connect(serves.local_addr()).await;
        assert_eq!(wrong_secret.unwrap_err().kind(), ErrorKind::Bootstrap, "{}", mode.name);
    }
}

#[test]
fn invalid_auth_settings_are_rejected() {
    for (key, value) in [
        ("spark.network.crypto.cipher", "AES/CBC/PKCS5Padding"),
        ("spark.network.crypto.keyLength", "100"),
        ("spark.network.crypto.ivLength", "12"),
        ("spark.network.auth.rpcTimeout", "0"),
        ("spark.shuffle.auth.maxHandshakes", "0"),
        ("spark.network.sasl.maxEncryptedBlockSize", "0"),
        ("spark.authenticate", "maybe"),
    ] {
        let error = network_common::TransportConf::new(MODULE).with(key, value).unwrap_err();
        assert!(error.to_string().contains(key) && error.to_string().contains(value), "{error}");
    }
    assert!(conf(&[("spark.authenticate", "true")]).authenticate() && !conf(&[]).authenticate());
}

/// `Debug` output contains no secret.
#[test]
fn secrets_are_absent_from_debug_output() {
    let shown = format!("{:?} {:?}", Secret::new(SECRET), secrets(APP, SECRET));
    assert!(shown.contains(APP) && !shown.contains(SECRET), "{shown}");
}
