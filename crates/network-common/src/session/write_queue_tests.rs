//! Tests the batches, byte counters and released bodies of the write queue.
//!
//! The rows `mwh_*` correspond to Spark's `MessageWithHeaderSuite`.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::buffer::Content;

/// A body of this number of bytes is larger than those that are copied into the batch.
const LARGE: usize = 10_000;

/// Returns a large body whose bytes differ by position.
fn large(length: usize, seed: usize) -> Bytes {
    (0..length).map(|index| ((index + seed) * 31 % 251) as u8).collect()
}

/// Returns a buffer and the number of its releases.
fn counted(bytes: Bytes) -> (ManagedBuffer, Arc<AtomicUsize>) {
    let releases = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&releases);
    let hook = move || {
        count.fetch_add(1, Ordering::SeqCst);
    };
    (ManagedBuffer::from(bytes).on_release(hook), releases)
}

/// Writes a header and 8 longs: the header comes first, then 0 to 7.
#[test]
fn mwh_01_header_and_body_are_written_in_order() {
    let longs: Vec<u8> = (0..8_u64).flat_map(u64::to_be_bytes).collect();
    let mut queue = WriteQueue::new(LIMIT, "".into(), ConnectionAccount::unlimited().unread());
    queue.push_bulk(chunk(2, longs.clone()));
    let bytes = drain(&mut queue);
    let header = b"\0\0\0\0\0\0\0\x55\x01\0\0\0\0\0\0\0\x01\0\0\0\x02";
    assert_eq!(bytes, [&header[..], &longs].concat());
}

/// Returns a queue with small and large frames in both lanes, and their bytes.
fn mixed() -> (WriteQueue, Vec<u8>) {
    let mut queue = WriteQueue::new(LIMIT, "".into(), ConnectionAccount::unlimited().unread());
    let mut expected = Vec::new();
    for (id, length) in [(1, 3), (2, LARGE), (3, 0), (4, LARGE)] {
        let body = large(length, id as usize);
        queue.push_control(&Message::RpcRequest { request_id: id, body: () }, &mut body.clone());
        expected.extend(Message::RpcRequest { request_id: id, body }.encode().unwrap());
    }
    for (index, length) in [(0, LARGE), (1, 5), (2, LARGE)] {
        let body = large(length, 7);
        queue.push_bulk(chunk(index, body.clone()));
        let message = Message::ChunkFetchSuccess { stream_id: 1, chunk_index: index, body };
        expected.extend(message.encode().unwrap());
    }
    (queue, expected)
}

/// Checks that the parts that a filter would receive make up the whole batch.
#[test]
fn contiguous_parts_of_any_length_make_up_batch() {
    let (mut queue, expected) = mixed();
    let mut batch = Batch::default();
    queue.fill_batch(&mut batch, true);
    for limit in [1, 7, 100, LARGE, 2 * LARGE, 1 << 20] {
        let mut all = Vec::new();
        while all.len() < expected.len() {
            let part = batch.contiguous(all.len(), limit);
            assert!((1..=limit).contains(&part.len()), "{} of {limit}", part.len());
            all.extend_from_slice(&part);
        }
        assert_eq!(all, expected, "{limit}");
    }
}

/// A large body is not copied for a filter, and the small parts around it stay contiguous.
#[test]
fn large_body_is_contiguous_part_of_its_own() {
    let mut queue = WriteQueue::new(LIMIT, "".into(), ConnectionAccount::unlimited().unread());
    for (index, length) in [(0, 5), (1, 100_000), (2, 5)] {
        queue.push_bulk(chunk(index, ManagedBuffer::from(large(length, 1))));
    }
    let mut batch = Batch::default();
    queue.fill_batch(&mut batch, true);
    // A chunk header has 21 bytes.
    let before = 21 + 5 + 21;
    assert_eq!(batch.contiguous(0, usize::MAX).len(), before);
    assert!(
        matches!(batch.contiguous(before, usize::MAX), Cow::Borrowed(part) if part.len() == 100_000)
    );
    assert!(
        matches!(batch.contiguous(before + 5, 60_000), Cow::Borrowed(part) if part.len() == 60_000)
    );
    assert_eq!(batch.contiguous(before + 100_000, usize::MAX).len(), 21 + 5);
}

