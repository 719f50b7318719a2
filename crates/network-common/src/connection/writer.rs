//! The writing half of a connection's driver: everything queued goes out with one vectored call;
//! files by the kernel.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::file_body::{FileBody, FilePiece, FileRegion, PieceFuture, PreparedPiece};
use super::{ConnectionResources, sendfile};
use crate::client::SharedConnection;
use crate::net::WriteHalf;
use crate::session::{Batch, ByteFilter, FilterChain, FilterOutput};

/// Slices handed to one vectored write.
const MAX_SLICES: usize = 64;
/// Bytes that pass through a filter between two writes: few enough to be still in the core's cache
/// when they are written.
const SEAL_STEP: usize = 512 << 10;
/// The same in one turn, so that others on this thread do not wait for long.
const SEALED_PER_POLL: usize = 1 << 20;
/// From this size on, memory for what is sealed is recycled.
const POOLED: usize = 128 << 10;

pub(super) struct Writer {
    /// `None` once the sending direction has ended.
    half: Option<WriteHalf>,
    /// What is being written, and how much of it is.
    batch: Batch,
    written: usize,
    /// The part of a file that goes out after it.
    region: Option<FileRegion>,
    /// The file of which something was written and something is left.
    current_file: Option<PieceFuture>,
    /// The file whose turn is next; nothing of it was written, so control frames still overtake it.
    next_file: Option<PieceFuture>,
    /// The file whose last bytes are being written, kept for its hooks.
    finished_file: Option<Box<FileBody>>,
    seal: Option<Box<dyn ByteFilter>>,
    /// What a filter made of those bytes of the batch that count as written already: so many bytes
    /// at the front, and how many of them really are.
    sealed: Vec<u8>,
    sealed_length: usize,
    sealed_written: usize,
    /// The connection ended in the middle of something sealed.
    is_record_cut: bool,
    /// The answers that were read last were for several tasks, so several are likely to call again.
    pub(super) has_concurrent_callers: bool,
    /// Whether others were already given the chance to add to the next batch.
    yielded: bool,
    /// More could be written at once, but it is for others on this thread to run now.
    pub(super) is_budget_spent: bool,
    shared: Arc<SharedConnection>,
    resources: Arc<ConnectionResources>,
    wakers: Vec<Waker>,
}

impl Writer {
    pub(super) fn new(
        half: WriteHalf,
        shared: Arc<SharedConnection>,
        resources: Arc<ConnectionResources>,
    ) -> Self {
        Self {
            half: Some(half),
            batch: Batch::default(),
            written: 0,
            region: None,
            current_file: None,
            next_file: None,
            finished_file: None,
            seal: None,
            sealed: Vec::new(),
            sealed_length: 0,
            sealed_written: 0,
            is_record_cut: false,
            has_concurrent_callers: false,
            yielded: false,
            is_budget_spent: false,
            shared,
            resources,
            wakers: Vec::new(),
        }
    }

    /// Whether filters are installed.
    pub(super) fn is_sealed(&self) -> bool {
        self.seal.is_some()
    }

    /// Whether a file is on its way, which the session no longer knows of.
    pub(super) fn is_sending_file(&self) -> bool {
        self.current_file.is_some() || self.next_file.is_some() || self.finished_file.is_some()
    }

    /// Whether control frames could be written although a file is waited for.
    pub(super) fn can_write_control(&self) -> bool {
        let waits_for_disk =
            self.next_file.is_some() && self.current_file.is_none() && self.region.is_none();
        waits_for_disk && self.is_written()
    }

    /// Whether the batch is on its way.
    fn is_written(&self) -> bool {
        self.written == self.batch.len() && self.sealed_written == self.sealed_length
    }

    /// All that is written from here on passes through `seal`.
    pub(super) fn install(&mut self, seal: Box<dyn ByteFilter>) {
        self.seal = Some(seal);
    }

