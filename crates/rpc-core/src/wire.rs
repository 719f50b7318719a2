//! The envelope's bytes: `proto/rpc_envelope.proto`, written and read without copying bodies more than once.

use std::fmt::Display;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use tokio::time::Instant;

use crate::address::RpcAddress;
use crate::error::{ErrorKind, RpcError};
use crate::method::Method;

/// Generated from `proto/rpc_envelope.proto`.
pub(crate) mod proto {
    include!(concat!(env!("OUT_DIR"), "/rpc_core.envelope.rs"));
}

/// The name of the endpoint that lookups ask (`rpc 6`).
pub(crate) const ENDPOINT_VERIFIER: &str = "endpoint-verifier";

/// Key of `Request.body`: field number and wire type 2, length-delimited.
const REQUEST_BODY_KEY: u8 = 15 << 3 | 2;
/// Key of `Answer.value`.
const ANSWER_VALUE_KEY: u8 = 1 << 3 | 2;

/// Of an error's chain of causes so many travel. Each source is dropped by the one before it, on the stack.
const MAX_CAUSES: usize = 32;

/// A request message on its way out. What [`RpcRequest::encode`](crate::RpcRequest::encode) writes to.
#[derive(Debug)]
pub struct OutgoingBody<'a>(&'a mut BytesMut);

impl OutgoingBody<'_> {
    /// Writes `message`. To be called once.
    ///
    /// # Errors
    ///
    /// None at present.
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

/// A notice in its envelope, for a one-way message.
pub(crate) fn notice(notice: proto::notice::Notice) -> Bytes {
    let notice = proto::Notice { notice: Some(notice) };
    let mut out = BytesMut::new();
    put_message(&mut out, REQUEST_BODY_KEY, &notice);
    out.freeze()
}

/// The fields of a request that are the same in all messages of one ref.
pub(crate) fn request_head(
    sender: Option<&RpcAddress>,
    incarnation: u64,
    endpoint: &str,
    receiver_incarnation: u64,
) -> Bytes {
    let head = proto::Request {
        sender: sender.map(ToString::to_string).unwrap_or_default(),
        incarnation,
        endpoint: endpoint.to_owned(),
        receiver_incarnation,
        ..proto::Request::default()
    };
    head.encode_to_vec().into()
}

/// `proto::Request` as it is read: the texts stay slices of the frame, which saves an allocation for each of them in
/// every message. A string and bytes look alike on the wire.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct RequestView {
    #[prost(bytes = "bytes", tag = "1")]
    sender: Bytes,
    #[prost(fixed64, tag = "2")]
    pub(crate) incarnation: u64,
    #[prost(bytes = "bytes", tag = "3")]
    endpoint: Bytes,
    #[prost(bytes = "bytes", tag = "4")]
    service: Bytes,
    #[prost(bytes = "bytes", tag = "5")]
    method: Bytes,
    #[prost(uint64, tag = "6")]
    pub(crate) remaining_us: u64,
    #[prost(bytes = "bytes", tag = "7")]
    traceparent: Bytes,
    #[prost(fixed64, tag = "8")]
    pub(crate) receiver_incarnation: u64,
    #[prost(bytes = "bytes", tag = "15")]
    pub(crate) body: Bytes,
}

/// The texts of a request.
pub(crate) struct Texts<'a> {
    pub(crate) sender: &'a str,
    pub(crate) endpoint: &'a str,
    pub(crate) service: &'a str,
    pub(crate) method: &'a str,
    pub(crate) traceparent: &'a str,
}

impl RequestView {
    /// It is about the connection and not for an endpoint.
    pub(crate) fn is_notice(&self) -> bool {
        self.endpoint.is_empty()
    }

    /// Until when its asker waits, as far as is told.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.remaining_us {
            0 => None,
            micros => Instant::now().checked_add(Duration::from_micros(micros)),
        }
    }

    pub(crate) fn texts(&self) -> Result<Texts<'_>, std::str::Utf8Error> {
        Ok(Texts {
            sender: std::str::from_utf8(&self.sender)?,
            endpoint: std::str::from_utf8(&self.endpoint)?,
            service: std::str::from_utf8(&self.service)?,
            method: std::str::from_utf8(&self.method)?,
            traceparent: std::str::from_utf8(&self.traceparent)?,
        })
    }
}

