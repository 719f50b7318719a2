//! [`Message`]: the 13 message types of the protocol and the encoding of their headers.

use bytes::{BufMut, Bytes};

use super::primitives::{FieldReader, put_byte_array, put_string};
use super::{MAX_FRAME_PAYLOAD, ProtocolError};

/// The size in bytes of the length field in front of every frame.
pub(super) const LENGTH_FIELD: usize = 8;

/// One message of the protocol (Spark's `Message.Type`).
///
/// `B` is the type of its body: [`Bytes`] for a whole message, `()` for the header alone. The
/// bodies of [`StreamResponse`](Self::StreamResponse) and [`UploadStream`](Self::UploadStream)
/// follow after the frame and are never part of the message.
///
/// ```
/// use network_common::protocol::Message;
///
/// let request = Message::ChunkFetchRequest { stream_id: 7, chunk_index: 0 };
/// assert!(request.is_request());
/// assert_eq!(request.encode()?, b"\0\0\0\0\0\0\0\x15\0\0\0\0\0\0\0\0\x07\0\0\0\0");
/// # Ok::<(), network_common::protocol::ProtocolError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields are those of Spark's message classes")]
pub enum Message<B = Bytes> {
    /// 0x00: requests one chunk.
    ChunkFetchRequest { stream_id: i64, chunk_index: i32 },
    /// 0x01: the requested chunk.
    ChunkFetchSuccess { stream_id: i64, chunk_index: i32, body: B },
    /// 0x02: the chunk cannot be served.
    ChunkFetchFailure { stream_id: i64, chunk_index: i32, error: String },
    /// 0x03: a request to the peer's RPC handler.
    RpcRequest { request_id: i64, body: B },
    /// 0x04: the success of an RPC or an upload.
    RpcResponse { request_id: i64, body: B },
    /// 0x05: the failure of an RPC, an upload or a request for merged block meta.
    RpcFailure { request_id: i64, error: String },
    /// 0x06: requests a whole stream by name.
    StreamRequest { stream_id: String },
    /// 0x07: the requested stream, whose `byte_count` bytes follow the frame.
    StreamResponse { stream_id: String, byte_count: i64 },
    /// 0x08: the stream cannot be served.
    StreamFailure { stream_id: String, error: String },
    /// 0x09: a message without a response.
    OneWayMessage { body: B },
    /// 0x0A: an RPC whose data, `byte_count` bytes, follows the frame.
    UploadStream { request_id: i64, meta: Bytes, byte_count: i64 },
    /// 0x0B: requests the chunk bitmaps of a merged shuffle block.
    MergedBlockMetaRequest(MergedBlockMetaRequest),
    /// 0x0C: the requested bitmaps; the body holds `num_chunks` of them.
    MergedBlockMetaSuccess { request_id: i64, num_chunks: i32, body: B },
}

/// A request for the chunk bitmaps of a merged shuffle block: the fields of message type 0x0B.
///
/// ```
/// use network_common::protocol::{MergedBlockMetaRequest, Message};
///
/// let app_id = "app-1".to_owned();
/// let request =
///     MergedBlockMetaRequest { request_id: 1, app_id, shuffle_id: 0, shuffle_merge_id: 0, reduce_id: 2 };
/// assert!(Message::<bytes::Bytes>::MergedBlockMetaRequest(request).is_request());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(
    clippy::exhaustive_structs,
    reason = "the wire format of a released protocol does not grow"
)]
pub struct MergedBlockMetaRequest {
    /// The id that the response repeats.
    pub request_id: i64,
    /// The application that owns the shuffle.
    pub app_id: String,
    /// The shuffle.
    pub shuffle_id: i32,
    /// The merge attempt of the shuffle.
    pub shuffle_merge_id: i32,
    /// The reduce partition.
    pub reduce_id: i32,
}

