//! AES/GCM/NoPadding: every write becomes a message of authenticated segments (auth 5).

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use zeroize::Zeroizing;

use super::AuthError;
use crate::auth::engine::{expand, random};
use crate::error::BoxError;
use crate::session::{ByteFilter, FilterOutput};

const LENGTH: usize = 8;
const NONCE_PREFIX: usize = 7;
const TAG: usize = 16;
/// A full segment on the wire, and what it holds.
const SEALED_SEGMENT: usize = 32 << 10;
const PLAIN_SEGMENT: usize = SEALED_SEGMENT - TAG;

/// The session key, from which every message's own key is derived.
struct Gcm(Zeroizing<Vec<u8>>);

impl Gcm {
    fn new(key: &[u8]) -> Result<Self, AuthError> {
        if !matches!(key.len(), 16 | 32) {
            return Err(AuthError::Crypto("AES-GCM with a key of neither 16 nor 32 bytes"));
        }
        Ok(Self(Zeroizing::new(key.to_vec())))
    }

    /// Bytes between the length and the first segment: their own count, a salt as long as the key,
    /// the nonce's prefix.
    fn header(&self) -> usize {
        1 + self.0.len() + NONCE_PREFIX
    }

    /// The key of the message with this length and salt.
    fn message_key(&self, length: [u8; LENGTH], salt: &[u8]) -> Result<LessSafeKey, AuthError> {
        let mut key = Zeroizing::new(vec![0; self.0.len()]);
        expand(&Salt::new(HKDF_SHA256, salt).extract(&self.0), &length, &mut key)?;
        let algorithm = if key.len() == 32 { &AES_256_GCM } else { &AES_128_GCM };
        let key = UnboundKey::new(algorithm, &key).map_err(|_| AuthError::Crypto("AES-GCM"))?;
        Ok(LessSafeKey::new(key))
    }
}

/// Where a message's segments have got to.
struct Segments {
    key: LessSafeKey,
    prefix: [u8; NONCE_PREFIX],
    next: u32,
}

