//! Encodes notices: control messages between two environments.

use bytes::Bytes;

use super::buf::{BODY_KEY, encode_field};
use super::proto;

/// Encodes a notice as the body of a one-way message. The route is absent, which means 0.
pub(crate) fn encode_notice(notice: proto::notice::Notice) -> Bytes {
    let notice = proto::Notice { notice: Some(notice) };
    encode_field(BODY_KEY, &notice)
}
