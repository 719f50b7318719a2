//! Reads certificates and keys from the files that the settings name.
//!
//! `config` calls this module. A file is JKS, PKCS#12 or PEM, which its first bytes show.

use std::path::Path;

use p12_keystore::{CertificateBag, Pkcs12Archive};
use pkcs8::EncryptedPrivateKeyInfoRef;
use pkcs8::der::SecretDocument;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use secrecy::{ExposeSecret, SecretString};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::error::config_error;
use super::jks::{self, Jks};
use crate::conf::TlsConf;
use crate::error::{BoxError, TransportError};

const ENCRYPTED_PEM: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----";

type Certificates = Vec<CertificateDer<'static>>;

/// Reads the certificate chain and key of this process; `None` if no setting names them.
pub(super) fn load_identity(
    conf: &TlsConf,
    provider: &CryptoProvider,
) -> Result<Option<CertifiedKey>, TransportError> {
    let (file, (chain, key)) = match (conf.cert_chain(), conf.private_key(), conf.key_store()) {
        (Some(chain), Some(key), _) => {
            let chain = ConfiguredFile::read("spark.ssl.rpc.certChain", chain)?;
            let chain = chain.parse(pem_certificates)?;
            let key = ConfiguredFile::read("spark.ssl.rpc.privateKey", key)?;
            let password = conf.private_key_password();
            let parsed =
                key.parse(|bytes| pem_key(bytes, password.as_ref(), "privateKeyPassword"))?;
            (key, (chain, parsed))
        }
        (_, _, Some(store)) => {
            let file = ConfiguredFile::read("spark.ssl.rpc.keyStore", store)?;
            let parsed = file.parse(|bytes| identity_from_store(bytes, conf))?;
            (file, parsed)
        }
        (None, None, None) | (Some(_), None, None) => return Ok(None),
        (None, Some(_), None) => {
            return Err(config_error("spark.ssl.rpc.privateKey needs spark.ssl.rpc.certChain too"));
        }
    };
    let certified = file.parse(|_| {
        let key = provider.key_provider.load_private_key(key)?;
        let certificate = chain.first().ok_or("there is no certificate for the key")?;
        let (_, certificate) = X509Certificate::from_der(certificate)?;
        if key.public_key().is_some_and(|key| *key != *certificate.public_key().raw) {
            let subject = certificate.subject();
            return Err(format!("the key does not belong to the certificate of {subject}").into());
        }
        Ok(CertifiedKey::new(chain.clone(), key))
    })?;
    Ok(Some(certified))
}

/// Reads the trusted certificates; `None` if no setting names them.
///
/// Without a trust store these are the certificates of `spark.ssl.rpc.certChain`.
pub(super) fn load_trusted(conf: &TlsConf) -> Result<Option<Certificates>, TransportError> {
    if let Some(store) = conf.trust_store() {
        let password = conf.trust_store_password();
        let file = ConfiguredFile::read("spark.ssl.rpc.trustStore", store)?;
        return file.parse(|bytes| trusted_from_store(bytes, password.as_ref())).map(Some);
    }
    match conf.cert_chain() {
        Some(chain) => ConfiguredFile::read("spark.ssl.rpc.certChain", chain)?
            .parse(pem_certificates)
            .map(Some),
        None => Ok(None),
    }
}

/// A file and the setting that names it, for error texts.
struct ConfiguredFile<'a> {
    setting: &'static str,
    path: &'a Path,
    bytes: Vec<u8>,
}

impl<'a> ConfiguredFile<'a> {
    fn read(setting: &'static str, path: &'a Path) -> Result<Self, TransportError> {
        let file = Self { setting, path, bytes: Vec::new() };
        let bytes = std::fs::read(path).map_err(|error| file.unusable_error(error.into()))?;
        Ok(Self { bytes, ..file })
    }

    fn parse<T>(
        &self,
        parse: impl FnOnce(&[u8]) -> Result<T, BoxError>,
    ) -> Result<T, TransportError> {
        parse(&self.bytes).map_err(|error| self.unusable_error(error))
    }

    fn unusable_error(&self, error: BoxError) -> TransportError {
        let text = format!("the file '{}' of {} cannot be used", self.path.display(), self.setting);
        config_error(text).with_source(error)
    }
}

enum KeyStore {
    Jks(Jks),
    Pkcs12(Pkcs12Archive),
    Pem,
}

fn open_store(bytes: &[u8], password: Option<&SecretString>) -> Result<KeyStore, BoxError> {
    let password = password.map(ExposeSecret::expose_secret);
    if bytes.starts_with(&jks::MAGIC) {
        Ok(KeyStore::Jks(Jks::read(bytes, password)?))
    } else if bytes.first() == Some(&0x30) {
        let archive = Pkcs12Archive::from_pkcs12(bytes, password.unwrap_or_default());
        Ok(KeyStore::Pkcs12(archive.map_err(|error| {
            format!("the PKCS#12 file is malformed or its password is wrong: {error}")
        })?))
    } else if bytes.windows(11).any(|window| window == b"-----BEGIN ") {
        Ok(KeyStore::Pem)
    } else {
        Err("the file is neither JKS nor PKCS#12 nor PEM".into())
    }
}

