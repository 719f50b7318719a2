//! What the settings of a context allow and ask for.

use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::sync::Semaphore;

use super::client_bootstrap::AuthClientBootstrap;
use super::digest_md5::{NegotiatedQop, Protection, Qop};
use super::server::AuthServerBootstrap;
use super::session_keys::Side;
use super::{AuthError, SecretKeyHolder};
use crate::client::TransportClient;
use crate::conf::{AuthConf, CipherName, TransportConf};
use crate::error::{BoxError, ErrorKind, TransportError};
use crate::handler::{TransportClientBootstrap, TransportServerBootstrap};
use crate::session::FilterPair;

/// Whether this build knows the weak modes of old.
const LEGACY: bool = cfg!(feature = "legacy-auth");

/// What all handshakes of one context share.
pub(crate) struct AuthPolicy {
    pub(super) conf: AuthConf,
    /// Who this side claims to be when it connects.
    pub(super) app_id: String,
    pub(super) secrets: Arc<dyn SecretKeyHolder>,
    /// One permit for each handshake of a server that may be under way.
    pub(super) handshake_permits: Arc<Semaphore>,
    pub(super) permits_setting: String,
}

impl AuthPolicy {
    /// Checks the settings, and warns of what is weak in them.
    pub(crate) fn new(
        conf: &TransportConf,
        app_id: String,
        secrets: Arc<dyn SecretKeyHolder>,
    ) -> Result<Self, TransportError> {
        let auth = conf.auth().clone();
        let legacy = [
            ("spark.authenticate.enableSaslEncryption", auth.sasl_encryption),
            ("spark.network.sasl.serverAlwaysEncrypt", auth.server_always_encrypts),
            ("spark.network.crypto.legacyEngine", auth.legacy_engine),
        ];
        if let Some((setting, _)) = legacy.into_iter().find(|(_, set)| *set && !LEGACY) {
            let text = format!("{setting} is true, but this build lacks the feature `legacy-auth`");
            return Err(TransportError::new(ErrorKind::Config, text));
        }
        let policy = Self {
            handshake_permits: Arc::new(Semaphore::new(auth.max_handshakes)),
            permits_setting: conf.setting_name("auth.maxHandshakes"),
            conf: auth,
            app_id,
            secrets,
        };
        // Inside of TLS none of them matters.
        #[cfg(feature = "tls")]
        let hidden = conf.tls().enabled();
        #[cfg(not(feature = "tls"))]
        let hidden = false;
        let weak = if hidden { Vec::new() } else { policy.weaknesses() };
        if !weak.is_empty() {
            tracing::warn!(
                module = conf.module(),
                weak = weak.join("; "),
                "authentication is weaker than it could be"
            );
        }
        Ok(policy)
    }

    fn weaknesses(&self) -> Vec<&'static str> {
        let conf = &self.conf;
        let weaknesses = [
            (
                !conf.crypto && !conf.sasl_encryption,
                "SASL without encryption: everything but the secret can be read and changed on the way (spark.network.crypto.enabled)",
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
                "version 1 of the auth engine uses an underived key (spark.network.crypto.authEngineVersion)",
            ),
            (
                conf.crypto && conf.legacy_engine,
                "the auth engine before Spark 3.2 (spark.network.crypto.legacyEngine)",
            ),
            (
                conf.crypto && conf.sasl_fallback,
                "whoever is on the path may switch to SASL (spark.network.crypto.saslFallback)",
            ),
        ];
        weaknesses.into_iter().filter(|(applies, _)| *applies).map(|(_, text)| text).collect()
    }

    /// What this side asks for as a client of SASL; `None`: not even as a fallback.
    pub(super) fn client_sasl(&self) -> Option<Qop> {
        let quality = if self.conf.sasl_encryption { Qop::Encrypted } else { Qop::Plain };
        self.allowed_sasl(quality)
    }

    /// What this side offers as a server of SASL; `None`: not even as a fallback.
    pub(super) fn server_sasl(&self) -> Option<Qop> {
        let quality = match (LEGACY, self.conf.server_always_encrypts) {
            (true, true) => Qop::Encrypted,
            (true, false) => Qop::Either,
            (false, _) => Qop::Plain,
        };
        self.allowed_sasl(quality)
    }

    fn allowed_sasl(&self, quality: Qop) -> Option<Qop> {
        (!self.conf.crypto || self.conf.sasl_fallback).then_some(quality)
    }

    /// The filters that a SASL handshake has agreed on.
    #[cfg_attr(not(feature = "legacy-auth"), expect(clippy::unused_self))]
    pub(super) fn sasl_filters(
        &self,
        agreed: &NegotiatedQop,
        side: Side,
    ) -> Result<Option<FilterPair>, AuthError> {
        match agreed.protection {
            Protection::None => Ok(None),
            #[cfg(feature = "legacy-auth")]
            Protection::Encryption(cipher) => {
                let block = self.conf.max_encrypted_block;
                super::sasl_encryption::filters(cipher, &agreed.hash, side, block).map(Some)
            }
            #[cfg(not(feature = "legacy-auth"))]
            Protection::Encryption(_) => {
                let _ = side;
                Err(AuthError::NegotiationFailed(
                    "this build lacks the feature `legacy-auth`".to_owned(),
                ))
            }
        }
    }
}

type ServerBootstraps = Vec<Arc<dyn TransportServerBootstrap>>;
type ClientBootstraps = Vec<Arc<dyn TransportClientBootstrap>>;

/// What runs on accepted connections: `given`, behind authentication. Settings that ask for
/// security are not passed over in silence.
pub(crate) fn server_bootstraps(
    conf: &TransportConf,
    policy: Option<&Arc<AuthPolicy>>,
    mut given: ServerBootstraps,
) -> Result<ServerBootstraps, TransportError> {
    match policy {
        // The last one's handler is the outermost.
        Some(policy) => given.push(Arc::new(AuthServerBootstrap::new(Arc::clone(policy)))),
        None if given.is_empty() => check_unauthenticated(conf)?,
        None => {}
    }
    Ok(given)
}

/// The same for outgoing connections.
pub(crate) fn client_bootstraps(
    conf: &TransportConf,
    policy: Option<&Arc<AuthPolicy>>,
    mut given: ClientBootstraps,
) -> ClientBootstraps {
    match policy {
        Some(policy) => given.insert(0, Arc::new(AuthClientBootstrap::new(Arc::clone(policy)))),
        None if given.is_empty() => {
            if let Err(error) = check_unauthenticated(conf) {
                given.push(Arc::new(FailingBootstrap(error)));
            }
        }
        None => {}
    }
    given
}

/// Whether the settings are content with connections that do not authenticate, and so are not
/// encrypted either.
pub(crate) fn check_unauthenticated(conf: &TransportConf) -> Result<(), TransportError> {
    let auth = conf.auth();
    let text = if conf.authenticate() {
        "spark.authenticate is true, but the context has no secrets: TransportContext::with_auth gives it some"
    } else if auth.crypto || auth.sasl_encryption {
        // Spark's text, of SparkConf.
        "spark.authenticate must be enabled when enabling encryption."
    } else {
        return Ok(());
    };
    Err(TransportError::new(ErrorKind::Config, text))
}

/// Fails every connection.
struct FailingBootstrap(TransportError);

impl TransportClientBootstrap for FailingBootstrap {
    fn do_bootstrap<'a>(&'a self, _: &'a TransportClient) -> BoxFuture<'a, Result<(), BoxError>> {
        Box::pin(async { Err(self.0.clone().into()) })
    }
}
