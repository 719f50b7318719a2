//! [`ProtocolError`], malformed input.

/// The reason why bytes are not a frame or message of this protocol.
///
/// A connection that receives such bytes is closed.
///
/// ```
/// use network_common::protocol::{FrameDecoder, ProtocolError};
///
/// let error = FrameDecoder::default().next_event(&mut &b"GET / HTTP/1.1"[..]).unwrap_err();
/// assert_eq!(error, ProtocolError::ForeignProtocol("HTTP"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The frame is too short for a message type.
    #[error("Frame length should be positive: {0}")]
    FrameNotPositive(i64),
    /// The payload of the frame is longer than [`MAX_FRAME_PAYLOAD`](super::MAX_FRAME_PAYLOAD).
    #[error("Too large frame: {0}")]
    FrameTooLarge(i64),
    /// A request is longer than [`FrameLimits::max_request`](super::FrameLimits::max_request).
    #[error("a request of {size} bytes exceeds the limit of {limit} bytes set by {setting}")]
    RequestTooLarge {
        /// The size in bytes that the frame announces.
        size: u64,
        /// The limit in bytes.
        limit: u64,
        /// The setting of the limit.
        setting: String,
    },
    /// The fields before the body are longer than 16 MiB, or a name is longer than 64 KiB.
    #[error("a message header of {size} bytes exceeds the limit of {limit} bytes")]
    HeaderTooLarge {
        /// The size in bytes that the frame announces.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The message type is unknown.
    #[error("Unknown message type: {0}")]
    UnknownType(i8),
    /// The frame ends inside a field.
    #[error("{field} needs {needed} bytes, but the frame has {available} left")]
    Truncated {
        /// The name of the field.
        field: &'static str,
        /// The number of bytes that the field needs.
        needed: usize,
        /// The number of bytes that are left.
        available: usize,
    },
    /// A length inside a message is negative or longer than the message.
    #[error("{field} has the length {length}, but the frame has {available} bytes left")]
    BadLength {
        /// The name of the field.
        field: &'static str,
        /// The length that the message announces.
        length: i32,
        /// The number of bytes that are left.
        available: usize,
    },
    /// A bitmap is not in the portable format of RoaringBitmap.
    #[error("a bitmap is not in the portable format of RoaringBitmap: {0}")]
    BadBitmap(String),
    /// The target buffer of an encoder is too small.
    #[error("encoding {field} needs {needed} bytes, but the target buffer has {available} left")]
    Overflow {
        /// The name of the field that is encoded.
        field: &'static str,
        /// The number of bytes that the field needs.
        needed: usize,
        /// The number of bytes that are left.
        available: usize,
    },
    /// The first bytes belong to another well-known protocol.
    #[error("this is not Spark's transport protocol: the peer speaks {0}")]
    ForeignProtocol(&'static str),
    /// The peer sent a response to a stream request that is not pending.
    #[error("unsolicited stream response '{0}'")]
    UnsolicitedStream(String),
    /// The connection ended within a frame or body.
    #[error("the connection ended within a message; at least {missing} bytes are missing")]
    UnexpectedEnd {
        /// The least number of bytes that are missing.
        missing: u64,
    },
}
