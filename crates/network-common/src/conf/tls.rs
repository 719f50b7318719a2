//! Settings of TLS (auth 6).

use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;

use super::value_parser;

const RPC_PREFIX: &str = "spark.ssl.rpc.";
const INHERITED: &str = "spark.ssl.";

/// Settings of TLS, `spark.ssl.rpc.*` (auth 6): one set for all modules.
///
/// Those that are not set are taken from the same name under `spark.ssl.`, except where "not
/// inherited" is said. A password that is not set is taken, before that, from the environment:
/// `_SPARK_SSL_RPC_KEY_STORE_PASSWORD`, `_SPARK_SSL_RPC_KEY_PASSWORD`,
/// `_SPARK_SSL_RPC_PRIVATE_KEY_PASSWORD` or `_SPARK_SSL_RPC_TRUST_STORE_PASSWORD`.
///
/// | key `spark.ssl.rpc.` | default | meaning |
/// |---|---|---|
/// | `enabled` | false | TLS from the first byte, at both ends; not inherited |
/// | `certChain`, `privateKey` | - | our certificate with its chain and our key, PEM; both or neither |
/// | `privateKeyPassword` | - | of a `privateKey` that is encrypted PKCS#8 |
/// | `keyStore`, `keyStorePassword` | - | the same in one JKS, PKCS#12 or PEM file; its first key counts; ignored when `privateKey` is set |
/// | `keyPassword` | `keyStorePassword` | of the key in it |
/// | `trustStore` | `certChain` | who is trusted: JKS, PKCS#12 or PEM |
/// | `trustStorePassword` | - | without it the integrity of a JKS file is not checked |
/// | `protocol` | TLSv1.3 | TLSv1.3, TLSv1.2, or TLS for both |
/// | `enabledAlgorithms` | all | cipher suites by their Java names, separated by commas; unknown ones are skipped |
/// | `trustStoreReloadingEnabled` | false | take up changed files, of trust store and of key, for new connections |
/// | `trustStoreReloadIntervalMs` | 10000 | how often they are looked at |
/// | `openSslEnabled` | false | read, but without meaning: there is one implementation here |
///
/// These differ from Spark, or have no counterpart there:
///
/// | key `spark.ssl.rpc.` | default | meaning |
/// |---|---|---|
/// | `needClientAuth` | false | servers demand a certificate that their trust store vouches for (Spark ignores it); not inherited |
/// | `hostnameVerification` | true | servers must prove the name or IP address that was connected to (Spark never asks) |
/// | `handshakeTimeout` | 30s | limit for agreeing on TLS, waiting for a turn included |
/// | `maxHandshakes` | 256 | handshakes at once per context, of accepted connections; others wait for their turn |
///
/// There is no way to trust everybody: without `trustStore` and `certChain` no connection can be
/// opened. What is trusted: certificates of the trust store that are presented themselves (also
/// where no chain could be built, as self-signed ones), and chains that end in one of them. Neither
/// may have expired.
///
/// `spark.network.ssl.maxEncryptedBlockSize` means nothing here: files are read in pieces of 1 MiB.
///
/// ```no_run
/// use network_common::{NoOpRpcHandler, TransportConf, TransportContext};
///
/// let conf = TransportConf::from_settings("rpc", [
///     ("spark.ssl.rpc.enabled", "true"),
///     ("spark.ssl.rpc.certChain", "/etc/node/cert.pem"),
///     ("spark.ssl.rpc.privateKey", "/etc/node/key.pem"),
///     ("spark.ssl.rpc.trustStore", "/etc/node/ca.pem"),
/// ])?;
/// let context = TransportContext::new(conf, NoOpRpcHandler::new());
/// context.check_security()?; // mistakes show now, not at the first connection
/// # Ok::<(), network_common::TransportError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct TlsConf {
    own: TlsSettings,
    inherited: TlsSettings,
}

