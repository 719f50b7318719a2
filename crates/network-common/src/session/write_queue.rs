//! What waits to be written: two lanes (control, bulk) and how much of it there may be.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;

use super::RequestKey;
use crate::buffer::{Content, ManagedBuffer};
use crate::error::{ErrorKind, TransportError};
use crate::protocol::Message;

/// Bodies up to this size are copied behind their header: cheaper than a slice of their own in a
/// vectored write.
const INLINE_BODY: usize = 4 << 10;
/// From this size on, a filter that begins anew costs less than the copy that would spare it.
const LARGE_PART: usize = 64 << 10;
/// Small bulk bodies are written together up to here; a control frame waits for no more than this
/// or one body.
const BULK_GATHER: usize = 256 << 10;
/// Bodies in the bulk lane, of whatever size; beyond, the stream manager is not asked for more.
const MAX_BULK_ITEMS: usize = 64;

/// No larger buffer is kept for the next batch.
const MAX_SPARE: usize = 256 << 10;

thread_local! {
    /// The buffer of a batch that was written, for the next one of any connection. Gone while a
    /// thread ends, whose last words may have to be queued.
    static BATCH_BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Frames that are written together: one run of bytes, into which larger bodies are spliced without
/// copying.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    /// Each stands before the byte of `bytes` with that index.
    bodies: Vec<(usize, Bytes)>,
    body_bytes: usize,
    /// How many of the bytes count in the queue, and how many of those answer the peer.
    queued_bytes: u64,
    response_bytes: u64,
    /// Bulk items whose content is in here, kept for their hooks.
    items: Vec<BulkMessage>,
}

impl Batch {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() + self.body_bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends bytes that are part of no frame of this batch: a piece of a body.
    pub(crate) fn push_piece(&mut self, piece: Bytes) {
        self.body_bytes += piece.len();
        self.bodies.push((self.bytes.len(), piece));
    }

    /// Appends the header of a message whose body, of `in_frame` bytes, is written by other means.
    pub(crate) fn push_header(&mut self, message: &Message<()>, in_frame: u64) {
        if self.bytes.capacity() == 0 {
            self.bytes = BATCH_BUFFER.try_with(Cell::take).unwrap_or_default();
        }
        message.encode_header(in_frame, &mut self.bytes);
    }

    /// Takes `body` only if it is not copied: what its owner does when it is dropped must not
    /// happen under the lock.
    fn push(&mut self, message: &Message<()>, in_frame: u64, body: &mut Bytes) -> u64 {
        let before = self.len();
        self.push_header(message, in_frame);
        if body.len() <= INLINE_BODY {
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

    /// The bytes from `skip` on, in pieces.
    fn slices_from(&self, mut skip: usize) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.bodies.iter().map(|(position, _)| *position));
        let spliced = self.bodies.iter().zip(starts);
        let last = self.bodies.last().map_or(0, |(position, _)| *position);
        spliced
            .flat_map(|((position, body), start)| [&self.bytes[start..*position], &body[..]])
            .chain([&self.bytes[last..]])
            .filter_map(move |part| {
                let skipped = skip.min(part.len());
                skip -= skipped;
                Some(&part[skipped..]).filter(|part| !part.is_empty())
            })
    }

    /// The bytes from `skip` on, as many as fit into `slices`; returns how many slices were filled.
    pub(crate) fn slices<'a>(&'a self, skip: usize, slices: &mut [IoSlice<'a>]) -> usize {
        let filled = slices
            .iter_mut()
            .zip(self.slices_from(skip))
            .map(|(slice, part)| *slice = IoSlice::new(part));
        filled.count()
    }

