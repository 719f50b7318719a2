//! Notices: control messages between two environments.

use bytes::Bytes;
use prost::Message;

use super::buf::{BODY_KEY, FIELD_OVERHEAD, put_message};
use super::encode_block::EncodeBlock;
use super::proto;

/// Writes a notice as the body of a one-way message. The route is absent, which means 0.
pub(crate) fn encode_notice(notice: proto::notice::Notice) -> Bytes {
    let notice = proto::Notice { notice: Some(notice) };
    let len = notice.encoded_len();
    let mut block = EncodeBlock::new(FIELD_OVERHEAD + len);
    put_message(block.bytes_mut(), BODY_KEY, len, &notice);
    block.finish().freeze()
}