fn identity_from_store(
    bytes: &[u8],
    conf: &TlsConf,
) -> Result<(Certificates, PrivateKeyDer<'static>), BoxError> {
    let store_password = conf.key_store_password();
    let key_password = conf.key_password().or_else(|| store_password.clone());
    match open_store(bytes, store_password.as_ref())? {
        KeyStore::Jks(store) => {
            let entry = store.keys.into_iter().next().ok_or("it contains no key")?;
            let password =
                key_password.ok_or("its key is encrypted: set spark.ssl.rpc.keyPassword")?;
            let key = jks::decrypt_key(&entry.encrypted_key, password.expose_secret()).map_err(
                |error| {
                    let alias = &entry.alias;
                    format!("cannot decrypt key '{alias}' with spark.ssl.rpc.keyPassword: {error}")
                },
            )?;
            Ok((entry.chain, PrivatePkcs8KeyDer::from(key).into()))
        }
        KeyStore::Pkcs12(archive) => {
            let entry = archive.keys.first().ok_or("it contains no key")?;
            let key = PrivatePkcs8KeyDer::from(entry.key.as_der().to_vec()).into();
            Ok((pkcs12_chain(&archive), key))
        }
        KeyStore::Pem => {
            Ok((pem_certificates(bytes)?, pem_key(bytes, key_password.as_ref(), "keyPassword")?))
        }
    }
}

/// Returns the certificate of the first key, followed by the certificates of its issuers.
fn pkcs12_chain(archive: &Pkcs12Archive) -> Certificates {
    let key_id = archive.keys.first().and_then(|key| key.local_key_id.as_ref());
    let find_by_id =
        |id: &[u8]| archive.certs.iter().find(|bag| bag.local_key_id.as_deref() == Some(id));
    // A file without ids has one key, and its certificate is the first one by convention.
    let mut next = key_id.and_then(|id| find_by_id(&id.0)).or_else(|| archive.certs.first());
    let mut chain = Vec::new();
    while let Some(bag) = next {
        chain.push(CertificateDer::from(bag.cert.as_der().to_vec()));
        let is_self_signed = bag.cert.subject() == bag.cert.issuer();
        next = archive.certs.iter().find(|other| {
            !is_self_signed
                && other.cert.subject() == bag.cert.issuer()
                && chain.len() < archive.certs.len()
        });
    }
    chain
}

fn trusted_from_store(
    bytes: &[u8],
    password: Option<&SecretString>,
) -> Result<Certificates, BoxError> {
    let certificates = match open_store(bytes, password)? {
        KeyStore::Jks(store) => {
            // As in Java, the certificate of a key in the store is trusted too.
            let key_certificates =
                store.keys.into_iter().filter_map(|key| key.chain.into_iter().next());
            store.certificates.into_iter().chain(key_certificates).collect()
        }
        KeyStore::Pkcs12(archive) => {
            // Java marks trusted certificates and openssl does not. So all certificates of a file
            // without keys and marks are trusted.
            let key_ids: Vec<_> =
                archive.keys.iter().filter_map(|key| key.local_key_id.as_ref()).collect();
            let is_key_certificate = |id: &[u8]| key_ids.iter().any(|key_id| key_id.0 == id);
            let trusts_all =
                archive.keys.is_empty() && !archive.certs.iter().any(|bag| bag.trusted);
            let is_trusted = |bag: &&CertificateBag| {
                trusts_all
                    || bag.trusted
                    || bag.local_key_id.as_deref().is_some_and(is_key_certificate)
            };
            let bags = archive.certs.iter().filter(is_trusted);
            bags.map(|bag| CertificateDer::from(bag.cert.as_der().to_vec())).collect()
        }
        KeyStore::Pem => pem_certificates(bytes)?,
    };
    if certificates.is_empty() {
        Err("it contains no trusted certificate".into())
    } else {
        Ok(certificates)
    }
}

fn pem_certificates(bytes: &[u8]) -> Result<Certificates, BoxError> {
    let certificates: Certificates =
        CertificateDer::pem_slice_iter(bytes).collect::<Result<_, _>>()?;
    if certificates.is_empty() {
        Err("it contains no PEM certificate".into())
    } else {
        Ok(certificates)
    }
}

fn pem_key(
    bytes: &[u8],
    password: Option<&SecretString>,
    setting: &str,
) -> Result<PrivateKeyDer<'static>, BoxError> {
    let text = std::str::from_utf8(bytes)?;
    if text.contains("Proc-Type: 4,ENCRYPTED") {
        return Err(
            "its key is encrypted in OpenSSL's traditional format, which is not supported: \
             convert it with 'openssl pkcs8 -topk8'"
                .into(),
        );
    }
    let Some(begin) = text.find(ENCRYPTED_PEM) else {
        return Ok(PrivateKeyDer::from_pem_slice(bytes)?);
    };
    let password =
        password.ok_or_else(|| format!("its key is encrypted: set spark.ssl.rpc.{setting}"))?;
    let (_, sealed) = SecretDocument::from_pem(&text[begin..])?;
    let key = EncryptedPrivateKeyInfoRef::try_from(sealed.as_bytes())?
        .decrypt(password.expose_secret())
        .map_err(|error| {
            format!("its key cannot be decrypted with spark.ssl.rpc.{setting}: {error}")
        })?;
    Ok(PrivatePkcs8KeyDer::from(key.as_bytes().to_vec()).into())
}
