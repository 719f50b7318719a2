//! Feeds arbitrary bytes, in pieces of arbitrary sizes, to the `FrameDecoder`.
//!
//! Properties: it does not panic, it consumes all input, bodies have the announced length, and the
//! events and the error are the same as for the same bytes in one piece.
//!
//! Input: a byte `n`, `n % 16` sizes of pieces (0 means 256), a byte of body modes, and the bytes
//! of the peer.

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use network_common::protocol::{Event, FrameDecoder, FrameLimits, ProtocolError};

/// The maximum length of a request body, so that the target needs little memory.
///
/// `tests/memory.rs` covers larger announced lengths.
const MAX_REQUEST: u64 = 1 << 20;

fn decode<'a>(
    pieces: impl Iterator<Item = &'a [u8]>,
    body_modes: u8,
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
                    // Two bits select the mode of a body, and the byte is used cyclically.
                    match body_modes.rotate_right(2 * (bodies % 4)) & 3 {
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
                    let (missing, bytes) = streamed.as_mut().expect("a piece without a body");
                    assert!(!piece.is_empty());
                    *missing = missing
                        .checked_sub(piece.len() as u64)
                        .expect("the body is longer than announced");
                    bytes.extend_from_slice(&piece);
                }
                Event::BodyEnd => {
                    let (missing, bytes) = streamed.take().expect("a body end without a body");
                    assert_eq!(missing, 0);
                    events.extend([Event::BodyPiece(bytes.freeze()), Event::BodyEnd]);
                }
                other => {
                    assert!(streamed.is_none(), "an event within a body");
                    events.push(other);
                }
            }
        }
        assert!(input.is_empty(), "the decoder has not consumed all input");
    }
    events.extend(streamed.map(|(_, bytes)| Event::BodyPiece(bytes.freeze())));
    (events, decoder.finish().err())
}

/// Returns the number of wire bytes of the messages and pieces in `events`.
fn wire_len(events: &[Event]) -> u64 {
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
    let Some((&body_modes, wire)) = rest.split_first() else { return };

    let unsplit = decode(std::iter::once(wire), body_modes);
    // A byte of a text that is not UTF-8 is replaced by up to three bytes.
    assert!(wire_len(&unsplit.0) <= 3 * wire.len() as u64, "the events exceed the input");

    let mut sizes =
        sizes.iter().map(|size| if *size == 0 { 256 } else { usize::from(*size) }).cycle();
    let mut remaining = wire;
    let pieces = std::iter::from_fn(|| {
        let size = sizes.next().unwrap_or(1).min(remaining.len());
        let (piece, rest) = remaining.split_at(size);
        remaining = rest;
        (!piece.is_empty()).then_some(piece)
    });
    assert_eq!(decode(pieces, body_modes), unsplit, "the result depends on the sizes of pieces");
});
