//! The messages of handshakes: bodies of RPCs and of their answers.

use bytes::BufMut;

use super::AuthError;
use crate::protocol::{FieldReader, ProtocolError, put_byte_array, put_string};

pub(super) const AUTH_TAG: u8 = 0xfb;
const SASL_TAG: u8 = 0xea;

/// Reads the tag and hands on what is behind it.
pub(super) fn untag(bytes: &[u8], tag: u8) -> Result<FieldReader<'_>, AuthError> {
    match bytes.split_first() {
        Some((first, rest)) if *first == tag => Ok(FieldReader::new(rest)),
        Some((first, _)) => Err(AuthError::UnexpectedMessage(format!(
            "it begins with 0x{first:02x}, expected was 0x{tag:02x}"
        ))),
        None => Err(AuthError::UnexpectedMessage("it is empty".to_owned())),
    }
}

pub(super) fn malformed(error: ProtocolError) -> AuthError {
    AuthError::Malformed(error.to_string())
}

/// A string that must be UTF-8: an application's name is what is authenticated, so nothing in it is
/// replaced.
pub(super) fn text(reader: &mut FieldReader<'_>, field: &'static str) -> Result<String, AuthError> {
    let bytes = reader.byte_array(field).map_err(malformed)?;
    String::from_utf8(bytes.to_vec())
        .map_err(|_| AuthError::Malformed(format!("{field} is not UTF-8")))
}

pub(super) fn at_end(reader: &FieldReader<'_>) -> Result<(), AuthError> {
    match reader.remaining() {
        0 => Ok(()),
        more => Err(AuthError::Malformed(format!("{more} bytes too many"))),
    }
}

/// A message of the auth engine, the same in both directions: a sealed public key (auth 3.1).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuthMessage {
    /// The application.
    pub app_id: String,
    /// Salts the key that seals.
    pub salt: [u8; Self::SALT],
    /// Nonce, sealed public key and tag.
    pub ciphertext: [u8; Self::CIPHERTEXT],
}

impl AuthMessage {
    pub(super) const SALT: usize = 16;
    pub(super) const CIPHERTEXT: usize = 12 + 32 + 16;

    /// The message with these parts.
    pub fn new(
        app_id: impl Into<String>,
        salt: [u8; Self::SALT],
        ciphertext: [u8; Self::CIPHERTEXT],
    ) -> Self {
        Self { app_id: app_id.into(), salt, ciphertext }
    }

    /// Its bytes, tag included.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![AUTH_TAG];
        put_string(&self.app_id, &mut out);
        put_byte_array(&self.salt, &mut out);
        put_byte_array(&self.ciphertext, &mut out);
        out
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`AuthError::UnexpectedMessage`] for another tag, [`AuthError::Malformed`] for anything else that is
    /// not exactly such a message.
    pub fn decode(bytes: &[u8]) -> Result<Self, AuthError> {
        let mut reader = untag(bytes, AUTH_TAG)?;
        let app_id = text(&mut reader, "application id")?;
        let salt = sized(&mut reader, "salt")?;
        let ciphertext = sized(&mut reader, "ciphertext")?;
        at_end(&reader)?;
        Ok(Self { app_id, salt, ciphertext })
    }
}

fn sized<const N: usize>(
    reader: &mut FieldReader<'_>,
    field: &'static str,
) -> Result<[u8; N], AuthError> {
    let bytes = reader.byte_array(field).map_err(malformed)?;
    bytes.try_into().map_err(|_| {
        AuthError::Malformed(format!("{field} has {} bytes instead of {N}", bytes.len()))
    })
}

/// What a client of SASL sends; servers answer with bare tokens (auth 1.1).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SaslMessage {
    /// The application.
    pub app_id: String,
    /// What is for the mechanism.
    pub token: Vec<u8>,
}

impl SaslMessage {
    /// The message with these parts.
    pub fn new(app_id: impl Into<String>, token: impl Into<Vec<u8>>) -> Self {
        Self { app_id: app_id.into(), token: token.into() }
    }

    /// Its bytes, tag included.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(9 + self.app_id.len() + self.token.len());
        out.put_u8(SASL_TAG);
        put_string(&self.app_id, &mut out);
        put_byte_array(&self.token, &mut out);
        out
    }

    /// Reads it.
    ///
    /// # Errors
    /// As [`AuthMessage::decode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, AuthError> {
        let mut reader = untag(bytes, SASL_TAG)?;
        let app_id = text(&mut reader, "application id")?;
        let token = reader.byte_array("token").map_err(malformed)?.to_vec();
        at_end(&reader)?;
        Ok(Self { app_id, token })
    }
}
