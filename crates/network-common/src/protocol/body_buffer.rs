//! [`BodyBuffer`]: the memory that one body, or a piece of it, is received into.

use std::sync::Arc;

use bytes::Bytes;

use crate::budget::Reservation;
use crate::buffer::BufferPool;

/// The size in bytes of a socket read that does not go into the buffer of a body.
pub(crate) const READ_BLOCK: usize = 64 << 10;
/// The length of a body that is received without growing.
const LARGEST_SMALL: u64 = READ_BLOCK as u64;
/// The most bytes reserved for a body because of its announced length, if this side requested it.
const PREALLOCATE_MAX: u64 = 64 << 20;
/// The most bytes by which the length of a buffer grows at once.
const GROWTH: usize = 1 << 20;
/// The length in bytes from which on a body is received into a buffer of the pool.
const MIN_POOLED: usize = 8 << 10;
/// The length in bytes from which on the buffer of a request comes from the pool and returns there.
const MIN_POOLED_REQUEST: usize = 256 << 10;

/// Memory that is filled from the front.
#[derive(Debug)]
pub(super) struct BodyBuffer {
    memory: Vec<u8>,
    /// The index of the first byte of the body.
    start: usize,
    filled: usize,
    pool: Arc<BufferPool>,
    /// Is true if the memory comes from the pool and returns there.
    is_pooled: bool,
    /// Is true if the memory was allocated for the announced length.
    is_preallocated: bool,
}

impl BodyBuffer {
    /// Returns a buffer without memory.
    pub(super) fn empty(pool: Arc<BufferPool>) -> Self {
        Self {
            memory: Vec::new(),
            start: 0,
            filled: 0,
            pool,
            is_pooled: false,
            is_preallocated: false,
        }
    }

    /// Returns a buffer with the memory for a body of `length` bytes, at most 64 MiB of it.
    ///
    /// Returns `None` if the budget of `held` does not allow that memory, or ever the whole body.
    pub(super) fn preallocated(
        length: u64,
        pool: Arc<BufferPool>,
        held: &mut Option<Reservation>,
    ) -> Option<Self> {
        if let Some(held) = held
            && length > READ_BLOCK as u64
            && !(held.may_ever_hold(length) && held.try_grow(length.min(PREALLOCATE_MAX)))
        {
            return None;
        }
        let mut buffer = Self::empty(pool);
        buffer.is_preallocated = true;
        match length.min(PREALLOCATE_MAX) as usize {
            small @ ..=READ_BLOCK => buffer.allocate_small(small),
            large => buffer.allocate(large, 0),
        }
        Some(buffer)
    }

    /// Returns a buffer for a body of `length` bytes, which grows as they arrive.
    pub(super) fn growing(length: u64, pool: Arc<BufferPool>) -> Self {
        let mut buffer = Self::empty(pool);
        match length {
            small @ ..=LARGEST_SMALL => buffer.allocate_small(small as usize),
            _ => buffer.memory = vec![0; READ_BLOCK],
        }
        buffer
    }

    fn allocate_small(&mut self, len: usize) {
        self.is_pooled = len >= MIN_POOLED;
        self.memory = if self.is_pooled { self.pool.take_small(len) } else { vec![0; len] };
    }

    /// Provides memory for `len` bytes, which begin at `offset` in the body.
    pub(super) fn allocate(&mut self, len: usize, offset: u64) {
        (self.memory, self.start) = self.pool.take_at_page_offset(len, offset);
        self.is_pooled = true;
    }

    /// Returns whether the buffer has no memory.
    pub(super) fn is_empty(&self) -> bool {
        self.memory.is_empty()
    }

    /// Returns the number of bytes that were received.
    pub(super) fn filled(&self) -> usize {
        self.filled
    }

