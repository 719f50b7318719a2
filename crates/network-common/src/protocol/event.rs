//! [`Event`], the output of the frame decoder.

use bytes::Bytes;

use super::ProtocolError;
use super::message::Message;

/// An event that a [`FrameDecoder`](super::FrameDecoder) returns; see there for an example.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A whole message.
    Message(Message<Bytes>),
    /// The header of a message whose body follows.
    ///
    /// The caller selects how the body is received, with
    /// [`collect_body`](super::FrameDecoder::collect_body),
    /// [`stream_body`](super::FrameDecoder::stream_body) or
    /// [`discard_body`](super::FrameDecoder::discard_body). Without a selection the body is
    /// discarded.
    BodyStart {
        /// The header.
        message: Message<()>,
        /// The length of the body in bytes; at least 1.
        length: u64,
    },
    /// The next piece of a streamed body; never empty.
    BodyPiece(Bytes),
    /// The streamed body is complete.
    BodyEnd,
    /// A message that a connection does not receive, because its budget does not allow it.
    ///
    /// A decoder that does not belong to a connection never returns it. The rest of the message is
    /// skipped.
    MessageRefused {
        /// The header; of an upload, without its meta and data.
        message: Message<()>,
        /// The length of the body in bytes; of an upload, that of its header.
        length: u64,
        /// The first bytes of the body, at most 4 KiB; none of an upload.
        start: Bytes,
    },
    /// The header of a request that [`skip_request`](super::FrameDecoder::skip_request) skips.
    RequestSkipped {
        /// The header: an RPC, a one-way message, an upload without its meta and data, a stream
        /// request whose name is cut, or a merged block meta request with only its id.
        request: Message<()>,
        /// The limit that the request exceeds.
        error: ProtocolError,
    },
}
