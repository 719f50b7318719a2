//! Encodes and decodes responses: the reply or the failure of an ask.

use std::fmt::Display;

use bytes::Bytes;
use prost::Message;

use super::buf::{DecodeBuf, encode_field};
use super::proto::{self, failure::Kind, response::Result as ResponseResult};
use crate::error::{ErrorKind, RpcError};
use crate::panics::catch_panic;
use crate::peer_text::{MAX_PEER_TEXT, peer_text};

/// Key of `Response.value`: field number and wire type 2, length-delimited.
const VALUE_KEY: u8 = 1 << 3 | 2;

/// The most causes in a failure. Dropping an error drops its sources recursively, so their number
/// must be limited.
const MAX_CAUSES: usize = 32;

/// The most bytes of the texts of all causes in a failure that a peer sent.
const MAX_CAUSES_LEN: usize = 4 * MAX_PEER_TEXT;

/// Encodes the response of a successful ask.
pub(crate) fn encode_reply<T: Message>(value: &T) -> Bytes {
    encode_field(VALUE_KEY, value)
}

/// Encodes the response for a request that an endpoint failed.
///
/// `error` has a kind that [`RpcError::into_handler_failure`] keeps.
pub(crate) fn encode_failure(error: &RpcError) -> Bytes {
    let kind = match error.kind() {
        ErrorKind::Panic => Kind::Panic,
        ErrorKind::NoReply => Kind::NoReply,
        ErrorKind::Stopped => Kind::Stopped,
        ErrorKind::Timeout => Kind::Timeout,
        ErrorKind::Limit => Kind::Limit,
        _ => Kind::Application,
    };
    encode(failure(kind, error))
}

/// Encodes the response for a request that no endpoint received.
pub(crate) fn encode_rejection(error: &RpcError) -> Bytes {
    encode(rejection(error))
}

/// Returns the failure for a message that no endpoint received.
pub(crate) fn rejection(error: &RpcError) -> proto::Failure {
    let kind = match error.kind() {
        ErrorKind::EndpointNotFound => Kind::EndpointNotFound,
        ErrorKind::Stopped => Kind::Stopped,
        ErrorKind::Limit => Kind::Limit,
        ErrorKind::Panic => Kind::Panic,
        _ => Kind::Rejected,
    };
    failure(kind, error)
}

/// Checks the size of a message or response to another environment.
///
/// # Errors
///
/// [`ErrorKind::Limit`] if it exceeds `max`, the value of `spark.rpc.message.maxSize`.
pub(crate) fn check_size(what: &str, bytes: usize, max: usize) -> Result<(), RpcError> {
    if bytes <= max {
        return Ok(());
    }
    let text = format!(
        "{what} has {bytes} bytes, and the limit is {max} (spark.rpc.message.maxSize): send large \
         data as chunks or streams of the transport"
    );
    Err(RpcError::new(ErrorKind::Limit, text))
}

fn encode(failure: proto::Failure) -> Bytes {
    let response = proto::Response { result: Some(ResponseResult::Failure(failure)) };
    response.encode_to_vec().into()
}

fn failure(kind: Kind, error: &RpcError) -> proto::Failure {
    let mut texts = vec![error.to_string()];
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next.filter(|_| texts.len() <= MAX_CAUSES) {
        texts.push(cause.to_string());
        next = cause.source();
    }
    // An error that wraps another one often has the same text.
    texts.dedup();
    let message = texts.remove(0);
    proto::Failure {
        kind: kind.into(),
        message,
        causes: texts,
        retryable: error.is_retryable(),
        code: error.code(),
        details: error.encoded_details().cloned(),
    }
}

/// Decodes the reply in a response.
///
/// # Errors
///
/// The error that the failure in the response describes, [`ErrorKind::Decode`], or
/// [`ErrorKind::Panic`] if `decode` panicked.
pub(crate) fn decode_reply<T>(
    response: Bytes,
    peer: &dyn Display,
    decode: impl FnOnce(DecodeBuf) -> Result<T, RpcError>,
) -> Result<T, RpcError> {
    let body = decode_response(response, peer)?;
    let decoded = catch_panic(|| decode(body)).unwrap_or_else(|panic| {
        let text = format!("RpcRequest::decode_reply panicked: {panic}");
        Err(RpcError::new(ErrorKind::Panic, text))
    });
    decoded.map_err(|error| {
        let text = format!("from {peer}: {error}");
        error.with_text(text).with_peer(peer)
    })
}

