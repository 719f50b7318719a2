//! Bitmaps of merged shuffle blocks: rows `enc_01` to `enc_03`, `mbm_01` and `trh_02`.

// Helper functions outside of tests unwrap as well.
#![allow(clippy::unwrap_used)]

#[path = "protocol/decoding.rs"]
mod decoding;
mod support;

use std::io::Write as _;

use bytes::{BufMut, Bytes, BytesMut};
use decoding::messages;
use network_common::protocol::{
    FieldReader, Message, ProtocolError, put_bitmap, put_bitmap_array, read_bitmaps,
};
use network_common::{ErrorKind, ManagedBuffer, TransportError};
use proptest::collection::vec;
use proptest::prelude::*;
use roaring::RoaringBitmap;
use support::*;

fn assert_remote(error: &TransportError, part: &str) {
    assert_eq!(error.kind(), ErrorKind::Remote, "{error}");
    assert!(error.to_string().contains(part), "{error} does not contain {part}");
}

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
    let bytes = b"\x3b\x30\x00\x00\x01\x00\x00\x62\x00\x01\x00\x01\x00\x62\x00".to_vec();
    assert_eq!(encoded(&run), bytes);
    assert_eq!(FieldReader::new(&bytes).bitmap().expect("a run of 99"), run);

    let sparse = RoaringBitmap::from_iter([1, 5, 9]);
    let bytes =
        b"\x3a\x30\x00\x00\x01\x00\x00\x00\x00\x00\x02\x00\x10\x00\x00\x00\x01\x00\x05\x00\x09\x00"
            .to_vec();
    assert_eq!(encoded(&sparse), bytes);
    assert_eq!(FieldReader::new(&bytes).bitmap().expect("three values"), sparse);

    assert_eq!(encoded(&RoaringBitmap::new()), b"\x3a\x30\x00\x00\x00\x00\x00\x00".to_vec());
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

#[tokio::test]
async fn mbm_01_merged_block_meta_is_unchanged_by_encoding_and_decoding() {
    let chunks: [RoaringBitmap; 2] =
        [RoaringBitmap::from_iter([1, 2, 5]), RoaringBitmap::from_iter([3, 4, 7])];
    let mut encoded = Vec::new();
    for bitmap in &chunks {
        put_bitmap(bitmap, &mut encoded).expect("a vector grows");
    }
    let mut file = tempfile::NamedTempFile::new().expect("temporary file");
    file.write_all(&encoded).expect("written");
    let body =
        ManagedBuffer::file(file.path(), 0..encoded.len() as u64).read().await.expect("read");

    let message = Message::MergedBlockMetaSuccess { request_id: 22, num_chunks: 2, body };
    let frame = message.encode().expect("fits");
    let received = messages(&frame);
    let [Message::MergedBlockMetaSuccess { request_id: 22, num_chunks: 2, body }] = &received[..]
    else {
        panic!("{received:?}");
    };
    assert_eq!(read_bitmaps(body, 2).expect("two bitmaps"), chunks);
}

#[tokio::test]
async fn trh_02_merged_block_meta_request_returns_bitmaps_or_failure() {
    let bitmaps: Vec<RoaringBitmap> = vec![(1..4).collect(), (5..1000).step_by(2).collect()];
    let mut body = BytesMut::new().writer();
    bitmaps.iter().for_each(|bitmap| put_bitmap(bitmap, body.get_mut()).unwrap());
    let body = body.into_inner().freeze();
    let file = file_of(&body);
    let (path, size, memory) = (file.path().to_owned(), body.len() as u64, body.clone());
    let handler = Handler::new().on_meta(move |_, request, callback| {
        assert_eq!((&request.app_id[..], request.shuffle_merge_id), ("app1", 3));
        match (request.shuffle_id, request.reduce_id) {
            (-1, _) | (_, -1) => callback.fail("Failed to get meta"),
            (0, _) => callback.reply(2, memory.clone()),
            (1, _) => callback.reply(2, ManagedBuffer::file(&path, 0..size)),
            (2, _) => callback.reply(1, ManagedBuffer::file("/nowhere", 0..1)),
            (3, _) => drop(callback),
            _ => panic!("unknown shuffle id"),
        }
    });
    let pair = pair(handler).await;
    let ask = |shuffle_id, reduce_id| {
        within(pair.client.merged_block_meta("app1", shuffle_id, 3, reduce_id))
    };
    for shuffle_id in [0, 1] {
        let meta = ask(shuffle_id, 0).await.unwrap();
        assert_eq!((meta.num_chunks, &meta.body), (2, &body));
        assert_eq!(meta.bitmaps().unwrap(), bitmaps);
    }
    for (shuffle_id, reduce_id, text) in [
        (-1, 0, "Failed to get meta"),
        (0, -1, "Failed to get meta"),
        (2, 0, "/nowhere"),
        (3, 0, "without a response"),
        (4, 0, "panicked"),
    ] {
        assert_remote(&ask(shuffle_id, reduce_id).await.unwrap_err(), text);
    }
    pair.assert_alive().await;
    pair.assert_no_failures();
}

proptest! {
    #[test]
    fn enc_03_bitmaps_are_unchanged(
        ranges in vec(vec((any::<u32>(), 0..5_000_u32), 0..5), 0..5),
        tail in vec(any::<u8>(), 0..9),
    ) {
        let mut bitmaps = Vec::new();
        for ranges in ranges {
            let mut bitmap = RoaringBitmap::new();
            for (start, length) in ranges {
                bitmap.insert_range(start..start.saturating_add(length));
            }
            bitmaps.push(bitmap);
        }
        let mut wire = Vec::new();
        put_bitmap_array(&bitmaps, &mut wire).expect("a vector grows");
        wire.extend_from_slice(&tail);
        let mut reader = FieldReader::new(&wire);
        prop_assert_eq!(reader.bitmap_array(), Ok(bitmaps));
        prop_assert_eq!(reader.remaining(), tail.len());
    }

    /// No input causes a panic, and the reader never advances beyond the bytes.
    #[test]
    fn enc_03_any_bytes_are_bitmaps_or_an_error(
        start in prop_oneof![
            Just(vec![]),
            Just(vec![0x3a, 0x30, 0, 0]),
            Just(vec![0x3b, 0x30]),
            Just(vec![0x3b, 0x30, 0, 0, 1]),
        ],
        rest in vec(prop_oneof![3 => 0..4_u8, 1 => any::<u8>()], 0..200),
        count in 0..5_usize,
    ) {
        let wire = Bytes::from([start, rest].concat());
        if let Ok(bitmaps) = read_bitmaps(&wire, count) {
            prop_assert_eq!(bitmaps.len(), count);
        }
        let mut reader = FieldReader::new(&wire);
        let before = reader.remaining();
        if let Ok(bitmap) = reader.bitmap() {
            prop_assert!(reader.remaining() + 8 <= before, "the shortest bitmap has 8 bytes");
            let mut again = Vec::new();
            put_bitmap_array(std::slice::from_ref(&bitmap), &mut again).expect("a vector grows");
            prop_assert_eq!(FieldReader::new(&again).bitmap_array(), Ok(vec![bitmap]));
        }
    }
}
