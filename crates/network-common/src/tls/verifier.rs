//! The verifier of peer certificates, which rustls calls during a handshake.
//!
//! A certificate is trusted if the trust store contains it, or a certificate that its chain ends
//! in.

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

use super::error::config_error;
use crate::conf::TlsConf;
use crate::error::TransportError;
use crate::peer_text::peer_name;

/// A trust store that verifies certificates as Java does.
///
/// Java's users often have one self-signed certificate of the server in every trust store, with the
/// mark of a CA or of X.509 version 1. webpki rejects these as server certificates. A certificate
/// in the trust store therefore needs no chain; its dates and host name are still verified.
#[derive(Debug)]
pub(super) struct TrustStoreVerifier {
    /// The certificates of the trust store.
    certificates: Vec<CertificateDer<'static>>,
    /// Trust anchors: those of `certificates` that webpki can parse.
    anchors: Arc<RootCertStore>,
    client_chain_verifier: Arc<dyn ClientCertVerifier>,
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
        let client_chain_verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&anchors), Arc::clone(provider))
                .build()
                .map_err(|error| {
                    config_error("spark.ssl.rpc.trustStore contains no valid certificate")
                        .with_source(error)
                })?;
        Ok(Self {
            certificates,
            anchors,
            client_chain_verifier,
            algorithms: provider.signature_verification_algorithms,
            hostname_verification: conf.hostname_verification(),
        })
    }

    /// Returns whether the trust store contains this certificate.
    ///
    /// # Errors
    /// It does, but the certificate has expired or is not valid yet.
    fn is_pinned(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> Result<bool, Error> {
        if !self.certificates.contains(certificate) {
            return Ok(false);
        }
        let parsed = parse_certificate(certificate)?;
        let validity = parsed.validity();
        let not_before = to_unix_time(validity.not_before);
        let not_after = to_unix_time(validity.not_after);
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
        // Verified with the public key alone, because webpki cannot parse X.509 version 1.
        let parsed = parse_certificate(certificate)?;
        let key = SubjectPublicKeyInfoDer::from(parsed.public_key().raw);
        verify_tls13_signature_with_raw_key(message, &key, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for TrustStoreVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.client_chain_verifier.root_hint_subjects()
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
        self.client_chain_verifier.verify_client_cert(end_entity, intermediates, now)
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

/// Checks the host name: the alternative names of the certificate, or its common name.
///
/// As in Java, the common name counts only if the certificate has no alternative names.
fn verify_name(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> Result<(), Error> {
    let parsed = parse_certificate(certificate)?;
    let has_alternative_names = !matches!(parsed.subject_alternative_name(), Ok(None));
    if has_alternative_names {
        return verify_server_name(&ParsedCertificate::try_from(certificate)?, name);
    }
    let expected = name.to_str();
    let mut common_names =
        parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    if common_names.any(|common_name| common_name.eq_ignore_ascii_case(&expected)) {
        return Ok(());
    }
    let presented = parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    Err(CertificateError::NotValidForNameContext {
        expected: name.to_owned(),
        presented: presented.map(|name| format!("CN={}", peer_name(name))).collect(),
    }
    .into())
}

fn parse_certificate<'a>(
    certificate: &'a CertificateDer<'_>,
) -> Result<X509Certificate<'a>, Error> {
    match X509Certificate::from_der(certificate) {
        Ok((_, parsed)) => Ok(parsed),
        Err(_) => Err(CertificateError::BadEncoding.into()),
    }
}

fn to_unix_time(time: ASN1Time) -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(
        u64::try_from(time.timestamp()).unwrap_or(0),
    ))
}