    /// Returns the bytes that were received.
    pub(super) fn received(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.filled]
    }

    /// Returns the free part, at most `limit` bytes.
    pub(super) fn free_part(&mut self, limit: u64) -> &mut [u8] {
        let free = &mut self.memory[self.start + self.filled..];
        let len = free.len().min(usize::try_from(limit).unwrap_or(usize::MAX));
        &mut free[..len]
    }

    /// Records that `count` bytes were written to [`free_part`](Self::free_part).
    pub(super) fn advance(&mut self, count: usize) {
        self.filled += count;
    }

    /// Extends a full buffer for `missing` more bytes, if the budget of `held` allows it.
    ///
    /// When a buffer grows first, the whole body must fit, but only the growth is reserved.
    pub(super) fn try_extend(&mut self, missing: u64, held: &mut Option<Reservation>) -> bool {
        if self.start + self.filled < self.memory.len() {
            return true;
        }
        let missing = usize::try_from(missing).unwrap_or(usize::MAX / 2);
        let total = self.filled + missing;
        if self.filled <= READ_BLOCK {
            let needed = self.held_for(total);
            if held.as_ref().is_some_and(|held| !held.would_fit(needed)) {
                return false;
            }
            if total >= MIN_POOLED_REQUEST
                && let Some(idle) = self.pool.take_idle(total)
                && self.move_to(idle, needed, held)
            {
                return true;
            }
        }
        let capacity = self.extended_capacity(total);
        let len = capacity.min(self.memory.len() + GROWTH);
        let needed = self.held_for(len.min(total));
        if held.as_mut().is_some_and(|held| !held.try_grow(needed)) {
            return false;
        }
        self.memory.reserve_exact(capacity - self.memory.len());
        self.memory.resize(len, 0);
        true
    }

    /// Returns the bytes that a body of `len` bytes holds.
    ///
    /// Of a growing buffer, smaller ones that it had may stay with the allocator.
    fn held_for(&self, len: usize) -> u64 {
        let len = len as u64;
        if self.is_preallocated { len } else { len + len / 2 }
    }

    /// Moves the received bytes to idle memory of the pool, which has enough for the whole body.
    ///
    /// Returns false if the budget does not allow `needed` bytes.
    fn move_to(&mut self, mut idle: Vec<u8>, needed: u64, held: &mut Option<Reservation>) -> bool {
        if held.as_mut().is_some_and(|held| !held.try_grow(needed)) {
            self.pool.recycle(idle);
            return false;
        }
        idle[..self.filled].copy_from_slice(self.received());
        (self.memory, self.start, self.is_pooled) = (idle, 0, true);
        true
    }

    /// Returns the capacity for a body of `total` bytes, at most four times the present one.
    ///
    /// Bytes beyond the length occupy no memory yet.
    fn extended_capacity(&self, total: usize) -> usize {
        let wanted = match total {
            small @ ..MIN_POOLED_REQUEST => small,
            large => BufferPool::capacity_for(large),
        };
        let (len, capacity) = (self.memory.len(), self.memory.capacity());
        match len < capacity {
            true => capacity.min(wanted),
            false => wanted.min(len.max(READ_BLOCK / 4) * 4),
        }
    }

    /// Frees the memory, and discards the received bytes.
    pub(super) fn clear(&mut self) {
        *self = Self::empty(Arc::clone(&self.pool));
    }

    /// Takes the bytes that were received.
    ///
    /// Copies them if they fill less than a quarter of the memory: the user holds all of it, but
    /// only the bytes in it count towards the limit of a stream body.
    pub(super) fn take(&mut self) -> Bytes {
        if self.filled * 4 < self.memory.len() {
            let copy = Bytes::copy_from_slice(self.received());
            self.filled = 0;
            return copy;
        }
        let filled = std::mem::take(&mut self.filled);
        let mut memory = std::mem::take(&mut self.memory);
        if self.is_pooled || memory.len() >= MIN_POOLED_REQUEST {
            self.pool.freeze(memory, self.start..self.start + filled)
        } else {
            memory.truncate(filled);
            Bytes::from(memory)
        }
    }
}

impl Drop for BodyBuffer {
    fn drop(&mut self) {
        if self.is_pooled {
            self.pool.recycle(std::mem::take(&mut self.memory));
        }
    }
}
