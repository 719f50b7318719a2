//! What arrives in pieces, and where it goes.

use super::IncomingStream;
use crate::channel::ConnectionDriver;
use crate::error::TransportError;
use crate::protocol::{Event, Message};

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
