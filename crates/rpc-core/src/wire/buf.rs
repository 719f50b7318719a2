//! Encodes messages to endpoints. The public buffers for generated code are here, too.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::encode_varint;

use super::encode_block::{EncodeBlock, MAX_SHARED};
use crate::error::{ErrorKind, RpcError};
use crate::method::Method;

const ROUTE_KEY: u8 = 1 << 3 | 5;
const TIMEOUT_KEY: u8 = 2 << 3 | 1;
const PATH_KEY: u8 = 3 << 3 | 2;
const TRACEPARENT_KEY: u8 = 4 << 3 | 2;
const ENDPOINT_KEY: u8 = 5 << 3 | 2;
const BLOCKED_BY_KEY: u8 = 6 << 3;
pub(super) const BODY_KEY: u8 = 15 << 3 | 2;

/// The offset of the value of the route in an [`EncodedMessage`].
const ROUTE_AT: usize = 1;
/// The offset of the value of the timeout, if there is one.
const TIMEOUT_AT: usize = ROUTE_AT + 4 + 1;
/// The length of both fields with their keys.
const FIXED_LEN: usize = TIMEOUT_AT + 8;

/// The bytes of a reply from another environment.
///
/// [`RpcRequest::decode_reply`](crate::RpcRequest::decode_reply) decodes it. Generated code does it
/// like this:
///
/// ```
/// # use rpc_core::{DecodeBuf, RpcError, codegen::prost::Message};
/// fn decode_reply<T: Message + Default>(reply: DecodeBuf) -> Result<T, RpcError> {
///     reply.decode()
/// }
/// ```
#[derive(Debug)]
pub struct DecodeBuf(pub(crate) Bytes);

impl DecodeBuf {
    /// Decodes a message of type `T`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Decode`] if the bytes are not a valid `T`.
    pub fn decode<T: Message + Default>(self) -> Result<T, RpcError> {
        T::decode(self.0).map_err(|error| {
            RpcError::new(ErrorKind::Decode, "the reply cannot be decoded").with_decode_error(error)
        })
    }
}

/// The buffer for a request to another environment.
///
/// [`RpcRequest::encode`](crate::RpcRequest::encode) encodes the request into it. Generated code
/// does it like this:
///
/// ```
/// # use rpc_core::{EncodeBuf, RpcError, codegen::prost::Message};
/// fn encode(request: &impl Message, body: &mut EncodeBuf<'_>) -> Result<(), RpcError> {
///     body.put_message(request)
/// }
/// ```
#[derive(Debug)]
pub struct EncodeBuf<'a> {
    method: Method,
    has_timeout: bool,
    traceparent: Option<&'a str>,
    /// `None` until the length of the body is known.
    block: Option<EncodeBlock>,
}

impl EncodeBuf<'_> {
    /// Encodes `message`. Must be called once.
    ///
    /// # Errors
    ///
    /// None in this version.
    pub fn put_message(&mut self, message: &impl Message) -> Result<(), RpcError> {
        let len = message.encoded_len();
        let mut block = self.start(FIELD_OVERHEAD + len);
        put_message(&mut block.bytes, BODY_KEY, len, message);
        self.block = Some(block);
        Ok(())
    }

    /// Writes all fields in front of a body of `body_len` bytes.
    fn start(&self, body_len: usize) -> EncodeBlock {
        let path = self.method.path();
        let trace_len = self.traceparent.map_or(0, str::len);
        // Path and traceparent each have a key and a length of at most 5 bytes.
        let mut block = EncodeBlock::new(FIXED_LEN + path.len() + trace_len + 2 * 6 + body_len);
        let out = &mut block.bytes;
        // Route and timeout get their values when the message is pushed to a connection.
        let mut fixed = [0; FIXED_LEN];
        (fixed[0], fixed[ROUTE_AT + 4]) = (ROUTE_KEY, TIMEOUT_KEY);
        out.put_slice(&fixed[..if self.has_timeout { FIXED_LEN } else { ROUTE_AT + 4 }]);
        put_text(out, PATH_KEY, path);
        if let Some(traceparent) = self.traceparent {
            put_text(out, TRACEPARENT_KEY, traceparent);
        }
        block
    }
}

