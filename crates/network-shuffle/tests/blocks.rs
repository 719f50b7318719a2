//! Blocks of registered executors are served as in Spark's `ExternalShuffleIntegrationSuite`.
#![allow(clippy::unwrap_used, reason = "a failure ends the test")]

mod support;

use bytes::Bytes;
use network_common::ErrorKind;
use network_shuffle::protocol::{BlockTransferMessage, IntLists, StringList};
use support::*;

async fn registered(
    blocks: &[&[u8]],
) -> (network_shuffle::ShuffleService, network_common::TransportClient, Executor) {
    let (service, executor) = (start(&[]).await, Executor::new(2));
    executor.write_map(0, blocks);
    executor.write_map(1, blocks);
    let client = connect(&service).await;
    executor.register(&client).await;
    (service, client, executor)
}

#[tokio::test]
async fn ess_03_both_fetch_protocols_return_the_blocks_in_order() {
    let (service, client, _executor) = registered(&[b"", b"one", b"two!"]).await;
    for message in [
        open_blocks(&["shuffle_0_1_2", "shuffle_0_0_1", "shuffle_0_0_0"]),
        fetch_blocks(&[1, 0], &[&[2], &[1, 0]], false),
    ] {
        let (stream, chunks) = open(&client, &message).await.unwrap();
        assert_eq!(chunks, 3);
        for (index, expected) in [&b"two!"[..], b"one", b""].into_iter().enumerate() {
            let chunk = client.fetch_chunk(stream, index as i32).await.unwrap();
            assert_eq!(chunk, expected);
        }
    }
    let metrics = service.metrics();
    assert_eq!((metrics.blocks, metrics.chunks, metrics.bytes), (6, 6, 14));
    assert_eq!((metrics.open_blocks_requests, metrics.fetch_requests), (1, 1));
    assert_eq!((metrics.open_streams, metrics.open_streams_bytes), (0, 0));
}

#[tokio::test]
async fn ess_03_batch_is_one_chunk_of_adjacent_blocks() {
    let (service, client, _executor) = registered(&[b"a", b"bc", b"def"]).await;
    let batch = fetch_blocks(&[0, 1], &[&[1, 3], &[0, 2]], true);
    let (stream, chunks) = open(&client, &batch).await.unwrap();
    assert_eq!(chunks, 2);
    assert_eq!(client.fetch_chunk(stream, 0).await.unwrap(), "bcdef");
    assert_eq!(client.fetch_chunk(stream, 1).await.unwrap(), "abc");
    assert_eq!(service.metrics().blocks, 4);
}

#[tokio::test]
async fn ess_03_chunks_can_be_read_as_streams() {
    let (service, client, _executor) = registered(&[b"a", b"bc"]).await;
    let (stream, _) = open(&client, &fetch_blocks(&[0], &[&[0, 1]], false)).await.unwrap();
    for (index, expected) in ["a", "bc"].into_iter().enumerate() {
        let mut body = client.stream(&format!("{stream}_{index}")).await.unwrap();
        assert_eq!(body.next_piece().await.unwrap().unwrap(), expected);
    }
    assert_eq!(service.metrics().stream_requests, 2);
    for name in ["1", "x_0", "1_2_3", ""] {
        let error = client.stream(name).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StreamFailure);
    }
}

#[tokio::test]
async fn ess_03_missing_block_fails_its_chunk_only() {
    let (_service, client, _executor) = registered(&[b"a"]).await;
    // Nothing is looked up when the stream is opened.
    let message = fetch_blocks(&[7, 0, 0], &[&[0], &[1], &[0]], false);
    let (stream, _) = open(&client, &message).await.unwrap();
    let missing = client.fetch_chunk(stream, 0).await.unwrap_err();
    assert!(text(&missing).contains("Failed to open file: "), "{missing}");
    let out_of_range = client.fetch_chunk(stream, 1).await.unwrap_err();
    assert!(text(&out_of_range).contains("IndexOutOfBounds"), "{out_of_range}");
    assert_eq!(client.fetch_chunk(stream, 2).await.unwrap(), "a");
}

