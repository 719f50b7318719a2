//! Responses to this end's requests, and the pieces of bodies on their way to their receivers.

use bytes::Bytes;

use super::ConnectionDriver;
use super::reader::{IncomingStream, Reader, protocol_error};
use crate::client::SharedConnection;
use crate::error::{ErrorKind, TransportError};
use crate::protocol::{Event, Message, ProtocolError};
use crate::session::{BodySender, MergedBlockMeta, Response, Session, StreamStart};

impl Reader {
    /// An answer without a body of its own, or with one that has arrived.
    pub(super) fn on_response(
        &mut self,
        session: &mut Session,
        answer: Message<Bytes>,
        shared: &SharedConnection,
    ) -> Result<(), TransportError> {
        let remote = |kind, text| TransportError::new(kind, text).with_peer(shared.peer);
        let requests = &mut session.requests;
        let waker = match answer {
            Message::RpcResponse { request_id, body } => {
                requests.complete_rpc(request_id, Ok(Response::Body(body)))
            }
            Message::RpcFailure { request_id, error } => {
                requests.complete_rpc(request_id, Err(remote(ErrorKind::Remote, error)))
            }
            Message::MergedBlockMetaSuccess { request_id, num_chunks, body } => {
                let meta = MergedBlockMeta { num_chunks, body };
                requests.complete_rpc(request_id, Ok(Response::MergedBlockMeta(meta)))
            }
            Message::ChunkFetchSuccess { stream_id, chunk_index, body } => {
                requests.complete_fetch(stream_id, chunk_index, Ok(Response::Body(body)))
            }
            Message::ChunkFetchFailure { stream_id, chunk_index, error } => {
                let text = format!(
                    "Failure while fetching StreamChunkId[streamId={stream_id},chunkIndex={chunk_index}]: {error}"
                );
                let failure = remote(ErrorKind::ChunkFetchFailure, text);
                requests.complete_fetch(stream_id, chunk_index, Err(failure))
            }
            Message::StreamFailure { error, .. } => {
                requests.fail_stream(remote(ErrorKind::StreamFailure, error)).map_err(Err)
            }
            Message::StreamResponse { stream_id, .. } => {
                // Nothing follows an empty stream: its pipe is complete from the start.
                self.start_stream(session, stream_id, 0, shared)?;
                Ok(None)
            }
            // Requests do not come here.
            _ => Ok(None),
        };
        match waker {
            Ok(waker) => self.wakers.extend(waker),
            Err(outcome) => {
                tracing::debug!(peer = %shared.peer, failed = outcome.is_err(), "an answer that nobody waits for is ignored");
            }
        }
        Ok(())
    }

    /// Where the body of the oldest stream request goes; `None` if its asker has gone.
    pub(super) fn start_stream(
        &mut self,
        session: &mut Session,
        stream_id: String,
        length: u64,
        shared: &SharedConnection,
    ) -> Result<Option<BodySender>, TransportError> {
        match session.requests.start_stream(&stream_id, length) {
            StreamStart::Feed(pipe, waker) => {
                self.wakers.extend(waker);
                Ok(Some(pipe))
            }
            StreamStart::Skip => Ok(None),
            StreamStart::Unsolicited => {
                Err(protocol_error(shared, ProtocolError::UnsolicitedStream(stream_id)))
            }
        }
    }
}

impl ConnectionDriver {
    pub(super) fn on_event(&mut self, event: Event) -> Result<(), TransportError> {
        match event {
            Event::Message(request) => self.on_request(request),
            Event::BodyStart { message, length } => self.on_body_start(message, length),
            Event::BodyPiece(piece) => {
                if let Some(receiving) = &self.reader.receiving {
                    receiving.pipe.push(piece);
                }
                Ok(())
            }
            Event::BodyEnd => {
                if let Some(receiving) = self.reader.receiving.take() {
                    if receiving.is_stream {
                        self.shared.session.lock().requests.is_receiving_stream = false;
                    }
                    receiving.pipe.finish(Ok(()));
                }
                Ok(())
            }
        }
    }

    /// Decides what becomes of a large body before it arrives.
    fn on_body_start(&mut self, message: Message<()>, length: u64) -> Result<(), TransportError> {
        if self.shared.is_peer_unauthenticated() {
            return Err(self.unauthenticated_limit_error("announces a body of", length));
        }
        match message {
            Message::ChunkFetchSuccess { stream_id, chunk_index, .. } => {
                let mut session = self.shared.session.lock();
                if session.requests.is_chunk_pending(stream_id, chunk_index) {
                    self.reader.decoder.collect_body(true);
                } else {
                    // A tombstone has served its purpose; anything else was never asked for.
                    let error = TransportError::closed(self.shared.peer);
                    let known =
                        session.requests.complete_fetch(stream_id, chunk_index, Err(error)).is_ok();
                    tracing::debug!(peer = %self.shared.peer, stream_id, chunk_index, known, "skipping an unwanted chunk");
                    self.reader.decoder.discard_body();
                }
            }
            Message::RpcResponse { request_id, .. }
            | Message::MergedBlockMetaSuccess { request_id, .. } => {
                if self.shared.session.lock().requests.is_rpc_pending(request_id) {
                    self.reader.decoder.collect_body(false);
                } else {
                    tracing::debug!(peer = %self.shared.peer, request_id, "skipping an unwanted answer");
                    self.reader.decoder.discard_body();
                }
            }
            Message::StreamResponse { stream_id, .. } => {
                let mut session = self.shared.session.lock();
                match self.reader.start_stream(&mut session, stream_id, length, &self.shared)? {
                    Some(pipe) => {
                        session.requests.is_receiving_stream = true;
                        self.reader.receiving = Some(IncomingStream { pipe, is_stream: true });
                        self.reader.decoder.stream_body();
                    }
                    None => self.reader.decoder.discard_body(),
                }
            }
            Message::UploadStream { request_id, meta, .. } => {
                match self.start_upload(request_id, meta, length) {
                    Some(pipe) => {
                        self.reader.receiving = Some(IncomingStream { pipe, is_stream: false });
                        self.reader.decoder.stream_body();
                    }
                    None => self.reader.decoder.discard_body(),
                }
            }
            _ => self.reader.decoder.collect_body(false),
        }
        Ok(())
    }
}
