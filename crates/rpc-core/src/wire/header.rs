//! Reading the envelope of a message. Every message passes here, so nothing is allocated.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use prost::DecodeError;
use prost::encoding::{DecodeContext, decode_key, decode_varint, skip_field};

/// `proto::RoutedMessage` as it is read: texts and the body are slices of the frame.
#[derive(Debug, Default)]
pub(crate) struct MessageHeader<'a> {
    pub(crate) route: u32,
    timeout_us: u64,
    pub(crate) path: &'a str,
    pub(crate) traceparent: &'a str,
    /// The name of the endpoint to which the message opens a route; otherwise empty.
    pub(crate) endpoint: &'a str,
    pub(crate) blocked_by: u32,
    pub(crate) body: &'a [u8],
}

impl<'a> MessageHeader<'a> {
    pub(crate) fn decode(message: &'a [u8]) -> Result<Self, MalformedEnvelope> {
        let mut header = Self::default();
        let mut rest = message;
        // How this crate begins a message.
        if let [0x0d, a, b, c, d, after @ ..] = message {
            header.route = u32::from_le_bytes([*a, *b, *c, *d]);
            rest = after;
        }
        // Keys of known fields have one byte: the field number and the wire type.
        while let Some((key, after)) = rest.split_first() {
            let known = after;
            match key {
                0x0d => (header.route, rest) = fixed(known, u32::from_le_bytes)?,
                0x11 => (header.timeout_us, rest) = fixed(known, u64::from_le_bytes)?,
                0x1a => (header.path, rest) = text(known)?,
                0x22 => (header.traceparent, rest) = text(known)?,
                0x2a => (header.endpoint, rest) = text(known)?,
                0x30 => {
                    rest = known;
                    header.blocked_by = decode_varint(&mut rest)? as u32;
                }
                0x7a => (header.body, rest) = delimited(known)?,
                _ => skip_unknown(&mut rest)?,
            }
        }
        Ok(header)
    }

    /// How long the caller waits from now; `None`: forever, or it is a one-way message.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        (self.timeout_us > 0).then(|| Duration::from_micros(self.timeout_us))
    }
}

/// Why the bytes of a message are no envelope.
#[derive(Debug)]
pub(crate) struct MalformedEnvelope(Cow<'static, str>);

impl fmt::Display for MalformedEnvelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<DecodeError> for MalformedEnvelope {
    fn from(error: DecodeError) -> Self {
        Self(error.to_string().into())
    }
}

#[cold]
fn truncated() -> MalformedEnvelope {
    MalformedEnvelope("a field is truncated".into())
}

fn fixed<T, const N: usize>(
    bytes: &[u8],
    read: impl FnOnce([u8; N]) -> T,
) -> Result<(T, &[u8]), MalformedEnvelope> {
    let (value, rest) = bytes.split_first_chunk::<N>().ok_or_else(truncated)?;
    Ok((read(*value), rest))
}

fn delimited(bytes: &[u8]) -> Result<(&[u8], &[u8]), MalformedEnvelope> {
    let (len, rest) = match bytes.split_first() {
        Some((len @ ..0x80, rest)) => (usize::from(*len), rest),
        _ => {
            let mut rest = bytes;
            (prost::decode_length_delimiter(&mut rest)?, rest)
        }
    };
    rest.split_at_checked(len).ok_or_else(truncated)
}

fn text(bytes: &[u8]) -> Result<(&str, &[u8]), MalformedEnvelope> {
    let (text, rest) = delimited(bytes)?;
    let text =
        std::str::from_utf8(text).map_err(|_| MalformedEnvelope("a text is not UTF-8".into()))?;
    Ok((text, rest))
}

/// Skips a field of a newer peer, or a known field with another wire type, which is an error.
#[cold]
fn skip_unknown(rest: &mut &[u8]) -> Result<(), MalformedEnvelope> {
    let (field, wire_type) = decode_key(rest)?;
    if matches!(field, 1..=6 | 15) {
        return Err(MalformedEnvelope(format!("field {field} has wire type {wire_type:?}").into()));
    }
    skip_field(wire_type, field, rest, DecodeContext::default())?;
    Ok(())
}

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
