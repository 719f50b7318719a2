//! ProtocolSuite and MergedBlockMetaSuccessSuite: every message survives the way over the wire.

use std::io::Write as _;

use bytes::Bytes;
use network_common::ManagedBuffer;
use network_common::protocol::{
    Event, FrameDecoder, MergedBlockMetaRequest, Message, put_bitmap, read_bitmaps,
};
use roaring::RoaringBitmap;

use super::decoding::messages;

/// Exactly one message comes out, equal to the one that went in.
fn round_trip(message: Message<Bytes>) {
    let frame = message.encode().expect("fits");
    assert_eq!(u64::from_be_bytes(frame[..8].try_into().expect("8 bytes")), frame.len() as u64);
    assert_eq!(messages(&frame), [message]);
}

fn body(length: usize) -> Bytes {
    (0..length).map(|index| (index * 31 % 251) as u8).collect()
}

#[test]
fn proto_01_requests() {
    round_trip(Message::ChunkFetchRequest { stream_id: 1, chunk_index: 2 });
    round_trip(Message::RpcRequest { request_id: 12345, body: body(0) });
    round_trip(Message::RpcRequest { request_id: 12345, body: body(10) });
    round_trip(Message::StreamRequest { stream_id: "abcde".into() });
    round_trip(Message::OneWayMessage { body: body(10) });
    round_trip(Message::UploadStream { request_id: 3, meta: body(5), byte_count: 0 });
    round_trip(Message::MergedBlockMetaRequest(MergedBlockMetaRequest {
        request_id: 4,
        app_id: "application_1".into(),
        shuffle_id: 0,
        shuffle_merge_id: -1,
        reduce_id: i32::MAX,
    }));
}

#[test]
fn proto_02_responses() {
    round_trip(Message::ChunkFetchSuccess { stream_id: 1, chunk_index: 2, body: body(10) });
    round_trip(Message::ChunkFetchSuccess { stream_id: 1, chunk_index: 2, body: body(0) });
    round_trip(Message::ChunkFetchFailure {
        stream_id: 1,
        chunk_index: 2,
        error: "this is an error".into(),
    });
    round_trip(Message::ChunkFetchFailure { stream_id: 1, chunk_index: 2, error: String::new() });
    round_trip(Message::RpcResponse { request_id: 12345, body: body(0) });
    round_trip(Message::RpcResponse { request_id: 12345, body: body(100) });
    round_trip(Message::RpcFailure { request_id: 0, error: "this is an error".into() });
    round_trip(Message::RpcFailure { request_id: 0, error: String::new() });
    round_trip(Message::StreamFailure {
        stream_id: "anId".into(),
        error: "this is an error".into(),
    });
}

/// The frame of a StreamResponse has no body; what it announces comes behind it.
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

/// Wire 2: bodies in frames may have any size up to the limit, whether they come in one piece or
/// not.
#[test]
fn proto_02_bodies_of_every_magnitude() {
    for length in (0..20).flat_map(|power| [(1 << power) - 1, 1 << power]).chain(4070..4110) {
        round_trip(Message::RpcRequest { request_id: 1, body: body(length) });
        round_trip(Message::ChunkFetchSuccess { stream_id: 1, chunk_index: 2, body: body(length) });
        round_trip(Message::OneWayMessage { body: body(length) });
    }
}

/// Wire 4: one id in 2^62 is negative; receivers accept any and echo it unchanged.
#[test]
fn wire_4_ids_are_any_64_bits() {
    for id in [i64::MIN, -1, 0, 1, i64::MAX] {
        round_trip(Message::RpcRequest { request_id: id, body: Bytes::new() });
        round_trip(Message::RpcResponse { request_id: id, body: Bytes::new() });
        round_trip(Message::ChunkFetchRequest { stream_id: id, chunk_index: i32::MIN });
    }
}

/// Wire 5: a count of 0 or less means that no body follows.
#[test]
fn wire_5_a_count_of_zero_or_less_announces_no_body() {
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
fn wire_3_messages_know_whether_they_ask() {
    let asks = |frame: &[u8]| messages(frame)[0].is_request();
    let head = |kind: u8| {
        let mut frame = vec![0, 0, 0, 0, 0, 0, 0, 49, kind];
        frame.resize(49, 0);
        frame
    };
    let kinds: Vec<u8> = (0..13).filter(|kind| asks(&head(*kind))).collect();
    assert_eq!(kinds, [0x00, 0x03, 0x06, 0x09, 0x0a, 0x0b]);
}

#[tokio::test]
async fn mbm_01_merged_blocks_meta_encode_decode() {
    let chunks: [RoaringBitmap; 2] =
        [RoaringBitmap::from_iter([1, 2, 5]), RoaringBitmap::from_iter([3, 4, 7])];
    let mut encoded = Vec::new();
    for bitmap in &chunks {
        put_bitmap(bitmap, &mut encoded).expect("a vector has room");
    }
    let mut file = tempfile::NamedTempFile::new().expect("temporary file");
    file.write_all(&encoded).expect("written");
    let body =
        ManagedBuffer::file(file.path(), 0..encoded.len() as u64).read().await.expect("read");

    let message = Message::MergedBlockMetaSuccess { request_id: 22, num_chunks: 2, body };
    let frame = message.encode().expect("fits");
    let received = messages(&frame);
    let [Message::MergedBlockMetaSuccess { request_id: 22, num_chunks: 2, body }] = &received[..]
    else {
        panic!("{received:?}");
    };
    assert_eq!(read_bitmaps(body, 2).expect("two bitmaps"), chunks);
}
