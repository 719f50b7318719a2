//! The writing half of a connection's driver: everything queued goes out with one vectored call;
//! files by the kernel.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::file::{Ahead, FileSend, Piece, Ready, Region};
use super::stream::WriteHalf;
use super::{Resources, sendfile};
use crate::client::Shared;
use crate::session::{Batch, ByteFilter, Output, Stack};

/// Slices handed to one vectored write.
const MAX_SLICES: usize = 64;
/// Bytes that pass through a filter between two writes: few enough to be still in the core's cache
/// when they are written.
const SEAL_RUN: usize = 512 << 10;
/// The same in one turn, so that others on this thread do not wait for long.
const SEALED_PER_TURN: usize = 1 << 20;
/// From this size on, memory for what is sealed is recycled.
const POOLED: usize = 128 << 10;

pub(super) struct Writer {
    /// `None` once the sending direction has ended.
    half: Option<WriteHalf>,
    /// What is being written, and how much of it is.
    batch: Batch,
    written: usize,
    /// The part of a file that goes out after it.
    region: Option<Region>,
    /// The file of which something was written and something is left.
    current: Option<Ahead>,
    /// The file whose turn is next; nothing of it was written, so control frames still overtake it.
    next: Option<Ahead>,
    /// The file whose last bytes are being written, kept for its hooks.
    finishing: Option<Box<FileSend>>,
    seal: Option<Box<dyn ByteFilter>>,
    /// What a filter made of those bytes of the batch that count as written already: so many bytes
    /// at the front, and how many of them really are.
    sealed: Vec<u8>,
    sealed_length: usize,
    sealed_written: usize,
    /// The connection ended in the middle of something sealed.
    cut_short: bool,
    /// The answers that were read last were for several tasks, so several are likely to call again.
    pub(super) many_callers: bool,
    /// Whether others were already given the chance to add to the next batch.
    yielded: bool,
    /// More could be written at once, but it is for others on this thread to run now.
    pub(super) turn_over: bool,
    shared: Arc<Shared>,
    resources: Arc<Resources>,
    wakers: Vec<Waker>,
}

