//! The body of a stream or upload, between the connection's driver and its receiver.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use futures::Stream;
use parking_lot::Mutex;

use crate::budget::{BudgetShare, ByteBudget};
use crate::error::{ErrorKind, TransportError};

/// Number of queued bytes at which the connection stops reading.
const MAX_QUEUED_BYTES: usize = 1 << 20;
/// Bytes of memory that a queued piece costs in addition to its content.
const PIECE_OVERHEAD: usize = 96;
/// Maximal number of bytes that `StreamBody::collect` reserves before they arrive.
const MAX_COLLECT_RESERVE: u64 = 64 << 20;

#[derive(Debug, Default)]
struct BodyQueue {
    pieces: VecDeque<Bytes>,
    queued_bytes: usize,
    /// Set when the sender has finished.
    end: Option<Result<(), TransportError>>,
    receiver_waker: Option<Waker>,
    /// Waker of [`BodyProgress`], which may belong to another task than the receiver.
    progress_waker: Option<Waker>,
    sender_waker: Option<Waker>,
    is_receiver_dropped: bool,
    is_sender_dropped: bool,
    /// Number of bytes that the receiver has not taken.
    unread: u64,
    /// Counts the queued bytes of an upload in the budget.
    held: Option<BudgetShare>,
}

impl BodyQueue {
    fn count_held(&self) {
        if let Some(held) = &self.held {
            held.update(self.queued_bytes as u64);
        }
    }
}

/// The sending end of a body, held by the connection's driver.
#[derive(Debug)]
pub(crate) struct BodySender(Arc<Mutex<BodyQueue>>);

/// The body of a stream or upload while it arrives.
///
/// It is a [`Stream`] of pieces and an [`AsyncRead`](tokio::io::AsyncRead). It ends after exactly
/// [`len`](Self::len) bytes, or with an error if the connection is lost before; the bytes before
/// the error are valid. Dropping it discards the rest of the body and keeps the connection.
///
/// A body that is not read stalls the whole connection: after 1 MiB of queued bytes nothing more is
/// read from the socket, responses to other requests included. After
/// `spark.<module>.io.connectionTimeout` these requests fail with kind
/// [`Timeout`](ErrorKind::Timeout) and a text that names the body. Read it promptly or use a
/// separate connection.
///
/// ```no_run
/// # use network_common::{TransportClient, TransportError};
/// # async fn example(client: TransportClient) -> Result<(), TransportError> {
/// let mut body = client.stream("/jars/app.jar").await?;
/// let mut received = 0;
/// while let Some(piece) = body.next_piece().await {
///     received += piece?.len() as u64;
/// }
/// assert_eq!(received, body.len());
/// # Ok(())
/// # }
/// ```
pub struct StreamBody {
    queue: Arc<Mutex<BodyQueue>>,
    stream_id: String,
    length: u64,
    remaining: u64,
    /// The rest of a piece, put back by [`unread`](Self::unread).
    unread: Bytes,
    /// Keeps the connection open until it is dropped.
    _connection: Option<Box<dyn Any + Send + Sync>>,
}

/// Creates the two ends of a body of `length` bytes.
pub(crate) fn body_channel(stream_id: String, length: u64) -> (BodySender, StreamBody) {
    let end = (length == 0).then_some(Ok(()));
    let queue = Arc::new(Mutex::new(BodyQueue { end, unread: length, ..BodyQueue::default() }));
    let body = StreamBody {
        queue: Arc::clone(&queue),
        stream_id,
        length,
        remaining: length,
        unread: Bytes::new(),
        _connection: None,
    };
    (BodySender(queue), body)
}

impl BodySender {
    /// Polls for capacity for another piece.
    ///
    /// There always is capacity after the receiver was dropped: pieces are then discarded.
    pub(crate) fn poll_capacity(&self, context: &Context<'_>) -> Poll<()> {
        let mut queue = self.0.lock();
        if queue.is_receiver_dropped || queue.queued_bytes < MAX_QUEUED_BYTES {
            return Poll::Ready(());
        }
        queue.sender_waker = Some(context.waker().clone());
        Poll::Pending
    }

    /// Returns the number of bytes that the receiver has not taken, if they stop the reader.
    pub(crate) fn unread_if_full(&self) -> Option<u64> {
        let queue = self.0.lock();
        let is_full = !queue.is_receiver_dropped && queue.queued_bytes >= MAX_QUEUED_BYTES;
        is_full.then_some(queue.unread)
    }

    /// Counts the queued bytes in `budget`.
    pub(crate) fn count_in(&self, budget: &ByteBudget) {
        self.0.lock().held = Some(budget.share());
    }

    /// Queues a piece.
    pub(crate) fn push(&self, piece: Bytes) {
        let mut queue = self.0.lock();
        if queue.is_receiver_dropped {
            return;
        }
        queue.queued_bytes += piece.len() + PIECE_OVERHEAD;
        queue.pieces.push_back(piece);
        queue.count_held();
        unlock_and_wake(queue.receiver_waker.take(), queue);
    }

