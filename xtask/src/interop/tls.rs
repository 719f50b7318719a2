//! Generates TLS keys for each run, because keys in the repository would expire.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use rcgen::generate_simple_self_signed;
use tempfile::TempDir;

use super::cache::Cache;
use crate::process;

const KEYTOOL_TIMEOUT: Duration = Duration::from_secs(60);
const PASSWORD: &str = "interop";

/// A directory with one key pair that all peers use, as Spark's processes do.
pub(crate) struct Keys(TempDir);

impl Keys {
    /// Generates the key stores and PEM files.
    pub(crate) fn generate(cache: &Cache) -> Result<Self> {
        let keys = Self(cache.scratch()?);
        let keytool = |command: &str| {
            let mut keytool = Command::new("keytool");
            keytool
                .current_dir(keys.0.path())
                .args(command.split(' '))
                .args(["-storepass", PASSWORD]);
            process::output("keytool", &mut keytool, KEYTOOL_TIMEOUT)
        };
        keytool(
            "-genkeypair -alias peer -keyalg RSA -keysize 2048 -dname CN=peer \
             -ext san=ip:127.0.0.1 -validity 2 -storetype JKS -keystore store.jks -keypass interop",
        )?;
        keytool("-exportcert -alias peer -keystore store.jks -file peer.der")?;
        keytool(
            "-importcert -noprompt -alias peer -file peer.der \
             -storetype PKCS12 -keystore trust.p12",
        )?;
        let pem = generate_simple_self_signed(["127.0.0.1".to_owned()])?;
        std::fs::write(keys.0.path().join("cert.pem"), pem.cert.pem())?;
        std::fs::write(keys.0.path().join("key.pem"), pem.signing_key.serialize_pem())?;
        Ok(keys)
    }

    /// Returns settings with a JKS key store and a PKCS#12 trust store.
    pub(crate) fn stores(&self) -> Vec<String> {
        self.settings(&[("keyStore", "store.jks"), ("trustStore", "trust.p12")])
    }

    /// Returns settings with PEM files.
    pub(crate) fn pem(&self) -> Vec<String> {
        self.settings(&[
            ("certChain", "cert.pem"),
            ("privateKey", "key.pem"),
            ("keyStore", "store.jks"),
        ])
    }

    fn settings(&self, files: &[(&str, &str)]) -> Vec<String> {
        let values =
            [("enabled", "true"), ("keyStorePassword", PASSWORD), ("trustStorePassword", PASSWORD)];
        let values = values.map(|(name, value)| (name, value.to_owned())).into_iter();
        let files = files
            .iter()
            .map(|(name, file)| (*name, self.0.path().join(file).display().to_string()));
        let settings = values.chain(files);
        settings.map(|(name, value)| format!("spark.ssl.rpc.{name}={value}")).collect()
    }
}
