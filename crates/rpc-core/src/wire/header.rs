//! Decodes the envelope of every message from the network, without allocation.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use prost::DecodeError;
use prost::encoding::{DecodeContext, decode_key, decode_varint, skip_field};

/// A decoded `proto::RoutedMessage`. Its texts and its body are slices of the frame.
#[derive(Debug, Default)]
pub(crate) struct MessageHeader<'a> {
    pub(crate) route: u32,
    timeout_us: u64,
    pub(crate) path: &'a str,
    pub(crate) traceparent: &'a str,
    /// The name of the endpoint to which the message opens a route. Empty if it opens none.
    pub(crate) endpoint: &'a str,
    /// The kinds of credit that the message waited for, as flags.
    pub(crate) blocked_by: u32,
    pub(crate) body: &'a [u8],
}

impl<'a> MessageHeader<'a> {
    /// Decodes the envelope in a frame.
    ///
    /// # Errors
    ///
    /// [`MalformedEnvelope`] if the frame is not a valid envelope.
    pub(crate) fn decode(message: &'a [u8]) -> Result<Self, MalformedEnvelope> {
        Self::decode_fields(message, false)
    }

    /// Decodes the fields in front of the body, which is cut.
    ///
    /// # Errors
    ///
    /// [`MalformedEnvelope`] if a field in front of the body is cut, too, or is not valid.
    pub(crate) fn decode_start(start: &'a [u8]) -> Result<Self, MalformedEnvelope> {
        Self::decode_fields(start, true)
    }

    #[inline]
    fn decode_fields(message: &'a [u8], is_cut: bool) -> Result<Self, MalformedEnvelope> {
        let mut header = Self::default();
        let mut rest = message;
        // This crate writes the route first.
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
                0x7a if is_cut => return Ok(header),
                0x7a => (header.body, rest) = delimited(known)?,
                _ => skip_unknown(&mut rest)?,
            }
        }
        Ok(header)
    }

    /// Returns the timeout of an ask, if the message is an ask that has one.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        (self.timeout_us > 0).then(|| Duration::from_micros(self.timeout_us))
    }
}

/// The reason why a frame is not a valid envelope.
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

/// Reads a field of `N` bytes. Returns its value and the bytes after it.
fn fixed<T, const N: usize>(
    bytes: &[u8],
    read: impl FnOnce([u8; N]) -> T,
) -> Result<(T, &[u8]), MalformedEnvelope> {
    let (value, rest) = bytes.split_first_chunk::<N>().ok_or_else(truncated)?;
    Ok((read(*value), rest))
}

/// Reads a field with a length in front. Returns its bytes and those after it.
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

/// Reads a text. Returns it and the bytes after it.
fn text(bytes: &[u8]) -> Result<(&str, &[u8]), MalformedEnvelope> {
    let (text, rest) = delimited(bytes)?;
    let text = std::str::from_utf8(text)
        .map_err(|_| MalformedEnvelope("a text field is not UTF-8".into()))?;
    Ok((text, rest))
}

/// Skips a field of a newer version.
///
/// # Errors
///
/// [`MalformedEnvelope`] for a known field, which has another wire type then.
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