    /// Ends the body.
    pub(crate) fn finish(self, result: Result<(), TransportError>) {
        self.0.lock().end = Some(result);
    }

    pub(crate) fn progress(&self) -> BodyProgress {
        BodyProgress(Arc::clone(&self.0))
    }
}

impl Drop for BodySender {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        queue.is_sender_dropped = true;
        let progress_waker = queue.progress_waker.take();
        unlock_and_wake(queue.receiver_waker.take(), queue);
        progress_waker.into_iter().for_each(Waker::wake);
    }
}

/// Reports the progress of a body, also after its receiver was dropped.
#[derive(Debug)]
pub(crate) struct BodyProgress(Arc<Mutex<BodyQueue>>);

impl BodyProgress {
    /// Returns whether the receiver has taken every byte.
    pub(crate) fn is_consumed(&self) -> bool {
        self.0.lock().unread == 0
    }

    /// Completes when the whole body has arrived or the connection was lost.
    pub(crate) async fn wait_until_received(&self) {
        std::future::poll_fn(|context| {
            let mut queue = self.0.lock();
            if queue.end.is_some() || queue.is_sender_dropped {
                return Poll::Ready(());
            }
            queue.progress_waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl StreamBody {
    /// Returns the length of the whole body in bytes.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Returns whether the whole body has no bytes.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Returns the number of bytes that were not read yet.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    /// Returns the stream id of the peer's response; empty for the data of an upload.
    pub fn stream_id(&self) -> &str {
        &self.stream_id
    }

    /// Receives the next piece, which is never empty; returns `None` at the end.
    ///
    /// # Errors
    /// The reason why the connection was lost. The next call returns `None`.
    ///
    /// # Cancel safety
    /// Cancel safe: no piece is lost.
    pub async fn next_piece(&mut self) -> Option<Result<Bytes, TransportError>> {
        std::future::poll_fn(|context| self.poll_piece(context)).await
    }

    /// Receives all remaining bytes.
    ///
    /// # Errors
    /// The reason why the connection was lost.
    ///
    /// # Cancel safety
    /// Not cancel safe: the bytes received so far are lost, and the rest is discarded.
    pub async fn collect(mut self) -> Result<Bytes, TransportError> {
        let mut all = BytesMut::with_capacity(self.remaining.min(MAX_COLLECT_RESERVE) as usize);
        while let Some(piece) = self.next_piece().await {
            all.extend_from_slice(&piece?);
        }
        Ok(all.freeze())
    }

    pub(crate) fn poll_piece(
        &mut self,
        context: &Context<'_>,
    ) -> Poll<Option<Result<Bytes, TransportError>>> {
        if !self.unread.is_empty() {
            let rest = std::mem::take(&mut self.unread);
            self.remaining -= rest.len() as u64;
            return Poll::Ready(Some(Ok(rest)));
        }
        let mut queue = self.queue.lock();
        let Some(piece) = queue.pieces.pop_front() else {
            return match &queue.end {
                Some(Ok(())) => Poll::Ready(None),
                Some(Err(error)) => {
                    let error = error.clone();
                    queue.end = Some(Ok(()));
                    Poll::Ready(Some(Err(error)))
                }
                None if queue.is_sender_dropped => {
                    queue.end = Some(Ok(()));
                    let text = format!(
                        "connection lost with {} of {} bytes of the body missing",
                        self.remaining, self.length
                    );
                    Poll::Ready(Some(Err(TransportError::new(ErrorKind::Closed, text))))
                }
                None => {
                    queue.receiver_waker = Some(context.waker().clone());
                    Poll::Pending
                }
            };
        };
        queue.queued_bytes -= piece.len() + PIECE_OVERHEAD;
        self.remaining -= piece.len() as u64;
        queue.unread = self.remaining;
        queue.count_held();
        unlock_and_wake(queue.sender_waker.take(), queue);
        Poll::Ready(Some(Ok(piece)))
    }

    /// Keeps `connection` until this body is dropped.
    pub(crate) fn keep_alive(&mut self, connection: impl Any + Send + Sync) {
        self._connection = Some(Box::new(connection));
    }

    /// Puts back the rest of the piece that was received last.
    pub(crate) fn unread(&mut self, rest: Bytes) {
        self.remaining += rest.len() as u64;
        self.unread = rest;
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
        let mut queue = self.queue.lock();
        queue.is_receiver_dropped = true;
        queue.pieces.clear();
        queue.queued_bytes = 0;
        queue.held = None;
        unlock_and_wake(queue.sender_waker.take(), queue);
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

/// Calls the waker after unlocking the queue.
fn unlock_and_wake(waker: Option<Waker>, guard: parking_lot::MutexGuard<'_, BodyQueue>) {
    drop(guard);
    if let Some(waker) = waker {
        waker.wake();
    }
}