/// The bytes are the same however few the socket accepts at a time.
#[test]
fn mwh_02_short_writes_continue_where_they_stopped() {
    let (mut queue, expected) = mixed();
    let mut batch = Batch::default();
    queue.fill_batch(&mut batch, true);
    assert_eq!(batch.len(), expected.len());
    assert_eq!(bytes_of(&batch), expected);
    for step in [1, 8, 21, 1000, LARGE, expected.len()] {
        let mut written: Vec<u8> = Vec::new();
        while written.len() < batch.len() {
            let mut slices = [IoSlice::new(&[]); 3];
            let filled = batch.slices(written.len(), &mut slices);
            let before = written.len();
            let bytes = slices[..filled].iter().flat_map(|slice| slice.iter());
            written.extend(bytes.take(step));
            assert!(written.len() > before, "every write must offer bytes");
        }
        assert!(written == expected, "{step} bytes at a time");
    }
}

#[test]
fn mwh_02_slices_are_correct_for_every_start_and_count() {
    let (mut queue, expected) = mixed();
    let mut batch = Batch::default();
    queue.fill_batch(&mut batch, true);
    for skip in (0..expected.len()).step_by(97).chain(expected.len() - 3..=expected.len()) {
        for slice_count in [1, 2, 100] {
            let bytes = offered(&batch, skip, slice_count);
            assert!(
                expected[skip..].starts_with(&bytes),
                "{skip} bytes skipped, {slice_count} slices"
            );
            assert_eq!(bytes.is_empty(), skip == expected.len());
            assert!(slice_count < 100 || bytes.len() == expected.len() - skip);
        }
    }
}

/// Rows `mwh_03` to `mwh_05`: a body is released once, after it was written.
///
/// The layouts are no body, a body copied into the batch, and a body written in place.
#[test]
fn mwh_03_bodies_are_released_after_write() {
    for length in [0, 8, LARGE] {
        let mut queue = WriteQueue::new(LIMIT, "".into(), ConnectionAccount::unlimited().unread());
        let (buffer, releases) = counted(large(length, 1));
        queue.push_bulk(chunk(0, buffer));
        let mut batch = Batch::default();
        queue.fill_batch(&mut batch, true);
        assert_eq!(bytes_of(&batch)[21..], large(length, 1));
        assert_eq!(releases.load(Ordering::SeqCst), 0, "no release before the write");
        // Bodies are released outside the lock, before the session is updated.
        let accounting = batch.recycle();
        assert_eq!(releases.load(Ordering::SeqCst), 1);
        queue.on_batch_written(&accounting);
        assert!(batch.is_empty());
        drop((queue, batch));
        assert_eq!(releases.load(Ordering::SeqCst), 1);
    }
}

/// A buffer is released with its last clone, and every hook runs.
#[test]
fn mwh_03_clones_share_one_release() {
    let mut queue = WriteQueue::new(LIMIT, "".into(), ConnectionAccount::unlimited().unread());
    let (buffer, first) = counted(large(LARGE, 1));
    let second = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&second);
    let buffer = buffer.on_release(move || {
        count.fetch_add(1, Ordering::SeqCst);
    });
    queue.push_bulk(chunk(0, buffer.clone()));
    queue.push_bulk(chunk(1, buffer.clone()));
    drain(&mut queue);
    assert_eq!((first.load(Ordering::SeqCst), second.load(Ordering::SeqCst)), (0, 0));
    drop(buffer);
    assert_eq!((first.load(Ordering::SeqCst), second.load(Ordering::SeqCst)), (1, 1));
}

/// Large bodies are written in place, without a copy.
#[test]
fn mwh_04_shared_bodies_are_not_copied() {
    let (rpc, block) = (large(LARGE, 1), large(LARGE, 2));
    let mut queue = WriteQueue::new(LIMIT, "".into(), ConnectionAccount::unlimited().unread());
    queue.push_control(&Message::RpcRequest { request_id: 1, body: () }, &mut rpc.clone());
    queue.push_bulk(chunk(0, block.clone()));
    let mut batch = Batch::default();
    queue.fill_batch(&mut batch, true);
    let mut slices = [IoSlice::new(&[]); 9];
    let filled = batch.slices(0, &mut slices);
    let lengths: Vec<usize> = slices[..filled].iter().map(|slice| slice.len()).collect();
    assert_eq!(lengths, [21, LARGE, 21, LARGE]);
    assert_eq!(slices[1].as_ptr(), rpc.as_ptr());
    assert_eq!(slices[3].as_ptr(), block.as_ptr());
}