#[tokio::test]
async fn ess_03_unregistered_executor_fails_its_chunks_with_text_of_spark() {
    let service = start(&[]).await;
    let client = connect(&service).await;
    let (stream, _) = open(&client, &fetch_blocks(&[0], &[&[0]], false)).await.unwrap();
    let error = client.fetch_chunk(stream, 0).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ChunkFetchFailure);
    let expected = "Executor is not registered (appId=app-1, execId=exec-2)";
    assert!(text(&error).contains(expected), "{error}");
}

#[tokio::test]
async fn ess_03_malformed_requests_fail_and_keep_the_connection() {
    let (service, client, _executor) = registered(&[b"a"]).await;
    let cases: [(Bytes, &str); 12] = [
        (Bytes::from_static(&[200]), "Unknown message type: -56"),
        (Bytes::from_static(&[20]), "Unknown message type: 20"),
        (Bytes::new(), "message type needs 1 bytes"),
        (Bytes::from_static(&[0, 0, 0, 0, 9]), "appId has the length 9"),
        (open_blocks(&[]).encode(), "Empty blockIds"),
        (
            open_blocks(&["shuffle_0_0_0", "shuffle_1_0_0"]).encode(),
            "Expected shuffleId=0, got:shuffle_1_0_0",
        ),
        (
            open_blocks(&["shuffle_0_0_0", "rdd_0_0"]).encode(),
            "Unexpected shuffle block id format: rdd_0_0",
        ),
        (
            open_blocks(&["rdd_0_0", "shuffle_0_0_0"]).encode(),
            "Unexpected RDD block id format: shuffle_0_0_0",
        ),
        (open_blocks(&["shuffle_0_0_0_1"]).encode(), "Unexpected block id format: shuffle_0_0_0_1"),
        (open_blocks(&["shuffle_0_4294967296_0"]).encode(), "Unexpected shuffle block id format"),
        (fetch_blocks(&[], &[], false).encode(), "0 maps and 0 lists"),
        (fetch_blocks(&[0], &[&[0, 1, 2]], true).encode(), "not 3 ids"),
    ];
    for (message, expected) in cases {
        let error = client.send_rpc(message).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Remote);
        assert!(text(&error).contains(expected), "{error:#} lacks {expected}");
    }
    assert_eq!(service.metrics().failed_requests, 12);
    let (stream, _) = open(&client, &fetch_blocks(&[0], &[&[0]], false)).await.unwrap();
    assert_eq!(client.fetch_chunk(stream, 0).await.unwrap(), "a");
}

#[tokio::test]
async fn ess_06_chunks_are_served_once_and_in_order() {
    let (_service, client, _executor) = registered(&[b"a", b"b"]).await;
    let (stream, _) = open(&client, &fetch_blocks(&[0], &[&[0, 1]], false)).await.unwrap();
    for (index, expected) in [
        (1, Err("Received out-of-order chunk index 1 (expected 0)")),
        (-1, Err("Received out-of-order chunk index -1 (expected 0)")),
        (0, Ok("a")),
        (0, Err("Received out-of-order chunk index 0 (expected 1)")),
        (1, Ok("b")),
        (2, Err("is closed")),
    ] {
        match (client.fetch_chunk(stream, index).await, expected) {
            (Ok(chunk), Ok(expected)) => assert_eq!(chunk, expected),
            (Err(error), Err(expected)) => {
                assert!(text(&error).contains(expected), "{error}")
            }
            (chunk, _) => panic!("{index}: {chunk:?}"),
        }
    }
}

#[tokio::test]
async fn ess_06_stream_belongs_to_its_connection_and_ends_with_it() {
    let (service, client, _executor) = registered(&[b"a", b"b"]).await;
    let (stream, _) = open(&client, &fetch_blocks(&[0], &[&[0, 1]], false)).await.unwrap();
    assert_eq!(service.metrics().open_streams, 1);
    let other = connect(&service).await;
    let error = other.fetch_chunk(stream, 0).await.unwrap_err();
    assert!(text(&error).contains("is closed"), "{error}");
    assert_eq!(client.fetch_chunk(stream, 0).await.unwrap(), "a");
    client.close();
    eventually("the stream is released", || service.metrics().open_streams == 0).await;
    assert_eq!(service.metrics().open_streams_bytes, 0);
}

