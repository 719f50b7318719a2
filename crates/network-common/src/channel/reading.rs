//! The reading half of a connection's driver: bytes to messages, messages to whom they concern.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::tcp::OwnedReadHalf;

use super::{Connection, Resources, io_error, serve};
use crate::error::{ErrorKind, TransportError};
use crate::handler::{MergedBlockMetaCallback, RpcResponseCallback};
use crate::protocol::{Event, FrameDecoder, Message, ProtocolError, READ_BLOCK};
use crate::session::{Answer, BulkRequest, ByteFilter, MergedBlockMeta, Outcome, PipeWriter, StreamStart};

/// Reads per turn, before the writer and other tasks get theirs.
const READS_PER_TURN: usize = 8;

thread_local! {
    /// Where sockets are read to when no body's own buffer is the target: idle connections need none.
    static SCRATCH: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

pub(super) struct Reader {
    half: OwnedReadHalf,
    decoder: FrameDecoder,
    open: Option<Box<dyn ByteFilter>>,
    /// Who gets the body that is arriving in pieces.
    receiving: Option<Receiving>,
    /// Requests handed to handlers so far; with those answered it tells how many are being served.
    pub(super) received: u64,
    /// Not reading, because the peer does not read its answers.
    pub(super) paused: bool,
    wakers: Vec<Waker>,
}

struct Receiving {
    pipe: PipeWriter,
    is_stream: bool,
}

impl Reader {
    pub(super) fn new(half: OwnedReadHalf, resources: &Resources) -> Self {
        Self {
            half,
            decoder: FrameDecoder::with_pool(resources.limits.clone(), Arc::clone(&resources.pool)),
            open: None,
            receiving: None,
            received: 0,
            paused: false,
            wakers: Vec::new(),
        }
    }

    pub(super) fn is_receiving(&self) -> bool {
        self.receiving.is_some()
    }

    /// The socket, for its last bytes.
    pub(super) fn half(&mut self) -> &mut OwnedReadHalf {
        &mut self.half
    }

    /// The connection has ended.
    pub(super) fn end(&mut self, error: &TransportError) {
        if let Some(receiving) = self.receiving.take() {
            receiving.pipe.finish(Err(error.clone()));
        }
    }
}

impl Connection {
    /// Reads and dispatches what has arrived. `Ready(Ok)`: there may be more. `Ready(Err)`: the connection ends.
    pub(super) fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        for _ in 0..READS_PER_TURN {
            self.reader.paused = self.shared.session.lock().peer_must_wait();
            if self.reader.paused {
                return Poll::Pending;
            }
            if let Some(receiving) = &self.reader.receiving {
                ready!(receiving.pipe.poll_room(context));
            }
            let filtered = self.reader.open.is_some();
            if let (Some(target), false) = (self.reader.decoder.direct(), filtered) {
                let mut buffer = ReadBuf::new(target);
                let read = Pin::new(&mut self.reader.half).poll_read(context, &mut buffer);
                ready!(read).map_err(|error| io_error(self.shared.peer, "reading from", error))?;
                let count = buffer.filled().len();
                if count == 0 {
                    return Poll::Ready(Err(self.ended_by_peer()));
                }
                self.reader.decoder.direct_filled(count);
                self.resources.read(&self.shared, count);
                self.resources.metrics.direct_body_bytes.fetch_add(count as u64, Ordering::Relaxed);
                self.dispatch(&[])?;
            } else {
                let mut scratch = SCRATCH.take().unwrap_or_else(|| vec![0; READ_BLOCK].into_boxed_slice());
                let result = self.read_scratch(context, &mut scratch);
                SCRATCH.set(Some(scratch));
                ready!(result)?;
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
        let read = Pin::new(&mut self.reader.half).poll_read(context, &mut buffer);
        ready!(read).map_err(|error| io_error(self.shared.peer, "reading from", error))?;
        let count = buffer.filled().len();
        if count == 0 {
            return Poll::Ready(Err(self.ended_by_peer()));
        }
        self.resources.read(&self.shared, count);
        if self.reader.open.is_none() {
            return Poll::Ready(self.dispatch(buffer.filled()));
        }
        let plain = self.unfilter(buffer.filled())?;
        Poll::Ready(self.dispatch(&plain))
    }

    /// Takes up filters that were installed meanwhile; whether there were any.
    fn take_open_filter(&mut self) -> bool {
        let open = self.shared.session.lock().open.take();
        let taken = open.is_some();
        self.reader.open = open.or_else(|| self.reader.open.take());
        taken
    }

    fn unfilter(&mut self, input: &[u8]) -> Result<Vec<u8>, TransportError> {
        let mut plain = Vec::with_capacity(input.len());
        if let Some(open) = &mut self.reader.open {
            open.transform(input, &mut plain)
                .map_err(|error| io_error(self.shared.peer, "decoding what was read from", error))?;
        }
        Ok(plain)
    }

    /// Takes in bytes and hands on every message that they complete.
    fn dispatch(&mut self, mut input: &[u8]) -> Result<(), TransportError> {
        let result = loop {
            match self.reader.decoder.next_event(&mut input) {
                Ok(Some(event)) => {
                    if let Err(error) = self.on_event(event) {
                        break Err(error);
                    }
                    if !input.is_empty() && self.take_open_filter() {
                        // A handler has just installed filters: the rest of what was read is theirs.
                        let plain = self.unfilter(input)?;
                        return self.dispatch(&plain);
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(self.protocol_error(error)),
            }
        };
        self.take_open_filter();
        self.reader.wakers.drain(..).for_each(Waker::wake);
        result
    }

    fn protocol_error(&self, error: ProtocolError) -> TransportError {
        let peer = self.shared.peer;
        TransportError::new(ErrorKind::Protocol, format!("malformed data from {peer}: {error}"))
            .with_peer(peer)
            .with_source(error)
    }

    /// The peer has closed: in the middle of something that is worth a word, but the kind is the same.
    fn ended_by_peer(&self) -> TransportError {
        let closed = TransportError::closed(self.shared.peer);
        match self.reader.decoder.finish() {
            Ok(()) => closed,
            Err(error) => closed.with_source(error),
        }
    }

    fn on_event(&mut self, event: Event) -> Result<(), TransportError> {
        match event {
            Event::Message(message) => self.on_message(message),
            Event::BodyStart { message, length } => self.on_body_start(message, length),
            Event::Piece(piece) => {
                if let Some(receiving) = &self.reader.receiving {
                    receiving.pipe.push(piece);
                }
                Ok(())
            }
            Event::BodyEnd => {
                if let Some(receiving) = self.reader.receiving.take() {
                    if receiving.is_stream {
                        self.shared.session.lock().requests.stream_active = false;
                    }
                    receiving.pipe.finish(Ok(()));
                }
                Ok(())
            }
        }
    }

    /// Decides what becomes of a large body before it arrives.
    fn on_body_start(&mut self, message: Message<()>, length: u64) -> Result<(), TransportError> {
        match message {
            Message::ChunkFetchSuccess { stream_id, chunk_index, .. } => {
                let mut session = self.shared.session.lock();
                if session.requests.awaits_chunk(stream_id, chunk_index) {
                    self.reader.decoder.collect_body(true);
                } else {
                    // A tombstone has served its purpose; anything else was never asked for.
                    let error = TransportError::closed(self.shared.peer);
                    let known = session.requests.answer_fetch(stream_id, chunk_index, Err(error)).is_ok();
                    tracing::debug!(peer = %self.shared.peer, stream_id, chunk_index, known, "skipping an unwanted chunk");
                    self.reader.decoder.discard_body();
                }
            }
            Message::RpcResponse { request_id, .. } | Message::MergedBlockMetaSuccess { request_id, .. } => {
                if self.shared.session.lock().requests.awaits_rpc(request_id) {
                    self.reader.decoder.collect_body(false);
                } else {
                    tracing::debug!(peer = %self.shared.peer, request_id, "skipping an unwanted answer");
                    self.reader.decoder.discard_body();
                }
            }
            Message::StreamResponse { stream_id, .. } => match self.start_stream(stream_id, length)? {
                Some(pipe) => {
                    self.shared.session.lock().requests.stream_active = true;
                    self.reader.receiving = Some(Receiving { pipe, is_stream: true });
                    self.reader.decoder.stream_body();
                }
                None => self.reader.decoder.discard_body(),
            },
            Message::UploadStream { request_id, meta, .. } => {
                match self.start_upload(request_id, meta, length) {
                    Some(pipe) => {
                        self.reader.receiving = Some(Receiving { pipe, is_stream: false });
                        self.reader.decoder.stream_body();
                    }
                    None => self.reader.decoder.discard_body(),
                }
            }
            _ => self.reader.decoder.collect_body(false),
        }
        Ok(())
    }

    fn start_stream(&mut self, stream_id: String, length: u64) -> Result<Option<PipeWriter>, TransportError> {
        let start = self.shared.session.lock().requests.start_stream(stream_id.clone(), length);
        match start {
            StreamStart::Feed(pipe, waker) => {
                self.reader.wakers.extend(waker);
                Ok(Some(pipe))
            }
            StreamStart::Skip => Ok(None),
            StreamStart::Unsolicited => Err(self.protocol_error(ProtocolError::UnsolicitedStream(stream_id))),
        }
    }

    fn on_message(&mut self, message: Message<Bytes>) -> Result<(), TransportError> {
        match message {
            Message::RpcResponse { request_id, body } => {
                self.answer_rpc(request_id, Ok(Answer::Body(body)));
            }
            Message::RpcFailure { request_id, error } => {
                let error = self.remote(ErrorKind::Remote, error);
                self.answer_rpc(request_id, Err(error));
            }
            Message::MergedBlockMetaSuccess { request_id, num_chunks, body } => {
                let meta = MergedBlockMeta { num_chunks, body };
                self.answer_rpc(request_id, Ok(Answer::MergedBlockMeta(meta)));
            }
            Message::ChunkFetchSuccess { stream_id, chunk_index, body } => {
                self.answer_fetch(stream_id, chunk_index, Ok(Answer::Body(body)));
            }
            Message::ChunkFetchFailure { stream_id, chunk_index, error } => {
                let text = format!(
                    "Failure while fetching StreamChunkId[streamId={stream_id},chunkIndex={chunk_index}]: {error}"
                );
                let error = self.remote(ErrorKind::ChunkFetchFailure, text);
                self.answer_fetch(stream_id, chunk_index, Err(error));
            }
            Message::StreamResponse { stream_id, .. } => {
                // Nothing follows an empty stream: its pipe is complete from the start.
                self.start_stream(stream_id, 0)?;
            }
            Message::StreamFailure { stream_id, error } => {
                let failure = self.remote(ErrorKind::StreamFailure, error);
                match self.shared.session.lock().requests.fail_stream(failure) {
                    Ok(waker) => self.reader.wakers.extend(waker),
                    Err(error) => {
                        tracing::warn!(peer = %self.shared.peer, stream_id, %error, "unsolicited stream failure ignored");
                    }
                }
            }
            Message::UploadStream { request_id, meta, .. } => {
                if let Some(pipe) = self.start_upload(request_id, meta, 0) {
                    pipe.finish(Ok(()));
                }
            }
            request => return self.on_request(request),
        }
        Ok(())
    }

    fn remote(&self, kind: ErrorKind, text: String) -> TransportError {
        TransportError::new(kind, text).with_peer(self.shared.peer)
    }

    fn answer_rpc(&mut self, request_id: i64, outcome: Outcome) {
        match self.shared.session.lock().requests.answer_rpc(request_id, outcome) {
            Ok(waker) => self.reader.wakers.extend(waker),
            Err(_) => {
                tracing::debug!(peer = %self.shared.peer, request_id, "answer to an unknown request ignored")
            }
        }
    }

    fn answer_fetch(&mut self, stream_id: i64, chunk_index: i32, outcome: Outcome) {
        match self.shared.session.lock().requests.answer_fetch(stream_id, chunk_index, outcome) {
            Ok(waker) => self.reader.wakers.extend(waker),
            Err(_) => {
                tracing::debug!(peer = %self.shared.peer, stream_id, chunk_index, "answer to an unknown fetch ignored");
            }
        }
    }

    fn on_request(&mut self, request: Message<Bytes>) -> Result<(), TransportError> {
        let draining = self.shared.session.lock().is_draining();
        let (handler, client) = (&self.handler, &self.client);
        match request {
            Message::RpcRequest { request_id, body } => {
                self.reader.received += 1;
                let callback = RpcResponseCallback::new(Arc::clone(&self.shared), request_id);
                if draining {
                    callback.fail(SHUTTING_DOWN);
                } else if catch_unwind(AssertUnwindSafe(|| handler.receive(client, body, callback))).is_err()
                {
                    tracing::error!(peer = %self.shared.peer, "the RPC handler panicked; its request fails");
                }
            }
            Message::OneWayMessage { body } => {
                if draining {
                    tracing::warn!(peer = %self.shared.peer, "one-way message dropped: {SHUTTING_DOWN}");
                } else if catch_unwind(AssertUnwindSafe(|| handler.receive_one_way(client, body))).is_err() {
                    tracing::error!(peer = %self.shared.peer, "the RPC handler panicked on a one-way message");
                }
            }
            Message::MergedBlockMetaRequest(request) => {
                self.reader.received += 1;
                let callback = MergedBlockMetaCallback::new(Arc::clone(&self.shared), request.request_id);
                let receive = || handler.receive_merged_block_meta(client, request, callback);
                if catch_unwind(AssertUnwindSafe(receive)).is_err() {
                    tracing::error!(peer = %self.shared.peer, "the RPC handler panicked; its request fails");
                }
            }
            Message::ChunkFetchRequest { stream_id, chunk_index } => {
                self.queue_bulk(BulkRequest::Chunk { stream_id, chunk_index })?;
            }
            Message::StreamRequest { stream_id } => {
                self.queue_bulk(BulkRequest::Stream { stream_id })?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Queues a request for the stream manager, and starts the task that works on the queue if it is not running.
    fn queue_bulk(&mut self, request: BulkRequest) -> Result<(), TransportError> {
        let metrics = &self.resources.metrics;
        let limit = self.resources.conf.max_chunks_being_transferred();
        let transferred = metrics.chunks_in_transfer.load(Ordering::Relaxed);
        if transferred >= limit {
            let peer = self.shared.peer;
            let text = format!(
                "{peer} asks for a chunk while {transferred} are being transferred: \
                 spark.shuffle.maxChunksBeingTransferred allows {limit}"
            );
            return Err(TransportError::new(ErrorKind::Limit, text).with_peer(peer));
        }
        metrics.chunks_in_transfer.fetch_add(1, Ordering::Relaxed);
        let mut session = self.shared.session.lock();
        session.pending_bulk.push_back(request);
        if !std::mem::replace(&mut session.bulk_server_runs, true) {
            drop(session);
            let server = serve::BulkServer {
                shared: Arc::clone(&self.shared),
                client: self.client.clone(),
                handler: Arc::clone(&self.handler),
                resources: Arc::clone(&self.resources),
            };
            tokio::spawn(server.run());
        }
        Ok(())
    }

    /// Hands an upload to the handler; `None` if it does not want the data.
    fn start_upload(&mut self, request_id: i64, meta: Bytes, length: u64) -> Option<PipeWriter> {
        self.reader.received += 1;
        let callback = RpcResponseCallback::new(Arc::clone(&self.shared), request_id);
        let draining = self.shared.session.lock().is_draining();
        if draining {
            callback.fail(SHUTTING_DOWN);
            return None;
        }
        serve::start_upload(&self.handler, &self.client, meta, length, callback)
    }
}

const SHUTTING_DOWN: &str = "the server is shutting down";