/// Row `mwh_06`: bodies that are discarded from the queue or from the batch are released.
#[test]
fn mwh_06_discarded_bodies_are_released() {
    let mut queue = WriteQueue::new(LIMIT, "".into(), ConnectionAccount::unlimited().unread());
    let (buffer, in_batch) = counted(large(LARGE, 1));
    queue.push_bulk(chunk(0, buffer));
    let mut batch = Batch::default();
    queue.fill_batch(&mut batch, true);
    let (buffer, queued) = counted(large(LARGE, 1));
    queue.push_bulk(chunk(1, buffer));
    let released = queue.clear();
    assert_eq!(queued.load(Ordering::SeqCst), 0, "no release under the lock");
    drop(released);
    assert_eq!((in_batch.load(Ordering::SeqCst), queued.load(Ordering::SeqCst)), (0, 1));
    drop(batch);
    assert_eq!((in_batch.load(Ordering::SeqCst), queued.load(Ordering::SeqCst)), (1, 1));
    assert!(queue.is_empty(true));
    assert_eq!(queue.queued(), 0);
}

/// Row `mwh_06`: a closed session rejects bodies and releases them.
#[test]
fn mwh_06_closed_session_releases_rejected_bodies() {
    let mut session = session();
    drop(session.close_with(failure("lost"), &mut Vec::new()));
    let (buffer, releases) = counted(large(LARGE, 1));
    let rejected = session.respond_bulk(chunk(0, buffer));
    assert_eq!(releases.load(Ordering::SeqCst), 0, "no release under the lock");
    drop(rejected);
    assert_eq!(releases.load(Ordering::SeqCst), 1);
    let (buffer, releases) = counted(large(LARGE, 1));
    assert!(session.upload(&mut Bytes::new(), &buffer).is_err());
    drop(buffer);
    assert_eq!(releases.load(Ordering::SeqCst), 1);
    session.respond(&Message::RpcResponse { request_id: 1, body: () }, &mut Bytes::new());
    assert!(session.outgoing.is_empty(true));
}

/// The counters of queued and written bytes return to 0.
#[test]
fn mwh_03_queued_bytes_return_to_zero() {
    let (mut queue, expected) = mixed();
    assert!(!queue.is_drained());
    let queued_bytes = queue.queued();
    assert!(queued_bytes >= 4 * LARGE as u64, "bodies in memory count while they are queued");
    let mut batch = Batch::default();
    queue.fill_batch(&mut batch, true);
    assert_eq!(
        queue.queued(),
        expected.len() as u64,
        "a batch that is being written must count exactly"
    );
    assert!(!queue.is_drained());
    queue.push_control(&Message::OneWayMessage { body: () }, &mut Bytes::from("abc"));
    assert_eq!(queue.queued(), expected.len() as u64 + 16);
    queue.on_batch_written(&batch.recycle());
    assert_eq!(queue.queued(), 16);
    assert!(!queue.is_drained());
    drain(&mut queue);
    assert_eq!(queue.queued(), 0);
    assert!(queue.is_drained());
}

/// Only queued responses pause reading from the peer; their counter returns to 0, too.
#[test]
fn mwh_03_only_responses_pause_reading() {
    let mut session = session();
    let body = Bytes::from(vec![0; LIMIT as usize]);
    session.send_rpc(&mut body.clone()).unwrap();
    assert!(!session.should_pause_reading(), "own requests must not count");
    for bulk in [false, true] {
        if bulk {
            assert!(session.respond_bulk(chunk(0, body.clone())).is_none());
        } else {
            session.respond(&Message::RpcResponse { request_id: 1, body: () }, &mut body.clone());
        }
        assert!(session.should_pause_reading());
        drain(&mut session.outgoing);
        assert!(!session.should_pause_reading());
        assert_eq!(session.outgoing.queued(), 0);
    }
}

#[test]
fn mwh_03_full_queue_rejects_requests_but_never_responses() {
    let mut session = session();
    let (large, small) = (Bytes::from(vec![0; LIMIT as usize + 1]), Bytes::from("x"));
    session.send_one_way(&mut large.clone()).expect("an empty queue accepts a request of any size");
    let queued = session.outgoing.queued();
    let error = session.send_rpc(&mut small.clone()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit);
    assert!(error.to_string().contains("spark.test.limit"), "{error}");
    assert!(session.send_one_way(&mut small.clone()).is_err() && session.stream("s").is_err());
    assert!(session.upload(&mut small.clone(), &small.clone().into()).is_err());
    assert_eq!((session.outgoing.queued(), session.requests.len()), (queued, 0));
    session.respond(&Message::RpcResponse { request_id: 1, body: () }, &mut small.clone());
    assert!(session.outgoing.queued() > queued);

    let log = Log::default();
    session.register_capacity_waker(&log.waker("capacity"));
    let mut wakers = Vec::new();
    session.take_capacity_wakers(&mut wakers);
    assert!(wakers.is_empty(), "there must be no capacity yet");
    drain(&mut session.outgoing);
    session.take_capacity_wakers(&mut wakers);
    wakers.into_iter().for_each(Waker::wake);
    assert_eq!(log.take(), ["capacity"]);
    assert!(session.send_rpc(&mut small.clone()).is_ok());
}

