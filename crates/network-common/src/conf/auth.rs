//! The settings of authentication and encryption; `TransportConf` lists and owns them.

use std::time::Duration;

use super::value_parser;

/// The values of `spark.authenticate.*`, `spark.network.*` and the module's own settings.
#[derive(Debug, Clone)]
pub(crate) struct AuthConf {
    pub(super) authenticate: bool,
    pub(crate) sasl_encryption: bool,
    pub(crate) server_always_encrypts: bool,
    /// The maximum plaintext of a SASL frame in bytes.
    pub(crate) max_encrypted_block: usize,
    pub(crate) crypto: bool,
    pub(crate) engine_version: i64,
    pub(crate) cipher: CipherName,
    pub(crate) sasl_fallback: bool,
    pub(crate) legacy_engine: bool,
    pub(crate) key_factory_iterations: u32,
    /// The key length of the legacy auth engine in bytes.
    pub(crate) key_length: usize,
    rpc_timeout: Option<Duration>,
    sasl_timeout: Duration,
    pub(crate) max_handshakes: usize,
}

/// The values of `spark.network.crypto.cipher`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CipherName {
    AesCtr,
    AesGcm,
}

impl Default for AuthConf {
    fn default() -> Self {
        Self {
            authenticate: false,
            sasl_encryption: false,
            server_always_encrypts: false,
            max_encrypted_block: 64 << 10,
            crypto: false,
            engine_version: 1,
            cipher: CipherName::AesCtr,
            sasl_fallback: false,
            legacy_engine: false,
            key_factory_iterations: 1024,
            key_length: 16,
            rpc_timeout: None,
            sasl_timeout: Duration::from_secs(30),
            max_handshakes: 1024,
        }
    }
}

impl AuthConf {
    /// Stores the value of the setting `key` if it is one of these settings.
    ///
    /// `module_key` is the part of `key` after `spark.<module>`, or empty if it has another prefix.
    ///
    /// # Errors
    /// The accepted values, for the error text.
    pub(super) fn set(
        &mut self,
        key: &str,
        module_key: &str,
        value: &str,
    ) -> Result<(), &'static str> {
        match module_key {
            ".sasl.timeout" => self.sasl_timeout = value_parser::positive_time(value)?,
            ".auth.maxHandshakes" => {
                self.max_handshakes = value_parser::positive(value, 1 << 20)? as usize
            }
            _ => {}
        }
        match key {
            "spark.authenticate" => self.authenticate = value_parser::boolean(value)?,
            "spark.authenticate.enableSaslEncryption" => {
                self.sasl_encryption = value_parser::boolean(value)?
            }
            "spark.network.sasl.serverAlwaysEncrypt" => {
                self.server_always_encrypts = value_parser::boolean(value)?
            }
            "spark.network.sasl.maxEncryptedBlockSize" => {
                self.max_encrypted_block = value_parser::positive_size(value, 16 << 20)? as usize;
            }
            "spark.network.auth.rpcTimeout" => {
                self.rpc_timeout = Some(value_parser::positive_time(value)?)
            }
            _ => {
                if let Some(name) = key.strip_prefix("spark.network.crypto.") {
                    self.set_crypto(name, value)?;
                }
            }
        }
        Ok(())
    }

    /// Stores the value of `spark.network.crypto.<name>`.
    fn set_crypto(&mut self, name: &str, value: &str) -> Result<(), &'static str> {
        match name {
            "enabled" => self.crypto = value_parser::boolean(value)?,
            "authEngineVersion" => self.engine_version = value_parser::integer(value)?,
            "cipher" => {
                self.cipher = match value.to_ascii_uppercase().as_str() {
                    "AES/CTR/NOPADDING" => CipherName::AesCtr,
                    "AES/GCM/NOPADDING" => CipherName::AesGcm,
                    _ => return Err("AES/CTR/NoPadding or AES/GCM/NoPadding"),
                };
            }
            "saslFallback" => self.sasl_fallback = value_parser::boolean(value)?,
            "legacyEngine" => self.legacy_engine = value_parser::boolean(value)?,
            "keyFactoryIterations" => {
                self.key_factory_iterations = value_parser::positive(value, 1 << 20)? as u32;
            }
            "keyLength" => {
                self.key_length = match value {
                    "128" => 16,
                    "256" => 32,
                    _ => return Err("128 or 256 (bits)"),
                };
            }
            "ivLength" if value != "16" => return Err("16"),
            "keyFactoryAlgorithm" if value != "PBKDF2WithHmacSHA1" => {
                return Err("PBKDF2WithHmacSHA1");
            }
            "keyAlgorithm" if value != "AES" => return Err("AES"),
            _ => {}
        }
        Ok(())
    }

    /// Returns `spark.network.auth.rpcTimeout`, or else `spark.<m>.sasl.timeout`.
    pub(crate) fn rpc_timeout(&self) -> Duration {
        self.rpc_timeout.unwrap_or(self.sasl_timeout)
    }
}
