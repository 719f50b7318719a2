//! The byte-level rules of the application protocol that both roles need.

use sha2::{Digest, Sha256};

/// A request's verb, with its colon if it has one, and its argument.
pub(crate) fn split_verb(request: &[u8]) -> (&[u8], &[u8]) {
    let end =
        request.iter().position(|byte| *byte == b':').map_or(request.len(), |colon| colon + 1);
    request.split_at(end)
}

/// Memory chunk `chunk` of `size` bytes.
pub(crate) fn pattern(chunk: usize, size: usize) -> Vec<u8> {
    (0..size).map(|j| ((chunk * 131 + j * 7 + 13) % 251) as u8).collect()
}

/// The answer to an upload with meta `digest`.
pub(crate) fn digest_answer(digest: Sha256, length: u64) -> String {
    use std::fmt::Write as _;

    let mut text = String::new();
    for byte in digest.finalize() {
        // Writing into a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    format!("{text} {length}")
}

/// The answer that an upload of `bytes` must get.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    digest_answer(Sha256::new_with_prefix(bytes), bytes.len() as u64)
}
