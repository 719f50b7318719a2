//! The frame decoder, whose bodies are collected, streamed or discarded: Spark's
//! `TransportFrameDecoderSuite` (rows `frame_01` to `frame_08`).

use std::time::Instant;

use bytes::Bytes;
use network_common::protocol::{Event, FrameDecoder, FrameLimits, Message, ProtocolError};

use super::decoding::{BodyHandling, Decoded, collect_or_stream, decode};

fn one_way(length: usize, fill: u8) -> Message<Bytes> {
    Message::OneWayMessage { body: vec![fill; length].into() }
}

/// Decodes 100 frames of various sizes from slices of various sizes.
#[test]
fn frame_01_frames_are_decoded_from_slices_of_any_size() {
    // A fixed pseudo-random sequence; tests/properties.rs uses random ones.
    let mut state = 1_u64;
    let mut random = |range: std::ops::Range<u64>| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (range.start + (state >> 33) % (range.end - range.start)) as usize
    };
    let messages: Vec<_> =
        (0..100).map(|fill| one_way(random(1 << 10..31 << 10) - 13, fill)).collect();
    let bytes: Vec<u8> =
        messages.iter().flat_map(|message| message.encode().expect("fits")).collect();
    let mut pieces = Vec::new();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let (piece, next) = rest.split_at(random(256..4352).min(rest.len()));
        pieces.push(piece);
        rest = next;
    }
    for plan in [BodyHandling::Expected, BodyHandling::Unexpected] {
        let decoded = decode(&FrameLimits::default(), pieces.iter().copied(), |_, _| plan);
        assert_eq!(decoded.error, None);
        let whole: Vec<_> = decoded
            .events
            .into_iter()
            .filter_map(
                |event| if let Event::Message(message) = event { Some(message) } else { None },
            )
            .collect();
        assert_eq!(whole, messages);
    }
}

/// Three frames of 300 MiB in pieces of 32 KiB. Spark varies its consolidation threshold; this test
/// varies the body mode.
#[test]
fn frame_02_large_bodies_are_decoded_in_every_mode() {
    const BODY: usize = 300 << 20;
    let mut head = Vec::new();
    Message::ChunkFetchSuccess { stream_id: 1, chunk_index: 1, body: () }
        .encode_header(BODY as u64, &mut head);
    let piece = vec![7; 32 << 10];
    for plan in [
        BodyHandling::Expected,
        BodyHandling::Unexpected,
        BodyHandling::Stream,
        BodyHandling::Discard,
    ] {
        let start = Instant::now();
        let mut decoder = FrameDecoder::default();
        let (mut frames, mut bytes) = (0, 0);
        for _ in 0..3 {
            for input in
                std::iter::once(&head[..]).chain(std::iter::repeat_n(&piece[..], BODY >> 15))
            {
                let mut input = input;
                while let Some(event) = decoder.next_event(&mut input).expect("well-formed") {
                    match event {
                        Event::BodyStart { length, .. } => {
                            assert_eq!(length, BODY as u64);
                            match plan {
                                BodyHandling::Expected => decoder.collect_body(true),
                                BodyHandling::Unexpected => decoder.collect_body(false),
                                BodyHandling::Stream => decoder.stream_body(),
                                BodyHandling::Discard | BodyHandling::Silent => {
                                    decoder.discard_body()
                                }
                            }
                            if plan == BodyHandling::Discard {
                                frames += 1;
                                bytes += BODY;
                            }
                        }
                        Event::Message(Message::ChunkFetchSuccess { body, .. }) => {
                            frames += 1;
                            bytes += body.len();
                            assert!(
                                [0, BODY / 2, BODY - 1].iter().all(|position| body[*position] == 7)
                            );
                        }
                        Event::BodyPiece(piece) => bytes += piece.len(),
                        Event::BodyEnd => frames += 1,
                        other => panic!("{other:?}"),
                    }
                }
            }
            assert_eq!(decoder.finish(), Ok(()), "the last frame must be complete");
        }
        assert_eq!((frames, bytes), (3, 3 * BODY), "{plan:?}");
        println!("{plan:?}: {:?}", start.elapsed());
    }
}