impl<B> Message<B> {
    fn message_type(&self) -> u8 {
        match self {
            Self::ChunkFetchRequest { .. } => 0x00,
            Self::ChunkFetchSuccess { .. } => 0x01,
            Self::ChunkFetchFailure { .. } => 0x02,
            Self::RpcRequest { .. } => 0x03,
            Self::RpcResponse { .. } => 0x04,
            Self::RpcFailure { .. } => 0x05,
            Self::StreamRequest { .. } => 0x06,
            Self::StreamResponse { .. } => 0x07,
            Self::StreamFailure { .. } => 0x08,
            Self::OneWayMessage { .. } => 0x09,
            Self::UploadStream { .. } => 0x0a,
            Self::MergedBlockMetaRequest(_) => 0x0b,
            Self::MergedBlockMetaSuccess { .. } => 0x0c,
        }
    }

    /// Returns whether the message is a request or a one-way message, not a response.
    #[must_use]
    pub fn is_request(&self) -> bool {
        is_request_type(self.message_type())
    }

    /// Appends the frame without its body to `out`: length, message type and header fields.
    ///
    /// `body_len` is the length in bytes of the body in the frame; 0 for types without one.
    pub fn encode_header(&self, body_len: u64, out: &mut Vec<u8>) {
        let start = out.len();
        out.put_u64(0);
        out.put_u8(self.message_type());
        // Receivers ignore this copy of the body length, but Spark's encoders write it.
        let in_frame = i32::try_from(body_len).unwrap_or(i32::MAX);
        match self {
            Self::ChunkFetchRequest { stream_id, chunk_index }
            | Self::ChunkFetchSuccess { stream_id, chunk_index, .. } => {
                out.put_i64(*stream_id);
                out.put_i32(*chunk_index);
            }
            Self::ChunkFetchFailure { stream_id, chunk_index, error } => {
                out.put_i64(*stream_id);
                out.put_i32(*chunk_index);
                put_string(error, out);
            }
            Self::RpcRequest { request_id, .. } | Self::RpcResponse { request_id, .. } => {
                out.put_i64(*request_id);
                out.put_i32(in_frame);
            }
            Self::RpcFailure { request_id, error } => {
                out.put_i64(*request_id);
                put_string(error, out);
            }
            Self::StreamRequest { stream_id } => put_string(stream_id, out),
            Self::StreamResponse { stream_id, byte_count } => {
                put_string(stream_id, out);
                out.put_i64(*byte_count);
            }
            Self::StreamFailure { stream_id, error } => {
                put_string(stream_id, out);
                put_string(error, out);
            }
            Self::OneWayMessage { .. } => out.put_i32(in_frame),
            Self::UploadStream { request_id, meta, byte_count } => {
                out.put_i64(*request_id);
                put_byte_array(meta, out);
                out.put_i64(*byte_count);
            }
            Self::MergedBlockMetaRequest(request) => {
                out.put_i64(request.request_id);
                put_string(&request.app_id, out);
                out.put_i32(request.shuffle_id);
                out.put_i32(request.shuffle_merge_id);
                out.put_i32(request.reduce_id);
            }
            Self::MergedBlockMetaSuccess { request_id, num_chunks, .. } => {
                out.put_i64(*request_id);
                out.put_i32(*num_chunks);
            }
        }
        let length = (out.len() - start) as u64 + body_len;
        out[start..start + LENGTH_FIELD].copy_from_slice(&length.to_be_bytes());
    }

    /// Returns the number of bytes in texts and meta, whose lengths vary.
    pub(crate) fn texts_len(&self) -> usize {
        match self {
            Self::StreamRequest { stream_id } | Self::StreamResponse { stream_id, .. } => {
                stream_id.len()
            }
            Self::StreamFailure { stream_id, error } => stream_id.len() + error.len(),
            Self::ChunkFetchFailure { error, .. } | Self::RpcFailure { error, .. } => error.len(),
            Self::UploadStream { meta, .. } => meta.len(),
            Self::MergedBlockMetaRequest(request) => request.app_id.len(),
            _ => 0,
        }
    }

