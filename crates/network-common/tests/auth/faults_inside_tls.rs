//! T13: with TLS and an authentication that encrypts, the session's cipher is outside of TLS.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use network_common::{
    BoxError, ByteFilter, FilterOutput, ManagedBuffer, RpcHandler, RpcResponseCallback,
    TransportClient, TransportClientBootstrap,
};

use crate::fixture::*;
use crate::proxy::{Direction, Fault, Proxy};
use crate::support::*;

/// Returns the settings of TLS with a new certificate.
fn tls_settings() -> [(&'static str, &'static str); 3] {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let file = |content: String| -> &'static str {
        let path = file_of(content.as_bytes()).into_temp_path().keep().unwrap();
        path.to_str().unwrap().to_owned().leak()
    };
    let (chain, key) = (file(certificate.pem()), file(key.serialize_pem()));
    [
        ("spark.ssl.rpc.enabled", "true"),
        ("spark.ssl.rpc.certChain", chain),
        ("spark.ssl.rpc.privateKey", key),
    ]
}

/// Returns each mode of authentication inside of TLS.
fn modes() -> Vec<Mode> {
    let tls = tls_settings();
    let inside_tls = |mode: &Mode| Mode {
        settings: mode.settings.iter().copied().chain(tls).collect::<Vec<_>>().leak(),
        ..*mode
    };
    MODES.iter().map(inside_tls).collect()
}

/// Serves a stream, echoes, and sends a message as soon as the peer is authenticated.
fn handler() -> Handler {
    let content = pattern(3 << 20, 1);
    Handler::new()
        .on_stream(move |_| Ok(Some(ManagedBuffer::from(content.clone()))))
        .on_upload(|_, data| async { Ok(data.collect().await?) })
        .on_active(|client| {
            let client = client.clone();
            tokio::spawn(async move {
                while client.client_id().is_none() && client.is_active() {
                    tokio::task::yield_now().await;
                }
                let _ = client.send("at once");
            });
        })
}

