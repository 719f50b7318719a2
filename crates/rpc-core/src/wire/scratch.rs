//! Where envelopes are written: small ones behind each other in a block of memory that is used again.

use std::cell::Cell;

use bytes::{Bytes, BytesMut};

/// An envelope that is longer gets memory of its own: one that is kept must not keep much more than itself.
const MAX_SMALL: usize = 1 << 10;
const BLOCK: usize = 4 << 10;

thread_local! {
    /// What is left of this thread's block. Once the envelopes in front of it are gone, which is when a connection has copied
    /// them, reserving takes their place. Gone itself while a thread ends, whose last words may have to be sent.
    static BLOCK_LEFT: Cell<BytesMut> = Cell::new(BytesMut::new());
}

/// An envelope on its way out.
#[derive(Debug)]
pub(super) enum Scratch {
    Small(BytesMut),
    Large(BytesMut),
}

impl Scratch {
    /// For an envelope of at most `length` bytes.
    pub(super) fn new(length: usize) -> Self {
        if length > MAX_SMALL {
            return Self::Large(BytesMut::with_capacity(length));
        }
        let mut left = BLOCK_LEFT.try_with(Cell::take).unwrap_or_default();
        if left.capacity() < length {
            left.reserve(if left.capacity() == 0 { BLOCK } else { length });
        }
        Self::Small(left)
    }

    /// Where it is written.
    pub(super) fn bytes(&mut self) -> &mut BytesMut {
        match self {
            Self::Small(bytes) | Self::Large(bytes) => bytes,
        }
    }

    pub(super) fn freeze(self) -> Bytes {
        match self {
            Self::Small(mut bytes) => {
                let envelope = bytes.split().freeze();
                let _ = BLOCK_LEFT.try_with(|left| left.set(bytes));
                envelope
            }
            Self::Large(bytes) => bytes.freeze(),
        }
    }
}

/// The same envelope, to be kept: it holds on to no block, which would be many times as long.
pub(crate) fn apart(envelope: &Bytes) -> Bytes {
    if envelope.len() > MAX_SMALL { envelope.clone() } else { Bytes::copy_from_slice(envelope) }
}
