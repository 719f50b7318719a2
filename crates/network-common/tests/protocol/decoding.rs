//! Runs a decoder over bytes that arrive in pieces, and checks the invariants of its events.

use bytes::{Bytes, BytesMut};
use network_common::protocol::{Event, FrameDecoder, FrameLimits, Message, ProtocolError};

/// The way in which a test handles an announced body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "not every test binary uses all of them")]
pub(crate) enum BodyHandling {
    Expected,
    Unexpected,
    Stream,
    Discard,
    /// Makes no decision, so the decoder discards the body.
    Silent,
}

/// All events of a connection. Pieces of one body are concatenated, so that splits make no
/// difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decoded {
    pub(crate) events: Vec<Event>,
    /// The error that ended the connection: malformed bytes, or EOF inside a frame.
    pub(crate) error: Option<ProtocolError>,
}

/// Decodes `pieces`, then the end of the connection.
pub(crate) fn decode<'a>(
    limits: &FrameLimits,
    pieces: impl IntoIterator<Item = &'a [u8]>,
    mut plan: impl FnMut(&Message<()>, u64) -> BodyHandling,
) -> Decoded {
    let mut decoder = FrameDecoder::new(limits.clone());
    let mut events = Vec::new();
    // The streamed body in progress: missing bytes, and received ones.
    let mut body: Option<(u64, BytesMut)> = None;
    for mut input in pieces {
        loop {
            let event = match decoder.next_event(&mut input) {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(error) => {
                    events.extend(body.map(|(_, bytes)| Event::BodyPiece(bytes.freeze())));
                    return Decoded { events, error: Some(error) };
                }
            };
            match event {
                Event::BodyPiece(piece) => {
                    let (missing, bytes) =
                        body.as_mut().expect("pieces come only within a streamed body");
                    assert!(!piece.is_empty(), "a piece is never empty");
                    *missing =
                        missing.checked_sub(piece.len() as u64).expect("no byte beyond the body");
                    bytes.extend_from_slice(&piece);
                }
                Event::BodyEnd => {
                    let (missing, bytes) = body.take().expect("only a streamed body ends");
                    assert_eq!(missing, 0, "a body ends after its announced length");
                    events.push(Event::BodyPiece(bytes.freeze()));
                    events.push(Event::BodyEnd);
                }
                other => {
                    assert!(body.is_none(), "{other:?} in the middle of a body");
                    if let Event::BodyStart { message, length } = &other {
                        assert!(*length > 0, "an announced body has at least one byte");
                        match plan(message, *length) {
                            BodyHandling::Expected => decoder.collect_body(true),
                            BodyHandling::Unexpected => decoder.collect_body(false),
                            BodyHandling::Stream => {
                                decoder.stream_body();
                                body = Some((*length, BytesMut::new()));
                            }
                            BodyHandling::Discard => decoder.discard_body(),
                            BodyHandling::Silent => {}
                        }
                    }
                    events.push(other);
                }
            }
        }
        assert!(input.is_empty(), "`None` means that all input was consumed");
    }
    events.extend(body.map(|(_, bytes)| Event::BodyPiece(bytes.freeze())));
    Decoded { events, error: decoder.finish().err() }
}

/// Collects bodies in frames, and streams those after frames.
pub(crate) fn collect_or_stream(message: &Message<()>, _: u64) -> BodyHandling {
    match message {
        Message::StreamResponse { .. } | Message::UploadStream { .. } => BodyHandling::Stream,
        _ => BodyHandling::Unexpected,
    }
}

/// Returns all messages of well-formed bytes that arrive at once.
#[allow(dead_code, reason = "not every test binary uses it")]
pub(crate) fn messages(bytes: &[u8]) -> Vec<Message<Bytes>> {
    let decoded = decode(&FrameLimits::default(), [bytes], collect_or_stream);
    assert_eq!(decoded.error, None);
    let message = |event| if let Event::Message(message) = event { Some(message) } else { None };
    decoded.events.into_iter().filter_map(message).collect()
}
