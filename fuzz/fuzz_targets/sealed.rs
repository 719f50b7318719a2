//! Any bytes as sealed messages of AES-GCM, in any pieces: no panic, and nothing that was not
//! sealed is opened.

#![no_main]

use libfuzzer_sys::fuzz_target;
use network_common::ByteFilter;
use network_common::auth::{GcmOpen, GcmSeal};

fuzz_target!(|input: (bool, Vec<u8>, Vec<Vec<u8>>)| {
    let (long, genuine, pieces) = input;
    let key = if long { vec![7; 32] } else { vec![7; 16] };
    let sealed =
        GcmSeal::new(&key).expect("a length of keys").transform_to_vec(&genuine).expect("sealed");
    let mut filter = GcmOpen::new(&key).expect("a length of keys");
    let mut plain = Vec::new();
    // A real message first: forgeries behind it add nothing.
    let all = std::iter::once(&sealed).chain(&pieces);
    let _ = all
        .into_iter()
        .try_for_each(|piece| filter.transform_to_vec(piece).map(|opened| plain.extend(opened)));
    assert_eq!(plain, genuine);
});
