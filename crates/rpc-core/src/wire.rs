//! The envelope's bytes: `proto/rpc_envelope.proto`, written and read without copying bodies more than once.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use crate::address::RpcAddress;
use crate::error::{ErrorKind, RpcError};
use crate::method::Method;

/// Generated from `proto/rpc_envelope.proto`.
pub(crate) mod proto {
    include!(concat!(env!("OUT_DIR"), "/rpc_core.envelope.rs"));
}

/// Key of `Request.body` and `Answer.value`: field number and wire type 2, length-delimited.
const REQUEST_BODY_KEY: u8 = 15 << 3 | 2;
const ANSWER_VALUE_KEY: u8 = 1 << 3 | 2;

/// A request message on its way out. What [`RpcRequest::encode`](crate::RpcRequest::encode) writes to.
#[derive(Debug)]
pub struct OutgoingBody<'a>(&'a mut BytesMut);

impl OutgoingBody<'_> {
    /// Writes `message`. To be called once.
    ///
    /// # Errors
    ///
    /// None at present; a message that is too large to travel will be one.
    pub fn message(&mut self, message: &impl Message) -> Result<(), RpcError> {
        put_message(self.0, REQUEST_BODY_KEY, message);
        Ok(())
    }
}

/// An answer that came in. What [`RpcRequest::decode_reply`](crate::RpcRequest::decode_reply) reads from.
#[derive(Debug)]
pub struct IncomingBody(pub(crate) Bytes);

impl IncomingBody {
    /// Reads a message of type `T`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Decode`] if the bytes are no `T`.
    pub fn decode<T: Message + Default>(self) -> Result<T, RpcError> {
        T::decode(self.0)
            .map_err(|e| RpcError::new(ErrorKind::Decode, format!("the answer cannot be decoded: {e}")))
    }
}

/// Protobuf lets fields come in any order, so a body can be appended to encoded fields: no copy between the two.
fn put_message(out: &mut BytesMut, key: u8, message: &impl Message) {
    let length = message.encoded_len();
    out.reserve(1 + prost::length_delimiter_len(length) + length);
    out.put_u8(key);
    // Writing to a growing buffer cannot fail.
    let _ = message.encode_length_delimited(out);
}

pub(crate) fn encode_value<T: Message>(value: &T) -> Bytes {
    let mut out = BytesMut::new();
    put_message(&mut out, ANSWER_VALUE_KEY, value);
    out.freeze()
}

pub(crate) fn encode_failure(error: &RpcError) -> Bytes {
    let kind = match error.kind() {
        ErrorKind::Panic => proto::failure::Kind::Panic,
        ErrorKind::Unanswered => proto::failure::Kind::Unanswered,
        ErrorKind::Stopped => proto::failure::Kind::Stopped,
        ErrorKind::Timeout => proto::failure::Kind::Timeout,
        _ => proto::failure::Kind::Application,
    };
    let mut causes = Vec::new();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        causes.push(cause.to_string());
        next = cause.source();
    }
    let failure = proto::Failure {
        kind: kind.into(),
        message: error.to_string(),
        causes,
        retryable: error.is_retryable(),
    };
    let answer = proto::Answer { result: Some(proto::answer::Result::Failure(failure)) };
    answer.encode_to_vec().into()
}

/// The fields of a request that are the same in all messages of one ref.
pub(crate) fn request_head(sender: Option<&RpcAddress>, incarnation: u64, endpoint: &str) -> Bytes {
    let head = proto::Request {
        sender: sender.map(ToString::to_string).unwrap_or_default(),
        incarnation,
        endpoint: endpoint.to_owned(),
        ..proto::Request::default()
    };
    head.encode_to_vec().into()
}

/// A whole request. `remaining`: how long the asker waits; none for a one-way message.
pub(crate) fn request(
    head: &[u8],
    method: Method,
    remaining: Option<Duration>,
    encode: impl FnOnce(&mut OutgoingBody<'_>) -> Result<(), RpcError>,
) -> Result<Bytes, RpcError> {
    let mut out = BytesMut::with_capacity(head.len() + method.service().len() + method.name().len() + 32);
    out.put_slice(head);
    put_text(&mut out, 4 << 3 | 2, method.service());
    put_text(&mut out, 5 << 3 | 2, method.name());
    if let Some(remaining) = remaining {
        let micros = u64::try_from(remaining.as_micros()).unwrap_or(u64::MAX);
        out.put_u8(6 << 3);
        put_varint(&mut out, micros);
    }
    encode(&mut OutgoingBody(&mut out))?;
    Ok(out.freeze())
}

fn put_text(out: &mut BytesMut, key: u8, text: &str) {
    out.put_u8(key);
    put_varint(out, text.len() as u64);
    out.put_slice(text.as_bytes());
}

fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// Takes the value out of an answer, or makes an error of the failure in it.
pub(crate) fn decode_answer(answer: Bytes, peer: &str) -> Result<IncomingBody, RpcError> {
    let answer = proto::Answer::decode(answer).map_err(|e| {
        RpcError::new(ErrorKind::Decode, format!("the answer from {peer} cannot be decoded: {e}"))
            .with_peer(peer)
    })?;
    match answer.result {
        Some(proto::answer::Result::Value(value)) => Ok(IncomingBody(value)),
        Some(proto::answer::Result::Failure(failure)) => Err(decode_failure(failure).with_peer(peer)),
        // A kind of result that only newer peers know.
        None => {
            let text = format!("the answer from {peer} has no result that this version knows");
            Err(RpcError::new(ErrorKind::Decode, text).with_peer(peer))
        }
    }
}

fn decode_failure(failure: proto::Failure) -> RpcError {
    let kind = match failure.kind() {
        proto::failure::Kind::Application => ErrorKind::Application,
        proto::failure::Kind::Panic => ErrorKind::Panic,
        proto::failure::Kind::Unanswered => ErrorKind::Unanswered,
        proto::failure::Kind::Stopped => ErrorKind::Stopped,
        proto::failure::Kind::Timeout => ErrorKind::Timeout,
    };
    // The innermost cause is the source of the one before it, and so on outwards.
    let cause = failure.causes.into_iter().rev().fold(None, |inner, text| {
        let error = RpcError::new(kind, text).from_remote();
        Some(match inner {
            Some(inner) => error.with_source(inner),
            None => error,
        })
    });
    let mut error = RpcError::new(kind, failure.message).from_remote();
    if failure.retryable {
        error = error.retryable();
    }
    match cause {
        Some(cause) => error.with_source(cause),
        None => error,
    }
}
