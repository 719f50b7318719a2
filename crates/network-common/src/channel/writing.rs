//! The writing half of a connection's driver: everything queued goes out with one vectored call; files by the kernel.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::AsyncWrite;
use tokio::net::tcp::OwnedWriteHalf;

use super::file::{Ahead, FileSend, Piece, Ready, Region};
use super::{Resources, sendfile};
use crate::client::Shared;
use crate::session::{Batch, ByteFilter};

/// Slices handed to one vectored write.
const MAX_SLICES: usize = 64;
/// How much is sealed at once.
const SEAL_PIECE: usize = 1 << 20;

pub(super) struct Writer {
    /// `None` once the sending direction has ended.
    half: Option<OwnedWriteHalf>,
    /// What is being written, and how much of it is, or is sealed.
    batch: Batch,
    written: usize,
    sealed: Sealed,
    /// The part of a file that goes out after it.
    region: Option<Region>,
    /// The file of which something was written and something is left.
    current: Option<Ahead>,
    /// The file whose turn is next; nothing of it was written, so control frames still overtake it.
    next: Option<Ahead>,
    /// The file whose last bytes are being written, kept for its hooks.
    finishing: Option<FileSend>,
    /// Whether others were already given the chance to add to the next batch.
    yielded: bool,
    shared: Arc<Shared>,
    resources: Arc<Resources>,
    wakers: Vec<Waker>,
}

/// What passes through a filter on its way out.
#[derive(Default)]
struct Sealed {
    filter: Option<Box<dyn ByteFilter>>,
    /// Sealed bytes of the batch, and how many of them are written.
    bytes: Vec<u8>,
    written: usize,
}

impl Sealed {
    fn is_written(&self) -> bool {
        self.written == self.bytes.len()
    }

    /// Seals the next piece of `batch`; returns how much of it that was.
    fn refill(&mut self, batch: &Batch, from: usize) -> io::Result<usize> {
        self.bytes.clear();
        self.written = 0;
        let Some(filter) = &mut self.filter else { return Ok(0) };
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let filled = batch.slices(from, &mut slices);
        let mut taken = 0;
        for slice in &slices[..filled] {
            let piece = &slice[..slice.len().min(SEAL_PIECE - taken)];
            filter.transform(piece, &mut self.bytes).map_err(io::Error::other)?;
            taken += piece.len();
            if taken == SEAL_PIECE {
                break;
            }
        }
        Ok(taken)
    }
}

impl Writer {
    pub(super) fn new(half: OwnedWriteHalf, shared: Arc<Shared>, resources: Arc<Resources>) -> Self {
        Self {
            half: Some(half),
            batch: Batch::default(),
            written: 0,
            sealed: Sealed::default(),
            region: None,
            current: None,
            next: None,
            finishing: None,
            yielded: false,
            shared,
            resources,
            wakers: Vec::new(),
        }
    }

    /// Whether a file is on its way, which the session no longer knows of.
    pub(super) fn is_sending_file(&self) -> bool {
        self.current.is_some() || self.next.is_some() || self.finishing.is_some()
    }

    /// Whether control frames could be written although a file is waited for.
    pub(super) fn takes_control(&self) -> bool {
        let waits_for_disk = self.next.is_some() && self.current.is_none() && self.region.is_none();
        waits_for_disk && self.batch_is_written()
    }

    fn batch_is_written(&self) -> bool {
        self.written == self.batch.len() && self.sealed.is_written()
    }

    /// Lets go of the socket, which ends the sending direction.
    pub(super) fn shut(&mut self) {
        self.half = None;
    }

