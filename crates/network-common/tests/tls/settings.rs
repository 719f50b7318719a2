//! TLS settings: rows `conf_01` to `conf_11` of Spark's `TransportConfSuite`, and validation.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use network_common::{ErrorKind, TlsProtocol, TransportConf};
use secrecy::{ExposeSecret, SecretString};

use crate::fixture::*;
use crate::support::*;

fn with(name: &str, value: &str) -> TransportConf {
    conf(&[(&format!("spark.ssl.rpc.{name}"), value)])
}

fn secret(password: Option<SecretString>) -> Option<String> {
    password.map(|password| password.expose_secret().to_owned())
}

#[test]
fn conf_01_key_store_path_is_read() {
    assert_eq!(with("keyStore", "/k.jks").tls().key_store(), Some(Path::new("/k.jks")));
    assert_eq!(conf(&[]).tls().key_store(), None);
}

#[test]
fn conf_02_private_key_path_is_read() {
    assert_eq!(with("privateKey", "/key.pem").tls().private_key(), Some(Path::new("/key.pem")));
}

#[test]
fn conf_03_cert_chain_path_is_read() {
    assert_eq!(with("certChain", "/cert.pem").tls().cert_chain(), Some(Path::new("/cert.pem")));
}

#[test]
fn conf_04_trust_store_path_is_read() {
    assert_eq!(with("trustStore", "/t.jks").tls().trust_store(), Some(Path::new("/t.jks")));
}

#[test]
fn conf_05_trust_store_reloading_is_read() {
    assert!(!conf(&[]).tls().trust_store_reloading_enabled());
    assert!(with("trustStoreReloadingEnabled", "true").tls().trust_store_reloading_enabled());
}

#[test]
fn conf_06_open_ssl_enabled_is_read() {
    assert!(!conf(&[]).tls().open_ssl_enabled());
    assert!(with("openSslEnabled", "true").tls().open_ssl_enabled());
}

#[test]
fn conf_07_ssl_rpc_enabled_is_read_and_not_inherited() {
    assert!(!conf(&[]).tls().enabled());
    assert!(with("enabled", "true").tls().enabled());
    assert!(
        !conf(&[("spark.ssl.enabled", "true")]).tls().enabled(),
        "`enabled` must not be inherited"
    );
}

#[test]
fn conf_08_key_store_password_is_read() {
    assert_eq!(
        secret(with("keyStorePassword", "s3cret").tls().key_store_password()).unwrap(),
        "s3cret"
    );
}

#[test]
fn conf_09_key_passwords_are_read() {
    let conf = with("keyPassword", "k3y").with("spark.ssl.rpc.privateKeyPassword", "p3m").unwrap();
    assert_eq!(secret(conf.tls().key_password()).unwrap(), "k3y");
    assert_eq!(secret(conf.tls().private_key_password()).unwrap(), "p3m");
}

#[test]
fn conf_10_trust_store_password_is_read() {
    assert_eq!(
        secret(with("trustStorePassword", "tru5t").tls().trust_store_password()).unwrap(),
        "tru5t"
    );
}

#[test]
fn conf_11_trust_store_reload_interval_is_read() {
    assert_eq!(conf(&[]).tls().trust_store_reload_interval(), Duration::from_secs(10));
    assert_eq!(
        with("trustStoreReloadIntervalMs", "250").tls().trust_store_reload_interval(),
        Duration::from_millis(250)
    );
}

#[test]
fn settings_are_inherited_from_spark_ssl() {
    let both = [("spark.ssl.rpc.trustStore", "/own"), ("spark.ssl.trustStore", "/inherited")];
    for settings in [both, [both[1], both[0]]] {
        assert_eq!(conf(&settings).tls().trust_store(), Some(Path::new("/own")));
    }
    let inherited = conf(&[
        ("spark.ssl.trustStore", "/inherited"),
        ("spark.ssl.protocol", "TLSv1.2"),
        ("spark.ssl.keyStorePassword", "x"),
        ("spark.ssl.ui.keyStore", "/another"),
        ("spark.ssl.needClientAuth", "true"),
    ]);
    let tls = inherited.tls();
    assert_eq!(tls.trust_store(), Some(Path::new("/inherited")));
    assert_eq!(tls.protocol(), TlsProtocol::V1_2);
    assert_eq!(secret(tls.key_store_password()).unwrap(), "x");
    assert_eq!(tls.key_store(), None, "`spark.ssl.ui` is another namespace");
    assert!(!tls.need_client_auth(), "Spark does not inherit `needClientAuth` for RPC");
}

