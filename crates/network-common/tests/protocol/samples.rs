//! The byte samples of wire 2, observed on real Spark processes, in both directions.

use bytes::Bytes;
use network_common::protocol::{Event, FrameLimits, MergedBlockMetaRequest, Message};

use super::decoding::{decode, usual};

/// Bytes from hex digits; spaces are for the reader.
pub(crate) fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u8> = digits.bytes().filter(|digit| *digit != b' ').collect();
    let byte = |pair: &[u8]| {
        let text = std::str::from_utf8(pair).expect("ASCII");
        u8::from_str_radix(text, 16).expect("two hex digits")
    };
    digits.chunks(2).map(byte).collect()
}

/// `message` and `frame` are each other's image.
fn golden(message: Message<Bytes>, frame: &str) {
    let frame = hex(frame);
    assert_eq!(message.encode().expect("fits"), frame, "encoding {message:?}");
    let decoded = decode(&FrameLimits::default(), [&frame[..]], usual);
    assert_eq!((decoded.events, decoded.error), (vec![Event::Message(message)], None));
}

/// The same for the two types whose body follows the frame.
fn golden_with_body(message: Message<()>, whole: Message<Bytes>, frame: &str, body: &'static [u8]) {
    let mut bytes = hex(frame);
    assert_eq!(whole.encode().expect("fits"), bytes, "encoding {whole:?}");
    let mut head = Vec::new();
    message.encode_header(0, &mut head);
    assert_eq!(head, bytes, "encoding the head of {message:?}");
    bytes.extend_from_slice(body);
    let decoded = decode(&FrameLimits::default(), [&bytes[..]], usual);
    let start = Event::BodyStart { message, length: body.len() as u64 };
    let events = vec![start, Event::BodyPiece(Bytes::from_static(body)), Event::BodyEnd];
    assert_eq!((decoded.events, decoded.error), (events, None));
}

#[test]
fn wire_2_sample_rpc_request_and_its_echo() {
    golden(
        Message::RpcRequest { request_id: 1, body: Bytes::from("abc") },
        "0000000000000018 03 0000000000000001 00000003 616263",
    );
    golden(
        Message::RpcResponse { request_id: 1, body: Bytes::from("abc") },
        "0000000000000018 04 0000000000000001 00000003 616263",
    );
}

#[test]
fn wire_2_sample_one_way_message() {
    golden(
        Message::OneWayMessage { body: Bytes::from("abc") },
        "0000000000000010 09 00000003 616263",
    );
}

#[test]
fn wire_2_sample_stream_request() {
    golden(Message::StreamRequest { stream_id: "d".into() }, "000000000000000e 06 00000001 64");
}

#[test]
fn wire_2_sample_stream_response() {
    golden_with_body(
        Message::StreamResponse { stream_id: "d".into(), byte_count: 4 },
        Message::StreamResponse { stream_id: "d".into(), byte_count: 4 },
        "0000000000000016 07 00000001 64 0000000000000004",
        b"DATA",
    );
}

#[test]
fn wire_2_sample_stream_failure() {
    let text: String =
        b"Stream 'n' was not found.".iter().map(|byte| format!("{byte:02x}")).collect();
    golden(
        Message::StreamFailure { stream_id: "n".into(), error: "Stream 'n' was not found.".into() },
        &format!("000000000000002b 08 00000001 6e 00000019 {text}"),
    );
}

#[test]
fn wire_2_sample_upload_and_its_empty_answer() {
    golden_with_body(
        Message::UploadStream { request_id: 9, meta: Bytes::from("met"), byte_count: 4 },
        Message::UploadStream { request_id: 9, meta: Bytes::from("met"), byte_count: 4 },
        "0000000000000020 0a 0000000000000009 00000003 6d6574 0000000000000004",
        b"four",
    );
    golden(
        Message::RpcResponse { request_id: 9, body: Bytes::new() },
        "0000000000000015 04 0000000000000009 00000000",
    );
}

/// The types of the table of wire 2 that have no captured sample: bytes from the layout there.
#[test]
fn wire_2_layout_of_the_other_types() {
    golden(
        Message::ChunkFetchRequest { stream_id: 0x0102_0304_0506_0708, chunk_index: 0x0a0b_0c0d },
        "0000000000000015 00 0102030405060708 0a0b0c0d",
    );
    golden(
        Message::ChunkFetchSuccess { stream_id: 1, chunk_index: 2, body: Bytes::from("xyz") },
        "0000000000000018 01 0000000000000001 00000002 78797a",
    );
    golden(
        Message::ChunkFetchFailure { stream_id: -1, chunk_index: -2, error: "no".into() },
        "000000000000001b 02 ffffffffffffffff fffffffe 00000002 6e6f",
    );
    golden(
        Message::RpcFailure { request_id: i64::MIN, error: "é".into() },
        "0000000000000017 05 8000000000000000 00000002 c3a9",
    );
    golden(
        Message::MergedBlockMetaRequest(MergedBlockMetaRequest {
            request_id: 7,
            app_id: "app".into(),
            shuffle_id: 1,
            shuffle_merge_id: -1,
            reduce_id: 3,
        }),
        "0000000000000024 0b 0000000000000007 00000003 617070 00000001 ffffffff 00000003",
    );
    golden(
        Message::MergedBlockMetaSuccess {
            request_id: 7,
            num_chunks: 1,
            body: Bytes::from_static(&[0x3a]),
        },
        "0000000000000016 0c 0000000000000007 00000001 3a",
    );
}
