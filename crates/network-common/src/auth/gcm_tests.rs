//! AES-GCM messages: sizes, segments, split input and damaged bytes (rows `gcm_01` to `gcm_13`).

use super::*;
use crate::auth::test_support::one_bit_flips;

fn sealed(key: &[u8], plain: &[u8]) -> Vec<u8> {
    GcmSeal::new(key).unwrap().transform_to_vec(plain).unwrap()
}

fn opened<'a>(key: &[u8], pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<u8>, BoxError> {
    let mut open = GcmOpen::new(key)?;
    let pieces: Result<Vec<_>, _> =
        pieces.into_iter().map(|piece| open.transform_to_vec(piece)).collect();
    Ok(pieces?.concat())
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 7 + index / 251) as u8).collect()
}

const KEY: [u8; 16] = [7; 16];
const LONG_KEY: [u8; 32] = [9; 32];

#[test]
fn gcm_10_sizes_match_spark_at_segment_boundaries() {
    // Sizes as in Spark, with keys of 32 and 16 bytes.
    for (plain, long, short) in [
        (1, 65, 49),
        (5, 69, 53),
        (32_752, 32_816, 32_800),
        (32_753, 32_833, 32_817),
        (40_000, 40_080, 40_064),
        (65_504, 65_584, 65_568),
    ] {
        assert_eq!(sealed(&LONG_KEY, &pattern(plain)).len(), long, "{plain}");
        assert_eq!(sealed(&KEY, &pattern(plain)).len(), short, "{plain}");
    }
    for plain in [1, 32_729, 32_740, 32_752, 32_753, 65_504, 65_505, 2 << 20] {
        for key in [&KEY[..], &LONG_KEY] {
            let message = sealed(key, &pattern(plain));
            assert_eq!(message[..8], (message.len() as u64).to_be_bytes());
            assert!(opened(key, [&message[..]]).unwrap() == pattern(plain), "{plain}");
        }
    }
}

#[test]
fn gcm_01_message_is_unchanged_by_sealing_and_opening() {
    for key in [&KEY[..], &LONG_KEY] {
        let plain = pattern(PLAIN_SEGMENT * 3 / 2);
        assert!(opened(key, [&sealed(key, &plain)[..]]).unwrap() == plain);
    }
}

#[test]
fn gcm_03_message_is_opened_from_pieces_of_any_size() {
    let plain = pattern(PLAIN_SEGMENT * 3 / 2);
    let message = sealed(&KEY, &plain);
    for size in [1, 7, 8, 24, 31, 32, 33, 1000, 32_767, 32_768, 32_769] {
        assert!(opened(&KEY, message.chunks(size)).unwrap() == plain, "pieces of {size}");
    }
    for cut in [32_799, 32_800, 32_801, message.len() - 1] {
        assert!(opened(&KEY, [&message[..cut], &message[cut..]]).unwrap() == plain, "cut at {cut}");
    }
}

/// Returns several messages of one connection, and their content.
fn several() -> (Vec<u8>, Vec<u8>) {
    let mut seal = GcmSeal::new(&KEY).unwrap();
    let (mut stream, mut plain) = (Vec::new(), Vec::new());
    for length in [1, 100, PLAIN_SEGMENT, 5, PLAIN_SEGMENT + 1, 1] {
        stream.extend(seal.transform_to_vec(&pattern(length)).unwrap());
        plain.extend(pattern(length));
    }
    (stream, plain)
}

#[test]
fn gcm_04_several_messages_are_opened_from_small_pieces() {
    let (stream, plain) = several();
    assert!(opened(&KEY, stream.chunks(50)).unwrap() == plain);
}

#[test]
fn gcm_05_several_messages_are_opened_from_one_piece() {
    let (stream, plain) = several();
    assert!(opened(&KEY, [&stream[..]]).unwrap() == plain);
}

/// Checks that bytes is opened before `cut`, and everything with the rest.
fn assert_nothing_before(cut: usize) {
    let message = sealed(&KEY, &pattern(1000));
    assert_eq!(opened(&KEY, [&message[..cut]]).unwrap(), b"", "cut at {cut}");
    assert!(
        opened(&KEY, [&message[..cut], &message[cut..]]).unwrap() == pattern(1000),
        "cut at {cut}"
    );
}

#[test]
fn gcm_06_message_is_opened_when_header_is_split() {
    (LENGTH..=LENGTH + 24).for_each(assert_nothing_before);
}

