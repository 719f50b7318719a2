//! Certificates, files that hold them, and a server and a client that use them.

// As in the other support module.
#![allow(unreachable_pub)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use network_common::{NoOpRpcHandler, TransportConf, TransportContext, TransportError};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use tempfile::TempDir;

use crate::support::*;

/// A certificate and its key, as PEM.
pub struct Pem {
    pub certificate: String,
    pub key: String,
}

pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub certificate: String,
}

impl Ca {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = ca_params(name);
        let certificate = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// Returns an intermediate CA that this CA has issued.
    pub fn intermediate(&self, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = ca_params("in between");
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    pub fn issue(&self, names: &[&str]) -> Pem {
        self.issue_with(names, |_| {})
    }

    pub fn issue_with(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Pem {
        let mut params = params(names, "node");
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        Pem {
            certificate: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }
}

pub fn self_signed(names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Pem {
    let mut params = params(names, "lone node");
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    Pem { certificate: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
}

pub fn expired(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(2001, 1, 1);
    params.not_after = date_time_ymd(2002, 1, 1);
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = params(&[], name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn params(names: &[&str], common_name: &str) -> CertificateParams {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

/// A directory of files, and settings with their paths.
pub struct Files(TempDir);

impl Files {
    pub fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    /// Returns a directory in cargo's own, for a static that is never dropped.
    pub fn kept() -> Self {
        Self(TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path(name), content).unwrap();
        self.named(name)
    }

    pub fn named(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Writes `cert.pem` and `key.pem`.
    pub fn identity(&self, pem: &Pem) -> Settings {
        Settings::on()
            .with("certChain", &self.write("cert.pem", &pem.certificate))
            .with("privateKey", &self.write("key.pem", &pem.key))
    }

    /// Writes `trust.pem`.
    pub fn trust(&self, certificate: &str) -> Settings {
        Settings::on().with("trustStore", &self.write("trust.pem", certificate))
    }
}

/// TLS settings; names are given without their prefix.
#[derive(Clone)]
pub struct Settings(Vec<(String, String)>);

impl Settings {
    pub fn on() -> Self {
        Self(Vec::new()).with("enabled", "true")
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.0.push((format!("spark.ssl.rpc.{name}"), value.to_owned()));
        self
    }

    /// Adds a setting of any prefix.
    pub fn and(mut self, key: &str, value: &str) -> Self {
        self.0.push((key.to_owned(), value.to_owned()));
        self
    }

    pub fn last(&self) -> (String, String) {
        self.0.last().unwrap().clone()
    }

    pub fn conf(&self) -> TransportConf {
        TransportConf::from_settings(MODULE, self.0.iter().map(|(key, value)| (key, value)))
            .unwrap()
    }

    pub fn context(&self, handler: Handler) -> TransportContext {
        TransportContext::new(self.conf(), handler)
    }

    pub fn client_context(&self) -> TransportContext {
        TransportContext::new(self.conf(), NoOpRpcHandler::new())
    }

    /// Returns the error of these settings.
    pub fn config_error(&self) -> TransportError {
        self.client_context().check_security().unwrap_err()
    }
}

/// A CA, a server with a certificate for 127.0.0.1 and localhost, and a client that trusts the CA.
pub struct Fixture {
    pub files: Files,
    pub ca: Ca,
    pub server: Settings,
    pub client: Settings,
}

impl Fixture {
    pub fn new() -> Self {
        let (files, ca) = (Files::new(), Ca::new("good CA"));
        let server = files.identity(&ca.issue(&["127.0.0.1", "localhost"]));
        let client = files.trust(&ca.certificate);
        Self { files, ca, server, client }
    }

    pub async fn pair(&self, handler: Handler) -> Pair {
        pair_of(self.server.context(handler), self.client.client_context()).await
    }
}

/// Connects with these settings and sends an RPC. Returns the client's error, or `None` on success.
pub async fn connect_error(
    server: &Settings,
    client: &Settings,
    host: &str,
) -> Option<TransportError> {
    let context = server.context(Handler::new());
    let listening = serve(&context).await;
    let factory = client.client_context().create_client_factory();
    let address = (host.to_owned(), listening.local_addr().port());
    match within(factory.create_client(address)).await {
        // In TLS 1.3 a client sees the server's verdict on its certificate only after the
        // handshake.
        Ok(client) => within(client.send_rpc("hello")).await.err(),
        Err(error) => Some(error),
    }
}

pub fn assert_contains(error: &TransportError, parts: &[&str]) {
    let text = full_text(error);
    for part in parts {
        assert!(text.contains(part), "'{text}' should contain '{part}'");
    }
}

/// Runs a tool of JDK or OpenSSL, which must succeed.
pub fn run(directory: &Path, command: &str) {
    let mut words = command.split_whitespace();
    let mut tool = Command::new(words.next().unwrap());
    let output = tool.args(words).current_dir(directory).stdin(Stdio::null()).output().unwrap();
    assert!(
        output.status.success(),
        "{command}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
