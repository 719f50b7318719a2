//! A body on its way from the connection to its reader: a bounded queue of pieces.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use futures::Stream;
use parking_lot::Mutex;

use crate::error::{ErrorKind, TransportError};

/// Bytes that may wait for the reader; beyond, the connection is not read.
const PIPE_LIMIT: usize = 1 << 20;
/// What holding a piece costs beside its bytes.
const PIECE_COST: usize = 96;
/// [`StreamBody::collect`] reserves no more than this at once.
const COLLECT_STEP: u64 = 64 << 20;

#[derive(Debug, Default)]
struct BodyQueue {
    pieces: VecDeque<Bytes>,
    queued: usize,
    end: Option<Result<(), TransportError>>,
    reader: Option<Waker>,
    /// Waits for the end only. Not the reader: that may be another task, which goes on reading.
    probe: Option<Waker>,
    writer: Option<Waker>,
    is_receiver_dropped: bool,
    writer_gone: bool,
    /// The reader has taken every byte.
    drained: bool,
}

/// The connection's end.
#[derive(Debug)]
pub(crate) struct BodySender(Arc<Mutex<BodyQueue>>);

/// The body of a stream or upload as it arrives: a [`Stream`] of pieces and an
/// [`AsyncRead`](tokio::io::AsyncRead).
///
/// It ends after exactly [`len`](Self::len) bytes, or with an error when the connection is lost
/// before; what was delivered until then is valid. Reading is cancel safe. Dropping it early skips
/// the rest and keeps the connection.
///
/// While nobody reads it, at most 1 MiB is held and then **the whole connection stalls**: answers
/// to other requests come behind this body on the same connection. Read it promptly, or use a
/// connection of its own.
pub struct StreamBody {
    pipe: Arc<Mutex<BodyQueue>>,
    stream_id: String,
    length: u64,
    remaining: u64,
    /// The part of a piece that was given back.
    rest: Bytes,
    /// Only here to be dropped: keeps the connection open.
    _connection: Option<Box<dyn Any + Send + Sync>>,
}

/// A body of `length` bytes.
pub(crate) fn body_channel(stream_id: String, length: u64) -> (BodySender, StreamBody) {
    let end = (length == 0).then_some(Ok(()));
    let pipe =
        Arc::new(Mutex::new(BodyQueue { end, drained: length == 0, ..BodyQueue::default() }));
    let body = StreamBody {
        pipe: Arc::clone(&pipe),
        stream_id,
        length,
        remaining: length,
        rest: Bytes::new(),
        _connection: None,
    };
    (BodySender(pipe), body)
}

impl BodySender {
    /// Whether the next piece may come. When the reader has gone the rest is dropped as it comes.
    pub(crate) fn poll_capacity(&self, context: &Context<'_>) -> Poll<()> {
        let mut pipe = self.0.lock();
        if pipe.is_receiver_dropped || pipe.queued < PIPE_LIMIT {
            return Poll::Ready(());
        }
        pipe.writer = Some(context.waker().clone());
        Poll::Pending
    }

    pub(crate) fn push(&self, piece: Bytes) {
        let mut pipe = self.0.lock();
        if pipe.is_receiver_dropped {
            return;
        }
        pipe.queued += piece.len() + PIECE_COST;
        pipe.pieces.push_back(piece);
        wake(pipe.reader.take(), pipe);
    }

    pub(crate) fn finish(self, result: Result<(), TransportError>) {
        self.0.lock().end = Some(result);
    }

    pub(crate) fn probe(&self) -> BodyProgress {
        BodyProgress(Arc::clone(&self.0))
    }
}

impl Drop for BodySender {
    fn drop(&mut self) {
        let mut pipe = self.0.lock();
        pipe.writer_gone = true;
        let probe = pipe.probe.take();
        wake(pipe.reader.take(), pipe);
        probe.into_iter().for_each(Waker::wake);
    }
}

/// Tells, also after the reader has gone, how far the body came.
#[derive(Debug)]
pub(crate) struct BodyProgress(Arc<Mutex<BodyQueue>>);

