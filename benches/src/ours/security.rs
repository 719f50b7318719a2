//! The measured security modes of network-common.

#[cfg(feature = "security")]
use std::sync::Arc;

use anyhow::Context;
#[cfg(feature = "security")]
use network_common::auth::{Secret, SecretStore};
use network_common::{RpcHandler, TransportConf, TransportContext};

/// The security mode of the connections of a server or client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "the crate is not published")]
pub enum Security {
    /// No authentication and no encryption.
    Plain,
    /// Auth engine 1 and AES-256-CTR, Spark's default for `spark.network.crypto.enabled`.
    Ctr,
    /// Auth engine 2 and AES-128-GCM.
    Gcm,
    /// TLS 1.3 and AES-256-GCM.
    Tls,
}

/// The directory of the TLS key and certificate, which is valid for 100 years.
///
/// The key is not secret; only these benches use it.
const KEYS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/keys");
#[cfg(feature = "security")]
const APP: &str = "bench";

impl Security {
    /// All modes.
    pub const ALL: [Self; 4] = [Self::Plain, Self::Ctr, Self::Gcm, Self::Tls];

    /// Returns the name of the mode in criterion groups and on command lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "ours",
            Self::Ctr => "ours-ctr",
            Self::Gcm => "ours-gcm",
            Self::Tls => "ours-tls",
        }
    }

    /// Returns the mode with this name.
    ///
    /// # Errors
    /// Fails if no mode has the name.
    pub fn from_name(name: &str) -> anyhow::Result<Self> {
        let found = Self::ALL.into_iter().find(|security| security.name() == name);
        found.with_context(|| format!("there is no security mode {name}"))
    }

    pub(super) fn context(self, handler: impl RpcHandler) -> anyhow::Result<TransportContext> {
        let (chain, key) = (format!("{KEYS}/certificate.pem"), format!("{KEYS}/key.pem"));
        let settings: &[(&str, &str)] = match self {
            Self::Plain => &[],
            Self::Ctr => &[("spark.network.crypto.enabled", "true")],
            Self::Gcm => &[
                ("spark.network.crypto.enabled", "true"),
                ("spark.network.crypto.authEngineVersion", "2"),
                ("spark.network.crypto.cipher", "AES/GCM/NoPadding"),
            ],
            Self::Tls => &[
                ("spark.ssl.rpc.enabled", "true"),
                ("spark.ssl.rpc.certChain", &chain),
                ("spark.ssl.rpc.privateKey", &key),
            ],
        };
        let context = TransportContext::new(
            TransportConf::from_settings("bench", settings.iter().copied())?,
            handler,
        );
        if matches!(self, Self::Plain | Self::Tls) {
            return Ok(context);
        }
        with_auth(context)
    }
}

#[cfg(feature = "security")]
fn with_auth(context: TransportContext) -> anyhow::Result<TransportContext> {
    let secrets = SecretStore::new();
    secrets.register_app(APP, Secret::new("s3cret"));
    Ok(context.with_auth(APP, Arc::new(secrets))?)
}

#[cfg(not(feature = "security"))]
fn with_auth(_: TransportContext) -> anyhow::Result<TransportContext> {
    anyhow::bail!("the benches are built without the feature `security`")
}
