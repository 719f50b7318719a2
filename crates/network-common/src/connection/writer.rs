//! The writing half of a connection's driver: batches in vectored writes, files by `sendfile`.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::ConnectionResources;
use super::file_body::{FileBody, FilePiece, PieceFuture, PreparedPiece};
use super::sealer::Sealer;
use super::sendfile::{self, FileRegion};
use crate::client::SharedConnection;
use crate::net::WriteHalf;
use crate::session::{Batch, BulkMessage, ByteFilter};

/// Maximal number of slices of one vectored write.
const MAX_SLICES: usize = 64;
/// Number of bytes that one poll seals before other tasks of this thread run.
const SEALED_PER_POLL: usize = 1 << 20;

/// Writes the session's write queue to the socket.
pub(super) struct Writer {
    /// `None` after the end of the sending direction.
    io: Option<WriteHalf>,
    batch: Batch,
    /// Number of bytes of the batch that are written or sealed.
    batch_written: usize,
    /// The part of a file that is sent after the batch.
    region: Option<FileRegion>,
    /// The next piece of a file that is partly written.
    current_file: Option<PieceFuture>,
    /// The first piece of the next file.
    ///
    /// No byte of the file is written, so control frames go first.
    next_file: Option<PieceFuture>,
    /// The file whose last bytes are being written, kept for its release hooks.
    finished_file: Option<Box<FileBody>>,
    /// The bytes of the batch that are a piece of a file in memory.
    piece_bytes: usize,
    sealer: Sealer,
    /// The last responses woke several tasks, which probably send further requests.
    pub(super) has_concurrent_callers: bool,
    /// Other tasks have had the chance to add to the next batch.
    has_yielded: bool,
    /// The last poll ended although the socket may accept more bytes.
    pub(super) is_budget_spent: bool,
    shared: Arc<SharedConnection>,
    resources: Arc<ConnectionResources>,
    wakers: Vec<Waker>,
}

impl Writer {
    pub(super) fn new(
        io: WriteHalf,
        shared: Arc<SharedConnection>,
        resources: Arc<ConnectionResources>,
    ) -> Self {
        Self {
            io: Some(io),
            batch: Batch::default(),
            batch_written: 0,
            region: None,
            current_file: None,
            next_file: None,
            finished_file: None,
            piece_bytes: 0,
            sealer: Sealer::default(),
            has_concurrent_callers: false,
            has_yielded: false,
            is_budget_spent: false,
            shared,
            resources,
            wakers: Vec::new(),
        }
    }

    pub(super) fn has_filter(&self) -> bool {
        self.sealer.has_filter()
    }

    /// Returns whether a file that has left the write queue is not completely written.
    pub(super) fn is_sending_file(&self) -> bool {
        self.current_file.is_some() || self.next_file.is_some() || self.finished_file.is_some()
    }

    /// Returns the bytes of memory that the write queue does not count.
    ///
    /// These are sealed bytes, and the current and the next piece of a file in memory.
    pub(super) fn buffer_size(&self) -> usize {
        2 * self.piece_bytes + self.sealer.buffer_size()
    }

    /// Returns whether control frames can be written while the next file is prepared.
    pub(super) fn can_write_control(&self) -> bool {
        let is_preparing =
            self.next_file.is_some() && self.current_file.is_none() && self.region.is_none();
        is_preparing && self.is_batch_written()
    }

    fn is_batch_written(&self) -> bool {
        self.batch_written == self.batch.len() && !self.sealer.has_unwritten()
    }

    /// Installs the filter of a handshake, through which all following bytes pass.
    pub(super) fn install_filter(&mut self, seal_filter: Box<dyn ByteFilter>) {
        self.sealer.install(Some(seal_filter));
    }

