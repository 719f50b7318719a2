//! One connection as a caller sees it.

mod future;
mod read;
mod shared_connection;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use bytes::Bytes;

pub use future::{ChunkFuture, MergedBlockMetaFuture, RequestFuture, RpcFuture, StreamFuture};
pub use shared_connection::ConnectionId;
pub(crate) use shared_connection::SharedConnection;

use crate::buffer::ManagedBuffer;
use crate::error::{ErrorKind, TransportError};
use crate::protocol::MergedBlockMetaRequest;
use crate::session::{ByteFilter, CloseRequest, FilterPair, RequestKey, Response, Session};

#[cfg(all(test, feature = "auth"))]
#[path = "client_tests.rs"]
mod tests;

/// A handle on one connection: sends requests to the peer (transport 5). Cheap to clone.
///
/// Connections are symmetric: a server's handlers get a client too, with which they call back over
/// the same connection.
///
/// Every request is queued when the method is called, in the order of the calls; the future it
/// returns only waits for the answer. Dropping that future frees its place: the answer to an RPC or
/// upload is then ignored, a chunk or stream that still arrives is read and discarded. When the
/// connection ends, every outstanding request fails.
///
/// Handlers are told of a connection before its peer has authenticated, if it is to: until then
/// ([`client_id`](Self::client_id) is not set) all requests over their handles fail with kind
/// [`Refused`](ErrorKind::Refused).
///
/// Requests are refused with kind [`Limit`](ErrorKind::Limit) while
/// `spark.<module>.io.maxWriteQueueSize` bytes or more wait to be written (files do not count);
/// [`ready`](Self::ready) waits until there is room.
///
/// A connection that was opened by a factory ends when it is closed, when its factory is closed, or
/// when the last handle (the pool's, for a pooled one) and the last future and stream body are
/// dropped; what was queued before is still written. Handles that a server's handlers get never
/// keep a connection open, and dropping them does not close it.
#[derive(Clone)]
pub struct TransportClient(Arc<ClientInner>);

struct ClientInner {
    shared: Arc<SharedConnection>,
    closes_on_drop: bool,
}

impl Drop for ClientInner {
    fn drop(&mut self) {
        if self.closes_on_drop {
            self.shared.close(CloseRequest::AfterFlush(TransportError::closed(self.shared.peer)));
        }
    }
}

impl TransportClient {
    /// The handle of an outgoing connection: the last one closes it.
    pub(crate) fn outgoing(shared: Arc<SharedConnection>) -> Self {
        Self(Arc::new(ClientInner { shared, closes_on_drop: true }))
    }

    /// The handle of an accepted connection.
    pub(crate) fn accepted(shared: Arc<SharedConnection>) -> Self {
        Self(Arc::new(ClientInner { shared, closes_on_drop: false }))
    }

    pub(crate) fn shared(&self) -> &Arc<SharedConnection> {
        &self.0.shared
    }

    fn request<T>(
        &self,
        extract: fn(Response) -> Option<T>,
        queue: impl FnOnce(&mut Session) -> Result<RequestKey, TransportError>,
    ) -> RequestFuture<T> {
        let queued = self.check_can_send().and_then(|()| self.0.shared.update(queue));
        RequestFuture::new(self, queued, extract)
    }

    /// Handlers say nothing to a stranger, whom only bootstraps talk to.
    fn check_can_send(&self) -> Result<(), TransportError> {
        if self.0.closes_on_drop || !self.0.shared.is_peer_unauthenticated() {
            return Ok(());
        }
        let peer = self.peer_addr();
        let text = format!("{peer} has not proved yet who it is: nothing is sent to it before");
        Err(TransportError::new(ErrorKind::Refused, text).with_peer(peer))
    }

    /// Asks the peer's [`RpcHandler`](crate::RpcHandler); the answer is its reply.
    ///
    /// # Errors
    /// [`Remote`](ErrorKind::Remote): the handler failed. [`Closed`](ErrorKind::Closed),
    /// [`Timeout`](ErrorKind::Timeout), [`Io`](ErrorKind::Io), [`Protocol`](ErrorKind::Protocol):
    /// the connection ended. [`Limit`](ErrorKind::Limit): too much waits to be written, or the body
    /// does not fit into a frame.
    pub fn send_rpc(&self, body: impl Into<Bytes>) -> RpcFuture {
        let mut body = body.into();
        self.request(Response::into_body, |session| session.send_rpc(&mut body))
    }

    /// Sends a message that is never answered. It may be lost when the connection ends.
    ///
    /// # Errors
    /// [`Closed`](ErrorKind::Closed) or [`Limit`](ErrorKind::Limit); nothing was queued then.
    pub fn send(&self, body: impl Into<Bytes>) -> Result<(), TransportError> {
        let mut body = body.into();
        self.check_can_send()?;
        self.0.shared.update(|session| session.send_one_way(&mut body))
    }

    /// Fetches one chunk of a stream that the peer has registered, into memory.
    ///
    /// The buffer may be a recycled one of the context: it returns there when the last slice of it
    /// is dropped.
    ///
    /// # Errors
    /// [`ChunkFetchFailure`](ErrorKind::ChunkFetchFailure): the peer could not serve it.
    /// [`Refused`](ErrorKind::Refused): the same chunk is being fetched over this connection, or
    /// its abandoned fetch is still unanswered. Otherwise as [`send_rpc`](Self::send_rpc).
    pub fn fetch_chunk(&self, stream_id: i64, chunk_index: i32) -> ChunkFuture {
        self.request(Response::into_body, |session| session.fetch_chunk(stream_id, chunk_index))
    }