/// Encodes a message except for the values of its route and timeout.
///
/// `has_timeout` is true for an ask with a timeout.
///
/// # Errors
///
/// Those of `encode`.
pub(crate) fn encode_message(
    method: Method,
    has_timeout: bool,
    traceparent: Option<&str>,
    encode: impl FnOnce(&mut EncodeBuf<'_>) -> Result<(), RpcError>,
) -> Result<EncodedMessage, RpcError> {
    let mut body = EncodeBuf { method, has_timeout, traceparent, block: None };
    encode(&mut body)?;
    let block = body.block.take().unwrap_or_else(|| body.start(0));
    Ok(EncodedMessage { bytes: block.finish(), has_timeout })
}

/// An encoded message. Its route and timeout are set when it is pushed to a connection.
#[derive(Debug)]
pub(crate) struct EncodedMessage {
    bytes: BytesMut,
    has_timeout: bool,
}

impl EncodedMessage {
    /// The number of bytes of the message.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Moves the message to memory of its own, so that a queued message does not keep a block
    /// alive.
    pub(crate) fn detach(&mut self) {
        if self.bytes.len() <= MAX_SHARED {
            self.bytes = BytesMut::from(&self.bytes[..]);
        }
    }

    /// Reverts [`freeze`](Self::freeze), and removes all fields after the first `len` bytes.
    pub(crate) fn restore(frame: Bytes, len: usize, has_timeout: bool) -> Self {
        let mut bytes = frame.try_into_mut().unwrap_or_else(|frame| BytesMut::from(&frame[..]));
        bytes.truncate(len);
        Self { bytes, has_timeout }
    }

    /// Sets the number of the route.
    pub(crate) fn set_route(&mut self, route: u32) {
        self.bytes[ROUTE_AT..ROUTE_AT + 4].copy_from_slice(&route.to_le_bytes());
    }

    /// Sets the timeout. Has no effect on a message without one.
    pub(crate) fn set_timeout(&mut self, timeout: Duration) {
        if self.has_timeout {
            // 0 means absent.
            let micros = u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX).max(1);
            self.bytes[TIMEOUT_AT..TIMEOUT_AT + 8].copy_from_slice(&micros.to_le_bytes());
        }
    }

    /// Appends the field that opens the route. Protobuf allows any order of the fields.
    pub(crate) fn open_route(&mut self, endpoint: &str) {
        self.bytes.reserve(6 + endpoint.len());
        put_text(&mut self.bytes, ENDPOINT_KEY, endpoint);
    }

    /// Appends the kinds of credit that the message waited for, as flags.
    pub(crate) fn set_blocked_by(&mut self, blocked_by: u8) {
        self.bytes.put_slice(&[BLOCKED_BY_KEY, blocked_by]);
    }

    /// Returns the finished frame.
    pub(crate) fn freeze(self) -> Bytes {
        self.bytes.freeze()
    }
}

/// The most bytes of the key and the length in front of a field.
const FIELD_OVERHEAD: usize = 1 + 10;

/// Encodes `message` as the only field of an envelope.
pub(super) fn encode_field(key: u8, message: &impl Message) -> Bytes {
    let len = message.encoded_len();
    let mut block = EncodeBlock::new(FIELD_OVERHEAD + len);
    put_message(&mut block.bytes, key, len, message);
    block.finish().freeze()
}

/// Writes `message`, which has `len` bytes, as a field with its key and length.
fn put_message(out: &mut BytesMut, key: u8, len: usize, message: &impl Message) {
    put_key(out, key, len);
    message.encode_raw(out);
}

/// Writes the key and the length of a field.
fn put_key(out: &mut BytesMut, key: u8, len: usize) {
    if len < 0x80 {
        out.put_slice(&[key, len as u8]);
    } else {
        out.put_u8(key);
        encode_varint(len as u64, out);
    }
}

/// Writes a text as a field with its key and length.
fn put_text(out: &mut BytesMut, key: u8, text: &str) {
    put_key(out, key, text.len());
    out.put_slice(text.as_bytes());
}

#[cfg(test)]
#[path = "buf_tests.rs"]
mod tests;
