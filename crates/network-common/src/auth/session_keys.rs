//! The session keys of a handshake, and the byte filters that encrypt a connection with them.
//!
//! Both auth engines produce [`SessionKeys`]. AES-CTR is implemented here, AES-GCM in `gcm`.

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

/// The result of an auth engine's handshake.
pub(super) struct SessionKeys {
    pub(super) key: Zeroizing<Vec<u8>>,
    /// The IV of the bytes that the client receives.
    pub(super) input_iv: [u8; 16],
    /// The IV of the bytes that the client sends.
    pub(super) output_iv: [u8; 16],
}

/// The role of this process in a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

impl SessionKeys {
    /// Creates the filters of one side; AES-GCM uses the key without the IVs.
    pub(super) fn filters(&self, cipher: CipherName, side: Side) -> Result<FilterPair, AuthError> {
        let (seal_iv, open_iv) = match side {
            Side::Client => (self.output_iv, self.input_iv),
            Side::Server => (self.input_iv, self.output_iv),
        };
        Ok(match cipher {
            CipherName::AesCtr => FilterPair {
                seal_filter: Box::new(CtrFilter::new(&self.key, seal_iv)?),
                open_filter: Box::new(CtrFilter::new(&self.key, open_iv)?),
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

/// The number of bytes encrypted per call.
///
/// A piece stays in the CPU cache, and usually fits into the remaining part of an output buffer.
const PIECE: usize = 32 << 10;
const BLOCK: usize = 16;

/// The AES-CTR filter of one direction; encryption and decryption are the same operation.
pub(super) struct CtrFilter(StreamingEncryptingKey);

impl CtrFilter {
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

impl ByteFilter for CtrFilter {
    fn transform(&mut self, input: &[u8], output: &mut FilterOutput<'_>) -> Result<(), BoxError> {
        for piece in input.chunks(PIECE) {
            // `update` requires a buffer that is one block longer than its output.
            output.append(piece.len() + BLOCK, |buffer| {
                let update =
                    self.0.update(piece, buffer).map_err(|_| AuthError::Crypto("AES-CTR"))?;
                Ok::<_, AuthError>(update.written().len())
            })?;
        }
        Ok(())
    }
}
