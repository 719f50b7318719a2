//! Rows `fault_t6` and `fault_m2`: a request over `maxRequestSize`, or with a name over 64 KiB,
//! fails alone, and its connection lives.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use network_common::protocol::{
    Event, FrameDecoder, FrameLimits, MergedBlockMetaRequest, Message, ProtocolError,
};
use network_common::{ErrorKind, ManagedBuffer, NoOpRpcHandler, TransportError};

use crate::support::*;

const LIMIT: (&str, &str) = ("spark.shuffle.io.maxRequestSize", "1m");
const SIZE: usize = 3 << 20;

fn assert_too_large(error: &TransportError) {
    assert_eq!(error.kind(), ErrorKind::Remote, "{error}");
    assert!(error.is_remote() && !error.is_retryable());
    for part in [LIMIT.0, "1048576"] {
        assert!(error.to_string().contains(part), "{part} is missing: {error}");
    }
}

#[tokio::test]
async fn fault_t6_rpc_over_limit_fails_alone() {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let handler = Handler::new().on_rpc(move |_, message, callback| {
        let gate = Arc::clone(&opened);
        tokio::spawn(async move {
            let _permit = gate.acquire().await.unwrap();
            callback.reply(message.len().to_string());
        });
    });
    let queue = ("spark.shuffle.io.maxWriteQueueSize", "1g");
    let pair = pair_with(handler, &[LIMIT], &[queue]).await;
    let before = pair.client.send_rpc("before");
    let errors = [SIZE, (1 << 20) - 12, 100 << 20].map(|size| pair.client.send_rpc(vec![1; size]));
    let after = pair.client.send_rpc("behind");
    for error in errors {
        assert_too_large(&within(error).await.unwrap_err());
    }
    gate.add_permits(10);
    assert_eq!(within(before).await.unwrap(), "6");
    assert_eq!(within(after).await.unwrap(), "6");
    // The payload is type, id, length and body; one of exactly the limit is served.
    let exact = pair.client.send_rpc(vec![1; (1 << 20) - 13]);
    assert_eq!(within(exact).await.unwrap(), ((1 << 20) - 13).to_string());
    pair.assert_no_failures();
    let gauges = || pair.context.metrics().server().snapshot().active_requests;
    until(|| gauges() == 0).await;
}

