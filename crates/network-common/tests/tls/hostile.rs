//! Raw peers that do not speak TLS, stop inside the handshake, or are reached through a proxy that
//! changes or cuts the bytes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use network_common::{ErrorKind, ManagedBuffer, SideMetrics, TransportContext, TransportServer};
#[cfg(feature = "auth")]
use network_common::{
    MemoryNetwork,
    auth::{Secret, SecretStore},
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::fixture::*;
use crate::support::*;

/// The beginning of a ClientHello.
const HALF_HELLO: [u8; 11] = [0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3];

async fn server(
    fixture: &Fixture,
    handler: Handler,
) -> (TransportContext, TransportServer, Arc<SideMetrics>) {
    let context = fixture.server.context(handler);
    let server = serve(&context).await;
    let metrics = Arc::clone(context.metrics().server());
    (context, server, metrics)
}

/// Waits until all connections are closed, and checks the failures.
async fn assert_failures(metrics: &SideMetrics, failures: &[(ErrorKind, u64)]) {
    until(|| metrics.snapshot().connections == 0).await;
    assert_eq!(metrics.snapshot().failures, failures);
}

#[tokio::test]
async fn plain_client_is_rejected_by_tls_server() {
    let fixture = Fixture::new();
    let (_context, server, metrics) = server(&fixture, Handler::new()).await;
    let plain = TransportContext::new(conf(&[]), Handler::new()).create_client_factory();
    let client = within(plain.create_client(server.local_addr())).await.unwrap();
    let error = within(client.send_rpc("unencrypted")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Tls);
    assert_contains(&error, &["does the peer require TLS", "spark.ssl.rpc.enabled"]);
    assert_failures(&metrics, &[(ErrorKind::Tls, 1)]).await;
    assert_eq!(metrics.snapshot().active_requests, 0);
}

#[tokio::test]
async fn tls_client_rejects_plain_server() {
    let fixture = Fixture::new();
    let plain = TransportContext::new(conf(&[]), Handler::new());
    let server = serve(&plain).await;
    let factory = fixture.client.client_context().create_client_factory();
    let error = within(factory.create_client(server.local_addr())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Tls);
    assert_contains(
        &error,
        &[
            "TLS handshake",
            "is spark.ssl.rpc.enabled=true there?",
            &server.local_addr().to_string(),
        ],
    );
    assert_failures(plain.metrics().server(), &[(ErrorKind::Tls, 1)]).await;
}

/// A peer that sends a frame of Spark's protocol first.
#[tokio::test]
async fn plain_bytes_from_server_are_reported_as_no_tls() {
    let fixture = Fixture::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut peer, _) = listener.accept().await.unwrap();
        peer.write_all(&[0, 0, 0, 0, 0, 0, 0, 9, 9]).await.unwrap();
        peer.read_to_end(&mut Vec::new()).await.unwrap();
    });
    let factory = fixture.client.client_context().create_client_factory();
    let error = within(factory.create_client(address)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Tls);
    assert_contains(&error, &["does not speak TLS", "spark.ssl.rpc.enabled", &address.to_string()]);
}

#[tokio::test]
async fn stalled_handshake_times_out_and_releases_its_permit() {
    let mut fixture = Fixture::new();
    fixture.server = fixture.server.with("handshakeTimeout", "300ms").with("maxHandshakes", "1");
    let (_context, server, metrics) = server(&fixture, Handler::new()).await;
    let mut silent = TcpStream::connect(server.local_addr()).await.unwrap();
    let mut halfway = TcpStream::connect(server.local_addr()).await.unwrap();
    halfway.write_all(&HALF_HELLO).await.unwrap();
    until(|| metrics.snapshot().connections == 2).await;
    for peer in [&mut silent, &mut halfway] {
        // The server closes the connection.
        let _ = within(peer.read_to_end(&mut Vec::new())).await;
    }
    assert_failures(&metrics, &[(ErrorKind::ConnectTimeout, 2)]).await;
    let factory = fixture.client.client_context().create_client_factory();
    let client = within(factory.create_client(server.local_addr())).await.unwrap();
    assert_eq!(within(client.send_rpc("hello")).await.unwrap(), "hello");
}

