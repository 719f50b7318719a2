//! Connections that count as quiet or idle, with a `connectionTimeout` of 1 s: rows `fault_t1`,
//! `fault_t2`, `fault_t5`, `fault_t10` and `fault_t11`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use network_common::{ErrorKind, ManagedBuffer, NoOpRpcHandler, TransportClient, TransportError};
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use crate::support::*;

const TIMEOUT: Duration = Duration::from_secs(1);
const SETTING: (&str, &str) = ("spark.shuffle.io.connectionTimeout", "1s");
const LARGE: usize = 8 << 20;

/// Serves streams of 8 MiB and echoes RPCs.
fn large_streams() -> Handler {
    let content = pattern(LARGE, 1);
    Handler::new().on_stream(move |_| Ok(Some(ManagedBuffer::from(content.clone()))))
}

fn assert_names_body(error: &TransportError, stream: &str) {
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(error.is_timeout() && !error.is_retryable());
    let text = error.to_string();
    for part in [stream, "8388608", "unread", "another connection", SETTING.0, "1s"] {
        assert!(text.contains(part), "{part} is missing: {text}");
    }
}

/// The pause of the reader is longer than two timeouts.
#[tokio::test]
async fn fault_t2_pause_of_own_body_is_not_silence_of_peer() {
    for pair in [
        pair_with(large_streams(), &[], &[SETTING]).await,
        pair_with(large_streams(), &[SETTING], &[SETTING]).await,
    ] {
        let mut body = within(pair.client.stream("paused")).await.unwrap();
        let first = within(body.next_piece()).await.unwrap().unwrap();
        sleep(TIMEOUT * 7 / 2).await;
        let rest = within(body.collect()).await.unwrap();
        assert_eq!(first.len() + rest.len(), LARGE);
        pair.assert_alive().await;
        pair.assert_no_failures();
    }
}

/// After the pause the peer gets the whole timeout again.
#[tokio::test]
async fn fault_t2_peer_that_falls_silent_after_pause_times_out() {
    let kept = Mutex::new(Vec::new());
    let handler = large_streams().on_rpc(move |_, _, callback| kept.lock().push(callback));
    let pair = pair_with(handler, &[], &[SETTING]).await;
    let body = within(pair.client.stream("paused")).await.unwrap();
    sleep(TIMEOUT * 5 / 2).await;
    within(body.collect()).await.unwrap();
    let started = Instant::now();
    let error = within(pair.client.send_rpc("never answered")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.to_string().contains("has been quiet"), "{error}");
    assert!(started.elapsed() >= TIMEOUT, "{:?}", started.elapsed());
}

#[tokio::test]
async fn fault_t2_two_bodies_awaited_together_end_with_named_body() {
    let pair = pair_with(large_streams(), &[], &[SETTING]).await;
    let (first, second) = (pair.client.stream("first"), pair.client.stream("second"));
    let error = within(async { tokio::try_join!(first, second) }).await.unwrap_err();
    assert_names_body(&error, "'first'");
    // `try_join!` has dropped the first body, so the connection goes on.
    pair.assert_alive().await;
    pair.assert_no_failures();
}

/// The unread body itself stays readable.
#[tokio::test]
async fn fault_t2_every_request_behind_unread_body_names_it() {
    let kept = Mutex::new(Vec::new());
    let handler = large_streams()
        .on_chunk(|_, _| Ok(ManagedBuffer::from("chunk")))
        .on_upload(|_, data| async { Ok(data.collect().await?) })
        .on_meta(move |_, _, callback| kept.lock().push(callback));
    let pair = pair_with(handler, &[], &[SETTING]).await;
    let client = &pair.client;
    let body = within(client.stream("unread body")).await.unwrap();
    let (rpc, chunk, stream, upload, meta) = within(async {
        tokio::join!(
            client.send_rpc("x"),
            client.fetch_chunk(1, 0),
            client.stream("other"),
            client.upload_stream("", "data"),
            client.merged_block_meta("app", 0, 0, 0)
        )
    })
    .await;
    for error in [rpc.err(), chunk.err(), stream.err(), upload.err(), meta.err()] {
        assert_names_body(&error.unwrap(), "'unread body'");
    }
    assert_eq!(within(body.collect()).await.unwrap().len(), LARGE);
    // Late responses are discarded, and the next ones match their requests.
    assert_eq!(within(client.send_rpc("next")).await.unwrap(), "next");
    assert_eq!(within(client.fetch_chunk(1, 1)).await.unwrap(), "chunk");
    let again = within(client.stream("again")).await.unwrap();
    assert_eq!(again.stream_id(), "again");
}

