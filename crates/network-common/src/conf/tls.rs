//! The settings of TLS, `spark.ssl.rpc.*`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;

use super::value_parser;

const RPC_PREFIX: &str = "spark.ssl.rpc.";
/// The prefix of the settings that apply to all of Spark's TLS, not to RPC alone.
const INHERITED_PREFIX: &str = "spark.ssl.";

/// The settings of TLS, `spark.ssl.rpc.*`, which apply to all modules (Spark's `SSLOptions`).
///
/// A setting that is absent is inherited from the same name under `spark.ssl.`, except `enabled`
/// and `needClientAuth`. Before that, an absent password is taken from an environment variable:
/// `_SPARK_SSL_RPC_KEY_STORE_PASSWORD`, `_SPARK_SSL_RPC_KEY_PASSWORD`,
/// `_SPARK_SSL_RPC_PRIVATE_KEY_PASSWORD` or `_SPARK_SSL_RPC_TRUST_STORE_PASSWORD`.
///
/// The table is in the documentation of [`TransportConf`](super::TransportConf).
///
/// Spark ignores `needClientAuth` for RPC and never verifies host names.
///
/// A client always verifies the server's certificate: without `trustStore` and `certChain`, it
/// cannot open connections. A certificate is trusted if the trust store contains it (also a
/// self-signed one) or contains a certificate that its chain ends in. Expired certificates are
/// rejected.
///
/// `spark.network.ssl.maxEncryptedBlockSize` has no effect: files are read in pieces of 1 MiB.
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
/// context.check_security()?; // reports invalid files now, not at the first connection
/// # Ok::<(), network_common::TransportError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct TlsConf {
    rpc: TlsSettings,
    inherited: TlsSettings,
}

/// The settings of one prefix; `None` if absent.
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