#[test]
fn invalid_values_are_rejected() {
    for (name, value) in [
        ("enabled", "maybe"),
        ("protocol", "SSLv3"),
        ("trustStoreReloadIntervalMs", "0"),
        ("handshakeTimeout", "0"),
        ("handshakeTimeout", "soon"),
        ("maxHandshakes", "0"),
        ("hostnameVerification", "perhaps"),
    ] {
        let key = format!("spark.ssl.rpc.{name}");
        let error = TransportConf::new(MODULE).with(&key, value).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert_contains(&error, &[&key, value]);
    }
    let defaults = conf(&[]);
    assert!(defaults.tls().hostname_verification());
    assert_eq!(defaults.tls().handshake_timeout(), Duration::from_secs(30));
    assert_eq!(defaults.tls().max_handshakes(), 256);
    assert_eq!(defaults.tls().protocol(), TlsProtocol::V1_3);
    assert_eq!(defaults.tls().enabled_algorithms(), None);
}

#[test]
fn passwords_are_absent_from_debug_output() {
    let names = ["keyStorePassword", "keyPassword", "privateKeyPassword", "trustStorePassword"];
    let settings =
        names.iter().fold(Settings::on(), |settings, name| settings.with(name, "hunter2"));
    let shown = format!("{:?} {:?}", settings.conf(), settings.client_context());
    assert!(!shown.contains("hunter2"), "{shown}");
}

/// Environment variables belong to the process, so the test runs itself in another process.
#[test]
fn passwords_are_read_from_environment() {
    const INNER: &str = "NETWORK_COMMON_TLS_TEST";
    if std::env::var_os(INNER).is_some() {
        let tls = conf(&[
            ("spark.ssl.keyStorePassword", "inherited"),
            ("spark.ssl.rpc.keyPassword", "own"),
        ]);
        let tls = tls.tls();
        assert_eq!(
            secret(tls.key_store_password()).unwrap(),
            "environment 1",
            "before the inherited password"
        );
        assert_eq!(
            secret(tls.key_password()).unwrap(),
            "own",
            "after the password of the settings"
        );
        assert_eq!(secret(tls.private_key_password()).unwrap(), "environment 3");
        assert_eq!(secret(tls.trust_store_password()), None, "a blank password must count as none");
        return;
    }
    let test = "settings::passwords_are_read_from_environment";
    let inner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env(INNER, "1")
        .env("_SPARK_SSL_RPC_KEY_STORE_PASSWORD", "environment 1")
        .env("_SPARK_SSL_RPC_KEY_PASSWORD", "environment 2")
        .env("_SPARK_SSL_RPC_PRIVATE_KEY_PASSWORD", "environment 3")
        .env("_SPARK_SSL_RPC_TRUST_STORE_PASSWORD", " ")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&inner.stdout);
    assert!(inner.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test]
async fn enabled_without_keys_is_rejected_by_server_and_client() {
    let error =
        Settings::on().context(Handler::new()).create_server("127.0.0.1:0").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert_contains(
        &error,
        &["RPC SSL encryption enabled but keys not found!", "spark.ssl.rpc.keyStore"],
    );

    let factory = Settings::on().client_context().create_client_factory();
    let error = within(factory.create_client(("127.0.0.1", 1))).await.unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::Config,
        "a client without a trust setting must trust no server"
    );
    assert_contains(&error, &["spark.ssl.rpc.trustStore", "spark.ssl.rpc.certChain"]);

    let half = Settings::on().with("privateKey", "/key.pem").config_error();
    assert_contains(&half, &["spark.ssl.rpc.privateKey", "spark.ssl.rpc.certChain"]);
}

#[tokio::test]
async fn only_configured_algorithms_are_used() {
    let fixture = Fixture::new();
    let chacha =
        fixture.server.clone().with("enabledAlgorithms", "NO_SUCH, TLS_CHACHA20_POLY1305_SHA256");
    assert!(connect_error(&chacha, &fixture.client, "127.0.0.1").await.is_none());
    let aes = fixture
        .client
        .clone()
        .with("enabledAlgorithms", "TLS_AES_128_GCM_SHA256,TLS_AES_256_GCM_SHA384");
    let error = connect_error(&chacha, &aes, "127.0.0.1").await.unwrap();
    assert_contains(&error, &["spark.ssl.rpc.enabledAlgorithms"]);
    let none =
        fixture.client.clone().with("enabledAlgorithms", "TLS_RSA_WITH_RC4_128_MD5").config_error();
    assert_eq!(none.kind(), ErrorKind::Config);
    assert_contains(&none, &["spark.ssl.rpc.enabledAlgorithms", "TLS_RSA_WITH_RC4_128_MD5"]);
}

#[tokio::test]
async fn protocol_versions_must_overlap() {
    let fixture = Fixture::new();
    let (new, old) = (fixture.server.clone(), fixture.client.clone().with("protocol", "TLSv1.2"));
    let error = connect_error(&new, &old, "127.0.0.1").await.unwrap();
    assert_eq!(error.kind(), ErrorKind::Tls);
    assert_contains(&error, &["spark.ssl.rpc.protocol"]);
    let any = fixture.server.clone().with("protocol", "TLS");
    assert!(connect_error(&any, &old, "127.0.0.1").await.is_none());
}
