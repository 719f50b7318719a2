//! Property tests of the codec: arbitrary messages, splits and bytes.

#[path = "protocol/decoding.rs"]
mod decoding;

use bytes::{BufMut as _, Bytes};
use network_common::protocol::{
    Event, FieldReader, FrameLimits, MergedBlockMetaRequest, Message, put_byte_array, put_string,
};
use proptest::collection::vec;
use proptest::prelude::*;

use decoding::{BodyHandling, collect_or_stream, decode};

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    // Mostly short; some are longer than what is decoded in one piece.
    prop_oneof![4 => vec(any::<u8>(), 0..100), 1 => vec(any::<u8>(), 0..max)].prop_map(Bytes::from)
}

/// Any message, and the body that follows its frame.
fn message() -> impl Strategy<Value = (Message<Bytes>, Bytes)> {
    let text = || prop_oneof![".{0,20}", ".{0,2000}"];
    let body = || bytes(20_000);
    let plain = prop_oneof![
        any::<(i64, i32)>().prop_map(|(stream_id, chunk_index)| Message::ChunkFetchRequest {
            stream_id,
            chunk_index
        }),
        (any::<i64>(), any::<i32>(), body()).prop_map(|(stream_id, chunk_index, body)| {
            Message::ChunkFetchSuccess { stream_id, chunk_index, body }
        }),
        (any::<i64>(), any::<i32>(), text()).prop_map(|(stream_id, chunk_index, error)| {
            Message::ChunkFetchFailure { stream_id, chunk_index, error }
        }),
        (any::<i64>(), body())
            .prop_map(|(request_id, body)| Message::RpcRequest { request_id, body }),
        (any::<i64>(), body())
            .prop_map(|(request_id, body)| Message::RpcResponse { request_id, body }),
        (any::<i64>(), text())
            .prop_map(|(request_id, error)| Message::RpcFailure { request_id, error }),
        text().prop_map(|stream_id| Message::StreamRequest { stream_id }),
        (text(), text()).prop_map(|(stream_id, error)| Message::StreamFailure { stream_id, error }),
        body().prop_map(|body| Message::OneWayMessage { body }),
        (any::<(i64, i32, i32, i32)>(), text()).prop_map(|(numbers, app_id)| {
            let (request_id, shuffle_id, shuffle_merge_id, reduce_id) = numbers;
            Message::MergedBlockMetaRequest(MergedBlockMetaRequest {
                request_id,
                app_id,
                shuffle_id,
                shuffle_merge_id,
                reduce_id,
            })
        }),
        (any::<i64>(), any::<i32>(), body()).prop_map(|(request_id, num_chunks, body)| {
            Message::MergedBlockMetaSuccess { request_id, num_chunks, body }
        }),
    ];
    let outside = (text(), any::<i64>(), bytes(10_000), body(), any::<bool>()).prop_map(
        |(stream_id, request_id, meta, body, upload)| {
            let byte_count = body.len() as i64;
            let message = if upload {
                Message::UploadStream { request_id, meta, byte_count }
            } else {
                Message::StreamResponse { stream_id, byte_count }
            };
            (message, body)
        },
    );
    prop_oneof![11 => plain.prop_map(|message| (message, Bytes::new())), 2 => outside]
}

/// Splits `bytes` into pieces of these sizes, repeatedly.
fn split_by<'a>(mut bytes: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for size in sizes.iter().cycle() {
        if bytes.is_empty() {
            break;
        }
        let (piece, rest) = bytes.split_at((*size).min(bytes.len()));
        pieces.push(piece);
        bytes = rest;
    }
    pieces
}

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    vec(prop_oneof![1..10_usize, 1..300_usize, 1..50_000_usize], 1..30)
}

fn plans() -> impl Strategy<Value = Vec<BodyHandling>> {
    let plan = [
        BodyHandling::Expected,
        BodyHandling::Unexpected,
        BodyHandling::Stream,
        BodyHandling::Discard,
        BodyHandling::Silent,
    ];
    vec(proptest::sample::select(plan.to_vec()), 1..10)
}

/// Bytes that look like frames up to some point.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![
        1..60_i64,
        4_000..6_000_i64,
        Just(0x8000_0006),
        any::<i64>(),
        any::<i32>().prop_map(i64::from),
    ];
    let frame = (length, 0..16_u8, vec(prop_oneof![Just(0_u8), any::<u8>()], 0..120)).prop_map(
        |(length, kind, rest)| {
            let mut bytes = Vec::new();
            bytes.put_i64(length);
            bytes.put_u8(kind);
            bytes.extend(rest);
            bytes
        },
    );
    // A correct length field with arbitrary content.
    let honest = (0..13_u8, vec(prop_oneof![3 => 0..4_u8, 1 => any::<u8>()], 0..60)).prop_map(
        |(kind, rest)| {
            let mut bytes = Vec::new();
            bytes.put_u64(9 + rest.len() as u64);
            bytes.put_u8(kind);
            bytes.extend(rest);
            bytes
        },
    );
    let noise = vec(any::<u8>(), 0..50);
    vec(prop_oneof![2 => frame, 5 => honest, 1 => noise], 1..8).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn frame_01_messages_are_unchanged_for_every_split(
        sent in vec(message(), 1..8),
        sizes in sizes(),
    ) {
        let (mut wire, mut expected) = (Vec::new(), Vec::new());
        for (message, outside) in sent {
            wire.extend(message.encode().expect("fits"));
            wire.extend_from_slice(&outside);
            if !outside.is_empty() {
                expected.extend([None, Some(Event::BodyPiece(outside)), Some(Event::BodyEnd)]);
            } else {
                expected.push(Some(Event::Message(message)));
            }
        }
        let decoded = decode(&FrameLimits::default(), split_by(&wire, &sizes), collect_or_stream);
        prop_assert_eq!(decoded.error, None);
        // A body after a frame begins with an event of its own. Large bodies in frames are
        // announced, then collected.
        let mut events = Vec::new();
        for event in decoded.events {
            match event {
                Event::BodyStart {
                    message: Message::StreamResponse { .. } | Message::UploadStream { .. },
                    ..
                } => {
                    events.push(None);
                }
                Event::BodyStart { .. } => {}
                other => events.push(Some(other)),
            }
        }
        prop_assert_eq!(events, expected);
    }

    /// No input causes a panic, and splits change neither the events nor the error.
    #[test]
    fn frame_05_any_bytes_decode_equally_for_every_split(
        wire in hostile(),
        sizes in sizes(),
        plans in plans(),
    ) {
        let run = |pieces: Vec<&[u8]>| {
            let mut plans = plans.iter().cycle();
            decode(&FrameLimits::default(), pieces, |_, _| *plans.next().expect("endless"))
        };
        let whole = run(vec![&wire]);
        prop_assert_eq!(&run(split_by(&wire, &sizes)), &whole);
        prop_assert_eq!(&run(split_by(&wire, &[1])), &whole);
    }

    #[test]
    fn enc_04_strings_and_byte_arrays_are_unchanged(
        text in ".{0,200}",
        data in vec(any::<u8>(), 0..200),
        tail in vec(any::<u8>(), 0..9),
    ) {
        let mut wire = Vec::new();
        put_string(&text, &mut wire);
        put_byte_array(&data, &mut wire);
        wire.extend_from_slice(&tail);
        let mut reader = FieldReader::new(&wire);
        prop_assert_eq!(reader.string("text"), Ok(text));
        prop_assert_eq!(reader.byte_array("data"), Ok(&data[..]));
        prop_assert_eq!(reader.remaining(), tail.len());
    }
}
