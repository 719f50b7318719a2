//! The connecting end of a handshake.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::digest_md5::{Credentials, DigestClient, Qop};
use super::engine::AuthEngine;
use super::rpc_handler::{AuthRpcHandler, FAILED};
use super::session_keys::Side;
use super::{AuthError, AuthPolicy, SaslMessage, Secret};
use crate::client::TransportClient;
use crate::error::{BoxError, ErrorKind, TransportError};
use crate::handler::{RpcHandler, TransportClientBootstrap};
use crate::session::FilterPair;

/// Proves to every server who this side is, and has it prove the same, by whatever the settings
/// allow (Spark's `AuthClientBootstrap` and `SaslClientBootstrap`).
pub(crate) struct AuthClientBootstrap(Arc<AuthPolicy>);

impl AuthClientBootstrap {
    pub(crate) fn new(policy: Arc<AuthPolicy>) -> Self {
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
            let filters = self.handshake(client, &secret).await?;
            Ok(client.shared().set_authenticated(app_id.clone(), filters)?)
        })
    }
}

impl AuthClientBootstrap {
    async fn handshake(
        &self,
        client: &TransportClient,
        secret: &Secret,
    ) -> Result<Option<FilterPair>, BoxError> {
        let sasl = self.0.client_sasl();
        if !self.0.conf.crypto {
            let none = || AuthError::NegotiationFailed("the settings allow no protocol".to_owned());
            return self.sasl(client, secret, sasl.ok_or_else(none)?).await;
        }
        match (self.engine(client, secret).await, sasl) {
            // The peer's handler refused: it may not know the auth engine. Nothing else is a
            // reason.
            (Err(error), Some(quality)) if is_refusal(&error) => {
                let peer = client.peer_addr();
                tracing::warn!(%peer, %error, "the server refused the auth engine: falling back to SASL");
                self.sasl(client, secret, quality).await
            }
            (outcome, _) => outcome.map(Some),
        }
    }

    async fn engine(
        &self,
        client: &TransportClient,
        secret: &Secret,
    ) -> Result<FilterPair, BoxError> {
        let conf = &self.0.conf;
        #[cfg(feature = "legacy-auth")]
        if conf.legacy_engine {
            let challenge =
                super::legacy_engine::LegacyClientHandshake::new(&self.0.app_id, secret, conf)?;
            let response = self.ask(client, challenge.encoded()).await?;
            let keys = challenge.finish(&response)?;
            return Ok(keys.filters(crate::conf::CipherName::AesCtr, Side::Client)?);
        }
        let engine = AuthEngine::new(&self.0.app_id, secret, conf.engine_version);
        let challenge = engine.challenge()?;
        let response = self.ask(client, challenge.encoded()).await?;
        let keys = engine.finish(&challenge, &response)?;
        Ok(keys.filters(conf.cipher, Side::Client)?)
    }

    async fn sasl(
        &self,
        client: &TransportClient,
        secret: &Secret,
        quality: Qop,
    ) -> Result<Option<FilterPair>, BoxError> {
        let app_id = &self.0.app_id;
        let credentials = Credentials::new(&self.0.secrets.sasl_user(app_id), secret);
        let digest = DigestClient::new(credentials, quality)?;
        let challenge = self.ask(client, SaslMessage::new(app_id, []).encode()).await?;
        let (response, responded) = digest.respond(&challenge)?;
        let answer = self.ask(client, SaslMessage::new(app_id, response).encode()).await?;
        let agreed = responded.finish(&answer)?;
        Ok(self.0.sasl_filters(&agreed, Side::Client)?)
    }

    /// One round trip.
    async fn ask(
        &self,
        client: &TransportClient,
        message: Vec<u8>,
    ) -> Result<Bytes, TransportError> {
        let limit = self.0.conf.rpc_timeout();
        tokio::time::timeout(limit, client.send_rpc(message)).await.unwrap_or_else(|elapsed| {
            let peer = client.peer_addr();
            let text = format!(
                "{peer} did not answer a step of the handshake within {limit:?}. This timeout is controlled by \
                 spark.network.auth.rpcTimeout"
            );
            Err(TransportError::new(ErrorKind::Timeout, text).with_peer(peer).with_source(elapsed))
        })
    }
}

/// Whether the peer refused, and not because it knows the auth engine and found us wanting.
fn is_refusal(error: &BoxError) -> bool {
    error.downcast_ref::<TransportError>().is_some_and(|error| {
        error.kind() == ErrorKind::Remote && !error.to_string().contains(FAILED)
    })
}
