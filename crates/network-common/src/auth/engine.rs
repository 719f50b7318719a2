//! The auth engine of Spark 3.2 and later (Spark's `AuthEngine`).
//!
//! The peers exchange X25519 public keys, which are encrypted with a key derived from the secret,
//! and derive the session keys from the result. `client_bootstrap` and `server_handshake` send the
//! messages.

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use zeroize::Zeroizing;

use super::crypto::{fill_random, hkdf_expand};
use super::message::AuthMessage;
use super::session_keys::SessionKeys;
use super::{AuthError, Secret};

const PUBLIC_KEY: usize = 32;
const NONCE: usize = 12;
const TAG: usize = 16;

/// The parameters of one key exchange, for either side.
pub(super) struct AuthEngine<'a> {
    app_id: &'a str,
    secret: &'a Secret,
    /// In version 1 the session key is the raw X25519 output; in others it is derived from it.
    version: i64,
}

/// The client's challenge, which the client keeps until the response arrives.
pub(super) struct EngineChallenge {
    private_key: PrivateKey,
    message: Vec<u8>,
}

impl EngineChallenge {
    /// Returns the encoded message for the server.
    pub(super) fn message_bytes(&self) -> Vec<u8> {
        self.message.clone()
    }
}

impl<'a> AuthEngine<'a> {
    pub(super) fn new(app_id: &'a str, secret: &'a Secret, version: i64) -> Self {
        Self { app_id, secret, version }
    }

    /// Creates the client's challenge (Spark's `AuthEngine.challenge`).
    pub(super) fn create_challenge(&self) -> Result<EngineChallenge, AuthError> {
        let private_key = generate_key_pair()?;
        let message = self.seal_public_key(&private_key, &[])?.encode();
        Ok(EngineChallenge { private_key, message })
    }

    /// Returns the server's response and the session keys (Spark's `AuthEngine.response`).
    pub(super) fn respond(
        &self,
        challenge: &AuthMessage,
    ) -> Result<(Vec<u8>, SessionKeys), AuthError> {
        let transcript = challenge.encode();
        let client_key = self.open_public_key(challenge, &[])?;
        let private_key = generate_key_pair()?;
        let response = self.seal_public_key(&private_key, &transcript)?.encode();
        let keys =
            self.derive_session_keys(&private_key, &client_key, &[&transcript, &response])?;
        Ok((response, keys))
    }

    /// Returns the client's session keys (Spark's `AuthEngine.deriveSessionCipher`).
    pub(super) fn finish(
        &self,
        challenge: &EngineChallenge,
        response: &[u8],
    ) -> Result<SessionKeys, AuthError> {
        let message = AuthMessage::decode(response)?;
        let server_key = self.open_public_key(&message, &challenge.message)?;
        let transcript = [&challenge.message[..], response];
        self.derive_session_keys(&challenge.private_key, &server_key, &transcript)
    }

    fn seal_public_key(
        &self,
        private_key: &PrivateKey,
        transcript: &[u8],
    ) -> Result<AuthMessage, AuthError> {
        let public_key =
            private_key.compute_public_key().map_err(|_| AuthError::Crypto("X25519"))?;
        let mut salt = [0; AuthMessage::SALT];
        let mut ciphertext = [0; AuthMessage::CIPHERTEXT];
        fill_random(&mut salt)?;
        let (nonce, sealed) = ciphertext.split_at_mut(NONCE);
        fill_random(nonce)?;
        let (key, tag) = sealed.split_at_mut(PUBLIC_KEY);
        key.copy_from_slice(public_key.as_ref());
        let (cipher, aad) = self.exchange_cipher(&salt, transcript)?;
        let sealed_tag = Nonce::try_assume_unique_for_key(nonce)
            .and_then(|nonce| cipher.seal_in_place_separate_tag(nonce, Aad::from(aad), key))
            .map_err(|_| AuthError::Crypto("AES-GCM"))?;
        tag.copy_from_slice(sealed_tag.as_ref());
        Ok(AuthMessage::new(self.app_id, salt, ciphertext))
    }

    fn open_public_key(
        &self,
        message: &AuthMessage,
        transcript: &[u8],
    ) -> Result<[u8; PUBLIC_KEY], AuthError> {
        if message.app_id != self.app_id {
            let (expected, got) = (self.app_id.to_owned(), message.app_id.clone());
            return Err(AuthError::AppIdMismatch { expected, got });
        }
        let (nonce, sealed) = message.ciphertext.split_at(NONCE);
        let (key, tag) = sealed.split_at(sealed.len() - TAG);
        let (cipher, aad) = self.exchange_cipher(&message.salt, transcript)?;
        let mut opened = [0; PUBLIC_KEY];
        Nonce::try_assume_unique_for_key(nonce)
            .and_then(|nonce| {
                cipher.open_separate_gather(nonce, Aad::from(aad), key, tag, &mut opened)
            })
            .map_err(|_| AuthError::mismatched_secret())?;
        Ok(opened)
    }

    /// Returns the cipher of public keys and the data that it authenticates with them.
    fn exchange_cipher(
        &self,
        salt: &[u8],
        transcript: &[u8],
    ) -> Result<(LessSafeKey, Vec<u8>), AuthError> {
        let aad = [self.app_id.as_bytes(), salt, transcript].concat();
        let mut key = Zeroizing::new([0; 16]);
        let prk = Salt::new(HKDF_SHA256, salt).extract(self.secret.bytes());
        hkdf_expand(&prk, &aad, &mut *key)?;
        let key = UnboundKey::new(&AES_128_GCM, &*key).map_err(|_| AuthError::Crypto("AES-GCM"))?;
        Ok((LessSafeKey::new(key), aad))
    }

    fn derive_session_keys(
        &self,
        private_key: &PrivateKey,
        peer_key: &[u8],
        transcript: &[&[u8]],
    ) -> Result<SessionKeys, AuthError> {
        let peer_key = UnparsedPublicKey::new(&X25519, peer_key);
        let invalid = AuthError::VerificationFailed("the peer's public key is invalid");
        let shared = agree(private_key, peer_key, invalid, |shared| {
            Ok::<_, AuthError>(Zeroizing::new(shared.to_vec()))
        })?;
        let prk = Salt::new(HKDF_SHA256, &transcript.concat()).extract(&shared);
        let mut keys = SessionKeys { key: shared, input_iv: [0; 16], output_iv: [0; 16] };
        hkdf_expand(&prk, b"inputIv", &mut keys.input_iv)?;
        hkdf_expand(&prk, b"outputIv", &mut keys.output_iv)?;
        if self.version != 1 {
            keys.key = Zeroizing::new(vec![0; 16]);
            hkdf_expand(&prk, b"derivedKey", &mut keys.key)?;
        }
        Ok(keys)
    }
}

fn generate_key_pair() -> Result<PrivateKey, AuthError> {
    PrivateKey::generate(&X25519).map_err(|_| AuthError::Crypto("X25519 key generation"))
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
