//! M2, M3, U6: what a peer can make this process keep and log.

use std::fmt::{Debug, Write};
use std::sync::Arc;

use network_common::protocol::{MergedBlockMetaRequest, Message};
use network_common::{ErrorKind, NoOpRpcHandler, TransportClient, TransportConf, TransportContext};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tracing::field::{Field, Visit};

use crate::support::*;

const FORGED: &str = "no such block\n2026-01-01 ERROR forged: all is lost\r\x1b[2J\u{202e}txt";

/// Collects the lines of this crate, formatted as a log would be.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<(tracing::Level, String)>>>);

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("network_common")
    }

    fn event(&self, event: &tracing::Event<'_>) {
        struct Fields(String);
        impl Visit for Fields {
            fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
                write!(self.0, " {}={value:?}", field.name()).unwrap();
            }
        }
        let level = *event.metadata().level();
        let mut fields = Fields(format!("{level} {}", event.metadata().target()));
        event.record(&mut fields);
        self.0.lock().push((level, fields.0));
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

impl Lines {
    fn assert_bounded_and_unforged(&self) {
        for (_, line) in &*self.0.lock() {
            assert!(line.len() <= 1024, "{} bytes: {}", line.len(), &line[..200]);
            assert!(!line.chars().any(char::is_control), "{line:?}");
        }
    }
}

fn plain(handler: impl network_common::RpcHandler) -> TransportContext {
    TransportContext::new(TransportConf::new(MODULE), handler)
}

fn assert_short_and_unforged(text: &str) {
    assert!(text.len() <= 1300, "{} bytes: {}", text.len(), &text[..200]);
    assert!(!text.chars().any(char::is_control), "{text:?}");
    assert!(!text.contains('\u{202e}'), "{text:?}");
}

/// Returns a client of a raw server, and its connection.
async fn raw_server() -> (TcpStream, TransportClient) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let factory = plain(NoOpRpcHandler::new()).create_client_factory();
    let connecting = factory.create_unmanaged_client(listener.local_addr().unwrap());
    let (client, accepted) = within(async { tokio::join!(connecting, listener.accept()) }).await;
    (accepted.unwrap().0, client.unwrap())
}

async fn read_frame(stream: &mut TcpStream) -> Vec<u8> {
    let length = within(stream.read_u64()).await.unwrap();
    let mut payload = vec![0; length as usize - 8];
    within(stream.read_exact(&mut payload)).await.unwrap();
    payload
}

#[tokio::test]
async fn fault_m3_texts_of_failures_are_escaped_and_cut() {
    let lines = Lines::default();
    let _guard = tracing::subscriber::set_default(lines.clone());
    for text in [FORGED.to_owned(), "\n".repeat(3 << 20), "é".repeat(1 << 20), "x".repeat(200_000)]
    {
        let (mut server, client) = raw_server().await;
        let rpc = client.send_rpc("x");
        let request = read_frame(&mut server).await;
        let request_id = i64::from_be_bytes(request[1..9].try_into().unwrap());
        let (chunk, stream) = (client.fetch_chunk(1, 2), client.stream("name"));
        let failures: [Message; 3] = [
            Message::RpcFailure { request_id, error: text.clone() },
            Message::ChunkFetchFailure { stream_id: 1, chunk_index: 2, error: text.clone() },
            Message::StreamFailure { stream_id: "name".into(), error: text.clone() },
        ];
        for failure in &failures {
            server.write_all(&failure.encode().unwrap()).await.unwrap();
        }
        let errors = [
            within(rpc).await.unwrap_err(),
            within(chunk).await.unwrap_err(),
            within(stream).await.map(drop).unwrap_err(),
        ];
        let kinds = [ErrorKind::Remote, ErrorKind::ChunkFetchFailure, ErrorKind::StreamFailure];
        for (error, kind) in errors.iter().zip(kinds) {
            assert_eq!(error.kind(), kind);
            assert!(error.is_remote());
            assert_short_and_unforged(&format!("{error:#}"));
            assert!(format!("{error:?}").len() < 3000);
        }
        if text == FORGED {
            assert!(errors[0].to_string().starts_with("no such block\\n2026"), "{}", errors[0]);
        }
        // The rest of a long text is skipped exactly.
        let next = client.send_rpc("y");
        let request_id = loop {
            let request = read_frame(&mut server).await;
            if request.ends_with(b"y") {
                break i64::from_be_bytes(request[1..9].try_into().unwrap());
            }
        };
        let reply = Message::RpcResponse { request_id, body: "z".into() };
        server.write_all(&reply.encode().unwrap()).await.unwrap();
        assert_eq!(within(next).await.unwrap(), "z");
    }
    lines.assert_bounded_and_unforged();
}

