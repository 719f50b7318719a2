/// Why bytes are not a frame or message of this protocol (wire 6). Every one of them ends the
/// connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The frame length leaves no room for a message type.
    #[error("Frame length should be positive: {0}")]
    FrameNotPositive(i64),
    /// The frame is longer than the protocol allows.
    #[error("Too large frame: {0}")]
    FrameTooLarge(i64),
    /// A request is longer than this side accepts.
    #[error("request of {size} bytes is over the limit of {limit} bytes set by {setting}")]
    RequestTooLarge {
        /// The announced size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
        /// The setting that raises it.
        setting: String,
    },
    /// The fields before the body are longer than this side accepts.
    #[error("message header of {size} bytes is over the limit of {limit} bytes")]
    HeaderTooLarge {
        /// The announced size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// No message has this type byte.
    #[error("Unknown message type: {0}")]
    UnknownType(i8),
    /// The frame ends inside a field.
    #[error("{field} needs {needed} bytes, but the frame has {available} left")]
    Truncated {
        /// The field.
        field: &'static str,
        /// Bytes it needs.
        needed: usize,
        /// Bytes that are left.
        available: usize,
    },
    /// A length inside a message is negative or longer than the message.
    #[error("{field} has length {length}, but the frame has {available} bytes left")]
    BadLength {
        /// The field.
        field: &'static str,
        /// The announced length.
        length: i32,
        /// Bytes that are left.
        available: usize,
    },
    /// A bitmap is not in RoaringBitmap's portable format.
    #[error("not a portable roaring bitmap: {0}")]
    BadBitmap(String),
    /// The target has no room left.
    #[error("encoding {field} needs {needed} bytes, but the target has {available} left")]
    Overflow {
        /// What was to be written.
        field: &'static str,
        /// Bytes it needs.
        needed: usize,
        /// Bytes that are left.
        available: usize,
    },
    /// The first bytes belong to another well-known protocol.
    #[error("this is not Spark's transport protocol: the peer speaks {0}")]
    ForeignProtocol(&'static str),
    /// The peer answered a stream that nobody asked for.
    #[error("unsolicited stream response '{0}'")]
    UnsolicitedStream(String),
    /// The connection ended inside a frame or body.
    #[error("connection ended in the middle of a message, {missing} bytes missing")]
    UnexpectedEnd {
        /// How many bytes are missing at least.
        missing: u64,
    },
}