/// A whole request. `remaining`: how long the asker waits; none for a one-way message, or if it waits for ever.
pub(crate) fn request(
    head: &[u8],
    method: Method,
    remaining: Option<Duration>,
    traceparent: Option<&str>,
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
    if let Some(traceparent) = traceparent {
        put_text(&mut out, 7 << 3 | 2, traceparent);
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
pub(crate) fn decode_answer(answer: Bytes, peer: &dyn Display) -> Result<IncomingBody, RpcError> {
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

    fn sample() -> Bytes {
        let head = request_head(Some(&RpcAddress::new("::1", 7077)), 0x0102_0304_0506_0708, "ep", 0x18);
        let method = Method::new("pkg.Svc", "Do");
        let remaining = Some(Duration::from_millis(300));
        request(&head, method, remaining, Some("00-1-2-01"), |body| body.message(&text("hi"))).unwrap()
    }

    /// Other versions and other implementations read and write exactly this.
    #[test]
    fn a_request_has_these_bytes() {
        let mut expected = Vec::new();
        expected.extend(b"\x0a\x0a[::1]:7077");
        expected.extend(b"\x11\x08\x07\x06\x05\x04\x03\x02\x01");
        expected.extend(b"\x1a\x02ep");
        expected.extend(b"\x41\x18\0\0\0\0\0\0\0");
        expected.extend(b"\x22\x07pkg.Svc");
        expected.extend(b"\x2a\x02Do");
        // 300 000 microseconds.
        expected.extend(b"\x30\xe0\xa7\x12");
        expected.extend(b"\x3a\x0900-1-2-01");
        expected.extend(b"\x7a\x04\x0a\x02hi");
        assert_eq!(&sample()[..], expected);
    }

    #[test]
    fn nre_03_a_request_reads_back_with_or_without_a_sender_and_content() {
        let address = RpcAddress::new("example.com", 7077);
        for (sender, content) in
            [(Some(&address), text("hi")), (None, text("hi")), (Some(&address), Text::default())]
        {
            let head = request_head(sender, 1, "ep", 0);
            let method = Method::new("pkg.Svc", "Do");
            let bytes = request(&head, method, None, None, |body| body.message(&content)).unwrap();
            let view = RequestView::decode(bytes).unwrap();
            let texts = view.texts().unwrap();
            assert_eq!(texts.sender, sender.map(ToString::to_string).unwrap_or_default());
            assert_eq!((texts.endpoint, texts.service, texts.method), ("ep", "pkg.Svc", "Do"));
            assert_eq!(Text::decode(view.body.clone()).unwrap(), content);
            assert!(view.deadline().is_none());
        }
    }

    #[test]
    fn nre_03_every_field_of_a_request_reads_back() {
        let read = proto::Request::decode(sample()).unwrap();
        let expected = proto::Request {
            sender: "[::1]:7077".to_owned(),
            incarnation: 0x0102_0304_0506_0708,
            endpoint: "ep".to_owned(),
            service: "pkg.Svc".to_owned(),
            method: "Do".to_owned(),
            remaining_us: 300_000,
            traceparent: "00-1-2-01".to_owned(),
            receiver_incarnation: 0x18,
            body: text("hi").encode_to_vec().into(),
        };
        assert_eq!(read, expected);

        let view = RequestView::decode(sample()).unwrap();
        let texts = view.texts().unwrap();
        assert_eq!((texts.sender, texts.endpoint), ("[::1]:7077", "ep"));
        assert_eq!((texts.service, texts.method, texts.traceparent), ("pkg.Svc", "Do", "00-1-2-01"));
        assert_eq!(view.receiver_incarnation, 0x18);
        assert_eq!(view.body, text("hi").encode_to_vec());
    }

    #[test]
    fn fields_of_newer_peers_are_skipped() {
        let mut bytes = sample().to_vec();
        // Field 99, a string.
        bytes.extend(b"\x9a\x06\x03new");
        assert_eq!(proto::Request::decode(&bytes[..]).unwrap().endpoint, "ep");
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