/// Handshakes over the limit wait for a permit.
#[tokio::test]
async fn handshakes_over_limit_are_queued() {
    let mut fixture = Fixture::new();
    fixture.server = fixture.server.with("maxHandshakes", "1");
    let (_context, server, metrics) = server(&fixture, Handler::new()).await;
    let mut halfway = TcpStream::connect(server.local_addr()).await.unwrap();
    halfway.write_all(&HALF_HELLO).await.unwrap();
    until(|| metrics.snapshot().received_bytes == HALF_HELLO.len() as u64).await;
    let factory = fixture.client.client_context().create_client_factory();
    let mut waiting = tokio::spawn({
        let (factory, address) = (factory.clone(), server.local_addr());
        async move { factory.create_client(address).await }
    });
    until(|| metrics.snapshot().connections == 2).await;
    tokio::time::timeout(Duration::from_millis(200), &mut waiting).await.unwrap_err();
    drop(halfway);
    let client = within(waiting).await.unwrap().unwrap();
    assert_eq!(within(client.send_rpc("hello")).await.unwrap(), "hello");
    assert_eq!(metrics.snapshot().failures, [(ErrorKind::Io, 1)]);
}

#[tokio::test]
async fn silent_server_times_out() {
    let mut fixture = Fixture::new();
    fixture.client = fixture.client.with("handshakeTimeout", "200ms");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let context = fixture.client.client_context();
    let error =
        within(context.create_client_factory().create_client(listener.local_addr().unwrap()))
            .await
            .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectTimeout);
    assert!(error.is_timeout() && error.is_retryable());
    assert_contains(&error, &["200ms", "spark.ssl.rpc.handshakeTimeout"]);
    assert_eq!(context.metrics().client().snapshot().connections, 0);
}

#[tokio::test]
async fn closing_server_does_not_wait_for_handshakes() {
    let fixture = Fixture::new();
    let (_context, server, metrics) = server(&fixture, Handler::new()).await;
    let _silent = TcpStream::connect(server.local_addr()).await.unwrap();
    until(|| metrics.snapshot().connections == 1).await;
    assert_eq!(
        within(server.close(Duration::from_secs(20))).await,
        0,
        "no connection may count as active"
    );
    assert_failures(&metrics, &[]).await;
}

#[tokio::test]
async fn garbage_in_handshake_is_an_error() {
    let fixture = Fixture::new();
    let (_context, server, metrics) = server(&fixture, Handler::new()).await;
    for (count, length) in
        (1..=20).zip([1_usize, 2, 3, 4, 5, 10, 100, 5_000, 16_384, 40_000].into_iter().cycle())
    {
        let mut peer = TcpStream::connect(server.local_addr()).await.unwrap();
        let mut garbage = vec![0x16, 3, 3, 0x10, 0];
        garbage.extend(pattern(length, count));
        // The server may close before everything is written.
        let _ = peer.write_all(&garbage).await;
        let _ = peer.shutdown().await;
        let _ = within(peer.read_to_end(&mut Vec::new())).await;
        until(|| metrics.snapshot().connections == 0).await;
        let failed: u64 = metrics.snapshot().failures.iter().map(|(_, count)| count).sum();
        assert_eq!(failed, count);
    }
}

/// A change to the bytes in one direction.
#[derive(Clone, Copy)]
enum Fault {
    Flip,
    Cut,
}

/// Starts a proxy in front of `server` that applies `fault` at byte `at` of one direction.
async fn start_proxy(server: SocketAddr, fault: Fault, at: usize, to_client: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let (from_client, to_client_half) = client.into_split();
        let (from_server, to_server_half) = TcpStream::connect(server).await.unwrap().into_split();
        let (down, up) = ((from_server, to_client_half), (from_client, to_server_half));
        let ((mut bad_from, mut bad_to), (mut good_from, mut good_to)) =
            if to_client { (down, up) } else { (up, down) };
        let good = async {
            let _ = tokio::io::copy(&mut good_from, &mut good_to).await;
        };
        let bad = async {
            let (mut buffer, mut passed) = (vec![0; 4096], 0);
            while let Ok(count @ 1..) = bad_from.read(&mut buffer).await {
                let hit = (passed..passed + count).contains(&at).then(|| at - passed);
                let piece = match (hit, fault) {
                    (Some(place), Fault::Cut) => &buffer[..place],
                    (Some(place), Fault::Flip) => {
                        buffer[place] ^= 1;
                        &buffer[..count]
                    }
                    (None, _) => &buffer[..count],
                };
                if bad_to.write_all(piece).await.is_err()
                    || (hit.is_some() && matches!(fault, Fault::Cut))
                {
                    break;
                }
                passed += count;
            }
            let _ = bad_to.shutdown().await;
        };
        tokio::join!(good, bad);
    });
    address
}