/// A request of the server waits behind an upload that the server itself does not read.
#[tokio::test]
async fn fault_t2_server_request_behind_its_unread_upload_names_it() {
    // The upload is read once the request has failed.
    let failed = Arc::new(tokio::sync::Notify::new());
    let at_upload = Arc::clone(&failed);
    let (connected, mut clients) = tokio::sync::mpsc::unbounded_channel();
    let handler = Handler::new()
        .on_active(move |client| connected.send(client.clone()).unwrap())
        .on_upload(move |_, data| {
            let failed = Arc::clone(&at_upload);
            async move {
                failed.notified().await;
                Ok(data.collect().await?.len().to_string().into())
            }
        });
    let server_context = context(conf(&[SETTING]), handler);
    let pair = pair_of(server_context, context(conf(&[]), Handler::new())).await;
    let at_server: TransportClient = within(clients.recv()).await.unwrap();
    let uploading = pair.client.upload_stream("", pattern(LARGE, 2));
    until(|| pair.context.metrics().server().snapshot().received_bytes > 1 << 20).await;
    let error = within(at_server.send_rpc("to the client")).await.unwrap_err();
    assert!(error.to_string().contains("the body of an upload"), "{error}");
    failed.notify_one();
    assert_eq!(within(uploading).await.unwrap(), LARGE.to_string());
}

/// A peer that takes all bytes and never answers, like a proxy whose backend has died.
async fn black_hole() -> (std::net::SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let swallowing = tokio::spawn(async move {
        let mut tasks = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            tasks.push(tokio::spawn(async move {
                let mut block = vec![0; 64 << 10];
                while let Ok(1..) = stream.read(&mut block).await {}
            }));
        }
    });
    (address, swallowing)
}

async fn plain_client(address: std::net::SocketAddr) -> TransportClient {
    let conf = network_common::TransportConf::from_settings(MODULE, [SETTING]).unwrap();
    let context = network_common::TransportContext::new(conf, NoOpRpcHandler::new());
    // The factory ends here: the client lives as long as its handle.
    within(context.create_client_factory().create_unmanaged_client(address)).await.unwrap()
}

/// Each caller cancels its request after half of the timeout, one after the other.
#[tokio::test]
async fn fault_t5_dead_connection_ends_although_callers_give_up() {
    let (address, _swallowing) = black_hole().await;
    let requests: [fn(&TransportClient) -> futures::future::BoxFuture<'static, ()>; 3] = [
        |client| {
            let rpc = client.send_rpc("x");
            Box::pin(async { drop(rpc.await) })
        },
        |client| {
            let chunk = client.fetch_chunk(1, 0);
            Box::pin(async { drop(chunk.await) })
        },
        |client| {
            let stream = client.stream("x");
            Box::pin(async { drop(stream.await) })
        },
    ];
    for request in requests {
        let client = plain_client(address).await;
        let started = Instant::now();
        while client.is_active() {
            assert!(started.elapsed() < TIMEOUT * 5, "the dead connection stays");
            let _ = tokio::join!(timeout(TIMEOUT / 2, request(&client)), sleep(TIMEOUT / 2));
        }
        let error = within(client.closed()).await;
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(error.to_string().contains(SETTING.0), "{error}");
        assert!(started.elapsed() >= TIMEOUT, "{:?}", started.elapsed());
    }
}

/// One cancelled request is enough, and one-way messages are no sign of life of the peer.
#[tokio::test]
async fn fault_t5_sent_messages_are_no_sign_of_life() {
    let (address, _swallowing) = black_hole().await;
    for is_cancelled in [true, false] {
        let client = plain_client(address).await;
        let rpc = client.send_rpc("x");
        let rpc = if is_cancelled {
            drop(rpc);
            None
        } else {
            Some(rpc)
        };
        let started = Instant::now();
        while client.is_active() && client.send("a one-way message").is_ok() {
            assert!(started.elapsed() < TIMEOUT * 5, "the dead connection stays");
            sleep(TIMEOUT / 20).await;
        }
        assert_eq!(within(client.closed()).await.kind(), ErrorKind::Timeout);
        if let Some(rpc) = rpc {
            assert_eq!(within(rpc).await.unwrap_err().kind(), ErrorKind::Timeout);
        }
    }
}

