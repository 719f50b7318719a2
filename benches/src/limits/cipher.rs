//! The limit of secured connections: the throughput of a cipher on one core.

use std::time::Instant;

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{AES_256, EncryptionContext, StreamingEncryptingKey, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use bench_protocol::{Job, Sample};

use crate::load::{Client, Meter};

/// Seals and opens a body piece by piece, so that each piece is still in the core's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "the crate is not published")]
pub enum Cipher {
    /// AES-256-CTR in pieces of 32 KiB.
    Ctr,
    /// AES-128-GCM in pieces of 32 KiB.
    Gcm,
    /// AES-256-GCM in pieces of 16 KiB, the record size of TLS.
    Tls,
}

/// Seals and opens one piece.
type RoundTrip = Box<dyn FnMut(&mut [u8]) -> anyhow::Result<()> + Send>;

impl Client for Cipher {
    async fn run(&mut self, job: Job) -> anyhow::Result<Sample> {
        let (mut round_trip, piece) = match self {
            Self::Ctr => (ctr()?, 32 << 10),
            Self::Gcm => (gcm(&AES_128_GCM)?, 32 << 10),
            Self::Tls => (gcm(&AES_256_GCM)?, 16 << 10),
        };
        let mut body = vec![7; job.bytes];
        let mut meter = Meter::new(&job);
        let start = Instant::now();
        while let Some(operation) = meter.begin() {
            body.chunks_mut(piece).try_for_each(&mut round_trip)?;
            meter.end(operation)?;
        }
        Ok(meter.sample(start.elapsed()))
    }
}

fn ctr() -> anyhow::Result<RoundTrip> {
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
        // `update` requires one block more capacity than it fills.
        sealed.resize(piece.len() + 16, 0);
        opened.resize(piece.len() + 16, 0);
        let length = seal.update(piece, &mut sealed)?.written().len();
        open.update(&sealed[..length], &mut opened)?;
        Ok(())
    }))
}

fn gcm(algorithm: &'static Algorithm) -> anyhow::Result<RoundTrip> {
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

/// Returns a constant nonce, as the sealed data is not secret.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([3; 12])
}
