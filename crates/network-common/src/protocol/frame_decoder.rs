//! [`FrameDecoder`]: turns the bytes of one direction of a connection into events.
//!
//! The connection's reader feeds it and decides for every large body how it is received.

use std::sync::Arc;

use bytes::Bytes;

use super::body_buffer::READ_BLOCK;
use super::body_decoder::BodyDecoder;
use super::event::Event;
use super::message::{LENGTH_FIELD, Message, fixed_header_len, is_failure_type, is_request_type};
use super::{MAX_FRAME_PAYLOAD, ProtocolError};
use crate::budget::{ConnectionAccount, Reservation};
use crate::buffer::{BufferPool, copy_to_bytes};

/// Payload size in bytes up to which a frame is buffered and decoded at once.
///
/// The header of a larger frame is decoded first.
const SMALL_FRAME: usize = 4 << 10;
/// The most bytes of header fields that are buffered before they are decoded.
const MAX_HEADER: u64 = 16 << 20;
/// The most bytes of the name in a request or in the response to a stream request.
pub(crate) const MAX_STREAM_ID: usize = 64 << 10;
/// The most bytes of a failure that are kept: a name and the start of a text.
const MAX_FAILURE: usize = 2 * MAX_STREAM_ID;

/// The limits of a [`FrameDecoder`].
///
/// ```
/// use network_common::protocol::{FrameDecoder, FrameLimits};
///
/// let mut limits = FrameLimits::default();
/// limits.max_request = 1 << 20;
/// let decoder = FrameDecoder::new(limits);
/// # let _ = decoder;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FrameLimits {
    /// The longest request payload in bytes.
    ///
    /// Responses have no limit of their own: this side requested them.
    pub max_request: u64,
    /// The name of the setting of `max_request`, for the error text.
    pub max_request_setting: String,
}

impl Default for FrameLimits {
    /// Returns the limits of the protocol itself.
    fn default() -> Self {
        Self {
            max_request: MAX_FRAME_PAYLOAD,
            max_request_setting: String::from("FrameLimits::max_request"),
        }
    }
}

/// Decodes the bytes of one direction of a connection into [`Event`]s.
///
/// The decoder buffers at most an incomplete header or frame of up to 4 KiB, and the body that is
/// collected. The memory for a body grows with the bytes received, not with the announced length.
/// After an error the decoder must not be used further, except by
/// [`skip_request`](Self::skip_request).
///
/// ```
/// use network_common::protocol::{Event, FrameDecoder, Message};
///
/// let frame = Message::RpcRequest { request_id: 1, body: vec![7; 10_000].into() }.encode()?;
/// let (mut decoder, mut input) = (FrameDecoder::default(), &frame[..]);
/// let Some(Event::BodyStart { length: 10_000, .. }) = decoder.next_event(&mut input)? else {
///     panic!("the header of a large frame comes first");
/// };
/// decoder.stream_body();
/// let Some(Event::BodyPiece(piece)) = decoder.next_event(&mut input)? else {
///     panic!("then the body");
/// };
/// assert_eq!(piece.len(), 10_000);
/// assert_eq!(decoder.next_event(&mut input)?, Some(Event::BodyEnd));
/// decoder.finish()?;
/// # Ok::<(), network_common::protocol::ProtocolError>(())
/// ```
#[derive(Debug)]
pub struct FrameDecoder {
    pub(super) limits: Arc<FrameLimits>,
    pub(super) pool: Arc<BufferPool>,
    /// The start of an incomplete frame.
    pub(super) partial: Vec<u8>,
    pub(super) state: DecoderState,
    /// Is true if no frame was decoded yet; malformed first bytes indicate another protocol.
    is_first_frame: bool,
    /// The next request exceeds a limit and is skipped.
    pub(super) is_skipping: bool,
    /// Counts incomplete messages in the budget of the connection.
    account: Option<Arc<ConnectionAccount>>,
    /// The bytes of `partial`, if they are many.
    partial_held: Option<Reservation>,
}

#[derive(Debug)]
pub(super) enum DecoderState {
    Header,
    AwaitingBodyMode {
        message: Message<()>,
        length: u64,
    },
    Body(BodyDecoder),
    /// The rest of a long failure, after which its message is returned.
    CutFailure {
        message: Message<Bytes>,
        rest: BodyDecoder,
    },
    /// The meta of a skipped upload, in front of the length of its data.
    SkippedMeta(BodyDecoder),
}

