//! Any bytes, cut anywhere, with any decision about every body: no panic, every byte accounted for,
//! and the same events as in one piece.
//!
//! Input: a byte `n`, `n % 16` sizes of pieces (0 means 256), a byte of decisions, and what the
//! peer sends.

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use network_common::protocol::{Event, FrameDecoder, FrameLimits, ProtocolError};

/// A body is gathered from this much memory at most; hostile lengths are tested by tests/memory.rs.
const MAX_REQUEST: u64 = 1 << 20;

fn decode<'a>(
    pieces: impl Iterator<Item = &'a [u8]>,
    decisions: u8,
) -> (Vec<Event>, Option<ProtocolError>) {
    let mut limits = FrameLimits::default();
    limits.max_request = MAX_REQUEST;
    let mut decoder = FrameDecoder::new(limits);
    let mut events = Vec::new();
    let mut streamed: Option<(u64, BytesMut)> = None;
    let mut bodies = 0;
    for mut input in pieces {
        loop {
            let event = match decoder.next_event(&mut input) {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(error) => return (events, Some(error)),
            };
            match event {
                Event::BodyStart { message, length } => {
                    assert!(length > 0 && streamed.is_none());
                    // Two bits per body, over and over.
                    match decisions.rotate_right(2 * (bodies % 4)) & 3 {
                        0 => decoder.collect_body(false),
                        1 => {
                            decoder.stream_body();
                            streamed = Some((length, BytesMut::new()));
                        }
                        2 => decoder.discard_body(),
                        _ => {}
                    }
                    bodies += 1;
                    events.push(Event::BodyStart { message, length });
                }
                Event::BodyPiece(piece) => {
                    let (missing, bytes) = streamed.as_mut().expect("a piece of nothing");
                    assert!(!piece.is_empty());
                    *missing =
                        missing.checked_sub(piece.len() as u64).expect("more than announced");
                    bytes.extend_from_slice(&piece);
                }
                Event::BodyEnd => {
                    let (missing, bytes) = streamed.take().expect("the end of nothing");
                    assert_eq!(missing, 0);
                    events.extend([Event::BodyPiece(bytes.freeze()), Event::BodyEnd]);
                }
                other => {
                    assert!(streamed.is_none(), "within a body");
                    events.push(other);
                }
            }
        }
        assert!(input.is_empty(), "not all was taken in");
    }
    events.extend(streamed.map(|(_, bytes)| Event::BodyPiece(bytes.freeze())));
    (events, decoder.finish().err())
}

/// Bytes that the events stand for, as far as they tell.
fn accounted(events: &[Event]) -> u64 {
    events
        .iter()
        .map(|event| match event {
            Event::Message(message) => message.encode().map_or(0, |frame| frame.len() as u64),
            Event::BodyPiece(piece) => piece.len() as u64,
            _ => 0,
        })
        .sum()
}

fuzz_target!(|data: &[u8]| {
    let Some((&count, rest)) = data.split_first() else { return };
    let Some((sizes, rest)) = rest.split_at_checked(usize::from(count % 16)) else { return };
    let Some((&decisions, wire)) = rest.split_first() else { return };

    let whole = decode(std::iter::once(wire), decisions);
    // Text that is not UTF-8 is replaced by up to three times as much.
    assert!(accounted(&whole.0) <= 3 * wire.len() as u64, "more came out than went in");

    let mut sizes =
        sizes.iter().map(|size| if *size == 0 { 256 } else { usize::from(*size) }).cycle();
    let mut left = wire;
    let pieces = std::iter::from_fn(|| {
        let size = sizes.next().unwrap_or(1).min(left.len());
        let (piece, rest) = left.split_at(size);
        left = rest;
        (!piece.is_empty()).then_some(piece)
    });
    assert_eq!(decode(pieces, decisions), whole, "it depends on where the bytes were cut");
});