#[derive(Debug, Clone, Default)]
struct TlsSettings {
    enabled: Option<bool>,
    protocol: Option<TlsProtocol>,
    enabled_algorithms: Option<Vec<String>>,
    key_store: Option<PathBuf>,
    key_store_password: Option<SecretString>,
    key_password: Option<SecretString>,
    cert_chain: Option<PathBuf>,
    private_key: Option<PathBuf>,
    private_key_password: Option<SecretString>,
    trust_store: Option<PathBuf>,
    trust_store_password: Option<SecretString>,
    trust_store_reloading: Option<bool>,
    trust_store_reload_interval: Option<Duration>,
    open_ssl_enabled: Option<bool>,
    need_client_auth: Option<bool>,
    hostname_verification: Option<bool>,
    handshake_timeout: Option<Duration>,
    max_handshakes: Option<u64>,
}

/// Which versions of TLS are spoken; see `protocol` of [`TlsConf`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsProtocol {
    /// 1.3 alone.
    V1_3,
    /// 1.2 alone.
    V1_2,
    /// Both.
    Any,
}

impl TlsSettings {
    fn set(&mut self, name: &str, value: &str) -> Result<(), &'static str> {
        let password = || Some(SecretString::from(value));
        match name {
            "enabled" => self.enabled = Some(value_parser::boolean(value)?),
            "protocol" => self.protocol = Some(parse_protocol(value)?),
            "enabledAlgorithms" => {
                let names = value.split(',').map(|name| name.trim().to_owned());
                self.enabled_algorithms = Some(names.filter(|name| !name.is_empty()).collect());
            }
            "keyStore" => self.key_store = path(value),
            "keyStorePassword" => self.key_store_password = password(),
            "keyPassword" => self.key_password = password(),
            "certChain" => self.cert_chain = path(value),
            "privateKey" => self.private_key = path(value),
            "privateKeyPassword" => self.private_key_password = password(),
            "trustStore" => self.trust_store = path(value),
            "trustStorePassword" => self.trust_store_password = password(),
            "trustStoreReloadingEnabled" => {
                self.trust_store_reloading = Some(value_parser::boolean(value)?)
            }
            "trustStoreReloadIntervalMs" => {
                let millis = value_parser::positive(value, u64::from(u32::MAX))?;
                self.trust_store_reload_interval = Some(Duration::from_millis(millis));
            }
            "openSslEnabled" => self.open_ssl_enabled = Some(value_parser::boolean(value)?),
            "needClientAuth" => self.need_client_auth = Some(value_parser::boolean(value)?),
            "hostnameVerification" => {
                self.hostname_verification = Some(value_parser::boolean(value)?)
            }
            "handshakeTimeout" => {
                let limit = value_parser::time(value)?;
                self.handshake_timeout = Some(limit).filter(|limit| !limit.is_zero());
                self.handshake_timeout.ok_or("a positive time")?;
            }
            "maxHandshakes" => {
                self.max_handshakes = Some(value_parser::positive(value, u64::from(u16::MAX))?)
            }
            _ => {}
        }
        Ok(())
    }
}

