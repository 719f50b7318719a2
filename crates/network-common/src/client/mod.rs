//! [`TransportClient`], the handle of one connection for callers and handlers.

mod request_future;
mod requests;
mod shared_connection;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use bytes::Bytes;

pub use request_future::{
    ChunkFuture, MergedBlockMetaFuture, RequestFuture, RpcFuture, StreamFuture,
};
pub use shared_connection::ConnectionId;
pub(crate) use shared_connection::SharedConnection;

use crate::error::{ErrorKind, TransportError};
use crate::session::{ByteFilter, CloseRequest, FilterPair};

#[cfg(all(test, feature = "auth"))]
#[path = "client_tests.rs"]
mod tests;

/// A handle of one connection that sends requests to the peer (Spark's `TransportClient`).
///
/// Cloning is cheap. Connections are symmetric: a server's handler also gets a client, and sends
/// requests to the peer over the same connection.
///
/// A method queues its request before it returns, so requests are sent in the order of the calls;
/// the returned future only waits for the response. Dropping the future cancels the request on this
/// side: the response of an RPC or upload is ignored, a chunk or stream is received and discarded.
/// The peer is not notified. When the connection ends, all pending requests fail.
///
/// A request fails at once with kind [`Limit`](ErrorKind::Limit) while the write queue holds
/// `spark.<module>.io.maxWriteQueueSize` bytes or more (file bodies do not count).
/// [`ready`](Self::ready) waits for capacity.
///
/// If peers must authenticate, a handler's [`on_connected`](crate::RpcHandler::on_connected) runs
/// before that. Until [`client_id`](Self::client_id) is set, requests of handlers fail with kind
/// [`InvalidState`](ErrorKind::InvalidState).
///
/// A connection that a factory opened is closed by [`close`](Self::close), by
/// [`TransportClientFactory::close`](crate::TransportClientFactory::close) if it is pooled, or when
/// its last handle, future and stream body are dropped; the pool of a factory holds a handle.
/// Queued messages are still written. A `TransportClient` that is passed to a server's handler does
/// not keep the connection open, and dropping it does not close the connection.
///
/// ```
/// use network_common::{BoxError, TransportClient};
///
/// async fn greet(client: &TransportClient) -> Result<(), BoxError> {
///     client.send("a one-way message")?;
///     let reply = client.send_rpc("a request").await?;
///     println!("{} replied with {} bytes", client.peer_addr(), reply.len());
///     Ok(())
/// }
/// ```
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
    /// Returns the handle of an outgoing connection; dropping the last clone closes it.
    pub(crate) fn outgoing(shared: Arc<SharedConnection>) -> Self {
        Self(Arc::new(ClientInner { shared, closes_on_drop: true }))
    }

    /// Returns the handle of an accepted connection, which does not close it.
    pub(crate) fn accepted(shared: Arc<SharedConnection>) -> Self {
        Self(Arc::new(ClientInner { shared, closes_on_drop: false }))
    }

    /// Returns the state that the handles share with the driver.
    pub(crate) fn shared(&self) -> &Arc<SharedConnection> {
        &self.0.shared
    }

    /// Checks that the peer is authenticated, if it must be; outgoing handles may send before.
    fn check_can_send(&self) -> Result<(), TransportError> {
        if self.0.closes_on_drop || !self.0.shared.is_peer_unauthenticated() {
            return Ok(());
        }
        let peer = self.peer_addr();
        let text = format!("cannot send to {peer} before it is authenticated");
        Err(TransportError::new(ErrorKind::InvalidState, text).with_peer(peer))
    }

    /// Queues a one-way message, which is lost if the connection ends before it is written.
    ///
    /// # Errors
    /// The connection has ended, or kind [`Limit`](ErrorKind::Limit) or
    /// [`InvalidState`](ErrorKind::InvalidState). The message was not queued.
    pub fn send(&self, body: impl Into<Bytes>) -> Result<(), TransportError> {
        let mut body = body.into();
        self.check_can_send()?;
        self.0.shared.update(|session| session.send_one_way(&mut body))
    }

    /// Waits until the write queue has capacity for a request of any size.
    ///
    /// # Errors
    /// The reason why the connection ended.
    ///
    /// # Cancel safety
    /// Cancel safe.
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

    /// Returns the number of requests without a response, with cancelled chunks and streams.
    #[doc(alias = "numOutstandingRequests")]
    #[must_use]
    pub fn pending_requests(&self) -> usize {
        self.0.shared.session.lock().requests.len()
    }

    /// Returns whether the connection is open and was not marked with [`time_out`](Self::time_out).
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.0.shared.active.load(Ordering::Acquire)
    }

    /// Restarts the idle timeout; returns whether the connection is still active.
    pub(crate) fn mark_used(&self) -> bool {
        let mut session = self.0.shared.session.lock();
        session.has_new_request = true;
        self.is_active() && session.is_open()
    }

    /// Removes the connection from the pool (Spark's `TransportClient.timeOut`).
    ///
    /// The connection stays open, and its requests continue.
    pub fn time_out(&self) {
        self.0.shared.deactivate();
    }

    /// Returns the socket address of the peer.
    #[must_use]
    pub fn peer_addr(&self) -> SocketAddr {
        self.0.shared.peer
    }

    /// Returns the socket address of this side.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.0.shared.local
    }

    /// Returns whether the peer opened the connection.
    #[must_use]
    pub fn is_accepted(&self) -> bool {
        self.0.shared.is_accepted
    }

    /// Returns the id of the connection, which is the same for all its handles.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.0.shared.id
    }

    /// Returns the authenticated application id of the peer, once a bootstrap has set it.
    #[must_use]
    pub fn client_id(&self) -> Option<&str> {
        self.0.shared.client_id.get().map(String::as_str)
    }

    /// Sets the authenticated application id of the peer; for bootstraps.
    ///
    /// # Errors
    /// [`InvalidState`](ErrorKind::InvalidState) if it is already set.
    pub fn set_client_id(&self, id: impl Into<String>) -> Result<(), TransportError> {
        self.0.shared.set_client_id(id.into())
    }

    /// Passes all further bytes of the connection through two filters; for bootstraps.
    ///
    /// `seal` transforms the bytes that are sent, `open` those that are received. They are next to
    /// the socket: with TLS, `seal` transforms its records. RPCs and
    /// responses that are already queued are sent unfiltered, so the last response of a handshake
    /// is queued first. No chunk, stream or upload may be queued.
    ///
    /// Call this in a client's bootstrap or, on a server, in a handler's `receive` before it
    /// returns. Then `open` starts with the first byte behind the last response or request of the
    /// handshake.
    ///
    /// # Errors
    /// [`InvalidState`](ErrorKind::InvalidState) if the connection already has filters.
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

    /// Closes the connection after the write queue is flushed, which takes at most 10 s.
    ///
    /// New requests fail at once. After the flush pending requests fail with kind
    /// [`Closed`](ErrorKind::Closed). Returns immediately; [`closed`](Self::closed) waits.
    pub fn close(&self) {
        self.0.shared.close(CloseRequest::AfterFlush(TransportError::closed(self.peer_addr())));
    }

    /// Waits for the end of the connection; returns the reason.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn closed(&self) -> TransportError {
        let shared = &self.0.shared;
        loop {
            let mut notified = std::pin::pin!(shared.state_notify.notified());
            // Registered before the check, so that an end after the check is not missed.
            notified.as_mut().enable();
            if let Some(error) = shared.session.lock().close_reason() {
                return error.clone();
            }
            notified.await;
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
