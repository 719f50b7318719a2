//! [`BufferPool`]: recycled buffers for received bodies.
//!
//! A new mapping costs half a second of page faults per gigabyte. The kernel copies a file into a
//! body up to twice as fast if both begin at the same offset within a page.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

/// The most idle bytes in a pool; beyond it, the buffers that were idle longest are freed.
const MAX_IDLE: usize = 64 << 20;
/// Buffer lengths are multiples of this, so that bodies of similar length share buffers.
const STEP: usize = 64 << 10;
/// Buffers are longer by this, so that a body can begin at any offset within a page.
const PAGE: usize = 4 << 10;
/// The lengths of the buffers for small bodies, which need no offset within a page.
///
/// glibc would return their memory to the kernel and request it again: a quarter of the time of a
/// client that fetches blocks of 20 KiB.
const SMALL: [usize; 6] = [12 << 10, 16 << 10, 24 << 10, 32 << 10, 48 << 10, 64 << 10];
/// The most bytes of idle buffers for small bodies.
const MAX_IDLE_SMALL: usize = 8 << 20;

/// The receive buffers of one context; one returns when the last slice of its body is dropped.
#[derive(Debug, Default)]
pub(crate) struct BufferPool {
    idle: Mutex<IdleBuffers>,
}

#[derive(Debug, Default)]
struct IdleBuffers {
    /// In the order in which they were returned.
    buffers: VecDeque<Vec<u8>>,
    bytes: usize,
    /// By the index of their length.
    small: [Vec<Vec<u8>>; SMALL.len()],
    small_bytes: usize,
}

impl BufferPool {
    /// Takes or allocates an initialised buffer of at least `len` bytes with any content.
    pub(crate) fn take(&self, len: usize) -> Vec<u8> {
        self.take_idle(len).unwrap_or_else(|| vec![0; Self::capacity_for(len)])
    }

    /// Takes a buffer for a small body of at most 64 KiB, with any content.
    pub(crate) fn take_small(&self, len: usize) -> Vec<u8> {
        let Some(index) = SMALL.iter().position(|one| *one >= len) else { return self.take(len) };
        let mut idle = self.idle.lock();
        let Some(buffer) = idle.small[index].pop() else {
            drop(idle);
            return vec![0; SMALL[index]];
        };
        idle.small_bytes -= buffer.len();
        buffer
    }

    /// Takes a buffer for `len` bytes, and returns the index of the first one.
    ///
    /// Its address is as far into a page of memory as `offset` is into a page of a file.
    pub(crate) fn take_at_page_offset(&self, len: usize, offset: u64) -> (Vec<u8>, usize) {
        let idle = self.take_idle(len + PAGE);
        let buffer = idle.unwrap_or_else(|| vec![0; Self::capacity_for(len)]);
        let start = (offset as usize).wrapping_sub(buffer.as_ptr().addr()) % PAGE;
        (buffer, start)
    }

    /// Takes an idle buffer of `len` to about four times as many bytes, with any content.
    pub(crate) fn take_idle(&self, len: usize) -> Option<Vec<u8>> {
        let mut idle = self.idle.lock();
        let fitting = |buffer: &Vec<u8>| buffer.len() >= len && buffer.len() / 4 <= len;
        let position = idle.buffers.iter().rposition(fitting);
        let buffer = position.and_then(|position| idle.buffers.remove(position))?;
        idle.bytes -= counted_len(&buffer);
        Some(buffer)
    }

    /// Returns the length of a new buffer whose body has `len` bytes.
    pub(crate) fn capacity_for(len: usize) -> usize {
        len.next_multiple_of(STEP) + PAGE
    }