const CHUNK: usize = 300_000;

/// Fetches a chunk and uploads data through a proxy with one fault; both transfers are slightly
/// larger than `CHUNK` on the wire. The damaged transfer must fail. Returns the failures at the end
/// that received it, and the error.
async fn transfer_with_fault(
    fault: Fault,
    at: usize,
    to_client: bool,
) -> (Vec<(ErrorKind, u64)>, String) {
    let fixture = Fixture::new();
    let content = pattern(CHUNK, 7);
    let (served, expected) = (content.clone(), content.clone());
    let handler = Handler::new()
        .on_chunk(move |_, _| Ok(ManagedBuffer::from(served.clone())))
        .on_upload(move |_, data| {
            let expected = expected.clone();
            async move {
                assert!(data.collect().await? == expected);
                Ok("whole".into())
            }
        });
    let (_context, server, at_server) = server(&fixture, handler).await;
    let address = start_proxy(server.local_addr(), fault, at, to_client).await;
    let client_context = fixture.client.client_context();
    let at_client = Arc::clone(client_context.metrics().client());
    let factory = client_context.create_client_factory();
    let error = match within(factory.create_client(address)).await {
        Ok(client) => {
            let (chunk, upload) = within(async {
                tokio::join!(client.fetch_chunk(1, 0), client.upload_stream("u", content.clone()))
            })
            .await;
            if let Ok(chunk) = &chunk {
                assert!(*chunk == content);
            }
            // The transfer in the damaged direction must fail.
            let error = if to_client { chunk.unwrap_err() } else { upload.unwrap_err() };
            drop(client);
            error
        }
        Err(error) => error,
    };
    factory.close();
    until(|| at_server.snapshot().connections == 0 && at_client.snapshot().connections == 0).await;
    let hit = if to_client { at_client } else { at_server };
    (hit.snapshot().failures, full_text(&error))
}