impl TlsConf {
    pub(super) fn set(&mut self, key: &str, value: &str) -> Result<(), &'static str> {
        if let Some(name) = key.strip_prefix(RPC_PREFIX) {
            self.own.set(name, value)
        } else if let Some(name) = key.strip_prefix(INHERITED) {
            self.inherited.set(name, value)
        } else {
            Ok(())
        }
    }

    fn get<'a, T>(&'a self, value: impl Fn(&'a TlsSettings) -> Option<T>) -> Option<T> {
        value(&self.own).or_else(|| value(&self.inherited))
    }

    fn password(
        &self,
        variable: &str,
        value: impl Fn(&TlsSettings) -> &Option<SecretString>,
    ) -> Option<SecretString> {
        let from_environment = || {
            std::env::var(variable)
                .ok()
                .filter(|value| !value.trim().is_empty())
                .map(SecretString::from)
        };
        value(&self.own)
            .clone()
            .or_else(from_environment)
            .or_else(|| value(&self.inherited).clone())
    }

    /// `spark.ssl.rpc.enabled`.
    pub fn enabled(&self) -> bool {
        self.own.enabled.unwrap_or(false)
    }

    /// `spark.ssl.rpc.protocol`.
    pub fn protocol(&self) -> TlsProtocol {
        self.get(|values| values.protocol).unwrap_or(TlsProtocol::V1_3)
    }

    /// `spark.ssl.rpc.enabledAlgorithms`; `None`: all.
    pub fn enabled_algorithms(&self) -> Option<&[String]> {
        self.get(|values| values.enabled_algorithms.as_deref()).filter(|names| !names.is_empty())
    }

    /// `spark.ssl.rpc.keyStore`.
    pub fn key_store(&self) -> Option<&Path> {
        self.get(|values| values.key_store.as_deref())
    }

    /// `spark.ssl.rpc.keyStorePassword`.
    pub fn key_store_password(&self) -> Option<SecretString> {
        self.password("_SPARK_SSL_RPC_KEY_STORE_PASSWORD", |values| &values.key_store_password)
    }

    /// `spark.ssl.rpc.keyPassword`.
    pub fn key_password(&self) -> Option<SecretString> {
        self.password("_SPARK_SSL_RPC_KEY_PASSWORD", |values| &values.key_password)
    }

    /// `spark.ssl.rpc.certChain`.
    pub fn cert_chain(&self) -> Option<&Path> {
        self.get(|values| values.cert_chain.as_deref())
    }

    /// `spark.ssl.rpc.privateKey`.
    pub fn private_key(&self) -> Option<&Path> {
        self.get(|values| values.private_key.as_deref())
    }

    /// `spark.ssl.rpc.privateKeyPassword`.
    pub fn private_key_password(&self) -> Option<SecretString> {
        self.password("_SPARK_SSL_RPC_PRIVATE_KEY_PASSWORD", |values| &values.private_key_password)
    }

    /// `spark.ssl.rpc.trustStore`.
    pub fn trust_store(&self) -> Option<&Path> {
        self.get(|values| values.trust_store.as_deref())
    }

    /// `spark.ssl.rpc.trustStorePassword`.
    pub fn trust_store_password(&self) -> Option<SecretString> {
        self.password("_SPARK_SSL_RPC_TRUST_STORE_PASSWORD", |values| &values.trust_store_password)
    }

    /// `spark.ssl.rpc.trustStoreReloadingEnabled`.
    pub fn trust_store_reloading_enabled(&self) -> bool {
        self.get(|values| values.trust_store_reloading).unwrap_or(false)
    }

    /// `spark.ssl.rpc.trustStoreReloadIntervalMs`.
    pub fn trust_store_reload_interval(&self) -> Duration {
        self.get(|values| values.trust_store_reload_interval).unwrap_or(Duration::from_secs(10))
    }

    /// `spark.ssl.rpc.openSslEnabled`.
    pub fn open_ssl_enabled(&self) -> bool {
        self.get(|values| values.open_ssl_enabled).unwrap_or(false)
    }

    /// `spark.ssl.rpc.needClientAuth`.
    pub fn need_client_auth(&self) -> bool {
        self.own.need_client_auth.unwrap_or(false)
    }

    /// `spark.ssl.rpc.hostnameVerification`.
    pub fn hostname_verification(&self) -> bool {
        self.get(|values| values.hostname_verification).unwrap_or(true)
    }

    /// `spark.ssl.rpc.handshakeTimeout`.
    pub fn handshake_timeout(&self) -> Duration {
        self.get(|values| values.handshake_timeout).unwrap_or(Duration::from_secs(30))
    }

    /// `spark.ssl.rpc.maxHandshakes`.
    pub fn max_handshakes(&self) -> usize {
        self.get(|values| values.max_handshakes).unwrap_or(256) as usize
    }
}

/// An empty value is none, as in a template that was left open.
fn path(value: &str) -> Option<PathBuf> {
    (!value.is_empty()).then(|| PathBuf::from(value))
}

fn parse_protocol(value: &str) -> Result<TlsProtocol, &'static str> {
    match value {
        "TLSv1.3" => Ok(TlsProtocol::V1_3),
        "TLSv1.2" => Ok(TlsProtocol::V1_2),
        "TLS" => Ok(TlsProtocol::Any),
        _ => Err("TLSv1.3, TLSv1.2 or TLS"),
    }
}
