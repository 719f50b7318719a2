//! The Java-compatible field formats: Spark's `EncodersSuite` (rows `enc_01` to `enc_06`).

use network_common::protocol::{FieldReader, ProtocolError, put_byte_array, put_string};

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
