//! The Java-compatible field formats: Spark's `EncodersSuite` (ENC rows).

use bytes::BufMut as _;
use network_common::protocol::{
    FieldReader, ProtocolError, put_bitmap, put_bitmap_array, put_byte_array, put_string,
    read_bitmaps,
};
use roaring::RoaringBitmap;

use super::samples::hex;

fn encoded(bitmap: &RoaringBitmap) -> Vec<u8> {
    let mut out = Vec::new();
    put_bitmap(bitmap, &mut out).expect("a vector grows");
    out
}

#[test]
fn enc_01_bitmap_is_unchanged_by_encoding_and_decoding() {
    let bitmap = RoaringBitmap::from_iter([1, 2, 3]);
    let mut bytes = encoded(&bitmap);
    bytes.push(0xee);
    let mut reader = FieldReader::new(&bytes);
    assert_eq!(reader.bitmap().expect("a bitmap"), bitmap);
    assert_eq!(reader.remaining(), 1, "the reader must advance by the bitmap only");
}

#[test]
fn enc_02_bitmap_encoding_fails_if_buffer_is_small() {
    let mut small = [0xaa; 4];
    let mut target = &mut small[..];
    let error = put_bitmap(&RoaringBitmap::from_iter([1, 2, 3]), &mut target)
        .expect_err("the buffer is too small");
    assert!(matches!(error, ProtocolError::Overflow { available: 4, .. }), "{error}");
    assert_eq!(target.remaining_mut(), 4);
    assert_eq!(small, [0xaa; 4], "nothing may be written");
}

#[test]
fn enc_02_bitmap_array_encoding_fails_if_buffer_is_small() {
    let mut small = [0; 6];
    let error = put_bitmap_array(&[RoaringBitmap::new()], &mut &mut small[..])
        .expect_err("the buffer is too small");
    assert!(matches!(error, ProtocolError::Overflow { .. }), "{error}");
    let error = put_bitmap_array(&[], &mut &mut small[..3]).expect_err("the count does not fit");
    assert!(matches!(error, ProtocolError::Overflow { needed: 4, available: 3, .. }), "{error}");
}

#[test]
fn enc_03_bitmap_arrays_are_unchanged_by_encoding_and_decoding() {
    let bitmaps = [
        RoaringBitmap::new(),
        RoaringBitmap::from_iter([1, 2, 3]),
        RoaringBitmap::from_iter(1..100),
        RoaringBitmap::from_iter([1, 70_000, u32::MAX]),
        RoaringBitmap::from_iter((0..200_000).step_by(3)),
    ];
    let mut bytes = Vec::new();
    put_bitmap_array(&bitmaps, &mut bytes).expect("a vector grows");
    assert_eq!(bytes[..4], [0, 0, 0, 5]);
    let mut reader = FieldReader::new(&bytes);
    assert_eq!(reader.bitmap_array().expect("five bitmaps"), bitmaps);
    assert_eq!(reader.remaining(), 0);
    assert_eq!(
        read_bitmaps(&bytes[4..].to_vec().into(), 5).expect("the same without a count"),
        bitmaps
    );
}

/// RoaringBitmap's portable format: one container with key 0. Runs are stored as runs, because
/// Spark calls `runOptimize` first.
#[test]
fn enc_03_bitmaps_use_portable_format() {
    let run = RoaringBitmap::from_iter(1..100);
    let bytes = hex("3b30 0000 01 0000 6200 0100 0100 6200");
    assert_eq!(encoded(&run), bytes);
    assert_eq!(FieldReader::new(&bytes).bitmap().expect("a run of 99"), run);

    let sparse = RoaringBitmap::from_iter([1, 5, 9]);
    let bytes = hex("3a300000 01000000 0000 0200 10000000 0100 0500 0900");
    assert_eq!(encoded(&sparse), bytes);
    assert_eq!(FieldReader::new(&bytes).bitmap().expect("three values"), sparse);

    assert_eq!(encoded(&RoaringBitmap::new()), hex("3a300000 00000000"));
}

