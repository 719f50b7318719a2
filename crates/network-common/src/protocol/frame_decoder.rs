//! The frame decoder of wire 6, with the body interception of wire 5.

use std::sync::Arc;

use bytes::Bytes;

use super::body_decoder::BodyDecoder;
use super::message::{LENGTH_FIELD, Message, fixed_header_len, is_request_type};
use super::{MAX_FRAME_PAYLOAD, ProtocolError};
use crate::buffer::{BufferPool, copy_to_bytes};

/// Frames up to this size are decoded in one piece; larger ones hand their header on first.
const SMALL_FRAME: usize = 4 << 10;
/// Limit for what must be held together before it can be decoded: all fields in front of a body.
const MAX_HEADER: u64 = 16 << 20;

/// What one decoding step yields.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A whole message.
    Message(Message<Bytes>),
    /// A message whose body, `length` bytes, comes next. The caller says what shall become of it
    /// with [`FrameDecoder::collect_body`], [`stream_body`](FrameDecoder::stream_body) or
    /// [`discard_body`](FrameDecoder::discard_body); without a word it is discarded.
    BodyStart {
        /// Its header.
        message: Message<()>,
        /// Bytes of body that follow; at least 1.
        length: u64,
    },
    /// A piece of a streamed body, in order; never empty.
    BodyPiece(Bytes),
    /// The streamed body is complete.
    BodyEnd,
}

/// What a decoder accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FrameLimits {
    /// The longest request payload in bytes. Answers are not limited: they were asked for, and grow
    /// as they arrive.
    pub max_request: u64,
    /// Name of the setting behind `max_request`, for the error text.
    pub max_request_setting: String,
}

impl Default for FrameLimits {
    /// As much as the protocol allows.
    fn default() -> Self {
        Self {
            max_request: MAX_FRAME_PAYLOAD,
            max_request_setting: String::from("FrameLimits::max_request"),
        }
    }
}

/// Turns the bytes of one direction of a connection into [`Event`]s.
///
/// It holds at most the unfinished header or small frame, and the body being collected, which grows
/// as it arrives: memory follows what was received, not what was announced. After an error the
/// connection is of no more use.
#[derive(Debug)]
pub struct FrameDecoder {
    limits: Arc<FrameLimits>,
    pool: Arc<BufferPool>,
    /// The start of an unfinished frame.
    partial: Vec<u8>,
    state: DecoderState,
    /// Nothing was decoded yet: a wrong start means another protocol.
    is_first_frame: bool,
}

#[derive(Debug)]
enum DecoderState {
    Header,
    AwaitingBodyMode { message: Message<()>, length: u64 },
    Body(BodyDecoder),
}

impl Default for FrameDecoder {
    fn default() -> Self {
        Self::new(FrameLimits::default())
    }
}

impl FrameDecoder {
    /// A decoder for a new connection.
    pub fn new(limits: FrameLimits) -> Self {
        Self::with_pool(Arc::new(limits), Arc::default())
    }

    pub(crate) fn with_pool(limits: Arc<FrameLimits>, pool: Arc<BufferPool>) -> Self {
        Self {
            limits,
            pool,
            partial: Vec::new(),
            state: DecoderState::Header,
            is_first_frame: true,
        }
    }

