//! The byte filters of AES/GCM/NoPadding (Spark's `GcmTransportCipher`).
//!
//! The format is that of Tink's `AesGcmHkdfStreaming`: each call to seal makes one message, which
//! is a header and segments of at most 32 KiB. Each message has a key of its own, and each segment
//! an authentication tag.
//!
//! | bytes | field |
//! |---|---|
//! | 8 | length of the whole message |
//! | 1 | length of the header: 1 + salt + nonce prefix |
//! | 16 or 32 | salt, as long as the session key |
//! | 7 | nonce prefix |
//! | rest | segments: ciphertext and 16 bytes of tag each |

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use zeroize::Zeroizing;

use super::AuthError;
use super::crypto::{fill_random, hkdf_expand};
use crate::error::BoxError;
use crate::session::{ByteFilter, FilterOutput};

const LENGTH: usize = 8;
const NONCE_PREFIX: usize = 7;
const TAG: usize = 16;
/// The length of a full segment with its tag.
const SEALED_SEGMENT: usize = 32 << 10;
/// The length of a full segment before encryption.
const PLAIN_SEGMENT: usize = SEALED_SEGMENT - TAG;

/// The session key, from which the key of each message is derived.
struct GcmKey(Zeroizing<Vec<u8>>);

impl GcmKey {
    fn new(key: &[u8]) -> Result<Self, AuthError> {
        if !matches!(key.len(), 16 | 32) {
            return Err(AuthError::Crypto("AES-GCM needs a key of 16 or 32 bytes"));
        }
        Ok(Self(Zeroizing::new(key.to_vec())))
    }

    /// Returns the length of the header, which does not include the length of the message.
    fn header_len(&self) -> usize {
        1 + self.0.len() + NONCE_PREFIX
    }

    /// Derives the key of the message with this length and salt.
    fn message_key(&self, length: [u8; LENGTH], salt: &[u8]) -> Result<LessSafeKey, AuthError> {
        let mut key = Zeroizing::new(vec![0; self.0.len()]);
        hkdf_expand(&Salt::new(HKDF_SHA256, salt).extract(&self.0), &length, &mut key)?;
        let algorithm = if key.len() == 32 { &AES_256_GCM } else { &AES_128_GCM };
        let key = UnboundKey::new(algorithm, &key).map_err(|_| AuthError::Crypto("AES-GCM"))?;
        Ok(LessSafeKey::new(key))
    }
}

/// The key of one message and the nonce of its next segment.
struct MessageCipher {
    key: LessSafeKey,
    nonce_prefix: [u8; NONCE_PREFIX],
    next_segment: u32,
}

