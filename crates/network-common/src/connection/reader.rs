//! The reading half of a connection's driver: bytes to messages, messages to whom they concern.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker, ready};

use parking_lot::MutexGuard;
use tokio::io::{AsyncRead, ReadBuf};

use super::{ConnectionDriver, ConnectionResources, io_error};
use crate::client::SharedConnection;
use crate::error::{BoxError, ErrorKind, TransportError};
use crate::net::ReadHalf;
use crate::protocol::{Event, FrameDecoder, ProtocolError, READ_BLOCK};
use crate::session::{
    BodySender, ByteFilter, CloseNotify, CloseRequest, FilterChain, FilterOutput, Session,
};

/// Reads, and parts of them, per turn, before other tasks get theirs.
const READS_PER_POLL: usize = 8;
/// What was read is served in so many parts, with a write after each: the peer is at work on the
/// first answers while the others are made.
const FLUSHES_PER_READ: usize = 4;
/// The answers to fewer requests are not worth a write of their own.
const MIN_REQUESTS_PER_FLUSH: u64 = 16;
/// A peer that has sent so many bytes is not read again before it has proved who it is; no
/// handshake needs more.
const MAX_UNAUTHENTICATED_BYTES: usize = 64 << 10;
/// Answers handed on under one lock.
const RESPONSES_PER_LOCK: usize = 32;

/// The same of bytes that are to be opened: sealed pieces that a read cuts apart are copied once
/// more.
const SEALED_READ_BLOCK: usize = 8 * READ_BLOCK;

