//! The byte formats of the application protocol that client and server share.

use sha2::{Digest, Sha256};

/// Splits a request into its verb, including the colon if there is one, and its argument.
pub(crate) fn split_verb(request: &[u8]) -> (&[u8], &[u8]) {
    let end =
        request.iter().position(|byte| *byte == b':').map_or(request.len(), |colon| colon + 1);
    request.split_at(end)
}

/// Returns the first `size` bytes of memory chunk `chunk`, as `interop/README.md` defines them.
pub(crate) fn pattern(chunk: usize, size: usize) -> Vec<u8> {
    (0..size).map(|j| ((chunk * 131 + j * 7 + 13) % 251) as u8).collect()
}

/// Returns the response to an upload whose meta is `digest`: its SHA-256 in hex and its length.
pub(crate) fn digest_response(digest: Sha256, length: u64) -> String {
    use std::fmt::Write as _;

    let mut text = String::new();
    for byte in digest.finalize() {
        // A write to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    format!("{text} {length}")
}

/// Returns the response to an upload of `bytes` whose meta is `digest`.
pub(crate) fn digest_response_for(bytes: &[u8]) -> String {
    digest_response(Sha256::new_with_prefix(bytes), bytes.len() as u64)
}