/// A name is rejected by its length field, before it arrives.
#[tokio::test]
async fn fault_m2_long_names_in_responses_are_rejected_at_once() {
    let lines = Lines::default();
    let _guard = tracing::subscriber::set_default(lines.clone());
    let name = "n".repeat(8 << 20);
    let responses: [Message; 2] = [
        Message::StreamResponse { stream_id: name.clone(), byte_count: 4 },
        Message::StreamFailure { stream_id: name, error: "none".into() },
    ];
    for response in &responses {
        let (mut server, client) = raw_server().await;
        server.write_all(&response.encode().unwrap()[..13]).await.unwrap();
        let error = within(client.closed()).await;
        assert_eq!(error.kind(), ErrorKind::Protocol);
        assert!(format!("{error:#}").contains("8388608"), "{error}");
        assert_short_and_unforged(&format!("{error:#}"));
    }
    let (_server, client) = raw_server().await;
    let error = within(client.stream(&"n".repeat((64 << 10) + 1))).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit);
    drop(client.stream(&"n".repeat(64 << 10)));
    lines.assert_bounded_and_unforged();
}

#[tokio::test]
async fn fault_m2_names_nobody_asked_for_are_cut_in_error_and_log() {
    let lines = Lines::default();
    let _guard = tracing::subscriber::set_default(lines.clone());
    for stream_id in ["n".repeat(60_000), FORGED.to_owned(), FORGED.repeat(500)] {
        for byte_count in [0, 4] {
            let (mut server, client) = raw_server().await;
            let response: Message =
                Message::StreamResponse { stream_id: stream_id.clone(), byte_count };
            server.write_all(&response.encode().unwrap()).await.unwrap();
            let error = within(client.closed()).await;
            assert_eq!(error.kind(), ErrorKind::Protocol);
            assert_short_and_unforged(&format!("{error:#}"));
        }
    }
    lines.assert_bounded_and_unforged();
}

