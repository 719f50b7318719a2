//! Random bytes and key derivation for all protocols of this folder.

use aws_lc_rs::hkdf::{KeyType, Prk};
use aws_lc_rs::rand;

use super::AuthError;

/// Fills `bytes` from the system's random number generator.
pub(super) fn fill_random(bytes: &mut [u8]) -> Result<(), AuthError> {
    rand::fill(bytes).map_err(|_| AuthError::Crypto("system random number generator"))
}

/// Fills `out` with the output of HKDF's expand step (RFC 5869, section 2.3).
pub(super) fn hkdf_expand(prk: &Prk, info: &[u8], out: &mut [u8]) -> Result<(), AuthError> {
    struct Length(usize);
    impl KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    prk.expand(&[info], Length(out.len()))
        .and_then(|okm| okm.fill(out))
        .map_err(|_| AuthError::Crypto("HKDF"))
}