#[tokio::test]
async fn fault_t6_one_way_message_over_limit_is_discarded() {
    let received = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&received);
    let handler = Handler::new().on_one_way(move |_, _| {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    let pair = pair_with(handler, &[LIMIT], &[]).await;
    for _ in 0..20 {
        pair.client.send(vec![1; SIZE]).unwrap();
        pair.client.send("small").unwrap();
        pair.assert_alive().await;
    }
    assert_eq!(received.load(Ordering::Relaxed), 20);
    pair.assert_no_failures();
}

/// The meta of an upload counts; its data does not, and is skipped with it.
#[tokio::test]
async fn fault_t6_upload_meta_over_limit_fails_alone() {
    let handler = Handler::new()
        .on_upload(|_, data| async { Ok(data.collect().await?.len().to_string().into()) });
    let pair = pair_with(handler, &[LIMIT], &[]).await;
    for data in [0, 1, SIZE] {
        let data: ManagedBuffer = pattern(data, 1).into();
        let error = within(pair.client.upload_stream(pattern(SIZE, 2), data)).await.unwrap_err();
        assert_too_large(&error);
        let uploaded = within(pair.client.upload_stream("meta", pattern(SIZE, 3))).await;
        assert_eq!(uploaded.unwrap(), SIZE.to_string());
    }
    pair.assert_alive().await;
    pair.assert_no_failures();
}

/// Headers have a limit of 16 MiB of their own.
#[tokio::test]
async fn fault_t6_upload_meta_over_header_limit_fails_alone() {
    let pair = pair(Handler::new()).await;
    let error = within(pair.client.upload_stream(vec![1; 17 << 20], "data")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Remote);
    assert!(error.to_string().contains("16777216"), "{error}");
    pair.assert_alive().await;
    pair.assert_no_failures();
}

/// The limit of the client applies to requests of the server, too.
#[tokio::test]
async fn fault_t6_request_of_server_over_limit_fails_alone() {
    let (connected, mut clients) = tokio::sync::mpsc::unbounded_channel();
    let server = Handler::new().on_active(move |client| connected.send(client.clone()).unwrap());
    let client_context = context(conf(&[LIMIT]), Handler::new());
    let _pair = pair_of(context(conf(&[]), server), client_context).await;
    let at_server = within(clients.recv()).await.unwrap();
    assert_too_large(&within(at_server.send_rpc(vec![1; SIZE])).await.unwrap_err());
    assert_eq!(within(at_server.send_rpc("x")).await.unwrap(), "x");
}

/// The peer may leave in the middle of a skipped request.
#[tokio::test]
async fn fault_t6_connection_may_end_within_skipped_request() {
    let handler = context(conf(&[LIMIT]), Handler::new());
    let server = serve(&handler).await;
    for _ in 0..3 {
        let factory = context(conf(&[]), NoOpRpcHandler::new()).create_client_factory();
        let client = within(factory.create_client(server.local_addr())).await.unwrap();
        let sending = client.send_rpc(vec![1; 64 << 20]);
        until(|| handler.metrics().server().snapshot().received_bytes > 1 << 20).await;
        factory.close();
        drop((client, sending));
    }
    until(|| handler.metrics().server().snapshot().connections == 0).await;
}

/// Splits at every byte; the decoder skips exactly the request.
#[test]
fn fault_t6_decoder_skips_requests_at_every_split() {
    let mut limits = FrameLimits::default();
    limits.max_request = 60;
    let body = bytes::Bytes::from(vec![7; 100]);
    let mut upload = Vec::new();
    let message: Message<()> =
        Message::UploadStream { request_id: 3, meta: body.clone(), byte_count: 5 };
    message.encode_header(0, &mut upload);
    upload.extend_from_slice(b"data!");
    let small = Message::RpcRequest { request_id: 4, body: "x".into() };
    let frames = [
        Message::RpcRequest { request_id: 1, body: body.clone() }.encode().unwrap(),
        Message::OneWayMessage { body }.encode().unwrap(),
        upload,
        small.encode().unwrap(),
    ]
    .concat();
    for split in 1..frames.len() {
        let mut decoder = FrameDecoder::new(limits.clone());
        let mut seen = Vec::new();
        for mut part in [&frames[..split], &frames[split..]] {
            loop {
                match decoder.next_event(&mut part) {
                    Ok(Some(Event::RequestSkipped { request, error })) => {
                        assert!(matches!(error, ProtocolError::RequestTooLarge { limit: 60, .. }));
                        seen.push(match request {
                            Message::RpcRequest { request_id, .. } => ('r', request_id),
                            Message::UploadStream { request_id, .. } => ('u', request_id),
                            _ => ('o', 0),
                        });
                    }
                    Ok(Some(Event::Message(message))) => {
                        assert_eq!(message, small);
                        seen.push(('s', 4));
                    }
                    Ok(Some(event)) => panic!("{event:?}"),
                    Ok(None) => break,
                    Err(_) => assert!(decoder.skip_request()),
                }
            }
        }
        assert_eq!(seen, [('r', 1), ('o', 0), ('u', 3), ('s', 4)], "split at {split}");
        decoder.finish().unwrap();
    }
}

/// The decoder keeps the start of a name over 64 KiB, at every split of the frame's start.
#[test]
fn fault_m2_decoder_skips_long_names_at_every_split() {
    let requests: [Message; 2] = [
        Message::StreamRequest { stream_id: "n".repeat(70_000) },
        Message::MergedBlockMetaRequest(MergedBlockMetaRequest {
            request_id: 5,
            app_id: "a".repeat(70_000),
            shuffle_id: 1,
            shuffle_merge_id: 2,
            reduce_id: 3,
        }),
    ];
    let next = Message::RpcRequest { request_id: 4, body: "x".into() };
    for request in requests {
        let frames = [request.encode().unwrap(), next.encode().unwrap()].concat();
        for split in 1..300 {
            let mut decoder = FrameDecoder::default();
            let mut seen = Vec::new();
            for mut part in [&frames[..split], &frames[split..]] {
                loop {
                    match decoder.next_event(&mut part) {
                        Ok(Some(event)) => seen.push(event),
                        Ok(None) => break,
                        Err(ProtocolError::HeaderTooLarge { size: 70_000, limit: 65_536 }) => {
                            assert!(decoder.skip_request());
                        }
                        Err(error) => panic!("{error} at split {split}"),
                    }
                }
            }
            let [Event::RequestSkipped { request, .. }, Event::Message(message)] = &seen[..] else {
                panic!("{seen:?} at split {split}");
            };
            match request {
                Message::StreamRequest { stream_id } => {
                    assert_eq!(*stream_id, "n".repeat(256) + "...");
                }
                Message::MergedBlockMetaRequest(request) => assert_eq!(request.request_id, 5),
                request => panic!("{request:?}"),
            }
            assert_eq!(*message, next);
            decoder.finish().unwrap();
        }
    }
}

/// Other messages over a limit still end the connection.
#[test]
fn fault_t6_decoder_skips_only_requests_with_id() {
    let mut limits = FrameLimits::default();
    limits.max_request = 20;
    let request = Message::<bytes::Bytes>::ChunkFetchRequest { stream_id: 1, chunk_index: 2 };
    let mut frame = request.encode().unwrap();
    frame.resize(100, 0);
    frame[7] = 100;
    let mut decoder = FrameDecoder::new(limits);
    assert!(decoder.next_event(&mut &frame[..]).is_err());
    assert!(decoder.skip_request());
    assert!(decoder.next_event(&mut &frame[..]).is_err());
    assert!(!decoder.skip_request());
}