impl BodyProgress {
    /// Whether the reader has taken every byte.
    pub(crate) fn drained(&self) -> bool {
        self.0.lock().drained
    }

    /// Waits until the whole body has arrived or was lost.
    pub(crate) async fn wait_until_received(&self) {
        std::future::poll_fn(|context| {
            let mut pipe = self.0.lock();
            if pipe.end.is_some() || pipe.writer_gone {
                return Poll::Ready(());
            }
            pipe.probe = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl StreamBody {
    /// Length of the whole body in bytes.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether the whole body has no bytes.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Bytes that were not yet handed out.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    /// The stream id as the peer's answer gave it; empty for the data of an upload.
    pub fn stream_id(&self) -> &str {
        &self.stream_id
    }

    /// The next piece, of any size but 0; `None` at the end. Cancel safe.
    ///
    /// # Errors
    /// The reason why the connection was lost; nothing follows it.
    pub async fn next_piece(&mut self) -> Option<Result<Bytes, TransportError>> {
        std::future::poll_fn(|context| self.poll_piece(context)).await
    }

    /// All that was not yet handed out, in one piece of memory. Not cancel safe: what it has
    /// gathered is lost.
    ///
    /// # Errors
    /// The reason why the connection was lost.
    pub async fn collect(mut self) -> Result<Bytes, TransportError> {
        let mut all = BytesMut::with_capacity(self.remaining.min(COLLECT_STEP) as usize);
        while let Some(piece) = self.next_piece().await {
            all.extend_from_slice(&piece?);
        }
        Ok(all.freeze())
    }

    pub(crate) fn poll_piece(
        &mut self,
        context: &Context<'_>,
    ) -> Poll<Option<Result<Bytes, TransportError>>> {
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            self.remaining -= rest.len() as u64;
            return Poll::Ready(Some(Ok(rest)));
        }
        let mut pipe = self.pipe.lock();
        let Some(piece) = pipe.pieces.pop_front() else {
            return match &pipe.end {
                Some(Ok(())) => Poll::Ready(None),
                Some(Err(error)) => {
                    let error = error.clone();
                    pipe.end = Some(Ok(()));
                    Poll::Ready(Some(Err(error)))
                }
                None if pipe.writer_gone => {
                    pipe.end = Some(Ok(()));
                    Poll::Ready(Some(Err(TransportError::new(
                        ErrorKind::Closed,
                        "connection lost",
                    ))))
                }
                None => {
                    pipe.reader = Some(context.waker().clone());
                    Poll::Pending
                }
            };
        };
        pipe.queued -= piece.len() + PIECE_COST;
        self.remaining -= piece.len() as u64;
        pipe.drained = self.remaining == 0;
        wake(pipe.writer.take(), pipe);
        Poll::Ready(Some(Ok(piece)))
    }

    /// Holds on to `connection` as long as the body lives.
    pub(crate) fn keep_alive(&mut self, connection: impl Any + Send + Sync) {
        self._connection = Some(Box::new(connection));
    }

    /// Gives back the unused end of the piece that was handed out last.
    pub(crate) fn unread(&mut self, rest: Bytes) {
        self.remaining += rest.len() as u64;
        self.rest = rest;
    }
}

impl Stream for StreamBody {
    type Item = Result<Bytes, TransportError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_piece(context)
    }
}

impl Drop for StreamBody {
    fn drop(&mut self) {
        let mut pipe = self.pipe.lock();
        pipe.is_receiver_dropped = true;
        pipe.pieces.clear();
        pipe.queued = 0;
        wake(pipe.writer.take(), pipe);
    }
}

impl fmt::Debug for StreamBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamBody")
            .field("stream_id", &self.stream_id)
            .field("length", &self.length)
            .field("remaining", &self.remaining)
            .finish()
    }
}

/// Wakes outside the lock.
fn wake(waker: Option<Waker>, guard: parking_lot::MutexGuard<'_, BodyQueue>) {
    drop(guard);
    if let Some(waker) = waker {
        waker.wake();
    }
}