/// Runs all kinds of requests over a connection through a proxy with this fault.
async fn check(mode: &Mode, fault: Fault) -> Proxy {
    let server = Server::with(mode.settings, handler()).await;
    let proxy = Proxy::before(server.server.local_addr(), fault).await;
    let (arrived, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
    let at_client = Handler::new().on_one_way(move |_, body| arrived.send(body).unwrap());
    let end = Client::with(mode.settings, APP, SECRET, Some(at_client));
    let client = end.connect(proxy.address).await.unwrap();
    assert_eq!(within(arrivals.recv()).await.unwrap(), "at once", "{}", mode.name);
    assert_echoes(&client).await;
    let body = within(within(client.stream("s")).await.unwrap().collect()).await.unwrap();
    assert_eq!(body, pattern(3 << 20, 1), "{}", mode.name);
    let uploaded = within(client.upload_stream("", pattern(300_000, 2))).await.unwrap();
    assert_eq!(uploaded, pattern(300_000, 2), "{}", mode.name);
    assert_eq!(client.client_id(), Some(APP));
    client.close();
    server.wait_until_empty().await;
    assert_eq!(server.context.metrics().server().snapshot().failures, [], "{}", mode.name);
    assert_eq!(end.context.metrics().client().snapshot().failures, [], "{}", mode.name);
    proxy
}

/// Returns how many bytes from the start on are whole records of TLS.
fn records_length(bytes: &[u8]) -> usize {
    let mut position = 0;
    while let Some([20..=23, 3, 1..=3, high, low]) = bytes.get(position..position + 5) {
        let end = position + 5 + usize::from(u16::from_be_bytes([*high, *low]));
        if end > bytes.len() {
            break;
        }
        position = end;
    }
    position
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_t13_session_cipher_is_outside_of_tls() {
    for mode in modes() {
        let proxy = check(&mode, Fault::None).await;
        for direction in [Direction::ToServer, Direction::ToClient] {
            let seen = proxy.seen(direction);
            let length = records_length(&seen);
            assert!(length > 100, "{} {direction:?}: the handshake is inside of TLS", mode.name);
            if mode.encrypts {
                assert!(length < 10_000, "{} {direction:?}: the rest is TLS", mode.name);
            } else {
                assert_eq!(length, seen.len(), "{} {direction:?}", mode.name);
            }
        }
    }
}

/// Bytes behind the last message of the handshake arrive in the same read.
#[tokio::test(flavor = "multi_thread")]
async fn fault_t13_bytes_read_with_end_of_handshake_are_opened() {
    for mode in modes() {
        for direction in [Direction::ToClient, Direction::ToServer] {
            check(&mode, Fault::Gather(direction, Duration::from_millis(20))).await;
        }
    }
}

/// Records and blocks of the cipher are split at every place.
#[tokio::test(flavor = "multi_thread")]
async fn fault_t13_narrow_reads_are_opened() {
    for mode in modes() {
        for direction in [Direction::ToClient, Direction::ToServer] {
            for width in [1, 7, 1000] {
                let server = Server::new(mode.settings).await;
                let fault = Fault::Narrow(direction, width);
                let proxy = Proxy::before(server.server.local_addr(), fault).await;
                let client = Client::new(mode.settings).connect(proxy.address).await.unwrap();
                assert_echoes(&client).await;
            }
        }
    }
}

/// A wrong secret fails inside of TLS as without it.
#[tokio::test]
async fn fault_t13_wrong_secret_fails_inside_tls() {
    for mode in modes() {
        let server = Server::new(mode.settings).await;
        let client = Client::with(mode.settings, APP, "another secret", None);
        let error = client.connect(server.server.local_addr()).await.unwrap_err();
        assert_eq!(error.kind(), network_common::ErrorKind::Bootstrap, "{}", mode.name);
        assert_eq!(server.served(), 0);
    }
}

/// A flipped bit behind the handshake ends the connection, also with a cipher that does not detect
/// it: TLS does.
#[tokio::test(flavor = "multi_thread")]
async fn fault_t13_changed_bytes_are_detected_by_tls() {
    for mode in modes() {
        let recorded = check(&mode, Fault::None).await;
        let start = records_length(&recorded.seen(Direction::ToServer)).min(3000) + 40;
        let server = Server::new(mode.settings).await;
        let fault = Fault::Flip(Direction::ToServer, start, 3);
        let proxy = Proxy::before(server.server.local_addr(), fault).await;
        let end = Client::new(mode.settings);
        let Ok(client) = end.connect(proxy.address).await else { continue };
        let error = async {
            loop {
                if let Err(error) = client.send_rpc(vec![7; 2000]).await {
                    return error;
                }
            }
        };
        within(error).await;
    }
}

/// A cipher of a user's bootstrap.
struct Invert;

impl ByteFilter for Invert {
    fn transform(&mut self, input: &[u8], output: &mut FilterOutput<'_>) -> Result<(), BoxError> {
        output.extend_from_slice(&input.iter().map(|byte| !byte).collect::<Vec<_>>());
        Ok(())
    }
}

/// A user's bootstrap that installs a filter at both ends.
struct Inverting;

impl TransportClientBootstrap for Inverting {
    fn do_bootstrap<'a>(
        &'a self,
        client: &'a TransportClient,
    ) -> BoxFuture<'a, Result<(), BoxError>> {
        Box::pin(async move {
            client.send_rpc("handshake").await?;
            Ok(client.install_filters(Box::new(Invert), Box::new(Invert))?)
        })
    }
}

impl RpcHandler for Inverting {
    fn receive(&self, client: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
        let is_handshake = message == "handshake";
        callback.reply(message);
        if is_handshake {
            client.install_filters(Box::new(Invert), Box::new(Invert)).unwrap();
            client.send("at once").unwrap();
        }
    }
}

/// The bytes of the new filter arrive in the same read as the response to the bootstrap.
#[tokio::test(flavor = "multi_thread")]
async fn fault_t13_filters_of_user_bootstrap_are_installed_inside_tls() {
    let settings = tls_settings();
    let serving = network_common::TransportContext::new(conf(&settings), Inverting);
    let server = serve(&serving).await;
    for fault in [Fault::None, Fault::Gather(Direction::ToClient, Duration::from_millis(50))] {
        let proxy = Proxy::before(server.local_addr(), fault).await;
        let (arrived, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
        let handler = Handler::new().on_one_way(move |_, body| arrived.send(body).unwrap());
        let factory = network_common::TransportContext::new(conf(&settings), handler)
            .create_client_factory_with(vec![Arc::new(Inverting)]);
        let client = within(factory.create_unmanaged_client(proxy.address)).await.unwrap();
        assert_eq!(within(arrivals.recv()).await.unwrap(), "at once");
        assert_echoes(&client).await;
        let large = pattern(300_000, 4);
        assert_eq!(within(client.send_rpc(large.clone())).await.unwrap(), large);
        client.close();
    }
    until(|| serving.metrics().server().snapshot().connections == 0).await;
    assert_eq!(serving.metrics().server().snapshot().failures, []);
}