impl MessageCipher {
    fn next_nonce(&mut self, is_last: bool) -> Result<Nonce, AuthError> {
        let mut nonce = [0; 12];
        nonce[..NONCE_PREFIX].copy_from_slice(&self.nonce_prefix);
        nonce[NONCE_PREFIX..11].copy_from_slice(&self.next_segment.to_be_bytes());
        nonce[11] = u8::from(is_last);
        self.next_segment = self
            .next_segment
            .checked_add(1)
            .ok_or(AuthError::Crypto("an AES-GCM message has more than 2^32 segments"))?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// Encrypts one direction: each call makes one message.
pub struct GcmSeal(GcmKey);

impl GcmSeal {
    /// Creates the filter with a session key of 16 or 32 bytes.
    ///
    /// # Errors
    /// [`AuthError::Crypto`] if the key has another length.
    pub fn new(key: &[u8]) -> Result<Self, AuthError> {
        GcmKey::new(key).map(Self)
    }
}

impl ByteFilter for GcmSeal {
    fn transform(&mut self, input: &[u8], output: &mut FilterOutput<'_>) -> Result<(), BoxError> {
        if input.is_empty() {
            return Ok(());
        }
        let segment_count = input.len().div_ceil(PLAIN_SEGMENT);
        let total = LENGTH + self.0.header_len() + input.len() + segment_count * TAG;
        let length = (total as u64).to_be_bytes();
        let mut random = vec![0; self.0.header_len() - 1];
        fill_random(&mut random)?;
        let (salt, nonce_prefix) = random.split_at(self.0.0.len());
        let mut cipher = MessageCipher {
            key: self.0.message_key(length, salt)?,
            nonce_prefix: nonce_prefix.try_into().map_err(|_| AuthError::Crypto("AES-GCM"))?,
            next_segment: 0,
        };
        output.extend_from_slice(&length);
        output.extend_from_slice(&[self.0.header_len() as u8]);
        output.extend_from_slice(&random);
        let mut segments = input.chunks(PLAIN_SEGMENT).peekable();
        while let Some(segment) = segments.next() {
            let nonce = cipher.next_nonce(segments.peek().is_none())?;
            output.append(segment.len() + TAG, |buffer| {
                let (sealed, tag) = buffer.split_at_mut(segment.len());
                let key = &cipher.key;
                key.seal_out_of_place_scatter(nonce, Aad::empty(), segment, sealed, &[], tag)
                    .map_err(|_| AuthError::Crypto("AES-GCM"))?;
                Ok::<_, AuthError>(buffer.len())
            })?;
        }
        Ok(())
    }
}

/// Decrypts one direction; the input may be cut anywhere.
///
/// Each segment is decrypted and passed on as soon as it is complete and its tag is verified.
pub struct GcmOpen {
    key: GcmKey,
    state: GcmOpenState,
    /// The received bytes of an incomplete header or segment.
    partial: Vec<u8>,
}

enum GcmOpenState {
    Header,
    /// Segments follow, of this many bytes in all.
    Segments(MessageCipher, u64),
}

impl GcmOpen {
    /// Creates the filter with a session key of 16 or 32 bytes.
    ///
    /// # Errors
    /// [`AuthError::Crypto`] if the key has another length.
    pub fn new(key: &[u8]) -> Result<Self, AuthError> {
        Ok(Self { key: GcmKey::new(key)?, state: GcmOpenState::Header, partial: Vec::new() })
    }

    /// Returns the length of the next part of the message.
    fn next_part_len(&self) -> usize {
        match &self.state {
            // The length is checked before the rest of the header is awaited.
            GcmOpenState::Header if self.partial.len() < LENGTH => LENGTH,
            GcmOpenState::Header => LENGTH + self.key.header_len(),
            GcmOpenState::Segments(_, remaining) => {
                (*remaining).min(SEALED_SEGMENT as u64) as usize
            }
        }
    }

    /// Processes a complete header or segment.
    fn process_part(
        &mut self,
        part: &[u8],
        output: &mut FilterOutput<'_>,
    ) -> Result<(), AuthError> {
        self.state = match &mut self.state {
            GcmOpenState::Header => self.parse_header(part)?,
            GcmOpenState::Segments(cipher, remaining) => {
                let rest = *remaining - part.len() as u64;
                let nonce = cipher.next_nonce(rest == 0)?;
                let (sealed, tag) = part.split_at(part.len().saturating_sub(TAG));
                output.append(sealed.len(), |buffer| {
                    cipher
                        .key
                        .open_separate_gather(nonce, Aad::empty(), sealed, tag, buffer)
                        .map_err(|_| {
                            AuthError::VerificationFailed("a segment has a wrong AES-GCM tag")
                        })?;
                    Ok(sealed.len())
                })?;
                if rest > 0 {
                    *remaining = rest;
                    return Ok(());
                }
                GcmOpenState::Header
            }
        };
        Ok(())
    }

    fn parse_header(&self, header: &[u8]) -> Result<GcmOpenState, AuthError> {
        let malformed = |text: &str| AuthError::Malformed(text.to_owned());
        let (length, header) = header
            .split_first_chunk::<LENGTH>()
            .ok_or_else(|| malformed("an AES-GCM message has no length"))?;
        let remaining = self.segments_len(*length)?;
        let (header_len, header) = header
            .split_first()
            .ok_or_else(|| malformed("an AES-GCM message has no header length"))?;
        if usize::from(*header_len) != self.key.header_len() {
            return Err(AuthError::Malformed(format!(
                "the header of an AES-GCM message has {header_len} bytes, expected were {}",
                self.key.header_len()
            )));
        }
        let (salt, nonce_prefix) = header
            .split_at_checked(self.key.0.len())
            .ok_or_else(|| malformed("an AES-GCM message has no salt"))?;
        let nonce_prefix = nonce_prefix
            .try_into()
            .map_err(|_| malformed("an AES-GCM message has no nonce prefix"))?;
        if remaining == 0 {
            return Ok(GcmOpenState::Header);
        }
        let key = self.key.message_key(*length, salt)?;
        let cipher = MessageCipher { key, nonce_prefix, next_segment: 0 };
        Ok(GcmOpenState::Segments(cipher, remaining))
    }

    /// Returns the length of the segments of a message with this length.
    fn segments_len(&self, length: [u8; LENGTH]) -> Result<u64, AuthError> {
        let total = i64::from_be_bytes(length);
        let header = (LENGTH + self.key.header_len()) as u64;
        let segments = u64::try_from(total).ok().and_then(|total| total.checked_sub(header));
        segments
            .filter(|segments| {
                let last = segments % SEALED_SEGMENT as u64;
                last == 0 || last > TAG as u64
            })
            .ok_or_else(|| {
                AuthError::Malformed(format!("Invalid expected ciphertext length: {total}"))
            })
    }
}

impl ByteFilter for GcmOpen {
    fn transform(
        &mut self,
        mut input: &[u8],
        output: &mut FilterOutput<'_>,
    ) -> Result<(), BoxError> {
        loop {
            let part_len = self.next_part_len();
            // Complete segments are decrypted without a copy into `partial`.
            if self.partial.is_empty() && input.len() >= part_len && part_len > LENGTH {
                let (part, rest) = input.split_at(part_len);
                input = rest;
                self.process_part(part, output)?;
                continue;
            }
            let count = (part_len - self.partial.len()).min(input.len());
            self.partial.extend_from_slice(&input[..count]);
            input = &input[count..];
            if self.partial.len() < part_len {
                return Ok(());
            }
            if part_len == LENGTH {
                let length = self.partial.first_chunk().copied().unwrap_or_default();
                self.segments_len(length)?;
                continue;
            }
            // `take` frees the buffer, so that an idle connection holds no memory.
            let part = std::mem::take(&mut self.partial);
            self.process_part(&part, output)?;
        }
    }
}

impl std::fmt::Debug for GcmSeal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GcmSeal(..)")
    }
}

impl std::fmt::Debug for GcmOpen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GcmOpen").field("partial", &self.partial.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "gcm_tests.rs"]
mod tests;