#[tokio::test]
async fn ess_13_cached_partition_is_served_or_not_found() {
    let (_service, client, executor) = registered(&[b"a"]).await;
    executor.write("rdd_3_1", b"cached");
    let (stream, _) =
        open(&client, &open_blocks(&["rdd_3_1", "rdd_3_2", "rdd_3_1"])).await.unwrap();
    assert_eq!(client.fetch_chunk(stream, 0).await.unwrap(), "cached");
    let error = client.fetch_chunk(stream, 1).await.unwrap_err();
    assert!(text(&error).contains("Chunk was not found"), "{error}");
    assert_eq!(client.fetch_chunk(stream, 2).await.unwrap(), "cached");
}

#[tokio::test]
async fn ess_10_remove_blocks_deletes_files_and_skips_other_names() {
    let (service, client, executor) = registered(&[b"a"]).await;
    let rdd = executor.write("rdd_0_0", b"cached");
    let outside = executor.root.path().join("outside");
    std::fs::write(&outside, "kept").unwrap();
    let names = ["rdd_0_0", "rdd_0_1", "", ".", "..", "../../outside", "a\\b", "a\0b"];
    let removed = ask(&client, &remove_blocks(&names)).await.unwrap();
    assert_eq!(removed, BlockTransferMessage::BlocksRemoved { count: 1 });
    assert!(!rdd.exists() && outside.exists());
    assert_eq!(service.metrics().removed_blocks, 1);

    let other = BlockTransferMessage::RemoveBlocks {
        app_id: APP.to_owned(),
        exec_id: "unknown".to_owned(),
        block_ids: StringList::from_iter(["rdd_0_0"]),
    };
    let error = ask(&client, &other).await.unwrap_err();
    assert!(text(&error).contains("Executor is not registered"), "{error}");
}

#[tokio::test]
async fn ess_11_local_dirs_of_executors_are_returned() {
    let (_service, client, executor) = registered(&[b"a"]).await;
    let message = |ids: &[&str]| BlockTransferMessage::GetLocalDirsForExecutors {
        app_id: APP.to_owned(),
        exec_ids: StringList::from_iter(ids),
    };
    let expected = vec![(EXEC.to_owned(), executor.info().local_dirs)];
    assert_eq!(
        ask(&client, &message(&[EXEC])).await.unwrap(),
        BlockTransferMessage::LocalDirsForExecutors { local_dirs: expected }
    );
    let error = ask(&client, &message(&[EXEC, "unknown"])).await.unwrap_err();
    assert!(text(&error).contains("execId=unknown"), "{error}");
    let error = ask(&client, &message(&["shuffle-push-merger"])).await.unwrap_err();
    assert!(text(&error).contains("Cannot handle shuffle block merge"), "{error}");
}

#[tokio::test]
async fn ess_16_merged_shuffle_is_rejected_as_by_standalone_service() {
    let (_service, client, _executor) = registered(&[b"a"]).await;
    let no_merge = "Cannot handle shuffle block merge";
    let app_id = APP.to_owned();
    let finalize = BlockTransferMessage::FinalizeShuffleMerge {
        app_id: app_id.clone(),
        app_attempt_id: 1,
        shuffle_id: 0,
        shuffle_merge_id: 0,
    };
    assert!(text(&ask(&client, &finalize).await.unwrap_err()).contains(no_merge));
    let chunks = BlockTransferMessage::FetchShuffleBlockChunks {
        app_id,
        exec_id: EXEC.to_owned(),
        shuffle_id: 0,
        shuffle_merge_id: 0,
        reduce_ids: vec![0, 1],
        chunk_ids: IntLists::from_iter([vec![0, 1], vec![0]]),
    };
    let (stream, count) = open(&client, &chunks).await.unwrap();
    assert_eq!(count, 3);
    assert!(text(&client.fetch_chunk(stream, 0).await.unwrap_err()).contains(no_merge));
    let meta = client.merged_block_meta(APP, 0, 0, 0).await.unwrap_err();
    assert!(text(&meta).contains(no_merge), "{meta}");
    let push = BlockTransferMessage::PushBlockStream {
        app_id: APP.to_owned(),
        app_attempt_id: 1,
        shuffle_id: 0,
        shuffle_merge_id: 0,
        map_index: 0,
        reduce_id: 0,
        index: 0,
    };
    let error = client.upload_stream(push.encode(), Bytes::from("data")).await.unwrap_err();
    assert!(text(&error).contains(no_merge), "{error}");
}