/// New requests delay the timeout of the first one, but not beyond two timeouts.
#[tokio::test]
async fn fault_t5_steady_requests_do_not_keep_dead_connection() {
    let (address, _swallowing) = black_hole().await;
    let client = plain_client(address).await;
    let (started, mut pending) = (Instant::now(), Vec::new());
    while client.is_active() {
        assert!(started.elapsed() < TIMEOUT * 5, "the dead connection stays");
        pending.push(client.send_rpc("x"));
        sleep(TIMEOUT / 5).await;
    }
    assert!(started.elapsed() >= TIMEOUT * 2, "{:?}", started.elapsed());
    assert!(pending.len() >= 5, "{}", pending.len());
    for rpc in pending {
        assert_eq!(within(rpc).await.unwrap_err().kind(), ErrorKind::Timeout);
    }
}

/// Slow responses to steady requests are signs of life, also after a time without requests.
#[tokio::test]
async fn fault_t5_steady_requests_with_slow_responses_do_not_time_out() {
    let handler = Handler::new().on_rpc(|_, message, callback| {
        tokio::spawn(async move {
            sleep(TIMEOUT / 2).await;
            callback.reply(message);
        });
    });
    let pair = pair_with(handler, &[], &[SETTING]).await;
    for _ in 0..2 {
        let mut pending = Vec::new();
        for _ in 0..15 {
            pending.push(pair.client.send_rpc("x"));
            sleep(TIMEOUT / 5).await;
        }
        for rpc in pending {
            assert_eq!(within(rpc).await.unwrap(), "x");
        }
        sleep(TIMEOUT * 5 / 2).await;
    }
    pair.assert_no_failures();
}

/// A peer that answers other requests is alive.
#[tokio::test]
async fn fault_t5_live_connection_survives_cancelled_requests() {
    let kept = Mutex::new(Vec::new());
    let handler = Handler::new().on_rpc(move |_, message, callback| match &message[..] {
        b"never" => kept.lock().push(callback),
        _ => callback.reply(message),
    });
    let pair = pair_with(handler, &[], &[SETTING]).await;
    let started = Instant::now();
    while started.elapsed() < TIMEOUT * 3 {
        drop(pair.client.send_rpc("never"));
        sleep(TIMEOUT / 4).await;
        assert_eq!(within(pair.client.send_rpc("x")).await.unwrap(), "x");
    }
    sleep(TIMEOUT * 2).await;
    pair.assert_alive().await;
}

/// An upload over a slow link is no silence, although the peer sends nothing meanwhile.
#[tokio::test]
async fn fault_t5_slow_upload_does_not_time_out() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let reading = tokio::spawn(async move {
        let (mut stream, _): (TcpStream, _) = listener.accept().await.unwrap();
        let mut block = vec![0; 512 << 10];
        let started = Instant::now();
        while started.elapsed() < TIMEOUT * 3 {
            let _ = timeout(TIMEOUT / 10, stream.read(&mut block)).await;
            sleep(TIMEOUT / 10).await;
        }
        stream
    });
    let client = plain_client(address).await;
    let upload = client.upload_stream("", pattern(64 << 20, 3));
    let _stream = within(reading).await.unwrap();
    assert!(client.is_active(), "{:?}", client.closed().await);
    drop(upload);
}

#[tokio::test]
async fn fault_t11_connection_with_active_request_is_not_idle() {
    let slow = || {
        Handler::new()
            .on_rpc(|_, message, callback| {
                tokio::spawn(async move {
                    sleep(TIMEOUT * 5 / 2).await;
                    callback.reply(message);
                });
            })
            .on_chunk_later(|_, _| async {
                sleep(TIMEOUT * 5 / 2).await;
                Ok(ManagedBuffer::from("chunk"))
            })
            .on_upload(|_, data| async {
                sleep(TIMEOUT * 5 / 2).await;
                Ok(data.collect().await?)
            })
            .on_meta(|_, _, callback| {
                tokio::spawn(async move {
                    sleep(TIMEOUT * 5 / 2).await;
                    callback.reply(1, "bitmaps");
                });
            })
    };
    let connect = || async {
        let server = context(conf(&[SETTING]), slow()).close_idle_connections(true);
        pair_of(server, context(conf(&[]), NoOpRpcHandler::new())).await
    };
    let (rpc, chunk, upload, meta) = tokio::join!(connect(), connect(), connect(), connect());
    let (one, two, three, four) = within(async {
        tokio::join!(
            rpc.client.send_rpc("x"),
            chunk.client.fetch_chunk(1, 0),
            upload.client.upload_stream("", pattern(LARGE, 4)),
            meta.client.merged_block_meta("app", 0, 0, 0)
        )
    })
    .await;
    assert_eq!(one.unwrap(), "x");
    assert_eq!(two.unwrap(), "chunk");
    assert_eq!(three.unwrap().len(), LARGE);
    assert_eq!(four.unwrap().num_chunks, 1);
    // Without active requests the connection is idle.
    for pair in [rpc, chunk, upload, meta] {
        assert_eq!(within(pair.client.closed()).await.kind(), ErrorKind::Closed);
    }
}

