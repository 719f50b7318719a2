//! The accepting end of a handshake.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::digest_md5::{Credentials, DigestServer, Qop};
use super::engine::AuthEngine;
use super::message::AUTH_TAG;
use super::rpc_handler::{AuthRpcHandler, end};
use super::session_keys::Side;
use super::{AuthError, AuthMessage, AuthPolicy, SaslMessage, Secret};
use crate::client::TransportClient;
use crate::error::{BoxError, ErrorKind, TransportError};
use crate::handler::{RpcHandler, TransportServerBootstrap};
use crate::session::FilterPair;

/// Makes every accepted connection prove who it is, by whatever the settings allow (Spark's
/// `AuthServerBootstrap` and `SaslServerBootstrap`).
pub(crate) struct AuthServerBootstrap(Arc<AuthPolicy>);

impl AuthServerBootstrap {
    pub(crate) fn new(policy: Arc<AuthPolicy>) -> Self {
        Self(policy)
    }
}

impl TransportServerBootstrap for AuthServerBootstrap {
    fn do_bootstrap(
        &self,
        client: &TransportClient,
        handler: Arc<dyn RpcHandler>,
    ) -> Result<Arc<dyn RpcHandler>, BoxError> {
        let policy = &self.0;
        let slot = Arc::clone(&policy.handshake_permits).try_acquire_owned().map_err(|_| {
            let (setting, allowed) = (&policy.permits_setting, policy.conf.max_handshakes);
            format!("too many connections are not authenticated yet: {setting} allows {allowed}")
        })?;
        client.shared().require_authentication();
        let (over, is_over) = oneshot::channel();
        let (limit, client) = (policy.conf.rpc_timeout(), client.clone());
        tokio::spawn(async move {
            // Also ends, with an error, when the connection and its guard are gone.
            if tokio::time::timeout(limit, is_over).await.is_err() {
                let peer = client.peer_addr();
                let text = format!(
                    "{peer} did not authenticate within {limit:?}. This timeout is controlled by spark.network.auth.rpcTimeout"
                );
                end(&client, TransportError::new(ErrorKind::Bootstrap, text).with_peer(peer));
            }
            drop(slot);
        });
        Ok(Arc::new(AuthRpcHandler::server(
            handler,
            ServerHandshake::new(Arc::clone(policy)),
            over,
        )))
    }
}

/// What follows from a message of the peer.
pub(super) enum HandshakeStep {
    /// The handshake goes on with this reply.
    Continue(Vec<u8>),
    /// The peer speaks another protocol; it may try again in ours.
    UnsupportedProtocol(AuthError),
    /// The peer has proved who it is.
    Done(AuthOutcome),
}

pub(super) struct AuthOutcome {
    pub(super) reply: Vec<u8>,
    pub(super) app_id: String,
    pub(super) filters: Option<FilterPair>,
}

/// The state of one handshake, without sockets and clocks.
pub(super) struct ServerHandshake {
    policy: Arc<AuthPolicy>,
    stage: HandshakeStage,
}

enum HandshakeStage {
    Start { tried: bool },
    Sasl { app_id: String, known: bool, digest: DigestServer },
    Over,
}

impl ServerHandshake {
    pub(super) fn new(policy: Arc<AuthPolicy>) -> Self {
        Self { policy, stage: HandshakeStage::Start { tried: false } }
    }

    /// Takes in the next message of the peer. After an error there is no next step.
    pub(super) fn step(&mut self, message: &[u8]) -> Result<HandshakeStep, AuthError> {
        match std::mem::replace(&mut self.stage, HandshakeStage::Over) {
            HandshakeStage::Start { tried } => self.start(message, tried),
            HandshakeStage::Sasl { app_id, known, digest } => {
                let token = SaslMessage::decode(message)?;
                if token.app_id != app_id {
                    return Err(AuthError::AppIdMismatch { expected: app_id, got: token.app_id });
                }
                let verified = digest.verify(&token.token);
                if !known {
                    return Err(AuthError::UnknownApp(app_id));
                }
                let (reply, agreed) = verified?;
                let filters = self.policy.sasl_filters(&agreed, Side::Server)?;
                Ok(HandshakeStep::Done(AuthOutcome { reply, app_id, filters }))
            }
            HandshakeStage::Over => {
                Err(AuthError::UnexpectedMessage("the handshake is over".to_owned()))
            }
        }
    }

