//! Drives a decoder over bytes that arrive in pieces, and checks the promises that hold for every
//! input.

use bytes::{Bytes, BytesMut};
use network_common::protocol::{Event, FrameDecoder, FrameLimits, Message, ProtocolError};

/// What becomes of a body that is announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "not every test binary uses all of them")]
pub(crate) enum Plan {
    Expected,
    Unexpected,
    Stream,
    Discard,
    /// Say nothing: the body is to be discarded.
    Silent,
}

/// Everything that came out of a connection. Pieces of one body are concatenated, so that it does
/// not depend on where the bytes were cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decoded {
    pub(crate) events: Vec<Event>,
    /// The error that ended it: malformed bytes, or the connection's end in the middle of
    /// something.
    pub(crate) error: Option<ProtocolError>,
}

/// Decodes `pieces`, then the end of the connection.
pub(crate) fn decode<'a>(
    limits: &FrameLimits,
    pieces: impl IntoIterator<Item = &'a [u8]>,
    mut plan: impl FnMut(&Message<()>, u64) -> Plan,
) -> Decoded {
    let mut decoder = FrameDecoder::new(limits.clone());
    let mut events = Vec::new();
    // The streamed body that is arriving: how much is missing, and what has come.
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
                            Plan::Expected => decoder.collect_body(true),
                            Plan::Unexpected => decoder.collect_body(false),
                            Plan::Stream => {
                                decoder.stream_body();
                                body = Some((*length, BytesMut::new()));
                            }
                            Plan::Discard => decoder.discard_body(),
                            Plan::Silent => {}
                        }
                    }
                    events.push(other);
                }
            }
        }
        assert!(input.is_empty(), "None means that all of the input was taken in");
    }
    events.extend(body.map(|(_, bytes)| Event::BodyPiece(bytes.freeze())));
    Decoded { events, error: decoder.finish().err() }
}

/// Bodies within frames are gathered, those behind frames streamed.
pub(crate) fn usual(message: &Message<()>, _: u64) -> Plan {
    match message {
        Message::StreamResponse { .. } | Message::UploadStream { .. } => Plan::Stream,
        _ => Plan::Unexpected,
    }
}

/// All messages of well-formed bytes that arrive at once.
#[allow(dead_code, reason = "not every test binary uses it")]
pub(crate) fn messages(bytes: &[u8]) -> Vec<Message<Bytes>> {
    let decoded = decode(&FrameLimits::default(), [bytes], usual);
    assert_eq!(decoded.error, None);
    let message = |event| if let Event::Message(message) = event { Some(message) } else { None };
    decoded.events.into_iter().filter_map(message).collect()
}
