//! A reader of JKS, Java's own key store format.
//!
//! Numbers are big-endian. A file contains the magic bytes, a version and the number of entries.
//! Each entry has a tag, an alias and a date, and then either an encrypted key with its certificate
//! chain, or one certificate. The file ends with a digest that is keyed with the password. There is
//! no well-maintained crate that reads this format.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA1_OUTPUT_LEN};
use pkcs8::der::asn1::{ObjectIdentifier, OctetStringRef};
use pkcs8::der::{Decode, Reader, SliceReader};
use pkcs8::spki::AlgorithmIdentifierRef;
use rustls::pki_types::CertificateDer;

/// The first bytes of every file.
pub(super) const MAGIC: [u8; 4] = [0xfe, 0xed, 0xfe, 0xed];

const KEY: u32 = 1;
const CERTIFICATE: u32 = 2;
/// A constant that Java includes in the digest.
const WHITENER: &[u8] = b"Mighty Aphrodite";
/// Sun's encryption of keys: an exclusive-or with a chain of SHA-1 digests.
const KEY_PROTECTOR: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.42.2.17.1.1");

/// The entries of a file, in file order.
#[derive(Debug)]
pub(super) struct Jks {
    pub(super) keys: Vec<KeyEntry>,
    pub(super) certificates: Vec<CertificateDer<'static>>,
}

/// An encrypted private key with its certificates.
pub(super) struct KeyEntry {
    pub(super) alias: String,
    /// A DER `EncryptedPrivateKeyInfo`, for [`decrypt_key`].
    pub(super) encrypted_key: Vec<u8>,
    /// The certificate of the key first, then those of its issuers.
    pub(super) chain: Vec<CertificateDer<'static>>,
}

impl std::fmt::Debug for KeyEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyEntry").field("alias", &self.alias).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum JksError {
    #[error("the JKS file is truncated or malformed at byte {0}")]
    Malformed(usize),
    #[error("the JKS version {0} is not supported")]
    Version(u32),
    #[error("the JKS entry type {0} is not supported")]
    Entry(u32),
    #[error("the password is wrong, or the JKS file was changed")]
    Digest,
    #[error("the key is not encrypted with the algorithm of JKS")]
    Protection,
    #[error("the password is wrong, or the key was changed")]
    Password,
}

impl Jks {
    /// Parses a file; verifies its digest only if there is a password, as Java does.
    pub(super) fn read(bytes: &[u8], password: Option<&str>) -> Result<Self, JksError> {
        let end =
            bytes.len().checked_sub(SHA1_OUTPUT_LEN).ok_or(JksError::Malformed(bytes.len()))?;
        let (content, digest) = bytes.split_at(end);
        if let Some(password) = password {
            let expected = sha1(&[&utf16_bytes(password), WHITENER, content]);
            verify_slices_are_equal(&expected, digest).map_err(|_| JksError::Digest)?;
        }
        let mut cursor = ByteCursor { bytes: content, position: 0 };
        cursor.read_bytes(MAGIC.len())?;
        let version = cursor.read_u32()?;
        if !(1..=2).contains(&version) {
            return Err(JksError::Version(version));
        }
        let mut store = Self { keys: Vec::new(), certificates: Vec::new() };
        for _ in 0..cursor.read_u32()? {
            let tag = cursor.read_u32()?;
            let alias = cursor.read_string()?;
            let _date = cursor.read_bytes(8)?;
            match tag {
                KEY => {
                    let encrypted_key = cursor.read_block()?.to_vec();
                    // Not preallocated, because the count has not been verified.
                    let mut chain = Vec::new();
                    for _ in 0..cursor.read_u32()? {
                        chain.push(cursor.read_certificate(version)?);
                    }
                    store.keys.push(KeyEntry { alias, encrypted_key, chain });
                }
                CERTIFICATE => store.certificates.push(cursor.read_certificate(version)?),
                other => return Err(JksError::Entry(other)),
            }
        }
        if cursor.position < content.len() {
            return Err(JksError::Malformed(cursor.position));
        }
        Ok(store)
    }
}

/// Decrypts a key and returns its PKCS#8 DER.
pub(super) fn decrypt_key(encrypted_key: &[u8], password: &str) -> Result<Vec<u8>, JksError> {
    let protected = unwrap_key_info(encrypted_key).map_err(|_| JksError::Protection)?;
    let (Some((salt, rest)), Some(length)) = (
        protected.split_at_checked(SHA1_OUTPUT_LEN),
        protected.len().checked_sub(2 * SHA1_OUTPUT_LEN),
    ) else {
        return Err(JksError::Protection);
    };
    let (ciphertext, digest) = rest.split_at(length);
    let password = utf16_bytes(password);
    let mut mask = salt.to_vec();
    let mut key = Vec::with_capacity(length);
    for piece in ciphertext.chunks(SHA1_OUTPUT_LEN) {
        mask = sha1(&[&password, &mask]);
        key.extend(piece.iter().zip(&mask).map(|(byte, mask)| byte ^ mask));
    }
    verify_slices_are_equal(&sha1(&[&password, &key]), digest).map_err(|_| JksError::Password)?;
    Ok(key)
}

/// Returns the encrypted octets of an `EncryptedPrivateKeyInfo`.
fn unwrap_key_info(encrypted_key: &[u8]) -> Result<&[u8], pkcs8::der::Error> {
    let mut reader = SliceReader::new(encrypted_key)?;
    let octets = reader.sequence(|reader| {
        let algorithm = AlgorithmIdentifierRef::decode(reader)?;
        algorithm.assert_algorithm_oid(KEY_PROTECTOR).map_err(|_| pkcs8::der::ErrorKind::Failed)?;
        <&OctetStringRef>::decode(reader)
    })?;
    Ok(octets.as_bytes())
}

struct ByteCursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> ByteCursor<'a> {
    fn read_bytes(&mut self, count: usize) -> Result<&'a [u8], JksError> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let bytes = rest.get(..count).ok_or(JksError::Malformed(self.position))?;
        self.position += count;
        Ok(bytes)
    }

    fn read_array<const N: usize>(&mut self) -> Result<[u8; N], JksError> {
        let position = self.position;
        self.read_bytes(N)?.try_into().map_err(|_| JksError::Malformed(position))
    }

    fn read_u32(&mut self) -> Result<u32, JksError> {
        self.read_array().map(u32::from_be_bytes)
    }

    /// Reads bytes that are preceded by their length.
    fn read_block(&mut self) -> Result<&'a [u8], JksError> {
        let length = self.read_u32()?;
        self.read_bytes(length as usize)
    }

    /// Reads a string in Java's variant of UTF-8, lossily: aliases appear in error texts only.
    fn read_string(&mut self) -> Result<String, JksError> {
        let length = self.read_array().map(u16::from_be_bytes)?;
        Ok(String::from_utf8_lossy(self.read_bytes(usize::from(length))?).into_owned())
    }

    fn read_certificate(&mut self, version: u32) -> Result<CertificateDer<'static>, JksError> {
        if version == 2 {
            // The certificate type, which is always "X.509".
            self.read_string()?;
        }
        self.read_block().map(|der| CertificateDer::from(der.to_vec()))
    }
}

fn utf16_bytes(password: &str) -> Vec<u8> {
    password.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

fn sha1(parts: &[&[u8]]) -> Vec<u8> {
    let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    parts.iter().for_each(|part| context.update(part));
    context.finish().as_ref().to_vec()
}
