//! Builds the rustls configurations of servers and clients from [`TlsConf`].

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ServerConfig, SupportedProtocolVersion};

use super::error::config_error;
use super::key_store;
use super::verifier::TrustStoreVerifier;
use crate::conf::{TlsConf, TlsProtocol};
use crate::error::TransportError;

/// The rustls configurations for new connections.
pub(super) struct Configs {
    /// `None` if no private key is configured.
    pub(super) server: Option<Arc<ServerConfig>>,
    /// `None` if no trusted certificate is configured.
    pub(super) client: Option<Arc<ClientConfig>>,
}

impl Configs {
    /// Builds both configurations from the files that the settings name; blocks.
    ///
    /// # Errors
    /// Kind `Config`, with the setting and the path of the file that cannot be used.
    pub(super) fn load(conf: &TlsConf) -> Result<Self, TransportError> {
        let provider = provider(conf)?;
        let versions = versions(conf.protocol());
        let identity = key_store::load_identity(conf, &provider)?
            .map(|identity| Arc::new(SingleCertAndKey::from(identity)));
        let verifier = match key_store::load_trusted(conf)? {
            Some(certificates) => {
                Some(Arc::new(TrustStoreVerifier::new(certificates, conf, &provider)?))
            }
            None => None,
        };
        if conf.need_client_auth() && verifier.is_none() {
            return Err(config_error(
                "spark.ssl.rpc.needClientAuth needs spark.ssl.rpc.trustStore",
            ));
        }
        let setup_error = |error: rustls::Error| {
            config_error("rustls rejected the settings spark.ssl.rpc.*").with_source(error)
        };

        let server = identity.clone().map(|identity| {
            let client_verifier = match &verifier {
                Some(verifier) if conf.need_client_auth() => Arc::clone(verifier) as _,
                _ => WebPkiClientVerifier::no_client_auth(),
            };
            let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
                .with_protocol_versions(versions)
                .map_err(setup_error)?
                .with_client_cert_verifier(client_verifier)
                .with_cert_resolver(identity);
            // A resumed session would skip the current trust store: see the module `tls`.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            Ok(Arc::new(config))
        });
        let client = verifier.map(|verifier| {
            let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_protocol_versions(versions)
                .map_err(setup_error)?
                // The docs of `TrustStoreVerifier` explain why webpki's verifier does not suffice.
                .dangerous()
                .with_custom_certificate_verifier(verifier);
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

/// Returns the crypto provider with the enabled cipher suites only.
fn provider(conf: &TlsConf) -> Result<Arc<CryptoProvider>, TransportError> {
    let mut provider = aws_lc_rs::default_provider();
    if let Some(names) = conf.enabled_algorithms() {
        let is_enabled = |version| versions(conf.protocol()).contains(&version);
        provider.cipher_suites.retain(|suite| {
            // The setting has Java's names, such as TLS_AES_128_GCM_SHA256 instead of
            // TLS13_AES_128_GCM_SHA256 in rustls.
            let name = suite.suite().as_str().unwrap_or_default().replace("TLS13_", "TLS_");
            is_enabled(suite.version()) && names.contains(&name)
        });
        if provider.cipher_suites.is_empty() {
            return Err(config_error(format!(
                "spark.ssl.rpc.enabledAlgorithms has the value '{}', but none of these cipher \
                 suites is supported with the value of spark.ssl.rpc.protocol",
                names.join(",")
            )));
        }
    }
    Ok(Arc::new(provider))
}
