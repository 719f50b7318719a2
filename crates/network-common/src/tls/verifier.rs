//! Who is trusted: whose certificate is in the trust store, or whose chain ends there.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature,
    verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

use super::config_error;
use crate::conf::TlsConf;
use crate::error::TransportError;

/// A trust store as rustls asks it.
///
/// webpki alone would refuse what Java's users have: one self-signed certificate, often marked as a
/// CA or of version 1, that is the server's and in everybody's trust store. Such a one is as good
/// as its key, so no chain is asked for; dates and name are still checked.
#[derive(Debug)]
pub(super) struct TrustStoreVerifier {
    certificates: Vec<CertificateDer<'static>>,
    anchors: Arc<RootCertStore>,
    chains_of_clients: Arc<dyn ClientCertVerifier>,
    algorithms: WebPkiSupportedAlgorithms,
    hostname_verification: bool,
}

impl TrustStoreVerifier {
    pub(super) fn new(
        certificates: Vec<CertificateDer<'static>>,
        conf: &TlsConf,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, TransportError> {
        let mut anchors = RootCertStore::empty();
        anchors.add_parsable_certificates(certificates.iter().cloned());
        let anchors = Arc::new(anchors);
        let chains_of_clients =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&anchors), Arc::clone(provider))
                .build()
                .map_err(|error| {
                    config_error(format!(
                        "spark.ssl.rpc.trustStore holds no usable certificate: {error}"
                    ))
                    .with_source(error)
                })?;
        Ok(Self {
            certificates,
            anchors,
            chains_of_clients,
            algorithms: provider.signature_verification_algorithms,
            hostname_verification: conf.hostname_verification(),
        })
    }

    /// Whether this very certificate is in the trust store. If it is, it must be valid today.
    fn is_pinned(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> Result<bool, Error> {
        if !self.certificates.contains(certificate) {
            return Ok(false);
        }
        let parsed = parse(certificate)?;
        let (not_before, not_after) =
            (unix(parsed.validity().not_before), unix(parsed.validity().not_after));
        if now > not_after {
            return Err(CertificateError::ExpiredContext { time: now, not_after }.into());
        }
        if now < not_before {
            return Err(CertificateError::NotValidYetContext { time: now, not_before }.into());
        }
        Ok(true)
    }
}

impl ServerCertVerifier for TrustStoreVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !self.is_pinned(end_entity, now)? {
            let certificate = ParsedCertificate::try_from(end_entity)?;
            let algorithms = self.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(
                &certificate,
                &self.anchors,
                intermediates,
                now,
                algorithms,
            )?;
        }
        if self.hostname_verification {
            verify_name(end_entity, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // By the key alone: webpki does not read certificates of version 1.
        let parsed = parse(certificate)?;
        let key = SubjectPublicKeyInfoDer::from(parsed.public_key().raw);
        verify_tls13_signature_with_raw_key(message, &key, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for TrustStoreVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chains_of_clients.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if self.is_pinned(end_entity, now)? {
            return Ok(ClientCertVerified::assertion());
        }
        self.chains_of_clients.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The names of a certificate are its alternative names; its common name only counts where it has
/// none, as in Java.
fn verify_name(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> Result<(), Error> {
    let parsed = parse(certificate)?;
    let has_names = !matches!(parsed.subject_alternative_name(), Ok(None));
    if has_names {
        return verify_server_name(&ParsedCertificate::try_from(certificate)?, name);
    }
    let wanted = name.to_str();
    let mut common_names =
        parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    if common_names.any(|common_name| common_name.eq_ignore_ascii_case(&wanted)) {
        return Ok(());
    }
    let presented = parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    Err(CertificateError::NotValidForNameContext {
        expected: name.to_owned(),
        presented: presented.map(|name| format!("CN={name}")).collect(),
    }
    .into())
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Error> {
    match X509Certificate::from_der(certificate) {
        Ok((_, parsed)) => Ok(parsed),
        Err(_) => Err(CertificateError::BadEncoding.into()),
    }
}

fn unix(time: ASN1Time) -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(
        u64::try_from(time.timestamp()).unwrap_or(0),
    ))
}
