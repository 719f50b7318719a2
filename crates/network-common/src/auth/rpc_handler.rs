//! Nothing is served before the peer has proved who it is.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::AuthError;
use super::server::{HandshakeStep, ServerHandshake};
use crate::client::TransportClient;
use crate::error::{BoxError, ErrorKind, TransportError};
use crate::handler::{MergedBlockMetaCallback, RpcHandler, RpcResponseCallback, StreamManager};
use crate::protocol::MergedBlockMetaRequest;
use crate::session::{CloseRequest, StreamBody};

/// All that a peer is told, whatever the reason; Spark's texts (auth 2).
pub(super) const FAILED: &str = "Authentication failed.";
const UNKNOWN: &str = "Unknown challenge message.";

/// Stands before the handler of one connection. Who has a client id is authenticated.
pub(super) struct AuthRpcHandler {
    inner: Arc<dyn RpcHandler>,
    /// `None` on the side that connects: its handshake does not come in as requests.
    handshake: Option<Mutex<ServerAuth>>,
}

struct ServerAuth {
    handshake: ServerHandshake,
    /// Ends the wait for the end of the handshake.
    done: Option<oneshot::Sender<()>>,
}

impl AuthRpcHandler {
    pub(super) fn client(inner: Arc<dyn RpcHandler>) -> Self {
        Self { inner, handshake: None }
    }

    pub(super) fn server(
        inner: Arc<dyn RpcHandler>,
        handshake: ServerHandshake,
        over: oneshot::Sender<()>,
    ) -> Self {
        Self { inner, handshake: Some(Mutex::new(ServerAuth { handshake, done: Some(over) })) }
    }
}

fn is_authenticated(client: &TransportClient) -> bool {
    client.client_id().is_some()
}

/// Ends the connection of a peer that asks for something before it is authenticated.
fn refuse(client: &TransportClient, what: &str) -> BoxError {
    let peer = client.peer_addr();
    let text = format!("{peer} sent {what} before it was authenticated");
    end(client, TransportError::new(ErrorKind::Bootstrap, text).with_peer(peer));
    FAILED.into()
}

pub(super) fn end(client: &TransportClient, error: TransportError) {
    client.shared().close(CloseRequest::AfterFlush(error));
}

pub(super) fn failure(client: &TransportClient, error: impl Into<BoxError>) -> TransportError {
    let (peer, error) = (client.peer_addr(), error.into());
    TransportError::new(ErrorKind::Bootstrap, format!("authentication of {peer} failed: {error}"))
        .with_peer(peer)
        .with_source(error)
}

impl ServerAuth {
    /// Takes in one message of the peer, and answers it.
    fn step(&mut self, client: &TransportClient, message: &[u8], callback: RpcResponseCallback) {
        let done = match self.handshake.step(message) {
            Ok(HandshakeStep::Continue(reply)) => return callback.reply(reply),
            Ok(HandshakeStep::UnsupportedProtocol(error)) => {
                tracing::debug!(peer = %client.peer_addr(), %error, "a handshake in another protocol");
                return callback.fail(UNKNOWN);
            }
            Ok(HandshakeStep::Done(done)) => done,
            Err(error) => {
                callback.fail(if matches!(error, AuthError::UnexpectedMessage(_)) {
                    UNKNOWN
                } else {
                    FAILED
                });
                return end(client, failure(client, error));
            }
        };
        tracing::debug!(peer = %client.peer_addr(), app_id = done.app_id, "authenticated");
        // The reply goes out as it is; all behind it, in both directions, is sealed.
        callback.reply(done.reply);
        if let Err(error) = client.shared().set_authenticated(done.app_id, done.filters) {
            return end(client, error);
        }
        if let Some(over) = self.done.take() {
            // Nobody waits any more if the time is up this very moment.
            let _ = over.send(());
        }
    }
}

impl RpcHandler for AuthRpcHandler {
    fn receive(&self, client: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
        if is_authenticated(client) {
            return self.inner.receive(client, message, callback);
        }
        match &self.handshake {
            Some(pending) => pending.lock().step(client, &message, callback),
            None => callback.fail(refuse(client, "an RPC")),
        }
    }

    fn receive_one_way(&self, client: &TransportClient, message: Bytes) {
        if is_authenticated(client) {
            return self.inner.receive_one_way(client, message);
        }
        refuse(client, "a one-way message");
    }

    fn receive_stream(
        &self,
        client: &TransportClient,
        meta: Bytes,
        data: StreamBody,
    ) -> BoxFuture<'static, Result<Bytes, BoxError>> {
        if is_authenticated(client) {
            return self.inner.receive_stream(client, meta, data);
        }
        let error = refuse(client, "an upload");
        Box::pin(async { Err(error) })
    }

    /// Serves no strangers: the connection ends when they ask for a chunk or stream, before they
    /// come to their turn.
    fn stream_manager(&self) -> &dyn StreamManager {
        self.inner.stream_manager()
    }

    fn receive_merged_block_meta(
        &self,
        client: &TransportClient,
        request: MergedBlockMetaRequest,
        callback: MergedBlockMetaCallback,
    ) {
        if is_authenticated(client) {
            return self.inner.receive_merged_block_meta(client, request, callback);
        }
        callback.fail(refuse(client, "a question for merged blocks"));
    }

    fn on_connected(&self, client: &TransportClient) {
        self.inner.on_connected(client);
    }

    fn on_disconnected(&self, client: &TransportClient) {
        self.inner.on_disconnected(client);
    }

    fn on_network_error(&self, error: &TransportError, client: &TransportClient) {
        self.inner.on_network_error(error, client);
    }
}
