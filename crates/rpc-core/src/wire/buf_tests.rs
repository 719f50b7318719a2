use super::*;
use crate::wire::{MessageHeader, encode_notice, proto};

#[derive(Clone, PartialEq, Message)]
struct Text {
    #[prost(string, tag = "1")]
    text: String,
}

fn text(text: &str) -> Text {
    Text { text: text.to_owned() }
}

const METHOD: Method = Method::new("/pkg.Svc/Do");

/// Returns an ask that opens its route after it waited for credit.
fn sample() -> Bytes {
    let mut message =
        encode_message(METHOD, true, Some("00-1-2-01"), |body| body.put_message(&text("hi")))
            .unwrap();
    message.set_route(0x0102_0304);
    message.set_timeout(Duration::from_millis(300));
    message.open_route("ep");
    message.set_blocked_by(3);
    message.freeze()
}

/// Other versions and implementations depend on this encoding.
#[test]
fn ask_is_encoded_as_fixed_bytes() {
    let mut expected = Vec::new();
    expected.extend(b"\x0d\x04\x03\x02\x01");
    // 300 000 microseconds.
    expected.extend(b"\x11\xe0\x93\x04\0\0\0\0\0");
    expected.extend(b"\x1a\x0b/pkg.Svc/Do");
    expected.extend(b"\x22\x0900-1-2-01");
    expected.extend(b"\x7a\x04\x0a\x02hi");
    expected.extend(b"\x2a\x02ep");
    expected.extend(b"\x30\x03");
    assert_eq!(&sample()[..], expected);
}

#[test]
fn nre_03_ask_decodes_with_every_field() {
    let decoded = proto::RoutedMessage::decode(sample()).unwrap();
    let expected = proto::RoutedMessage {
        route: 0x0102_0304,
        timeout_us: 300_000,
        path: "/pkg.Svc/Do".to_owned(),
        traceparent: "00-1-2-01".to_owned(),
        endpoint: "ep".to_owned(),
        blocked_by: 3,
        body: text("hi").encode_to_vec().into(),
    };
    assert_eq!(decoded, expected);

    let bytes = sample();
    let header = MessageHeader::decode(&bytes).unwrap();
    assert_eq!((header.route, header.path, header.endpoint), (0x0102_0304, "/pkg.Svc/Do", "ep"));
    assert_eq!((header.traceparent, header.blocked_by), ("00-1-2-01", 3));
    assert_eq!(header.timeout(), Some(Duration::from_millis(300)));
    assert_eq!(header.body, text("hi").encode_to_vec());
}

#[test]
fn nre_03_one_way_message_decodes_with_and_without_content() {
    for content in [text("hi"), Text::default()] {
        let mut message =
            encode_message(METHOD, false, None, |body| body.put_message(&content)).unwrap();
        message.set_timeout(Duration::from_secs(1));
        message.set_route(7);
        let bytes = message.freeze();
        let header = MessageHeader::decode(&bytes).unwrap();
        assert_eq!((header.route, header.path, header.timeout()), (7, "/pkg.Svc/Do", None));
        assert_eq!(Text::decode(header.body).unwrap(), content);
    }
}

#[test]
fn zero_timeout_is_sent_as_one_microsecond() {
    let mut message = encode_message(METHOD, true, None, |_| Ok(())).unwrap();
    message.set_timeout(Duration::ZERO);
    let bytes = message.freeze();
    assert_eq!(MessageHeader::decode(&bytes).unwrap().timeout(), Some(Duration::from_micros(1)));
}

#[test]
fn detached_message_does_not_keep_encode_block() {
    for len in [0, 60, 2000] {
        let content = text(&"x".repeat(len));
        let mut message =
            encode_message(METHOD, false, None, |body| body.put_message(&content)).unwrap();
        let before = message.bytes.clone();
        message.detach();
        assert_eq!(message.bytes, before);
        drop(before);
        assert!(message.freeze().is_unique(), "{len}");
    }
}

#[test]
fn notice_is_encoded_as_message_on_route_0() {
    let notice = proto::notice::Notice::Cancel(proto::Cancel { request_id: 5 });
    let bytes = encode_notice(notice.clone());
    let header = MessageHeader::decode(&bytes).unwrap();
    assert_eq!((header.route, header.path), (0, ""));
    assert_eq!(proto::Notice::decode(header.body).unwrap().notice, Some(notice));
}