    /// Returns the same message with another body.
    pub(crate) fn with_body<C>(self, body: C) -> Message<C> {
        match self {
            Self::ChunkFetchRequest { stream_id, chunk_index } => {
                Message::ChunkFetchRequest { stream_id, chunk_index }
            }
            Self::ChunkFetchSuccess { stream_id, chunk_index, .. } => {
                Message::ChunkFetchSuccess { stream_id, chunk_index, body }
            }
            Self::ChunkFetchFailure { stream_id, chunk_index, error } => {
                Message::ChunkFetchFailure { stream_id, chunk_index, error }
            }
            Self::RpcRequest { request_id, .. } => Message::RpcRequest { request_id, body },
            Self::RpcResponse { request_id, .. } => Message::RpcResponse { request_id, body },
            Self::RpcFailure { request_id, error } => Message::RpcFailure { request_id, error },
            Self::StreamRequest { stream_id } => Message::StreamRequest { stream_id },
            Self::StreamResponse { stream_id, byte_count } => {
                Message::StreamResponse { stream_id, byte_count }
            }
            Self::StreamFailure { stream_id, error } => Message::StreamFailure { stream_id, error },
            Self::OneWayMessage { .. } => Message::OneWayMessage { body },
            Self::UploadStream { request_id, meta, byte_count } => {
                Message::UploadStream { request_id, meta, byte_count }
            }
            Self::MergedBlockMetaRequest(request) => Message::MergedBlockMetaRequest(request),
            Self::MergedBlockMetaSuccess { request_id, num_chunks, .. } => {
                Message::MergedBlockMetaSuccess { request_id, num_chunks, body }
            }
        }
    }

    /// Decodes the payload of a frame.
    ///
    /// `body` converts the bytes behind the header fields; for types without a body they are
    /// ignored.
    pub(crate) fn decode(
        payload: &[u8],
        body: impl FnOnce(&[u8]) -> B,
    ) -> Result<Self, ProtocolError> {
        let mut reader = FieldReader::new(payload);
        let kind = reader.byte("message type")?;
        Ok(match kind {
            0x00 => Self::ChunkFetchRequest {
                stream_id: reader.long("stream id")?,
                chunk_index: reader.int("chunk index")?,
            },
            0x01 => Self::ChunkFetchSuccess {
                stream_id: reader.long("stream id")?,
                chunk_index: reader.int("chunk index")?,
                body: body(reader.rest()),
            },
            0x02 => Self::ChunkFetchFailure {
                stream_id: reader.long("stream id")?,
                chunk_index: reader.int("chunk index")?,
                error: reader.string("error text")?,
            },
            0x03 | 0x04 => {
                let request_id = reader.long("request id")?;
                reader.int("body length")?;
                if kind == 0x03 {
                    Self::RpcRequest { request_id, body: body(reader.rest()) }
                } else {
                    Self::RpcResponse { request_id, body: body(reader.rest()) }
                }
            }
            0x05 => Self::RpcFailure {
                request_id: reader.long("request id")?,
                error: reader.string("error text")?,
            },
            0x06 => Self::StreamRequest { stream_id: reader.string("stream id")? },
            0x07 => Self::StreamResponse {
                stream_id: reader.string("stream id")?,
                byte_count: reader.long("byte count")?,
            },
            0x08 => Self::StreamFailure {
                stream_id: reader.string("stream id")?,
                error: reader.string("error text")?,
            },
            0x09 => {
                reader.int("body length")?;
                Self::OneWayMessage { body: body(reader.rest()) }
            }
            0x0a => Self::UploadStream {
                request_id: reader.long("request id")?,
                meta: Bytes::copy_from_slice(reader.byte_array("upload meta")?),
                byte_count: reader.long("byte count")?,
            },
            0x0b => Self::MergedBlockMetaRequest(MergedBlockMetaRequest {
                request_id: reader.long("request id")?,
                app_id: reader.string("application id")?,
                shuffle_id: reader.int("shuffle id")?,
                shuffle_merge_id: reader.int("shuffle merge id")?,
                reduce_id: reader.int("reduce id")?,
            }),
            0x0c => Self::MergedBlockMetaSuccess {
                request_id: reader.long("request id")?,
                num_chunks: reader.int("chunk count")?,
                body: body(reader.rest()),
            },
            unknown => return Err(ProtocolError::UnknownType(unknown)),
        })
    }
}

