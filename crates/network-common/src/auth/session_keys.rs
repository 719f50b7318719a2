//! Session keys of a handshake and the filters made from them; AES-CTR (auth 3.4 and 4).

use std::fmt;

use aws_lc_rs::cipher::{
    AES_128, AES_256, EncryptionContext, StreamingEncryptingKey, UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use zeroize::Zeroizing;

use super::AuthError;
use super::gcm::{GcmOpen, GcmSeal};
use crate::conf::CipherName;
use crate::error::BoxError;
use crate::session::{ByteFilter, FilterOutput, FilterPair};

/// What a handshake yields, named as the client sees it (auth 3.4).
pub(super) struct SessionKeys {
    pub(super) key: Zeroizing<Vec<u8>>,
    pub(super) input_iv: [u8; 16],
    pub(super) output_iv: [u8; 16],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

impl SessionKeys {
    pub(super) fn filters(&self, cipher: CipherName, side: Side) -> Result<FilterPair, AuthError> {
        let (seal_iv, open_iv) = match side {
            Side::Client => (self.output_iv, self.input_iv),
            Side::Server => (self.input_iv, self.output_iv),
        };
        Ok(match cipher {
            CipherName::AesCtr => FilterPair {
                seal_filter: Box::new(Ctr::new(&self.key, seal_iv)?),
                open_filter: Box::new(Ctr::new(&self.key, open_iv)?),
            },
            CipherName::AesGcm => FilterPair {
                seal_filter: Box::new(GcmSeal::new(&self.key)?),
                open_filter: Box::new(GcmOpen::new(&self.key)?),
            },
        })
    }
}

impl fmt::Debug for SessionKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKeys(..)")
    }
}

/// Transformed at once: stays in the cache, and mostly fits whole into the place of a body.
const PIECE: usize = 32 << 10;
const BLOCK: usize = 16;

/// Seals and opens: in this mode they are the same.
pub(super) struct Ctr(StreamingEncryptingKey);

impl Ctr {
    pub(super) fn new(key: &[u8], iv: [u8; BLOCK]) -> Result<Self, AuthError> {
        let algorithm = if key.len() == 32 { &AES_256 } else { &AES_128 };
        UnboundCipherKey::new(algorithm, key)
            .and_then(|key| {
                StreamingEncryptingKey::less_safe_ctr(
                    key,
                    EncryptionContext::Iv128(FixedLength::from(iv)),
                )
            })
            .map(Self)
            .map_err(|_| AuthError::Crypto("AES-CTR"))
    }
}

impl ByteFilter for Ctr {
    fn transform(&mut self, input: &[u8], output: &mut FilterOutput<'_>) -> Result<(), BoxError> {
        for piece in input.chunks(PIECE) {
            // The library wants room for a block more than it fills.
            output.append(piece.len() + BLOCK, |room| {
                let update =
                    self.0.update(piece, room).map_err(|_| AuthError::Crypto("AES-CTR"))?;
                Ok::<_, AuthError>(update.written().len())
            })?;
        }
        Ok(())
    }
}