impl Default for FrameDecoder {
    fn default() -> Self {
        Self::new(FrameLimits::default())
    }
}

impl FrameDecoder {
    /// Returns a decoder for a new connection.
    #[must_use]
    pub fn new(limits: FrameLimits) -> Self {
        Self::with_pool(Arc::new(limits), Arc::default(), None)
    }

    /// Messages of a connection with an account are refused if its budget does not allow them.
    pub(crate) fn with_pool(
        limits: Arc<FrameLimits>,
        pool: Arc<BufferPool>,
        account: Option<Arc<ConnectionAccount>>,
    ) -> Self {
        Self {
            limits,
            pool,
            partial: Vec::new(),
            state: DecoderState::Header,
            is_first_frame: true,
            is_skipping: false,
            account,
            partial_held: None,
        }
    }

    /// Decodes the next event from the front of `input`, and advances `input` past its bytes.
    ///
    /// Returns `None` if all of `input` was consumed and more bytes are needed.
    ///
    /// # Errors
    /// The reason why the bytes are malformed.
    pub fn next_event(&mut self, input: &mut &[u8]) -> Result<Option<Event>, ProtocolError> {
        loop {
            match &mut self.state {
                DecoderState::Header => {
                    let event = self.next_frame(input)?;
                    if event.is_some() || !matches!(self.state, DecoderState::CutFailure { .. }) {
                        return Ok(event);
                    }
                }
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
                DecoderState::CutFailure { message, rest } => {
                    rest.next_event(input);
                    if rest.missing() > 0 {
                        return Ok(None);
                    }
                    let message = message.clone();
                    self.state = DecoderState::Header;
                    return Ok(Some(Event::Message(message)));
                }
                DecoderState::SkippedMeta(meta) => {
                    meta.next_event(input);
                    let count = input.len().min(LENGTH_FIELD - self.partial.len());
                    if meta.missing() > 0 {
                        return Ok(None);
                    }
                    self.partial.extend_from_slice(&input[..count]);
                    *input = &input[count..];
                    let Ok(length) = self.partial[..].try_into().map(i64::from_be_bytes) else {
                        return Ok(None);
                    };
                    self.partial = Vec::new();
                    let length = u64::try_from(length).unwrap_or_default();
                    let data = BodyDecoder::discard(length, Arc::clone(&self.pool));
                    self.state = DecoderState::Body(data);
                }
            }
        }
    }

    /// Collects the body announced by [`Event::BodyStart`] into one [`Event::Message`].
    ///
    /// If `expected` is true, a buffer of the announced length, at most 64 MiB, is allocated for
    /// it. Connections do so for chunks, whose length the program has chosen. The bodies of
    /// [`StreamResponse`](Message::StreamResponse) and [`UploadStream`](Message::UploadStream) are
    /// not part of a message: they must be streamed or discarded.
    pub fn collect_body(&mut self, expected: bool) {
        let account = self.account.clone();
        self.start_body(|message, length, pool| {
            let held = account.map(|account| account.incomplete());
            BodyDecoder::collect(message, length, expected, pool, held)
        });
    }

    /// Delivers the body announced by [`Event::BodyStart`] in pieces.
    pub fn stream_body(&mut self) {
        self.start_body(|_, length, pool| BodyDecoder::stream(length, pool));
    }

    /// Skips the body announced by [`Event::BodyStart`].
    pub fn discard_body(&mut self) {
        self.start_body(|_, length, pool| BodyDecoder::discard(length, pool));
    }

    fn start_body(
        &mut self,
        new_body: impl FnOnce(Message<()>, u64, Arc<BufferPool>) -> BodyDecoder,
    ) {
        match std::mem::replace(&mut self.state, DecoderState::Header) {
            DecoderState::AwaitingBodyMode { message, length } => {
                self.state = DecoderState::Body(new_body(message, length, Arc::clone(&self.pool)));
            }
            state => self.state = state,
        }
    }

    /// Returns the part of the body buffer into which the socket may read directly.
    ///
    /// The caller then calls [`advance_body`](Self::advance_body). `None`: the caller reads into a
    /// buffer of its own and calls [`next_event`](Self::next_event).
    pub(crate) fn body_buf_mut(&mut self) -> Option<&mut [u8]> {
        match &mut self.state {
            DecoderState::Body(body) => body.body_buf_mut(),
            _ => None,
        }
    }

