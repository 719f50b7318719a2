//! The envelope of a request. Every message passes here, so it is written and read without allocating.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::encoding::{
    DecodeContext, WireType, check_wire_type, decode_key, decode_varint, encode_varint, skip_field,
};
use prost::{DecodeError, Message};
use tokio::time::Instant;

use super::scratch::Scratch;
use super::{field_len, proto, put_message};
use crate::address::RpcAddress;
use crate::error::RpcError;
use crate::method::Method;

/// Key of `Request.body`: field number and wire type 2, length-delimited.
const BODY_KEY: u8 = 15 << 3 | 2;

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

/// A whole request. `remaining`: how long the asker waits; none for a one-way message, or if it waits for ever.
pub(crate) fn request(
    head: &[u8],
    method: Method,
    remaining: Option<Duration>,
    traceparent: Option<&str>,
    encode: impl FnOnce(&mut OutgoingBody<'_>) -> Result<(), RpcError>,
) -> Result<Bytes, RpcError> {
    let mut body = OutgoingBody { head, method, remaining, traceparent, out: None };
    encode(&mut body)?;
    Ok(body.out_with(0).freeze())
}

/// A notice in its envelope, for a one-way message.
pub(crate) fn notice(notice: proto::notice::Notice) -> Bytes {
    let notice = proto::Notice { notice: Some(notice) };
    let mut out = Scratch::new(field_len(&notice));
    put_message(out.bytes(), BODY_KEY, &notice);
    out.freeze()
}

/// A request message on its way out. What [`RpcRequest::encode`](crate::RpcRequest::encode) writes to.
#[derive(Debug)]
pub struct OutgoingBody<'a> {
    head: &'a [u8],
    method: Method,
    remaining: Option<Duration>,
    traceparent: Option<&'a str>,
    /// There once the length is known.
    out: Option<Scratch>,
}

impl OutgoingBody<'_> {
    /// Writes `message`. To be called once.
    ///
    /// # Errors
    ///
    /// None at present.
    pub fn message(&mut self, message: &impl Message) -> Result<(), RpcError> {
        let mut out = self.out_with(field_len(message));
        put_message(out.bytes(), BODY_KEY, message);
        self.out = Some(out);
        Ok(())
    }

    /// What was written, or else everything in front of the body, which will have `body` bytes with its key.
    fn out_with(&mut self, body: usize) -> Scratch {
        if let Some(out) = self.out.take() {
            return out;
        }
        let texts = self.method.service().len() + self.method.name().len();
        // Generous, but none of it is wasted on a second allocation: 3 keys and lengths, and a time.
        let rest = self.traceparent.map_or(0, str::len) + 3 * 4 + 11;
        let mut scratch = Scratch::new(self.head.len() + texts + rest + body);
        let out = scratch.bytes();
        out.put_slice(self.head);
        put_text(out, 4 << 3 | 2, self.method.service());
        put_text(out, 5 << 3 | 2, self.method.name());
        if let Some(remaining) = self.remaining {
            let micros = u64::try_from(remaining.as_micros()).unwrap_or(u64::MAX);
            out.put_u8(6 << 3);
            encode_varint(micros, out);
        }
        if let Some(traceparent) = self.traceparent {
            put_text(out, 7 << 3 | 2, traceparent);
        }
        scratch
    }
}

fn put_text(out: &mut BytesMut, key: u8, text: &str) {
    out.put_u8(key);
    encode_varint(text.len() as u64, out);
    out.put_slice(text.as_bytes());
}

/// What is wrong with a request's bytes.
#[derive(Debug)]
pub(crate) struct Malformed(Cow<'static, str>);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<DecodeError> for Malformed {
    fn from(error: DecodeError) -> Self {
        Self(error.to_string().into())
    }
}

/// `proto::Request` as it is read: the texts and the body stay slices of the frame.
#[derive(Debug, Default)]
pub(crate) struct Request<'a> {
    pub(crate) sender: &'a str,
    pub(crate) incarnation: u64,
    pub(crate) endpoint: &'a str,
    pub(crate) service: &'a str,
    pub(crate) method: &'a str,
    pub(super) remaining_us: u64,
    pub(crate) traceparent: &'a str,
    pub(crate) receiver_incarnation: u64,
    pub(crate) body: &'a [u8],
}