impl Segments {
    fn nonce(&mut self, last: bool) -> Result<Nonce, AuthError> {
        let mut nonce = [0; 12];
        nonce[..NONCE_PREFIX].copy_from_slice(&self.prefix);
        nonce[NONCE_PREFIX..11].copy_from_slice(&self.next.to_be_bytes());
        nonce[11] = u8::from(last);
        self.next =
            self.next.checked_add(1).ok_or(AuthError::Crypto("a message of 2^32 segments"))?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// Seals one direction: every call makes one message.
pub struct GcmSeal(Gcm);

impl GcmSeal {
    /// With a session key of 16 or 32 bytes.
    ///
    /// # Errors
    /// [`AuthError::Crypto`] for a key of another length.
    pub fn new(key: &[u8]) -> Result<Self, AuthError> {
        Gcm::new(key).map(Self)
    }
}

impl ByteFilter for GcmSeal {
    fn transform(&mut self, input: &[u8], output: &mut FilterOutput<'_>) -> Result<(), BoxError> {
        if input.is_empty() {
            return Ok(());
        }
        let segments = input.len().div_ceil(PLAIN_SEGMENT);
        let total = LENGTH + self.0.header() + input.len() + segments * TAG;
        let length = (total as u64).to_be_bytes();
        let mut random_part = vec![0; self.0.header() - 1];
        random(&mut random_part)?;
        let (salt, prefix) = random_part.split_at(self.0.0.len());
        let mut state = Segments {
            key: self.0.message_key(length, salt)?,
            prefix: prefix.try_into().map_err(|_| AuthError::Crypto("AES-GCM"))?,
            next: 0,
        };
        output.extend_from_slice(&length);
        output.extend_from_slice(&[self.0.header() as u8]);
        output.extend_from_slice(&random_part);
        let mut plain = input.chunks(PLAIN_SEGMENT).peekable();
        while let Some(segment) = plain.next() {
            let nonce = state.nonce(plain.peek().is_none())?;
            output.append(segment.len() + TAG, |room| {
                let (sealed, tag) = room.split_at_mut(segment.len());
                let key = &state.key;
                key.seal_out_of_place_scatter(nonce, Aad::empty(), segment, sealed, &[], tag)
                    .map_err(|_| AuthError::Crypto("sealing"))?;
                Ok::<_, AuthError>(room.len())
            })?;
        }
        Ok(())
    }
}

/// Opens one direction: messages may arrive in any pieces. Every segment is handed on as soon as it
/// has proved genuine.
pub struct GcmOpen {
    gcm: Gcm,
    state: GcmOpenState,
    /// The start of an unfinished header or segment.
    held: Vec<u8>,
}

enum GcmOpenState {
    Header,
    /// This many sealed bytes of the message are to come.
    Body(Segments, u64),
}

impl GcmOpen {
    /// With a session key of 16 or 32 bytes.
    ///
    /// # Errors
    /// [`AuthError::Crypto`] for a key of another length.
    pub fn new(key: &[u8]) -> Result<Self, AuthError> {
        Ok(Self { gcm: Gcm::new(key)?, state: GcmOpenState::Header, held: Vec::new() })
    }

    /// How many bytes the next step needs.
    fn needed(&self) -> usize {
        match &self.state {
            // The length alone tells whether it is worth to wait for more.
            GcmOpenState::Header if self.held.len() < LENGTH => LENGTH,
            GcmOpenState::Header => LENGTH + self.gcm.header(),
            GcmOpenState::Body(_, left) => (*left).min(SEALED_SEGMENT as u64) as usize,
        }
    }

    /// Takes the next part of a message, which is complete.
    fn step(&mut self, part: &[u8], output: &mut FilterOutput<'_>) -> Result<(), AuthError> {
        self.state = match &mut self.state {
            GcmOpenState::Header => self.begin(part)?,
            GcmOpenState::Body(segments, left) => {
                let rest = *left - part.len() as u64;
                let nonce = segments.nonce(rest == 0)?;
                let (sealed, tag) = part.split_at(part.len().saturating_sub(TAG));
                output.append(sealed.len(), |room| {
                    let opened =
                        segments.key.open_separate_gather(nonce, Aad::empty(), sealed, tag, room);
                    opened.map_err(|_| {
                        AuthError::VerificationFailed(
                            "a sealed segment has a wrong authentication tag",
                        )
                    })?;
                    Ok(sealed.len())
                })?;
                if rest > 0 {
                    *left = rest;
                    return Ok(());
                }
                GcmOpenState::Header
            }
        };
        Ok(())
    }

    fn begin(&self, head: &[u8]) -> Result<GcmOpenState, AuthError> {
        let damaged = |text: &str| AuthError::Malformed(text.to_owned());
        let (length, head) = head
            .split_first_chunk::<LENGTH>()
            .ok_or_else(|| damaged("no length of a sealed message"))?;
        let left = self.body_length(*length)?;
        let (count, head) =
            head.split_first().ok_or_else(|| damaged("no header of a sealed message"))?;
        if usize::from(*count) != self.gcm.header() {
            return Err(AuthError::Malformed(format!(
                "a sealed message's header of {count} bytes, where this key makes it {}",
                self.gcm.header()
            )));
        }
        let (salt, prefix) =
            head.split_at_checked(self.gcm.0.len()).ok_or_else(|| damaged("no salt"))?;
        let prefix = prefix.try_into().map_err(|_| damaged("no nonce"))?;
        if left == 0 {
            return Ok(GcmOpenState::Header);
        }
        let key = self.gcm.message_key(*length, salt)?;
        Ok(GcmOpenState::Body(Segments { key, prefix, next: 0 }, left))
    }

    /// The sealed bytes behind the header of a message with this length.
    fn body_length(&self, length: [u8; LENGTH]) -> Result<u64, AuthError> {
        let announced = i64::from_be_bytes(length);
        let head = (LENGTH + self.gcm.header()) as u64;
        let body = u64::try_from(announced).ok().and_then(|total| total.checked_sub(head));
        body.filter(|body| {
            let last = body % SEALED_SEGMENT as u64;
            last == 0 || last > TAG as u64
        })
        .ok_or_else(|| {
            AuthError::Malformed(format!("Invalid expected ciphertext length: {announced}"))
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
            let needed = self.needed();
            if self.held.is_empty() && input.len() >= needed && needed > LENGTH {
                let (part, rest) = input.split_at(needed);
                input = rest;
                self.step(part, output)?;
                continue;
            }
            let count = (needed - self.held.len()).min(input.len());
            self.held.extend_from_slice(&input[..count]);
            input = &input[count..];
            if self.held.len() < needed {
                return Ok(());
            }
            if needed == LENGTH {
                let length = self.held.first_chunk().copied().unwrap_or_default();
                self.body_length(length)?;
                continue;
            }
            // Given up, so that a quiet connection keeps no buffer.
            let part = std::mem::take(&mut self.held);
            self.step(&part, output)?;
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
        f.debug_struct("GcmOpen").field("held", &self.held.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "gcm_tests.rs"]
mod tests;
