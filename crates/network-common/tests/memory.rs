//! The decoder's memory depends on the bytes that were received, not on announced lengths.
//!
//! The allocator of this binary counts the bytes of each thread.
#![allow(unsafe_code, reason = "a global allocator cannot be written without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bytes::{BufMut as _, Bytes};
use network_common::protocol::{Event, FieldReader, FrameDecoder, FrameLimits, Message};
use proptest::collection::vec;
use proptest::prelude::*;

thread_local! {
    /// Bytes that this thread has allocated and not freed, and their peak since [`peak_of`] began.
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

struct CountingAllocator;

fn count(change: isize) {
    let held = HELD.get() + change;
    HELD.set(held);
    PEAK.set(PEAK.get().max(held));
}

// SAFETY: every call is passed to the allocator of the system; the counters are thread-local cells
// that do not allocate.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller upholds the contract of `GlobalAlloc`, which is that of the system's
        // allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // While the content moves, the old and the new block exist.
        count(new_size as isize);
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, new_size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Returns the most bytes that `work` held at once, above those before it.
fn peak_of(work: impl FnOnce()) -> usize {
    let before = HELD.get();
    PEAK.set(before);
    work();
    (PEAK.get() - before) as usize
}

/// The constant part of every limit: one read block and small allocations.
const FIXED: usize = (64 << 10) + (4 << 10);

/// Decodes until the bytes end or are malformed, and drops all events at once.
fn feed(decoder: &mut FrameDecoder, bytes: &[u8], piece: usize, expected: bool) {
    for mut input in bytes.chunks(piece) {
        loop {
            match decoder.next_event(&mut input) {
                Ok(Some(Event::BodyStart { .. })) => decoder.collect_body(expected),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

fn head(length: i64, kind: u8) -> Vec<u8> {
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.push(kind);
    bytes
}

#[test]
fn enc_06_counting_allocator_counts() {
    assert_eq!(peak_of(|| drop(vec![1_u8; 1000])), 1000);
    assert_eq!(peak_of(|| drop(vec![0_u8; 1 << 20])), 1 << 20);
}

#[test]
fn enc_06_too_long_length_allocates_nothing() {
    let bytes = b"\x7f\xff\xff\xffabcde";
    let peak = peak_of(|| {
        assert!(FieldReader::new(bytes).byte_array("data").is_err());
        assert!(FieldReader::new(bytes).string("text").is_err());
        #[cfg(feature = "merged-blocks")]
        assert!(FieldReader::new(bytes).bitmap_array().is_err());
    });
    assert_eq!(peak, 0);
}

/// A header alone costs at most one read block, whatever it announces.
#[test]
fn wire_6_header_reserves_little_memory() {
    for kind in 0..=0x0c {
        for length in [8 + 4097, 1 << 20, 1 << 24, 0x8000_0006] {
            for fields in [0, 4, 12, 20] {
                let mut bytes = head(length, kind);
                bytes.resize(9 + fields, 0);
                let peak =
                    peak_of(|| feed(&mut FrameDecoder::default(), &bytes, usize::MAX, false));
                assert!(
                    peak <= FIXED,
                    "type {kind}, length {length}, {fields} bytes of fields: {peak}"
                );
            }
        }
    }
}

/// Announced bodies after frames and strings in headers cost at most one read block too.
#[test]
fn wire_6_announced_bodies_and_strings_reserve_little_memory() {
    let mut upload = Vec::new();
    Message::<()>::UploadStream { request_id: 1, meta: Bytes::from("m"), byte_count: i64::MAX }
        .encode_header(0, &mut upload);
    let mut stream = Vec::new();
    Message::<()>::StreamResponse { stream_id: "s".into(), byte_count: i64::MAX }
        .encode_header(0, &mut stream);
    let mut text = head(16 << 20, 6);
    text.put_i32((16 << 20) - 13);
    for bytes in [upload, stream, text] {
        let peak = peak_of(|| feed(&mut FrameDecoder::default(), &bytes, usize::MAX, false));
        assert!(peak <= FIXED, "{peak}");
    }
}

/// An unexpected body grows by doubling while it arrives, so moving it needs up to three times its
/// size.
#[test]
fn wire_6_unexpected_body_grows_as_it_arrives() {
    for kind in [0x01, 0x03, 0x04, 0x09, 0x0c] {
        for received in [1_000, 100_000, 3 << 20] {
            let mut bytes = head(0x8000_0006, kind);
            bytes.resize(21 + received, 0);
            let peak = peak_of(|| feed(&mut FrameDecoder::default(), &bytes, 32 << 10, false));
            assert!(peak <= 3 * received + FIXED, "type {kind}, {received} received: {peak}");
        }
    }
}

/// Headers are collected too, up to their own limit.
#[test]
fn wire_6_long_header_grows_as_it_arrives() {
    let mut bytes = head(16 << 20, 5);
    bytes.resize(3 << 20, 0);
    let peak = peak_of(|| feed(&mut FrameDecoder::default(), &bytes, 32 << 10, false));
    assert!(peak <= 3 * bytes.len() + FIXED, "{peak}");
    let over = head((16 << 20) + 9, 5);
    let mut decoder = FrameDecoder::default();
    assert!(decoder.next_event(&mut &over[..]).is_err(), "a header over the limit must fail");
}

/// Bodies that are streamed or discarded are not collected.
#[test]
fn wire_5_streamed_or_discarded_body_is_not_held() {
    let mut bytes = Vec::new();
    Message::<()>::UploadStream { request_id: 1, meta: Bytes::new(), byte_count: i64::MAX }
        .encode_header(0, &mut bytes);
    bytes.resize(4 << 20, 0);
    for stream in [true, false] {
        let peak = peak_of(|| {
            let mut decoder = FrameDecoder::default();
            for mut input in bytes.chunks(32 << 10) {
                while let Some(event) = decoder.next_event(&mut input).expect("well-formed") {
                    if let (Event::BodyStart { .. }, true) = (event, stream) {
                        decoder.stream_body();
                    }
                }
            }
        });
        assert!(peak <= FIXED, "{peak}");
    }
}

/// The buffer of an expected response may be allocated at once, up to 64 MiB.
#[test]
fn wire_6_expected_response_reserves_at_most_64_mib() {
    for (length, most) in [(0x8000_0006, 64 << 20), (21 + (10 << 20), 10 << 20)] {
        let mut bytes = head(length, 1);
        bytes.resize(21 + 1000, 0);
        let peak = peak_of(|| feed(&mut FrameDecoder::default(), &bytes, usize::MAX, true));
        assert!(peak <= most + FIXED, "{peak} for {length}");
    }
}

/// A request over this side's limit allocates nothing.
#[test]
fn wire_6_rejected_request_reserves_nothing() {
    let mut limits = FrameLimits::default();
    limits.max_request = 1 << 20;
    let mut decoder = FrameDecoder::new(limits);
    let bytes = [head(8 + (1 << 20) + 1, 3), vec![0; 1000]].concat();
    let peak = peak_of(|| feed(&mut decoder, &bytes, usize::MAX, false));
    assert!(peak <= 200, "{peak}");
}

fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let announced =
        prop_oneof![9..100_i64, 4_000..70_000_i64, Just(16_i64 << 20), Just(0x8000_0006)];
    let number = prop_oneof![Just(0_i32), 0..100_i32, Just(i32::MAX), Just(-1), any::<i32>()];
    let frame = (announced, 0..13_u8, vec(number, 0..6), 0..70_000_usize, any::<u8>()).prop_map(
        |(length, kind, numbers, filling, fill)| {
            let mut bytes = head(length, kind);
            numbers.into_iter().for_each(|number| bytes.put_i32(number));
            let missing = (length as usize).saturating_sub(bytes.len());
            bytes.resize(bytes.len() + missing.min(filling), fill);
            bytes
        },
    );
    vec(frame, 1..5).prop_map(|frames| frames.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn wire_6_memory_follows_received_bytes(wire in hostile(), piece in 1..100_000_usize) {
        let peak = peak_of(|| feed(&mut FrameDecoder::default(), &wire, piece, false));
        // Invalid UTF-8 may triple a text, and a growing text is moved like a growing body.
        prop_assert!(peak <= 12 * wire.len() + FIXED, "{} for {} bytes", peak, wire.len());
    }

    #[test]
    fn wire_6_expected_responses_add_at_most_their_reserve(
        wire in hostile(),
        piece in 1..100_000_usize,
    ) {
        let peak = peak_of(|| feed(&mut FrameDecoder::default(), &wire, piece, true));
        let limit = (64 << 20) + 12 * wire.len() + FIXED;
        prop_assert!(peak <= limit, "{} for {} bytes", peak, wire.len());
    }
}
