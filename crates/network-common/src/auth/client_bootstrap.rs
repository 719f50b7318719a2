//! The client end of authentication, which runs on every connection that a context opens.
//!
//! `AuthPolicy` adds this bootstrap to the client factories of a context.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::digest_md5::{Credentials, DigestClient, Qop};
use super::engine::AuthEngine;
use super::message::SaslMessage;
use super::rpc_handler::{AuthRpcHandler, FAILED_TEXT};
use super::session_keys::Side;
use super::{AuthError, AuthPolicy, Secret};
use crate::client::TransportClient;
use crate::error::{BoxError, ErrorKind, TransportError};
use crate::handler::{RpcHandler, TransportClientBootstrap};
use crate::peer_text::LogText;
use crate::session::FilterPair;

/// Authenticates this process to a server, and the server to this process.
///
/// It replaces Spark's `AuthClientBootstrap` and `SaslClientBootstrap`; the settings choose the
/// protocol.
pub(super) struct AuthClientBootstrap(Arc<AuthPolicy>);

impl AuthClientBootstrap {
    pub(super) fn new(policy: Arc<AuthPolicy>) -> Self {
        Self(policy)
    }
}

impl TransportClientBootstrap for AuthClientBootstrap {
    fn wrap_handler(
        &self,
        client: &TransportClient,
        handler: Arc<dyn RpcHandler>,
    ) -> Arc<dyn RpcHandler> {
        client.shared().require_authentication();
        Arc::new(AuthRpcHandler::client(handler))
    }

    fn do_bootstrap<'a>(
        &'a self,
        client: &'a TransportClient,
    ) -> BoxFuture<'a, Result<(), BoxError>> {
        Box::pin(async move {
            let app_id = &self.0.app_id;
            let secret = self
                .0
                .secrets
                .secret_key(app_id)
                .ok_or_else(|| AuthError::UnknownApp(app_id.clone()))?;
            let filters = self.authenticate(client, &secret).await;
            let filters = filters.map_err(|error| handshake_error(client, error))?;
            Ok(client.shared().set_authenticated(app_id.clone(), filters, false)?)
        })
    }
}

impl AuthClientBootstrap {
    /// Runs the handshake; returns the filters that encrypt the connection, if any.
    async fn authenticate(
        &self,
        client: &TransportClient,
        secret: &Secret,
    ) -> Result<Option<FilterPair>, BoxError> {
        let qop = self.0.client_qop();
        if !self.0.conf.crypto {
            let no_protocol =
                || AuthError::NegotiationFailed("the settings allow no protocol".to_owned());
            return self.run_sasl(client, secret, qop.ok_or_else(no_protocol)?).await;
        }
        match (self.run_engine(client, secret).await, qop) {
            (Err(error), Some(qop)) if is_unsupported_protocol(&error) => {
                let peer = client.peer_addr();
                tracing::warn!(
                    %peer,
                    error = %LogText(&error),
                    "the server rejected the auth engine: falling back to SASL"
                );
                self.run_sasl(client, secret, qop).await
            }
            (outcome, _) => outcome.map(Some),
        }
    }

    async fn run_engine(
        &self,
        client: &TransportClient,
        secret: &Secret,
    ) -> Result<FilterPair, BoxError> {
        let conf = &self.0.conf;
        #[cfg(feature = "legacy-auth")]
        if conf.legacy_engine {
            let handshake =
                super::legacy_engine::LegacyClientHandshake::new(&self.0.app_id, secret, conf)?;
            let response = self.send_step(client, handshake.message_bytes()).await?;
            let keys = handshake.finish(&response)?;
            return Ok(keys.filters(crate::conf::CipherName::AesCtr, Side::Client)?);
        }
        let engine = AuthEngine::new(&self.0.app_id, secret, conf.engine_version);
        let challenge = engine.create_challenge()?;
        let response = self.send_step(client, challenge.message_bytes()).await?;
        let keys = engine.finish(&challenge, &response)?;
        Ok(keys.filters(conf.cipher, Side::Client)?)
    }

    async fn run_sasl(
        &self,
        client: &TransportClient,
        secret: &Secret,
        qop: Qop,
    ) -> Result<Option<FilterPair>, BoxError> {
        let app_id = &self.0.app_id;
        let credentials = Credentials::new(&self.0.secrets.sasl_user(app_id), secret);
        let digest = DigestClient::new(credentials, qop)?;
        let challenge = self.send_step(client, SaslMessage::new(app_id, []).encode()).await?;
        let (response, awaiting_rspauth) = digest.respond(&challenge)?;
        let rspauth = self.send_step(client, SaslMessage::new(app_id, response).encode()).await?;
        let negotiated = awaiting_rspauth.finish(&rspauth)?;
        Ok(self.0.sasl_filters(&negotiated, Side::Client)?)
    }

    /// Sends one message of the handshake and waits for the response.
    async fn send_step(
        &self,
        client: &TransportClient,
        message: Vec<u8>,
    ) -> Result<Bytes, TransportError> {
        let timeout = self.0.conf.rpc_timeout();
        tokio::time::timeout(timeout, client.send_rpc(message)).await.unwrap_or_else(|elapsed| {
            let peer = client.peer_addr();
            let text = format!(
                "{peer} did not respond to a message of the handshake within {timeout:?}. This \
                 timeout is controlled by spark.network.auth.rpcTimeout"
            );
            let error = TransportError::new(ErrorKind::Timeout, text);
            Err(error.with_peer(peer).with_source(elapsed))
        })
    }
}

/// Escapes the names of the peer in an error, and adds a question if it may not authenticate.
fn handshake_error(client: &TransportClient, error: BoxError) -> BoxError {
    let is_no_handshake = matches!(
        error.downcast_ref(),
        Some(AuthError::UnexpectedMessage(_) | AuthError::Malformed(_))
    );
    let asks = is_no_handshake || is_unsupported_protocol(&error);
    let error: BoxError = match error.downcast::<AuthError>() {
        Ok(error) => error.escape_peer_text().into(),
        Err(error) => error,
    };
    if !asks {
        return error;
    }
    let peer = client.peer_addr();
    let text = format!(
        "{peer} did not answer as a peer that authenticates: does it require authentication \
         (spark.authenticate=true and the same protocol at both ends)?"
    );
    TransportError::new(ErrorKind::Bootstrap, text).with_peer(peer).with_source(error).into()
}

/// Returns whether the peer rejected the protocol, as opposed to the secret.
fn is_unsupported_protocol(error: &BoxError) -> bool {
    error.downcast_ref::<TransportError>().is_some_and(|error| {
        error.kind() == ErrorKind::Remote && !error.to_string().contains(FAILED_TEXT)
    })
}