impl Writer {
    pub(super) fn new(half: WriteHalf, shared: Arc<Shared>, resources: Arc<Resources>) -> Self {
        Self {
            half: Some(half),
            batch: Batch::default(),
            written: 0,
            region: None,
            current: None,
            next: None,
            finishing: None,
            seal: None,
            sealed: Vec::new(),
            sealed_length: 0,
            sealed_written: 0,
            cut_short: false,
            many_callers: false,
            yielded: false,
            turn_over: false,
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
        self.current.is_some() || self.next.is_some() || self.finishing.is_some()
    }

    /// Whether control frames could be written although a file is waited for.
    pub(super) fn takes_control(&self) -> bool {
        let waits_for_disk = self.next.is_some() && self.current.is_none() && self.region.is_none();
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
        self.resources.wrote(&self.shared, bytes.len());
        Ok(())
    }

    /// The connection has ended: lets go of what was not written, whose hooks wait for that.
    pub(super) fn end(&mut self) {
        self.cut_short = self.sealed_written < self.sealed_length;
        self.batch = Batch::default();
        self.written = 0;
        self.forget_sealed();
        self.region = None;
        self.current = None;
        self.next = None;
        self.finishing = None;
    }

    /// Tells the peer that nothing follows, where filters have words for that, and lets go of the
    /// socket, which ends the sending direction.
    pub(super) async fn shut(&mut self) {
        // Inside of something sealed they would only be garbage.
        let Ok(last_words) = Output::collect(|words| {
            if let Some(seal) = self.seal.as_mut().filter(|_| !self.cut_short) {
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
        self.turn_over = false;
        let (mut sealed, mut has_sent_region) = (0, false);
        loop {
            if self.sealed_written < self.sealed_length {
                self.sealed_written += ready!(self.poll_sealed(context))?;
            } else if self.written < self.batch.len() {
                if self.seal.is_some() {
                    if sealed >= SEALED_PER_TURN {
                        return self.end_turn();
                    }
                    sealed += self.seal_run()?;
                } else {
                    self.written += ready!(self.poll_batch(context))?;
                }
            } else if self.region.is_some() {
                if has_sent_region {
                    return self.end_turn();
                }
                ready!(self.poll_region(context))?;
                has_sent_region = true;
            } else if let Some(current) = &mut self.current {
                let ready = ready!(current.as_mut().poll(context))?;
                self.begin(ready)?;
            } else if !ready!(self.poll_next(context))? {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// A socket that takes everything must not keep this thread from others, or the peer unread.
    fn end_turn(&mut self) -> Poll<io::Result<()>> {
        self.turn_over = true;
        Poll::Pending
    }

    fn poll_batch(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let filled = self.batch.slices(self.written, &mut slices);
        let half = self.half.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let count = ready!(Pin::new(half).poll_write_vectored(context, &slices[..filled]))?;
        Poll::Ready(self.wrote(count))
    }

    fn poll_sealed(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let half = self.half.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let count = ready!(
            Pin::new(half)
                .poll_write(context, &self.sealed[self.sealed_written..self.sealed_length])
        )?;
        Poll::Ready(self.wrote(count))
    }

    fn wrote(&self, count: usize) -> io::Result<usize> {
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.resources.wrote(&self.shared, count);
        Ok(count)
    }

    fn poll_region(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let half = self.half.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let socket = half.socket().ok_or(io::ErrorKind::Unsupported)?;
        while let Some(region) = self.region.as_mut().filter(|region| region.left > 0) {
            let count = ready!(sendfile::send(socket, region, context))?;
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
            Piece::Cached(_) if self.seal.is_some() => {
                return Err(io::Error::other(
                    "filters were installed while a file was about to be sent",
                ));
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
        let socket = self.half.as_ref().is_some_and(|half| half.socket().is_some());
        let native = self.resources.native_file_transfer && self.seal.is_none() && socket;
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
            self.seal = Stack::of(session.seal.take(), self.seal.take());
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
            let Some(next) = &mut self.next else {
                // A quiet connection keeps no large buffer.
                self.forget_sealed();
                return Poll::Ready(Ok(false));
            };
            let ready = ready!(next.as_mut().poll(context))?;
            self.next = None;
            self.begin(ready)?;
            return Poll::Ready(Ok(true));
        }
        // With several callers about, others are likely to add more at once: one round through the
        // scheduler makes one write out of many. A lone caller, whatever it has outstanding, has
        // added what it had before this runs.
        if !self.yielded && self.many_callers && session.requests.outstanding() > 1 {
            self.yielded = true;
            drop(session);
            self.wake();
            // Not tokio's `yield_now`, which puts this behind all that comes: half the rate with 64
            // callers.
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

    /// Passes the next bytes of the batch through the filter; returns how many.
    fn seal_run(&mut self) -> io::Result<usize> {
        let Some(seal) = &mut self.seal else { return Ok(0) };
        let count = (self.batch.len() - self.written).min(SEAL_RUN);
        if self.sealed.is_empty() {
            // With room for what ciphers add. Much fresh memory would cost a page fault for every 4
            // KiB.
            self.sealed = match count + count / 50 + 128 {
                large @ POOLED.. => self.resources.pool.take(large),
                small => Vec::with_capacity(small),
            };
        }
        let mut output = Output::new(&mut [], &mut self.sealed);
        let end = self.written + count;
        while self.written < end {
            let plain = self.batch.run(self.written, end - self.written);
            seal.transform(&plain, &mut output).map_err(io::Error::other)?;
            self.written += plain.len();
        }
        (_, self.sealed_length) = output.lengths();
        self.sealed_written = 0;
        Ok(count)
    }

    fn forget_sealed(&mut self) {
        self.resources.pool.put(std::mem::take(&mut self.sealed));
        self.sealed_length = 0;
        self.sealed_written = 0;
    }
}
