//! Java's own key store format, of which there is no well-kept reader.
//!
//! Big-endian: magic, version, count of entries; each a tag, an alias and a date, then a protected
//! key with its chain, or one certificate. A digest that is keyed with the password ends the file.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA1_OUTPUT_LEN};
use pkcs8::der::asn1::{ObjectIdentifier, OctetStringRef};
use pkcs8::der::{Decode, Reader, SliceReader};
use pkcs8::spki::AlgorithmIdentifierRef;
use rustls::pki_types::CertificateDer;

/// The first bytes of every such file.
pub(super) const MAGIC: [u8; 4] = [0xfe, 0xed, 0xfe, 0xed];

const KEY: u32 = 1;
const CERTIFICATE: u32 = 2;
/// Part of the digest at the end.
const WHITENER: &[u8] = b"Mighty Aphrodite";
/// Sun's protection of keys: an exclusive-or with a chain of SHA-1 digests.
const KEY_PROTECTOR: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.42.2.17.1.1");

/// What a file holds, in its order.
#[derive(Debug)]
pub(super) struct Jks {
    pub(super) keys: Vec<KeyEntry>,
    pub(super) certificates: Vec<CertificateDer<'static>>,
}

pub(super) struct KeyEntry {
    pub(super) alias: String,
    pub(super) protected: Vec<u8>,
    /// Our own certificate first.
    pub(super) chain: Vec<CertificateDer<'static>>,
}

impl std::fmt::Debug for KeyEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyEntry").field("alias", &self.alias).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum JksError {
    #[error("the JKS file is cut off or malformed at byte {0}")]
    Malformed(usize),
    #[error("JKS version {0} is not known")]
    Version(u32),
    #[error("entry kind {0} is not known in JKS")]
    Entry(u32),
    #[error("the JKS file was changed, or its password is wrong")]
    Digest,
    #[error("the key is not protected in the way of JKS")]
    Protection,
    #[error("the password is wrong, or the key was changed")]
    Password,
}

impl Jks {
    /// Without a password the file's integrity is not checked, as in Java.
    pub(super) fn read(bytes: &[u8], password: Option<&str>) -> Result<Self, JksError> {
        let end =
            bytes.len().checked_sub(SHA1_OUTPUT_LEN).ok_or(JksError::Malformed(bytes.len()))?;
        let (content, digest) = bytes.split_at(end);
        if let Some(password) = password {
            let expected = sha1(&[&utf16(password), WHITENER, content]);
            verify_slices_are_equal(&expected, digest).map_err(|_| JksError::Digest)?;
        }
        let mut cursor = Cursor { bytes: content, position: 0 };
        cursor.take(MAGIC.len())?;
        let version = cursor.integer()?;
        if !(1..=2).contains(&version) {
            return Err(JksError::Version(version));
        }
        let mut store = Self { keys: Vec::new(), certificates: Vec::new() };
        for _ in 0..cursor.integer()? {
            let tag = cursor.integer()?;
            let alias = cursor.text()?;
            let _date = cursor.take(8)?;
            match tag {
                KEY => {
                    let protected = cursor.block()?.to_vec();
                    // No place is made by a count that was not checked.
                    let mut chain = Vec::new();
                    for _ in 0..cursor.integer()? {
                        chain.push(cursor.certificate(version)?);
                    }
                    store.keys.push(KeyEntry { alias, protected, chain });
                }
                CERTIFICATE => store.certificates.push(cursor.certificate(version)?),
                other => return Err(JksError::Entry(other)),
            }
        }
        if cursor.position < content.len() {
            return Err(JksError::Malformed(cursor.position));
        }
        Ok(store)
    }
}

/// The PKCS#8 key behind its protection.
pub(super) fn recover(protected: &[u8], password: &str) -> Result<Vec<u8>, JksError> {
    let sealed = sealed(protected).map_err(|_| JksError::Protection)?;
    let (Some((salt, rest)), Some(length)) =
        (sealed.split_at_checked(SHA1_OUTPUT_LEN), sealed.len().checked_sub(2 * SHA1_OUTPUT_LEN))
    else {
        return Err(JksError::Protection);
    };
    let (hidden, check) = rest.split_at(length);
    let password = utf16(password);
    let mut link = salt.to_vec();
    let mut key = Vec::with_capacity(length);
    for piece in hidden.chunks(SHA1_OUTPUT_LEN) {
        link = sha1(&[&password, &link]);
        key.extend(piece.iter().zip(&link).map(|(byte, mask)| byte ^ mask));
    }
    verify_slices_are_equal(&sha1(&[&password, &key]), check).map_err(|_| JksError::Password)?;
    Ok(key)
}

/// What an `EncryptedPrivateKeyInfo` of this protection wraps.
fn sealed(protected: &[u8]) -> Result<&[u8], pkcs8::der::Error> {
    let mut reader = SliceReader::new(protected)?;
    let sealed = reader.sequence(|reader| {
        let algorithm = AlgorithmIdentifierRef::decode(reader)?;
        algorithm.assert_algorithm_oid(KEY_PROTECTOR).map_err(|_| pkcs8::der::ErrorKind::Failed)?;
        <&OctetStringRef>::decode(reader)
    })?;
    Ok(sealed.as_bytes())
}

struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], JksError> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let taken = rest.get(..count).ok_or(JksError::Malformed(self.position))?;
        self.position += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], JksError> {
        let position = self.position;
        self.take(N)?.try_into().map_err(|_| JksError::Malformed(position))
    }

    fn integer(&mut self) -> Result<u32, JksError> {
        self.array().map(u32::from_be_bytes)
    }

    fn block(&mut self) -> Result<&'a [u8], JksError> {
        let length = self.integer()?;
        self.take(length as usize)
    }

    /// Java's variant of UTF-8; only shown to people.
    fn text(&mut self) -> Result<String, JksError> {
        let length = self.array().map(u16::from_be_bytes)?;
        Ok(String::from_utf8_lossy(self.take(usize::from(length))?).into_owned())
    }

    fn certificate(&mut self, version: u32) -> Result<CertificateDer<'static>, JksError> {
        if version == 2 {
            // "X.509": there is nothing else.
            self.text()?;
        }
        self.block().map(|der| CertificateDer::from(der.to_vec()))
    }
}

fn utf16(password: &str) -> Vec<u8> {
    password.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

fn sha1(parts: &[&[u8]]) -> Vec<u8> {
    let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    parts.iter().for_each(|part| context.update(part));
    context.finish().as_ref().to_vec()
}
