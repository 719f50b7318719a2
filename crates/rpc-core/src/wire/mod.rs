//! The envelope's bytes: `proto/rpc_envelope.proto`, written and read without copying bodies more than once.

mod recent;
mod request;
mod scratch;

use std::fmt::Display;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

pub(crate) use self::recent::Recent;
pub use self::request::OutgoingBody;
pub(crate) use self::request::{Request, notice, request, request_head};
use self::scratch::Scratch;
use crate::error::{ErrorKind, RpcError};

/// Generated from `proto/rpc_envelope.proto`.
pub(crate) mod proto {
    include!(concat!(env!("OUT_DIR"), "/rpc_core.envelope.rs"));
}

/// The name of the endpoint that lookups ask (`rpc 6`).
pub(crate) const ENDPOINT_VERIFIER: &str = "endpoint-verifier";

/// Key of `Answer.value`: field number and wire type 2, length-delimited.
const ANSWER_VALUE_KEY: u8 = 1 << 3 | 2;

/// Of an error's chain of causes so many travel. Each source is dropped by the one before it, on the stack.
const MAX_CAUSES: usize = 32;

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

/// How long a field is, with its key and its length, that holds `message`.
fn field_len(message: &impl Message) -> usize {
    let length = message.encoded_len();
    1 + prost::length_delimiter_len(length) + length
}

/// Protobuf lets fields come in any order, so a body can be appended to encoded fields: no copy between the two.
fn put_message(out: &mut BytesMut, key: u8, message: &impl Message) {
    out.put_u8(key);
    // Writing to a growing buffer cannot fail.
    let _ = message.encode_length_delimited(out);
}

pub(crate) fn encode_value<T: Message>(value: &T) -> Bytes {
    let mut out = Scratch::new(field_len(value));
    put_message(out.bytes(), ANSWER_VALUE_KEY, value);
    out.freeze()
}

/// The answer of an endpoint that failed a request.
pub(crate) fn encode_failure(error: &RpcError) -> Bytes {
    let kind = match error.kind() {
        ErrorKind::Panic => proto::failure::Kind::Panic,
        ErrorKind::Unanswered => proto::failure::Kind::Unanswered,
        ErrorKind::Stopped => proto::failure::Kind::Stopped,
        ErrorKind::Timeout => proto::failure::Kind::Timeout,
        // The inbox's own; one that the endpoint met elsewhere is not retryable here.
        ErrorKind::Limit if error.is_retryable() => proto::failure::Kind::Limit,
        _ => proto::failure::Kind::Application,
    };
    answer(failure(kind, error))
}

/// The answer to a request that no endpoint saw.
pub(crate) fn encode_refusal(error: &RpcError) -> Bytes {
    answer(refusal(error))
}

/// Why no endpoint saw a message.
pub(crate) fn refusal(error: &RpcError) -> proto::Failure {
    let kind = match error.kind() {
        ErrorKind::EndpointNotFound => proto::failure::Kind::EndpointNotFound,
        ErrorKind::Stopped => proto::failure::Kind::Stopped,
        ErrorKind::Limit => proto::failure::Kind::Limit,
        _ => proto::failure::Kind::NotDelivered,
    };
    failure(kind, error)
}

/// Checks the size of what is to leave the process.
pub(crate) fn check_size(what: &str, bytes: usize, max: usize) -> Result<(), RpcError> {
    if bytes <= max {
        return Ok(());
    }
    let text = format!(
        "{what} has {bytes} bytes, and {max} is the limit of spark.rpc.message.maxSize: \
         large data travels as chunks or streams of the transport"
    );
    Err(RpcError::new(ErrorKind::Limit, text))
}

fn answer(failure: proto::Failure) -> Bytes {
    let answer = proto::Answer { result: Some(proto::answer::Result::Failure(failure)) };
    answer.encode_to_vec().into()
}

fn failure(kind: proto::failure::Kind, error: &RpcError) -> proto::Failure {
    let mut texts = vec![error.to_string()];
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next.filter(|_| texts.len() <= MAX_CAUSES) {
        texts.push(cause.to_string());
        next = cause.source();
    }
    // An error made from another one says the same.
    texts.dedup();
    let message = texts.remove(0);
    proto::Failure { kind: kind.into(), message, causes: texts, retryable: error.is_retryable() }
}

