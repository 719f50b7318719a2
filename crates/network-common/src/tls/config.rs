//! Settings to configurations of rustls.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ServerConfig, SupportedProtocolVersion};

use super::verifier::TrustStoreVerifier;
use super::{config_error, key_store};
use crate::conf::{TlsConf, TlsProtocol};
use crate::error::TransportError;

/// What both sides can do with the files there are.
pub(super) struct Configs {
    /// `None`: there is no key.
    pub(super) server: Option<Arc<ServerConfig>>,
    /// `None`: nobody is trusted.
    pub(super) client: Option<Arc<ClientConfig>>,
}

impl Configs {
    /// Reads the files, which blocks.
    pub(super) fn load(conf: &TlsConf) -> Result<Self, TransportError> {
        let provider = provider(conf)?;
        let versions = versions(conf.protocol());
        let identity = key_store::load_identity(conf, &provider)?
            .map(|identity| Arc::new(SingleCertAndKey::from(identity)));
        let trust = match key_store::load_trusted(conf)? {
            Some(certificates) => {
                Some(Arc::new(TrustStoreVerifier::new(certificates, conf, &provider)?))
            }
            None => None,
        };
        if conf.need_client_auth() && trust.is_none() {
            return Err(config_error(
                "spark.ssl.rpc.needClientAuth needs spark.ssl.rpc.trustStore",
            ));
        }
        let unusable = |error: rustls::Error| {
            config_error(format!("TLS cannot be set up: {error}")).with_source(error)
        };

        let server = identity.clone().map(|identity| {
            let verifier = match &trust {
                Some(trust) if conf.need_client_auth() => Arc::clone(trust) as _,
                _ => WebPkiClientVerifier::no_client_auth(),
            };
            let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
                .with_protocol_versions(versions)
                .map_err(unusable)?
                .with_client_cert_verifier(verifier)
                .with_cert_resolver(identity);
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            Ok(Arc::new(config))
        });
        let client = trust.map(|trust| {
            let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_protocol_versions(versions)
                .map_err(unusable)?
                // Not webpki's own: see `Trust`.
                .dangerous()
                .with_custom_certificate_verifier(trust);
            let mut config = match identity {
                Some(identity) => builder.with_client_cert_resolver(identity),
                None => builder.with_no_client_auth(),
            };
            config.resumption = Resumption::disabled();
            Ok(Arc::new(config))
        });
        Ok(Self { server: server.transpose()?, client: client.transpose()? })
    }
}

static VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];

fn versions(protocol: TlsProtocol) -> &'static [&'static SupportedProtocolVersion] {
    match protocol {
        TlsProtocol::V1_3 => &VERSIONS[..1],
        TlsProtocol::V1_2 => &VERSIONS[1..],
        TlsProtocol::Any => &VERSIONS,
    }
}

/// With the cipher suites that are wanted.
fn provider(conf: &TlsConf) -> Result<Arc<CryptoProvider>, TransportError> {
    let mut provider = aws_lc_rs::default_provider();
    if let Some(names) = conf.enabled_algorithms() {
        let fits = |version| versions(conf.protocol()).contains(&version);
        provider.cipher_suites.retain(|suite| {
            // Java leaves the version out.
            let name = suite.suite().as_str().unwrap_or_default().replace("TLS13_", "TLS_");
            fits(suite.version()) && names.contains(&name)
        });
        if provider.cipher_suites.is_empty() {
            return Err(config_error(format!(
                "spark.ssl.rpc.enabledAlgorithms has the value '{}', but nothing of it is supported under this \
                 spark.ssl.rpc.protocol",
                names.join(",")
            )));
        }
    }
    Ok(Arc::new(provider))
}
