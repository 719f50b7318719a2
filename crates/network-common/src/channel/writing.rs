//! The writing half of a connection's driver: everything queued goes out with one vectored call; files by the kernel.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use futures::future::BoxFuture;
use tokio::io::AsyncWrite;
use tokio::net::tcp::OwnedWriteHalf;

use super::Resources;
use super::file::{FileSend, Sent, read_ahead};
use crate::client::Shared;
use crate::session::{Batch, BulkItem, ByteFilter};

/// Slices handed to one vectored write.
const MAX_SLICES: usize = 64;

type Ahead = BoxFuture<'static, io::Result<(FileSend, bytes::Bytes, bytes::Bytes)>>;

pub(super) struct Writer {
    state: State,
    /// What is being written, and how much of it is.
    batch: Batch,
    written: usize,
    seal: Option<Box<dyn ByteFilter>>,
    /// Whether others were already given the chance to add to the next batch.
    yielded: bool,
    shared: Arc<Shared>,
    resources: Arc<Resources>,
    wakers: Vec<Waker>,
}

enum State {
    /// The socket is here.
    Ready(OwnedWriteHalf),
    /// A blocking thread has the socket and sends files.
    Away(BoxFuture<'static, io::Result<Sent>>),
    /// The peer does not read; the file waits for it.
    Stalled(OwnedWriteHalf, FileSend),
    /// A file passes through memory; the next piece is being read.
    Copying(OwnedWriteHalf, Ahead),
    /// The socket is lost.
    Gone,
}

impl Writer {
    pub(super) fn new(half: OwnedWriteHalf, shared: Arc<Shared>, resources: Arc<Resources>) -> Self {
        Self {
            state: State::Ready(half),
            batch: Batch::default(),
            written: 0,
            seal: None,
            yielded: false,
            shared,
            resources,
            wakers: Vec::new(),
        }
    }

    /// Whether a file is on its way, which the session does not know of.
    pub(super) fn is_sending_file(&self) -> bool {
        !matches!(self.state, State::Ready(_))
    }

    /// Lets go of the socket, which ends the sending direction.
    pub(super) fn shut(&mut self) {
        self.state = State::Gone;
    }

    /// Writes until nothing is left (`Ready`) or the socket takes no more.
    pub(super) fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match &mut self.state {
                State::Ready(half) => {
                    if self.written < self.batch.len() {
                        ready!(write_some(
                            half,
                            context,
                            &self.batch,
                            &mut self.written,
                            &self.shared,
                            &self.resources
                        ))?;
                    } else if !ready!(self.poll_next(context))? {
                        return Poll::Ready(Ok(()));
                    }
                }
                State::Gone => return Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
                State::Away(sending) => match ready!(sending.as_mut().poll(context))? {
                    Sent::All(half) => self.state = State::Ready(half),
                    Sent::Stalled(half, send) => self.state = State::Stalled(half, send),
                    Sent::Unsupported(half, send) => self.copy(half, send),
                },
                State::Stalled(half, _) => {
                    ready!(half.as_ref().poll_write_ready(context))?;
                    if let State::Stalled(half, send) = std::mem::replace(&mut self.state, State::Gone) {
                        self.send(half, send);
                    }
                }
                State::Copying(half, ahead) => {
                    if self.written < self.batch.len() {
                        ready!(write_some(
                            half,
                            context,
                            &self.batch,
                            &mut self.written,
                            &self.shared,
                            &self.resources
                        ))?;
                        continue;
                    }
                    let (send, head, piece) = ready!(ahead.as_mut().poll(context))?;
                    self.batch = Batch::default();
                    self.written = 0;
                    let ended = head.is_empty() && piece.is_empty();
                    if !head.is_empty() {
                        self.batch.push_piece(head);
                    }
                    if !piece.is_empty() {
                        self.batch.push_piece(piece);
                    }
                    self.apply_seal()?;
                    if let State::Copying(half, _) = std::mem::replace(&mut self.state, State::Gone) {
                        if ended {
                            self.state = State::Ready(half);
                        } else {
                            // Read while this piece is written.
                            self.copy(half, send);
                        }
                    }
                }
            }
        }
    }

    /// Takes what is to be written next; false: there is nothing.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut session = self.shared.session.lock();
        session.outgoing.written(&mut self.batch);
        session.room_made(&mut self.wakers);
        self.written = 0;
        if session.outgoing.is_empty() {
            drop(session);
            self.wake();
            return Poll::Ready(Ok(false));
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
        if session.seal.is_some() && session.outgoing.unsealed_is_written() {
            self.seal = session.seal.take();
        }
        let file = session.outgoing.take(&mut self.batch);
        drop(session);
        self.wake();
        self.apply_seal()?;
        if let Some(item) = file {
            self.start_file(item);
        }
        Poll::Ready(Ok(true))
    }

    fn wake(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
    }

    fn apply_seal(&mut self) -> io::Result<()> {
        if let Some(seal) = &mut self.seal {
            let plain = self.batch.contiguous();
            if !plain.is_empty() {
                let mut sealed = Vec::with_capacity(plain.len() + 64);
                seal.transform(&plain, &mut sealed).map_err(io::Error::other)?;
                self.batch.replace(sealed);
            }
        }
        Ok(())
    }

    fn start_file(&mut self, item: BulkItem) {
        if let State::Ready(half) = std::mem::replace(&mut self.state, State::Gone) {
            let send = FileSend::new(item);
            if self.resources.native_file_transfer && self.seal.is_none() {
                self.send(half, send);
            } else {
                self.copy(half, send);
            }
        }
    }

    fn copy(&mut self, half: OwnedWriteHalf, send: FileSend) {
        let ahead = read_ahead(send, Arc::clone(&self.shared), Arc::clone(&self.resources));
        self.state = State::Copying(half, Box::pin(ahead));
    }

    #[cfg(target_os = "linux")]
    fn send(&mut self, half: OwnedWriteHalf, send: FileSend) {
        let (shared, resources) = (Arc::clone(&self.shared), Arc::clone(&self.resources));
        let thread =
            tokio::task::spawn_blocking(move || super::file::send_files(half, send, &shared, &resources));
        self.state = State::Away(Box::pin(async move { thread.await.map_err(io::Error::other)? }));
    }

    #[cfg(not(target_os = "linux"))]
    fn send(&mut self, half: OwnedWriteHalf, send: FileSend) {
        self.copy(half, send);
    }
}

fn write_some(
    half: &mut OwnedWriteHalf,
    context: &mut Context<'_>,
    batch: &Batch,
    written: &mut usize,
    shared: &Shared,
    resources: &Resources,
) -> Poll<io::Result<()>> {
    let mut slices = [IoSlice::new(&[]); MAX_SLICES];
    let filled = batch.slices(*written, &mut slices);
    let count = ready!(Pin::new(half).poll_write_vectored(context, &slices[..filled]))?;
    if count == 0 {
        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
    }
    *written += count;
    resources.wrote(shared, count);
    Poll::Ready(Ok(()))
}
