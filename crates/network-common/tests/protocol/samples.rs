//! Bytes captured from real Spark processes, encoded and decoded.

use bytes::Bytes;
use network_common::protocol::{Event, FrameLimits, MergedBlockMetaRequest, Message};

use super::decoding::{collect_or_stream, decode};

/// Returns the bytes of hex digits; spaces are ignored.
pub(crate) fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u8> = digits.bytes().filter(|digit| *digit != b' ').collect();
    let byte = |pair: &[u8]| {
        let text = std::str::from_utf8(pair).expect("ASCII");
        u8::from_str_radix(text, 16).expect("two hex digits")
    };
    digits.chunks(2).map(byte).collect()
}

/// Checks that `message` encodes to `frame`, and `frame` decodes to `message`.
fn check_sample(message: Message<Bytes>, frame: &str) {
    let frame = hex(frame);
    assert_eq!(message.encode().expect("fits"), frame, "encoding {message:?}");
    let decoded = decode(&FrameLimits::default(), [&frame[..]], collect_or_stream);
    assert_eq!((decoded.events, decoded.error), (vec![Event::Message(message)], None));
}

/// Checks a sample of the two types whose body follows the frame.
fn check_sample_with_body(
    message: Message<()>,
    whole: Message<Bytes>,
    frame: &str,
    body: &'static [u8],
) {
    let mut bytes = hex(frame);
    assert_eq!(whole.encode().expect("fits"), bytes, "encoding {whole:?}");
    let mut head = Vec::new();
    message.encode_header(0, &mut head);
    assert_eq!(head, bytes, "encoding the head of {message:?}");
    bytes.extend_from_slice(body);
    let decoded = decode(&FrameLimits::default(), [&bytes[..]], collect_or_stream);
    let start = Event::BodyStart { message, length: body.len() as u64 };
    let events = vec![start, Event::BodyPiece(Bytes::from_static(body)), Event::BodyEnd];
    assert_eq!((decoded.events, decoded.error), (events, None));
}

#[test]
fn wire_2_rpc_request_and_response_match_sample() {
    check_sample(
        Message::RpcRequest { request_id: 1, body: Bytes::from("abc") },
        "0000000000000018 03 0000000000000001 00000003 616263",
    );
    check_sample(
        Message::RpcResponse { request_id: 1, body: Bytes::from("abc") },
        "0000000000000018 04 0000000000000001 00000003 616263",
    );
}

#[test]
fn wire_2_one_way_message_matches_sample() {
    check_sample(
        Message::OneWayMessage { body: Bytes::from("abc") },
        "0000000000000010 09 00000003 616263",
    );
}

#[test]
fn wire_2_stream_request_matches_sample() {
    check_sample(
        Message::StreamRequest { stream_id: "d".into() },
        "000000000000000e 06 00000001 64",
    );
}

#[test]
fn wire_2_stream_response_matches_sample() {
    check_sample_with_body(
        Message::StreamResponse { stream_id: "d".into(), byte_count: 4 },
        Message::StreamResponse { stream_id: "d".into(), byte_count: 4 },
        "0000000000000016 07 00000001 64 0000000000000004",
        b"DATA",
    );
}

#[test]
fn wire_2_stream_failure_matches_sample() {
    let text: String =
        b"Stream 'n' was not found.".iter().map(|byte| format!("{byte:02x}")).collect();
    check_sample(
        Message::StreamFailure { stream_id: "n".into(), error: "Stream 'n' was not found.".into() },
        &format!("000000000000002b 08 00000001 6e 00000019 {text}"),
    );
}

#[test]
fn wire_2_upload_and_its_empty_response_match_sample() {
    check_sample_with_body(
        Message::UploadStream { request_id: 9, meta: Bytes::from("met"), byte_count: 4 },
        Message::UploadStream { request_id: 9, meta: Bytes::from("met"), byte_count: 4 },
        "0000000000000020 0a 0000000000000009 00000003 6d6574 0000000000000004",
        b"four",
    );
    check_sample(
        Message::RpcResponse { request_id: 9, body: Bytes::new() },
        "0000000000000015 04 0000000000000009 00000000",
    );
}

/// Types without a captured sample: their bytes follow from Spark's `encode` methods.
#[test]
fn wire_2_other_types_match_their_layout() {
    check_sample(
        Message::ChunkFetchRequest { stream_id: 0x0102_0304_0506_0708, chunk_index: 0x0a0b_0c0d },
        "0000000000000015 00 0102030405060708 0a0b0c0d",
    );
    check_sample(
        Message::ChunkFetchSuccess { stream_id: 1, chunk_index: 2, body: Bytes::from("xyz") },
        "0000000000000018 01 0000000000000001 00000002 78797a",
    );
    check_sample(
        Message::ChunkFetchFailure { stream_id: -1, chunk_index: -2, error: "no".into() },
        "000000000000001b 02 ffffffffffffffff fffffffe 00000002 6e6f",
    );
    check_sample(
        Message::RpcFailure { request_id: i64::MIN, error: "é".into() },
        "0000000000000017 05 8000000000000000 00000002 c3a9",
    );
    check_sample(
        Message::MergedBlockMetaRequest(MergedBlockMetaRequest {
            request_id: 7,
            app_id: "app".into(),
            shuffle_id: 1,
            shuffle_merge_id: -1,
            reduce_id: 3,
        }),
        "0000000000000024 0b 0000000000000007 00000003 617070 00000001 ffffffff 00000003",
    );
    check_sample(
        Message::MergedBlockMetaSuccess {
            request_id: 7,
            num_chunks: 1,
            body: Bytes::from_static(&[0x3a]),
        },
        "0000000000000016 0c 0000000000000007 00000001 3a",
    );
}
