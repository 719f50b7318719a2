//! AES/CTR/NoPadding: one endless key stream per direction, no framing and no integrity (auth 4).

use aws_lc_rs::cipher::{
    AES_128, AES_256, EncryptionContext, StreamingEncryptingKey, UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;

use crate::auth::AuthError;
use crate::error::BoxError;
use crate::session::{ByteFilter, FilterOutput};

/// Transformed at once: stays in the cache, and mostly fits whole into the place of a body.
const PIECE: usize = 32 << 10;
const BLOCK: usize = 16;

/// Seals and opens: in this mode they are the same.
pub(in crate::auth) struct Ctr(StreamingEncryptingKey);

impl Ctr {
    pub(in crate::auth) fn new(key: &[u8], iv: [u8; BLOCK]) -> Result<Self, AuthError> {
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