    /// Asks for a whole stream by name; yields its body as soon as the peer begins to send it.
    ///
    /// While nobody reads the [`StreamBody`](crate::StreamBody), the whole connection stalls.
    ///
    /// # Errors
    /// [`StreamFailure`](ErrorKind::StreamFailure): the peer could not serve it. Otherwise as
    /// [`send_rpc`](Self::send_rpc).
    pub fn stream(&self, stream_id: &str) -> StreamFuture {
        self.request(Response::into_stream, |session| session.stream(stream_id))
    }

    /// An RPC with data of any size, which the peer's
    /// [`receive_stream`](crate::RpcHandler::receive_stream) reads as it arrives; the answer is
    /// what that returns.
    ///
    /// # Errors
    /// [`Io`](ErrorKind::Io): the data could not be read. Otherwise as
    /// [`send_rpc`](Self::send_rpc).
    pub fn upload_stream(
        &self,
        meta: impl Into<Bytes>,
        data: impl Into<ManagedBuffer>,
    ) -> RpcFuture {
        let (mut meta, data) = (meta.into(), data.into());
        self.request(Response::into_body, |session| session.upload(&mut meta, &data))
    }

    /// Asks which map outputs the chunks of a merged shuffle block hold (peers of 3.2 and later).
    ///
    /// # Errors
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

    /// Waits until the write queue takes another request, of any size. Cancel safe.
    ///
    /// # Errors
    /// The reason why the connection ended.
    pub async fn ready(&self) -> Result<(), TransportError> {
        std::future::poll_fn(|context| {
            let mut session = self.0.shared.session.lock();
            if let Some(error) = session.close_reason() {
                return Poll::Ready(Err(error.clone()));
            }
            if session.outgoing.has_capacity() {
                return Poll::Ready(Ok(()));
            }
            session.register_capacity_waker(context.waker());
            Poll::Pending
        })
        .await
    }

    /// Requests that have no answer yet, abandoned chunks and streams included.
    #[doc(alias = "numOutstandingRequests")]
    pub fn pending_requests(&self) -> usize {
        self.0.shared.session.lock().requests.len()
    }

    /// False from the moment the connection is known to have ended, is being closed, or has timed
    /// out.
    pub fn is_active(&self) -> bool {
        self.0.shared.active.load(Ordering::Acquire)
    }

    /// Counts as a request for the idle clock, so that a connection just taken from the pool is not
    /// closed as idle. Returns whether it is still active.
    pub(crate) fn mark_used(&self) -> bool {
        let mut session = self.0.shared.session.lock();
        session.has_new_request = true;
        self.is_active() && session.is_open()
    }

    /// Marks the connection as unusable for the pool and nothing else: requests go on (Spark's
    /// `timeOut`).
    pub fn time_out(&self) {
        self.0.shared.deactivate();
    }

    /// Address of the peer.
    pub fn peer_addr(&self) -> SocketAddr {
        self.0.shared.peer
    }

    /// Address of this end.
    pub fn local_addr(&self) -> SocketAddr {
        self.0.shared.local
    }

    /// The connection's name in this process: equal for all handles of one connection.
    pub fn id(&self) -> ConnectionId {
        self.0.shared.id
    }

    /// Who the peer proved to be, once a bootstrap has set it.
    pub fn client_id(&self) -> Option<&str> {
        self.0.shared.client_id.get().map(String::as_str)
    }

    /// Records who the peer proved to be; for bootstraps.
    ///
    /// # Errors
    /// [`Refused`](ErrorKind::Refused) when it is set already: an identity does not change.
    pub fn set_client_id(&self, id: impl Into<String>) -> Result<(), TransportError> {
        self.0.shared.set_client_id(id.into())
    }

    /// From here on every byte of the connection passes through these filters, in both directions;
    /// for bootstraps.
    ///
    /// RPCs and answers that are queued already are sent as they are, so an answer that ends a
    /// handshake is queued first; no chunk, stream or upload may be queued. They are installed by a
    /// client's bootstrap, or on a server by a handler's `receive` before it returns: then `open`
    /// gets exactly the bytes behind the last answer or request of the handshake.
    ///
    /// # Errors
    /// [`Refused`](ErrorKind::Refused): this connection has filters.
    pub fn install_filters(
        &self,
        seal: Box<dyn ByteFilter>,
        open: Box<dyn ByteFilter>,
    ) -> Result<(), TransportError> {
        self.0.shared.update(|session| {
            self.0
                .shared
                .install_filters(session, FilterPair { seal_filter: seal, open_filter: open })
        })
    }

    /// Ends the connection: new requests are refused, what is queued is written (for at most 10 s),
    /// then outstanding requests fail with kind [`Closed`](ErrorKind::Closed). Returns at once; see
    /// [`closed`](Self::closed).
    pub fn close(&self) {
        self.0.shared.close(CloseRequest::AfterFlush(TransportError::closed(self.peer_addr())));
    }

    /// Resolves when the connection is gone, with the reason. Cancel safe.
    pub async fn closed(&self) -> TransportError {
        let shared = &self.0.shared;
        loop {
            let mut ended = std::pin::pin!(shared.closed_notify.notified());
            // From here on the end is noticed, so it cannot slip in between.
            ended.as_mut().enable();
            if let Some(error) = shared.session.lock().close_reason() {
                return error.clone();
            }
            ended.await;
        }
    }
}

impl fmt::Debug for TransportClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransportClient")
            .field("peer", &self.peer_addr())
            .field("id", &self.id())
            .field("active", &self.is_active())
            .finish()
    }
}