/// Spark's interceptor that takes 3 reads is a streamed body here. The frame after it is decoded
/// normally.
#[test]
fn frame_03_streamed_body_is_followed_by_frame() {
    let mut bytes = Message::<Bytes>::StreamResponse { stream_id: "s".into(), byte_count: 300 }
        .encode()
        .expect("fits");
    let head = bytes.len();
    bytes.extend(std::iter::repeat_n(9, 300));
    let next = one_way(3, 1);
    bytes.extend(next.encode().expect("fits"));

    let mut decoder = FrameDecoder::default();
    assert!(matches!(
        decoder.next_event(&mut &bytes[..head]),
        Ok(Some(Event::BodyStart { length: 300, .. }))
    ));
    decoder.stream_body();
    for read in 0..3 {
        let mut input = &bytes[head + 100 * read..][..100];
        assert_eq!(decoder.next_event(&mut input), Ok(Some(Event::BodyPiece(vec![9; 100].into()))));
        assert!(input.is_empty());
        if read < 2 {
            assert_eq!(decoder.next_event(&mut input), Ok(None));
        }
    }
    let mut input = &bytes[head + 300..];
    assert_eq!(decoder.next_event(&mut input), Ok(Some(Event::BodyEnd)));
    assert_eq!(decoder.next_event(&mut input), Ok(Some(Event::Message(next))));
    assert_eq!(decoder.next_event(&mut input), Ok(None));
    assert_eq!(decoder.finish(), Ok(()));
}

/// A streamed body ends at its announced length, even if the next frame is in the same read.
#[test]
fn frame_03_body_and_next_frame_in_one_read_are_separated() {
    let upload = Message::UploadStream { request_id: 1, meta: Bytes::from("m"), byte_count: 5 };
    let mut bytes = Vec::new();
    upload.encode_header(0, &mut bytes);
    bytes.extend_from_slice(b"12345");
    let next = Message::RpcRequest { request_id: 2, body: Bytes::from("next") };
    bytes.extend(next.encode().expect("fits"));
    let start = Event::BodyStart { message: upload, length: 5 };

    let streamed = decode(&FrameLimits::default(), [&bytes[..]], |_, _| BodyHandling::Stream);
    let expected = vec![
        start.clone(),
        Event::BodyPiece(Bytes::from("12345")),
        Event::BodyEnd,
        Event::Message(next.clone()),
    ];
    assert_eq!(streamed, Decoded { events: expected, error: None });
    for plan in [BodyHandling::Discard, BodyHandling::Silent] {
        let skipped = decode(&FrameLimits::default(), [&bytes[..]], |_, _| plan);
        let expected = vec![start.clone(), Event::Message(next.clone())];
        assert_eq!(skipped, Decoded { events: expected, error: None }, "{plan:?}");
    }
}

/// Keeps every second frame while later ones arrive, also those in recycled buffers.
#[test]
fn frame_04_retained_frames_are_unchanged() {
    for length in [10, 5_000, 100_000, 300_000] {
        let mut decoder = FrameDecoder::default();
        let mut kept = Vec::new();
        for fill in 0..40 {
            let message = one_way(length, fill);
            let frame = message.encode().expect("fits");
            for mut input in frame.chunks(70_000) {
                while let Some(event) = decoder.next_event(&mut input).expect("well-formed") {
                    match event {
                        Event::BodyStart { .. } => decoder.collect_body(fill % 3 == 0),
                        Event::Message(received) if fill % 2 == 0 => {
                            kept.push((message.clone(), received))
                        }
                        Event::Message(received) => assert_eq!(received, message),
                        other => panic!("{other:?}"),
                    }
                }
            }
        }
        drop(decoder);
        assert_eq!(kept.len(), 20);
        kept.iter().for_each(|(sent, received)| assert_eq!(sent, received));
    }
}

/// Keeps all pieces of a streamed body while later ones arrive.
#[test]
fn frame_04_retained_pieces_are_unchanged() {
    let mut decoder = FrameDecoder::default();
    let frame = Message::<Bytes>::StreamResponse { stream_id: "s".into(), byte_count: 100 * 1000 }
        .encode()
        .expect("fits");
    assert!(matches!(decoder.next_event(&mut &frame[..]), Ok(Some(Event::BodyStart { .. }))));
    decoder.stream_body();
    let mut kept = Vec::new();
    for fill in 0..100 {
        match decoder.next_event(&mut &[fill; 1000][..]) {
            Ok(Some(Event::BodyPiece(piece))) => kept.push(piece),
            other => panic!("{other:?}"),
        }
    }
    assert!(kept.iter().zip(0..100).all(|(piece, fill)| piece == &[fill; 1000][..]));
}

