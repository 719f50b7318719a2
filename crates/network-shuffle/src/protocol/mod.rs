//! The messages of Spark's block transfer protocol, without I/O.
//!
//! A message is the body of an RPC or one-way message, or the meta of an upload. Its first byte is
//! its type; the fields follow, big-endian and with length-prefixed strings. The format is that of
//! `BlockTransferMessage` in Spark 2.4 to 4.3; later releases only added types.
//!
//! ```
//! use network_shuffle::protocol::BlockTransferMessage;
//!
//! let handle = BlockTransferMessage::StreamHandle { stream_id: 0x1234, num_chunks: 3 };
//! assert_eq!(handle.encode()[..], *b"\x03\0\0\0\0\0\0\x12\x34\0\0\0\x03");
//! assert_eq!(BlockTransferMessage::decode(&handle.encode())?, handle);
//! # Ok::<(), network_common::protocol::ProtocolError>(())
//! ```

mod block_id;
mod decode;
mod encode;
mod lists;
mod message;

pub use block_id::{BlockId, BlockIdError};
#[cfg(feature = "service")]
pub(crate) use lists::IntCursor;
pub use lists::{IntLists, StringList};
pub use message::{BlockTransferMessage, CorruptionCause, ExecutorShuffleInfo, PushReturnCode};