/// A request with a name over 64 KiB fails in its turn, and the next ones are served.
#[tokio::test]
async fn fault_m2_long_names_in_requests_are_skipped_and_cut() {
    let lines = Lines::default();
    let _guard = tracing::subscriber::set_default(lines.clone());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let names = Arc::clone(&asked);
    let handler = Handler::new().on_stream(move |name| {
        names.lock().push(name.to_owned());
        Ok(None)
    });
    let server = serve(&plain(handler)).await;
    let mut peer = TcpStream::connect(server.local_addr()).await.unwrap();
    let lengths = [1, 64 << 10, (64 << 10) + 1, 2, 12 << 20, 17 << 20, 3];
    let request = |length| Message::StreamRequest { stream_id: "n".repeat(length) };
    let app_id = "a".repeat(1 << 20);
    let (request_id, shuffle_id, shuffle_merge_id, reduce_id) = (77, 0, 0, 0);
    let meta =
        MergedBlockMetaRequest { request_id, app_id, shuffle_id, shuffle_merge_id, reduce_id };
    for length in lengths {
        let request: Message = request(length);
        peer.write_all(&request.encode().unwrap()).await.unwrap();
        let failure = read_frame(&mut peer).await;
        let is_skipped = length > 64 << 10;
        let name_length = u32::from_be_bytes(failure[1..5].try_into().unwrap()) as usize;
        assert_eq!((failure[0], name_length), (8, if is_skipped { 259 } else { length }));
        let text = String::from_utf8_lossy(&failure[9 + name_length..]);
        assert_eq!(text.contains("exceeds the limit of"), is_skipped, "{text}");
        assert_eq!(failure[5..5 + name_length].ends_with(b"n..."), is_skipped);
    }
    let served: Vec<_> = asked.lock().iter().map(String::len).collect();
    assert_eq!(served, [1, 64 << 10, 2, 3]);
    let meta: Message = Message::MergedBlockMetaRequest(meta);
    peer.write_all(&meta.encode().unwrap()).await.unwrap();
    let failure = read_frame(&mut peer).await;
    assert_eq!((failure[0], &failure[1..9]), (5, &77_i64.to_be_bytes()[..]));
    assert!(String::from_utf8_lossy(&failure[13..]).contains("65536"));
    // Pipelined, the failure of the skipped request keeps its place.
    let frames = [1, 100_000, 2].map(|length| -> Vec<u8> {
        let request: Message = request(length);
        request.encode().unwrap()
    });
    peer.write_all(&frames.concat()).await.unwrap();
    for name_length in [1, 259, 2] {
        let failure = read_frame(&mut peer).await;
        assert_eq!(&failure[..5], [8, 0, 0, (name_length >> 8) as u8, name_length as u8]);
    }
    lines.assert_bounded_and_unforged();
}

/// Names in requests reach the log of a server, in errors of its stream manager.
#[tokio::test]
async fn fault_m3_names_in_requests_are_escaped_in_log() {
    let lines = Lines::default();
    let _guard = tracing::subscriber::set_default(lines.clone());
    let manager = Arc::new(network_common::OneForOneStreamManager::new());
    let handlers = [
        Handler::new().on_stream(|_| Ok(None)),
        Handler::new().on_stream(|name| Err(format!("no stream {name}").into())),
        Handler::new().with_manager(manager),
    ];
    for handler in handlers {
        let server = serve(&plain(handler)).await;
        let factory = plain(NoOpRpcHandler::new()).create_client_factory();
        let client = within(factory.create_client(server.local_addr())).await.unwrap();
        for name in [FORGED.to_owned(), FORGED.repeat(500)] {
            let error = within(client.stream(&name)).await.map(drop).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::StreamFailure);
            assert_short_and_unforged(&format!("{error:#}"));
        }
    }
    lines.assert_bounded_and_unforged();
    assert!(lines.0.lock().iter().any(|(_, line)| line.contains("stream request failed")));
}

/// Application ids reach errors and logs before authentication.
#[cfg(feature = "auth")]
#[tokio::test]
async fn fault_m3_application_ids_are_escaped_and_cut() {
    use network_common::auth::{Secret, SecretStore};

    let lines = Lines::default();
    let _guard = tracing::subscriber::set_default(lines.clone());
    let secrets = Arc::new(SecretStore::new());
    secrets.register_app("app-1", Secret::new("s3cret"));
    for settings in [&[][..], &[("spark.network.crypto.enabled", "true")]] {
        for app in [FORGED.to_owned(), FORGED.repeat(50)] {
            let (failed, mut failures) = tokio::sync::mpsc::unbounded_channel();
            let conf = TransportConf::from_settings(MODULE, settings.iter().copied()).unwrap();
            let serving = TransportContext::new(conf.clone(), Reports(failed));
            let server = serve(&serving.with_auth("app-1", secrets.clone()).unwrap()).await;
            let own = Arc::new(SecretStore::new());
            own.register_app(&app, Secret::new("guessed"));
            let context = TransportContext::new(conf, NoOpRpcHandler::new());
            let factory = context.with_auth(&app, own).unwrap().create_client_factory();
            within(factory.create_client(server.local_addr())).await.unwrap_err();
            let error: network_common::TransportError = within(failures.recv()).await.unwrap();
            assert_eq!(error.kind(), ErrorKind::Bootstrap);
            let text = format!("{error:#}");
            assert!(text.contains("no secret is known"), "{text}");
            assert_short_and_unforged(&text);
        }
    }
    lines.assert_bounded_and_unforged();
}