    /// Writes bytes of the handshake, before there are messages.
    pub(super) async fn write_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        let half = self.half.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        half.write_all(bytes).await?;
        self.resources.count_sent(&self.shared, bytes.len());
        Ok(())
    }

    /// The connection has ended: lets go of what was not written, whose hooks wait for that.
    pub(super) fn discard(&mut self) {
        self.is_record_cut = self.sealed_written < self.sealed_length;
        self.batch = Batch::default();
        self.written = 0;
        self.discard_sealed();
        self.region = None;
        self.current_file = None;
        self.next_file = None;
        self.finished_file = None;
    }

    /// Tells the peer that nothing follows, where filters have words for that, and lets go of the
    /// socket, which ends the sending direction.
    pub(super) async fn shutdown(&mut self) {
        // Inside of something sealed they would only be garbage.
        let Ok(last_words) = FilterOutput::collect(|words| {
            if let Some(seal) = self.seal.as_mut().filter(|_| !self.is_record_cut) {
                seal.finish(words);
            }
            Ok::<_, std::convert::Infallible>(())
        });
        if let Err(error) = self.write_raw(&last_words).await {
            tracing::debug!(peer = %self.shared.peer, %error, "the peer does not hear that nothing follows");
        }
        self.half = None;
    }

    /// Writes until nothing is left (`Ready`), the socket or disk takes its time, or the turn is
    /// over.
    pub(super) fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_budget_spent = false;
        let (mut sealed, mut has_sent_region) = (0, false);
        loop {
            if self.sealed_written < self.sealed_length {
                self.sealed_written += ready!(self.poll_sealed(context))?;
            } else if self.written < self.batch.len() {
                if self.seal.is_some() {
                    if sealed >= SEALED_PER_POLL {
                        return self.end_poll();
                    }
                    sealed += self.seal_step()?;
                } else {
                    self.written += ready!(self.poll_batch(context))?;
                }
            } else if self.region.is_some() {
                if has_sent_region {
                    return self.end_poll();
                }
                ready!(self.poll_region(context))?;
                has_sent_region = true;
            } else if let Some(current) = &mut self.current_file {
                let ready = ready!(current.as_mut().poll(context))?;
                self.begin(ready)?;
            } else if !ready!(self.poll_next(context))? {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// A socket that takes everything must not keep this thread from others, or the peer unread.
    fn end_poll(&mut self) -> Poll<io::Result<()>> {
        self.is_budget_spent = true;
        Poll::Pending
    }

    fn poll_batch(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let filled = self.batch.slices(self.written, &mut slices);
        let half = self.half.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let count = ready!(Pin::new(half).poll_write_vectored(context, &slices[..filled]))?;
        Poll::Ready(self.count_sent(count))
    }

    fn poll_sealed(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let half = self.half.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let count = ready!(
            Pin::new(half)
                .poll_write(context, &self.sealed[self.sealed_written..self.sealed_length])
        )?;
        Poll::Ready(self.count_sent(count))
    }

    fn count_sent(&self, count: usize) -> io::Result<usize> {
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.resources.count_sent(&self.shared, count);
        Ok(count)
    }

    fn poll_region(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let half = self.half.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let socket = half.socket().ok_or(io::ErrorKind::Unsupported)?;
        while let Some(region) = self.region.as_mut().filter(|region| region.left > 0) {
            let count = ready!(sendfile::send(socket, region, context))?;
            self.resources.metrics.sendfile_bytes.fetch_add(count as u64, Ordering::Relaxed);
            self.resources.count_sent(&self.shared, count);
        }
        self.region = None;
        Poll::Ready(Ok(()))
    }

    /// Goes on with a piece of a file, and has the one after it made ready meanwhile.
    fn begin(&mut self, ready: PreparedPiece) -> io::Result<()> {
        self.batch = Batch::default();
        self.written = 0;
        if !ready.head.is_empty() {
            self.batch.push_piece(ready.head.into());
        }
        match ready.piece {
            FilePiece::Memory(bytes) => self.batch.push_piece(bytes),
            FilePiece::Cached(_) if self.seal.is_some() => {
                return Err(io::Error::other(
                    "filters were installed while a file was about to be sent",
                ));
            }
            FilePiece::Cached(region) => self.region = Some(region),
            FilePiece::Nothing => {}
        }
        if ready.last {
            self.current_file = None;
            self.finished_file = Some(ready.send);
            let following = self.shared.session.lock().outgoing.pop_file_body();
            self.next_file = self.prepare(following);
        } else {
            self.current_file = Some(ready.send.prepare(&self.shared, &self.resources));
        }
        Ok(())
    }

    fn prepare(&self, item: Option<crate::session::BulkMessage>) -> Option<PieceFuture> {
        let socket = self.half.as_ref().is_some_and(|half| half.socket().is_some());
        let native = self.resources.native_file_transfer && self.seal.is_none() && socket;
        Some(FileBody::new(item?, native)?.prepare(&self.shared, &self.resources))
    }

    /// Takes what is to be written next; false: there is nothing.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        self.finished_file = None;
        let written = self.batch.recycle();
        let shared = Arc::clone(&self.shared);
        let mut session = shared.session.lock();
        session.outgoing.on_batch_written(&written);
        session.take_capacity_wakers(&mut self.wakers);
        self.written = 0;
        if session.seal_filter.is_some() && session.outgoing.unsealed_is_written() {
            self.seal = FilterChain::join(session.seal_filter.take(), self.seal.take());
        }
        let file = if self.next_file.is_none() { session.outgoing.pop_file_body() } else { None };
        if file.is_some() {
            // A runtime that shuts down drops what it is given: not under the lock.
            drop(session);
            self.next_file = self.prepare(file);
            session = shared.session.lock();
        }
        let bodies = self.next_file.is_none();
        if session.outgoing.is_empty(bodies) {
            drop(session);
            self.wake();
            let Some(next) = &mut self.next_file else {
                // A quiet connection keeps no large buffer.
                self.discard_sealed();
                return Poll::Ready(Ok(false));
            };
            let ready = ready!(next.as_mut().poll(context))?;
            self.next_file = None;
            self.begin(ready)?;
            return Poll::Ready(Ok(true));
        }
        // With several callers about, others are likely to add more at once: one round through the
        // scheduler makes one write out of many. A lone caller, whatever it has outstanding, has
        // added what it had before this runs.
        if !self.yielded && self.has_concurrent_callers && session.requests.len() > 1 {
            self.yielded = true;
            drop(session);
            self.wake();
            // Not tokio's `yield_now`, which puts this behind all that comes: half the rate with 64
            // callers.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.yielded = false;
        session.outgoing.fill_batch(&mut self.batch, bodies);
        drop(session);
        self.wake();
        Poll::Ready(Ok(true))
    }

    fn wake(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
    }

    /// Passes the next bytes of the batch through the filter; returns how many.
    fn seal_step(&mut self) -> io::Result<usize> {
        let Some(seal) = &mut self.seal else { return Ok(0) };
        let count = (self.batch.len() - self.written).min(SEAL_STEP);
        if self.sealed.is_empty() {
            // With room for what ciphers add. Much fresh memory would cost a page fault for every 4
            // KiB.
            self.sealed = match count + count / 50 + 128 {
                large @ POOLED.. => self.resources.pool.take(large),
                small => Vec::with_capacity(small),
            };
        }
        let mut output = FilterOutput::new(&mut [], &mut self.sealed);
        let end = self.written + count;
        while self.written < end {
            let plain = self.batch.contiguous(self.written, end - self.written);
            seal.transform(&plain, &mut output).map_err(io::Error::other)?;
            self.written += plain.len();
        }
        (_, self.sealed_length) = output.lengths();
        self.sealed_written = 0;
        Ok(count)
    }

    fn discard_sealed(&mut self) {
        self.resources.pool.recycle(std::mem::take(&mut self.sealed));
        self.sealed_length = 0;
        self.sealed_written = 0;
    }
}