    /// Returns whether bytes of a body are missing.
    pub(crate) fn is_in_body(&self) -> bool {
        matches!(self.state, DecoderState::Body(_))
    }

    /// Records that `count` bytes were written to [`body_buf_mut`](Self::body_buf_mut).
    pub(crate) fn advance_body(&mut self, count: usize) {
        if let DecoderState::Body(body) = &mut self.state {
            body.advance_body(count);
        }
    }

    /// Checks, at the end of the connection, that no frame or body is incomplete.
    ///
    /// # Errors
    /// [`ProtocolError::UnexpectedEnd`] if one is, or [`ProtocolError::ForeignProtocol`].
    pub fn finish(&self) -> Result<(), ProtocolError> {
        let missing = match &self.state {
            DecoderState::Header if self.partial.is_empty() => return Ok(()),
            DecoderState::Header if self.is_first_frame && is_tls(&self.partial) => {
                return Err(ProtocolError::ForeignProtocol(TLS));
            }
            DecoderState::Header => 1,
            DecoderState::AwaitingBodyMode { length, .. } => *length,
            DecoderState::Body(body) if body.missing() == 0 => return Ok(()),
            DecoderState::Body(body) => body.missing(),
            DecoderState::CutFailure { rest, .. } => rest.missing(),
            DecoderState::SkippedMeta(meta) => meta.missing() + LENGTH_FIELD as u64,
        };
        Err(ProtocolError::UnexpectedEnd { missing })
    }

    fn next_frame(&mut self, input: &mut &[u8]) -> Result<Option<Event>, ProtocolError> {
        loop {
            let have: &[u8] = if self.partial.is_empty() { input } else { &self.partial };
            let need = match self.required_len(have) {
                Err(error) if self.is_skipping => Self::skipped_header_len(have).ok_or(error)?,
                need => need?,
            };
            if have.len() >= need {
                break;
            }
            let count = (need - self.partial.len()).min(input.len());
            if self.partial.len() + count > READ_BLOCK
                && let Some(refused) = self.count_partial(need, count)
            {
                return Ok(Some(refused));
            }
            self.partial.extend_from_slice(&input[..count]);
            *input = &input[count..];
            if self.partial.len() < need {
                return Ok(None);
            }
        }
        self.is_first_frame = false;
        let have: &[u8] = if self.partial.is_empty() { input } else { &self.partial };
        if self.is_skipping {
            return self.skip_frame(input).map(Some);
        }
        let (event, used, rest) = decode(have)?;
        self.consume(used, input);
        if let Event::BodyStart { message, length } = &event {
            self.state =
                DecoderState::AwaitingBodyMode { message: message.clone(), length: *length };
        }
        if let (Event::Message(message), 1..) = (&event, rest) {
            let (message, rest) = (message.clone(), BodyDecoder::discard(rest, self.pool.clone()));
            self.state = DecoderState::CutFailure { message, rest };
            return Ok(None);
        }
        Ok(Some(event))
    }

    /// Advances past the `used` bytes of `input`, or of the partial frame, that were decoded.
    pub(super) fn consume(&mut self, used: usize, input: &mut &[u8]) {
        if self.partial.is_empty() {
            *input = &input[used..];
        } else {
            // It holds exactly the bytes that were decoded. An idle connection keeps no buffer.
            self.partial = Vec::new();
            self.partial_held = None;
        }
    }

    /// Counts an incomplete upload header with the next `count` of its `need` bytes.
    ///
    /// Returns the request if the budget does not allow it.
    fn count_partial(&mut self, need: usize, count: usize) -> Option<Event> {
        let account = self.account.as_ref()?;
        let held = self.partial_held.get_or_insert_with(|| account.incomplete());
        // A growing buffer is at most twice as large as its content.
        let size = (2 * (self.partial.len() + count)).min(need);
        if held.try_grow(size as u64) {
            return None;
        }
        let refused = self.refuse_upload()?;
        self.partial_held = None;
        Some(refused)
    }