#[test]
fn gcm_07_message_is_opened_when_length_is_split() {
    (0..LENGTH).for_each(assert_nothing_before);
}

#[test]
fn gcm_11_all_segments_of_complete_message_are_opened_at_once() {
    let plain = pattern(5 * PLAIN_SEGMENT);
    let message = sealed(&KEY, &plain);
    let mut open = GcmOpen::new(&KEY).unwrap();
    let fired = open.transform_to_vec(&message).unwrap();
    assert!(fired == plain, "one call must yield all segments");
    assert_eq!(open.next_part_len(), LENGTH, "the filter must expect the next message");
}

/// Authenticated segments are passed on before a large message is complete, so that the message
/// need not fit into memory.
#[test]
fn gcm_12_large_message_is_opened_segment_by_segment() {
    let plain = pattern(2 << 20);
    let message = sealed(&KEY, &plain);
    let (mut open, mut out, mut pieces) = (GcmOpen::new(&KEY).unwrap(), Vec::new(), 0);
    for read in message.chunks(64 << 10) {
        let before = out.len();
        out.extend(open.transform_to_vec(read).unwrap());
        assert!(out[before..] == plain[before..out.len()]);
        assert!(open.partial.len() < SEALED_SEGMENT);
        pieces += usize::from(out.len() > before);
    }
    assert!(out == plain && pieces >= 2);
}

/// Spark sends such a message for an empty write.
#[test]
fn empty_message_is_only_a_header() {
    let empty = |key: &[u8], total: u64| {
        let header = total as u8 - 8;
        [&total.to_be_bytes()[..], &[header], &vec![1; key.len() + 7]].concat()
    };
    for (key, total) in [(&KEY[..], 32), (&LONG_KEY, 48)] {
        let stream = [empty(key, total), sealed(key, b"x"), empty(key, total)].concat();
        assert_eq!(opened(key, [&stream[..]]).unwrap(), b"x");
        assert_eq!(opened(key, stream.chunks(1)).unwrap(), b"x");
    }
}

#[test]
fn gcm_08_message_over_max_int_waits_for_more_bytes() {
    let mut message = sealed(&KEY, b"hello");
    message[..8].copy_from_slice(&(32 + (1_u64 << 20) * 32_768).to_be_bytes());
    // There is bytes to open yet, and the length causes no allocation.
    assert_eq!(opened(&KEY, [&message[..]]).unwrap(), b"");
}

#[test]
fn gcm_09_invalid_message_length_is_rejected() {
    let message = sealed(&KEY, b"hello");
    for length in [0, 1, 8, 31, 33, 48, -1, i64::MIN] {
        let mut lying = message.clone();
        lying[..8].copy_from_slice(&i64::to_be_bytes(length));
        // The length alone is enough for the error.
        let error = opened(&KEY, [&lying[..8]]).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("malformed message: Invalid expected ciphertext length: {length}")
        );
    }
}

#[test]
fn gcm_13_corrupt_message_is_rejected() {
    let plain = pattern(40);
    let message = sealed(&KEY, &plain);
    for damaged in one_bit_flips(&message) {
        match opened(&KEY, [&damaged[..]]) {
            // With a greater length the filter waits for more bytes.
            Ok(bytes) => assert_eq!(bytes, b""),
            Err(error) => assert!(error.is::<AuthError>()),
        }
    }
    for end in 0..message.len() {
        assert_eq!(opened(&KEY, [&message[..end]]).unwrap(), b"", "cut at {end}");
    }
    assert!(opened(&[8; 16], [&message[..]]).is_err(), "another key");
    assert!(opened(&LONG_KEY, [&message[..]]).is_err(), "a longer key");
}

/// Segments that are swapped, omitted, or marked as the last one too early.
#[test]
fn segments_cannot_be_moved_or_omitted() {
    let message = sealed(&KEY, &pattern(3 * PLAIN_SEGMENT));
    let (head, body) = message.split_at(32);
    let segments: Vec<&[u8]> = body.chunks(SEALED_SEGMENT).collect();
    for order in [[1, 0, 2], [0, 2, 1], [0, 0, 2], [2, 1, 0]] {
        let shuffled = order.map(|index| segments[index]).concat();
        assert!(opened(&KEY, [head, &shuffled]).is_err());
    }
    let mut shorter = head.to_vec();
    shorter[..8].copy_from_slice(&((32 + 2 * SEALED_SEGMENT) as u64).to_be_bytes());
    assert!(opened(&KEY, [&shorter[..], segments[0], segments[1]]).is_err());
}