/// A handler that passes on the errors that end connections.
#[cfg(feature = "auth")]
struct Reports(tokio::sync::mpsc::UnboundedSender<network_common::TransportError>);

#[cfg(feature = "auth")]
impl network_common::RpcHandler for Reports {
    fn receive(
        &self,
        _: &TransportClient,
        _: bytes::Bytes,
        callback: network_common::RpcResponseCallback,
    ) {
        callback.fail("not served");
    }

    fn on_network_error(&self, error: &network_common::TransportError, _: &TransportClient) {
        self.0.send(error.clone()).unwrap();
    }
}

/// Peers that connect and send garbage, and one that sends messages that are discarded.
#[tokio::test]
async fn fault_u6_peers_cause_at_most_10_lines_a_second() {
    let lines = Lines::default();
    let _guard = tracing::subscriber::set_default(lines.clone());
    let serving = plain(NoOpRpcHandler::new());
    let server = serve(&serving).await;
    let factory = plain(NoOpRpcHandler::new()).create_client_factory();
    let client = within(factory.create_client(server.local_addr())).await.unwrap();
    let started = std::time::Instant::now();
    // Tests that run at the same time use up the lines of some seconds.
    let mut round = 0;
    while started.elapsed() < std::time::Duration::from_secs(3) {
        let mut peer = TcpStream::connect(server.local_addr()).await.unwrap();
        peer.write_all(b"hello, is anybody there?").await.unwrap();
        for _ in 0..10 {
            client.send("discarded").unwrap();
        }
        until(|| {
            let failures = serving.metrics().server().snapshot().failures;
            failures == [(ErrorKind::Protocol, round + 1)]
        })
        .await;
        round += 1;
    }
    let seconds = started.elapsed().as_secs() as usize + 2;
    let logged = lines.0.lock();
    let warnings: Vec<_> =
        logged.iter().filter(|(level, _)| *level <= tracing::Level::WARN).collect();
    assert!(round > 50, "{round}");
    for place in ["connection closed after an error", "discarding a one-way message"] {
        let count = warnings.iter().filter(|(_, line)| line.contains(place)).count();
        assert!(count > 0 && count <= 10 * seconds, "{count}: {place}");
    }
}

/// Each round sends more garbage than one second of the log has lines for.
#[cfg(feature = "auth")]
#[tokio::test]
async fn fault_u6_garbage_does_not_hide_failed_authentication() {
    use network_common::auth::{Secret, SecretStore};

    let lines = Lines::default();
    let _guard = tracing::subscriber::set_default(lines.clone());
    let context = |app: &str, secret: &str| {
        let secrets = Arc::new(SecretStore::new());
        secrets.register_app(app, Secret::new(secret));
        plain(NoOpRpcHandler::new()).with_auth(app, secrets).unwrap()
    };
    let serving = context("app-1", "s3cret");
    let server = serve(&serving).await;
    let garbage = async || {
        for _ in 0..30 {
            let mut peer = TcpStream::connect(server.local_addr()).await.unwrap();
            peer.write_all(b"hello, is anybody there?").await.unwrap();
            let _ = within(peer.read(&mut [0])).await;
        }
    };
    let is_logged = || {
        let is_failure = |line: &str| {
            line.contains("connection closed after an error") && line.contains("authentication of")
        };
        lines.0.lock().iter().any(|(_, line)| is_failure(line))
    };
    // Tests that run at the same time may use up the lines of one second.
    for _ in 0..5 {
        garbage().await;
        let factory = context("app-1", "guessed").create_client_factory();
        within(factory.create_client(server.local_addr())).await.unwrap_err();
        until(|| serving.metrics().server().snapshot().connections == 0).await;
        if is_logged() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    panic!("{:?}", lines.0.lock());
}
