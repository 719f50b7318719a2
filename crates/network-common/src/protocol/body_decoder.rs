//! [`BodyDecoder`]: receives one body, collected, in pieces, or discarded.
//!
//! [`FrameDecoder`](super::FrameDecoder) uses it for bodies of large frames and those that follow a
//! frame.

use std::sync::Arc;

use bytes::Bytes;

use super::event::Event;
use super::message::Message;
use crate::budget::Reservation;
use crate::buffer::BufferPool;

/// The size in bytes of a socket read that does not go into the buffer of a body.
pub(crate) const READ_BLOCK: usize = 64 << 10;
/// The missing bytes from which on the socket is read directly into the buffer of the body.
///
/// Below, the additional system call costs more than the copy that it saves.
const DIRECT_MIN: u64 = 32 << 10;
/// The most bytes reserved for a body because of its announced length, if this side requested it.
const PREALLOCATE_MAX: u64 = 64 << 20;
/// The most bytes by which the length of a buffer grows at once.
const GROWTH: usize = 1 << 20;
/// The most bytes of a refused request that are kept.
const MAX_REFUSED_START: usize = 4 << 10;
/// The largest piece of a streamed body in bytes.
const PIECE: u64 = 256 << 10;

#[derive(Debug)]
pub(super) struct BodyDecoder {
    /// The number of bytes that have not arrived yet.
    missing: u64,
    buffer: Vec<u8>,
    filled: usize,
    mode: BodyMode,
    pool: Arc<BufferPool>,
    /// Is true if the buffer comes from the pool and returns there.
    is_pooled: bool,
    /// Counts the buffer of a request in the budget, beyond the first 64 KiB.
    held: Option<Reservation>,
}

#[derive(Debug)]
enum BodyMode {
    /// `None` once the message has been returned.
    Collect(Option<Message<()>>),
    /// The budget does not allow the rest; the start and the length are reported.
    Refused(Option<Message<()>>, u64, Bytes),
    Stream {
        ended: bool,
    },
    Discard,
}

impl BodyDecoder {
    /// Returns a decoder that collects the whole body.
    ///
    /// If this side requested the body, `expected` is true, and its length is trusted.
    pub(super) fn collect(
        message: Message<()>,
        length: u64,
        expected: bool,
        pool: Arc<BufferPool>,
        held: Option<Reservation>,
    ) -> Self {
        let first = length.min(if expected { PREALLOCATE_MAX } else { READ_BLOCK as u64 }) as usize;
        let is_pooled = expected && first >= READ_BLOCK;
        let buffer = if is_pooled { pool.take(first) } else { vec![0; first] };
        Self {
            missing: length,
            buffer,
            filled: 0,
            mode: BodyMode::Collect(Some(message)),
            pool,
            is_pooled,
            held,
        }
    }

    /// Returns a decoder that delivers the body in pieces.
    pub(super) fn stream(length: u64, pool: Arc<BufferPool>) -> Self {
        Self {
            missing: length,
            buffer: Vec::new(),
            filled: 0,
            mode: BodyMode::Stream { ended: false },
            pool,
            is_pooled: true,
            held: None,
        }
    }

    /// Returns a decoder that skips the body.
    pub(super) fn discard(length: u64, pool: Arc<BufferPool>) -> Self {
        Self {
            missing: length,
            buffer: Vec::new(),
            filled: 0,
            mode: BodyMode::Discard,
            pool,
            is_pooled: false,
            held: None,
        }
    }

    /// Returns the number of bytes that have not arrived yet.
    pub(super) fn missing(&self) -> u64 {
        self.missing
    }