    /// The next event from the front of `input`, which is advanced past what was used.
    /// `None`: all of `input` was taken in, and more is needed.
    ///
    /// # Errors
    /// What makes the bytes malformed (wire 6).
    pub fn next_event(&mut self, input: &mut &[u8]) -> Result<Option<Event>, ProtocolError> {
        loop {
            match &mut self.state {
                DecoderState::Header => match self.next_frame(input)? {
                    Some(event) => return Ok(Some(event)),
                    None => return Ok(None),
                },
                DecoderState::AwaitingBodyMode { .. } => self.discard_body(),
                DecoderState::Body(body) => {
                    let event = body.next_event(input);
                    if matches!(event, Some(Event::BodyEnd | Event::Message(_)))
                        || (event.is_none() && body.missing() == 0)
                    {
                        self.state = DecoderState::Header;
                    }
                    if event.is_some() {
                        return Ok(event);
                    }
                    if input.is_empty() {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Gather the announced body and yield it as one message. `expected`: this side asked for it,
    /// so that a buffer of the announced length may be reserved for it. Only for bodies that are
    /// part of their message: those of [`StreamResponse`](Message::StreamResponse) and
    /// [`UploadStream`](Message::UploadStream) would be gathered for nothing.
    pub fn collect_body(&mut self, expected: bool) {
        self.start_body(|message, length, pool| {
            BodyDecoder::collect(message, length, expected, pool)
        });
    }

    /// Yield the announced body in pieces.
    pub fn stream_body(&mut self) {
        self.start_body(|_, length, pool| BodyDecoder::stream(length, pool));
    }

    /// Skip the announced body.
    pub fn discard_body(&mut self) {
        self.start_body(|_, length, pool| BodyDecoder::discard(length, pool));
    }

    fn start_body(&mut self, plan: impl FnOnce(Message<()>, u64, Arc<BufferPool>) -> BodyDecoder) {
        match std::mem::replace(&mut self.state, DecoderState::Header) {
            DecoderState::AwaitingBodyMode { message, length } => {
                self.state = DecoderState::Body(plan(message, length, Arc::clone(&self.pool)));
            }
            decided => self.state = decided,
        }
    }

    /// Where the socket may write the next bytes directly; [`direct_filled`](Self::direct_filled)
    /// must be told. `None`: read elsewhere and call [`next_event`](Self::next_event).
    pub(crate) fn body_buf_mut(&mut self) -> Option<&mut [u8]> {
        match &mut self.state {
            DecoderState::Body(body) => body.body_buf_mut(),
            _ => None,
        }
    }

    /// Whether some of a body is still to come.
    pub(crate) fn is_in_body(&self) -> bool {
        matches!(self.state, DecoderState::Body(_))
    }

    /// `count` bytes were written to the front of what [`direct`](Self::direct) returned.
    pub(crate) fn advance_body(&mut self, count: usize) {
        if let DecoderState::Body(body) = &mut self.state {
            body.advance_body(count);
        }
    }

    /// To be called when the connection ends.
    ///
    /// # Errors
    /// [`ProtocolError::UnexpectedEnd`] if that is in the middle of something.
    pub fn finish(&self) -> Result<(), ProtocolError> {
        let missing = match &self.state {
            DecoderState::Header if self.partial.is_empty() => return Ok(()),
            DecoderState::Header => 1,
            DecoderState::AwaitingBodyMode { length, .. } => *length,
            DecoderState::Body(body) if body.missing() == 0 => return Ok(()),
            DecoderState::Body(body) => body.missing(),
        };
        Err(ProtocolError::UnexpectedEnd { missing })
    }

    fn next_frame(&mut self, input: &mut &[u8]) -> Result<Option<Event>, ProtocolError> {
        loop {
            let have: &[u8] = if self.partial.is_empty() { input } else { &self.partial };
            let need = self.required_len(have)?;
            if have.len() >= need {
                break;
            }
            let count = (need - self.partial.len()).min(input.len());
            self.partial.extend_from_slice(&input[..count]);
            *input = &input[count..];
            if self.partial.len() < need {
                return Ok(None);
            }
        }
        self.is_first_frame = false;
        let from_input = self.partial.is_empty();
        let have: &[u8] = if from_input { input } else { &self.partial };
        let (event, used) = decode(have)?;
        if from_input {
            *input = &input[used..];
        } else {
            // Topped up to exactly what was needed, so nothing is left in it; an idle connection
            // keeps no buffer.
            self.partial = Vec::new();
        }
        if let Event::BodyStart { message, length } = &event {
            self.state =
                DecoderState::AwaitingBodyMode { message: message.clone(), length: *length };
        }
        Ok(Some(event))
    }

    /// How many bytes of the frame that starts with `have` are needed for the next step. Every
    /// limit is checked here, before anything is held on to.
    fn required_len(&self, have: &[u8]) -> Result<usize, ProtocolError> {
        let Some((length, rest)) = have.split_first_chunk::<LENGTH_FIELD>() else {
            return Ok(LENGTH_FIELD);
        };
        let payload = match payload_length(*length) {
            Ok(payload) => payload,
            Err(error) => {
                return Err(if self.is_first_frame {
                    detect_foreign_protocol(*length).unwrap_or(error)
                } else {
                    error
                });
            }
        };
        let Some(&kind) = rest.first() else {
            return Ok(LENGTH_FIELD + 1);
        };
        if kind > 0x0c {
            return Err(ProtocolError::UnknownType(i8::from_be_bytes([kind])));
        }
        if is_request_type(kind) && payload > self.limits.max_request {
            return Err(ProtocolError::RequestTooLarge {
                size: payload,
                limit: self.limits.max_request,
                setting: self.limits.max_request_setting.clone(),
            });
        }
        match fixed_header_len(kind) {
            Some(head) if payload > SMALL_FRAME as u64 => Ok(LENGTH_FIELD + head),
            None if payload > MAX_HEADER => {
                Err(ProtocolError::HeaderTooLarge { size: payload, limit: MAX_HEADER })
            }
            // At most MAX_HEAD, so it fits.
            _ => Ok(LENGTH_FIELD + payload as usize),
        }
    }
}

/// Decodes what [`FrameDecoder::required`] asked for; returns the bytes used.
fn decode(have: &[u8]) -> Result<(Event, usize), ProtocolError> {
    let Some((length, rest)) = have.split_first_chunk::<LENGTH_FIELD>() else {
        return Err(ProtocolError::UnexpectedEnd { missing: LENGTH_FIELD as u64 });
    };
    let payload = payload_length(*length)?;
    let in_hand = usize::try_from(payload).unwrap_or(usize::MAX).min(rest.len());
    let kind = rest.first().copied().unwrap_or_default();
    if let (Some(head), true) = (fixed_header_len(kind), payload > SMALL_FRAME as u64) {
        let message = Message::decode(rest.get(..head).unwrap_or(rest), |_| ())?;
        return Ok((
            Event::BodyStart { message, length: payload - head as u64 },
            LENGTH_FIELD + head,
        ));
    }
    let event = match Message::decode(&rest[..in_hand], copy_to_bytes)? {
        message @ (Message::StreamResponse { byte_count, .. }
        | Message::UploadStream { byte_count, .. })
            if byte_count > 0 =>
        {
            Event::BodyStart { message: message.with_body(()), length: byte_count.unsigned_abs() }
        }
        message => Event::Message(message),
    };
    Ok((event, LENGTH_FIELD + in_hand))
}

fn payload_length(field: [u8; LENGTH_FIELD]) -> Result<u64, ProtocolError> {
    let length = i64::from_be_bytes(field);
    let payload = length.wrapping_sub(LENGTH_FIELD as i64);
    if length < 0 || payload <= 0 {
        return Err(ProtocolError::FrameNotPositive(payload));
    }
    match payload.unsigned_abs() {
        payload if payload <= MAX_FRAME_PAYLOAD => Ok(payload),
        _ => Err(ProtocolError::FrameTooLarge(payload)),
    }
}

/// Protocols whose first bytes are seen on a wrong port, so that the error can name them.
fn detect_foreign_protocol(start: [u8; LENGTH_FIELD]) -> Option<ProtocolError> {
    const METHODS: [&[u8]; 8] =
        [b"GET ", b"POST ", b"PUT ", b"HEAD ", b"DELETE ", b"OPTIONS ", b"CONNECT ", b"PATCH "];
    let name =
        if METHODS.iter().any(|method| start.starts_with(method)) || start.starts_with(b"HTTP/") {
            "HTTP"
        } else if start.starts_with(b"PRI * HT") {
            "HTTP/2"
        } else if start.starts_with(&[0x16, 0x03]) {
            "TLS"
        } else if start.starts_with(b"SSH-") {
            "SSH"
        } else {
            return None;
        };
    Some(ProtocolError::ForeignProtocol(name))
}