    /// Writes until nothing is left (`Ready`) or the socket or disk takes its time.
    pub(super) fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if !self.batch_is_written() {
                let count = ready!(self.poll_batch(context))?;
                self.resources.wrote(&self.shared, count);
            } else if self.region.is_some() {
                ready!(self.poll_region(context))?;
            } else if let Some(current) = &mut self.current {
                let ready = ready!(current.as_mut().poll(context))?;
                self.begin(ready)?;
            } else if !ready!(self.poll_next(context))? {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn poll_batch(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let half = self.half.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let count = if self.sealed.filter.is_some() {
            if self.sealed.is_written() {
                self.written += self.sealed.refill(&self.batch, self.written)?;
            }
            if self.sealed.is_written() {
                // Held back by the filter.
                return Poll::Ready(Ok(0));
            }
            let count =
                ready!(Pin::new(half).poll_write(context, &self.sealed.bytes[self.sealed.written..]))?;
            self.sealed.written += count;
            count
        } else {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let filled = self.batch.slices(self.written, &mut slices);
            let count = ready!(Pin::new(half).poll_write_vectored(context, &slices[..filled]))?;
            self.written += count;
            count
        };
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        Poll::Ready(Ok(count))
    }

    fn poll_region(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let half = self.half.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        while let Some(region) = self.region.as_mut().filter(|region| region.left > 0) {
            let count = ready!(sendfile::send(half.as_ref(), region, context))?;
            self.resources.metrics.sendfile_bytes.fetch_add(count as u64, Ordering::Relaxed);
            self.resources.wrote(&self.shared, count);
        }
        self.region = None;
        Poll::Ready(Ok(()))
    }

    /// Goes on with a piece of a file, and has the one after it made ready meanwhile.
    fn begin(&mut self, ready: Ready) -> io::Result<()> {
        self.batch = Batch::default();
        self.written = 0;
        if !ready.head.is_empty() {
            self.batch.push_piece(ready.head.into());
        }
        match ready.piece {
            Piece::Memory(bytes) => self.batch.push_piece(bytes),
            Piece::Cached(_) if self.sealed.filter.is_some() => {
                return Err(io::Error::other("filters were installed while a file was about to be sent"));
            }
            Piece::Cached(region) => self.region = Some(region),
            Piece::Nothing => {}
        }
        if ready.last {
            self.current = None;
            self.finishing = Some(ready.send);
            let following = self.shared.session.lock().outgoing.take_file();
            self.next = self.prepare(following);
        } else {
            self.current = Some(ready.send.prepare(&self.shared, &self.resources));
        }
        Ok(())
    }

    fn prepare(&self, item: Option<crate::session::BulkItem>) -> Option<Ahead> {
        let native = self.resources.native_file_transfer && self.sealed.filter.is_none();
        Some(FileSend::new(item?, native)?.prepare(&self.shared, &self.resources))
    }

    /// Takes what is to be written next; false: there is nothing.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        self.finishing = None;
        let written = self.batch.reset();
        let shared = Arc::clone(&self.shared);
        let mut session = shared.session.lock();
        session.outgoing.written(&written);
        session.room_made(&mut self.wakers);
        self.written = 0;
        if session.seal.is_some() && session.outgoing.unsealed_is_written() {
            self.sealed.filter = session.seal.take();
        }
        let file = if self.next.is_none() { session.outgoing.take_file() } else { None };
        if file.is_some() {
            // A runtime that shuts down drops what it is given: not under the lock.
            drop(session);
            self.next = self.prepare(file);
            session = shared.session.lock();
        }
        let bodies = self.next.is_none();
        if session.outgoing.is_empty(bodies) {
            drop(session);
            self.wake();
            // A quiet connection keeps no buffer.
            self.sealed.bytes = Vec::new();
            self.sealed.written = 0;
            let Some(next) = &mut self.next else { return Poll::Ready(Ok(false)) };
            let ready = ready!(next.as_mut().poll(context))?;
            self.next = None;
            self.begin(ready)?;
            return Poll::Ready(Ok(true));
        }
        // With several callers about, others are likely to add more at once: one round through the scheduler makes one
        // write out of many. A lone caller never waits.
        if !self.yielded && session.requests.outstanding() > 1 {
            self.yielded = true;
            drop(session);
            self.wake();
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.yielded = false;
        session.outgoing.take(&mut self.batch, bodies);
        drop(session);
        self.wake();
        Poll::Ready(Ok(true))
    }

    fn wake(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
    }
}
