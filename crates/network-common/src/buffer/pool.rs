//! [`BufferPool`]: recycled buffers for received bodies.
//!
//! A new mapping costs half a second of page faults per gigabyte.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

/// The most idle bytes in a pool; beyond it, the buffers that were idle longest are freed.
const MAX_IDLE: usize = 64 << 20;
/// Buffer lengths are multiples of this, so that bodies of similar length share buffers.
const STEP: usize = 64 << 10;

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
}

impl BufferPool {
    /// Takes or allocates an initialised buffer of at least `len` bytes with any content.
    pub(crate) fn take(&self, len: usize) -> Vec<u8> {
        let mut idle = self.idle.lock();
        let fitting = |buffer: &Vec<u8>| buffer.len() >= len && buffer.len() / 4 <= len;
        let position = idle.buffers.iter().rposition(fitting);
        match position.and_then(|position| idle.buffers.remove(position)) {
            Some(buffer) => {
                idle.bytes -= buffer.len();
                buffer
            }
            None => {
                drop(idle);
                vec![0; len.next_multiple_of(STEP)]
            }
        }
    }

    /// Returns a buffer to the pool; one below 64 KiB or above 64 MiB is freed.
    pub(crate) fn recycle(&self, buffer: Vec<u8>) {
        if !(STEP..=MAX_IDLE).contains(&buffer.len()) {
            return;
        }
        // Dropped after the lock is released.
        let mut freed = Vec::new();
        let mut idle = self.idle.lock();
        while idle.bytes + buffer.len() > MAX_IDLE {
            let Some(oldest) = idle.buffers.pop_front() else { break };
            idle.bytes -= oldest.len();
            freed.push(oldest);
        }
        idle.bytes += buffer.len();
        idle.buffers.push_back(buffer);
        drop(idle);
    }

    /// Returns the first `len` bytes of `buffer`, which is recycled when they are dropped.
    pub(crate) fn freeze(self: &Arc<Self>, buffer: Vec<u8>, len: usize) -> Bytes {
        Bytes::from_owner(PooledBuffer { buffer, len, pool: Arc::clone(self) })
    }
}

struct PooledBuffer {
    buffer: Vec<u8>,
    len: usize,
    pool: Arc<BufferPool>,
}

impl AsRef<[u8]> for PooledBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.len]
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
        let first = pool.freeze(pool.take(1 << 20), 1 << 20);
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
        for _ in 0..10 {
            pool.recycle(vec![0; 16 << 20]);
        }
        assert_eq!(pool.idle.lock().bytes, MAX_IDLE);
    }

    #[test]
    fn full_pool_frees_the_buffers_that_were_idle_longest() {
        let pool = BufferPool::default();
        (0..MAX_IDLE / STEP).for_each(|_| pool.recycle(vec![0; STEP]));
        let mut buffer = pool.take(16 << 20);
        buffer[0] = 7;
        pool.recycle(buffer);
        assert!(pool.idle.lock().bytes <= MAX_IDLE);
        assert_eq!(pool.take(16 << 20)[0], 7, "the recycled buffer keeps its content");
    }
}