    fn start(&mut self, message: &[u8], tried: bool) -> Result<HandshakeStep, AuthError> {
        let (conf, tag) = (&self.policy.conf, message.first());
        if conf.crypto && tag == Some(&AUTH_TAG) {
            return self.engine(&AuthMessage::decode(message)?).map(HandshakeStep::Done);
        }
        #[cfg(feature = "legacy-auth")]
        if conf.crypto && conf.legacy_engine && tag == Some(&super::legacy_engine::TAG) {
            return self.legacy_engine(message).map(HandshakeStep::Done);
        }
        match (SaslMessage::decode(message), self.policy.server_sasl()) {
            (Ok(message), Some(quality)) => self.sasl(message, quality),
            (Ok(_), None) => Err(AuthError::UnexpectedMessage(
                "it is SASL, and spark.network.crypto.saslFallback does not allow that".to_owned(),
            )),
            // A client of another auth engine falls back to SASL on the same connection.
            (Err(error @ AuthError::UnexpectedMessage(_)), Some(_)) if !tried => {
                self.stage = HandshakeStage::Start { tried: true };
                Ok(HandshakeStep::UnsupportedProtocol(error))
            }
            (Err(error), _) => Err(error),
        }
    }

    fn secret(&self, app_id: &str) -> Result<Secret, AuthError> {
        self.policy
            .secrets
            .secret_key(app_id)
            .ok_or_else(|| AuthError::UnknownApp(app_id.to_owned()))
    }

    fn engine(&self, challenge: &AuthMessage) -> Result<AuthOutcome, AuthError> {
        let app_id = challenge.app_id.clone();
        let (secret, conf) = (self.secret(&app_id)?, &self.policy.conf);
        let (reply, keys) =
            AuthEngine::new(&app_id, &secret, conf.engine_version).respond(challenge)?;
        let filters = Some(keys.filters(conf.cipher, Side::Server)?);
        Ok(AuthOutcome { reply, app_id, filters })
    }

    #[cfg(feature = "legacy-auth")]
    fn legacy_engine(&self, message: &[u8]) -> Result<AuthOutcome, AuthError> {
        use super::legacy_engine::{LegacyMessage, respond};
        let challenge = LegacyMessage::decode(message)?;
        let secret = self.secret(&challenge.app_id)?;
        let (reply, keys) = respond(&challenge, &secret, &self.policy.conf)?;
        let filters = Some(keys.filters(crate::conf::CipherName::AesCtr, Side::Server)?);
        Ok(AuthOutcome { reply, app_id: challenge.app_id, filters })
    }

    fn sasl(&mut self, message: SaslMessage, quality: Qop) -> Result<HandshakeStep, AuthError> {
        if !message.token.is_empty() {
            return Err(AuthError::Malformed("the first SASL token must be empty".to_owned()));
        }
        let app_id = message.app_id;
        let secret = self.secret(&app_id);
        let known = secret.is_ok();
        // Who asks for an unknown application is led on to the end, and so does not learn which
        // ones there are.
        let secret = secret.or_else(|_| Secret::random())?;
        let credentials = Credentials::new(&self.policy.secrets.sasl_user(&app_id), &secret);
        let digest = DigestServer::new(credentials, quality)?;
        let challenge = digest.challenge();
        self.stage = HandshakeStage::Sasl { app_id, known, digest };
        Ok(HandshakeStep::Continue(challenge))
    }
}