/// A request body over the frame limit is rejected, and the error suggests an upload.
#[test]
fn frame_08_request_over_frame_limit_is_rejected() {
    let mut session = session();
    let error = session.send_rpc(&mut Bytes::from(vec![0; 0x7fff_fffe])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit);
    assert!(error.to_string().contains("upload it as a stream"), "{error}");
    assert!(session.outgoing.is_empty(true));
    assert_eq!(session.requests.len(), 0);
}

/// Control messages overtake whole queued bodies; each lane is FIFO.
#[test]
fn mwh_01_control_messages_overtake_queued_bodies() {
    let mut session = session();
    // Two such bodies exceed the limit of a batch, so each batch has one.
    let block = || large(300_000, 3);
    assert!((0..3).all(|index| session.respond_bulk(chunk(index, block())).is_none()));
    (1..4).for_each(|id| {
        session.respond(&Message::RpcResponse { request_id: id, body: () }, &mut Bytes::new())
    });
    let (mut order, mut batch) = (Vec::new(), Batch::default());
    for round in 0.. {
        session.outgoing.fill_batch(&mut batch, true);
        if batch.is_empty() {
            break;
        }
        for message in messages(&bytes_of(&batch)) {
            order.push(match message {
                Message::ChunkFetchSuccess { chunk_index, body, .. } => {
                    assert!(body == block());
                    format!("body {chunk_index}")
                }
                Message::RpcResponse { request_id, .. } => format!("response {request_id}"),
                other => panic!("{other:?}"),
            });
        }
        session.outgoing.on_batch_written(&batch.recycle());
        if round == 0 {
            session.respond(&Message::RpcResponse { request_id: 4, body: () }, &mut Bytes::new());
        }
    }
    assert_eq!(
        order,
        ["response 1", "response 2", "response 3", "body 0", "response 4", "body 1", "body 2"]
    );
}

/// Small bodies share batches of limited size, which bounds the delay of control messages.
#[test]
fn mwh_01_small_bodies_share_batches_of_limited_size() {
    let mut queue = WriteQueue::new(1 << 30, "".into(), ConnectionAccount::unlimited().unread());
    (0..200).for_each(|index| queue.push_bulk(chunk(index, large(LARGE, 1))));
    let (mut batch, mut batches, mut indexes) = (Batch::default(), 0, Vec::new());
    while !queue.is_empty(true) {
        queue.fill_batch(&mut batch, true);
        assert!(batch.len() <= (256 << 10) + 100 * 21, "{}", batch.len());
        batches += 1;
        for message in messages(&bytes_of(&batch)) {
            let Message::ChunkFetchSuccess { chunk_index, .. } = message else {
                panic!("{message:?}")
            };
            indexes.push(chunk_index);
        }
        queue.on_batch_written(&batch.recycle());
    }
    assert!(batches < 20, "{batches} writes for 200 small bodies");
    assert!(indexes.into_iter().eq(0..200));
}

/// A file keeps its position among the bodies; control messages overtake it.
#[test]
fn mwh_01_files_keep_their_order() {
    let file = |range| ManagedBuffer::file("/nonexistent", range);
    let mut queue = WriteQueue::new(LIMIT, "".into(), ConnectionAccount::unlimited().unread());
    queue.push_bulk(chunk(0, large(10, 1)));
    queue.push_bulk(chunk(1, file(5..25)));
    queue.push_bulk(chunk(2, large(10, 1)));
    queue.push_control(&Message::OneWayMessage { body: () }, &mut Bytes::new());
    let mut batch = Batch::default();
    assert!(queue.pop_file_body().is_none(), "a body in memory is before the file");
    queue.fill_batch(&mut batch, true);
    assert_eq!(messages(&bytes_of(&batch)).len(), 2, "the control message and the first body");
    queue.on_batch_written(&batch.recycle());

    let item = queue.pop_file_body().expect("the file is next");
    assert_eq!(item.in_frame(), 20);
    assert!(matches!(item.body.content(), Content::File(segment) if segment.length == 20));
    assert!(queue.pop_file_body().is_none(), "the next body is no file");
    // While the file is being sent, control messages are written, but no bodies.
    queue.push_control(&Message::OneWayMessage { body: () }, &mut Bytes::new());
    assert!(!queue.is_empty(false));
    queue.fill_batch(&mut batch, false);
    assert_eq!(messages(&bytes_of(&batch)), [Message::OneWayMessage { body: Bytes::new() }]);
    queue.on_batch_written(&batch.recycle());
    assert!(queue.is_empty(false) && !queue.is_empty(true));
    assert_eq!(messages(&drain(&mut queue)).len(), 1);
    assert_eq!(queue.queued(), 0);
}