    /// Returns a buffer to the pool; one that is larger than 64 MiB is freed.
    pub(crate) fn recycle(&self, buffer: Vec<u8>) {
        if let Some(index) = SMALL.iter().position(|one| *one == buffer.len()) {
            let mut idle = self.idle.lock();
            if idle.small_bytes + buffer.len() <= MAX_IDLE_SMALL {
                idle.small_bytes += buffer.len();
                idle.small[index].push(buffer);
            }
            return;
        }
        if !(STEP..=MAX_IDLE + PAGE).contains(&buffer.len()) {
            return;
        }
        // Dropped after the lock is released.
        let mut freed = Vec::new();
        let mut idle = self.idle.lock();
        while idle.bytes + counted_len(&buffer) > MAX_IDLE {
            let Some(oldest) = idle.buffers.pop_front() else { break };
            idle.bytes -= counted_len(&oldest);
            freed.push(oldest);
        }
        idle.bytes += counted_len(&buffer);
        idle.buffers.push_back(buffer);
        drop(idle);
    }

    /// Returns `range` of `buffer`, which is recycled when the bytes are dropped.
    pub(crate) fn freeze(self: &Arc<Self>, buffer: Vec<u8>, range: Range<usize>) -> Bytes {
        Bytes::from_owner(PooledBuffer { buffer, range, pool: Arc::clone(self) })
    }
}

/// Returns the bytes of an idle buffer, without those for the offset within a page.
fn counted_len(buffer: &[u8]) -> usize {
    buffer.len().saturating_sub(PAGE)
}

struct PooledBuffer {
    buffer: Vec<u8>,
    range: Range<usize>,
    pool: Arc<BufferPool>,
}

impl AsRef<[u8]> for PooledBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        self.pool.recycle(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_body_returns_its_buffer_to_the_pool() {
        let pool = Arc::new(BufferPool::default());
        let first = pool.freeze(pool.take(1 << 20), 0..1 << 20);
        let address = first.as_ptr();
        let slice = first.slice(5..10);
        drop(first);
        let other = pool.take(1 << 20);
        assert_ne!(other.as_ptr(), address, "a slice still uses the buffer");
        drop(slice);
        let again = pool.take(1 << 20);
        assert_eq!(again.as_ptr(), address);
    }

    #[test]
    fn idle_bytes_do_not_exceed_the_limit() {
        let pool = BufferPool::default();
        let buffers: Vec<_> = (0..10).map(|_| pool.take(16 << 20)).collect();
        for buffer in buffers {
            pool.recycle(buffer);
        }
        assert_eq!(pool.idle.lock().bytes, MAX_IDLE);
    }

    #[test]
    fn full_pool_frees_the_buffers_that_were_idle_longest() {
        let pool = BufferPool::default();
        (0..MAX_IDLE / STEP).for_each(|_| pool.recycle(vec![0; STEP + PAGE]));
        let mut buffer = pool.take(16 << 20);
        buffer[0] = 7;
        pool.recycle(buffer);
        assert!(pool.idle.lock().bytes <= MAX_IDLE);
        assert_eq!(pool.take(16 << 20)[0], 7, "the recycled buffer keeps its content");
    }

    #[test]
    fn body_begins_at_the_requested_offset_within_a_page() {
        let pool = BufferPool::default();
        for offset in [0, 1, 16, 4095, 4096, 5000, u64::from(u32::MAX)] {
            let (buffer, start) = pool.take_at_page_offset(STEP, offset);
            let address = buffer[start..start + STEP].as_ptr().addr();
            assert_eq!(address % PAGE, offset as usize % PAGE, "offset {offset}");
            pool.recycle(buffer);
        }
    }

    #[test]
    fn small_buffers_are_reused_up_to_their_limit() {
        let pool = BufferPool::default();
        let buffer = pool.take_small(20 << 10);
        assert_eq!(buffer.len(), 24 << 10);
        let address = buffer.as_ptr();
        pool.recycle(buffer);
        let again = pool.take_small(17 << 10);
        assert_eq!(again.as_ptr(), address);
        let buffers: Vec<_> = (0..1000).map(|_| pool.take_small(20 << 10)).collect();
        buffers.into_iter().for_each(|buffer| pool.recycle(buffer));
        let idle = pool.idle.lock();
        assert!(idle.small_bytes <= MAX_IDLE_SMALL && idle.bytes == 0);
        assert_eq!(idle.small_bytes, idle.small.iter().flatten().map(Vec::len).sum());
    }
}
