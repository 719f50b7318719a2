//! The auth engine of Spark 2.4 to 3.1 (auth 7).

use std::num::NonZeroU32;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::pbkdf2::{PBKDF2_HMAC_SHA1, derive};
use zeroize::Zeroizing;

use super::engine::random;
use super::message::{at_end, malformed, text, untag};
use super::session_keys::{Ctr, SessionKeys};
use super::{AuthError, Secret};
use crate::conf::AuthConf;
use crate::protocol::{put_byte_array, put_string};
use crate::session::ByteFilter;

pub(super) const TAG: u8 = 0xfa;
const RESPONSE_TAG: u8 = 0xfb;
const KDF: &str = "PBKDF2WithHmacSHA1";
const CIPHER: &str = "AES/CTR/NoPadding";
const IV: usize = 16;

/// A client's message. Its key derivation must be the one that is set here: the peer does not
/// choose how long we compute.
pub(super) struct LegacyMessage {
    pub(super) app_id: String,
    iterations: i32,
    key_bits: i32,
    nonce: Vec<u8>,
    challenge: Vec<u8>,
}

impl LegacyMessage {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, AuthError> {
        let mut reader = untag(bytes, TAG)?;
        let app_id = text(&mut reader, "application id")?;
        let kdf = text(&mut reader, "key derivation")?;
        let iterations = reader.int("iterations").map_err(malformed)?;
        let cipher = text(&mut reader, "cipher")?;
        let key_bits = reader.int("key length").map_err(malformed)?;
        let nonce = reader.byte_array("nonce").map_err(malformed)?.to_vec();
        let challenge = reader.byte_array("challenge").map_err(malformed)?.to_vec();
        at_end(&reader)?;
        if kdf != KDF || cipher != CIPHER {
            return Err(AuthError::NegotiationFailed(format!(
                "the client wants {kdf} and {cipher}, not {KDF} and {CIPHER}"
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

/// The two streams that seal a handshake: same key, same start.
struct Streams {
    encrypt: Ctr,
    decrypt: Ctr,
}

impl Streams {
    fn new(secret: &Secret, nonce: &[u8], conf: &AuthConf) -> Result<Self, AuthError> {
        let key = password_key(secret, nonce, conf)?;
        let mut iv = [0; IV];
        let known = nonce.len().min(IV);
        iv[..known].copy_from_slice(&nonce[..known]);
        Ok(Self { encrypt: Ctr::new(&key, iv)?, decrypt: Ctr::new(&key, iv)? })
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

fn password_key(
    secret: &Secret,
    salt: &[u8],
    conf: &AuthConf,
) -> Result<Zeroizing<Vec<u8>>, AuthError> {
    let iterations =
        NonZeroU32::new(conf.key_factory_iterations).ok_or(AuthError::Crypto("deriving a key"))?;
    let mut key = Zeroizing::new(vec![0; conf.key_length]);
    derive(PBKDF2_HMAC_SHA1, iterations, salt, secret.bytes(), &mut key);
    Ok(key)
}

fn random_key(conf: &AuthConf) -> Result<Vec<u8>, AuthError> {
    let mut bytes = vec![0; conf.key_length];
    random(&mut bytes)?;
    Ok(bytes)
}

/// `challenge` as a signed number, plus one, in as few bytes as it takes.
fn incremented(challenge: &[u8]) -> Vec<u8> {
    let negative = challenge.first().is_some_and(|byte| *byte >= 0x80);
    // One byte of sign in front: the sum cannot overflow.
    let mut number = vec![if negative { 0xff } else { 0 }];
    number.extend_from_slice(challenge);
    for byte in number.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            break;
        }
    }
    let needless = number
        .windows(2)
        .take_while(|pair| matches!(pair, [0, 0..=0x7f] | [0xff, 0x80..=0xff]))
        .count();
    number.split_off(needless)
}

/// What a client keeps while its challenge is under way.
pub(super) struct LegacyClientHandshake<'a> {
    secret: &'a Secret,
    conf: &'a AuthConf,
    streams: Streams,
    message: LegacyMessage,
    expected: Vec<u8>,
}

impl<'a> LegacyClientHandshake<'a> {
    pub(super) fn new(
        app_id: &str,
        secret: &'a Secret,
        conf: &'a AuthConf,
    ) -> Result<Self, AuthError> {
        let (nonce, challenge) = (random_key(conf)?, random_key(conf)?);
        let mut streams = Streams::new(secret, &nonce, conf)?;
        let greeting = [app_id.as_bytes(), &nonce].concat();
        let sealed = streams.encrypt(&[&greeting[..], &challenge].concat())?;
        let expected = [greeting, incremented(&challenge)].concat();
        let message = LegacyMessage {
            app_id: app_id.to_owned(),
            iterations: conf.key_factory_iterations as i32,
            key_bits: conf.key_length as i32 * 8,
            nonce,
            challenge: sealed,
        };
        Ok(Self { secret, conf, streams, message, expected })
    }

    pub(super) fn encoded(&self) -> Vec<u8> {
        self.message.encode()
    }

    pub(super) fn finish(mut self, response: &[u8]) -> Result<SessionKeys, AuthError> {
        let mut reader = untag(response, RESPONSE_TAG)?;
        let mut opened = |field| {
            let sealed = reader.byte_array(field).map_err(malformed)?;
            self.streams.decrypt(sealed)
        };
        let (proof, nonce) = (opened("response")?, opened("nonce")?);
        let (input_iv, output_iv) = (opened("input IV")?, opened("output IV")?);
        at_end(&reader)?;
        verify_slices_are_equal(&proof, &self.expected).map_err(|_| {
            AuthError::VerificationFailed("the peer has another secret, or the message was changed")
        })?;
        let iv = |bytes: &[u8]| {
            bytes
                .try_into()
                .map_err(|_| AuthError::Malformed("an IV is not 16 bytes long".to_owned()))
        };
        let key = password_key(self.secret, &nonce, self.conf)?;
        Ok(SessionKeys { key, input_iv: iv(&input_iv)?, output_iv: iv(&output_iv)? })
    }
}

/// The server's only step: its answer, and the keys to go on with.
pub(super) fn respond(
    message: &LegacyMessage,
    secret: &Secret,
    conf: &AuthConf,
) -> Result<(Vec<u8>, SessionKeys), AuthError> {
    let ours = (conf.key_factory_iterations as i32, conf.key_length as i32 * 8, conf.key_length);
    let theirs = (message.iterations, message.key_bits, message.nonce.len());
    if ours != theirs {
        return Err(AuthError::NegotiationFailed(format!(
            "the client wants iterations, key bits and nonce bytes {theirs:?}, here they are {ours:?}"
        )));
    }
    let mut streams = Streams::new(secret, &message.nonce, conf)?;
    let opened = streams.decrypt(&message.challenge)?;
    let greeting = [message.app_id.as_bytes(), &message.nonce].concat();
    let wrong =
        AuthError::VerificationFailed("the peer has another secret, or the message was changed");
    let (proof, challenge) =
        opened.split_at_checked(greeting.len()).ok_or_else(|| wrong.clone())?;
    verify_slices_are_equal(proof, &greeting).map_err(|_| wrong.clone())?;
    if challenge.len() != conf.key_length {
        return Err(wrong);
    }
    let nonce = random_key(conf)?;
    // Named as the client sees them.
    let (mut input_iv, mut output_iv) = ([0; IV], [0; IV]);
    random(&mut input_iv)?;
    random(&mut output_iv)?;
    let mut reply = vec![RESPONSE_TAG];
    for part in [&[greeting, incremented(challenge)].concat()[..], &nonce, &input_iv, &output_iv] {
        put_byte_array(&streams.encrypt(part)?, &mut reply);
    }
    Ok((reply, SessionKeys { key: password_key(secret, &nonce, conf)?, input_iv, output_iv }))
}

#[cfg(test)]
#[path = "legacy_engine_tests.rs"]
mod tests;
