//! The read step of the driver: from the socket through filter and decoder to the handlers.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker, ready};

use parking_lot::MutexGuard;
use tokio::io::{AsyncRead, ReadBuf};

use super::{ConnectionDriver, io_error, protocol_error, socket_error};
use crate::client::SharedConnection;
use crate::error::{BoxError, ErrorKind, TransportError};
use crate::protocol::{Event, ProtocolError, READ_BLOCK};
use crate::session::{CloseNotify, CloseRequest, FilterChain, FilterOutput, Session};

/// Number of writes per read.
///
/// With several writes the peer gets the first responses while the driver handles other requests.
const FLUSHES_PER_READ: usize = 4;
/// Responses to fewer requests do not get a write of their own.
const MIN_REQUESTS_PER_FLUSH: u64 = 16;
/// Number of received bytes at which an unauthenticated peer is not read any more.
///
/// No handshake needs more.
const MAX_UNAUTHENTICATED_BYTES: usize = 64 << 10;
/// Number of responses that are completed under one lock of the session.
const RESPONSES_PER_LOCK: usize = 32;
/// Number of bytes of one read if there are filters.
///
/// Large, because a sealed record that two reads split is copied once more.
const SEALED_READ_BLOCK: usize = 8 * READ_BLOCK;

thread_local! {
    /// The buffer of this thread for reads that do not go into the buffer of a body.
    ///
    /// An idle connection therefore owns no read buffer.
    static READ_BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    /// The output of filters that does not go into the buffer of a body.
    static PLAINTEXT_BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

impl ConnectionDriver {
    /// Reads, decodes and dispatches messages.
    ///
    /// Returns `Ready(Ok)` if more bytes may be available, and `Ready(Err)` with the reason to
    /// close the connection.
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
            {
                let session = self.shared.session.lock();
                self.reader.is_paused = session.should_pause_reading();
                self.reader.is_bootstrapping = session.is_bootstrapping;
            }
            if self.reader.is_paused {
                return Poll::Pending;
            }
            // If a client bootstrap has installed filters, the unprocessed bytes pass through them.
            let unprocessed = std::mem::take(&mut self.reader.unprocessed);
            let unprocessed = self.install_pending_filter(&unprocessed)?.unwrap_or(unprocessed);
            if !unprocessed.is_empty() {
                self.dispatch(&unprocessed)?;
                if self.reader.unprocessed.is_empty() {
                    continue;
                }
                break;
            }
            if !self.reader.unopened.is_empty() {
                let unopened = std::mem::take(&mut self.reader.unopened);
                self.open_records(&unopened)?;
                continue;
            }
            if self.reader.close_notify() == CloseNotify::Received {
                return self.on_eof();
            }
            self.check_unauthenticated_bytes()?;
            if let Some(incoming) = &self.reader.incoming {
                ready!(incoming.sender.poll_capacity(context));
            }
            let body_buffer = match &self.reader.open_filter {
                None => self.reader.decoder.body_buf_mut(),
                Some(_) => None,
            };
            if let Some(body_buffer) = body_buffer {
                let mut buffer = ReadBuf::new(body_buffer);
                let read = Pin::new(&mut self.reader.io).poll_read(context, &mut buffer);
                ready!(read).map_err(|error| {
                    socket_error(self.shared.peer, "reading from", error, &self.resources.conf)
                })?;
                let count = buffer.filled().len();
                if count == 0 {
                    return self.on_eof();
                }
                self.reader.decoder.advance_body(count);
                self.count_received(count);
                self.count_direct(count);
                self.dispatch(&[])?;
                if !self.reader.decoder.is_in_body() {
                    // The receiver may release the buffer, still in the cache, for the next body.
                    break;
                }
            } else {
                let has_large_reads =
                    self.reader.open_filter.is_some() && !self.may_install_filters();
                let block = if has_large_reads { SEALED_READ_BLOCK } else { READ_BLOCK };
                let mut buffer = READ_BUFFER.take();
                if buffer.len() < block {
                    buffer.resize(block, 0);
                }
                let result = self.poll_read_buffered(context, &mut buffer[..block]);
                READ_BUFFER.set(buffer);
                ready!(result)?;
                // A woken caller should run before a large body is read.
                let is_in_body = self.reader.has_woken_callers && self.reader.decoder.is_in_body();
                if !self.reader.unprocessed.is_empty() || is_in_body {
                    break;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once into `buffer`, opens and dispatches the bytes.
    fn poll_read_buffered(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<Result<(), TransportError>> {
        let mut buffer = ReadBuf::new(buffer);
        let read = Pin::new(&mut self.reader.io).poll_read(context, &mut buffer);
        ready!(read).map_err(|error| {
            socket_error(self.shared.peer, "reading from", error, &self.resources.conf)
        })?;
        let count = buffer.filled().len();
        if count == 0 {
            return self.on_eof();
        }
        self.count_received(count);
        self.reader.flush_after = count / FLUSHES_PER_READ;
        if self.reader.open_filter.is_some() && self.may_install_filters() {
            return Poll::Ready(self.open_records(buffer.filled()));
        }
        let Some(open_filter) = &mut self.reader.open_filter else {
            return Poll::Ready(self.dispatch(buffer.filled()));
        };
        let mut plaintext = PLAINTEXT_BUFFER.take();
        // The bytes of a large body are opened directly into its buffer.
        let body_buffer = self.reader.decoder.body_buf_mut().unwrap_or_default();
        let mut output = FilterOutput::new(body_buffer, &mut plaintext);
        let opened = open_filter.transform(buffer.filled(), &mut output);
        let (body_len, plaintext_len) = output.lengths();
        let dispatched = match opened {
            Ok(()) => {
                self.reader.decoder.advance_body(body_len);
                self.count_direct(body_len);
                self.dispatch(&plaintext[..plaintext_len])
            }
            Err(error) => Err(decode_error(&self.shared, error)),
        };
        PLAINTEXT_BUFFER.set(plaintext);
        Poll::Ready(dispatched)
    }

    /// Returns whether a handshake is running inside of the filters, for example of TLS.
    ///
    /// It may install filters for the bytes behind one of its messages.
    fn may_install_filters(&self) -> bool {
        self.reader.is_bootstrapping || self.shared.is_peer_unauthenticated()
    }

    fn count_received(&mut self, count: usize) {
        self.resources.count_received(&self.shared, count);
        if self.shared.is_peer_unauthenticated() {
            self.reader.unauthenticated_bytes += count;
        }
    }

    fn count_direct(&self, count: usize) {
        self.resources.metrics.direct_body_bytes.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Fails if an unauthenticated peer has reached its limit of received bytes.
    ///
    /// Called before a read instead of after it, because the read that reaches the limit may
    /// contain the last message of the handshake.
    fn check_unauthenticated_bytes(&self) -> Result<(), TransportError> {
        let bytes = self.reader.unauthenticated_bytes;
        if bytes < MAX_UNAUTHENTICATED_BYTES || !self.shared.is_peer_unauthenticated() {
            return Ok(());
        }
        let peer = self.shared.peer;
        let text = format!(
            "{peer} sent {bytes} bytes before it was authenticated; at most \
             {MAX_UNAUTHENTICATED_BYTES} are allowed"
        );
        Err(TransportError::new(ErrorKind::Limit, text).with_peer(peer))
    }

    /// Opens and dispatches bytes record by record, until a handshake must continue.
    ///
    /// The filter that a handshake inside TLS installs opens the bytes behind the record with its
    /// last message.
    fn open_records(&mut self, mut input: &[u8]) -> Result<(), TransportError> {
        while !input.is_empty() {
            let Some(open_filter) = &mut self.reader.open_filter else {
                return self.dispatch(input);
            };
            let mut plaintext = Vec::new();
            let mut output = FilterOutput::new(&mut [], &mut plaintext);
            let count = open_filter
                .transform_record(input, &mut output)
                .map_err(|error| decode_error(&self.shared, error))?;
            let (_, plaintext_len) = output.lengths();
            input = &input[count..];
            self.dispatch(&plaintext[..plaintext_len])?;
            let must_wait = !self.reader.unprocessed.is_empty()
                || self.shared.session.lock().is_awaiting_bootstrap();
            if must_wait {
                self.reader.unopened = input.to_vec();
                return Ok(());
            }
            self.install_pending_filter(&[])?;
        }
        Ok(())
    }

    /// Installs an open filter of the session between the socket and the other filters.
    ///
    /// Returns `input` opened by the new filter, or `None` if there is no new filter.
    fn install_pending_filter(&mut self, input: &[u8]) -> Result<Option<Vec<u8>>, TransportError> {
        // Runs before every read; a load is cheaper than a swap.
        if !self.shared.filters_installed.load(Ordering::Relaxed)
            || !self.shared.filters_installed.swap(false, Ordering::Acquire)
        {
            return Ok(None);
        }
        let Some(mut open_filter) = self.shared.session.lock().open_filter.take() else {
            return Ok(None);
        };
        let opened = match &self.reader.open_filter {
            None => open_filter.transform_to_vec(input),
            Some(_) if input.is_empty() => Ok(Vec::new()),
            Some(_) => Err("bytes follow the last message of the handshake in its record".into()),
        };
        let opened = opened.map_err(|error| decode_error(&self.shared, error))?;
        self.reader.open_filter =
            FilterChain::join(Some(open_filter), self.reader.open_filter.take());
        Ok(Some(opened))
    }

    /// Decodes `input` and dispatches its messages.
    ///
    /// Bytes that must be decoded later are left in `Reader::unprocessed`.
    fn dispatch(&mut self, mut input: &[u8]) -> Result<(), TransportError> {
        let shared = Arc::clone(&self.shared);
        let (awaits_sealed_frame, mut has_event) = (shared.awaits_sealed_frame(), false);
        // The locked session and the number of responses completed under this lock. One lock covers
        // at most `RESPONSES_PER_LOCK` consecutive responses, because callers wait for it.
        let mut locked: Option<(MutexGuard<'_, Session>, usize)> = None;
        let (length, received_before) = (input.len(), self.reader.received_requests);
        let result = loop {
            match self.reader.decoder.next_event(&mut input) {
                Ok(Some(Event::Message(message))) if !message.is_request() => {
                    has_event = true;
                    let (session, count) = locked.get_or_insert_with(|| (shared.session.lock(), 0));
                    let completed = self.reader.on_response(session, message, &shared);
                    *count += 1;
                    let is_awaiting_bootstrap = session.is_awaiting_bootstrap();
                    if *count == RESPONSES_PER_LOCK {
                        locked = None;
                    }
                    if let Err(error) = completed {
                        break Err(error);
                    }
                    if is_awaiting_bootstrap && !input.is_empty() {
                        self.reader.unprocessed = input.to_vec();
                        break Ok(());
                    }
                }
                Ok(Some(event)) => {
                    has_event = true;
                    locked = None;
                    if let Err(error) = self.on_event(event) {
                        break Err(error);
                    }
                    // A handler may have installed filters: the following bytes pass through them.
                    if !input.is_empty()
                        && let Some(opened) = self.install_pending_filter(input)?
                    {
                        return self.dispatch(&opened);
                    }
                    let requests = self.reader.received_requests - received_before;
                    let should_flush = requests > 0
                        && requests.is_multiple_of(MIN_REQUESTS_PER_FLUSH)
                        && length - input.len() >= self.reader.flush_after
                        && !shared.session.lock().outgoing.is_empty(false);
                    if !input.is_empty()
                        && (should_flush || shared.recheck_read_pause.load(Ordering::Relaxed))
                    {
                        self.reader.unprocessed = input.to_vec();
                        break Ok(());
                    }
                }
                Ok(None) => break Ok(()),
                Err(
                    ProtocolError::RequestTooLarge { .. } | ProtocolError::HeaderTooLarge { .. },
                ) if !shared.is_peer_unauthenticated() && self.reader.decoder.skip_request() => {}
                Err(error) => break Err(protocol_error(&shared, error)),
            }
        };
        drop(locked);
        if awaits_sealed_frame && has_event {
            shared.on_sealed_frame();
        }
        let wakers = &mut self.reader.wakers;
        if !wakers.is_empty() {
            self.reader.has_woken_callers = true;
            self.writer.has_concurrent_callers =
                !wakers.windows(2).all(|pair| pair[0].will_wake(&pair[1]));
            wakers.drain(..).for_each(Waker::wake);
        }
        result
    }

    /// Starts to close the connection after the end of the received bytes.
    ///
    /// Responses to earlier requests are still written.
    fn on_eof(&mut self) -> Poll<Result<(), TransportError>> {
        self.reader.is_eof = true;
        let unfinished = self.reader.decoder.finish().err();
        if self.reader.close_notify() == CloseNotify::Pending
            && (unfinished.is_some() || self.shared.session.lock().requests.len() > 0)
        {
            // The peer would have sent close_notify: this may be a truncation attack.
            let cause = "the connection was cut off without close_notify";
            return Poll::Ready(Err(io_error(self.shared.peer, "reading from", cause)));
        }
        if let Some(error @ ProtocolError::ForeignProtocol(_)) = unfinished {
            return Poll::Ready(Err(protocol_error(&self.shared, error)));
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
    io_error(shared.peer, "opening bytes from", error)
}
