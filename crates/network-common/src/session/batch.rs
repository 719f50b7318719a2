//! Frames that are written together, and the accounting of their bytes.

use std::borrow::Cow;
use std::cell::Cell;
use std::io::IoSlice;

use bytes::Bytes;

use super::BulkMessage;
use crate::buffer::Content;
use crate::protocol::Message;

/// Maximal size of a body that is copied into the buffer of the batch.
///
/// Up to this size a copy is cheaper than another slice of a vectored write.
const MAX_INLINE_BODY: usize = 4 << 10;
/// No header without its texts is longer than this number of bytes.
const MAX_HEADER_FIELDS: usize = 64;
/// Minimal size of a slice that is sealed by itself.
///
/// From this size on a separate call of the filter is cheaper than a copy.
const LARGE_SLICE: usize = 64 << 10;
/// Size from which on a buffer is not extended.
///
/// A growing buffer leaves memory of several times its size that is not used.
const FULL_BUFFER: usize = 240 << 10;
/// Larger buffers are not recycled.
const MAX_RECYCLED_BUFFER: usize = 256 << 10;

thread_local! {
    /// The recycled batch buffer of this thread.
    ///
    /// Accessed with `try_with`, because frames are queued during thread-local destruction, too.
    static BATCH_BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Frames that are written together.
///
/// Headers and small bodies are in one buffer. Larger bodies are spliced in without a copy.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    /// The parts in front of `bytes` and `bodies`.
    front: Vec<Bytes>,
    /// Each body goes before the byte of `bytes` with this index.
    bodies: Vec<(usize, Bytes)>,
    body_bytes: usize,
    /// Number of bytes that count against the limit of the write queue.
    queued_bytes: u64,
    /// Number of those bytes that belong to responses.
    response_bytes: u64,
    /// Bulk messages in this batch. Their release hooks run when they are dropped.
    bulk: Vec<BulkMessage>,
}

impl Batch {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() + self.body_bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of queued bytes that belong to responses.
    pub(super) fn response_bytes(&self) -> u64 {
        self.response_bytes
    }

    /// Appends bytes that do not count against the limit of the write queue.
    pub(crate) fn push_piece(&mut self, piece: Bytes) {
        self.body_bytes += piece.len();
        self.bodies.push((self.bytes.len(), piece));
    }

    /// Appends a message; returns the number of bytes appended.
    ///
    /// Takes `body` only if it is not copied: the owner of the bytes may run code on drop, which
    /// must not happen under the lock of the session.
    pub(super) fn push(&mut self, message: &Message<()>, in_frame: u64, body: &mut Bytes) -> u64 {
        let before = self.len();
        if self.bytes.len() >= FULL_BUFFER {
            self.move_to_front();
        }
        if self.bytes.capacity() == 0 {
            self.bytes = BATCH_BUFFER.try_with(Cell::take).unwrap_or_default();
        }
        let texts = message.texts_len();
        if texts <= MAX_INLINE_BODY {
            message.encode_header(in_frame, &mut self.bytes);
        } else {
            // Growing the common buffer would leave unused memory of several times its size.
            let mut header = Vec::with_capacity(texts + MAX_HEADER_FIELDS);
            message.encode_header(in_frame, &mut header);
            self.push_piece(header.into());
        }
        if body.len() <= MAX_INLINE_BODY {
            self.bytes.extend_from_slice(body);
        } else {
            self.push_piece(std::mem::take(body));
        }
        let added = (self.len() - before) as u64;
        self.queued_bytes += added;
        if !message.is_request() {
            self.response_bytes += added;
        }
        added
    }

    /// Starts a new buffer.
    #[cold]
    fn move_to_front(&mut self) {
        // One more message fits behind `FULL_BUFFER`.
        let next = Vec::with_capacity(MAX_RECYCLED_BUFFER);
        let bytes = Bytes::from(std::mem::replace(&mut self.bytes, next));
        self.body_bytes += bytes.len();
        let mut start = 0;
        for (position, body) in std::mem::take(&mut self.bodies) {
            self.front.extend([bytes.slice(start..position), body]);
            start = position;
        }
        self.front.push(bytes.slice(start..));
    }

