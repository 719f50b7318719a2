use bytes::Bytes;
use prost::Message;

use super::*;
use crate::wire::proto;

fn sample() -> Bytes {
    let message = proto::RoutedMessage {
        route: 7,
        timeout_us: 300_000,
        path: "/pkg.Svc/Do".to_owned(),
        traceparent: "00-1-2-01".to_owned(),
        endpoint: "ep".to_owned(),
        blocked_by: 1,
        body: Bytes::from(vec![7; 200]),
    };
    message.encode_to_vec().into()
}

#[test]
fn unknown_fields_of_newer_peers_are_skipped() {
    let mut bytes = sample().to_vec();
    // Field 99, a string; field 98, of 8 bytes; field 97, of 4; field 96, a number.
    bytes.extend(b"\x9a\x06\x03new\x91\x06new-abcd\x8d\x06abcd\x80\x06\xff\x01");
    // Field 8, a string: reserved for metadata.
    bytes.extend(b"\x42\x03new");
    let message = Bytes::from(bytes);
    assert_eq!(MessageHeader::decode(&message).unwrap().endpoint, "ep");
    assert_eq!(proto::RoutedMessage::decode(message).unwrap().endpoint, "ep");
}

/// The decoder accepts exactly the messages that prost accepts, with the same fields.
#[test]
fn truncated_or_corrupt_envelope_decodes_like_prost() {
    let whole = sample();
    for end in 0..whole.len() {
        for flipped in 0..=u8::BITS {
            let mut bytes = whole.slice(..end).to_vec();
            if let (Some(last), true) = (bytes.last_mut(), flipped < u8::BITS) {
                *last ^= 1 << flipped;
            }
            let message = Bytes::from(bytes);
            let (read, schema) =
                (MessageHeader::decode(&message), proto::RoutedMessage::decode(message.clone()));
            assert_eq!(read.is_ok(), schema.is_ok(), "{message:?}: {read:?} {schema:?}");
            if let (Ok(read), Ok(schema)) = (read, schema) {
                assert_eq!((read.route, read.path), (schema.route, &*schema.path));
                assert_eq!(
                    (read.endpoint, read.blocked_by),
                    (&*schema.endpoint, schema.blocked_by)
                );
                assert_eq!((read.timeout_us, read.body), (schema.timeout_us, &*schema.body));
            }
        }
    }
}