#[test]
fn frame_05_split_length_field_is_decoded() {
    let message = Message::RpcRequest { request_id: 1, body: Bytes::from("abc") };
    let frame = message.encode().expect("fits");
    for split in 0..=7 {
        let mut decoder = FrameDecoder::default();
        let (mut first, mut second) = frame.split_at(split);
        assert_eq!(
            decoder.next_event(&mut first),
            Ok(None),
            "{split} bytes must not decode to a frame"
        );
        assert!(first.is_empty());
        assert_eq!(
            decoder.finish().is_ok(),
            split == 0,
            "EOF inside the length field must be an error"
        );
        assert_eq!(decoder.next_event(&mut second), Ok(Some(Event::Message(message.clone()))));
        assert_eq!(decoder.next_event(&mut second), Ok(None));
    }
}

/// Returns the error for a one-way message of this frame length, decoded at once and byte by byte.
pub(crate) fn length_error(length: i64) -> Option<ProtocolError> {
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(&[9, 0, 0, 0, 0]);
    let mut decoder = FrameDecoder::default();
    let at_once = decoder.next_event(&mut &bytes[..]);
    let mut decoder = FrameDecoder::default();
    let in_steps = bytes
        .chunks(1)
        .map(|mut byte| decoder.next_event(&mut byte))
        .find(|result| !matches!(result, Ok(None)))
        .unwrap_or(Ok(None));
    assert_eq!(at_once, in_steps);
    at_once.err()
}

#[test]
fn frame_06_negative_frame_length_is_rejected() {
    for length in [-1, -2, i64::from(i32::MIN), i64::MIN + 9] {
        let error = length_error(length).expect("an error");
        assert_eq!(
            error.to_string(),
            format!("Frame length should be positive: {}", length.wrapping_sub(8))
        );
    }
    // `length - 8` would wrap to a positive number.
    assert!(matches!(length_error(i64::MIN), Some(ProtocolError::FrameNotPositive(_))));
}

#[test]
fn frame_07_empty_frame_is_rejected() {
    assert_eq!(length_error(8), Some(ProtocolError::FrameNotPositive(0)));
    assert_eq!(
        length_error(8).expect("an error").to_string(),
        "Frame length should be positive: 0"
    );
}

#[test]
fn frame_08_too_large_frame_is_rejected() {
    assert_eq!(length_error(0x8000_0007), Some(ProtocolError::FrameTooLarge(0x7fff_ffff)));
    assert_eq!(
        length_error(0x8000_0007).expect("an error").to_string(),
        "Too large frame: 2147483647"
    );
    assert_eq!(length_error(i64::MAX), Some(ProtocolError::FrameTooLarge(i64::MAX - 8)));
}

/// 0x80000006 is the largest accepted length, as in Spark.
#[test]
fn frame_08_largest_frame_is_accepted() {
    for kind in [0x01, 0x03, 0x04, 0x0c] {
        let mut head = 0x8000_0006_u64.to_be_bytes().to_vec();
        head.push(kind);
        head.resize(21, 0);
        match FrameDecoder::default().next_event(&mut &head[..]) {
            Ok(Some(Event::BodyStart { length, .. })) => assert_eq!(length, 0x8000_0006 - 21),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(length_error(0x8000_0006), None);
}

/// The largest frame that is accepted is also the largest that is encoded.
#[test]
fn frame_08_larger_frame_is_not_encoded() {
    // Untouched zero pages, which take no memory.
    let body = Bytes::from(vec![0; 0x7fff_fffe - 13 + 1]);
    let message = Message::ChunkFetchSuccess { stream_id: 1, chunk_index: 2, body };
    assert_eq!(message.encode(), Err(ProtocolError::FrameTooLarge(0x7fff_ffff)));
}

#[test]
fn frame_08_request_over_configured_limit_is_rejected_by_its_header() {
    let mut limits = FrameLimits::default();
    limits.max_request = 100;
    limits.max_request_setting = "spark.test.limit".into();
    let decoded = |message: &Message<()>, in_frame: u64| {
        let mut head = Vec::new();
        message.encode_header(in_frame, &mut head);
        decode(&limits, [&head[..9]], collect_or_stream).error
    };
    let request = Message::RpcRequest { request_id: 1, body: () };
    let error = decoded(&request, 101 - 13).expect("one byte too long");
    assert_eq!(
        error,
        ProtocolError::RequestTooLarge {
            size: 101,
            limit: 100,
            setting: "spark.test.limit".into()
        }
    );
    assert!(error.to_string().contains("spark.test.limit"), "{error}");
    assert!(matches!(decoded(&request, 100 - 13), Some(ProtocolError::UnexpectedEnd { .. })));
    let answer = Message::RpcResponse { request_id: 1, body: () };
    assert!(
        matches!(decoded(&answer, 1000), Some(ProtocolError::UnexpectedEnd { .. })),
        "the limit must not apply to responses"
    );
}
