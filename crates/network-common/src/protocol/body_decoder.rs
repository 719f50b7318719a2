//! [`BodyDecoder`]: receives one body, collected, in pieces, or discarded.
//!
//! [`FrameDecoder`](super::FrameDecoder) uses it for bodies of large frames and those that follow a
//! frame.

use std::sync::Arc;

use bytes::Bytes;

use super::body_buffer::BodyBuffer;
use super::event::Event;
use super::message::Message;
use crate::budget::Reservation;
use crate::buffer::BufferPool;

/// The missing bytes from which on the socket is read directly into the buffer of the body.
///
/// Below, the additional system call costs more than the copy that it saves.
const DIRECT_MIN: u64 = 32 << 10;
/// The most bytes of a refused message that are kept.
const MAX_REFUSED_START: usize = 4 << 10;
/// The largest piece of a streamed body in bytes.
const PIECE: u64 = 256 << 10;

#[derive(Debug)]
pub(super) struct BodyDecoder {
    /// The length of the body in bytes.
    length: u64,
    /// The number of bytes that have not arrived yet.
    missing: u64,
    buffer: BodyBuffer,
    mode: BodyMode,
    /// Counts the buffer of a collected body in the budget, beyond the first 64 KiB.
    held: Option<Reservation>,
}

#[derive(Debug)]
enum BodyMode {
    /// `None` once the message has been returned.
    Collect(Option<Message<()>>),
    /// The budget does not allow the rest; the start and the length are reported.
    Refused(Option<Message<()>>, Bytes),
    Stream {
        ended: bool,
    },
    Discard,
}

impl BodyDecoder {
    /// Returns a decoder that collects the whole body.
    ///
    /// If `expected` is true, memory for the announced length is allocated at once.
    pub(super) fn collect(
        message: Message<()>,
        length: u64,
        expected: bool,
        pool: Arc<BufferPool>,
        mut held: Option<Reservation>,
    ) -> Self {
        let buffer = match expected {
            true => BodyBuffer::preallocated(length, Arc::clone(&pool), &mut held),
            false => Some(BodyBuffer::growing(length, Arc::clone(&pool))),
        };
        let Some(buffer) = buffer else {
            let mode = BodyMode::Refused(Some(message), Bytes::new());
            return Self::without_message(length, mode, pool);
        };
        Self { length, missing: length, buffer, mode: BodyMode::Collect(Some(message)), held }
    }

    /// Returns a decoder that delivers the body in pieces.
    pub(super) fn stream(length: u64, pool: Arc<BufferPool>) -> Self {
        Self::without_message(length, BodyMode::Stream { ended: false }, pool)
    }

    /// Returns a decoder that skips the body.
    pub(super) fn discard(length: u64, pool: Arc<BufferPool>) -> Self {
        Self::without_message(length, BodyMode::Discard, pool)
    }

    fn without_message(length: u64, mode: BodyMode, pool: Arc<BufferPool>) -> Self {
        Self { length, missing: length, buffer: BodyBuffer::empty(pool), mode, held: None }
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
                    if !self.buffer.try_extend(self.missing, &mut self.held) {
                        self.refuse();
                        return self.next_event(input);
                    }
                    let free = self.buffer.free_part(self.missing);
                    let count = free.len().min(input.len());
                    free[..count].copy_from_slice(&input[..count]);
                    *input = &input[count..];
                    self.buffer.advance(count);
                    self.missing -= count as u64;
                }
                if self.missing > 0 {
                    return None;
                }
                let message = message.take()?;
                Some(Event::Message(message.with_body(self.buffer.take())))
            }
            BodyMode::Stream { ended } => {
                if self.buffer.filled() > 0 {
                    return Some(Event::BodyPiece(self.buffer.take()));
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
            BodyMode::Refused(message, start) => {
                let refused = message.take().map(|message| Event::MessageRefused {
                    message,
                    length: self.length,
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
            && !self.buffer.try_extend(self.missing, &mut self.held)
        {
            self.refuse();
        }
        match self.mode {
            BodyMode::Collect(_) => Some(self.buffer.free_part(self.missing)),
            BodyMode::Stream { .. } => {
                if self.buffer.is_empty() {
                    let len = self.missing.min(PIECE) as usize;
                    self.buffer.allocate(len, self.length - self.missing);
                }
                let piece_rest = PIECE - self.buffer.filled() as u64;
                Some(self.buffer.free_part(piece_rest.min(self.missing)))
            }
            BodyMode::Refused(..) | BodyMode::Discard => None,
        }
    }

    /// Skips the rest of a message, and frees its buffer.
    fn refuse(&mut self) {
        let BodyMode::Collect(message) = &mut self.mode else { return };
        let received = self.buffer.received();
        let start = Bytes::copy_from_slice(&received[..received.len().min(MAX_REFUSED_START)]);
        self.mode = BodyMode::Refused(message.take(), start);
        self.buffer.clear();
        self.held = None;
    }

    /// Records that `count` bytes were written to [`body_buf_mut`](Self::body_buf_mut).
    pub(super) fn advance_body(&mut self, count: usize) {
        self.buffer.advance(count);
        self.missing -= count as u64;
    }
}