/// The enabled versions of TLS, the setting `protocol` of [`TlsConf`].
///
/// ```
/// use network_common::{TlsProtocol, TransportConf};
///
/// let conf = TransportConf::new("rpc").with("spark.ssl.rpc.protocol", "TLS")?;
/// assert_eq!(conf.tls().protocol(), TlsProtocol::Any);
/// # Ok::<(), network_common::TransportError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsProtocol {
    /// Version 1.3 only.
    V1_3,
    /// Version 1.2 only.
    V1_2,
    /// Versions 1.2 and 1.3.
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
            "keyStore" => self.key_store = parse_path(value),
            "keyStorePassword" => self.key_store_password = password(),
            "keyPassword" => self.key_password = password(),
            "certChain" => self.cert_chain = parse_path(value),
            "privateKey" => self.private_key = parse_path(value),
            "privateKeyPassword" => self.private_key_password = password(),
            "trustStore" => self.trust_store = parse_path(value),
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
                let timeout = value_parser::time(value)?;
                self.handshake_timeout = Some(timeout).filter(|timeout| !timeout.is_zero());
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
    /// Stores the value of the setting `key` if it is one of these settings.
    ///
    /// # Errors
    /// The accepted values, for the error text.
    pub(super) fn set(&mut self, key: &str, value: &str) -> Result<(), &'static str> {
        if let Some(name) = key.strip_prefix(RPC_PREFIX) {
            self.rpc.set(name, value)
        } else if let Some(name) = key.strip_prefix(INHERITED_PREFIX) {
            self.inherited.set(name, value)
        } else {
            Ok(())
        }
    }

    /// Returns a value of the prefix `spark.ssl.rpc.`, or else the inherited one.
    fn get<'a, T>(&'a self, value: impl Fn(&'a TlsSettings) -> Option<T>) -> Option<T> {
        value(&self.rpc).or_else(|| value(&self.inherited))
    }

    /// Returns a password: set for RPC, or else from the environment, or else inherited.
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
        value(&self.rpc)
            .clone()
            .or_else(from_environment)
            .or_else(|| value(&self.inherited).clone())
    }

    /// Returns whether TLS is used: `spark.ssl.rpc.enabled`.
    pub fn enabled(&self) -> bool {
        self.rpc.enabled.unwrap_or(false)
    }

    /// Returns the enabled versions of TLS: `spark.ssl.rpc.protocol`.
    pub fn protocol(&self) -> TlsProtocol {
        self.get(|settings| settings.protocol).unwrap_or(TlsProtocol::V1_3)
    }

    /// Returns the enabled cipher suites: `spark.ssl.rpc.enabledAlgorithms`.
    ///
    /// It is `None` if all are enabled.
    pub fn enabled_algorithms(&self) -> Option<&[String]> {
        self.get(|settings| settings.enabled_algorithms.as_deref())
            .filter(|names| !names.is_empty())
    }

    /// Returns the path of the key store: `spark.ssl.rpc.keyStore`.
    pub fn key_store(&self) -> Option<&Path> {
        self.get(|settings| settings.key_store.as_deref())
    }

    /// Returns the password of the key store: `spark.ssl.rpc.keyStorePassword`.
    pub fn key_store_password(&self) -> Option<SecretString> {
        self.password("_SPARK_SSL_RPC_KEY_STORE_PASSWORD", |settings| &settings.key_store_password)
    }

    /// Returns the password of the key in it: `spark.ssl.rpc.keyPassword`.
    pub fn key_password(&self) -> Option<SecretString> {
        self.password("_SPARK_SSL_RPC_KEY_PASSWORD", |settings| &settings.key_password)
    }

    /// Returns the path of the certificate chain: `spark.ssl.rpc.certChain`.
    pub fn cert_chain(&self) -> Option<&Path> {
        self.get(|settings| settings.cert_chain.as_deref())
    }

    /// Returns the path of the private key: `spark.ssl.rpc.privateKey`.
    pub fn private_key(&self) -> Option<&Path> {
        self.get(|settings| settings.private_key.as_deref())
    }

    /// Returns the password of the key: `spark.ssl.rpc.privateKeyPassword`.
    pub fn private_key_password(&self) -> Option<SecretString> {
        self.password("_SPARK_SSL_RPC_PRIVATE_KEY_PASSWORD", |settings| {
            &settings.private_key_password
        })
    }

    /// Returns the path of the trust store: `spark.ssl.rpc.trustStore`.
    pub fn trust_store(&self) -> Option<&Path> {
        self.get(|settings| settings.trust_store.as_deref())
    }

    /// Returns the trust store's password: `spark.ssl.rpc.trustStorePassword`.
    pub fn trust_store_password(&self) -> Option<SecretString> {
        self.password("_SPARK_SSL_RPC_TRUST_STORE_PASSWORD", |settings| {
            &settings.trust_store_password
        })
    }

    /// Returns whether changed files are reloaded.
    ///
    /// This is `spark.ssl.rpc.trustStoreReloadingEnabled`.
    pub fn trust_store_reloading_enabled(&self) -> bool {
        self.get(|settings| settings.trust_store_reloading).unwrap_or(false)
    }

    /// Returns the minimum interval between checks for changed files.
    ///
    /// This is `spark.ssl.rpc.trustStoreReloadIntervalMs`.
    pub fn trust_store_reload_interval(&self) -> Duration {
        self.get(|settings| settings.trust_store_reload_interval).unwrap_or(Duration::from_secs(10))
    }

    /// Returns `spark.ssl.rpc.openSslEnabled`, which has no effect.
    pub fn open_ssl_enabled(&self) -> bool {
        self.get(|settings| settings.open_ssl_enabled).unwrap_or(false)
    }

    /// Returns whether servers require client certificates.
    ///
    /// This is `spark.ssl.rpc.needClientAuth`.
    pub fn need_client_auth(&self) -> bool {
        self.rpc.need_client_auth.unwrap_or(false)
    }

    /// Returns whether clients verify the server's host name.
    ///
    /// This is `spark.ssl.rpc.hostnameVerification`.
    pub fn hostname_verification(&self) -> bool {
        self.get(|settings| settings.hostname_verification).unwrap_or(true)
    }

    /// Returns the timeout of a handshake: `spark.ssl.rpc.handshakeTimeout`.
    pub fn handshake_timeout(&self) -> Duration {
        self.get(|settings| settings.handshake_timeout).unwrap_or(Duration::from_secs(30))
    }

    /// Returns the limit of handshakes: `spark.ssl.rpc.maxHandshakes`.
    pub fn max_handshakes(&self) -> usize {
        self.get(|settings| settings.max_handshakes).unwrap_or(256) as usize
    }
}

/// Parses a path; an empty value counts as absent, as in an unfilled template.
fn parse_path(value: &str) -> Option<PathBuf> {
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
