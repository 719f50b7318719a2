//! Sealing of batches: passes their bytes through the filter of the sending direction.

use std::io;

use crate::buffer::BufferPool;
use crate::session::{Batch, ByteFilter, FilterChain, FilterOutput};

/// Number of bytes that are sealed between two writes.
///
/// The sealed bytes are then still in the cache of the core when they are written.
const SEAL_STEP: usize = 512 << 10;
/// Minimal size of a buffer that comes from the pool.
///
/// Large buffers are recycled, because fresh memory costs a page fault per 4 KiB.
const MIN_POOLED_BUFFER: usize = 128 << 10;

/// The filter of the sending direction and its unwritten output.
#[derive(Default)]
pub(super) struct Sealer {
    filter: Option<Box<dyn ByteFilter>>,
    buffer: Vec<u8>,
    /// Number of sealed bytes in `buffer`.
    len: usize,
    /// Number of those bytes that are written.
    written: usize,
    /// The connection was closed before all sealed bytes were written.
    is_record_cut: bool,
}

impl Sealer {
    pub(super) fn has_filter(&self) -> bool {
        self.filter.is_some()
    }

    /// Installs a filter between the filters installed before and the socket, as Spark does.
    pub(super) fn install(&mut self, filter: Option<Box<dyn ByteFilter>>) {
        self.filter = FilterChain::join(self.filter.take(), filter);
    }

    pub(super) fn has_unwritten(&self) -> bool {
        self.written < self.len
    }

    /// Returns the sealed bytes that are not written yet.
    pub(super) fn unwritten(&self) -> &[u8] {
        &self.buffer[self.written..self.len]
    }

    /// Returns the bytes of memory of the buffer.
    pub(super) fn buffer_size(&self) -> usize {
        self.buffer.capacity()
    }

    /// Marks sealed bytes as written.
    pub(super) fn advance(&mut self, count: usize) {
        self.written += count;
    }

    /// Seals the next bytes of `batch`; returns their number.
    ///
    /// All bytes that were sealed before must be written.
    pub(super) fn seal(
        &mut self,
        batch: &Batch,
        start: usize,
        pool: &BufferPool,
    ) -> io::Result<usize> {
        let Some(filter) = &mut self.filter else { return Ok(0) };
        let count = (batch.len() - start).min(SEAL_STEP);
        if self.buffer.is_empty() {
            // 2 % and 128 bytes more, for what ciphers add.
            self.buffer = match count + count / 50 + 128 {
                large @ MIN_POOLED_BUFFER.. => pool.take(large),
                small => Vec::with_capacity(small),
            };
        }
        let mut output = FilterOutput::new(&mut [], &mut self.buffer);
        let (mut position, end) = (start, start + count);
        while position < end {
            let plain = batch.contiguous(position, end - position);
            filter.transform(&plain, &mut output).map_err(io::Error::other)?;
            position += plain.len();
        }
        (_, self.len) = output.lengths();
        self.written = 0;
        Ok(count)
    }

    /// Returns the bytes that mark the end of the sealed bytes.
    ///
    /// There are none if a sealed record was cut, because the peer could not decode them.
    pub(super) fn close_notify(&mut self) -> Vec<u8> {
        let Ok(bytes) = FilterOutput::collect(|output| {
            if let Some(filter) = self.filter.as_mut().filter(|_| !self.is_record_cut) {
                filter.finish(output);
            }
            Ok::<_, std::convert::Infallible>(())
        });
        bytes
    }

    /// Releases the buffer, so that an idle connection holds none.
    pub(super) fn release_buffer(&mut self, pool: &BufferPool) {
        pool.recycle(std::mem::take(&mut self.buffer));
        self.len = 0;
        self.written = 0;
    }

    /// Discards sealed bytes that are not written, because the connection was closed.
    pub(super) fn discard(&mut self, pool: &BufferPool) {
        self.is_record_cut = self.has_unwritten();
        self.release_buffer(pool);
    }
}
