//! The auth engine of Spark 3.2 and later: an X25519 exchange whose public keys are sealed with the
//! secret (auth 3).

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use aws_lc_rs::rand;
use zeroize::Zeroizing;

use super::session_keys::SessionKeys;
use super::{AuthError, AuthMessage, Secret};

const PUBLIC_KEY: usize = 32;
const NONCE: usize = 12;
const TAG: usize = 16;

/// One end of the exchange.
pub(super) struct AuthEngine<'a> {
    app_id: &'a str,
    secret: &'a Secret,
    /// 1: the session key is the bare agreement; any other: derived from it.
    version: i64,
}

/// What a client keeps while its challenge is under way.
pub(super) struct EngineChallenge {
    private: PrivateKey,
    encoded: Vec<u8>,
}

impl EngineChallenge {
    pub(super) fn encoded(&self) -> Vec<u8> {
        self.encoded.clone()
    }
}

impl<'a> AuthEngine<'a> {
    pub(super) fn new(app_id: &'a str, secret: &'a Secret, version: i64) -> Self {
        Self { app_id, secret, version }
    }

    /// The client's first step.
    pub(super) fn challenge(&self) -> Result<EngineChallenge, AuthError> {
        self.challenge_with(generate()?)
    }

    fn challenge_with(&self, private: PrivateKey) -> Result<EngineChallenge, AuthError> {
        let encoded = self.seal(&private, &[])?.encode();
        Ok(EngineChallenge { private, encoded })
    }

    /// The server's only step: its answer, and the keys to go on with.
    pub(super) fn respond(
        &self,
        challenge: &AuthMessage,
    ) -> Result<(Vec<u8>, SessionKeys), AuthError> {
        let transcript = challenge.encode();
        let client_key = self.open(challenge, &[])?;
        let private = generate()?;
        let response = self.seal(&private, &transcript)?.encode();
        let keys = self.derive(&private, &client_key, &[&transcript, &response])?;
        Ok((response, keys))
    }

    /// The client's last step.
    pub(super) fn finish(
        &self,
        challenge: &EngineChallenge,
        response: &[u8],
    ) -> Result<SessionKeys, AuthError> {
        let message = AuthMessage::decode(response)?;
        let server_key = self.open(&message, &challenge.encoded)?;
        self.derive(&challenge.private, &server_key, &[&challenge.encoded, response])
    }

    fn seal(&self, private: &PrivateKey, transcript: &[u8]) -> Result<AuthMessage, AuthError> {
        let public = private.compute_public_key().map_err(|_| AuthError::Crypto("X25519"))?;
        let mut salt = [0; AuthMessage::SALT];
        let mut ciphertext = [0; AuthMessage::CIPHERTEXT];
        random(&mut salt)?;
        let (nonce, sealed) = ciphertext.split_at_mut(NONCE);
        random(nonce)?;
        let (key, tag) = sealed.split_at_mut(PUBLIC_KEY);
        key.copy_from_slice(public.as_ref());
        let (cipher, aad) = self.sealing_key(&salt, transcript)?;
        let sealed_tag = Nonce::try_assume_unique_for_key(nonce)
            .and_then(|nonce| cipher.seal_in_place_separate_tag(nonce, Aad::from(aad), key))
            .map_err(|_| AuthError::Crypto("sealing a public key"))?;
        tag.copy_from_slice(sealed_tag.as_ref());
        Ok(AuthMessage::new(self.app_id, salt, ciphertext))
    }

    fn open(
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
        let (cipher, aad) = self.sealing_key(&message.salt, transcript)?;
        let mut opened = [0; PUBLIC_KEY];
        Nonce::try_assume_unique_for_key(nonce)
            .and_then(|nonce| {
                cipher.open_separate_gather(nonce, Aad::from(aad), key, tag, &mut opened)
            })
            .map_err(|_| {
                AuthError::VerificationFailed(
                    "the peer has another secret, or the message was changed",
                )
            })?;
        Ok(opened)
    }

    /// The key that seals public keys, and what is authenticated with them.
    fn sealing_key(
        &self,
        salt: &[u8],
        transcript: &[u8],
    ) -> Result<(LessSafeKey, Vec<u8>), AuthError> {
        let aad = [self.app_id.as_bytes(), salt, transcript].concat();
        let mut key = Zeroizing::new([0; 16]);
        expand(&Salt::new(HKDF_SHA256, salt).extract(self.secret.bytes()), &aad, &mut *key)?;
        let key = UnboundKey::new(&AES_128_GCM, &*key).map_err(|_| AuthError::Crypto("AES-GCM"))?;
        Ok((LessSafeKey::new(key), aad))
    }

    fn derive(
        &self,
        private: &PrivateKey,
        peer: &[u8],
        transcript: &[&[u8]],
    ) -> Result<SessionKeys, AuthError> {
        let peer = UnparsedPublicKey::new(&X25519, peer);
        let failed = AuthError::VerificationFailed("the peer's public key is of no use");
        let shared = agree(private, peer, failed, |shared| Ok(Zeroizing::new(shared.to_vec())))?;
        let prk = Salt::new(HKDF_SHA256, &transcript.concat()).extract(&shared);
        let mut keys = SessionKeys { key: shared, input_iv: [0; 16], output_iv: [0; 16] };
        expand(&prk, b"inputIv", &mut keys.input_iv)?;
        expand(&prk, b"outputIv", &mut keys.output_iv)?;
        if self.version != 1 {
            keys.key = Zeroizing::new(vec![0; 16]);
            expand(&prk, b"derivedKey", &mut keys.key)?;
        }
        Ok(keys)
    }
}

fn generate() -> Result<PrivateKey, AuthError> {
    PrivateKey::generate(&X25519).map_err(|_| AuthError::Crypto("making a key pair"))
}

pub(super) fn random(bytes: &mut [u8]) -> Result<(), AuthError> {
    rand::fill(bytes).map_err(|_| AuthError::Crypto("the system's random number generator"))
}

/// Fills `out` by HKDF's second step.
pub(super) fn expand(prk: &Prk, info: &[u8], out: &mut [u8]) -> Result<(), AuthError> {
    struct Length(usize);
    impl KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    prk.expand(&[info], Length(out.len()))
        .and_then(|okm| okm.fill(out))
        .map_err(|_| AuthError::Crypto("deriving a key"))
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
