//! Receiving one body that is too large for, or outside of, its frame.

use std::sync::Arc;

use bytes::Bytes;

use super::frame_decoder::Event;
use super::message::Message;
use crate::buffer::BufferPool;

/// How much a socket read asks for at once, unless a body's own buffer is the target.
pub(crate) const READ_BLOCK: usize = 64 << 10;
/// From this many missing bytes on, a body is read straight into its own buffer: below, one more
/// system call costs more than the copy it saves.
const DIRECT_MIN: u64 = 32 << 10;
/// A body is given a buffer of its announced length only up to here, and only if we asked for it.
const PREALLOCATE_MAX: u64 = 64 << 20;
/// Size of the pieces in which streamed bodies are handed on.
const PIECE: u64 = 256 << 10;

#[derive(Debug)]
pub(super) struct BodyDecoder {
    /// Bytes that have not arrived yet.
    missing: u64,
    buffer: Vec<u8>,
    filled: usize,
    plan: BodyMode,
    pool: Arc<BufferPool>,
    /// Whether buffers of this size will be needed again. Those of requests start small and grow.
    recycled: bool,
}

#[derive(Debug)]
enum BodyMode {
    /// `None` once the message has been handed out.
    Collect(Option<Message<()>>),
    Stream {
        ended: bool,
    },
    Discard,
}

impl BodyDecoder {
    /// Gathers the whole body. `expected`: we asked for it, so its announced length can be trusted.
    pub(super) fn collect(
        message: Message<()>,
        length: u64,
        expected: bool,
        pool: Arc<BufferPool>,
    ) -> Self {
        let first = length.min(if expected { PREALLOCATE_MAX } else { READ_BLOCK as u64 }) as usize;
        let recycled = expected && first >= READ_BLOCK;
        let buffer = if recycled { pool.take(first) } else { vec![0; first] };
        Self {
            missing: length,
            buffer,
            filled: 0,
            plan: BodyMode::Collect(Some(message)),
            pool,
            recycled,
        }
    }

    pub(super) fn stream(length: u64, pool: Arc<BufferPool>) -> Self {
        Self {
            missing: length,
            buffer: Vec::new(),
            filled: 0,
            plan: BodyMode::Stream { ended: false },
            pool,
            recycled: true,
        }
    }

    pub(super) fn discard(length: u64, pool: Arc<BufferPool>) -> Self {
        Self {
            missing: length,
            buffer: Vec::new(),
            filled: 0,
            plan: BodyMode::Discard,
            pool,
            recycled: false,
        }
    }

    pub(super) fn missing(&self) -> u64 {
        self.missing
    }

    /// The next event of this body from `input`; `None` when more bytes are needed or the body is
    /// over.
    pub(super) fn next_event(&mut self, input: &mut &[u8]) -> Option<Event> {
        match &mut self.plan {
            BodyMode::Collect(message) => {
                while self.missing > 0 && !input.is_empty() {
                    let room = room(&mut self.buffer, self.filled, self.missing);
                    let count = room.len().min(input.len());
                    room[..count].copy_from_slice(&input[..count]);
                    *input = &input[count..];
                    self.filled += count;
                    self.missing -= count as u64;
                }
                if self.missing > 0 {
                    return None;
                }
                let message = message.take()?;
                Some(Event::Message(message.with_body(self.take_filled())))
            }
            BodyMode::Stream { ended } => {
                if self.filled > 0 {
                    return Some(Event::BodyPiece(self.take_filled()));
                }
                let count = input.len().min(usize::try_from(self.missing).unwrap_or(usize::MAX));
                if count > 0 {
                    let piece = Bytes::copy_from_slice(&input[..count]);
                    *input = &input[count..];
                    self.missing -= count as u64;
                    return Some(Event::BodyPiece(piece));
                }
                if self.missing == 0 && !*ended {
                    *ended = true;
                    return Some(Event::BodyEnd);
                }
                None
            }
            BodyMode::Discard => {
                let count = input.len().min(usize::try_from(self.missing).unwrap_or(usize::MAX));
                *input = &input[count..];
                self.missing -= count as u64;
                None
            }
        }
    }

    /// Where the socket may write body bytes directly, if that pays.
    pub(super) fn body_buf_mut(&mut self) -> Option<&mut [u8]> {
        if self.missing < DIRECT_MIN {
            return None;
        }
        match self.plan {
            BodyMode::Collect(_) => Some(room(&mut self.buffer, self.filled, self.missing)),
            BodyMode::Stream { .. } => {
                if self.buffer.is_empty() {
                    self.buffer = self.pool.take(self.missing.min(PIECE) as usize);
                }
                let end = self.buffer.len().min(PIECE as usize);
                let limit =
                    end.min(self.filled + usize::try_from(self.missing).unwrap_or(usize::MAX));
                Some(&mut self.buffer[self.filled..limit])
            }
            BodyMode::Discard => None,
        }
    }

    pub(super) fn advance_body(&mut self, count: usize) {
        self.filled += count;
        self.missing -= count as u64;
    }

    /// What has been gathered. A nearly empty pooled buffer is copied out of, so that what a user
    /// holds is what is counted.
    fn take_filled(&mut self) -> Bytes {
        let filled = std::mem::take(&mut self.filled);
        if filled * 4 < self.buffer.len() {
            return Bytes::copy_from_slice(&self.buffer[..filled]);
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        if self.recycled {
            self.pool.freeze(buffer, filled)
        } else {
            buffer.truncate(filled);
            Bytes::from(buffer)
        }
    }
}

/// Done, or cut off: a buffer that was not handed out is of use to others.
impl Drop for BodyDecoder {
    fn drop(&mut self) {
        if self.recycled {
            self.pool.recycle(std::mem::take(&mut self.buffer));
        }
    }
}

/// The free part of `buffer`, at most `missing` long; grown, at most doubled, when it is full.
fn room(buffer: &mut Vec<u8>, filled: usize, missing: u64) -> &mut [u8] {
    let wanted = filled + usize::try_from(missing).unwrap_or(usize::MAX - filled);
    if filled == buffer.len() {
        buffer.resize(wanted.min(buffer.len().max(READ_BLOCK / 2) * 2), 0);
    }
    let end = buffer.len().min(wanted);
    &mut buffer[filled..end]
}