    /// Returns how many bytes of the frame that starts with `have` the next step needs.
    ///
    /// Checks every limit before bytes are buffered.
    pub(super) fn required_len(&self, have: &[u8]) -> Result<usize, ProtocolError> {
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
        if payload <= SMALL_FRAME as u64 {
            return Ok(LENGTH_FIELD + payload as usize);
        }
        if let Some(header) = fixed_header_len(kind) {
            return Ok(LENGTH_FIELD + header);
        }
        if payload > MAX_HEADER {
            return Err(ProtocolError::HeaderTooLarge { size: payload, limit: MAX_HEADER });
        }
        let name_start = match kind {
            0x06..=0x08 => Some(1),
            // Behind the request id.
            0x0b => Some(9),
            _ => None,
        };
        if let Some(start) = name_start {
            let name = rest.get(start..).and_then(<[u8]>::first_chunk::<4>);
            let Some(name) = name else {
                return Ok(LENGTH_FIELD + start + 4);
            };
            let (size, limit) = (u64::from(u32::from_be_bytes(*name)), MAX_STREAM_ID as u64);
            // A longer name than the frame is found when the field is decoded.
            if size > limit && size <= payload {
                return Err(ProtocolError::HeaderTooLarge { size, limit });
            }
        }
        if is_failure_type(kind) {
            return Ok(LENGTH_FIELD + (payload as usize).min(MAX_FAILURE));
        }
        // At most MAX_HEADER, so it fits into `usize`.
        Ok(LENGTH_FIELD + payload as usize)
    }
}

/// Decodes the bytes that [`FrameDecoder::required_len`] requires.
///
/// Returns how many were used, and how many bytes of the frame are to be discarded.
fn decode(have: &[u8]) -> Result<(Event, usize, u64), ProtocolError> {
    let Some((length, rest)) = have.split_first_chunk::<LENGTH_FIELD>() else {
        return Err(ProtocolError::UnexpectedEnd { missing: LENGTH_FIELD as u64 });
    };
    let payload = payload_length(*length)?;
    let available = usize::try_from(payload).unwrap_or(usize::MAX).min(rest.len());
    let kind = rest.first().copied().unwrap_or_default();
    if let (Some(header), true) = (fixed_header_len(kind), payload > SMALL_FRAME as u64) {
        let message = Message::decode(rest.get(..header).unwrap_or(rest), |_| ())?;
        return Ok((
            Event::BodyStart { message, length: payload - header as u64 },
            LENGTH_FIELD + header,
            0,
        ));
    }
    if is_failure_type(kind) && payload > MAX_FAILURE as u64 {
        let start = rest.get(..MAX_FAILURE).unwrap_or(rest);
        let message = Message::decode_failure_start(start)?;
        let rest = payload - start.len() as u64;
        return Ok((Event::Message(message), LENGTH_FIELD + start.len(), rest));
    }
    let event = match Message::decode(&rest[..available], copy_to_bytes)? {
        message @ (Message::StreamResponse { byte_count, .. }
        | Message::UploadStream { byte_count, .. })
            if byte_count > 0 =>
        {
            Event::BodyStart { message: message.with_body(()), length: byte_count.unsigned_abs() }
        }
        message => Event::Message(message),
    };
    Ok((event, LENGTH_FIELD + available, 0))
}

pub(super) fn payload_length(field: [u8; LENGTH_FIELD]) -> Result<u64, ProtocolError> {
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

/// The name of TLS in [`ProtocolError::ForeignProtocol`].
pub(crate) const TLS: &str = "TLS";

/// Returns whether a connection begins with an alert or a handshake message of TLS.
///
/// An alert is shorter than the length field of a frame.
fn is_tls(start: &[u8]) -> bool {
    matches!(start, [0x15 | 0x16, 0x03, ..])
}

/// Recognises other protocols by the first bytes of a connection, for the error text.
fn detect_foreign_protocol(start: [u8; LENGTH_FIELD]) -> Option<ProtocolError> {
    const METHODS: [&[u8]; 8] =
        [b"GET ", b"POST ", b"PUT ", b"HEAD ", b"DELETE ", b"OPTIONS ", b"CONNECT ", b"PATCH "];
    let name =
        if METHODS.iter().any(|method| start.starts_with(method)) || start.starts_with(b"HTTP/") {
            "HTTP"
        } else if start.starts_with(b"PRI * HT") {
            "HTTP/2"
        } else if is_tls(&start) {
            TLS
        } else if start.starts_with(b"SSH-") {
            "SSH"
        } else {
            return None;
        };
    Some(ProtocolError::ForeignProtocol(name))
}
