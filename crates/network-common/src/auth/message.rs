//! The messages of handshakes, which are bodies of `RpcRequest` and `RpcResponse`.

use bytes::BufMut;

use super::AuthError;
use crate::protocol::{FieldReader, ProtocolError, put_byte_array, put_string};

/// The first byte of an [`AuthMessage`].
pub(super) const AUTH_TAG: u8 = 0xfb;
/// The first byte of a [`SaslMessage`].
const SASL_TAG: u8 = 0xea;

/// Checks the first byte of a message and returns a reader of the rest.
pub(super) fn strip_tag(bytes: &[u8], tag: u8) -> Result<FieldReader<'_>, AuthError> {
    match bytes.split_first() {
        Some((first, rest)) if *first == tag => Ok(FieldReader::new(rest)),
        Some((first, _)) => Err(AuthError::UnexpectedMessage(format!(
            "it begins with 0x{first:02x}, expected was 0x{tag:02x}"
        ))),
        None => Err(AuthError::UnexpectedMessage("it is empty".to_owned())),
    }
}

pub(super) fn malformed_error(error: ProtocolError) -> AuthError {
    AuthError::Malformed(error.to_string())
}

/// Reads a string, which must be valid UTF-8.
///
/// Invalid bytes are not replaced, because two different application ids could become equal.
pub(super) fn read_string(
    reader: &mut FieldReader<'_>,
    field: &'static str,
) -> Result<String, AuthError> {
    let bytes = reader.byte_array(field).map_err(malformed_error)?;
    String::from_utf8(bytes.to_vec())
        .map_err(|_| AuthError::Malformed(format!("{field} is not UTF-8")))
}

/// Checks that all bytes of the message were read.
pub(super) fn expect_end(reader: &FieldReader<'_>) -> Result<(), AuthError> {
    match reader.remaining() {
        0 => Ok(()),
        count => Err(AuthError::Malformed(format!("{count} bytes follow the last field"))),
    }
}

/// A message of the auth engine: an encrypted public key (Spark's `AuthMessage`).
///
/// The client's challenge and the server's response have the same format.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuthMessage {
    /// The id of the application.
    pub app_id: String,
    /// The random salt of the key that encrypts the public key.
    pub salt: [u8; Self::SALT],
    /// The nonce, the encrypted public key and the authentication tag.
    pub ciphertext: [u8; Self::CIPHERTEXT],
}

impl AuthMessage {
    /// The length of the salt in bytes.
    pub(super) const SALT: usize = 16;
    /// The length of nonce, public key and tag in bytes.
    pub(super) const CIPHERTEXT: usize = 12 + 32 + 16;

    /// Creates a message from its fields.
    pub fn new(
        app_id: impl Into<String>,
        salt: [u8; Self::SALT],
        ciphertext: [u8; Self::CIPHERTEXT],
    ) -> Self {
        Self { app_id: app_id.into(), salt, ciphertext }
    }

    /// Returns the bytes of the message, tag included.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![AUTH_TAG];
        put_string(&self.app_id, &mut out);
        put_byte_array(&self.salt, &mut out);
        put_byte_array(&self.ciphertext, &mut out);
        out
    }

    /// Parses the bytes of a message, tag included.
    ///
    /// # Errors
    /// [`AuthError::UnexpectedMessage`] if the tag is another one, [`AuthError::Malformed`] if a
    /// field is invalid or bytes follow the last field.
    pub fn decode(bytes: &[u8]) -> Result<Self, AuthError> {
        let mut reader = strip_tag(bytes, AUTH_TAG)?;
        let app_id = read_string(&mut reader, "application id")?;
        let salt = read_array(&mut reader, "salt")?;
        let ciphertext = read_array(&mut reader, "ciphertext")?;
        expect_end(&reader)?;
        Ok(Self { app_id, salt, ciphertext })
    }
}

fn read_array<const N: usize>(
    reader: &mut FieldReader<'_>,
    field: &'static str,
) -> Result<[u8; N], AuthError> {
    let bytes = reader.byte_array(field).map_err(malformed_error)?;
    bytes.try_into().map_err(|_| {
        AuthError::Malformed(format!("{field} has {} bytes, expected were {N}", bytes.len()))
    })
}

/// A message that a SASL client sends (Spark's `SaslMessage`).
///
/// The server's responses are tokens without tag and application id.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SaslMessage {
    /// The id of the application.
    pub app_id: String,
    /// The token of DIGEST-MD5; empty in the first message.
    pub token: Vec<u8>,
}

impl SaslMessage {
    /// Creates a message from its fields.
    pub fn new(app_id: impl Into<String>, token: impl Into<Vec<u8>>) -> Self {
        Self { app_id: app_id.into(), token: token.into() }
    }

    /// Returns the bytes of the message, tag included.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(9 + self.app_id.len() + self.token.len());
        out.put_u8(SASL_TAG);
        put_string(&self.app_id, &mut out);
        put_byte_array(&self.token, &mut out);
        out
    }

    /// Parses the bytes of a message, tag included.
    ///
    /// # Errors
    /// [`AuthError::UnexpectedMessage`] if the tag is another one, [`AuthError::Malformed`] if a
    /// field is invalid or bytes follow the last field.
    pub fn decode(bytes: &[u8]) -> Result<Self, AuthError> {
        let mut reader = strip_tag(bytes, SASL_TAG)?;
        let app_id = read_string(&mut reader, "application id")?;
        let token = reader.byte_array("token").map_err(malformed_error)?.to_vec();
        expect_end(&reader)?;
        Ok(Self { app_id, token })
    }
}