    /// The bytes from `skip` on, at most `limit` of them: for a filter. Small parts are gathered up
    /// to the next large one, which is a run of its own and not copied.
    pub(crate) fn contiguous(&self, skip: usize, limit: usize) -> Cow<'_, [u8]> {
        let is_large = |part: &&[u8]| part.len() >= LARGE_PART;
        let mut parts = self.slices_from(skip).peekable();
        let first = parts.next().unwrap_or_default();
        if first.len() >= limit || is_large(&first) || parts.peek().is_none_or(is_large) {
            return Cow::Borrowed(&first[..first.len().min(limit)]);
        }
        let mut run = first.to_vec();
        for part in parts.take_while(|part| !is_large(part)) {
            run.extend_from_slice(&part[..part.len().min(limit - run.len())]);
        }
        Cow::Owned(run)
    }

    /// Empty again, without a buffer: a quiet connection holds none. Not under the lock: hooks of
    /// bodies run here. [`Outgoing::written`] is to be told.
    pub(crate) fn recycle(&mut self) -> BatchAccounting {
        let written = BatchAccounting { counted: self.queued_bytes, answers: self.response_bytes };
        let mut bytes = std::mem::take(&mut self.bytes);
        if (1..=MAX_SPARE).contains(&bytes.capacity()) {
            bytes.clear();
            BATCH_BUFFER.set(bytes);
        }
        self.bodies = Vec::new();
        self.items = Vec::new();
        self.body_bytes = 0;
        self.queued_bytes = 0;
        self.response_bytes = 0;
        written
    }
}

/// How much a batch that was written or given up counted for.
#[derive(Debug)]
pub(crate) struct BatchAccounting {
    counted: u64,
    answers: u64,
}

/// What will not be written any more; to be dropped outside the lock, as hooks of bodies run then.
#[must_use]
#[derive(Debug)]
pub(crate) struct DiscardedFrames {
    _batches: [Batch; 2],
    _bulk: VecDeque<BulkMessage>,
}

/// One message with a body of any size: the unit of the bulk lane.
pub(crate) struct BulkMessage {
    pub(crate) message: Message<()>,
    pub(crate) body: ManagedBuffer,
    /// The request that fails if the data of an upload cannot be read.
    pub(crate) upload: Option<RequestKey>,
}

impl std::fmt::Debug for BulkMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BulkItem")
            .field("message", &self.message)
            .field("body", &self.body)
            .finish()
    }
}

impl BulkMessage {
    /// Bytes of memory it holds while it waits: its own, those of its body, unless that is in a
    /// file, and texts that the peer chose.
    fn memory_size(&self) -> u64 {
        let texts = match &self.message {
            Message::StreamResponse { stream_id, .. } => stream_id.len(),
            Message::StreamFailure { stream_id, error } => stream_id.len() + error.len(),
            Message::ChunkFetchFailure { error, .. } => error.len(),
            Message::UploadStream { meta, .. } => meta.len(),
            _ => 0,
        };
        let body = match self.body.content() {
            Content::Memory(bytes) => bytes.len(),
            Content::File(_) => 0,
        };
        (size_of::<Self>() + texts + body) as u64
    }

    /// Bytes of the body that count into the frame's length.
    pub(crate) fn in_frame(&self) -> u64 {
        match self.message {
            Message::ChunkFetchSuccess { .. } | Message::MergedBlockMetaSuccess { .. } => {
                self.body.len()
            }
            _ => 0,
        }
    }
}

#[derive(Debug)]
pub(crate) struct WriteQueue {
    /// Control frames that were queued before filters were installed: they go first, unsealed.
    unsealed: Option<Batch>,
    control: Batch,
    bulk: VecDeque<BulkMessage>,
    /// Bytes of memory in both lanes and in the batch that is being written.
    queued: u64,
    /// How many of them answer the peer.
    answers: u64,
    limit: u64,
    limit_setting: Arc<str>,
}

impl WriteQueue {
    pub(crate) fn new(limit: u64, limit_setting: Arc<str>) -> Self {
        Self {
            unsealed: None,
            control: Batch::default(),
            bulk: VecDeque::new(),
            queued: 0,
            answers: 0,
            limit,
            limit_setting,
        }
    }

    /// A request of any size goes in while there is room at all, so that nothing is too large for
    /// ever.
    pub(super) fn check_capacity(
        &self,
        operation: &str,
        peer: SocketAddr,
    ) -> Result<(), TransportError> {
        if self.has_capacity() {
            return Ok(());
        }
        Err(TransportError::new(
            ErrorKind::Limit,
            format!(
                "{operation} to {peer} refused: {} bytes wait to be written already, and {} allows {}",
                self.queued, self.limit_setting, self.limit
            ),
        )
        .with_peer(peer))
    }

