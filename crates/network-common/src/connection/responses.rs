//! Responses to this side's requests, and bodies on the way to their receivers.

use bytes::Bytes;

use super::reader::{IncomingStream, Reader};
use super::{ConnectionDriver, protocol_error};
use crate::client::SharedConnection;
use crate::error::{ErrorKind, TransportError};
use crate::handler::is_refusal;
use crate::peer_text::{peer_name, peer_text};
use crate::protocol::{Event, Message, ProtocolError};
use crate::session::{BodySender, MergedBlockMeta, Response, Session, StreamStart};

/// The failures with which servers of this crate and of Spark reject unauthenticated requests.
///
/// They are in `AuthRpcHandler.doAuthChallenge` and `SaslMessage.decode`.
const UNAUTHENTICATED: [&str; 4] = [
    "Authentication failed.",
    "Unknown challenge message.",
    "java.lang.IllegalArgumentException: Unknown challenge message.",
    "java.lang.IllegalStateException: Expected SaslMessage",
];

impl Reader {
    /// Completes the pending request of a response that has arrived completely.
    ///
    /// # Errors
    /// The peer has sent a stream that was not requested.
    pub(super) fn on_response(
        &mut self,
        session: &mut Session,
        response: Message<Bytes>,
        shared: &SharedConnection,
    ) -> Result<(), TransportError> {
        let remote_error =
            |kind, text: String| TransportError::new(kind, text).with_peer(shared.peer);
        let is_bootstrapping = session.is_bootstrapping;
        let requests = &mut session.requests;
        let completed = match response {
            Message::RpcResponse { request_id, body } => {
                requests.complete_rpc(request_id, Ok(Response::Body(body)))
            }
            Message::RpcFailure { request_id, error } => {
                let is_refusal = is_refusal(&error);
                let failure = requires_authentication(&error, is_bootstrapping, shared)
                    .unwrap_or_else(|| remote_error(ErrorKind::Remote, peer_text(error)));
                let failure = if is_refusal { failure.retryable() } else { failure };
                requests.complete_rpc(request_id, Err(failure))
            }
            Message::MergedBlockMetaSuccess { request_id, num_chunks, body } => {
                let meta = MergedBlockMeta { num_chunks, body };
                requests.complete_rpc(request_id, Ok(Response::MergedBlockMeta(meta)))
            }
            Message::ChunkFetchSuccess { stream_id, chunk_index, body } => {
                requests.complete_fetch(stream_id, chunk_index, Ok(Response::Body(body)))
            }
            Message::ChunkFetchFailure { stream_id, chunk_index, error } => {
                let error = peer_text(error);
                let text = format!(
                    "Failure while fetching \
                     StreamChunkId[streamId={stream_id},chunkIndex={chunk_index}]: {error}"
                );
                let failure = remote_error(ErrorKind::ChunkFetchFailure, text);
                requests.complete_fetch(stream_id, chunk_index, Err(failure))
            }
            Message::StreamFailure { error, .. } => {
                let failure = remote_error(ErrorKind::StreamFailure, peer_text(error));
                requests.fail_stream(failure).map_err(Err)
            }
            Message::StreamResponse { stream_id, .. } => {
                // An empty stream: its body is complete from the start.
                self.start_stream(session, stream_id, 0, shared)?;
                Ok(None)
            }
            // The caller passes responses only.
            _ => Ok(None),
        };
        match completed {
            Ok(waker) => self.wakers.extend(waker),
            Err(result) => tracing::debug!(
                peer = %shared.peer,
                is_failure = result.is_err(),
                "ignoring a response without a pending request"
            ),
        }
        Ok(())
    }

    /// Completes the oldest stream request with a body of `length` bytes.
    ///
    /// Returns `None` if the request was cancelled.
    fn start_stream(
        &mut self,
        session: &mut Session,
        stream_id: String,
        length: u64,
        shared: &SharedConnection,
    ) -> Result<Option<BodySender>, TransportError> {
        match session.requests.start_stream(&stream_id, length) {
            StreamStart::Receive(sender, waker) => {
                self.wakers.extend(waker);
                Ok(Some(sender))
            }
            StreamStart::Discard => Ok(None),
            StreamStart::Unsolicited => {
                Err(protocol_error(shared, ProtocolError::UnsolicitedStream(peer_name(stream_id))))
            }
        }
    }
}

/// Returns the error of an RPC that a server with authentication rejected, or `None`.
///
/// Only a side that does not authenticate gets such a failure of a request.
fn requires_authentication(
    failure: &str,
    is_bootstrapping: bool,
    shared: &SharedConnection,
) -> Option<TransportError> {
    if is_bootstrapping
        || shared.has_client_id()
        || !UNAUTHENTICATED.iter().any(|text| failure.starts_with(text))
    {
        return None;
    }
    let peer = shared.peer;
    let text = format!(
        "{peer} rejected a request of an unauthenticated peer: does it require authentication \
         (spark.authenticate=true at both ends)? Its failure: {}",
        peer_text(failure)
    );
    Some(TransportError::new(ErrorKind::Bootstrap, text).with_peer(peer))
}