    /// Appends a message with a body in memory; returns the number of bytes appended.
    pub(super) fn push_bulk(&mut self, bulk: BulkMessage) -> u64 {
        let mut body = match bulk.body.content() {
            Content::Memory(bytes) => bytes.clone(),
            Content::File(_) => Bytes::new(),
        };
        let added = self.push(&bulk.message, bulk.in_frame(), &mut body);
        self.bulk.push(bulk);
        added
    }

    /// Returns the bytes after the first `skip` ones as slices.
    fn slices_from(&self, mut skip: usize) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.bodies.iter().map(|(position, _)| *position));
        let spliced = self.bodies.iter().zip(starts);
        let last = self.bodies.last().map_or(0, |(position, _)| *position);
        let current = spliced
            .flat_map(|((position, body), start)| [&self.bytes[start..*position], &body[..]]);
        let front = self.front.iter().map(|part| &part[..]);
        front.chain(current).chain([&self.bytes[last..]]).filter_map(move |slice| {
            let skipped = skip.min(slice.len());
            skip -= skipped;
            Some(&slice[skipped..]).filter(|slice| !slice.is_empty())
        })
    }

    /// Fills `slices` with the bytes after the first `skip` ones.
    ///
    /// Returns the number of slices filled.
    pub(crate) fn slices<'a>(&'a self, skip: usize, slices: &mut [IoSlice<'a>]) -> usize {
        let filled = slices
            .iter_mut()
            .zip(self.slices_from(skip))
            .map(|(target, slice)| *target = IoSlice::new(slice));
        filled.count()
    }

    /// Returns contiguous bytes for a filter.
    ///
    /// These are at most `limit` bytes after the first `skip` ones. Small slices are copied
    /// together up to the next large slice. A large slice is returned by itself and not copied.
    pub(crate) fn contiguous(&self, skip: usize, limit: usize) -> Cow<'_, [u8]> {
        let is_large = |slice: &&[u8]| slice.len() >= LARGE_SLICE;
        let mut slices = self.slices_from(skip).peekable();
        let first = slices.next().unwrap_or_default();
        if first.len() >= limit || is_large(&first) || slices.peek().is_none_or(is_large) {
            return Cow::Borrowed(&first[..first.len().min(limit)]);
        }
        let mut joined = first.to_vec();
        for slice in slices.take_while(|slice| !is_large(slice)) {
            joined.extend_from_slice(&slice[..slice.len().min(limit - joined.len())]);
        }
        Cow::Owned(joined)
    }

    pub(super) fn accounting(&self) -> BatchAccounting {
        BatchAccounting { queued_bytes: self.queued_bytes, response_bytes: self.response_bytes }
    }

    /// Empties the batch and recycles its buffer; an idle connection holds no buffer.
    ///
    /// Release hooks of bodies run here, so the session must not be locked. Pass the result to
    /// [`WriteQueue::on_batch_written`](super::WriteQueue::on_batch_written).
    pub(crate) fn recycle(&mut self) -> BatchAccounting {
        let accounting = self.accounting();
        let mut bytes = std::mem::take(&mut self.bytes);
        if (1..=MAX_RECYCLED_BUFFER).contains(&bytes.capacity()) {
            bytes.clear();
            BATCH_BUFFER.set(bytes);
        }
        self.front = Vec::new();
        self.bodies = Vec::new();
        self.bulk = Vec::new();
        self.body_bytes = 0;
        self.queued_bytes = 0;
        self.response_bytes = 0;
        accounting
    }
}

/// The bytes of a batch that was written or discarded.
#[derive(Debug)]
pub(crate) struct BatchAccounting {
    pub(super) queued_bytes: u64,
    pub(super) response_bytes: u64,
}
