//! Requests that are not received: they exceed a limit, or the budget does not allow them.

use std::sync::Arc;

use bytes::Bytes;

use super::ProtocolError;
use super::body_decoder::BodyDecoder;
use super::event::Event;
use super::frame_decoder::{DecoderState, FrameDecoder, payload_length};
use super::message::{LENGTH_FIELD, MergedBlockMetaRequest, Message};
use super::primitives::FieldReader;

/// The most bytes of the name of a skipped stream request that are kept.
const MAX_SKIPPED_NAME: u64 = 256;

impl FrameDecoder {
    /// Skips a request after [`RequestTooLarge`](ProtocolError::RequestTooLarge) or
    /// [`HeaderTooLarge`](ProtocolError::HeaderTooLarge).
    ///
    /// The next event is [`Event::RequestSkipped`], or the same error if the message is a response
    /// or a chunk request. Returns false if that has happened.
    pub fn skip_request(&mut self) -> bool {
        !std::mem::replace(&mut self.is_skipping, true)
    }

    /// Decodes the header of a request that exceeds a limit, and discards the rest of its frame.
    pub(super) fn skip_frame(&mut self, input: &mut &[u8]) -> Result<Event, ProtocolError> {
        let have: &[u8] = if self.partial.is_empty() { input } else { &self.partial };
        let error = self.required_len(have).err();
        let used = Self::skipped_header_len(have).unwrap_or(have.len());
        let mut reader = FieldReader::new(have.get(..used).unwrap_or(have));
        let payload = reader.long("frame length")?.unsigned_abs() - LENGTH_FIELD as u64;
        let request = match reader.byte("message type")? {
            0x06 => {
                let length = reader.int("stream id")?;
                let mut stream_id = String::from_utf8_lossy(reader.rest()).into_owned();
                if usize::try_from(length).unwrap_or(usize::MAX) > reader.remaining() {
                    stream_id.push_str("...");
                }
                Message::StreamRequest { stream_id }
            }
            0x0b => Message::MergedBlockMetaRequest(MergedBlockMetaRequest {
                request_id: reader.long("request id")?,
                app_id: String::new(),
                shuffle_id: 0,
                shuffle_merge_id: 0,
                reduce_id: 0,
            }),
            0x03 => Message::RpcRequest { request_id: reader.long("request id")?, body: () },
            0x09 => Message::OneWayMessage { body: () },
            _ => Message::UploadStream {
                request_id: reader.long("request id")?,
                meta: Bytes::new(),
                byte_count: 0,
            },
        };
        self.consume(used, input);
        self.is_skipping = false;
        let rest = payload.saturating_sub((used - LENGTH_FIELD) as u64);
        let discard = |length| BodyDecoder::discard(length, Arc::clone(&self.pool));
        self.state = match request {
            Message::UploadStream { .. } => {
                DecoderState::SkippedMeta(discard(rest.saturating_sub(LENGTH_FIELD as u64)))
            }
            _ => DecoderState::Body(discard(rest)),
        };
        // The decoder skips only after an error.
        let error = error.unwrap_or(ProtocolError::FrameTooLarge(payload as i64));
        Ok(Event::RequestSkipped { request, error })
    }

    /// Skips the rest of an upload whose header has arrived partly.
    ///
    /// Returns `None` if nearly all of it has arrived, or if another message has.
    pub(super) fn refuse_upload(&mut self) -> Option<Event> {
        let (length, rest) = self.partial.split_first_chunk::<LENGTH_FIELD>()?;
        let payload = payload_length(*length).ok()?;
        let (0x0a, id) = rest.split_first().map(|(kind, rest)| (*kind, rest))? else { return None };
        let request_id = i64::from_be_bytes(*id.first_chunk()?);
        // Behind the meta is the length of the data.
        let missing_meta = payload.checked_sub((rest.len() + LENGTH_FIELD) as u64)?;
        let discard = BodyDecoder::discard(missing_meta, Arc::clone(&self.pool));
        self.state = DecoderState::SkippedMeta(discard);
        self.partial = Vec::new();
        let request = Message::UploadStream { request_id, meta: Bytes::new(), byte_count: 0 };
        Some(Event::MessageRefused { message: request, length: payload, start: Bytes::new() })
    }

    /// Returns the length of the header of a skipped request, or `None` if it cannot be skipped.
    pub(super) fn skipped_header_len(have: &[u8]) -> Option<usize> {
        let (length, rest) = have.split_first_chunk::<LENGTH_FIELD>()?;
        let header = match rest.first()? {
            // Message type and request id.
            0x03 | 0x0a => return Some(LENGTH_FIELD + 9),
            0x09 => return Some(LENGTH_FIELD + 1),
            // Message type, request id and the length of the name, by which the limit was exceeded.
            0x0b => 13,
            // Message type, the length of the name and its start.
            0x06 => match rest[1..].first_chunk::<4>() {
                Some(name) => 5 + u64::from(u32::from_be_bytes(*name)).min(MAX_SKIPPED_NAME),
                None => 5,
            },
            _ => return None,
        };
        Some(LENGTH_FIELD + payload_length(*length).ok()?.min(header) as usize)
    }
}
