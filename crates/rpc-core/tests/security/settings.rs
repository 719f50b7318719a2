//! Security settings that are rejected or reported when an environment starts.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rpc_core::{ErrorKind, RpcConf, RpcEnv, RpcError};
use tempfile::TempDir;

use crate::common::{Hello, hi, setting, soon};
use crate::fixture::*;

/// Returns the error with which an environment with these settings fails to start.
async fn start_error(conf: RpcConf) -> RpcError {
    let client =
        RpcEnv::builder("client").conf(conf.clone()).client_mode().start().await.unwrap_err();
    let server =
        RpcEnv::builder("server").conf(conf).bind("127.0.0.1:0").start().await.unwrap_err();
    assert_eq!((client.kind(), server.kind()), (ErrorKind::Config, ErrorKind::Config));
    assert_eq!(client.to_string(), server.to_string());
    client
}

#[tokio::test]
async fn authentication_requires_secret() {
    let on = setting("spark.authenticate", "true");
    let empty = on.clone().with("spark.authenticate.secret", "").unwrap();
    for conf in [on, empty] {
        let text = start_error(conf).await.to_string();
        for part in
            ["spark.authenticate.secret", "spark.authenticate.secret.file", "RpcEnvBuilder::auth"]
        {
            assert!(text.contains(part), "{text}");
        }
    }
}

/// Encryption without authentication is an error and does not lead to plain connections.
#[tokio::test]
async fn encryption_requires_authentication() {
    for key in ["spark.network.crypto.enabled", "spark.authenticate.enableSaslEncryption"] {
        let text = start_error(setting(key, "true")).await.to_string();
        assert_eq!(text, "spark.authenticate must be enabled when enabling encryption.");
    }
}

#[tokio::test]
async fn secret_is_read_from_file() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("secret");
    let conf =
        |key: &str, value: &str| setting("spark.authenticate", "true").with(key, value).unwrap();
    let from_file = conf("spark.authenticate.secret.file", path.to_str().unwrap());
    let text = start_error(from_file.clone()).await.to_string();
    assert!(
        text.contains(path.to_str().unwrap()) && text.contains("spark.authenticate.secret.file"),
        "{text}"
    );
    std::fs::write(&path, "").unwrap();
    assert!(start_error(from_file.clone()).await.to_string().contains("is empty"));

    std::fs::write(&path, [0xfb, 0xef, 0xff, b's']).unwrap();
    let server =
        RpcEnv::builder("server").conf(from_file).bind("127.0.0.1:0").start().await.unwrap();
    server.setup_endpoint("hello", Hello).unwrap();
    // Spark encodes the content of the secret file in Base64.
    let client = client_with(conf("spark.authenticate.secret", "++//cw==")).await;
    assert_eq!(soon(hello(&client, &server).await.ask(hi("neo"))).await.unwrap().text, "hi, neo");
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn tls_files_are_read_at_start() {
    let missing = tls::alone().conf().with("spark.ssl.rpc.certChain", "/no/such/file").unwrap();
    let text = start_error(missing).await.to_string();
    assert!(text.contains("/no/such/file") && text.contains("spark.ssl.rpc.certChain"), "{text}");
}

#[cfg(not(feature = "legacy-auth"))]
#[tokio::test]
async fn missing_feature_is_named_in_error() {
    let conf = sasl().conf().with("spark.authenticate.enableSaslEncryption", "true").unwrap();
    assert!(start_error(conf).await.to_string().contains("legacy-auth"));
}

/// The log output of this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn weak_mode_logs_one_warning_per_environment() {
    let warnings = async |mode: &Mode| {
        let log = Log::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false);
        let guard = tracing::subscriber::set_default(subscriber.finish());
        let (server, client) = (mode.server().await, mode.client().await);
        server.setup_endpoint("hello", Hello).unwrap();
        hello(&client, &server).await;
        drop(guard);
        let text = String::from_utf8(log.0.lock().clone()).unwrap();
        (text.matches("authentication is weaker than it could be").count(), text)
    };
    for (mode, reason) in
        [(sasl(), "SASL without encryption"), (ctr(), "AES-CTR does not detect changed bytes")]
    {
        let (count, text) = warnings(&mode).await;
        assert_eq!(count, 2, "one warning for each environment: {text}");
        assert!(text.contains(reason) && text.contains("spark.network.crypto."), "{text}");
    }
    assert_eq!(warnings(&gcm()).await.0, 0);
    #[cfg(feature = "tls")]
    for mode in [tls::alone(), tls::with_secret()] {
        assert_eq!(warnings(&mode).await.0, 0, "{}", mode.name);
    }
}