impl ConnectionDriver {
    /// Handles a request, or a part of a large body.
    pub(super) fn on_event(&mut self, event: Event) -> Result<(), TransportError> {
        match event {
            Event::Message(request) => self.on_request(request),
            Event::BodyStart { message, length } => self.on_body_start(message, length),
            Event::BodyPiece(piece) => {
                if let Some(incoming) = &self.reader.incoming {
                    incoming.sender.push(piece);
                }
                Ok(())
            }
            Event::RequestSkipped { request, error } => self.on_skipped_request(request, &error),
            Event::MessageRefused { message, length, start } => {
                match message.is_request() {
                    true => self.on_refused_request(message, length, start),
                    false => self.on_refused_response(message, length),
                }
                Ok(())
            }
            Event::BodyEnd => {
                if let Some(incoming) = self.reader.incoming.take() {
                    if incoming.is_stream {
                        self.shared.session.lock().requests.is_receiving_stream = false;
                    }
                    incoming.sender.finish(Ok(()));
                }
                Ok(())
            }
        }
    }

    /// Fails the request of a response that the byte budget does not allow.
    fn on_refused_response(&mut self, response: Message<()>, length: u64) {
        let account = &self.shared.account;
        let text = format!(
            "cannot receive a response of {length} bytes from {}: {}",
            self.shared.peer,
            account.budget.limit_text()
        );
        let error = TransportError::new(ErrorKind::Limit, text).with_peer(self.shared.peer);
        let max = match response {
            Message::ChunkFetchSuccess { .. } => account.budget.usual_limit(),
            _ => account.budget.max_request(),
        };
        account.count_refused(length <= max);
        self.resources.budget.start_monitor();
        let mut session = self.shared.session.lock();
        let completed = match response {
            Message::ChunkFetchSuccess { stream_id, chunk_index, .. } => {
                session.requests.complete_fetch(stream_id, chunk_index, Err(error))
            }
            Message::RpcResponse { request_id, .. }
            | Message::MergedBlockMetaSuccess { request_id, .. } => {
                session.requests.complete_rpc(request_id, Err(error))
            }
            // Only these responses have bodies that are collected.
            _ => Ok(None),
        };
        // A request that was cancelled meanwhile has no waker.
        self.reader.wakers.extend(completed.ok().flatten());
    }

    /// Chooses whether the decoder collects, streams or discards a large body.
    fn on_body_start(&mut self, message: Message<()>, length: u64) -> Result<(), TransportError> {
        if self.shared.is_peer_unauthenticated() {
            let peer = self.shared.peer;
            let text =
                format!("{peer} announces a body of {length} bytes before it was authenticated");
            return Err(TransportError::new(ErrorKind::Limit, text).with_peer(peer));
        }
        match message {
            Message::ChunkFetchSuccess { stream_id, chunk_index, .. } => {
                let mut session = self.shared.session.lock();
                if session.requests.is_chunk_pending(stream_id, chunk_index) {
                    self.reader.decoder.collect_body(true);
                } else {
                    // Removes the tombstone of a cancelled request.
                    let error = TransportError::closed(self.shared.peer);
                    let was_cancelled =
                        session.requests.complete_fetch(stream_id, chunk_index, Err(error)).is_ok();
                    tracing::debug!(
                        peer = %self.shared.peer,
                        stream_id,
                        chunk_index,
                        was_cancelled,
                        "discarding a chunk without a pending request"
                    );
                    self.reader.decoder.discard_body();
                }
            }
            Message::RpcResponse { request_id, .. }
            | Message::MergedBlockMetaSuccess { request_id, .. } => {
                if self.shared.session.lock().requests.is_rpc_pending(request_id) {
                    self.reader.decoder.collect_body(false);
                } else {
                    tracing::debug!(
                        peer = %self.shared.peer,
                        request_id,
                        "discarding a response without a pending request"
                    );
                    self.reader.decoder.discard_body();
                }
            }
            Message::StreamResponse { stream_id, .. } => {
                let mut session = self.shared.session.lock();
                let name = stream_id.clone();
                match self.reader.start_stream(&mut session, name, length, &self.shared)? {
                    Some(sender) => {
                        session.requests.is_receiving_stream = true;
                        let incoming =
                            IncomingStream { sender, is_stream: true, stream_id, length };
                        self.reader.incoming = Some(incoming);
                        self.reader.decoder.stream_body();
                    }
                    None => self.reader.decoder.discard_body(),
                }
            }
            Message::UploadStream { request_id, meta, .. } => {
                match self.start_upload(request_id, meta, length) {
                    Some(sender) => {
                        let stream_id = String::new();
                        let incoming =
                            IncomingStream { sender, is_stream: false, stream_id, length };
                        self.reader.incoming = Some(incoming);
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
