//! The auth engine of Spark 2.4 to 3.1, which CVE-2021-38296 breaks.
//!
//! The messages are Spark's `ClientChallenge` and `ServerResponse` of that time. AES-CTR with a key
//! derived from the secret encrypts a random challenge and the session's nonces.

use std::num::NonZeroU32;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::pbkdf2::{self, PBKDF2_HMAC_SHA1};
use zeroize::Zeroizing;

use super::crypto::fill_random;
use super::message::{expect_end, malformed_error, read_string, strip_tag};
use super::session_keys::{CtrFilter, SessionKeys};
use super::{AuthError, Secret};
use crate::conf::AuthConf;
use crate::protocol::{put_byte_array, put_string};
use crate::session::ByteFilter;

/// The first byte of the client's message.
pub(super) const TAG: u8 = 0xfa;
/// The first byte of the server's response.
const RESPONSE_TAG: u8 = 0xfb;
const KDF: &str = "PBKDF2WithHmacSHA1";
const CIPHER: &str = "AES/CTR/NoPadding";
const IV: usize = 16;

/// The message of a client (Spark's `ClientChallenge`).
///
/// A server accepts only the parameters of its own settings, so that a client cannot make it
/// compute for a long time.
pub(super) struct LegacyMessage {
    pub(super) app_id: String,
    iterations: i32,
    key_bits: i32,
    nonce: Vec<u8>,
    challenge: Vec<u8>,
}

impl LegacyMessage {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, AuthError> {
        let mut reader = strip_tag(bytes, TAG)?;
        let app_id = read_string(&mut reader, "application id")?;
        let kdf = read_string(&mut reader, "key derivation")?;
        let iterations = reader.int("iterations").map_err(malformed_error)?;
        let cipher = read_string(&mut reader, "cipher")?;
        let key_bits = reader.int("key length").map_err(malformed_error)?;
        let nonce = reader.byte_array("nonce").map_err(malformed_error)?.to_vec();
        let challenge = reader.byte_array("challenge").map_err(malformed_error)?.to_vec();
        expect_end(&reader)?;
        if kdf != KDF || cipher != CIPHER {
            return Err(AuthError::NegotiationFailed(format!(
                "the client uses {kdf} and {cipher}, this side accepts only {KDF} and {CIPHER}"
            )));
        }
        Ok(Self { app_id, iterations, key_bits, nonce, challenge })
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = vec![TAG];
        put_string(&self.app_id, &mut out);
        put_string(KDF, &mut out);
        out.extend_from_slice(&self.iterations.to_be_bytes());
        put_string(CIPHER, &mut out);
        out.extend_from_slice(&self.key_bits.to_be_bytes());
        put_byte_array(&self.nonce, &mut out);
        put_byte_array(&self.challenge, &mut out);
        out
    }
}

/// The two key streams of a handshake, which begin with the same key and IV.
struct HandshakeStreams {
    encrypt: CtrFilter,
    decrypt: CtrFilter,
}

impl HandshakeStreams {
    fn new(secret: &Secret, nonce: &[u8], conf: &AuthConf) -> Result<Self, AuthError> {
        let key = derive_key(secret, nonce, conf)?;
        let mut iv = [0; IV];
        let length = nonce.len().min(IV);
        iv[..length].copy_from_slice(&nonce[..length]);
        Ok(Self { encrypt: CtrFilter::new(&key, iv)?, decrypt: CtrFilter::new(&key, iv)? })
    }

    fn encrypt(&mut self, bytes: &[u8]) -> Result<Vec<u8>, AuthError> {
        self.encrypt.transform_to_vec(bytes).map_err(|_| AuthError::Crypto("AES-CTR"))
    }

    fn decrypt(&mut self, bytes: &[u8]) -> Result<Zeroizing<Vec<u8>>, AuthError> {
        self.decrypt
            .transform_to_vec(bytes)
            .map(Zeroizing::new)
            .map_err(|_| AuthError::Crypto("AES-CTR"))
    }
}

/// Derives a key from the secret with PBKDF2.
fn derive_key(
    secret: &Secret,
    salt: &[u8],
    conf: &AuthConf,
) -> Result<Zeroizing<Vec<u8>>, AuthError> {
    let iterations =
        NonZeroU32::new(conf.key_factory_iterations).ok_or(AuthError::Crypto("PBKDF2"))?;
    let mut key = Zeroizing::new(vec![0; conf.key_length]);
    pbkdf2::derive(PBKDF2_HMAC_SHA1, iterations, salt, secret.bytes(), &mut key);
    Ok(key)
}

/// Returns as many random bytes as a key has.
fn random_bytes(conf: &AuthConf) -> Result<Vec<u8>, AuthError> {
    let mut bytes = vec![0; conf.key_length];
    fill_random(&mut bytes)?;
    Ok(bytes)
}

