//! What arrives in pieces, and where it goes.

use super::Receiving;
use crate::channel::Connection;
use crate::error::TransportError;
use crate::protocol::{Event, Message};

impl Connection {
    pub(super) fn on_event(&mut self, event: Event) -> Result<(), TransportError> {
        match event {
            Event::Message(request) => self.on_request(request),
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
        if self.shared.peer_is_stranger() {
            return Err(self.too_much_from_stranger("announces a body of", length));
        }
        match message {
            Message::ChunkFetchSuccess { stream_id, chunk_index, .. } => {
                let mut session = self.shared.session.lock();
                if session.requests.awaits_chunk(stream_id, chunk_index) {
                    self.reader.decoder.collect_body(true);
                } else {
                    // A tombstone has served its purpose; anything else was never asked for.
                    let error = TransportError::closed(self.shared.peer);
                    let known =
                        session.requests.answer_fetch(stream_id, chunk_index, Err(error)).is_ok();
                    tracing::debug!(peer = %self.shared.peer, stream_id, chunk_index, known, "skipping an unwanted chunk");
                    self.reader.decoder.discard_body();
                }
            }
            Message::RpcResponse { request_id, .. }
            | Message::MergedBlockMetaSuccess { request_id, .. } => {
                if self.shared.session.lock().requests.awaits_rpc(request_id) {
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
                        session.requests.stream_active = true;
                        self.reader.receiving = Some(Receiving { pipe, is_stream: true });
                        self.reader.decoder.stream_body();
                    }
                    None => self.reader.decoder.discard_body(),
                }
            }
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
}
