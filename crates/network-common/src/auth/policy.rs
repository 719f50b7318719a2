//! The authentication settings of one context, which `TransportContext` creates and all its
//! handshakes share.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::digest_md5::{NegotiatedQop, Protection, Qop};
use super::session_keys::Side;
use super::{AuthError, Secret, SecretKeyHolder};
use crate::conf::{AuthConf, CipherName, TransportConf};
use crate::error::{ErrorKind, TransportError};
use crate::session::FilterPair;

/// Is true in builds with the feature `legacy-auth`.
const HAS_LEGACY: bool = cfg!(feature = "legacy-auth");

/// The state that all handshakes of one context share.
pub(crate) struct AuthPolicy {
    pub(super) conf: AuthConf,
    /// The application id under which this process opens connections.
    pub(super) app_id: String,
    pub(super) secrets: Arc<dyn SecretKeyHolder>,
    /// The secret of unknown applications, which no peer knows.
    pub(super) decoy: Secret,
    /// One permit for each handshake that the servers of the context may run at a time.
    pub(super) handshake_permits: Arc<Semaphore>,
    /// The name of the setting that limits the permits, for error texts.
    pub(super) permits_setting: String,
}

impl AuthPolicy {
    /// Validates the settings and logs a warning if their mode has a weakness.
    pub(crate) fn new(
        conf: &TransportConf,
        app_id: String,
        secrets: Arc<dyn SecretKeyHolder>,
    ) -> Result<Self, TransportError> {
        let auth = conf.auth().clone();
        let legacy_settings = [
            ("spark.authenticate.enableSaslEncryption", auth.sasl_encryption),
            ("spark.network.sasl.serverAlwaysEncrypt", auth.server_always_encrypts),
            ("spark.network.crypto.legacyEngine", auth.legacy_engine),
        ];
        if let Some((setting, _)) =
            legacy_settings.into_iter().find(|(_, is_enabled)| *is_enabled && !HAS_LEGACY)
        {
            let text = format!(
                "{setting} is true, but network-common was built without its feature `legacy-auth`"
            );
            return Err(TransportError::new(ErrorKind::Config, text));
        }
        let policy = Self {
            handshake_permits: Arc::new(Semaphore::new(auth.max_handshakes)),
            permits_setting: conf.setting_name("auth.maxHandshakes"),
            conf: auth,
            app_id,
            secrets,
            decoy: Secret::random().map_err(|error| {
                TransportError::new(ErrorKind::Config, "this system has no random numbers")
                    .with_source(error)
            })?,
        };
        // The weaknesses do not matter inside of TLS.
        #[cfg(feature = "tls")]
        let is_inside_tls = conf.tls().enabled();
        #[cfg(not(feature = "tls"))]
        let is_inside_tls = false;
        let weaknesses = if is_inside_tls { Vec::new() } else { policy.weaknesses() };
        if !weaknesses.is_empty() {
            tracing::warn!(
                module = conf.module(),
                weaknesses = weaknesses.join("; "),
                "authentication is weaker than it could be"
            );
        }
        Ok(policy)
    }

    /// Returns the weaknesses of the configured mode, each with the setting to change.
    fn weaknesses(&self) -> Vec<&'static str> {
        let conf = &self.conf;
        let weaknesses = [
            (
                !conf.crypto && !conf.sasl_encryption,
                "SASL without encryption: an attacker on the network path can read and change \
                 everything but the secret (spark.network.crypto.enabled)",
            ),
            (
                !conf.crypto && conf.sasl_encryption,
                "SASL encrypts with 3DES or RC4 (spark.network.crypto.enabled)",
            ),
            (
                conf.crypto && conf.cipher == CipherName::AesCtr,
                "AES-CTR does not detect changed bytes (spark.network.crypto.cipher)",
            ),
            (
                conf.crypto && conf.engine_version == 1,
                "version 1 of the auth engine uses the raw X25519 output as key \
                 (spark.network.crypto.authEngineVersion)",
            ),
            (
                conf.crypto && conf.legacy_engine,
                "the auth engine of Spark before 3.2 is broken by CVE-2021-38296 \
                 (spark.network.crypto.legacyEngine)",
            ),
            (
                conf.crypto && conf.sasl_fallback,
                "an attacker on the network path can force SASL \
                 (spark.network.crypto.saslFallback)",
            ),
        ];
        weaknesses.into_iter().filter(|(applies, _)| *applies).map(|(_, text)| text).collect()
    }

    /// Returns what a SASL client requires, or `None` if SASL is not allowed.
    pub(super) fn client_qop(&self) -> Option<Qop> {
        let qop = if self.conf.sasl_encryption { Qop::Encrypted } else { Qop::Plain };
        self.allows_sasl().then_some(qop)
    }

    /// Returns what a SASL server offers, or `None` if SASL is not allowed.
    pub(super) fn server_qop(&self) -> Option<Qop> {
        let qop = match (HAS_LEGACY, self.conf.server_always_encrypts) {
            (true, true) => Qop::Encrypted,
            (true, false) => Qop::Either,
            (false, _) => Qop::Plain,
        };
        self.allows_sasl().then_some(qop)
    }

    fn allows_sasl(&self) -> bool {
        !self.conf.crypto || self.conf.sasl_fallback
    }

    /// Creates the filters that a SASL handshake has negotiated, if any.
    #[cfg_attr(not(feature = "legacy-auth"), expect(clippy::unused_self))]
    pub(super) fn sasl_filters(
        &self,
        negotiated: &NegotiatedQop,
        side: Side,
    ) -> Result<Option<FilterPair>, AuthError> {
        match negotiated.protection {
            Protection::None => Ok(None),
            #[cfg(feature = "legacy-auth")]
            Protection::Encryption(cipher) => {
                let max_block = self.conf.max_encrypted_block;
                super::sasl_encryption::filters(cipher, &negotiated.hash, side, max_block).map(Some)
            }
            #[cfg(not(feature = "legacy-auth"))]
            Protection::Encryption(_) => {
                let _ = side;
                Err(AuthError::NegotiationFailed(
                    "SASL encryption needs the feature `legacy-auth`, with which network-common \
                     was not built"
                        .to_owned(),
                ))
            }
        }
    }
}
