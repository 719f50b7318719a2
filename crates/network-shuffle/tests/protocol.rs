//! The messages have the bytes of Spark's `BlockTransferMessage`; see also the suite
//! `BlockTransferMessagesSuite`.
#![allow(clippy::unwrap_used, reason = "a failure ends the test")]

use bytes::Bytes;
use network_common::protocol::ProtocolError;
use network_shuffle::protocol::{
    BlockId, BlockTransferMessage, CorruptionCause, ExecutorShuffleInfo, IntLists, PushReturnCode,
    StringList,
};
use proptest::collection::vec;
use proptest::prelude::*;

fn bytes(hex: &str) -> Bytes {
    let digits: String = hex.split_whitespace().collect();
    let byte = |i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(byte).collect()
}

fn app() -> String {
    "app-1".to_owned()
}

fn exec() -> String {
    "exec-2".to_owned()
}

#[test]
fn ess_01_messages_have_the_bytes_of_spark() {
    let ids = "00000005 6170702d31 00000006 657865632d32";
    let samples = [
        (
            BlockTransferMessage::OpenBlocks {
                app_id: app(),
                exec_id: exec(),
                block_ids: StringList::from_iter(["shuffle_0_0_0", "shuffle_0_1_0"]),
            },
            format!(
                "00 {ids} 00000002 0000000d 73687566666c655f305f305f30 \
                 0000000d 73687566666c655f305f315f30"
            ),
        ),
        (
            BlockTransferMessage::FetchShuffleBlocks {
                app_id: app(),
                exec_id: exec(),
                shuffle_id: 5,
                map_ids: vec![1, 2],
                reduce_ids: IntLists::from_iter([vec![0, 1], vec![3]]),
                batch: false,
            },
            format!(
                "09 {ids} 00000005 00000002 0000000000000001 0000000000000002 \
                 00000002 00000002 00000000 00000001 00000001 00000003 00"
            ),
        ),
        (
            BlockTransferMessage::StreamHandle { stream_id: 4660, num_chunks: 3 },
            "03 0000000000001234 00000003".to_owned(),
        ),
        (
            BlockTransferMessage::RegisterExecutor {
                app_id: app(),
                exec_id: exec(),
                info: ExecutorShuffleInfo::new(["/a", "/b"], 64, "m"),
            },
            format!("02 {ids} 00000002 00000002 2f61 00000002 2f62 00000040 00000001 6d"),
        ),
        (
            BlockTransferMessage::BlockPushReturnCode {
                return_code: PushReturnCode::TooLate,
                failed_block_id: "shufflePush_0_1_2_3".to_owned(),
            },
            "12 01 00000013 73687566666c65507573685f305f315f325f33".to_owned(),
        ),
        (
            BlockTransferMessage::CorruptionCause { cause: CorruptionCause::NetworkIssue },
            "11 01".to_owned(),
        ),
        (
            BlockTransferMessage::LocalDirsForExecutors {
                local_dirs: vec![("1".to_owned(), vec!["/x".to_owned(), "/y".to_owned()])],
            },
            "0b 00000001 00000001 31 00000001 00000002 00000002 00000002 2f78 00000002 2f79"
                .to_owned(),
        ),
        (
            BlockTransferMessage::MergeStatuses {
                shuffle_id: 1,
                shuffle_merge_id: 2,
                bitmaps: vec![[1, 3].into_iter().collect()],
                reduce_ids: vec![7],
                sizes: vec![99],
            },
            "0e 00000001 00000002 00000001 3a300000 01000000 00000100 10000000 01000300 \
             00000001 00000007 00000001 0000000000000063"
                .to_owned(),
        ),
    ];
    for (message, expected) in samples {
        let expected = bytes(&expected);
        assert_eq!(message.encode(), expected, "{message:?}");
        assert_eq!(BlockTransferMessage::decode(&expected).unwrap(), message);
    }
}

fn text() -> impl Strategy<Value = String> {
    "[ -~é€\u{1f600}]{0,12}"
}

fn strings() -> impl Strategy<Value = StringList> {
    vec(text(), 0..5).prop_map(StringList::from_iter)
}