    pub(crate) fn has_capacity(&self) -> bool {
        self.queued < self.limit
    }

    pub(super) fn answers_over_limit(&self) -> bool {
        self.answers >= self.limit
    }

    /// Whether the stream manager may be asked for another body.
    pub(crate) fn can_queue_body(&self) -> bool {
        self.bulk.len() < MAX_BULK_ITEMS && !self.answers_over_limit()
    }

    pub(crate) fn queued(&self) -> u64 {
        self.queued
    }

    pub(super) fn push_control(&mut self, message: &Message<()>, body: &mut Bytes) {
        let answers = self.control.response_bytes;
        self.queued += self.control.push(message, body.len() as u64, body);
        self.answers += self.control.response_bytes - answers;
    }

    pub(super) fn push_bulk(&mut self, item: BulkMessage) {
        self.queued += item.memory_size();
        self.answers += if item.message.is_request() { 0 } else { item.memory_size() };
        self.bulk.push_back(item);
    }

    fn pop_bulk(&mut self) -> Option<BulkMessage> {
        let item = self.bulk.pop_front()?;
        self.queued = self.queued.saturating_sub(item.memory_size());
        self.answers = self.answers.saturating_sub(if item.message.is_request() {
            0
        } else {
            item.memory_size()
        });
        Some(item)
    }

    pub(super) fn mark_unsealed(&mut self) {
        if !self.control.is_empty() {
            self.unsealed = Some(std::mem::take(&mut self.control));
        }
    }

    /// Whether the next batch is to be sealed by filters that were just installed.
    pub(crate) fn unsealed_is_written(&self) -> bool {
        self.unsealed.is_none()
    }

    /// Nothing waits and nothing is being written.
    pub(super) fn is_drained(&self) -> bool {
        self.queued == 0 && self.is_empty(true)
    }

    /// Whether nothing waits; without `bodies`, nothing of the control lane.
    pub(crate) fn is_empty(&self, bodies: bool) -> bool {
        self.unsealed.is_none() && self.control.is_empty() && (!bodies || self.bulk.is_empty())
    }

    /// Moves what is to be written next into `batch`, which must be empty: all control frames,
    /// then, if `bodies` may come, those in memory.
    pub(crate) fn fill_batch(&mut self, batch: &mut Batch, bodies: bool) {
        if let Some(unsealed) = self.unsealed.take() {
            *batch = unsealed;
            return;
        }
        std::mem::swap(&mut self.control, batch);
        let mut gathered = 0;
        while let Some(item) = self.bulk.front().filter(|_| bodies) {
            let size = item.body.len() as usize;
            match item.body.content() {
                Content::Memory(bytes) if gathered == 0 || gathered + size <= BULK_GATHER => {
                    let mut bytes = bytes.clone();
                    // From now on the batch counts it.
                    let added = batch.push(&item.message, item.in_frame(), &mut bytes);
                    self.queued += added;
                    self.answers += if item.message.is_request() { 0 } else { added };
                    gathered += size.max(1);
                    batch.items.extend(self.pop_bulk());
                }
                _ => break,
            }
        }
    }

    /// The next body, if it is in a file.
    pub(crate) fn pop_file_body(&mut self) -> Option<BulkMessage> {
        match self.bulk.front()?.body.content() {
            Content::File(_) => self.pop_bulk(),
            Content::Memory(_) => None,
        }
    }

    /// A batch was written or given up.
    pub(crate) fn on_batch_written(&mut self, written: &BatchAccounting) {
        self.queued = self.queued.saturating_sub(written.counted);
        self.answers = self.answers.saturating_sub(written.answers);
    }

    pub(super) fn clear(&mut self) -> DiscardedFrames {
        self.queued = 0;
        self.answers = 0;
        DiscardedFrames {
            _batches: [self.unsealed.take().unwrap_or_default(), std::mem::take(&mut self.control)],
            _bulk: std::mem::take(&mut self.bulk),
        }
    }
}