impl<'a> Request<'a> {
    /// Reads all of `message`; or only the `beginning`, which is the same in all messages of a ref to one method. Gives the
    /// bytes that are left.
    pub(super) fn read(&mut self, message: &'a [u8], beginning: bool) -> Result<&'a [u8], Malformed> {
        let mut rest = message;
        while !rest.is_empty() {
            let left = rest;
            let (field, wire_type) = decode_key(&mut rest)?;
            match field {
                1 => self.sender = text(wire_type, &mut rest)?,
                2 => self.incarnation = fixed64(wire_type, &mut rest)?,
                3 => self.endpoint = text(wire_type, &mut rest)?,
                4 => self.service = text(wire_type, &mut rest)?,
                5 => self.method = text(wire_type, &mut rest)?,
                8 => self.receiver_incarnation = fixed64(wire_type, &mut rest)?,
                _ if beginning => return Ok(left),
                6 => {
                    check_wire_type(WireType::Varint, wire_type)?;
                    self.remaining_us = decode_varint(&mut rest)?;
                }
                7 => self.traceparent = text(wire_type, &mut rest)?,
                15 => self.body = delimited(wire_type, &mut rest)?,
                _ => skip_field(wire_type, field, &mut rest, DecodeContext::default())?,
            }
        }
        Ok(rest)
    }

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
}

fn delimited<'a>(wire_type: WireType, rest: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    check_wire_type(WireType::LengthDelimited, wire_type)?;
    let length = prost::decode_length_delimiter(&mut *rest)?;
    let (field, after) = rest.split_at_checked(length).ok_or_else(|| Malformed("a field is cut".into()))?;
    *rest = after;
    Ok(field)
}

fn text<'a>(wire_type: WireType, rest: &mut &'a [u8]) -> Result<&'a str, Malformed> {
    let bytes = delimited(wire_type, rest)?;
    std::str::from_utf8(bytes).map_err(|_| Malformed("a text is not UTF-8".into()))
}

fn fixed64(wire_type: WireType, rest: &mut &[u8]) -> Result<u64, Malformed> {
    check_wire_type(WireType::SixtyFourBit, wire_type)?;
    rest.try_get_u64_le().map_err(|_| Malformed("a number is cut".into()))
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

    fn read(message: &[u8]) -> Result<Request<'_>, Malformed> {
        let mut request = Request::default();
        request.read(message, false).map(|_| request)
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
            let read = read(&bytes).unwrap();
            assert_eq!(read.sender, sender.map(ToString::to_string).unwrap_or_default());
            assert_eq!((read.endpoint, read.service, read.method), ("ep", "pkg.Svc", "Do"));
            assert_eq!(Text::decode(read.body).unwrap(), content);
            assert!(read.deadline().is_none());
        }
    }

    #[test]
    fn nre_03_every_field_of_a_request_reads_back() {
        let decoded = proto::Request::decode(sample()).unwrap();
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
        assert_eq!(decoded, expected);

        let view = sample();
        let view = read(&view).unwrap();
        assert_eq!((view.sender, view.endpoint), ("[::1]:7077", "ep"));
        assert_eq!((view.service, view.method, view.traceparent), ("pkg.Svc", "Do", "00-1-2-01"));
        assert_eq!(view.receiver_incarnation, 0x18);
        assert_eq!(view.body, text("hi").encode_to_vec());
    }

    #[test]
    fn fields_of_newer_peers_are_skipped() {
        let mut bytes = sample().to_vec();
        // Field 99, a string.
        bytes.extend(b"\x9a\x06\x03new");
        // Field 98, of 8 bytes; field 97, of 4; field 96, a number.
        bytes.extend(b"\x91\x06new-abcd\x8d\x06abcd\x80\x06\xff\x01");
        let message = Bytes::from(bytes);
        assert_eq!(read(&message).unwrap().endpoint, "ep");
        assert_eq!(proto::Request::decode(message).unwrap().endpoint, "ep");
    }

    /// Bytes from a peer are read as prost reads them.
    #[test]
    fn what_is_cut_or_changed_is_read_as_the_schema_says_or_is_an_error() {
        let whole = sample();
        for end in 0..whole.len() {
            for flipped in 0..=u8::BITS {
                let mut bytes = whole.slice(..end).to_vec();
                if let (Some(last), true) = (bytes.last_mut(), flipped < u8::BITS) {
                    *last ^= 1 << flipped;
                }
                let message = Bytes::from(bytes);
                let (read, schema) = (read(&message), proto::Request::decode(message.clone()));
                assert_eq!(read.is_ok(), schema.is_ok(), "{message:?}: {read:?} {schema:?}");
                if let (Ok(read), Ok(schema)) = (read, schema) {
                    assert_eq!((read.endpoint, read.method), (&*schema.endpoint, &*schema.method));
                    assert_eq!((read.remaining_us, read.body), (schema.remaining_us, &*schema.body));
                }
            }
        }
    }
}
