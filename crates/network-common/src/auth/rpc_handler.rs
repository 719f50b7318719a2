//! The handler that serves nothing on a connection before its peer is authenticated.
//!
//! Both bootstraps of this module wrap the user's handler in it.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::AuthError;
use super::server_handshake::{AuthOutcome, HandshakeStep, ServerHandshake};
use crate::client::TransportClient;
use crate::error::{BoxError, ErrorKind, TransportError};
use crate::handler::{
    MergedBlockMetaCallback, RefusedRequest, RpcHandler, RpcResponseCallback, StreamManager,
};
use crate::peer_text::{LogText, peer_name};
use crate::protocol::MergedBlockMetaRequest;
use crate::session::{CloseRequest, StreamBody};

/// The text that a peer receives when its handshake fails (Spark's `AuthRpcHandler`).
pub(super) const FAILED_TEXT: &str = "Authentication failed.";
/// The text that a peer receives when it uses another protocol (Spark's `AuthRpcHandler`).
const UNKNOWN_PROTOCOL_TEXT: &str = "Unknown challenge message.";

/// Rejects requests of one connection until the connection has a client id.
///
/// It covers all requests, unlike Spark's `AuthRpcHandler`. The driver rejects chunk and stream
/// requests of unauthenticated peers itself, because it queues them before they reach a handler.
pub(super) struct AuthRpcHandler {
    inner: Arc<dyn RpcHandler>,
    /// The server end of the handshake; `None` on the client, which sends the handshake itself.
    server_auth: Option<Mutex<ServerHandshake>>,
}

impl AuthRpcHandler {
    /// Creates the handler of a connection that this process opened.
    pub(super) fn client(inner: Arc<dyn RpcHandler>) -> Self {
        Self { inner, server_auth: None }
    }

    /// Creates the handler of an accepted connection.
    pub(super) fn server(inner: Arc<dyn RpcHandler>, handshake: ServerHandshake) -> Self {
        Self { inner, server_auth: Some(Mutex::new(handshake)) }
    }
}

fn is_authenticated(client: &TransportClient) -> bool {
    client.client_id().is_some()
}

/// Closes the connection of an unauthenticated peer; returns the error that the peer receives.
fn reject_unauthenticated(client: &TransportClient, request: &str) -> BoxError {
    let peer = client.peer_addr();
    let text = format!("{peer} sent {request} before it was authenticated");
    close_after_flush(client, TransportError::new(ErrorKind::Bootstrap, text).with_peer(peer));
    FAILED_TEXT.into()
}

/// Closes the connection with `error` after the queued output is written.
pub(super) fn close_after_flush(client: &TransportClient, error: TransportError) {
    client.shared().close(CloseRequest::AfterFlush(error));
}

fn authentication_error(client: &TransportClient, error: AuthError) -> TransportError {
    let peer = client.peer_addr();
    let question = match error {
        AuthError::UnexpectedMessage(_) => {
            ": does the peer authenticate (spark.authenticate=true at both ends)?"
        }
        _ => "",
    };
    let text = format!("authentication of {peer} failed{question}");
    TransportError::new(ErrorKind::Bootstrap, text).with_peer(peer).with_source(error)
}

/// Processes one message of an unauthenticated peer and replies to it.
fn run_step(
    handshake: &mut ServerHandshake,
    client: &TransportClient,
    message: &[u8],
    callback: RpcResponseCallback,
) {
    let outcome = match handshake.step(message) {
        Ok(HandshakeStep::Continue(reply)) => return callback.reply(reply),
        Ok(HandshakeStep::UnsupportedProtocol(error)) => {
            let peer = client.peer_addr();
            let error = LogText(error);
            tracing::debug!(%peer, %error, "rejected a handshake of an unsupported protocol");
            return callback.fail(UNKNOWN_PROTOCOL_TEXT);
        }
        Ok(HandshakeStep::Done(outcome)) => outcome,
        Err(error) => {
            callback.fail(if matches!(error, AuthError::UnexpectedMessage(_)) {
                UNKNOWN_PROTOCOL_TEXT
            } else {
                FAILED_TEXT
            });
            return close_after_flush(client, authentication_error(client, error));
        }
    };
    let app_id = peer_name(&outcome.app_id);
    tracing::debug!(peer = %client.peer_addr(), %app_id, "authenticated");
    // The reply is queued first, so it is the last message that is not encrypted.
    callback.reply(outcome.reply);
    let AuthOutcome { app_id, filters, is_replayable, .. } = outcome;
    if let Err(error) = client.shared().set_authenticated(app_id, filters, is_replayable) {
        close_after_flush(client, error);
    }
}

impl RpcHandler for AuthRpcHandler {
    fn receive(&self, client: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
        if is_authenticated(client) {
            return self.inner.receive(client, message, callback);
        }
        match &self.server_auth {
            Some(handshake) => run_step(&mut handshake.lock(), client, &message, callback),
            None => callback.fail(reject_unauthenticated(client, "an RPC")),
        }
    }

    fn receive_one_way(&self, client: &TransportClient, message: Bytes) {
        if is_authenticated(client) {
            return self.inner.receive_one_way(client, message);
        }
        reject_unauthenticated(client, "a one-way message");
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
        let error = reject_unauthenticated(client, "an upload");
        Box::pin(async { Err(error) })
    }

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
        callback.fail(reject_unauthenticated(client, "a merged block meta request"));
    }

    fn on_connected(&self, client: &TransportClient) {
        self.inner.on_connected(client);
    }

    fn on_refused_request(&self, client: &TransportClient, request: RefusedRequest) {
        self.inner.on_refused_request(client, request);
    }

    fn on_skipped_request(&self, client: &TransportClient) {
        self.inner.on_skipped_request(client);
    }

    fn on_disconnected(&self, client: &TransportClient) {
        self.inner.on_disconnected(client);
    }

    fn on_network_error(&self, error: &TransportError, client: &TransportClient) {
        self.inner.on_network_error(error, client);
    }
}