#[test]
fn enc_03_bitmap_array_with_too_large_count_is_rejected() {
    // Two bitmaps need at least 16 bytes; 2^28 bitmaps exceed every input.
    for (count, bytes) in [(2, 15), (1 << 28, 100), (i32::MAX, 0), (-1, 100)] {
        let mut announced = Vec::new();
        announced.put_i32(count);
        announced.resize(4 + bytes, 0);
        let error = FieldReader::new(&announced).bitmap_array().expect_err("too many");
        assert!(
            matches!(error, ProtocolError::BadLength { length, .. } if length == count),
            "{error}"
        );
    }
}

#[test]
fn enc_03_invalid_bytes_are_no_bitmap() {
    for bytes in
        [&b""[..], b"\x3a\x30", b"abcdefgh", b"\x3a\x30\0\0\xff\xff\xff\xff", b"\x3b\x30\xff\xff"]
    {
        let error = FieldReader::new(bytes).bitmap().expect_err("no bitmap");
        assert!(matches!(error, ProtocolError::BadBitmap(_)), "{error}");
    }
}

#[test]
fn enc_04_byte_arrays_are_unchanged_by_encoding_and_decoding() {
    let mut bytes = Vec::new();
    put_byte_array(b"abcde", &mut bytes);
    put_byte_array(b"", &mut bytes);
    assert_eq!(bytes, b"\0\0\0\x05abcde\0\0\0\0");
    let mut reader = FieldReader::new(&bytes);
    assert_eq!(reader.byte_array("first").expect("five bytes"), b"abcde");
    assert_eq!(reader.byte_array("second").expect("no bytes"), b"");
    assert_eq!(reader.remaining(), 0);
}

/// A string is its length in bytes and UTF-8. Invalid UTF-8 is replaced, not rejected.
#[test]
fn enc_04_strings_are_unchanged_by_encoding_and_decoding() {
    let mut bytes = Vec::new();
    put_string("für 🦀", &mut bytes);
    assert_eq!(bytes[..4], [0, 0, 0, 9]);
    assert_eq!(FieldReader::new(&bytes).string("text").expect("a string"), "für 🦀");
    let invalid = b"\0\0\0\x03a\xffb";
    assert_eq!(FieldReader::new(invalid).string("text").expect("replaced"), "a\u{fffd}b");
}

#[test]
fn enc_05_negative_length_of_byte_array_is_rejected() {
    for length in [-1, i32::MIN] {
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend_from_slice(&[0; 100]);
        let error = FieldReader::new(&bytes).byte_array("data").expect_err("negative");
        assert_eq!(error, ProtocolError::BadLength { field: "data", length, available: 100 });
        assert!(FieldReader::new(&bytes).string("text").is_err());
    }
}

/// `tests/memory.rs` checks that nothing is allocated.
#[test]
fn enc_06_length_of_byte_array_over_remaining_bytes_is_rejected() {
    for length in [6, 1000, i32::MAX] {
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend_from_slice(b"abcde");
        let error = FieldReader::new(&bytes).byte_array("data").expect_err("too long");
        assert_eq!(error, ProtocolError::BadLength { field: "data", length, available: 5 });
        assert!(FieldReader::new(&bytes).string("text").is_err());
    }
}

#[test]
fn wire_3_integers_are_big_endian_and_checked() {
    let mut reader = FieldReader::new(b"\xff\x80\0\0\x01\x7f\xff\xff\xff\xff\xff\xff\xfe\x01");
    assert_eq!(reader.byte("byte"), Ok(-1));
    assert_eq!(reader.int("int"), Ok(i32::MIN + 1));
    assert_eq!(reader.long("long"), Ok(i64::MAX - 1));
    let truncated = |needed| ProtocolError::Truncated { field: "more", needed, available: 1 };
    assert_eq!(reader.int("more"), Err(truncated(4)));
    assert_eq!(reader.long("more"), Err(truncated(8)));
    assert_eq!(reader.byte("last"), Ok(1), "a failed read must consume nothing");
    assert_eq!(
        reader.byte("none"),
        Err(ProtocolError::Truncated { field: "none", needed: 1, available: 0 })
    );
}