/// Bodies of streams and uploads follow their frame and do not count in its length.
#[test]
fn mwh_01_bodies_of_streams_follow_their_frame() {
    let mut session = session();
    let key = session.upload(&mut Bytes::from("met"), &"four".into()).unwrap();
    let message = Message::StreamResponse { stream_id: "d".into(), byte_count: 4 };
    assert!(
        session.respond_bulk(BulkMessage { message, body: "DATA".into(), upload: None }).is_none()
    );
    let bytes = drain(&mut session.outgoing);
    let mut expected = b"\0\0\0\0\0\0\0\x20\x0a".to_vec();
    expected.extend(key.id().to_be_bytes());
    expected.extend_from_slice(b"\0\0\0\x03met\0\0\0\0\0\0\0\x04four");
    expected.extend_from_slice(b"\0\0\0\0\0\0\0\x16\x07\0\0\0\x01d\0\0\0\0\0\0\0\x04DATA");
    assert_eq!(bytes, expected);
}

/// A response whose body cannot be read is replaced by the failure of the same request.
#[test]
fn mwh_06_unreadable_body_is_replaced_by_matching_failure() {
    let text = || "gone".to_owned();
    let failure_of = |message: Message<()>| message.into_failure(text());
    assert_eq!(
        failure_of(Message::ChunkFetchSuccess { stream_id: 1, chunk_index: 2, body: () }),
        Some(Message::ChunkFetchFailure { stream_id: 1, chunk_index: 2, error: text() })
    );
    assert_eq!(
        failure_of(Message::MergedBlockMetaSuccess { request_id: 3, num_chunks: 4, body: () }),
        Some(Message::RpcFailure { request_id: 3, error: text() })
    );
    assert_eq!(
        failure_of(Message::StreamResponse { stream_id: "s".into(), byte_count: 5 }),
        Some(Message::StreamFailure { stream_id: "s".into(), error: text() })
    );
    assert_eq!(
        failure_of(Message::UploadStream { request_id: 1, meta: Bytes::new(), byte_count: 5 }),
        None
    );
}

/// Frames that were queued before the filters were installed are written first, in a batch of their
/// own.
#[test]
fn mwh_05_frames_queued_before_filters_are_written_apart() {
    let mut queue = WriteQueue::new(LIMIT, "".into(), ConnectionAccount::unlimited().unread());
    let push = |queue: &mut WriteQueue, text: &'static str| {
        queue.push_control(&Message::OneWayMessage { body: () }, &mut Bytes::from(text));
    };
    push(&mut queue, "plain");
    queue.mark_unsealed();
    push(&mut queue, "sealed");
    assert!(!queue.unsealed_is_written());
    // `fill_batch` returns the unsealed frames alone, and the following batches must be sealed.
    let mut batch = Batch::default();
    for text in ["plain", "sealed"] {
        assert!(!queue.is_empty(true));
        queue.fill_batch(&mut batch, true);
        assert!(queue.unsealed_is_written());
        assert_eq!(
            messages(&bytes_of(&batch)),
            [Message::OneWayMessage { body: Bytes::from(text) }]
        );
        queue.on_batch_written(&batch.recycle());
    }
    assert!(queue.is_drained());
}

/// Writing the last chunk wakes a connection in graceful shutdown, which closes only when idle.
#[test]
fn session_is_idle_after_its_last_chunk_is_written() {
    let mut session = session();
    let request = || BulkRequest::Chunk { stream_id: 1, chunk_index: 0 };
    assert!(session.bulk_requests.push(request(), None));
    assert!(!session.bulk_requests.push(request(), None));
    for _ in 0..2 {
        assert!(session.bulk_requests.pop().is_some() && session.has_pending_output());
        assert!(session.respond_bulk_request(chunk(0, "x")).is_none());
        assert!(session.has_pending_output(), "the chunk is not written yet");
        drain(&mut session.outgoing);
    }
    assert!(!session.has_pending_output());
    assert!(session.bulk_requests.pop().is_none() && !session.has_pending_output());
}
