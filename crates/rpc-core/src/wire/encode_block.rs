//! Memory for envelopes: one block for each thread, shared by consecutive small envelopes.

use std::cell::Cell;

use bytes::BytesMut;

/// A longer envelope gets memory of its own, so that a stored envelope keeps little else alive.
pub(super) const MAX_SHARED: usize = 1 << 10;
/// The size of a block: 4 KiB.
const BLOCK: usize = 4 << 10;

thread_local! {
    /// The unused rest of this thread's block. `reserve` reuses the front of the block when all
    /// envelopes in it have been dropped, which happens when their connection has copied them.
    static BLOCK_REST: Cell<BytesMut> = Cell::new(BytesMut::new());
}

/// The memory that one envelope is written to.
#[derive(Debug)]
pub(super) struct EncodeBlock {
    pub(super) bytes: BytesMut,
    is_shared: bool,
}

impl EncodeBlock {
    /// Returns memory for an envelope of at most `len` bytes.
    pub(super) fn new(len: usize) -> Self {
        if len > MAX_SHARED {
            return Self { bytes: BytesMut::with_capacity(len), is_shared: false };
        }
        // The thread local is inaccessible during its destruction, when messages may still be sent.
        let mut bytes = BLOCK_REST.try_with(Cell::take).unwrap_or_default();
        if bytes.capacity() < len {
            bytes.reserve(if bytes.capacity() == 0 { BLOCK } else { len });
        }
        Self { bytes, is_shared: true }
    }

    /// Returns the written bytes, and stores the rest of the block for the next envelope.
    pub(super) fn finish(mut self) -> BytesMut {
        if self.is_shared {
            let written = self.bytes.split();
            let _ = BLOCK_REST.try_with(|rest| rest.set(self.bytes));
            return written;
        }
        self.bytes
    }
}