    /// Decodes the next event of this body from `input`.
    ///
    /// Returns `None` if more bytes are needed or the body is complete.
    pub(super) fn next_event(&mut self, input: &mut &[u8]) -> Option<Event> {
        match &mut self.mode {
            BodyMode::Collect(message) => {
                while self.missing > 0 && !input.is_empty() {
                    if !is_allowed(&self.buffer, self.filled, self.missing, &mut self.held) {
                        self.refuse();
                        return self.next_event(input);
                    }
                    let free = free_part(&mut self.buffer, self.filled, self.missing);
                    let count = free.len().min(input.len());
                    free[..count].copy_from_slice(&input[..count]);
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
            BodyMode::Refused(message, length, start) => {
                let refused = message.take().map(|request| Event::RequestRefused {
                    request,
                    length: *length,
                    start: std::mem::take(start),
                });
                self.mode = BodyMode::Discard;
                refused.or_else(|| self.next_event(input))
            }
            BodyMode::Discard => {
                let count = input.len().min(usize::try_from(self.missing).unwrap_or(usize::MAX));
                *input = &input[count..];
                self.missing -= count as u64;
                None
            }
        }
    }

    /// Returns the buffer into which the socket may read, if that is faster than a copy.
    pub(super) fn body_buf_mut(&mut self) -> Option<&mut [u8]> {
        if self.missing < DIRECT_MIN {
            return None;
        }
        if matches!(self.mode, BodyMode::Collect(_))
            && !is_allowed(&self.buffer, self.filled, self.missing, &mut self.held)
        {
            self.refuse();
        }
        match self.mode {
            BodyMode::Collect(_) => Some(free_part(&mut self.buffer, self.filled, self.missing)),
            BodyMode::Stream { .. } => {
                if self.buffer.is_empty() {
                    self.buffer = self.pool.take(self.missing.min(PIECE) as usize);
                }
                let end = self.buffer.len().min(PIECE as usize);
                let limit =
                    end.min(self.filled + usize::try_from(self.missing).unwrap_or(usize::MAX));
                Some(&mut self.buffer[self.filled..limit])
            }
            BodyMode::Refused(..) | BodyMode::Discard => None,
        }
    }

    /// Skips the rest of a request, and frees its buffer.
    fn refuse(&mut self) {
        let BodyMode::Collect(message) = &mut self.mode else { return };
        let start = &self.buffer[..self.filled.min(MAX_REFUSED_START)];
        let length = self.filled as u64 + self.missing;
        self.mode = BodyMode::Refused(message.take(), length, Bytes::copy_from_slice(start));
        self.buffer = Vec::new();
        self.filled = 0;
        self.held = None;
    }

    /// Records that `count` bytes were written to [`body_buf_mut`](Self::body_buf_mut).
    pub(super) fn advance_body(&mut self, count: usize) {
        self.filled += count;
        self.missing -= count as u64;
    }

    /// Takes the bytes that were read into the buffer.
    ///
    /// Copies them if they fill less than a quarter of it: the user holds the whole buffer, but
    /// only the bytes in it count towards the limit of a stream body.
    fn take_filled(&mut self) -> Bytes {
        let filled = std::mem::take(&mut self.filled);
        if filled * 4 < self.buffer.len() {
            return Bytes::copy_from_slice(&self.buffer[..filled]);
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        if self.is_pooled {
            self.pool.freeze(buffer, filled)
        } else {
            buffer.truncate(filled);
            Bytes::from(buffer)
        }
    }
}

impl Drop for BodyDecoder {
    fn drop(&mut self) {
        if self.is_pooled {
            self.pool.recycle(std::mem::take(&mut self.buffer));
        }
    }
}

/// Returns whether the budget allows that a full buffer grows.
///
/// When it grows first, the whole request must fit, but only the growth is reserved.
fn is_allowed(
    buffer: &Vec<u8>,
    filled: usize,
    missing: u64,
    held: &mut Option<Reservation>,
) -> bool {
    let Some(held) = held.as_mut().filter(|_| filled == buffer.len()) else { return true };
    if filled <= READ_BLOCK && !held.would_fit(held_for(filled as u64 + missing)) {
        return false;
    }
    held.try_grow(held_for(grown_len(buffer, filled, missing) as u64))
}

/// Returns the memory of a growing buffer: smaller ones that it had may stay with the allocator.
fn held_for(length: u64) -> u64 {
    length + length / 2
}

/// Returns the length of a full buffer when it has grown.
fn grown_len(buffer: &Vec<u8>, filled: usize, missing: u64) -> usize {
    capacity(buffer, filled, missing).min(buffer.len() + GROWTH)
}

/// Returns the capacity for `missing` more bytes, at most four times the present one.
///
/// Bytes beyond the length occupy no memory yet.
fn capacity(buffer: &Vec<u8>, filled: usize, missing: u64) -> usize {
    let wanted = filled + usize::try_from(missing).unwrap_or(usize::MAX - filled);
    match buffer.len() < buffer.capacity() {
        true => buffer.capacity().min(wanted),
        false => wanted.min(buffer.len().max(READ_BLOCK / 4) * 4),
    }
}

/// Returns the free part of `buffer`, at most `missing` bytes; extends a full buffer.
fn free_part(buffer: &mut Vec<u8>, filled: usize, missing: u64) -> &mut [u8] {
    if filled == buffer.len() {
        buffer.reserve_exact(capacity(buffer, filled, missing) - filled);
        buffer.resize(grown_len(buffer, filled, missing), 0);
    }
    let end = filled + usize::try_from(missing).unwrap_or(usize::MAX - filled);
    let end = end.min(buffer.len());
    &mut buffer[filled..end]
}