thread_local! {
    /// Where sockets are read to when no body's own buffer is the target: idle connections need
    /// none.
    static READ_BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    /// What filters make of it, unless that goes into a body's own buffer.
    static PLAINTEXT_BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

pub(super) struct Reader {
    io: ReadHalf,
    pub(super) decoder: FrameDecoder,
    open: Option<Box<dyn ByteFilter>>,
    /// Who gets the body that is arriving in pieces.
    pub(super) receiving: Option<IncomingStream>,
    /// Requests handed to handlers so far; with those answered it tells how many are being served.
    pub(super) received: u64,
    /// Not reading, because the peer does not read its answers.
    pub(super) paused: bool,
    /// The peer has ended its sending direction.
    is_eof: bool,
    /// Read, but not taken in: it comes after the answers to what was, which may be so many that
    /// reading pauses.
    unprocessed: Vec<u8>,
    /// How many bytes of what was read last make a part.
    flush_after: usize,
    /// Reads and parts that are left in this turn.
    read_budget: usize,
    /// Callers were woken in this turn.
    has_woken_callers: bool,
    /// Bytes read before the peer had proved who it is.
    unauthenticated_bytes: usize,
    pub(super) wakers: Vec<Waker>,
}

pub(super) struct IncomingStream {
    pub(super) pipe: BodySender,
    pub(super) is_stream: bool,
}

impl Reader {
    pub(super) fn new(io: ReadHalf, resources: &ConnectionResources) -> Self {
        Self {
            io,
            decoder: FrameDecoder::with_pool(
                Arc::clone(&resources.limits),
                Arc::clone(&resources.pool),
            ),
            open: None,
            receiving: None,
            received: 0,
            paused: false,
            is_eof: false,
            unprocessed: Vec::new(),
            flush_after: 0,
            read_budget: 0,
            has_woken_callers: false,
            unauthenticated_bytes: 0,
            wakers: Vec::new(),
        }
    }

    /// All that is read from here on passes through `open`; `early` has passed already.
    pub(super) fn install(&mut self, open: Box<dyn ByteFilter>, early: Vec<u8>) {
        self.open = Some(open);
        self.unprocessed = early;
    }

    fn close_notify(&self) -> CloseNotify {
        self.open.as_ref().map_or(CloseNotify::Unsupported, |open| open.close_notify())
    }

    /// Before anything is read in a turn of the driver.
    pub(super) fn reset_read_budget(&mut self) {
        self.read_budget = READS_PER_POLL;
        self.has_woken_callers = false;
    }

    /// Whether more can be taken in at once, in this turn.
    pub(super) fn has_unprocessed(&self) -> bool {
        self.read_budget > 0 && !self.unprocessed.is_empty()
    }

    pub(super) fn is_receiving(&self) -> bool {
        self.receiving.is_some()
    }

    /// The socket, for its last bytes.
    pub(super) fn io_mut(&mut self) -> &mut ReadHalf {
        &mut self.io
    }

    /// The connection has ended.
    pub(super) fn end(&mut self, error: &TransportError) {
        self.wakers.drain(..).for_each(Waker::wake);
        if let Some(receiving) = self.receiving.take() {
            receiving.pipe.finish(Err(error.clone()));
        }
    }
}

impl ConnectionDriver {
    /// Reads and dispatches what has arrived. `Ready(Ok)`: there may be more. `Ready(Err)`: the
    /// connection ends.
    pub(super) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), TransportError>> {
        while self.reader.read_budget > 0 {
            self.reader.read_budget -= 1;
            if self.reader.is_eof {
                return Poll::Pending;
            }
            self.shared.recheck_read_pause.store(false, Ordering::Relaxed);
            self.reader.paused = self.shared.session.lock().should_pause_reading();
            if self.reader.paused {
                return Poll::Pending;
            }
            // Those of a client's bootstrap. What waited for it to decide is theirs already.
            let backlog = std::mem::take(&mut self.reader.unprocessed);
            let backlog = self.install_pending_filter(&backlog)?.unwrap_or(backlog);
            if !backlog.is_empty() {
                self.dispatch(&backlog)?;
                if self.reader.unprocessed.is_empty() {
                    continue;
                }
                break;
            }
            if self.reader.close_notify() == CloseNotify::Received {
                return self.on_eof();
            }
            // Only now: in the read that reached the limit, much else may stand behind the
            // handshake's last message.
            if self.reader.unauthenticated_bytes >= MAX_UNAUTHENTICATED_BYTES
                && self.shared.is_peer_unauthenticated()
            {
                let sent = self.reader.unauthenticated_bytes as u64;
                return Poll::Ready(Err(self.unauthenticated_limit_error("has sent", sent)));
            }
            if let Some(receiving) = &self.reader.receiving {
                ready!(receiving.pipe.poll_capacity(context));
            }
            let direct =
                if self.reader.open.is_none() { self.reader.decoder.body_buf_mut() } else { None };
            if let Some(target) = direct {
                let mut buffer = ReadBuf::new(target);
                let read = Pin::new(&mut self.reader.io).poll_read(context, &mut buffer);
                ready!(read).map_err(|error| io_error(self.shared.peer, "reading from", error))?;
                let count = buffer.filled().len();
                if count == 0 {
                    return self.on_eof();
                }
                self.reader.decoder.advance_body(count);
                self.count_read(count);
                self.resources.metrics.direct_body_bytes.fetch_add(count as u64, Ordering::Relaxed);
                self.dispatch(&[])?;
                if !self.reader.decoder.is_in_body() {
                    // Who gets it may be done with it before the next one comes, whose buffer then
                    // is warm.
                    break;
                }
            } else {
                let in_large_blocks =
                    self.reader.open.is_some() && !self.shared.is_peer_unauthenticated();
                let block = if in_large_blocks { SEALED_READ_BLOCK } else { READ_BLOCK };
                let mut scratch = READ_BUFFER.take();
                if scratch.len() < block {
                    scratch.resize(block, 0);
                }
                let result = self.read_scratch(context, &mut scratch[..block]);
                READ_BUFFER.set(scratch);
                ready!(result)?;
                // Whoever got an answer does not wait for the body that follows.
                let is_followed = self.reader.has_woken_callers && self.reader.decoder.is_in_body();
                if !self.reader.unprocessed.is_empty() || is_followed {
                    break;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn read_scratch(
        &mut self,
        context: &mut Context<'_>,
        scratch: &mut [u8],
    ) -> Poll<Result<(), TransportError>> {
        let mut buffer = ReadBuf::new(scratch);
        let read = Pin::new(&mut self.reader.io).poll_read(context, &mut buffer);
        ready!(read).map_err(|error| io_error(self.shared.peer, "reading from", error))?;
        let count = buffer.filled().len();
        if count == 0 {
            return self.on_eof();
        }
        self.count_read(count);
        self.reader.flush_after = count / FLUSHES_PER_READ;
        let Some(open) = &mut self.reader.open else {
            return Poll::Ready(self.dispatch(buffer.filled()));
        };
        let mut behind = PLAINTEXT_BUFFER.take();
        // What belongs to a large body is opened straight into its own buffer.
        let mut output =
            FilterOutput::new(self.reader.decoder.body_buf_mut().unwrap_or_default(), &mut behind);
        let opened = open.transform(buffer.filled(), &mut output);
        let (direct, length) = output.lengths();
        let dispatched = match opened {
            Ok(()) => {
                self.reader.decoder.advance_body(direct);
                self.resources
                    .metrics
                    .direct_body_bytes
                    .fetch_add(direct as u64, Ordering::Relaxed);
                self.dispatch(&behind[..length])
            }
            Err(error) => Err(decode_error(&self.shared, error)),
        };
        PLAINTEXT_BUFFER.set(behind);
        Poll::Ready(dispatched)
    }

    fn count_read(&mut self, count: usize) {
        self.resources.count_received(&self.shared, count);
        if self.shared.is_peer_unauthenticated() {
            self.reader.unauthenticated_bytes += count;
        }
    }

    pub(super) fn unauthenticated_limit_error(&self, verb: &str, bytes: u64) -> TransportError {
        let peer = self.shared.peer;
        let text = format!("{peer} {verb} {bytes} bytes before it was authenticated");
        TransportError::new(ErrorKind::Limit, text).with_peer(peer)
    }

    /// Takes up a filter that was installed meanwhile, on top of what there is already; what it
    /// makes of `rest`, which lower ones have let through. `None`: there was none.
    fn install_pending_filter(&mut self, rest: &[u8]) -> Result<Option<Vec<u8>>, TransportError> {
        // Asked before every read: only looking is cheaper.
        if !self.shared.filters_installed.load(Ordering::Relaxed)
            || !self.shared.filters_installed.swap(false, Ordering::Acquire)
        {
            return Ok(None);
        }
        let Some(mut open) = self.shared.session.lock().open_filter.take() else { return Ok(None) };
        let plain =
            open.transform_to_vec(rest).map_err(|error| decode_error(&self.shared, error))?;
        self.reader.open = FilterChain::join(self.reader.open.take(), Some(open));
        Ok(Some(plain))
    }

    /// Takes in bytes and hands on every message that they complete.
    fn dispatch(&mut self, mut input: &[u8]) -> Result<(), TransportError> {
        let shared = Arc::clone(&self.shared);
        // Answers follow each other: one lock serves a run of them, but not so long that callers
        // have to wait for it.
        let mut held: Option<(MutexGuard<'_, Session>, usize)> = None;
        let (length, received) = (input.len(), self.reader.received);
        let result = loop {
            match self.reader.decoder.next_event(&mut input) {
                Ok(Some(Event::Message(message))) if !message.is_request() => {
                    let (session, run) = held.get_or_insert_with(|| (shared.session.lock(), 0));
                    let answered = self.reader.on_response(session, message, &shared);
                    *run += 1;
                    let bootstrap_thinks = session.is_awaiting_bootstrap();
                    if *run == RESPONSES_PER_LOCK {
                        held = None;
                    }
                    if let Err(error) = answered {
                        break Err(error);
                    }
                    if bootstrap_thinks && !input.is_empty() {
                        self.reader.unprocessed = input.to_vec();
                        break Ok(());
                    }
                }
                Ok(Some(event)) => {
                    held = None;
                    if let Err(error) = self.on_event(event) {
                        break Err(error);
                    }
                    if !input.is_empty()
                        && let Some(plain) = self.install_pending_filter(input)?
                    {
                        // A handler has just installed filters: the rest of what was read is
                        // theirs.
                        return self.dispatch(&plain);
                    }
                    let requests = self.reader.received - received;
                    let is_part = requests > 0
                        && requests % MIN_REQUESTS_PER_FLUSH == 0
                        && length - input.len() >= self.reader.flush_after
                        && !shared.session.lock().outgoing.is_empty(false);
                    if !input.is_empty()
                        && (is_part || shared.recheck_read_pause.load(Ordering::Relaxed))
                    {
                        self.reader.unprocessed = input.to_vec();
                        break Ok(());
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(protocol_error(&shared, error)),
            }
        };
        drop(held);
        let wakers = &mut self.reader.wakers;
        if !wakers.is_empty() {
            self.reader.has_woken_callers = true;
            self.writer.has_concurrent_callers =
                !wakers.windows(2).all(|pair| pair[0].will_wake(&pair[1]));
            wakers.drain(..).for_each(Waker::wake);
        }
        result
    }

    /// The peer sends no more. The answers it has earned are still written, if it takes them.
    fn on_eof(&mut self) -> Poll<Result<(), TransportError>> {
        self.reader.is_eof = true;
        let unfinished = self.reader.decoder.finish().err();
        if self.reader.close_notify() == CloseNotify::Pending
            && (unfinished.is_some() || self.shared.session.lock().requests.len() > 0)
        {
            // Not by the peer, which would have said so: perhaps by somebody who wants a part to be
            // taken for the whole.
            let cut = "it was cut off without close_notify";
            return Poll::Ready(Err(io_error(self.shared.peer, "reading from", cut)));
        }
        let closed = TransportError::closed(self.shared.peer);
        let error = match unfinished {
            None => closed,
            Some(error) => closed.with_source(error),
        };
        self.shared.close(CloseRequest::AfterFlush(error));
        Poll::Pending
    }
}

fn decode_error(shared: &SharedConnection, error: BoxError) -> TransportError {
    io_error(shared.peer, "decoding what was read from", error)
}

pub(super) fn protocol_error(shared: &SharedConnection, error: ProtocolError) -> TransportError {
    let peer = shared.peer;
    TransportError::new(ErrorKind::Protocol, format!("malformed data from {peer}: {error}"))
        .with_peer(peer)
        .with_source(error)
}
