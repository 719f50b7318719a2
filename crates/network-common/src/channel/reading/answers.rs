//! Answers, to those who wait for them.

use bytes::Bytes;

use super::{Reader, protocol_error};
use crate::client::SharedConnection;
use crate::error::{ErrorKind, TransportError};
use crate::protocol::{Message, ProtocolError};
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