fn lists() -> impl Strategy<Value = IntLists> {
    vec(vec(any::<i32>(), 0..4), 0..4).prop_map(IntLists::from_iter)
}

fn body() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..20).prop_map(Bytes::from)
}

fn request() -> impl Strategy<Value = BlockTransferMessage> {
    type Message = BlockTransferMessage;
    let info = (vec(text(), 0..3), any::<i32>(), text())
        .prop_map(|(dirs, sub_dirs, manager)| ExecutorShuffleInfo::new(dirs, sub_dirs, manager));
    let dirs = vec((text(), vec(text(), 0..3)), 0..3);
    let ints = any::<(i32, i32, i32)>();
    prop_oneof![
        (text(), text(), strings()).prop_map(|(app_id, exec_id, block_ids)| Message::OpenBlocks {
            app_id,
            exec_id,
            block_ids
        }),
        (text(), text(), text(), body(), body()).prop_map(
            |(app_id, exec_id, block_id, metadata, data)| Message::UploadBlock {
                app_id,
                exec_id,
                block_id,
                metadata,
                data
            }
        ),
        (text(), text(), info).prop_map(|(app_id, exec_id, info)| Message::RegisterExecutor {
            app_id,
            exec_id,
            info
        }),
        (text(), any::<i64>()).prop_map(|(app_id, heartbeat_timeout_ms)| Message::RegisterDriver {
            app_id,
            heartbeat_timeout_ms
        }),
        text().prop_map(|app_id| Message::Heartbeat { app_id }),
        (text(), body())
            .prop_map(|(block_id, metadata)| Message::UploadBlockStream { block_id, metadata }),
        (text(), text(), strings()).prop_map(|(app_id, exec_id, block_ids)| {
            Message::RemoveBlocks { app_id, exec_id, block_ids }
        }),
        (text(), text(), any::<i32>(), vec(any::<i64>(), 0..4), lists(), any::<bool>()).prop_map(
            |(app_id, exec_id, shuffle_id, map_ids, reduce_ids, batch)| {
                Message::FetchShuffleBlocks {
                    app_id,
                    exec_id,
                    shuffle_id,
                    map_ids,
                    reduce_ids,
                    batch,
                }
            }
        ),
        (text(), strings())
            .prop_map(|(app_id, exec_ids)| Message::GetLocalDirsForExecutors { app_id, exec_ids }),
        dirs.prop_map(|local_dirs| Message::LocalDirsForExecutors { local_dirs }),
        (text(), ints, ints).prop_map(|(app_id, first, second)| Message::PushBlockStream {
            app_id,
            app_attempt_id: first.0,
            shuffle_id: first.1,
            shuffle_merge_id: first.2,
            map_index: second.0,
            reduce_id: second.1,
            index: second.2,
        }),
        (text(), ints).prop_map(|(app_id, ints)| Message::FinalizeShuffleMerge {
            app_id,
            app_attempt_id: ints.0,
            shuffle_id: ints.1,
            shuffle_merge_id: ints.2,
        }),
        (text(), ints).prop_map(|(app_id, ints)| Message::RemoveShuffleMerge {
            app_id,
            app_attempt_id: ints.0,
            shuffle_id: ints.1,
            shuffle_merge_id: ints.2,
        }),
        (text(), text(), ints, vec(any::<i32>(), 0..4), lists()).prop_map(
            |(app_id, exec_id, ints, reduce_ids, chunk_ids)| Message::FetchShuffleBlockChunks {
                app_id,
                exec_id,
                shuffle_id: ints.0,
                shuffle_merge_id: ints.1,
                reduce_ids,
                chunk_ids,
            }
        ),
        (text(), text(), ints, any::<(i64, i64)>(), text()).prop_map(
            |(app_id, exec_id, ints, longs, algorithm)| Message::DiagnoseCorruption {
                app_id,
                exec_id,
                shuffle_id: ints.0,
                map_id: longs.0,
                reduce_id: ints.1,
                checksum: longs.1,
                algorithm,
            }
        ),
        any::<i32>().prop_map(|count| Message::BlocksRemoved { count }),
    ]
}

