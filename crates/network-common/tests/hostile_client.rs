//! Raw clients that misbehave towards a server of this crate.

#![allow(clippy::unwrap_used, reason = "tests")]

mod hostile_support;

use std::time::Duration;

use hostile_support::*;
use network_common::ErrorKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn length(length: i64) -> Vec<u8> {
    length.to_be_bytes().to_vec()
}

/// Returns a frame whose length field does not match the rest of the frame.
fn frame_announcing(kind: u8, announced: i64, rest: &[u8]) -> Vec<u8> {
    [&announced.to_be_bytes()[..], &[kind], rest].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frame_06_07_08_malformed_bytes_close_only_their_connection() {
    let fixture = Fixture::new(&[]).await;
    let mut neighbour = fixture.raw().await;
    let negative = (-5_i32).to_be_bytes();
    let huge = i32::MAX.to_be_bytes();
    let zero8 = [0; 8];
    let mut cases: Vec<(String, Vec<u8>, &str)> = Vec::new();
    for l in 0..=8 {
        let text = "Frame length should be positive";
        cases.push((format!("length {l}"), length(l), text));
        // The same if the following bytes would be a valid frame.
        cases.push((
            format!("length {l} and a frame"),
            [length(l), rpc(1, b"echo")].concat(),
            text,
        ));
    }
    cases.extend([
        ("length -1".into(), length(-1), "Frame length should be positive: -9"),
        ("length min".into(), length(i64::MIN), "rame"),
        ("length max".into(), length(i64::MAX), "Too large frame"),
        ("just too long".into(), length(0x8000_0007), "Too large frame: 2147483647"),
        ("type 13".into(), frame(13, &[&zero8]), "Unknown message type: 13"),
        ("type 127".into(), frame(127, &[&zero8]), "Unknown message type: 127"),
        ("type -128".into(), frame(0x80, &[&zero8]), "Unknown message type: -128"),
        ("type User".into(), frame(0xff, &[&zero8]), "Unknown message type: -1"),
        ("short chunk request".into(), frame(CHUNK_REQUEST, &[&zero8, &[0; 3]]), "chunk index"),
        ("short rpc".into(), frame(RPC_REQUEST, &[&[0; 7]]), "request id"),
        ("rpc without body length".into(), frame(RPC_REQUEST, &[&zero8]), "body length"),
        ("empty one-way".into(), frame(ONE_WAY, &[]), "body length"),
        ("empty stream request".into(), frame(STREAM_REQUEST, &[]), "stream id"),
        ("negative stream id".into(), frame(STREAM_REQUEST, &[&negative]), "stream id"),
        ("huge stream id".into(), frame(STREAM_REQUEST, &[&huge, b"abc"]), "stream id"),
        (
            "stream id over the frame".into(),
            frame(STREAM_REQUEST, &[&[0, 0, 0, 4], b"abc"]),
            "stream id",
        ),
        ("negative meta".into(), frame(UPLOAD, &[&zero8, &negative, &zero8]), "upload meta"),
        ("huge meta".into(), frame(UPLOAD, &[&zero8, &huge, &zero8]), "upload meta"),
        (
            "upload without count".into(),
            frame(UPLOAD, &[&zero8, &text("m"), &[0; 7]]),
            "byte count",
        ),
        (
            "negative app id".into(),
            frame(META_REQUEST, &[&zero8, &negative, &[0; 12]]),
            "application id",
        ),
        (
            "short meta request".into(),
            frame(META_REQUEST, &[&zero8, &text("a"), &[0; 11]]),
            "reduce id",
        ),
        ("negative error text".into(), frame(RPC_FAILURE, &[&zero8, &negative]), "error text"),
        ("huge error text".into(), frame(CHUNK_FAILURE, &[&zero8, &[0; 4], &huge]), "error text"),
        ("stream failure without text".into(), frame(STREAM_FAILURE, &[&text("s")]), "error text"),
        (
            "stream response without count".into(),
            frame(STREAM_RESPONSE, &[&text("s"), &[0; 4]]),
            "byte count",
        ),
        (
            "meta success without count".into(),
            frame(META_SUCCESS, &[&zero8, &[0; 3]]),
            "chunk count",
        ),
        (
            "unsolicited stream".into(),
            stream_response("unsolicited", 4),
            "unsolicited stream response",
        ),
        ("unsolicited empty stream".into(), stream_response("s", 0), "unsolicited stream response"),
        ("header over 16 MiB".into(), frame_announcing(RPC_FAILURE, 17 << 20, b""), "header"),
        (
            "17 MiB chunk request".into(),
            frame_announcing(CHUNK_REQUEST, 17 << 20, &zero8),
            "header",
        ),
        ("text".into(), b"hello, is anybody there?\n".to_vec(), "Too large frame"),
    ]);
    let mut rng = Rng::new(7);
    for i in 0..20 {
        // The first bytes announce too large a frame, whatever follows.
        let mut garbage: Vec<u8> = (0..64).map(|_| rng.next() as u8).collect();
        garbage[0] = garbage[0] & 0x3f | 0x01;
        garbage[1] |= 0x10;
        cases.push((format!("garbage {i}"), garbage, "rame"));
    }
    for (name, bytes, expected) in &cases {
        // As first bytes in one write, after a valid request, and byte by byte.
        for style in 0..3 {
            let mut raw = fixture.raw().await;
            let peer = local(&raw);
            match style {
                0 => raw.send(bytes).await,
                1 => {
                    raw.echo(b"good").await;
                    raw.send(bytes).await;
                }
                _ => {
                    for byte in bytes.iter().take(40) {
                        if within("writing", raw.0.write_all(&[*byte])).await.is_err() {
                            break;
                        }
                    }
                    let _ = within("writing", raw.0.write_all(bytes.get(40..).unwrap_or_default()))
                        .await;
                }
            }
            raw.assert_closed_without_data(name).await;
            let (kind, text) = fixture.handler.exception(peer).await;
            assert_eq!(kind, ErrorKind::Protocol, "{name}");
            assert!(text.contains(expected), "{name}: {text}");
            assert!(text.contains(&peer.to_string()), "{name}: {text} does not name {peer}");
        }
        neighbour.echo(name.as_bytes()).await;
    }
    drop(neighbour);
    let metrics = fixture.context.metrics();
    eventually("all connections are closed", || metrics.server().snapshot().connections == 0).await;
    let failures = metrics.server().snapshot().failures;
    assert_eq!(failures, [(ErrorKind::Protocol, 3 * cases.len() as u64)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_protocols_are_named_in_error() {
    let fixture = Fixture::new(&[]).await;
    let cases: [(&[u8], &str); 6] = [
        (b"GET / HTTP/1.1\r\nHost: spark\r\n\r\n", "HTTP"),
        (b"POST /submit HTTP/1.1\r\n\r\n", "HTTP"),
        (b"PUT / HTTP/1.1\r\n\r\n", "HTTP"),
        (b"OPTIONS * HTTP/1.1\r\n\r\n", "HTTP"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "SSH"),
    ];
    for (bytes, name) in cases {
        let mut raw = fixture.raw().await;
        let peer = local(&raw);
        raw.send(bytes).await;
        raw.assert_closed_without_data(name).await;
        let (kind, text) = fixture.handler.exception(peer).await;
        assert_eq!(kind, ErrorKind::Protocol);
        assert!(text.contains("not Spark's transport protocol"), "{text}");
        assert!(text.ends_with(&format!("the peer speaks {name}")), "{text}");
    }
    // A peer that speaks TLS gets an alert of TLS, so that it knows the reason.
    let mut raw = fixture.raw().await;
    let peer = local(&raw);
    raw.send(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03").await;
    assert_eq!(raw.read_to_end().await.1, [0x15, 3, 3, 0, 2, 2, 10]);
    let (kind, text) = fixture.handler.exception(peer).await;
    assert_eq!(kind, ErrorKind::Tls);
    assert!(text.contains("does the peer require TLS"), "{text}");
    // After a valid frame the same bytes are reported as an invalid length.
    let mut raw = fixture.raw().await;
    let peer = local(&raw);
    raw.echo(b"x").await;
    raw.send(b"GET / HTTP/1.1\r\n").await;
    raw.assert_closed_without_data("late HTTP").await;
    assert!(fixture.handler.exception(peer).await.1.contains("Too large frame"));
    fixture.assert_serves().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_ending_inside_frame_is_reported_once_without_error() {
    let fixture = Fixture::new(&[]).await;
    let body = vec![1; 10_000];
    let frames =
        [rpc(1, b"echo"), rpc(2, &body), stream_request("bytes 10"), chunk_request(BYTES, 3)];
    for whole in frames {
        let cuts = [1, 7, 8, 9, 12, whole.len() / 2, whole.len() - 1];
        for cut in cuts.into_iter().filter(|cut| *cut < whole.len()) {
            for reset in [false, true] {
                let mut raw = fixture.raw().await;
                let peer = local(&raw);
                // The echo proves that the server accepted the connection before the reset.
                raw.echo(b"x").await;
                raw.send(&whole[..cut]).await;
                if reset {
                    raw.reset();
                    let handler = &fixture.handler;
                    eventually("the end", || {
                        handler.seen(peer).last() == Some(&ConnectionEvent::Inactive)
                    })
                    .await;
                    let seen = fixture.handler.seen(peer);
                    let ends =
                        seen.iter().filter(|seen| **seen == ConnectionEvent::Inactive).count();
                    let exceptions = seen
                        .iter()
                        .filter(|seen| matches!(seen, ConnectionEvent::Exception(..)))
                        .count();
                    assert!(ends == 1 && exceptions <= 1, "{seen:?}");
                } else {
                    raw.finish_sending().await;
                    raw.assert_closed_without_data("truncated").await;
                    fixture.handler.assert_ended_without_error(peer).await;
                }
            }
        }
    }
    fixture.assert_serves().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_over_limit_are_rejected_before_they_are_buffered() {
    let fixture = Fixture::new(&[("spark.test.io.maxRequestSize", "1m")]).await;
    // Other requests are skipped: see rows `fault_t6` and `fault_m2`.
    let mut raw = fixture.raw().await;
    let peer = local(&raw);
    // Sends length and type only: the server must reject without more bytes.
    raw.send(&frame_announcing(CHUNK_REQUEST, (1 << 20) + 9, b"")).await;
    raw.assert_closed_without_data("too large").await;
    let (error, text) = fixture.handler.exception(peer).await;
    assert_eq!(error, ErrorKind::Protocol);
    for part in ["spark.test.io.maxRequestSize", "1048577", "1048576"] {
        assert!(text.contains(part), "{text} lacks {part}");
    }
    // A request of exactly the limit is served; the payload is type, id, length and body.
    fixture.raw().await.echo(&vec![3; (1 << 20) - 13]).await;
    // The limit applies neither to upload data nor to responses.
    let mut raw = fixture.raw().await;
    raw.send(&upload(5, "sum", 3 << 20)).await;
    raw.send(&vec![0; 3 << 20]).await;
    let answer = raw.frame().await.unwrap();
    assert_eq!(
        (answer.kind, answer.long(0), &answer.rest[12..]),
        (RPC_RESPONSE, 5, &b"3145728"[..])
    );
    raw.send(&rpc_response(99, &vec![0; 2 << 20])).await;
    raw.echo(b"an unknown response is discarded").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_body_lengths_and_unusual_ids_are_harmless() {
    let fixture = Fixture::new(&[]).await;
    let mut raw = fixture.raw().await;
    for (id, announced) in [(i64::MIN, i32::MAX), (-1, -1), (0, 0), (i64::MAX, i32::MIN)] {
        raw.send(&frame(RPC_REQUEST, &[&id.to_be_bytes(), &announced.to_be_bytes(), b"abc"])).await;
        let answer = raw.frame().await.unwrap();
        assert_eq!((answer.kind, answer.long(0)), (RPC_RESPONSE, id));
        assert_eq!((answer.int(8), &answer.rest[12..]), (3, &b"abc"[..]));
    }
    // Two active requests with the same id: both get a response.
    raw.send(&[rpc(4, b"one"), rpc(4, b"two")].concat()).await;
    for expected in [b"one", b"two"] {
        assert_eq!(raw.frame().await.unwrap().rest[12..], expected[..]);
    }
    // Trailing bytes in frames without body are ignored.
    raw.send(&frame(
        CHUNK_REQUEST,
        &[&BYTES.to_be_bytes(), &5_i32.to_be_bytes(), b"trailing bytes"],
    ))
    .await;
    let answer = raw.frame().await.unwrap();
    assert_eq!((answer.kind, &answer.rest[12..]), (CHUNK_SUCCESS, &pattern(5)[..]));
    // Negative chunk ids are passed to the stream manager.
    raw.send(&chunk_request(-5, -7)).await;
    let answer = raw.frame().await.unwrap();
    assert_eq!((answer.kind, answer.long(0), answer.int(8)), (CHUNK_FAILURE, -5, -7));
    // Unsolicited responses.
    let unsolicited = [
        rpc_response(1, b"x"),
        rpc_failure(2, "y"),
        chunk_success(1, 1, b"z"),
        chunk_success(1, 2, &vec![0; 1 << 20]),
        chunk_failure(1, 3, "w"),
        stream_failure("s", "v"),
        meta_success(3, 0, b""),
        meta_success(3, 7, &vec![0; 1 << 20]),
    ];
    raw.send(&unsolicited.concat()).await;
    raw.echo(b"still there").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunk_flood_is_answered_in_order_to_peer_that_reads_late() {
    const COUNT: i32 = 100_000;
    let fixture = Fixture::new(&[]).await;
    let (mut read, mut write) = fixture.raw().await.0.into_split();
    let requests: Vec<u8> = (0..COUNT).flat_map(|i| chunk_request(BYTES, i % 8)).collect();
    let writing = tokio::spawn(async move { write.write_all(&requests).await.map(|()| write) });
    // The server works up to its limits while the peer reads nothing, and serves other peers.
    let metrics = fixture.context.metrics();
    eventually("the server reads the flood", || {
        metrics.server().snapshot().received_bytes > 100_000
    })
    .await;
    fixture.assert_serves().await;
    let mut answer = [0; 32];
    for i in 0..COUNT {
        let size = 21 + (i % 8) as usize;
        within("a response", read.read_exact(&mut answer[..size])).await.unwrap();
        assert_eq!(answer[..9], [&(size as u64).to_be_bytes()[..], &[CHUNK_SUCCESS]].concat());
        assert_eq!(answer[17..21], (i % 8).to_be_bytes(), "response {i}");
    }
    let write = within("the writer", writing).await.unwrap().unwrap();
    drop((read, write));
    eventually("all gauges return to 0", || {
        let now = metrics.server().snapshot();
        now.connections == 0
            && now.chunks_being_transferred == 0
            && fixture.handler.bodies.now() == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rpc_flood_is_answered_in_order_to_peer_that_reads_late() {
    const COUNT: i64 = 100_000;
    let fixture = Fixture::new(&[("spark.test.io.maxWriteQueueSize", "256k")]).await;
    let (mut read, mut write) = fixture.raw().await.0.into_split();
    let requests: Vec<u8> = (0..COUNT).flat_map(|i| rpc(i, &[9; 40])).collect();
    let writing = tokio::spawn(async move { write.write_all(&requests).await.map(|()| write) });
    let metrics = fixture.context.metrics();
    eventually("the server reads the flood", || {
        metrics.server().snapshot().received_bytes > 100_000
    })
    .await;
    fixture.assert_serves().await;
    let mut answer = [0; 61];
    for i in 0..COUNT {
        within("a response", read.read_exact(&mut answer)).await.unwrap();
        assert_eq!((answer[8], &answer[9..17]), (RPC_RESPONSE, &i.to_be_bytes()[..]));
    }
    let write = within("the writer", writing).await.unwrap().unwrap();
    assert_eq!(fixture.handler.rpcs.load(std::sync::atomic::Ordering::SeqCst) as i64, COUNT + 1);
    drop((read, write));
    eventually("all connections are closed", || metrics.server().snapshot().connections == 0).await;
    let now = metrics.server().snapshot();
    assert_eq!((now.active_requests, now.write_queue_bytes), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stream_ids_up_to_longest_length_are_accepted() {
    const LONGEST: usize = 64 << 10;
    let fixture = Fixture::new(&[]).await;
    let mut raw = fixture.raw().await;
    for _ in 0..3 {
        raw.send(&stream_request(&"x".repeat(LONGEST))).await;
        let answer = raw.frame().await.unwrap();
        assert_eq!((answer.kind, answer.int(0)), (STREAM_FAILURE, LONGEST as i32));
    }
    // A longer one fails alone, and the failure has only the start of the id: row `fault_m2`.
    for length in [LONGEST + 1, (16 << 20) - 5, 17 << 20] {
        raw.send(&stream_request(&"x".repeat(length))).await;
        let answer = raw.frame().await.unwrap();
        assert_eq!((answer.kind, answer.int(0)), (STREAM_FAILURE, 259));
    }
    raw.echo(b"alive").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_without_data_block_no_peer_and_fail_with_connection() {
    let fixture = Fixture::new(&[]).await;
    let mut silent = Vec::new();
    for i in 0..16 {
        let mut raw = fixture.raw().await;
        raw.send(&upload(1, "sum", 1000)).await;
        raw.send(&vec![0; 10 * i]).await;
        silent.push(raw);
    }
    let futures = &fixture.handler.futures;
    eventually("the handlers are active", || futures.now() == 16).await;
    fixture.assert_serves().await;
    // A request in place of the missing data is read as data.
    silent[0].send(&rpc(5, b"echo")).await;
    let peers: Vec<_> = silent.iter().map(local).collect();
    for (i, mut raw) in silent.into_iter().enumerate() {
        if i % 2 == 0 {
            raw.finish_sending().await;
            raw.read_to_end().await;
        } else {
            raw.reset();
        }
    }
    eventually("the handlers see the end", || futures.now() == 0).await;
    for peer in peers {
        eventually("the end", || {
            fixture.handler.seen(peer).last() == Some(&ConnectionEvent::Inactive)
        })
        .await;
    }
    let metrics = fixture.context.metrics();
    eventually("no request is active", || {
        let now = metrics.server().snapshot();
        (now.connections, now.active_requests) == (0, 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upload_data_can_arrive_byte_by_byte_before_another_frame() {
    let fixture = Fixture::new(&[]).await;
    let mut raw = fixture.raw().await;
    let bytes = [upload(-3, "sum", 300), vec![b'd'; 299]].concat();
    for byte in &bytes {
        raw.send(&[*byte]).await;
    }
    raw.send(&[b"d".to_vec(), rpc(6, b"behind")].concat()).await;
    let mut answers = [raw.frame().await.unwrap(), raw.frame().await.unwrap()];
    answers.sort_by_key(|answer| answer.long(0));
    assert_eq!((answers[0].long(0), &answers[0].rest[12..]), (-3, &b"300"[..]));
    assert_eq!((answers[1].long(0), &answers[1].rest[12..]), (6, &b"behind"[..]));
    // An upload without data completes at once, also with a negative count.
    for count in [0, -1, i64::MIN] {
        raw.send(&[upload(8, "sum", count), rpc(9, b"behind")].concat()).await;
        let mut answers = [raw.frame().await.unwrap(), raw.frame().await.unwrap()];
        answers.sort_by_key(|answer| answer.long(0));
        assert_eq!(
            (answers[0].kind, &answers[0].rest[12..]),
            (RPC_RESPONSE, &b"0"[..]),
            "count {count}"
        );
        assert_eq!(&answers[1].rest[12..], b"behind");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rpc_10_failure_of_partly_read_upload_reaches_peer_that_still_sends() {
    let fixture = Fixture::new(&[]).await;
    for (meta, reads) in
        [("stop-after 1000", true), ("stop-after 3000000", true), ("panic-later", false)]
    {
        let raw = fixture.raw().await;
        let peer = local(&raw);
        let (read, mut write) = raw.0.into_split();
        let writing = tokio::spawn(async move {
            write.write_all(&upload(4, meta, i64::MAX)).await?;
            let block = vec![0; 64 << 10];
            loop {
                // Endless: the write fails when the server closes.
                write.write_all(&block).await?;
            }
            #[allow(unreachable_code, reason = "gives the block its type")]
            Ok::<(), std::io::Error>(())
        });
        let mut read = tokio::io::BufReader::new(read);
        let length = within("the failure", read.read_u64()).await.unwrap();
        let mut rest = vec![0; length as usize - 8];
        within("the failure", read.read_exact(&mut rest)).await.unwrap();
        assert_eq!((rest[0], &rest[1..9]), (RPC_FAILURE, &4_i64.to_be_bytes()[..]));
        let text = String::from_utf8_lossy(&rest[13..]).into_owned();
        assert!(text.starts_with("Destination failed while reading stream"), "{text}");
        assert_eq!(text.contains("stopped reading"), reads, "{text}");
        within("the writer sees the end", writing).await.unwrap().unwrap_err();
        let handler = &fixture.handler;
        eventually("the end", || handler.seen(peer).last() == Some(&ConnectionEvent::Inactive))
            .await;
        assert_eq!(
            handler.seen(peer).iter().filter(|seen| **seen == ConnectionEvent::Inactive).count(),
            1
        );
    }
    fixture.assert_serves().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rpc_10_upload_failing_after_its_data_keeps_connection() {
    let fixture = Fixture::new(&[]).await;
    let mut raw = fixture.raw().await;
    raw.send(&upload(1, "post-fail", 5)).await;
    raw.send(b"hello").await;
    let answer = raw.frame().await.unwrap();
    assert_eq!((answer.kind, answer.long(0)), (RPC_FAILURE, 1));
    assert!(
        answer.lossy().contains("Failure post-processing complete stream"),
        "{}",
        answer.lossy()
    );
    raw.echo(b"alive").await;
    // A handler that does not read the data replies after the data were discarded.
    raw.send(&upload(2, "early", 3_000_000)).await;
    raw.send(&[vec![1; 3_000_000], rpc(3, b"behind")].concat()).await;
    let mut answers = [raw.frame().await.unwrap(), raw.frame().await.unwrap()];
    answers.sort_by_key(|answer| answer.long(0));
    assert_eq!(&answers[0].rest[12..], b"early");
    assert_eq!(&answers[1].rest[12..], b"behind");
    // A handler that panics before it returns a future: the upload fails, and its data is
    // discarded.
    raw.send(&upload(4, "panic", 100_000)).await;
    raw.send(&vec![1; 100_000]).await;
    let answer = raw.frame().await.unwrap();
    assert_eq!((answer.kind, answer.long(0)), (RPC_FAILURE, 4));
    raw.echo(b"alive").await;
}

async fn check_file_truncated_while_sent(mode: &str) {
    const LENGTH: u64 = 256 << 20;
    let fixture = Fixture::new(&[("spark.test.io.mode", mode)]).await;
    for by_stream in [false, true] {
        let file = sparse_file(LENGTH);
        *fixture.handler.file.lock() = file.path().to_owned();
        let mut raw = fixture.raw().await;
        let peer = local(&raw);
        let request = if by_stream {
            stream_request(&format!("file {LENGTH}"))
        } else {
            chunk_request(FILE, 256)
        };
        raw.send(&request).await;
        let mut some = vec![0; 1 << 20];
        within("the beginning", raw.0.read_exact(&mut some)).await.unwrap();
        file.as_file().set_len(2 << 20).unwrap();
        let (count, _) = raw.read_to_end().await;
        assert!(
            (count as u64) < LENGTH - (1 << 20),
            "{mode}: the body was sent past the end of the file"
        );
        let (kind, text) = fixture.handler.exception(peer).await;
        assert_eq!(kind, ErrorKind::Io);
        assert!(text.contains("Reached EOF before filling buffer"), "{text}");
        assert!(text.contains(&file.path().display().to_string()), "{text} does not name the file");
        fixture.assert_serves().await;
        eventually("the body is released", || fixture.handler.bodies.now() == 0).await;
    }
    // A file that is too short from the start gets a failure response, and the connection stays
    // open.
    let file = sparse_file(10);
    *fixture.handler.file.lock() = file.path().to_owned();
    let mut raw = fixture.raw().await;
    raw.send(
        &[chunk_request(FILE, 1), stream_request("file 11"), stream_request("file 10")].concat(),
    )
    .await;
    for (kind, part) in
        [(CHUNK_FAILURE, "Reached EOF"), (STREAM_FAILURE, "Reached EOF"), (STREAM_RESPONSE, "")]
    {
        let answer = raw.frame().await.unwrap();
        assert_eq!(answer.kind, kind);
        assert!(answer.lossy().contains(part), "{}", answer.lossy());
    }
    let mut body = [1; 10];
    within("the body", raw.0.read_exact(&mut body)).await.unwrap();
    raw.echo(b"alive").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_truncated_during_sendfile_closes_only_its_connection() {
    check_file_truncated_while_sent("AUTO").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_truncated_during_copying_closes_only_its_connection() {
    check_file_truncated_while_sent("NIO").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_server_stops_in_middle_of_file() {
    let mut fixture = Fixture::new(&[]).await;
    let file = sparse_file(1 << 40);
    *fixture.handler.file.lock() = file.path().to_owned();
    let mut raw = fixture.raw().await;
    let peer = local(&raw);
    raw.send(&stream_request(&format!("file {}", 1_u64 << 40))).await;
    let mut some = vec![0; 8 << 20];
    within("the beginning", raw.0.read_exact(&mut some)).await.unwrap();
    // The peer keeps reading, so that the sending task never waits for the socket.
    let reading = tokio::spawn(async move { raw.read_to_end().await });
    drop(fixture.server.take());
    eventually("the end", || fixture.handler.seen(peer).last() == Some(&ConnectionEvent::Inactive))
        .await;
    within("the peer sees the end", reading).await.unwrap();
    eventually("the body is released", || fixture.handler.bodies.now() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flooding_peer_cannot_prevent_close() {
    let fixture = Fixture::new(&[("spark.test.io.receiveBuffer", "4m")]).await;
    let raw = fixture.raw().await;
    let peer = local(&raw);
    let mut flood = Vec::new();
    (0..50_000).for_each(|_| flood.extend(one_way(b"")));
    // Writes from a separate thread, so that the socket is never empty, also while the server
    // closes the connection.
    let stream = raw.0.into_std().unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
    let flooding = std::thread::spawn(move || {
        use std::io::Write;
        let until = std::time::Instant::now() + TIMEOUT * 2;
        let begun =
            (&stream).write_all(&flood).and_then(|()| (&stream).write_all(&one_way(b"close")));
        begun.unwrap();
        while std::time::Instant::now() < until && (&stream).write_all(&flood).is_ok() {}
    });
    eventually("the end", || fixture.handler.seen(peer).last() == Some(&ConnectionEvent::Inactive))
        .await;
    tokio::task::spawn_blocking(move || flooding.join().unwrap()).await.unwrap();
}

/// A peer that shut down its sending direction still receives its responses.
#[tokio::test]
async fn half_closed_peer_receives_its_responses() {
    let fixture = Fixture::new(&[]).await;
    let mut raw = fixture.raw().await;
    raw.send(&[rpc(1, b"one"), rpc(2, b"two")].concat()).await;
    raw.0.shutdown().await.unwrap();
    let mut answered = Vec::new();
    while let Some(answer) = raw.frame().await {
        answered.push((answer.kind, answer.long(0)));
    }
    assert_eq!(answered, [(RPC_RESPONSE, 1), (RPC_RESPONSE, 2)]);
}