/// Takes the value out of an answer, or makes an error of the failure in it.
pub(crate) fn decode_answer(answer: Bytes, peer: &dyn Display) -> Result<IncomingBody, RpcError> {
    if let Some(value) = whole_value(&answer) {
        return Ok(IncomingBody(value));
    }
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

/// The value of an answer that has nothing else in it, as nearly all have.
fn whole_value(answer: &Bytes) -> Option<Bytes> {
    let mut rest = answer.strip_prefix(&[ANSWER_VALUE_KEY])?;
    let length = prost::decode_length_delimiter(&mut rest).ok()?;
    (length == rest.len()).then(|| answer.slice(answer.len() - length..))
}

pub(crate) fn decode_failure(failure: proto::Failure) -> RpcError {
    let kind = match failure.kind() {
        proto::failure::Kind::Application => ErrorKind::Application,
        proto::failure::Kind::Panic => ErrorKind::Panic,
        proto::failure::Kind::Unanswered => ErrorKind::Unanswered,
        proto::failure::Kind::Stopped => ErrorKind::Stopped,
        proto::failure::Kind::Timeout => ErrorKind::Timeout,
        proto::failure::Kind::EndpointNotFound => ErrorKind::EndpointNotFound,
        proto::failure::Kind::NotDelivered => ErrorKind::NotDelivered,
        proto::failure::Kind::Limit => ErrorKind::Limit,
    };
    // The innermost cause is the source of the one before it, and so on outwards.
    let cause = failure.causes.into_iter().take(MAX_CAUSES).rev().fold(None, |inner, text| {
        let error = RpcError::new(kind, text).reported_by_peer();
        Some(match inner {
            Some(inner) => error.with_source(inner),
            None => error,
        })
    });
    let mut error = RpcError::new(kind, failure.message).reported_by_peer();
    if failure.retryable {
        error = error.retryable();
    }
    match cause {
        Some(cause) => error.with_source(cause),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, PartialEq, Message)]
    struct Text {
        #[prost(string, tag = "1")]
        text: String,
    }

    fn text(text: &str) -> Text {
        Text { text: text.to_owned() }
    }

    #[test]
    fn answers_have_these_bytes_and_read_back() {
        let value = encode_value(&text("yes"));
        assert_eq!(&value[..], b"\x0a\x05\x0a\x03yes");
        assert_eq!(decode_answer(value, &"peer").unwrap().decode::<Text>().unwrap(), text("yes"));

        let cause = RpcError::application("inner").with_source(RpcError::application("innermost"));
        let error = RpcError::new(ErrorKind::Timeout, "outer").with_source(cause).retryable();
        let failure = encode_failure(&error);
        assert_eq!(&failure[..], b"\x12\x1d\x08\x04\x12\x05outer\x1a\x05inner\x1a\x09innermost\x20\x01");
        let read = decode_answer(failure, &"peer").unwrap_err();
        assert_eq!((read.kind(), read.to_string().as_str()), (ErrorKind::Timeout, "outer"));
        assert!(read.is_remote() && read.is_retryable() && read.is_timeout());
        assert_eq!(read.peer(), Some("peer"));
        let inner = std::error::Error::source(&read).unwrap();
        assert_eq!(inner.to_string(), "inner");
        assert_eq!(inner.source().unwrap().to_string(), "innermost");
    }

    #[test]
    fn bad_answers_are_errors() {
        for bytes in [&b""[..], b"\x0a\x7f", b"\xff\xff\xff\xff", b"\x9a\x06\x03new"] {
            let error = decode_answer(Bytes::copy_from_slice(bytes), &"peer").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Decode);
        }
        // A kind of failure that only newer peers know.
        let newer = Bytes::from_static(b"\x12\x05\x08\x63\x12\x01x");
        assert_eq!(decode_answer(newer, &"peer").unwrap_err().kind(), ErrorKind::Application);
    }
}
