//! [`BulkMessage`], the unit of the bulk lane of the write queue.

use super::RequestKey;
use crate::buffer::{Content, ManagedBuffer};
use crate::protocol::Message;

/// A message in the bulk lane, with a body of any size.
pub(crate) struct BulkMessage {
    pub(crate) message: Message<()>,
    pub(crate) body: ManagedBuffer,
    /// The request of an upload, which fails if the data cannot be read.
    pub(crate) upload: Option<RequestKey>,
}

impl std::fmt::Debug for BulkMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BulkMessage")
            .field("message", &self.message)
            .field("body", &self.body)
            .finish()
    }
}

impl BulkMessage {
    /// Returns the bytes of memory that the queued message holds.
    ///
    /// These are the struct, a body in memory, and texts whose length the peer chooses.
    pub(super) fn memory_size(&self) -> u64 {
        let body = self.memory_body_len().unwrap_or(0);
        (size_of::<Self>() + self.message.texts_len() + body) as u64
    }

    /// Returns the length of a body in memory, or `None` if the body is in a file.
    pub(super) fn memory_body_len(&self) -> Option<usize> {
        match self.body.content() {
            Content::Memory(bytes) => Some(bytes.len()),
            Content::File(_) => None,
        }
    }

    /// Returns the number of body bytes that count into the length of the frame.
    pub(crate) fn in_frame(&self) -> u64 {
        match self.message {
            Message::ChunkFetchSuccess { .. } | Message::MergedBlockMetaSuccess { .. } => {
                self.body.len()
            }
            _ => 0,
        }
    }
}