/// Adds one to a big-endian signed number and returns the shortest encoding of the sum.
///
/// Java's `BigInteger` computes the response to a challenge in this way.
fn increment(challenge: &[u8]) -> Vec<u8> {
    let is_negative = challenge.first().is_some_and(|byte| *byte >= 0x80);
    // A leading byte with the sign, so that the sum cannot overflow.
    let mut number = vec![if is_negative { 0xff } else { 0 }];
    number.extend_from_slice(challenge);
    for byte in number.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            break;
        }
    }
    let redundant = number
        .windows(2)
        .take_while(|pair| matches!(pair, [0, 0..=0x7f] | [0xff, 0x80..=0xff]))
        .count();
    number.split_off(redundant)
}

/// The client end of one handshake, which the client keeps until the response arrives.
pub(super) struct LegacyClientHandshake<'a> {
    secret: &'a Secret,
    conf: &'a AuthConf,
    streams: HandshakeStreams,
    message: LegacyMessage,
    /// The plaintext of a correct response.
    expected_proof: Vec<u8>,
}

impl<'a> LegacyClientHandshake<'a> {
    pub(super) fn new(
        app_id: &str,
        secret: &'a Secret,
        conf: &'a AuthConf,
    ) -> Result<Self, AuthError> {
        let (nonce, challenge) = (random_bytes(conf)?, random_bytes(conf)?);
        let mut streams = HandshakeStreams::new(secret, &nonce, conf)?;
        let prefix = [app_id.as_bytes(), &nonce].concat();
        let sealed = streams.encrypt(&[&prefix[..], &challenge].concat())?;
        let expected_proof = [prefix, increment(&challenge)].concat();
        let message = LegacyMessage {
            app_id: app_id.to_owned(),
            iterations: conf.key_factory_iterations as i32,
            key_bits: conf.key_length as i32 * 8,
            nonce,
            challenge: sealed,
        };
        Ok(Self { secret, conf, streams, message, expected_proof })
    }

    /// Returns the encoded message for the server.
    pub(super) fn message_bytes(&self) -> Vec<u8> {
        self.message.encode()
    }

    /// Verifies the server's response and returns the session keys.
    pub(super) fn finish(mut self, response: &[u8]) -> Result<SessionKeys, AuthError> {
        let mut reader = strip_tag(response, RESPONSE_TAG)?;
        let mut open = |field| {
            let sealed = reader.byte_array(field).map_err(malformed_error)?;
            self.streams.decrypt(sealed)
        };
        let (proof, nonce) = (open("response")?, open("nonce")?);
        let (input_iv, output_iv) = (open("input IV")?, open("output IV")?);
        expect_end(&reader)?;
        verify_slices_are_equal(&proof, &self.expected_proof)
            .map_err(|_| AuthError::mismatched_secret())?;
        let to_iv = |bytes: &[u8]| {
            bytes
                .try_into()
                .map_err(|_| AuthError::Malformed("an IV is not 16 bytes long".to_owned()))
        };
        let key = derive_key(self.secret, &nonce, self.conf)?;
        Ok(SessionKeys { key, input_iv: to_iv(&input_iv)?, output_iv: to_iv(&output_iv)? })
    }
}

/// Returns the server's response and the session keys.
pub(super) fn respond(
    message: &LegacyMessage,
    secret: &Secret,
    conf: &AuthConf,
) -> Result<(Vec<u8>, SessionKeys), AuthError> {
    let ours = (conf.key_factory_iterations as i32, conf.key_length as i32 * 8, conf.key_length);
    let theirs = (message.iterations, message.key_bits, message.nonce.len());
    if ours != theirs {
        return Err(AuthError::NegotiationFailed(format!(
            "the client uses {theirs:?} for (iterations, key bits, nonce bytes), this side uses \
             {ours:?}; spark.network.crypto.keyFactoryIterations and \
             spark.network.crypto.keyLength must be equal at both ends"
        )));
    }
    let mut streams = HandshakeStreams::new(secret, &message.nonce, conf)?;
    let opened = streams.decrypt(&message.challenge)?;
    let prefix = [message.app_id.as_bytes(), &message.nonce].concat();
    let (proof, challenge) =
        opened.split_at_checked(prefix.len()).ok_or_else(AuthError::mismatched_secret)?;
    verify_slices_are_equal(proof, &prefix).map_err(|_| AuthError::mismatched_secret())?;
    if challenge.len() != conf.key_length {
        return Err(AuthError::mismatched_secret());
    }
    let nonce = random_bytes(conf)?;
    // The client's input and output.
    let (mut input_iv, mut output_iv) = ([0; IV], [0; IV]);
    fill_random(&mut input_iv)?;
    fill_random(&mut output_iv)?;
    let mut response = vec![RESPONSE_TAG];
    for field in [&[prefix, increment(challenge)].concat()[..], &nonce, &input_iv, &output_iv] {
        put_byte_array(&streams.encrypt(field)?, &mut response);
    }
    Ok((response, SessionKeys { key: derive_key(secret, &nonce, conf)?, input_iv, output_iv }))
}

#[cfg(test)]
#[path = "legacy_engine_tests.rs"]
mod tests;
