//! SASL's encryption (`auth-conf`) with 3DES or RC4 (Spark's `SaslEncryption`, RFC 2831 section
//! 2.4).
//!
//! `AuthPolicy::sasl_filters` creates these filters. The plaintext is cut into blocks, and each
//! block becomes a frame:
//!
//! | bytes | field |
//! |---|---|
//! | 8 | length of the whole frame |
//! | any | encrypted: plaintext, padding (3DES only), 10 bytes of HMAC-MD5 |
//! | 2 | message type, always 1 |
//! | 4 | sequence number |

use aws_lc_rs::constant_time::verify_slices_are_equal;
use des::TdesEde2;
use des::cipher::{Block, BlockModeDecrypt, BlockModeEncrypt, InnerIvInit, KeyInit};
use hmac::{Hmac, Mac};
use md5::{Digest, Md5};
use rc4::{Rc4, StreamCipher};
use zeroize::Zeroizing;

use super::AuthError;
use super::digest_md5::SaslCipher;
use super::session_keys::Side;
use crate::error::BoxError;
use crate::session::{ByteFilter, FilterOutput, FilterPair};

const BLOCK: usize = 8;
const MAC: usize = 10;
/// The length of message type and sequence number.
const TRAILER: usize = 6;
const LENGTH: usize = 8;
/// The maximum length of a received frame.
///
/// `spark.network.sasl.maxEncryptedBlockSize` allows at most 16 MiB of plaintext; the rest is for
/// length, padding, MAC and trailer.
const MAX_FRAME: usize = (16 << 20) + 64;

/// Creates the filters of one side, which encrypt blocks of at most `max_block` bytes.
pub(super) fn filters(
    cipher: SaslCipher,
    hash: &[u8; 16],
    side: Side,
    max_block: usize,
) -> Result<FilterPair, AuthError> {
    let (sent, received) = match side {
        Side::Client => ("client-to-server", "server-to-client"),
        Side::Server => ("server-to-client", "client-to-server"),
    };
    Ok(FilterPair {
        seal_filter: Box::new(SaslSeal {
            direction: SaslDirection::new(cipher, hash, sent, true)?,
            max_block,
        }),
        open_filter: Box::new(SaslOpen {
            direction: SaslDirection::new(cipher, hash, received, false)?,
            partial: Vec::new(),
        }),
    })
}

/// The cipher state of one direction, which continues from frame to frame.
enum SaslStream {
    Encrypt(Box<cbc::Encryptor<TdesEde2>>),
    Decrypt(Box<cbc::Decryptor<TdesEde2>>),
    Rc4(Box<Rc4>),
}

/// The keys and the sequence number of one direction.
struct SaslDirection {
    stream: SaslStream,
    mac_key: Zeroizing<[u8; 16]>,
    sequence: u32,
}

impl SaslDirection {
    fn new(
        cipher: SaslCipher,
        hash: &[u8; 16],
        name: &str,
        encrypts: bool,
    ) -> Result<Self, AuthError> {
        let derive_key = |constant: String| -> Zeroizing<[u8; 16]> {
            Zeroizing::new(Md5::new().chain_update(hash).chain_update(constant).finalize().into())
        };
        let seal_key = derive_key(format!("Digest H(A1) to {name} sealing key magic constant"));
        let mac_key =
            derive_key(format!("Digest session key to {name} signing key magic constant"));
        let stream = match cipher {
            SaslCipher::Rc4 => SaslStream::Rc4(Box::new(
                Rc4::new_from_slice(&*seal_key).map_err(|_| AuthError::Crypto("RC4"))?,
            )),
            SaslCipher::TripleDes => {
                let mut keys = Zeroizing::new([0; 16]);
                keys[..8].copy_from_slice(&des_key(&seal_key[..7]));
                keys[8..].copy_from_slice(&des_key(&seal_key[7..14]));
                let failed = |_| AuthError::Crypto("3DES");
                let des = TdesEde2::new_from_slice(&*keys).map_err(failed)?;
                let iv = &seal_key[8..];
                if encrypts {
                    SaslStream::Encrypt(Box::new(
                        cbc::Encryptor::inner_iv_slice_init(des, iv).map_err(failed)?,
                    ))
                } else {
                    SaslStream::Decrypt(Box::new(
                        cbc::Decryptor::inner_iv_slice_init(des, iv).map_err(failed)?,
                    ))
                }
            }
        };
        Ok(Self { stream, mac_key, sequence: 0 })
    }

    fn is_triple_des(&self) -> bool {
        !matches!(self.stream, SaslStream::Rc4(_))
    }

    /// Returns the truncated HMAC-MD5 of the sequence number and the plaintext.
    fn mac(&self, plain: &[u8]) -> Result<[u8; MAC], AuthError> {
        let mut mac =
            Hmac::<Md5>::new_from_slice(&*self.mac_key).map_err(|_| AuthError::Crypto("HMAC"))?;
        mac.update(&self.sequence.to_be_bytes());
        mac.update(plain);
        let mut truncated = [0; MAC];
        truncated.copy_from_slice(&mac.finalize().into_bytes()[..MAC]);
        Ok(truncated)
    }

    /// Returns the number of bytes that extend plaintext and MAC to whole cipher blocks.
    fn padding_len(&self, plain_len: usize) -> usize {
        if self.is_triple_des() { BLOCK - (plain_len + MAC) % BLOCK } else { 0 }
    }