    /// Writes bytes of a handshake, before frames are written.
    pub(super) async fn write_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        let io = self.io.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        io.write_all(bytes).await?;
        self.resources.count_sent(&self.shared, bytes.len());
        Ok(())
    }

    /// Discards all unwritten bytes of a closed connection.
    ///
    /// Release hooks of bodies run here.
    pub(super) fn discard(&mut self) {
        self.batch = Batch::default();
        self.batch_written = 0;
        self.piece_bytes = 0;
        self.sealer.discard(&self.resources.pool);
        self.region = None;
        self.current_file = None;
        self.next_file = None;
        self.finished_file = None;
    }

    /// Ends the sending direction, after the end mark of the filters if there is one.
    pub(super) async fn shutdown(&mut self) {
        let close_notify = self.sealer.close_notify();
        if let Err(error) = self.write_raw(&close_notify).await {
            tracing::debug!(peer = %self.shared.peer, %error, "sending close_notify failed");
        }
        self.io = None;
    }

    /// Writes until everything is written, and then returns `Ready`.
    ///
    /// Returns `Pending` when the socket or a file is not ready, or the poll budget is spent
    /// ([`is_budget_spent`](Self::is_budget_spent)).
    pub(super) fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_budget_spent = false;
        let (mut sealed, mut has_sent_region) = (0, false);
        loop {
            if self.sealer.has_unwritten() {
                let count = ready!(self.poll_sealed(context))?;
                self.sealer.advance(count);
            } else if self.batch_written < self.batch.len() {
                if self.sealer.has_filter() {
                    if sealed >= SEALED_PER_POLL {
                        return self.spend_budget();
                    }
                    let pool = &self.resources.pool;
                    let count = self.sealer.seal(&self.batch, self.batch_written, pool)?;
                    self.batch_written += count;
                    sealed += count;
                } else {
                    self.batch_written += ready!(self.poll_batch(context))?;
                }
            } else if self.region.is_some() {
                if has_sent_region {
                    return self.spend_budget();
                }
                ready!(self.poll_region(context))?;
                has_sent_region = true;
            } else if let Some(current_file) = &mut self.current_file {
                let prepared = ready!(current_file.as_mut().poll(context))?;
                self.start_piece(prepared)?;
            } else if !ready!(self.poll_next(context))? {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Ends the poll, so that other tasks of this thread and the reader can run.
    fn spend_budget(&mut self) -> Poll<io::Result<()>> {
        self.is_budget_spent = true;
        Poll::Pending
    }

    fn poll_batch(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.region.is_some()
            && let Some(socket) = self.io.as_ref().and_then(WriteHalf::socket)
        {
            // The batch is the header of the region.
            let header =
                self.batch.contiguous(self.batch_written, self.batch.len() - self.batch_written);
            let count = ready!(sendfile::send_header(socket, &header, context))?;
            return Poll::Ready(self.count_sent(count));
        }
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let filled = self.batch.slices(self.batch_written, &mut slices);
        let io = self.io.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let count = ready!(Pin::new(io).poll_write_vectored(context, &slices[..filled]))?;
        Poll::Ready(self.count_sent(count))
    }

    fn poll_sealed(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let io = self.io.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let count = ready!(Pin::new(io).poll_write(context, self.sealer.unwritten()))?;
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
        let io = self.io.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let socket = io.socket().ok_or(io::ErrorKind::Unsupported)?;
        while let Some(region) = self.region.as_mut().filter(|region| region.remaining > 0) {
            let count = ready!(sendfile::send(socket, region, context))?;
            self.resources.metrics.sendfile_bytes.fetch_add(count as u64, Ordering::Relaxed);
            self.resources.count_sent(&self.shared, count);
        }
        self.region = None;
        Poll::Ready(Ok(()))
    }

    /// Starts to write a prepared piece, and to prepare the piece after it.
    fn start_piece(&mut self, prepared: PreparedPiece) -> io::Result<()> {
        self.batch = Batch::default();
        self.batch_written = 0;
        if !prepared.header.is_empty() {
            self.batch.push_piece(prepared.header.into());
        }
        match prepared.piece {
            FilePiece::Memory(bytes) => {
                self.piece_bytes = bytes.len();
                self.batch.push_piece(bytes);
            }
            FilePiece::Cached(_) if self.sealer.has_filter() => {
                return Err(io::Error::other(
                    "filters were installed after a file was prepared for sendfile",
                ));
            }
            FilePiece::Cached(region) => self.region = Some(region),
            FilePiece::Empty => {}
        }
        if prepared.is_last {
            self.current_file = None;
            self.finished_file = Some(prepared.body);
            let following = self.shared.session.lock().outgoing.pop_file_body();
            self.next_file = self.prepare_file(following);
        } else {
            self.current_file = Some(prepared.body.prepare(&self.shared, &self.resources));
        }
        Ok(())
    }

    fn prepare_file(&self, bulk: Option<BulkMessage>) -> Option<PieceFuture> {
        let has_socket = self.io.as_ref().is_some_and(|io| io.socket().is_some());
        let can_sendfile = self.resources.can_sendfile && !self.sealer.has_filter() && has_socket;
        Some(FileBody::new(bulk?, can_sendfile)?.prepare(&self.shared, &self.resources))
    }

    /// Takes the next frames or the next file from the write queue.
    ///
    /// Returns false if there are none.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        self.finished_file = None;
        self.piece_bytes = 0;
        let accounting = self.batch.recycle();
        let shared = Arc::clone(&self.shared);
        let mut session = shared.session.lock();
        session.outgoing.on_batch_written(&accounting);
        session.take_capacity_wakers(&mut self.wakers);
        self.batch_written = 0;
        if session.seal_filter.is_some() && session.outgoing.unsealed_is_written() {
            self.sealer.install(session.seal_filter.take());
        }
        let file = if self.next_file.is_none() { session.outgoing.pop_file_body() } else { None };
        if file.is_some() {
            // Not under the lock: a runtime that shuts down drops the task of the file and with it
            // the body, whose release hooks then run.
            drop(session);
            self.next_file = self.prepare_file(file);
            session = shared.session.lock();
        }
        let with_bodies = self.next_file.is_none();
        if session.outgoing.is_empty(with_bodies) {
            drop(session);
            self.wake();
            let Some(next_file) = &mut self.next_file else {
                self.sealer.release_buffer(&self.resources.pool);
                return Poll::Ready(Ok(false));
            };
            let prepared = ready!(next_file.as_mut().poll(context))?;
            self.next_file = None;
            self.start_piece(prepared)?;
            return Poll::Ready(Ok(true));
        }
        // Yields once, so that concurrent callers can add to the batch. A single caller has queued
        // all its requests before this task runs.
        if !self.has_yielded && self.has_concurrent_callers && session.requests.len() > 1 {
            self.has_yielded = true;
            drop(session);
            self.wake();
            // tokio's `yield_now` runs this task after all others: half the rate with 64 callers.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.has_yielded = false;
        session.outgoing.fill_batch(&mut self.batch, with_bodies);
        drop(session);
        self.wake();
        Poll::Ready(Ok(true))
    }

    fn wake(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
    }
}
