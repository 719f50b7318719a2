//! Recycled receive buffers: a fresh mapping costs half a second of page faults per gigabyte.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

/// Idle bytes a pool keeps at most; what comes back beyond it is freed.
const MAX_IDLE: usize = 64 << 20;
/// Buffers are made in steps of this size, so that bodies of nearly one size share them.
const STEP: usize = 64 << 10;

/// Large receive buffers of one context, handed back when the last slice of a body is dropped.
#[derive(Debug, Default)]
pub(crate) struct BufferPool {
    idle: Mutex<Idle>,
}

#[derive(Debug, Default)]
struct Idle {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

impl BufferPool {
    /// An initialised buffer of at least `len` bytes; its content is arbitrary.
    pub(crate) fn take(&self, len: usize) -> Vec<u8> {
        let mut idle = self.idle.lock();
        let fitting = |buffer: &Vec<u8>| buffer.len() >= len && buffer.len() / 4 <= len;
        let Some(position) = idle.buffers.iter().rposition(fitting) else {
            drop(idle);
            return vec![0; len.next_multiple_of(STEP)];
        };
        let buffer = idle.buffers.swap_remove(position);
        idle.bytes -= buffer.len();
        buffer
    }

    pub(crate) fn put(&self, buffer: Vec<u8>) {
        let mut idle = self.idle.lock();
        if buffer.len() >= STEP && idle.bytes + buffer.len() <= MAX_IDLE {
            idle.bytes += buffer.len();
            idle.buffers.push(buffer);
        }
    }

    /// The first `len` bytes of `buffer`, which returns to the pool when they are no longer used.
    pub(crate) fn freeze(self: &Arc<Self>, buffer: Vec<u8>, len: usize) -> Bytes {
        Bytes::from_owner(Pooled { buffer, len, pool: Arc::clone(self) })
    }
}

struct Pooled {
    buffer: Vec<u8>,
    len: usize,
    pool: Arc<BufferPool>,
}

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        self.pool.put(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_body_gives_its_buffer_to_the_next_one() {
        let pool = Arc::new(BufferPool::default());
        let first = pool.freeze(pool.take(1 << 20), 1 << 20);
        let address = first.as_ptr();
        let slice = first.slice(5..10);
        drop(first);
        let other = pool.take(1 << 20);
        assert_ne!(other.as_ptr(), address, "a slice still uses it");
        drop(slice);
        let again = pool.take(1 << 20);
        assert_eq!(again.as_ptr(), address);
    }

    #[test]
    fn idle_memory_is_bounded() {
        let pool = BufferPool::default();
        for _ in 0..10 {
            pool.put(vec![0; 16 << 20]);
        }
        assert_eq!(pool.idle.lock().bytes, MAX_IDLE);
    }
}
