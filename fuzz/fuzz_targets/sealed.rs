//! Feeds a sealed AES-GCM message and then arbitrary pieces to `GcmOpen`.
//!
//! Properties: it does not panic, and it opens only the genuine message.
//!
//! Input: the length of the key (16 or 32 bytes), the plaintext of the message, and the pieces.

#![no_main]

use libfuzzer_sys::fuzz_target;
use network_common::ByteFilter;
use network_common::auth::testing::{GcmOpen, GcmSeal};

fuzz_target!(|input: (bool, Vec<u8>, Vec<Vec<u8>>)| {
    let (has_long_key, genuine, pieces) = input;
    let key = if has_long_key { vec![7; 32] } else { vec![7; 16] };
    let mut seal = GcmSeal::new(&key).expect("the key length is valid");
    let sealed = seal.transform_to_vec(&genuine).expect("the message can be sealed");
    let mut filter = GcmOpen::new(&key).expect("the key length is valid");
    let mut plain = Vec::new();
    let all = std::iter::once(&sealed).chain(&pieces);
    // The pieces after the genuine message are forged, so an error is expected.
    let _ = all
        .into_iter()
        .try_for_each(|piece| filter.transform_to_vec(piece).map(|opened| plain.extend(opened)));
    assert_eq!(plain, genuine);
});