impl Message<Bytes> {
    /// Decodes a failure from the start of its payload; the rest of its text is lost.
    pub(super) fn decode_failure_start(start: &[u8]) -> Result<Self, ProtocolError> {
        let mut reader = FieldReader::new(start);
        let kind = reader.byte("message type")?;
        let text = |mut reader: FieldReader<'_>| {
            reader.int("error text")?;
            Ok(String::from_utf8_lossy(reader.rest()).into_owned())
        };
        Ok(match kind {
            0x02 => Self::ChunkFetchFailure {
                stream_id: reader.long("stream id")?,
                chunk_index: reader.int("chunk index")?,
                error: text(reader)?,
            },
            0x05 => {
                Self::RpcFailure { request_id: reader.long("request id")?, error: text(reader)? }
            }
            0x08 => {
                Self::StreamFailure { stream_id: reader.string("stream id")?, error: text(reader)? }
            }
            other => return Err(ProtocolError::UnknownType(other)),
        })
    }
}

impl Message<()> {
    /// Returns the failure response to send instead, if the body of this response is unreadable.
    ///
    /// Returns `None` for messages other than responses with a body from the stream manager.
    pub(crate) fn into_failure(self, error: String) -> Option<Self> {
        Some(match self {
            Self::ChunkFetchSuccess { stream_id, chunk_index, .. } => {
                Self::ChunkFetchFailure { stream_id, chunk_index, error }
            }
            Self::MergedBlockMetaSuccess { request_id, .. } => {
                Self::RpcFailure { request_id, error }
            }
            Self::StreamResponse { stream_id, .. } => Self::StreamFailure { stream_id, error },
            _ => return None,
        })
    }
}

impl Message<Bytes> {
    /// Returns the whole frame in one buffer.
    ///
    /// # Errors
    /// [`ProtocolError::FrameTooLarge`] if the body does not fit into a frame.
    pub fn encode(&self) -> Result<Vec<u8>, ProtocolError> {
        let body: &[u8] = match self {
            Self::ChunkFetchSuccess { body, .. }
            | Self::RpcRequest { body, .. }
            | Self::RpcResponse { body, .. }
            | Self::OneWayMessage { body }
            | Self::MergedBlockMetaSuccess { body, .. } => body,
            _ => &[],
        };
        let mut out = Vec::with_capacity(32 + body.len());
        self.encode_header(body.len() as u64, &mut out);
        let payload = (out.len() - LENGTH_FIELD + body.len()) as u64;
        if payload > MAX_FRAME_PAYLOAD {
            return Err(ProtocolError::FrameTooLarge(i64::try_from(payload).unwrap_or(i64::MAX)));
        }
        out.extend_from_slice(body);
        Ok(out)
    }
}

/// Returns the length of message type and header in front of a body in the frame.
///
/// Returns `None` for message types without such a body.
pub(crate) fn fixed_header_len(kind: u8) -> Option<usize> {
    match kind {
        0x01 | 0x03 | 0x04 | 0x0c => Some(13),
        0x09 => Some(5),
        _ => None,
    }
}

/// Returns whether `kind` is the type of a failure, which ends with a text.
pub(crate) fn is_failure_type(kind: u8) -> bool {
    matches!(kind, 0x02 | 0x05 | 0x08)
}

/// Returns whether `kind` is the type of a request or of a one-way message.
pub(crate) fn is_request_type(kind: u8) -> bool {
    matches!(kind, 0x00 | 0x03 | 0x06 | 0x09 | 0x0a | 0x0b)
}
