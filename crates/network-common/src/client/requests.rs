//! The requests of a [`TransportClient`], each of which returns a future.

use bytes::Bytes;

use super::TransportClient;
use super::request_future::{
    ChunkFuture, MergedBlockMetaFuture, RequestFuture, RpcFuture, StreamFuture,
};
use crate::buffer::ManagedBuffer;
#[cfg(doc)]
use crate::error::ErrorKind;
use crate::error::TransportError;
use crate::protocol::MergedBlockMetaRequest;
use crate::session::{RequestKey, Response, Session};

impl TransportClient {
    /// Sends an RPC to the peer's [`RpcHandler`](crate::RpcHandler); completes with its reply.
    ///
    /// # Errors
    /// - [`Remote`](ErrorKind::Remote): the handler failed.
    /// - [`Closed`](ErrorKind::Closed), [`Timeout`](ErrorKind::Timeout), [`Io`](ErrorKind::Io),
    ///   [`Protocol`](ErrorKind::Protocol): the connection ended.
    /// - [`Limit`](ErrorKind::Limit): the write queue is full, or the body is larger than a frame.
    /// - [`InvalidState`](ErrorKind::InvalidState): the peer is not authenticated yet.
    ///
    /// [`is_retryable`](TransportError::is_retryable) returns whether the request may be repeated.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the request on this side; the peer may execute it.
    pub fn send_rpc(&self, body: impl Into<Bytes>) -> RpcFuture {
        let mut body = body.into();
        self.request(Response::into_body, |session| session.send_rpc(&mut body))
    }

    /// Fetches one chunk of a registered stream of the peer into memory.
    ///
    /// The memory may belong to the context's buffer pool; it returns there when the last slice of
    /// it is dropped.
    ///
    /// # Errors
    /// - [`ChunkFetchFailure`](ErrorKind::ChunkFetchFailure): the peer could not serve the chunk.
    /// - [`AlreadyPending`](ErrorKind::AlreadyPending): this connection has no response yet to an
    ///   earlier fetch of the chunk, which may be cancelled.
    /// - Otherwise as [`send_rpc`](Self::send_rpc).
    ///
    /// # Cancel safety
    /// As [`send_rpc`](Self::send_rpc); the chunk is received and discarded.
    pub fn fetch_chunk(&self, stream_id: i64, chunk_index: i32) -> ChunkFuture {
        self.request(Response::into_body, |session| session.fetch_chunk(stream_id, chunk_index))
    }

    /// Requests a whole stream by name; completes when its body begins to arrive.
    ///
    /// The connection stops reading while the buffer of the [`StreamBody`](crate::StreamBody) is
    /// full, so later responses wait until the body is read or dropped.
    ///
    /// # Errors
    /// - [`StreamFailure`](ErrorKind::StreamFailure): the peer could not serve the stream.
    /// - Otherwise as [`send_rpc`](Self::send_rpc).
    ///
    /// # Cancel safety
    /// As [`send_rpc`](Self::send_rpc); the stream is received and discarded.
    pub fn stream(&self, stream_id: &str) -> StreamFuture {
        self.request(Response::into_stream, |session| session.stream(stream_id))
    }

    /// Sends an RPC with data of any size; completes with the peer's reply.
    ///
    /// The peer's [`receive_stream`](crate::RpcHandler::receive_stream) reads the data while it
    /// arrives.
    ///
    /// # Errors
    /// - [`Io`](ErrorKind::Io): the data could not be read, or the connection ended.
    /// - Otherwise as [`send_rpc`](Self::send_rpc).
    ///
    /// # Cancel safety
    /// As [`send_rpc`](Self::send_rpc); the data is still sent.
    pub fn upload_stream(
        &self,
        meta: impl Into<Bytes>,
        data: impl Into<ManagedBuffer>,
    ) -> RpcFuture {
        let (mut meta, data) = (meta.into(), data.into());
        self.request(Response::into_body, |session| session.upload(&mut meta, &data))
    }

    /// Requests the map ids in each chunk of a merged shuffle block (Spark 3.2 and later).
    ///
    /// # Errors
    /// As [`send_rpc`](Self::send_rpc).
    ///
    /// # Cancel safety
    /// As [`send_rpc`](Self::send_rpc).
    pub fn merged_block_meta(
        &self,
        app_id: &str,
        shuffle_id: i32,
        shuffle_merge_id: i32,
        reduce_id: i32,
    ) -> MergedBlockMetaFuture {
        let app_id = app_id.to_owned();
        let request = MergedBlockMetaRequest {
            request_id: 0,
            app_id,
            shuffle_id,
            shuffle_merge_id,
            reduce_id,
        };
        self.request(Response::into_meta, |session| session.merged_block_meta(request))
    }

    fn request<T>(
        &self,
        extract: fn(Response) -> Option<T>,
        queue: impl FnOnce(&mut Session) -> Result<RequestKey, TransportError>,
    ) -> RequestFuture<T> {
        let queued = self.check_can_send().and_then(|()| self.0.shared.update(queue));
        RequestFuture::new(self, queued, extract)
    }
}