#[tokio::test(flavor = "multi_thread")]
async fn flipped_bit_ends_connection() {
    for to_client in [true, false] {
        // In the handshake, in the first message, and in the middle of a body.
        for at in [0, 40, 150, 3_000, 100_000, 200_000] {
            let (failures, text) = transfer_with_fault(Fault::Flip, at, to_client).await;
            assert_eq!(
                failures.iter().map(|(_, count)| count).sum::<u64>(),
                1,
                "{at}: {failures:?} {text}"
            );
            assert!(
                matches!(failures[0].0, ErrorKind::Tls | ErrorKind::Io),
                "{at}, to client {to_client}: {failures:?} {text}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn truncation_is_an_error() {
    // In the handshake, in the first record (not for the server, which misses nothing then), and in
    // the middle of a body.
    for (to_client, places) in
        [(true, &[10, 500, 10_000, 100_000, 200_000][..]), (false, &[10, 100_000, 200_000])]
    {
        for &at in places {
            let (failures, text) = transfer_with_fault(Fault::Cut, at, to_client).await;
            assert_eq!(failures, [(ErrorKind::Io, 1)], "{at}, to client {to_client}: {text}");
            if to_client && at >= 10_000 {
                assert!(text.contains("cut off without close_notify"), "{text}");
            }
        }
    }
}

/// The limits for unauthenticated peers hold with TLS too (docs/security.md).
#[cfg(feature = "auth")]
#[tokio::test]
async fn unauthenticated_peer_cannot_exceed_limits_over_tls() {
    let (fixture, network, secrets) = (Fixture::new(), MemoryNetwork::new(), SecretStore::new());
    secrets.register_app("app", Secret::new("secret"));
    let context =
        fixture.server.context(Handler::new()).with_auth("app", Arc::new(secrets)).unwrap();
    let context = context.memory_network(&network);
    let server = serve(&context).await;
    let factory = fixture.client.client_context().memory_network(&network).create_client_factory();
    let client = within(factory.create_client(server.local_addr())).await.unwrap();
    (0..300).for_each(|_| client.send(vec![0; 1000]).unwrap());
    within(client.closed()).await;
    let snapshot = context.metrics().server().snapshot();
    assert!(snapshot.received_bytes <= 128 << 10, "{} bytes were read", snapshot.received_bytes);
}

/// A raw client that uses rustls directly. It accepts every certificate, which is for tests only.
struct Raw {
    socket: std::net::TcpStream,
    tls: ClientConnection,
}

impl Raw {
    fn connect(address: SocketAddr) -> Self {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AcceptsEveryCertificate))
            .with_no_client_auth();
        let mut tls =
            ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
        let mut socket = std::net::TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        while tls.is_handshaking() {
            tls.complete_io(&mut socket).unwrap();
        }
        Self { socket, tls }
    }

    /// Returns true if the server sends close_notify before it closes the connection.
    fn receives_close_notify(&mut self) -> bool {
        loop {
            match self.tls.read_tls(&mut self.socket) {
                Ok(0) => return false,
                Ok(_) if self.tls.process_new_packets().unwrap().peer_has_closed() => return true,
                Ok(_) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}

#[derive(Debug)]
struct AcceptsEveryCertificate;

impl ServerCertVerifier for AcceptsEveryCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// The socket itself stays open.
#[tokio::test(flavor = "multi_thread")]
async fn close_notify_ends_connection() {
    let fixture = Fixture::new();
    let (_context, server, metrics) = server(&fixture, Handler::new()).await;
    let address = server.local_addr();
    let raw_client = tokio::task::spawn_blocking(move || {
        let mut raw = Raw::connect(address);
        raw.tls.send_close_notify();
        raw.tls.complete_io(&mut raw.socket).unwrap();
        assert!(raw.receives_close_notify(), "the server must answer with close_notify");
    });
    within(raw_client).await.unwrap();
    assert_failures(&metrics, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orderly_close_sends_close_notify() {
    let fixture = Fixture::new();
    let (_context, server, metrics) = server(&fixture, Handler::new()).await;
    let address = server.local_addr();
    let raw_client =
        tokio::task::spawn_blocking(move || Raw::connect(address).receives_close_notify());
    until(|| metrics.snapshot().connections == 1 && metrics.snapshot().received_bytes > 300).await;
    assert_eq!(within(server.close(Duration::from_secs(20))).await, 0);
    assert!(within(raw_client).await.unwrap());
    assert_failures(&metrics, &[]).await;
}

/// TLS 1.3 allows a peer to change its keys at any time.
#[tokio::test(flavor = "multi_thread")]
async fn key_updates_are_followed() {
    let fixture = Fixture::new();
    let (_context, server, metrics) = server(&fixture, Handler::new()).await;
    let address = server.local_addr();
    let raw_client = tokio::task::spawn_blocking(move || {
        use std::io::{Read, Write};
        let mut raw = Raw::connect(address);
        // An RPC of 2 bytes with request id 1; the response has the same size.
        let request =
            [&[0, 0, 0, 0, 0, 0, 0, 23, 3], &[0; 7][..], &[1], &[0, 0, 0, 2], b"hi"].concat();
        for _ in 0..3 {
            raw.tls.refresh_traffic_keys().unwrap();
            let mut stream = rustls::Stream::new(&mut raw.tls, &mut raw.socket);
            stream.write_all(&request).unwrap();
            let mut answer = [0; 23];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(answer[21..], *b"hi");
        }
        raw.tls.send_close_notify();
        raw.tls.complete_io(&mut raw.socket).unwrap();
    });
    within(raw_client).await.unwrap();
    assert_failures(&metrics, &[]).await;
}
