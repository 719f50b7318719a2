//! The server end of one handshake, without I/O.
//!
//! `rpc_handler` passes the peer's messages to [`ServerHandshake::step`] and carries out the
//! returned [`HandshakeStep`].

use std::sync::Arc;

use super::digest_md5::{Credentials, DigestServer, Qop};
use super::engine::AuthEngine;
use super::message::{AUTH_TAG, AuthMessage, SaslMessage};
use super::session_keys::Side;
use super::{AuthError, AuthPolicy, Secret};
use crate::session::FilterPair;

/// The next action of the server after a message of the peer.
pub(super) enum HandshakeStep {
    /// Send this reply and wait for the next message.
    Continue(Vec<u8>),
    /// Reject the message; the peer may begin again with another protocol.
    UnsupportedProtocol(AuthError),
    /// The peer is authenticated.
    Done(AuthOutcome),
}

/// The result of a successful handshake.
pub(super) struct AuthOutcome {
    /// The last reply, which is sent before the filters are installed.
    pub(super) reply: Vec<u8>,
    pub(super) app_id: String,
    /// The filters that encrypt the connection; `None` if it is not encrypted.
    pub(super) filters: Option<FilterPair>,
    /// An attacker could have recorded the client's messages, and sent them again.
    pub(super) is_replayable: bool,
}

/// The state of one handshake.
pub(super) struct ServerHandshake {
    policy: Arc<AuthPolicy>,
    stage: HandshakeStage,
}

enum HandshakeStage {
    /// The first message is expected; at most one of an unsupported protocol may precede it.
    Start {
        has_rejected: bool,
    },
    /// The client's response to the challenge of DIGEST-MD5 is expected.
    Sasl {
        app_id: String,
        is_known_app: bool,
        digest: DigestServer,
    },
    Finished,
}

impl ServerHandshake {
    pub(super) fn new(policy: Arc<AuthPolicy>) -> Self {
        Self { policy, stage: HandshakeStage::Start { has_rejected: false } }
    }

    /// Processes the next message of the peer. An error ends the handshake.
    pub(super) fn step(&mut self, message: &[u8]) -> Result<HandshakeStep, AuthError> {
        self.run_step(message).map_err(AuthError::escape_peer_text)
    }

    fn run_step(&mut self, message: &[u8]) -> Result<HandshakeStep, AuthError> {
        match std::mem::replace(&mut self.stage, HandshakeStage::Finished) {
            HandshakeStage::Start { has_rejected } => self.start(message, has_rejected),
            HandshakeStage::Sasl { app_id, is_known_app, digest } => {
                let response = SaslMessage::decode(message)?;
                if response.app_id != app_id {
                    let (expected, got) = (app_id, response.app_id);
                    return Err(AuthError::AppIdMismatch { expected, got });
                }
                let verified = digest.verify(&response.token);
                if !is_known_app {
                    return Err(AuthError::UnknownApp(app_id));
                }
                let (reply, negotiated) = verified?;
                let filters = self.policy.sasl_filters(&negotiated, Side::Server)?;
                // The client's response depends on the server's nonce.
                let is_replayable = false;
                Ok(HandshakeStep::Done(AuthOutcome { reply, app_id, filters, is_replayable }))
            }
            HandshakeStage::Finished => {
                Err(AuthError::UnexpectedMessage("the handshake has ended".to_owned()))
            }
        }
    }

    /// Chooses the protocol by the first byte of the message.
    fn start(&mut self, message: &[u8], has_rejected: bool) -> Result<HandshakeStep, AuthError> {
        let (conf, tag) = (&self.policy.conf, message.first());
        if conf.crypto && tag == Some(&AUTH_TAG) {
            return self.run_engine(&AuthMessage::decode(message)?).map(HandshakeStep::Done);
        }
        #[cfg(feature = "legacy-auth")]
        if conf.crypto && conf.legacy_engine && tag == Some(&super::legacy_engine::TAG) {
            return self.run_legacy_engine(message).map(HandshakeStep::Done);
        }
        match (SaslMessage::decode(message), self.policy.server_qop()) {
            (Ok(message), Some(qop)) => self.start_sasl(message, qop),
            (Ok(_), None) => Err(AuthError::UnexpectedMessage(
                "it is SASL, which needs spark.network.crypto.saslFallback=true".to_owned(),
            )),
            // A client of another auth engine falls back to SASL on the same connection.
            (Err(error @ AuthError::UnexpectedMessage(_)), Some(_)) if !has_rejected => {
                self.stage = HandshakeStage::Start { has_rejected: true };
                Ok(HandshakeStep::UnsupportedProtocol(error))
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Calls `verify` with the secret of the application.
    ///
    /// For an unknown application it does the same work with a secret that no peer knows, so that a
    /// peer cannot measure which applications exist.
    fn with_secret<T>(
        &self,
        app_id: &str,
        verify: impl FnOnce(&Secret) -> Result<T, AuthError>,
    ) -> Result<T, AuthError> {
        let known = self.policy.secrets.secret_key(app_id);
        let result = verify(known.as_ref().unwrap_or(&self.policy.decoy));
        if known.is_none() {
            return Err(AuthError::UnknownApp(app_id.to_owned()));
        }
        result
    }

    fn run_engine(&self, challenge: &AuthMessage) -> Result<AuthOutcome, AuthError> {
        let app_id = challenge.app_id.clone();
        let conf = &self.policy.conf;
        let (reply, keys) = self.with_secret(&app_id, |secret| {
            AuthEngine::new(&app_id, secret, conf.engine_version).respond(challenge)
        })?;
        let filters = Some(keys.filters(conf.cipher, Side::Server)?);
        Ok(AuthOutcome { reply, app_id, filters, is_replayable: true })
    }

    #[cfg(feature = "legacy-auth")]
    fn run_legacy_engine(&self, message: &[u8]) -> Result<AuthOutcome, AuthError> {
        use super::legacy_engine::{LegacyMessage, respond};
        let challenge = LegacyMessage::decode(message)?;
        let (reply, keys) = self.with_secret(&challenge.app_id, |secret| {
            respond(&challenge, secret, &self.policy.conf)
        })?;
        let filters = Some(keys.filters(crate::conf::CipherName::AesCtr, Side::Server)?);
        Ok(AuthOutcome { reply, app_id: challenge.app_id, filters, is_replayable: true })
    }

    fn start_sasl(&mut self, message: SaslMessage, qop: Qop) -> Result<HandshakeStep, AuthError> {
        if !message.token.is_empty() {
            return Err(AuthError::Malformed("the first SASL token is not empty".to_owned()));
        }
        let app_id = message.app_id;
        let known = self.policy.secrets.secret_key(&app_id);
        let is_known_app = known.is_some();
        // The handshake of an unknown application fails at its end, as with a wrong secret, so
        // that a peer cannot find out which applications exist.
        let secret = known.as_ref().unwrap_or(&self.policy.decoy);
        let credentials = Credentials::new(&self.policy.secrets.sasl_user(&app_id), secret);
        let digest = DigestServer::new(credentials, qop)?;
        let challenge = digest.challenge();
        self.stage = HandshakeStage::Sasl { app_id, is_known_app, digest };
        Ok(HandshakeStep::Continue(challenge))
    }
}
