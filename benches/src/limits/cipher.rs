//! Ciphers alone: what one core seals and opens again.

use std::time::Instant;

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{AES_256, EncryptionContext, StreamingEncryptingKey, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use bench_protocol::{Job, Sample};

use crate::load::{Client, Pace};

/// Seals a body and opens it again, in place and piece by piece, so that each piece is still in the
/// core's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "a bench")]
pub enum Cipher {
    /// AES-256-CTR, by 32 KiB.
    Ctr,
    /// AES-128-GCM, by 32 KiB.
    Gcm,
    /// AES-256-GCM, by 16 KiB: TLS.
    Tls,
}

/// What makes and undoes one piece.
type Pass = Box<dyn FnMut(&mut [u8]) -> anyhow::Result<()> + Send>;

impl Client for Cipher {
    async fn run(&mut self, job: Job) -> anyhow::Result<Sample> {
        let (mut pass, piece) = match self {
            Self::Ctr => (ctr()?, 32 << 10),
            Self::Gcm => (gcm(&AES_128_GCM)?, 32 << 10),
            Self::Tls => (gcm(&AES_256_GCM)?, 16 << 10),
        };
        let mut body = vec![7; job.bytes];
        let mut pace = Pace::new(&job);
        let begun = Instant::now();
        while let Some(started) = pace.begin() {
            body.chunks_mut(piece).try_for_each(&mut pass)?;
            pace.end(started)?;
        }
        Ok(pace.sample(begun.elapsed()))
    }
}

fn ctr() -> anyhow::Result<Pass> {
    let stream = || {
        let key = UnboundCipherKey::new(&AES_256, &[1; 32])?;
        StreamingEncryptingKey::less_safe_ctr(
            key,
            EncryptionContext::Iv128(FixedLength::from([2; 16])),
        )
    };
    let (mut seal, mut open) = (stream()?, stream()?);
    let (mut sealed, mut opened) = (Vec::new(), Vec::new());
    Ok(Box::new(move |piece| {
        // The library wants room for a block more than it fills.
        sealed.resize(piece.len() + 16, 0);
        opened.resize(piece.len() + 16, 0);
        let length = seal.update(piece, &mut sealed)?.written().len();
        open.update(&sealed[..length], &mut opened)?;
        Ok(())
    }))
}

fn gcm(algorithm: &'static Algorithm) -> anyhow::Result<Pass> {
    let key = LessSafeKey::new(UnboundKey::new(algorithm, &vec![1; algorithm.key_len()])?);
    let mut sealed = Vec::new();
    Ok(Box::new(move |piece| {
        sealed.clear();
        sealed.extend_from_slice(piece);
        key.seal_in_place_append_tag(nonce(), Aad::empty(), &mut sealed)?;
        key.open_in_place(nonce(), Aad::empty(), &mut sealed)?;
        Ok(())
    }))
}

/// Used over and over: nothing here is a secret.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([3; 12])
}
