//! Reading into a body's own buffer, which only the connection's driver does. The rest of the
//! decoder is tested in `tests/protocol`.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::*;
use crate::buffer::BufferPool;

/// Decodes one announced body and the frame after it, at most `step` bytes at a time. Reads
/// directly into the body's buffer if the decoder offers it and `direct` returns true. Returns the
/// body and the number of bytes read directly.
fn receive(
    pool: &Arc<BufferPool>,
    length: usize,
    stream: bool,
    step: usize,
    mut direct: impl FnMut() -> bool,
) -> (Bytes, usize) {
    let head = Message::ChunkFetchSuccess { stream_id: 1, chunk_index: 2, body: () };
    let mut wire = Vec::new();
    head.encode_header(length as u64, &mut wire);
    wire.extend((0..length).map(|index| (index * 31 % 251) as u8));
    let next = Message::<Bytes>::StreamRequest { stream_id: "next".into() };
    wire.extend(next.encode().unwrap());

    let mut decoder = FrameDecoder::with_pool(Arc::default(), Arc::clone(pool), None);
    assert!(decoder.body_buf_mut().is_none(), "there is no buffer before the body");
    let (mut body, mut directly, mut ended) = (BytesMut::new(), 0, false);
    let mut rest = &wire[..];
    loop {
        let mut input: &[u8] = &[];
        match (direct(), decoder.body_buf_mut()) {
            (true, Some(target)) => {
                assert!(!target.is_empty(), "a read into an empty buffer would look like EOF");
                let count = step.min(target.len()).min(rest.len());
                target[..count].copy_from_slice(&rest[..count]);
                rest = &rest[count..];
                decoder.advance_body(count);
                directly += count;
            }
            _ => (input, rest) = rest.split_at(step.min(rest.len())),
        }
        while let Some(event) = decoder.next_event(&mut input).unwrap() {
            match event {
                Event::BodyStart { .. } if stream => decoder.stream_body(),
                Event::BodyStart { .. } => decoder.collect_body(length.is_multiple_of(2)),
                Event::BodyPiece(piece) => body.extend_from_slice(&piece),
                Event::BodyEnd => ended = true,
                Event::Message(Message::ChunkFetchSuccess { body: whole, .. }) if !stream => {
                    body.extend_from_slice(&whole);
                    ended = true;
                }
                Event::Message(message) => {
                    assert!(ended && rest.is_empty());
                    assert_eq!(message, next);
                    assert_eq!(decoder.finish(), Ok(()));
                    return (body.freeze(), directly);
                }
                event => panic!("{event:?}"),
            }
        }
        assert!(input.is_empty());
    }
}

#[test]
fn frame_02_bodies_read_directly_are_unchanged() {
    // The buffers come from earlier bodies of all sizes and hold old content.
    let pool = Arc::new(BufferPool::default());
    for length in [5_000, 40_000, 65_536, 65_537, 100_000, 262_144, 300_001, 1 << 20] {
        let expected: Vec<u8> = (0..length).map(|index| (index * 31 % 251) as u8).collect();
        for stream in [false, true] {
            for step in [100, 4_096, 65_536, usize::MAX] {
                let (never, none) = receive(&pool, length, stream, step, || false);
                let (always, most) = receive(&pool, length, stream, step, || true);
                let mut turn = 0;
                let (mixed, _) = receive(&pool, length, stream, step, || {
                    turn += 1;
                    turn % 3 == 0
                });
                let context = format!("{length} bytes in steps of {step}, streamed: {stream}");
                assert!(never == expected && always == expected && mixed == expected, "{context}");
                assert_eq!(none, 0);
                assert!(
                    length < 200_000 || step > 65_536 || most > length - 70_000 - step,
                    "{context}: {most}"
                );
            }
        }
    }
}

/// A small retained piece must not keep a whole read buffer, because only its own bytes are
/// counted.
#[test]
fn frame_04_small_piece_does_not_retain_large_buffer() {
    let mut head = Vec::new();
    Message::<()>::StreamResponse { stream_id: "s".into(), byte_count: 1 << 20 }
        .encode_header(0, &mut head);
    let mut decoder = FrameDecoder::default();
    assert!(matches!(decoder.next_event(&mut &head[..]), Ok(Some(Event::BodyStart { .. }))));
    decoder.stream_body();
    let (mut buffers, mut kept) = (Vec::new(), Vec::new());
    for fill in 0..10 {
        let target = decoder.body_buf_mut().unwrap();
        target[..100].fill(fill);
        buffers.push(target.as_ptr());
        decoder.advance_body(100);
        match decoder.next_event(&mut &b""[..]) {
            Ok(Some(Event::BodyPiece(piece))) => kept.push(piece),
            other => panic!("{other:?}"),
        }
    }
    assert!(
        buffers.iter().all(|buffer| *buffer == buffers[0]),
        "all reads must use the same buffer"
    );
    assert!(kept.iter().zip(0..).all(|(piece, fill)| piece == &[fill; 100][..]));
}

/// Buffers of bodies that were incomplete or discarded return to the pool too.
#[test]
fn frame_04_every_body_buffer_returns_to_pool() {
    let mut head = Vec::new();
    Message::<()>::StreamResponse { stream_id: "s".into(), byte_count: 100_000 }
        .encode_header(0, &mut head);
    let pool = Arc::new(BufferPool::default());
    for cut in [false, true] {
        let mut decoder = FrameDecoder::with_pool(Arc::default(), Arc::clone(&pool), None);
        assert!(matches!(decoder.next_event(&mut &head[..]), Ok(Some(Event::BodyStart { .. }))));
        decoder.stream_body();
        assert!(decoder.body_buf_mut().is_some());
        decoder.advance_body(100);
        while let Ok(Some(Event::BodyPiece(_))) = decoder.next_event(&mut &b""[..]) {}
        if !cut {
            let rest = vec![0; 99_900];
            let mut input = &rest[..];
            while !matches!(decoder.next_event(&mut input), Ok(Some(Event::BodyEnd))) {}
        }
        drop(decoder);
        // Taken out of the pool, so that the next round starts with an empty one.
        assert!(pool.take_idle(100_000).is_some(), "cut: {cut}: the buffer must be reused");
    }
}

#[test]
fn frame_04_later_large_request_uses_memory_of_the_first() {
    let pool = Arc::new(BufferPool::default());
    let body: Vec<u8> = (0..3 << 20).map(|index| (index % 251) as u8).collect();
    let frame = Message::RpcRequest { request_id: 1, body: Bytes::from(body.clone()) }.encode();
    let frame = frame.unwrap();
    let receive = || {
        let mut decoder = FrameDecoder::with_pool(Arc::default(), Arc::clone(&pool), None);
        for mut part in frame.chunks(10_000) {
            match decoder.next_event(&mut part).unwrap() {
                None => continue,
                Some(Event::BodyStart { .. }) => decoder.collect_body(false),
                Some(Event::Message(Message::RpcRequest { body, .. })) => return body,
                Some(event) => panic!("{event:?}"),
            }
            assert_eq!(decoder.next_event(&mut part), Ok(None));
        }
        panic!("the request is incomplete")
    };
    let first = receive();
    assert!(first == body);
    let memory = first.as_ptr();
    drop(first);
    let second = receive();
    assert!(second == body && second.as_ptr() == memory, "the memory must be reused");
    let third = receive();
    assert!(third == body && third.as_ptr() != memory, "the second request uses it");
}
