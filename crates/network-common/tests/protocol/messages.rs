//! Messages are unchanged by encoding and decoding: Spark's `ProtocolSuite`.

use bytes::Bytes;
use network_common::protocol::{Event, FrameDecoder, MergedBlockMetaRequest, Message};

use super::decoding::messages;

/// Checks that the encoded message decodes to exactly the same message.
fn check_round_trip(message: Message<Bytes>) {
    let frame = message.encode().expect("fits");
    assert_eq!(u64::from_be_bytes(frame[..8].try_into().expect("8 bytes")), frame.len() as u64);
    assert_eq!(messages(&frame), [message]);
}

fn body(length: usize) -> Bytes {
    (0..length).map(|index| (index * 31 % 251) as u8).collect()
}

#[test]
fn proto_01_requests_are_unchanged_by_encoding_and_decoding() {
    check_round_trip(Message::ChunkFetchRequest { stream_id: 1, chunk_index: 2 });
    check_round_trip(Message::RpcRequest { request_id: 12345, body: body(0) });
    check_round_trip(Message::RpcRequest { request_id: 12345, body: body(10) });
    check_round_trip(Message::StreamRequest { stream_id: "abcde".into() });
    check_round_trip(Message::OneWayMessage { body: body(10) });
    check_round_trip(Message::UploadStream { request_id: 3, meta: body(5), byte_count: 0 });
    check_round_trip(Message::MergedBlockMetaRequest(MergedBlockMetaRequest {
        request_id: 4,
        app_id: "application_1".into(),
        shuffle_id: 0,
        shuffle_merge_id: -1,
        reduce_id: i32::MAX,
    }));
}

#[test]
fn proto_02_responses_are_unchanged_by_encoding_and_decoding() {
    check_round_trip(Message::ChunkFetchSuccess { stream_id: 1, chunk_index: 2, body: body(10) });
    check_round_trip(Message::ChunkFetchSuccess { stream_id: 1, chunk_index: 2, body: body(0) });
    check_round_trip(Message::ChunkFetchFailure {
        stream_id: 1,
        chunk_index: 2,
        error: "this is an error".into(),
    });
    check_round_trip(Message::ChunkFetchFailure {
        stream_id: 1,
        chunk_index: 2,
        error: String::new(),
    });
    check_round_trip(Message::RpcResponse { request_id: 12345, body: body(0) });
    check_round_trip(Message::RpcResponse { request_id: 12345, body: body(100) });
    check_round_trip(Message::RpcFailure { request_id: 0, error: "this is an error".into() });
    check_round_trip(Message::RpcFailure { request_id: 0, error: String::new() });
    check_round_trip(Message::StreamFailure {
        stream_id: "anId".into(),
        error: "this is an error".into(),
    });
}

/// The frame of a StreamResponse has no body; its byte count announces bytes after the frame.
#[test]
fn proto_02_stream_response_announces_its_body() {
    let message = Message::<Bytes>::StreamResponse { stream_id: "anId".into(), byte_count: 12345 };
    let frame = message.encode().expect("fits");
    assert_eq!(frame.len(), 21 + 4);
    let mut input = &frame[..];
    let event = FrameDecoder::default().next_event(&mut input).expect("well-formed");
    let header = Message::StreamResponse { stream_id: "anId".into(), byte_count: 12345 };
    assert_eq!(event, Some(Event::BodyStart { message: header, length: 12345 }));
    assert!(input.is_empty());
}

/// Bodies in frames of many sizes, below and above the size that is decoded in one piece.
#[test]
fn proto_02_bodies_of_many_sizes_are_unchanged() {
    for length in (0..20).flat_map(|power| [(1 << power) - 1, 1 << power]).chain(4070..4110) {
        check_round_trip(Message::RpcRequest { request_id: 1, body: body(length) });
        check_round_trip(Message::ChunkFetchSuccess {
            stream_id: 1,
            chunk_index: 2,
            body: body(length),
        });
        check_round_trip(Message::OneWayMessage { body: body(length) });
    }
}

/// Spark's ids are rarely negative, but receivers accept any id and echo it unchanged.
#[test]
fn wire_4_ids_of_64_bits_are_unchanged() {
    for id in [i64::MIN, -1, 0, 1, i64::MAX] {
        check_round_trip(Message::RpcRequest { request_id: id, body: Bytes::new() });
        check_round_trip(Message::RpcResponse { request_id: id, body: Bytes::new() });
        check_round_trip(Message::ChunkFetchRequest { stream_id: id, chunk_index: i32::MIN });
    }
}

/// A byte count of 0 or less means that no body follows.
#[test]
fn wire_5_byte_count_of_zero_or_less_announces_no_body() {
    for byte_count in [0, -1, i64::MIN] {
        let response = Message::StreamResponse { stream_id: "s".into(), byte_count };
        let upload = Message::UploadStream { request_id: 1, meta: Bytes::new(), byte_count };
        let next = Message::StreamRequest { stream_id: "next".into() };
        let bytes: Vec<u8> = [&response, &upload, &next]
            .iter()
            .flat_map(|message| message.encode().expect("fits"))
            .collect();
        assert_eq!(messages(&bytes), [response, upload, next]);
    }
}

#[test]
fn wire_3_requests_are_distinguished_from_responses() {
    let is_request = |frame: &[u8]| messages(frame)[0].is_request();
    let frame_of_type = |kind: u8| {
        let mut frame = vec![0, 0, 0, 0, 0, 0, 0, 49, kind];
        frame.resize(49, 0);
        frame
    };
    let kinds: Vec<u8> = (0..13).filter(|kind| is_request(&frame_of_type(*kind))).collect();
    assert_eq!(kinds, [0x00, 0x03, 0x06, 0x09, 0x0a, 0x0b]);
}