/// The client end serves a request of the server.
#[tokio::test]
async fn fault_t11_client_that_serves_its_server_is_not_idle() {
    let (connected, mut clients) = tokio::sync::mpsc::unbounded_channel();
    let server = Handler::new().on_active(move |client| connected.send(client.clone()).unwrap());
    let slow = Handler::new().on_rpc(|_, message, callback| {
        tokio::spawn(async move {
            sleep(TIMEOUT * 5 / 2).await;
            callback.reply(message);
        });
    });
    let client_context = context(conf(&[SETTING]), slow).close_idle_connections(true);
    let _pair = pair_of(context(conf(&[]), server), client_context).await;
    let at_server = within(clients.recv()).await.unwrap();
    assert_eq!(within(at_server.send_rpc("x")).await.unwrap(), "x");
}

#[tokio::test]
async fn fault_t10_chunk_that_is_asked_again_names_way_out() {
    let asked = Arc::new(tokio::sync::Semaphore::new(0));
    let gate = Arc::clone(&asked);
    let handler = Handler::new().on_chunk_later(move |_, index| {
        let gate = Arc::clone(&gate);
        async move {
            let _permit = gate.acquire().await?;
            Ok(ManagedBuffer::from(index.to_string().into_bytes()))
        }
    });
    let pair = pair(handler).await;
    drop(pair.client.fetch_chunk(1, 0));
    let error = within(pair.client.fetch_chunk(1, 0)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyPending);
    assert!(error.is_retryable());
    let text = error.to_string();
    assert!(text.contains("another connection") && text.contains("chunk 0 of stream 1"), "{text}");
    let address = pair.server.local_addr();
    let other = within(pair.factory.create_unmanaged_client(address)).await.unwrap();
    let fetching = other.fetch_chunk(1, 0);
    asked.add_permits(1);
    assert_eq!(within(fetching).await.unwrap(), "0");
    until(|| pair.client.pending_requests() == 0).await;
    assert_eq!(within(pair.client.fetch_chunk(1, 0)).await.unwrap(), "0");
}

/// The server's kernel keeps a client that reads nothing for longer than the server's timeout.
#[tokio::test]
async fn fault_t1_slow_reader_stays_connected() {
    let file = file_of(&pattern(24 << 20, 5));
    let path = file.path().to_owned();
    let content = pattern(24 << 20, 5);
    let bodies: [ManagedBuffer; 2] =
        [content.clone().into(), ManagedBuffer::file(&path, 0..24 << 20)];
    for body in bodies {
        let handler = Handler::new().on_stream(move |_| Ok(Some(body.clone())));
        let pair = pair_with(handler, &[SETTING], &[]).await;
        let mut body = within(pair.client.stream("slow")).await.unwrap();
        let mut received = Vec::new();
        for _ in 0..2 {
            received.extend(within(body.next_piece()).await.unwrap().unwrap());
            sleep(TIMEOUT * 4).await;
        }
        received.extend(within(body.collect()).await.unwrap());
        assert_eq!(received, content);
        pair.assert_alive().await;
        pair.assert_no_failures();
    }
}

/// With the setting, the error names it.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn fault_t1_tcp_user_timeout_is_named_in_error() {
    let (failed, mut failures) = tokio::sync::mpsc::unbounded_channel();
    struct Reports(tokio::sync::mpsc::UnboundedSender<TransportError>);
    impl network_common::RpcHandler for Reports {
        fn receive(
            &self,
            _: &TransportClient,
            _: bytes::Bytes,
            callback: network_common::RpcResponseCallback,
        ) {
            callback.reply(pattern(32 << 20, 6));
        }

        fn on_network_error(&self, error: &TransportError, _: &TransportClient) {
            self.0.send(error.clone()).unwrap();
        }
    }
    let setting = ("spark.shuffle.io.tcpUserTimeout", "1s");
    let conf = network_common::TransportConf::from_settings(MODULE, [setting]).unwrap();
    let server = serve(&network_common::TransportContext::new(conf, Reports(failed))).await;
    let mut peer = TcpStream::connect(server.local_addr()).await.unwrap();
    let rpc = network_common::protocol::Message::RpcRequest { request_id: 1, body: "x".into() };
    tokio::io::AsyncWriteExt::write_all(&mut peer, &rpc.encode().unwrap()).await.unwrap();
    let error = within(failures.recv()).await.unwrap();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(error.to_string().contains(setting.0), "{error}");
    assert!(error.to_string().contains("1s"), "{error}");
}