proptest! {
    #[test]
    fn ess_01_messages_are_unchanged_by_encoding_and_decoding(message in request()) {
        let encoded = message.encode();
        prop_assert_eq!(BlockTransferMessage::decode(&encoded).unwrap(), message.clone());
        // As in Spark, trailing bytes are ignored, and a message without its end is an error.
        let longer: Bytes = [&encoded[..], b"trailing"].concat().into();
        prop_assert_eq!(BlockTransferMessage::decode(&longer).unwrap(), message);
        for len in 0..encoded.len() {
            prop_assert!(BlockTransferMessage::decode(&encoded.slice(..len)).is_err());
        }
    }

    #[test]
    fn ess_02_any_bytes_are_a_message_or_an_error(
        kind in 0_u8..21, mut rest in vec(any::<u8>(), 0..200),
        zeros in vec(0_usize..200, 0..40)
    ) {
        // Zeros make small counts and lengths, so that more than the first field is decoded.
        for index in zeros {
            if let Some(byte) = rest.get_mut(index) {
                *byte = 0;
            }
        }
        rest.insert(0, kind);
        if let Ok(message) = BlockTransferMessage::decode(&rest.into()) {
            let decoded = BlockTransferMessage::decode(&message.encode());
            prop_assert_eq!(decoded.unwrap(), message);
        }
    }

    #[test]
    fn ess_02_block_ids_are_unchanged_by_display_and_parsing(
        ints in any::<(i32, i32, i32, i32)>(), map_id in any::<i64>()
    ) {
        let (a, b, c, d) = ints;
        for block in [
            BlockId::Shuffle { shuffle_id: a, map_id, reduce_id: b },
            BlockId::ShuffleBatch { shuffle_id: a, map_id, start_reduce_id: b, end_reduce_id: c },
            BlockId::ShuffleChunk { shuffle_id: a, shuffle_merge_id: b, reduce_id: c, chunk_id: d },
            BlockId::ShufflePush { shuffle_id: a, shuffle_merge_id: b, map_index: c, reduce_id: d },
            BlockId::Rdd { rdd_id: a, split_index: b },
        ] {
            prop_assert_eq!(block.to_string().parse(), Ok(block));
        }
    }
}

#[test]
fn ess_02_invalid_codes_and_types_are_rejected() {
    assert_eq!(BlockTransferMessage::decode(&bytes("14")), Err(ProtocolError::UnknownType(20)));
    for hex in ["11 05", "11 ff", "12 05 00000000", "0b 00000001 00000000 00000000 00000000"] {
        let decoded = BlockTransferMessage::decode(&bytes(hex));
        assert!(matches!(decoded, Err(ProtocolError::BadLength { .. })), "{hex}: {decoded:?}");
    }
}

#[test]
fn ess_02_other_texts_are_no_block_ids() {
    for text in [
        "",
        "_",
        "shuffle",
        "shuffle_",
        "shuffle_1_2",
        "shuffle_1_2_3_4_5",
        "shuffle_1_2_x",
        "shuffle_1_2_",
        "shuffle_1_2_2147483648",
        "shuffle__1_2_3",
        "rdd_1",
        "rdd_1_2_3",
        "rdd_1_-",
        "shuffleChunk_1_2_3",
        "broadcast_1",
        "shuffle_1_2_3/../x",
        " shuffle_1_2_3",
    ] {
        assert!(text.parse::<BlockId>().is_err(), "{text}");
    }
}

#[test]
fn ess_02_counts_larger_than_message_reserve_nothing() {
    let ids = "00000001 61 00000001 62";
    for hex in [
        format!("00 {ids} 7fffffff"),
        format!("00 {ids} ffffffff"),
        format!("09 {ids} 00000000 7fffffff"),
        format!("09 {ids} 00000000 00000000 7fffffff"),
        format!("09 {ids} 00000000 00000000 00000001 7fffffff"),
        format!("02 {ids} 7fffffff"),
        "0a 00000001 61 7fffffff".to_owned(),
        "0e 00000000 00000000 7fffffff".to_owned(),
    ] {
        let decoded = BlockTransferMessage::decode(&bytes(&hex));
        assert!(matches!(decoded, Err(ProtocolError::BadLength { .. })), "{hex}: {decoded:?}");
    }
}