    /// Encrypts or decrypts `bytes` in place.
    fn apply_cipher(&mut self, bytes: &mut [u8]) {
        match &mut self.stream {
            SaslStream::Encrypt(chain) => chain.encrypt_blocks(as_blocks(bytes)),
            SaslStream::Decrypt(chain) => chain.decrypt_blocks(as_blocks(bytes)),
            SaslStream::Rc4(stream) => stream.apply_keystream(bytes),
        }
    }
}

fn as_blocks(bytes: &mut [u8]) -> &mut [Block<TdesEde2>] {
    Block::<TdesEde2>::slice_as_chunks_mut(bytes).0
}

/// Spreads 56 key bits over 8 bytes; the lowest bit of each byte is the unused parity bit.
fn des_key(bits: &[u8]) -> [u8; BLOCK] {
    let all = bits.iter().fold(0_u64, |all, byte| all << 8 | u64::from(*byte));
    std::array::from_fn(|index| ((all >> (49 - 7 * index)) as u8) << 1)
}

struct SaslSeal {
    direction: SaslDirection,
    max_block: usize,
}

impl ByteFilter for SaslSeal {
    fn transform(&mut self, input: &[u8], output: &mut FilterOutput<'_>) -> Result<(), BoxError> {
        for plain in input.chunks(self.max_block) {
            let padding = self.direction.padding_len(plain.len());
            let total = LENGTH + plain.len() + padding + MAC + TRAILER;
            let mut frame = Vec::with_capacity(total);
            frame.extend_from_slice(&(total as u64).to_be_bytes());
            frame.extend_from_slice(plain);
            frame.resize(frame.len() + padding, padding as u8);
            frame.extend_from_slice(&self.direction.mac(plain)?);
            self.direction.apply_cipher(&mut frame[LENGTH..]);
            frame.extend_from_slice(&[0, 1]);
            frame.extend_from_slice(&self.direction.sequence.to_be_bytes());
            output.extend_from_slice(&frame);
            self.direction.sequence = self.direction.sequence.wrapping_add(1);
        }
        Ok(())
    }
}

struct SaslOpen {
    direction: SaslDirection,
    /// The received bytes of an incomplete frame.
    partial: Vec<u8>,
}

impl SaslOpen {
    /// Returns the length of the frame in `partial`, or of the length field if it is incomplete.
    fn frame_len(&self) -> Result<usize, AuthError> {
        let Some(field) = self.partial.first_chunk::<LENGTH>() else { return Ok(LENGTH) };
        let total = i64::from_be_bytes(*field);
        usize::try_from(total)
            .ok()
            .filter(|total| (LENGTH + MAC + TRAILER..=MAX_FRAME).contains(total))
            .ok_or_else(|| {
                AuthError::Malformed(format!(
                    "an encrypted SASL frame of {total} bytes, allowed are {} to {MAX_FRAME}",
                    LENGTH + MAC + TRAILER
                ))
            })
    }

    /// Decrypts a frame without its length field.
    fn open_frame(&mut self, frame: &[u8], output: &mut FilterOutput<'_>) -> Result<(), AuthError> {
        let invalid = || {
            AuthError::VerificationFailed("an encrypted SASL frame was changed or is out of order")
        };
        let direction = &mut self.direction;
        let (sealed, trailer) = frame.split_at(frame.len() - TRAILER);
        let is_triple_des = direction.is_triple_des();
        if trailer[..2] != [0, 1]
            || trailer[2..] != direction.sequence.to_be_bytes()
            || (is_triple_des && (sealed.len() % BLOCK != 0 || sealed.len() < 2 * BLOCK))
        {
            return Err(invalid());
        }
        let mut opened = sealed.to_vec();
        direction.apply_cipher(&mut opened);
        let (padded, mac) = opened.split_at(opened.len() - MAC);
        let padding_len =
            if is_triple_des { padded.last().map_or(0, |byte| usize::from(*byte)) } else { 0 };
        if is_triple_des && !(1..=BLOCK).contains(&padding_len) {
            return Err(invalid());
        }
        let (plain, padding) =
            padded.split_at_checked(padded.len().wrapping_sub(padding_len)).ok_or_else(invalid)?;
        verify_slices_are_equal(mac, &direction.mac(plain)?).map_err(|_| invalid())?;
        if padding.iter().any(|byte| usize::from(*byte) != padding_len) {
            return Err(invalid());
        }
        direction.sequence = direction.sequence.wrapping_add(1);
        output.extend_from_slice(plain);
        Ok(())
    }
}

impl ByteFilter for SaslOpen {
    fn transform(
        &mut self,
        mut input: &[u8],
        output: &mut FilterOutput<'_>,
    ) -> Result<(), BoxError> {
        while !input.is_empty() {
            let count = (self.frame_len()? - self.partial.len()).min(input.len());
            self.partial.extend_from_slice(&input[..count]);
            input = &input[count..];
            if self.partial.len() > LENGTH && self.partial.len() == self.frame_len()? {
                let frame = std::mem::take(&mut self.partial);
                self.open_frame(&frame[LENGTH..], output)?;
            }
        }
        // Rejects an invalid length before more bytes arrive.
        self.frame_len()?;
        Ok(())
    }
}

#[cfg(test)]
#[path = "sasl_encryption_tests.rs"]
mod tests;
