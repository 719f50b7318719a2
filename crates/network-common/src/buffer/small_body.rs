//! [`copy_to_bytes`]: small bodies with bytes and reference count in one allocation.

use bytes::Bytes;

/// Copies `body`, with a single allocation up to 512 bytes.
///
/// The first clone or slice of [`Bytes`] made from a vector costs a second allocation.
pub(crate) fn copy_to_bytes(body: &[u8]) -> Bytes {
    match body.len() {
        0 => Bytes::new(),
        1..=64 => SmallBody::<64>::copy_from(body),
        65..=128 => SmallBody::<128>::copy_from(body),
        129..=256 => SmallBody::<256>::copy_from(body),
        257..=512 => SmallBody::<512>::copy_from(body),
        _ => Bytes::copy_from_slice(body),
    }
}

struct SmallBody<const N: usize> {
    length: usize,
    bytes: [u8; N],
}

impl<const N: usize> SmallBody<N> {
    fn copy_from(body: &[u8]) -> Bytes {
        let mut small = Self { length: body.len(), bytes: [0; N] };
        small.bytes[..body.len()].copy_from_slice(body);
        Bytes::from_owner(small)
    }
}

impl<const N: usize> AsRef<[u8]> for SmallBody<N> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_equals_the_original_for_every_length() {
        let body: Vec<u8> = (0..=255).cycle().take(600).collect();
        for length in 0..body.len() {
            let copy = copy_to_bytes(&body[..length]);
            assert_eq!(copy, body[..length]);
            assert_eq!(copy.slice(length / 2..), body[length / 2..length]);
        }
    }
}
