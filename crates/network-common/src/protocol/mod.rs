//! The wire format of Spark's transport: encodes and decodes messages, without I/O.
//!
//! The format is the same, byte for byte, in Spark 2.4 to 4.x. It has no version number and no
//! handshake: the first byte of a connection is the first byte of a frame.
//!
//! ```
//! use bytes::Bytes;
//! use network_common::protocol::{Event, FrameDecoder, Message};
//!
//! let request = Message::RpcRequest { request_id: 1, body: Bytes::from("abc") };
//! let frame = request.encode()?;
//! assert_eq!(frame, b"\0\0\0\0\0\0\0\x18\x03\0\0\0\0\0\0\0\x01\0\0\0\x03abc");
//!
//! let mut decoder = FrameDecoder::default();
//! assert_eq!(decoder.next_event(&mut &frame[..10])?, None);
//! assert_eq!(decoder.next_event(&mut &frame[10..])?, Some(Event::Message(request)));
//! # Ok::<(), network_common::protocol::ProtocolError>(())
//! ```

#[cfg(feature = "merged-blocks")]
mod bitmaps;
mod body_buffer;
mod body_decoder;
mod error;
mod event;
mod frame_decoder;
mod message;
mod primitives;
mod skipping;
#[cfg(test)]
#[path = "protocol_tests.rs"]
mod tests;

#[cfg(feature = "merged-blocks")]
pub use bitmaps::{put_bitmap, put_bitmap_array, read_bitmaps};
pub(crate) use body_buffer::READ_BLOCK;
pub use error::ProtocolError;
pub use event::Event;
pub use frame_decoder::{FrameDecoder, FrameLimits};
pub(crate) use frame_decoder::{MAX_STREAM_ID, TLS};
pub use message::{MergedBlockMetaRequest, Message};
pub use primitives::{FieldReader, put_byte_array, put_string};

pub use crate::conf::MAX_FRAME_PAYLOAD;