fn decode_response(response: Bytes, peer: &dyn Display) -> Result<DecodeBuf, RpcError> {
    if let Some(value) = sole_value(&response) {
        return Ok(DecodeBuf(value));
    }
    let response = proto::Response::decode(response).map_err(|error| {
        let text = format!("the response from {peer} cannot be decoded");
        RpcError::new(ErrorKind::Decode, text).with_peer(peer).with_decode_error(error)
    })?;
    match response.result {
        Some(ResponseResult::Value(value)) => Ok(DecodeBuf(value)),
        Some(ResponseResult::Failure(failure)) => Err(decode_failure(failure).with_peer(peer)),
        // A kind of result of a newer version.
        None => {
            let text = format!("the response from {peer} has no result that this version can read");
            Err(RpcError::new(ErrorKind::Decode, text).with_peer(peer))
        }
    }
}

/// Returns the value of a response without other fields, which is the usual case.
fn sole_value(response: &Bytes) -> Option<Bytes> {
    let mut rest = response.strip_prefix(&[VALUE_KEY])?;
    let len = prost::decode_length_delimiter(&mut rest).ok()?;
    (len == rest.len()).then(|| response.slice(response.len() - len..))
}

/// Returns the error that a failure describes.
pub(crate) fn decode_failure(failure: proto::Failure) -> RpcError {
    let kind = match failure.kind() {
        Kind::Application => ErrorKind::Application,
        Kind::Panic => ErrorKind::Panic,
        Kind::NoReply => ErrorKind::NoReply,
        Kind::Stopped => ErrorKind::Stopped,
        Kind::Timeout => ErrorKind::Timeout,
        Kind::EndpointNotFound => ErrorKind::EndpointNotFound,
        Kind::Rejected => ErrorKind::Rejected,
        Kind::Limit => ErrorKind::Limit,
    };
    let mut causes_len = 0;
    let causes = failure.causes.iter().take(MAX_CAUSES).map(|text| peer_text(text));
    let causes: Vec<_> = causes
        .take_while(|text| {
            causes_len += text.len();
            causes_len <= MAX_CAUSES_LEN
        })
        .collect();
    // Each cause is the source of the one before it.
    let cause = causes.into_iter().rev().fold(None, |inner, text| {
        let error = RpcError::new(kind, text).mark_remote();
        Some(match inner {
            Some(inner) => error.with_source(inner),
            None => error,
        })
    });
    let error = RpcError::new(kind, peer_text(&failure.message)).mark_remote();
    let mut error = error.with_payload(failure.code, failure.details);
    if failure.retryable {
        error = error.mark_retryable();
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
    fn responses_have_these_bytes_and_read_back() {
        let value = encode_reply(&text("yes"));
        assert_eq!(&value[..], b"\x0a\x05\x0a\x03yes");
        assert_eq!(decode_response(value, &"peer").unwrap().decode::<Text>().unwrap(), text("yes"));

        let cause = RpcError::application("inner").with_source(RpcError::application("innermost"));
        let error = RpcError::new(ErrorKind::Timeout, "outer").with_source(cause).mark_retryable();
        let failure = encode_failure(&error);
        assert_eq!(
            &failure[..],
            b"\x12\x1d\x08\x04\x12\x05outer\x1a\x05inner\x1a\x09innermost\x20\x01"
        );
        let read = decode_response(failure, &"peer").unwrap_err();
        assert_eq!((read.kind(), read.to_string().as_str()), (ErrorKind::Timeout, "outer"));
        assert!(read.is_remote() && read.is_retryable() && read.is_timeout());
        assert_eq!(read.peer(), Some("peer"));
        let inner = std::error::Error::source(&read).unwrap();
        assert_eq!(inner.to_string(), "inner");
        assert_eq!(inner.source().unwrap().to_string(), "innermost");
    }

    #[test]
    fn malformed_responses_are_errors() {
        for bytes in [&b""[..], b"\x0a\x7f", b"\xff\xff\xff\xff", b"\x9a\x06\x03new"] {
            let error = decode_response(Bytes::copy_from_slice(bytes), &"peer").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Decode);
        }
        // A kind of failure of a newer version.
        let newer = Bytes::from_static(b"\x12\x05\x08\x63\x12\x01x");
        assert_eq!(decode_response(newer, &"peer").unwrap_err().kind(), ErrorKind::Application);
    }
}
