//! SASL's encryption (`auth-conf`) with 3DES or RC4 (auth 1.4).

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
/// Message type and sequence number behind the encrypted bytes.
const TAIL: usize = 6;
const LENGTH: usize = 8;
/// The longest block accepted: more than any peer's `spark.network.sasl.maxEncryptedBlockSize`
/// should be.
const MAX_BLOCK: usize = (16 << 20) + 64;

/// The filters of one side. Every block holds at most `max_block` plain bytes.
pub(super) fn filters(
    cipher: SaslCipher,
    hash: &[u8; 16],
    side: Side,
    max_block: usize,
) -> Result<FilterPair, AuthError> {
    let (out, back) = match side {
        Side::Client => ("client-to-server", "server-to-client"),
        Side::Server => ("server-to-client", "client-to-server"),
    };
    Ok(FilterPair {
        seal_filter: Box::new(SaslSeal {
            direction: SaslDirection::new(cipher, hash, out, true)?,
            max_block,
        }),
        open_filter: Box::new(SaslOpen {
            direction: SaslDirection::new(cipher, hash, back, false)?,
            held: Vec::new(),
        }),
    })
}

enum SaslStream {
    /// One chain of blocks over the whole connection.
    Encrypt(Box<cbc::Encryptor<TdesEde2>>),
    Decrypt(Box<cbc::Decryptor<TdesEde2>>),
    Rc4(Box<Rc4>),
}

/// Keys and counters of one direction.
struct SaslDirection {
    state: SaslStream,
    sign: Zeroizing<[u8; 16]>,
    sequence: u32,
}

impl SaslDirection {
    fn new(
        cipher: SaslCipher,
        hash: &[u8; 16],
        name: &str,
        encrypts: bool,
    ) -> Result<Self, AuthError> {
        let key = |purpose: String| -> Zeroizing<[u8; 16]> {
            Zeroizing::new(Md5::new().chain_update(hash).chain_update(purpose).finalize().into())
        };
        let seal = key(format!("Digest H(A1) to {name} sealing key magic constant"));
        let sign = key(format!("Digest session key to {name} signing key magic constant"));
        let state = match cipher {
            SaslCipher::Rc4 => SaslStream::Rc4(Box::new(
                Rc4::new_from_slice(&*seal).map_err(|_| AuthError::Crypto("RC4"))?,
            )),
            SaslCipher::TripleDes => {
                let mut keys = Zeroizing::new([0; 16]);
                keys[..8].copy_from_slice(&des_key(&seal[..7]));
                keys[8..].copy_from_slice(&des_key(&seal[7..14]));
                let failed = |_| AuthError::Crypto("3DES");
                let des = TdesEde2::new_from_slice(&*keys).map_err(failed)?;
                let iv = &seal[8..];
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
        Ok(Self { state, sign, sequence: 0 })
    }

    fn mac(&self, plain: &[u8]) -> Result<[u8; MAC], AuthError> {
        let mut mac =
            Hmac::<Md5>::new_from_slice(&*self.sign).map_err(|_| AuthError::Crypto("HMAC"))?;
        mac.update(&self.sequence.to_be_bytes());
        mac.update(plain);
        let mut short = [0; MAC];
        short.copy_from_slice(&mac.finalize().into_bytes()[..MAC]);
        Ok(short)
    }

    /// Padding that brings plain bytes and MAC to whole blocks.
    fn padding(&self, plain: usize) -> usize {
        match self.state {
            SaslStream::Rc4(_) => 0,
            _ => BLOCK - (plain + MAC) % BLOCK,
        }
    }

    fn crypt(&mut self, bytes: &mut [u8]) {
        match &mut self.state {
            SaslStream::Encrypt(chain) => chain.encrypt_blocks(blocks(bytes)),
            SaslStream::Decrypt(chain) => chain.decrypt_blocks(blocks(bytes)),
            SaslStream::Rc4(stream) => stream.apply_keystream(bytes),
        }
    }
}

fn blocks(bytes: &mut [u8]) -> &mut [Block<TdesEde2>] {
    Block::<TdesEde2>::slice_as_chunks_mut(bytes).0
}

/// 56 bits spread over 8 bytes; the lowest bit of each is parity, which nobody looks at.
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
            let padding = self.direction.padding(plain.len());
            let total = LENGTH + plain.len() + padding + MAC + TAIL;
            let mut block = Vec::with_capacity(total);
            block.extend_from_slice(&(total as u64).to_be_bytes());
            block.extend_from_slice(plain);
            block.resize(block.len() + padding, padding as u8);
            block.extend_from_slice(&self.direction.mac(plain)?);
            self.direction.crypt(&mut block[LENGTH..]);
            block.extend_from_slice(&[0, 1]);
            block.extend_from_slice(&self.direction.sequence.to_be_bytes());
            output.extend_from_slice(&block);
            self.direction.sequence = self.direction.sequence.wrapping_add(1);
        }
        Ok(())
    }
}

struct SaslOpen {
    direction: SaslDirection,
    /// The start of an unfinished block.
    held: Vec<u8>,
}

impl SaslOpen {
    /// The length of the block at the front, its length field included, once that is there.
    fn announced(&self) -> Result<usize, AuthError> {
        let Some(field) = self.held.first_chunk::<LENGTH>() else { return Ok(LENGTH) };
        let total = i64::from_be_bytes(*field);
        usize::try_from(total)
            .ok()
            .filter(|total| (LENGTH + MAC + TAIL..=MAX_BLOCK).contains(total))
            .ok_or_else(|| AuthError::Malformed(format!("an encrypted block of {total} bytes")))
    }

    fn open(&mut self, wrapped: &[u8], output: &mut FilterOutput<'_>) -> Result<(), AuthError> {
        let damaged =
            || AuthError::VerificationFailed("an encrypted block is damaged, or out of its order");
        let direction = &mut self.direction;
        let (sealed, tail) = wrapped.split_at(wrapped.len() - TAIL);
        let triple_des = !matches!(direction.state, SaslStream::Rc4(_));
        if tail[..2] != [0, 1]
            || tail[2..] != direction.sequence.to_be_bytes()
            || (triple_des && (sealed.len() % BLOCK != 0 || sealed.len() < 2 * BLOCK))
        {
            return Err(damaged());
        }
        let mut opened = sealed.to_vec();
        direction.crypt(&mut opened);
        let (padded, mac) = opened.split_at(opened.len() - MAC);
        let padding =
            if triple_des { padded.last().map_or(0, |byte| usize::from(*byte)) } else { 0 };
        if triple_des && !(1..=BLOCK).contains(&padding) {
            return Err(damaged());
        }
        let (plain, pad) =
            padded.split_at_checked(padded.len().wrapping_sub(padding)).ok_or_else(damaged)?;
        verify_slices_are_equal(mac, &direction.mac(plain)?).map_err(|_| damaged())?;
        if pad.iter().any(|byte| usize::from(*byte) != padding) {
            return Err(damaged());
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
            let count = (self.announced()? - self.held.len()).min(input.len());
            self.held.extend_from_slice(&input[..count]);
            input = &input[count..];
            if self.held.len() > LENGTH && self.held.len() == self.announced()? {
                let block = std::mem::take(&mut self.held);
                self.open(&block[LENGTH..], output)?;
            }
        }
        // Nothing is waited for in vain.
        self.announced()?;
        Ok(())
    }
}

#[cfg(test)]
#[path = "sasl_encryption_tests.rs"]
mod tests;
