//! All 13 message types on one connection, split at every byte: the decoded events never depend on
//! the splits.

use bytes::Bytes;
use network_common::protocol::{Event, FrameLimits, MergedBlockMetaRequest, Message};

use super::decoding::{BodyHandling, Decoded, collect_or_stream, decode};

/// Longer than what is decoded in one piece.
const LARGE: usize = 5_000;

fn body(length: usize, seed: usize) -> Bytes {
    (0..length).map(|index| ((index + seed) * 31 % 251) as u8).collect()
}

/// Returns the bytes of a connection and their events; large bodies are collected or streamed.
fn connection() -> (Vec<u8>, Vec<Event>) {
    let text = || String::from("a text with ünïcode");
    let mut messages = vec![
        Message::ChunkFetchRequest { stream_id: 1, chunk_index: 2 },
        Message::ChunkFetchFailure { stream_id: 1, chunk_index: 2, error: text() },
        Message::RpcFailure { request_id: 3, error: text() },
        Message::StreamRequest { stream_id: text() },
        Message::StreamResponse { stream_id: text(), byte_count: 600 },
        Message::StreamResponse { stream_id: text(), byte_count: 0 },
        Message::StreamFailure { stream_id: text(), error: "e".repeat(LARGE) },
        Message::UploadStream { request_id: 4, meta: body(40, 4), byte_count: 500 },
        Message::UploadStream { request_id: 5, meta: Bytes::new(), byte_count: -1 },
        Message::MergedBlockMetaRequest(MergedBlockMetaRequest {
            request_id: 6,
            app_id: text(),
            shuffle_id: 1,
            shuffle_merge_id: 2,
            reduce_id: 3,
        }),
    ];
    for length in [0, 9, LARGE] {
        messages.extend([
            Message::ChunkFetchSuccess { stream_id: 7, chunk_index: 8, body: body(length, 1) },
            Message::RpcRequest { request_id: 9, body: body(length, 2) },
            Message::RpcResponse { request_id: 10, body: body(length, 3) },
            Message::OneWayMessage { body: body(length, 4) },
            Message::MergedBlockMetaSuccess {
                request_id: 11,
                num_chunks: 12,
                body: body(length, 5),
            },
        ]);
    }
    // Rotated, because equal neighbours would hide a mix-up.
    messages.rotate_left(3);

    let (mut bytes, mut events) = (Vec::new(), Vec::new());
    for message in messages {
        bytes.extend(message.encode().expect("fits"));
        let outside = match message {
            Message::StreamResponse { byte_count, .. }
            | Message::UploadStream { byte_count, .. } => byte_count,
            _ => 0,
        };
        if outside > 0 {
            let raw = body(outside as usize, 6);
            bytes.extend_from_slice(&raw);
            events.extend([start(&message, raw.len()), Event::BodyPiece(raw), Event::BodyEnd]);
            continue;
        }
        if let Message::ChunkFetchSuccess { body, .. }
        | Message::RpcRequest { body, .. }
        | Message::RpcResponse { body, .. }
        | Message::OneWayMessage { body }
        | Message::MergedBlockMetaSuccess { body, .. } = &message
            && body.len() >= LARGE
        {
            events.push(start(&message, body.len()));
        }
        events.push(Event::Message(message));
    }
    (bytes, events)
}

fn start(message: &Message<Bytes>, length: usize) -> Event {
    let message = match message.clone() {
        Message::ChunkFetchSuccess { stream_id, chunk_index, .. } => {
            Message::ChunkFetchSuccess { stream_id, chunk_index, body: () }
        }
        Message::RpcRequest { request_id, .. } => Message::RpcRequest { request_id, body: () },
        Message::RpcResponse { request_id, .. } => Message::RpcResponse { request_id, body: () },
        Message::OneWayMessage { .. } => Message::OneWayMessage { body: () },
        Message::MergedBlockMetaSuccess { request_id, num_chunks, .. } => {
            Message::MergedBlockMetaSuccess { request_id, num_chunks, body: () }
        }
        Message::StreamResponse { stream_id, byte_count } => {
            Message::StreamResponse { stream_id, byte_count }
        }
        Message::UploadStream { request_id, meta, byte_count } => {
            Message::UploadStream { request_id, meta, byte_count }
        }
        other => panic!("{other:?} has no body"),
    };
    Event::BodyStart { message, length: length as u64 }
}

#[test]
fn frame_01_all_types_are_decoded_at_once() {
    let (bytes, events) = connection();
    let decoded = decode(&FrameLimits::default(), [&bytes[..]], collect_or_stream);
    assert_eq!(decoded, Decoded { events, error: None });
}

#[test]
fn frame_05_all_types_are_decoded_byte_by_byte() {
    let (bytes, events) = connection();
    let decoded = decode(&FrameLimits::default(), bytes.chunks(1), collect_or_stream);
    assert_eq!(decoded, Decoded { events, error: None });
}

#[test]
fn frame_05_all_types_are_decoded_when_split_at_any_byte() {
    let (bytes, events) = connection();
    let expected = Decoded { events, error: None };
    for cut in 0..=bytes.len() {
        let (first, second) = bytes.split_at(cut);
        let decoded = decode(&FrameLimits::default(), [first, second], collect_or_stream);
        assert!(decoded == expected, "cut after {cut} bytes: {decoded:?}");
    }
}

/// The frames after a body are the same in all body modes.
#[test]
fn frame_05_frames_after_body_are_decoded_in_every_mode() {
    let (bytes, _) = connection();
    for plan in [BodyHandling::Stream, BodyHandling::Discard, BodyHandling::Silent] {
        let whole = decode(&FrameLimits::default(), [&bytes[..]], |_, _| plan);
        assert_eq!(whole.error, None);
        let starts =
            whole.events.iter().filter(|event| matches!(event, Event::BodyStart { .. })).count();
        assert_eq!(starts, 7, "5 large bodies in frames and 2 after frames");
        let messages =
            whole.events.iter().filter(|event| matches!(event, Event::Message(_))).count();
        assert_eq!(messages, 25 - 7);
        for size in [1, 2, 3, 7, 8, 9, 13, 21, 1000, 4095, 4096, 4097] {
            let decoded = decode(&FrameLimits::default(), bytes.chunks(size), |_, _| plan);
            assert!(decoded == whole, "{plan:?} in pieces of {size}");
        }
    }
}
