//! Malformed frames, one test for each kind of error. Unsolicited responses are tested in
//! `hostile_server.rs`.

use bytes::{BufMut as _, Bytes};
use network_common::protocol::{
    Event, FrameDecoder, FrameLimits, MergedBlockMetaRequest, Message, ProtocolError,
};

use super::decoding::{collect_or_stream, decode};
use super::frames::length_error;

/// Returns a frame with a correct length field around `payload`.
fn frame(payload: &[u8]) -> Vec<u8> {
    let mut bytes = (8 + payload.len() as u64).to_be_bytes().to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

/// Returns the error for these bytes, after checking that no event precedes it.
fn error(bytes: &[u8]) -> ProtocolError {
    let decoded = decode(&FrameLimits::default(), [bytes], collect_or_stream);
    assert_eq!(decoded.events, [], "no event may precede the error");
    let error = decoded.error.expect("malformed");
    let in_steps = decode(&FrameLimits::default(), bytes.chunks(1), collect_or_stream);
    assert_eq!((in_steps.events, in_steps.error.as_ref()), (vec![], Some(&error)));
    error
}

#[test]
fn wire_6_length_below_type_byte_is_rejected() {
    for length in (-20..=6).chain([8]) {
        let error = length_error(length).expect("an error");
        assert_eq!(error.to_string(), format!("Frame length should be positive: {}", length - 8));
    }
}

/// Spark reads 7 as -1, which it also uses for "no length yet"; here it is an error.
#[test]
fn wire_6_length_7_is_rejected() {
    assert_eq!(length_error(7), Some(ProtocolError::FrameNotPositive(-1)));
}

#[test]
fn wire_6_unknown_type_is_rejected() {
    for kind in (13..=127).chain(0x80..=0xfe) {
        let error = error(&frame(&[kind; 40]));
        assert_eq!(error.to_string(), format!("Unknown message type: {}", kind as i8));
    }
    assert_eq!(
        error(&frame(&[0xff; 40])),
        ProtocolError::UnknownType(-1),
        "type `User` must be rejected"
    );
}

/// The smallest message of every type.
fn shortest() -> Vec<Message<Bytes>> {
    let (text, body) = (String::new(), Bytes::new());
    vec![
        Message::ChunkFetchRequest { stream_id: 1, chunk_index: 2 },
        Message::ChunkFetchSuccess { stream_id: 1, chunk_index: 2, body: body.clone() },
        Message::ChunkFetchFailure { stream_id: 1, chunk_index: 2, error: text.clone() },
        Message::RpcRequest { request_id: 1, body: body.clone() },
        Message::RpcResponse { request_id: 1, body: body.clone() },
        Message::RpcFailure { request_id: 1, error: text.clone() },
        Message::StreamRequest { stream_id: text.clone() },
        Message::StreamResponse { stream_id: text.clone(), byte_count: 0 },
        Message::StreamFailure { stream_id: text.clone(), error: text.clone() },
        Message::OneWayMessage { body: body.clone() },
        Message::UploadStream { request_id: 1, meta: body.clone(), byte_count: 0 },
        Message::MergedBlockMetaRequest(MergedBlockMetaRequest {
            request_id: 1,
            app_id: text,
            shuffle_id: 2,
            shuffle_merge_id: 3,
            reduce_id: 4,
        }),
        Message::MergedBlockMetaSuccess { request_id: 1, num_chunks: 0, body },
    ]
}

#[test]
fn wire_6_frame_shorter_than_header_is_rejected() {
    for message in shortest() {
        let whole = message.encode().expect("fits");
        // From the type byte alone to one byte less than the header.
        for payload in 1..whole.len() - 8 {
            let error = error(&frame(&whole[8..][..payload]));
            assert!(
                matches!(error, ProtocolError::Truncated { .. }),
                "{message:?} cut to {payload}: {error}"
            );
        }
    }
}

#[test]
fn wire_6_invalid_string_length_in_header_is_rejected() {
    let heads: [&[u8]; 7] = [&[2; 13], &[5; 9], &[6], &[7], &[8], &[0x0a; 9], &[0x0b; 9]];
    for head in heads {
        for length in [-1, i32::MIN, 31, i32::MAX] {
            let mut payload = head.to_vec();
            payload.put_i32(length);
            payload.extend_from_slice(&[0; 30]);
            let error = error(&frame(&payload));
            let ProtocolError::BadLength { length: reported, available: 30, .. } = error else {
                panic!("type {}, length {length}: {error}", head[0]);
            };
            assert_eq!(reported, length, "type {}, length {length}: {error}", head[0]);
        }
    }
    // The second string of a StreamFailure.
    let error = error(&frame(b"\x08\0\0\0\x01n\0\0\0\x02x"));
    assert!(matches!(error, ProtocolError::BadLength { length: 2, available: 1, .. }), "{error}");
}

/// Types without a body ignore trailing bytes; for the others these bytes are the body.
#[test]
fn wire_6_trailing_bytes_of_frame_without_body_are_ignored() {
    for message in shortest() {
        let mut payload = message.encode().expect("fits")[8..].to_vec();
        payload.extend_from_slice(b"left over");
        let mut bytes = frame(&payload);
        let next = Message::StreamRequest { stream_id: "next".into() };
        bytes.extend(next.encode().expect("fits"));
        let decoded = decode(&FrameLimits::default(), [&bytes[..]], collect_or_stream);
        let left_over = Bytes::from("left over");
        let expected = match message {
            Message::ChunkFetchSuccess { stream_id, chunk_index, .. } => {
                Message::ChunkFetchSuccess { stream_id, chunk_index, body: left_over }
            }
            Message::RpcRequest { request_id, .. } => {
                Message::RpcRequest { request_id, body: left_over }
            }
            Message::RpcResponse { request_id, .. } => {
                Message::RpcResponse { request_id, body: left_over }
            }
            Message::OneWayMessage { .. } => Message::OneWayMessage { body: left_over },
            Message::MergedBlockMetaSuccess { request_id, num_chunks, .. } => {
                Message::MergedBlockMetaSuccess { request_id, num_chunks, body: left_over }
            }
            bodyless => bodyless,
        };
        assert_eq!(decoded.events, [Event::Message(expected), Event::Message(next)]);
        assert_eq!(decoded.error, None);
    }
}

/// A frame is as long as its length field says, so there may be many trailing bytes.
#[test]
fn wire_6_many_trailing_bytes_are_ignored() {
    let mut payload = Message::<Bytes>::ChunkFetchRequest { stream_id: 1, chunk_index: 2 }
        .encode()
        .expect("fits")[8..]
        .to_vec();
    payload.resize(100_000, 0xff);
    let bytes = frame(&payload);
    let decoded = decode(&FrameLimits::default(), bytes.chunks(1000), collect_or_stream);
    let expected = Event::Message(Message::ChunkFetchRequest { stream_id: 1, chunk_index: 2 });
    assert_eq!((decoded.events, decoded.error), (vec![expected], None));
}

/// The body is the rest of the frame; the body length field is ignored, as in Spark.
#[test]
fn wire_2_body_length_field_is_ignored() {
    for inner in [0, 1, 0x7fff_ffff, -1] {
        let mut payload = vec![3];
        payload.put_i64(5);
        payload.put_i32(inner);
        payload.extend_from_slice(b"abc");
        let decoded = decode(&FrameLimits::default(), [&frame(&payload)[..]], collect_or_stream);
        let expected = Message::RpcRequest { request_id: 5, body: Bytes::from("abc") };
        assert_eq!((decoded.events, decoded.error), (vec![Event::Message(expected)], None));
    }
}

#[test]
fn wire_6_other_protocols_are_named_in_error() {
    let cases: [(&[u8], &str); 8] = [
        (b"GET /metrics HTTP/1.1\r\n", "HTTP"),
        (b"POST / HTTP/1.1\r\n", "HTTP"),
        (b"OPTIONS * HTTP/1.1\r\n", "HTTP"),
        (b"HTTP/1.1 400 Bad Request\r\n", "HTTP"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "TLS"),
        (b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76", "TLS"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "SSH"),
    ];
    for (bytes, name) in cases {
        let error = error(bytes);
        assert_eq!(error, ProtocolError::ForeignProtocol(name));
        assert!(error.to_string().ends_with(&format!("the peer speaks {name}")), "{error}");
    }
}

/// After a first frame the same bytes are reported as an invalid length.
#[test]
fn wire_6_other_protocols_are_named_only_at_start() {
    let mut bytes =
        Message::<Bytes>::StreamRequest { stream_id: "d".into() }.encode().expect("fits");
    bytes.extend_from_slice(b"GET / HTTP/1.1\r\n");
    let decoded = decode(&FrameLimits::default(), [&bytes[..]], collect_or_stream);
    assert_eq!(decoded.events.len(), 1);
    assert!(matches!(decoded.error, Some(ProtocolError::FrameTooLarge(_))));
}

/// The decoder reports EOF inside a frame; the partial data is dropped.
#[test]
fn wire_6_end_inside_frame_is_reported() {
    let mut bytes =
        Message::<Bytes>::UploadStream { request_id: 1, meta: Bytes::from("m"), byte_count: 5 }
            .encode()
            .expect("fits");
    bytes.extend_from_slice(b"12345");
    for end in 0..=bytes.len() {
        let mut decoder = FrameDecoder::default();
        let mut input = &bytes[..end];
        while let Some(event) = decoder.next_event(&mut input).expect("well-formed") {
            if let Event::BodyStart { .. } = event {
                decoder.stream_body();
            }
        }
        let whole = end == 0 || end == bytes.len();
        assert_eq!(decoder.finish().is_ok(), whole, "{end} of {} bytes", bytes.len());
    }
    let decoded = decode(&FrameLimits::default(), [&bytes[..bytes.len() - 2]], collect_or_stream);
    assert_eq!(decoded.error, Some(ProtocolError::UnexpectedEnd { missing: 2 }));
}
