//! The security mode of all test connections, from `NETWORK_COMMON_TEST_MODE` (CONTRIBUTING.md).

use std::sync::OnceLock;

use network_common::{RpcHandler, TransportConf, TransportContext};

/// The module of all tests: keys are `spark.shuffle.io.*`.
pub const MODULE: &str = "shuffle";

type Settings = Vec<(&'static str, String)>;

fn name() -> String {
    std::env::var("NETWORK_COMMON_TEST_MODE").unwrap_or_else(|_| "plain".to_owned())
}

/// Returns true if bytes are unencrypted on the wire. Only then does the kernel send files, and can
/// tests use raw peers.
pub fn is_plain() -> bool {
    name() == "plain"
}

fn settings() -> &'static Settings {
    static SETTINGS: OnceLock<Settings> = OnceLock::new();
    SETTINGS.get_or_init(|| {
        let fixed = |settings: &[(&'static str, &str)]| {
            settings.iter().map(|(key, value)| (*key, (*value).to_owned())).collect()
        };
        match &name()[..] {
            "plain" => Vec::new(),
            "ctr" => fixed(&[("spark.network.crypto.enabled", "true")]),
            "gcm" => fixed(&[
                ("spark.network.crypto.enabled", "true"),
                ("spark.network.crypto.authEngineVersion", "2"),
                ("spark.network.crypto.cipher", "AES/GCM/NoPadding"),
            ]),
            "sasl" => fixed(&[
                ("spark.authenticate.enableSaslEncryption", "true"),
                ("spark.network.sasl.serverAlwaysEncrypt", "true"),
            ]),
            "tls" => tls(),
            other => {
                panic!("NETWORK_COMMON_TEST_MODE={other} is none of plain, ctr, gcm, sasl, tls")
            }
        }
    })
}

/// Returns settings with a self-signed certificate.
fn tls() -> Settings {
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    let file = |name: &str, pem: String| {
        let path = format!("{}/{name}-{}.pem", env!("CARGO_TARGET_TMPDIR"), std::process::id());
        std::fs::write(&path, pem).unwrap();
        path
    };
    vec![
        ("spark.ssl.rpc.enabled", "true".to_owned()),
        ("spark.ssl.rpc.certChain", file("chain", certificate.pem())),
        ("spark.ssl.rpc.privateKey", file("key", key.serialize_pem())),
    ]
}

/// Returns a configuration of the mode's settings with `given` on top.
pub fn conf(given: &[(&str, &str)]) -> TransportConf {
    let mode = settings().iter().map(|(key, value)| (*key, &value[..]));
    TransportConf::from_settings(MODULE, mode.chain(given.iter().copied())).unwrap()
}

/// Returns a context that is secured according to the mode, for a configuration of [`conf`].
pub fn context(conf: TransportConf, handler: impl RpcHandler) -> TransportContext {
    let context = TransportContext::new(conf, handler);
    match &name()[..] {
        "plain" | "tls" => context,
        _ => authenticated(context),
    }
}

#[cfg(feature = "auth")]
fn authenticated(context: TransportContext) -> TransportContext {
    use network_common::auth::{Secret, SecretStore};

    let secrets = SecretStore::new();
    secrets.register_app("app-1", Secret::new("s3cret"));
    context.with_auth("app-1", std::sync::Arc::new(secrets)).unwrap()
}

#[cfg(not(feature = "auth"))]
fn authenticated(_: TransportContext) -> TransportContext {
    panic!("NETWORK_COMMON_TEST_MODE={} needs the feature `auth`", name());
}
