//! Fetches from the service of this crate, and the messages that open streams.

use std::fs;

use bytes::Bytes;
use futures::StreamExt;
use network_shuffle::ShuffleService;
use network_shuffle::client::{BlockError, BlockLocation, FetchTarget};
use network_shuffle::protocol::{BlockId, BlockTransferMessage};
use proptest::prelude::*;

use crate::server::{
    Answer, BlockServer, assert_all, block, client, collect, content, text, within,
};
use crate::support::{self, EXEC, Executor};

const REDUCES: i32 = 5;

/// Starts a service with an executor that has written `maps` maps.
async fn service(maps: i64) -> (ShuffleService, Executor, BlockLocation) {
    let service = support::start(&[]).await;
    let executor = Executor::new(2);
    for map_id in 0..maps {
        let blocks: Vec<Bytes> =
            (0..REDUCES).map(|reduce| content(block(map_id, reduce))).collect();
        let blocks: Vec<&[u8]> = blocks.iter().map(|block| &block[..]).collect();
        executor.write_map(map_id, &blocks);
    }
    let location = BlockLocation::new(service.local_addr(), EXEC);
    client(&[]).register(&location, executor.info()).await.unwrap();
    (service, executor, location)
}

fn all_blocks(maps: i64) -> Vec<BlockId> {
    // By reduce id, so that the blocks of a map do not follow each other.
    (0..REDUCES).flat_map(|reduce| (0..maps).map(move |map| block(map, reduce))).collect()
}

#[tokio::test]
async fn bc_01_blocks_arrive_once_in_both_protocols_and_targets() {
    let (_service, executor, location) = service(7).await;
    for old in ["false", "true"] {
        for target in [FetchTarget::Memory, FetchTarget::Files(executor.root.path().to_owned())] {
            let client = client(&[("spark.shuffle.useOldFetchProtocol", old)]);
            let blocks = all_blocks(7);
            let fetch = client.fetch_blocks(&location, blocks.clone(), target);
            assert_eq!((fetch.len(), fetch.is_empty()), (35, false));
            assert_all(collect(fetch).await, &blocks);
        }
    }
}

#[tokio::test]
async fn bc_01_thousands_of_blocks_are_fetched_in_one_stream() {
    let (service, _executor, location) = service(1000).await;
    let blocks = all_blocks(1000);
    let fetch = client(&[]).fetch_blocks(&location, blocks.clone(), FetchTarget::Memory);
    assert_all(collect(fetch).await, &blocks);
    assert_eq!(service.metrics().fetch_requests, 1);
    assert_eq!(service.metrics().open_streams, 0);
}

#[tokio::test]
async fn bc_01_batches_are_the_blocks_of_their_range() {
    let (_service, _executor, location) = service(2).await;
    let batch = |map_id, start_reduce_id, end_reduce_id| BlockId::ShuffleBatch {
        shuffle_id: 0,
        map_id,
        start_reduce_id,
        end_reduce_id,
    };
    // Two batches of one map are two chunks.
    let batches = [batch(1, 0, 5), batch(0, 0, 2), batch(1, 3, 4)];
    let results = collect(client(&[]).fetch_blocks(&location, batches, FetchTarget::Memory)).await;
    assert_eq!(results.len(), 3);
    for (id, result) in results {
        let BlockId::ShuffleBatch { map_id, start_reduce_id, end_reduce_id, .. } = id else {
            panic!("{id}");
        };
        let expected: Vec<u8> =
            (start_reduce_id..end_reduce_id).flat_map(|id| content(block(map_id, id))).collect();
        assert_eq!(result.unwrap(), expected);
    }
}

#[tokio::test]
async fn bc_01_cached_partitions_are_fetched_with_old_message() {
    let (service, executor, location) = service(0).await;
    executor.write("rdd_3_1", b"cached");
    let blocks = [1, 2].map(|split_index| BlockId::Rdd { rdd_id: 3, split_index });
    let results = collect(client(&[]).fetch_blocks(&location, blocks, FetchTarget::Memory)).await;
    assert_eq!(results[0].1.as_ref().unwrap(), "cached");
    let error = text(results[1].1.as_ref().unwrap_err());
    assert!(error.contains("Chunk was not found"), "{error}");
    assert_eq!(service.metrics().open_blocks_requests, 1);
}

#[tokio::test]
async fn bc_01_no_blocks_are_an_empty_stream() {
    let location = BlockLocation::new(("127.0.0.1", 1), EXEC);
    assert_eq!(
        collect(client(&[]).fetch_blocks(&location, [], FetchTarget::Memory)).await.len(),
        0
    );
}

#[tokio::test]
async fn bc_02_blocks_that_no_message_can_request_fail_without_one() {
    let server = BlockServer::start(|_| Answer::Serve).await;
    let batch =
        BlockId::ShuffleBatch { shuffle_id: 0, map_id: 0, start_reduce_id: 2, end_reduce_id: 2 };
    let other_shuffle = BlockId::Shuffle { shuffle_id: 1, map_id: 0, reduce_id: 0 };
    for blocks in [vec![batch], vec![block(0, 0), batch], vec![block(0, 0), other_shuffle]] {
        let fetch =
            client(&[]).fetch_blocks(&server.location(), blocks.clone(), FetchTarget::Memory);
        let results = collect(fetch).await;
        assert_eq!(results.len(), blocks.len());
        for (_, result) in results {
            assert!(matches!(result, Err(BlockError::InvalidRequest { .. })), "{result:?}");
        }
    }
    assert_eq!(server.opened_blocks(), Vec::<Vec<BlockId>>::new());
}

#[tokio::test]
async fn bc_02_message_depends_on_kinds_of_blocks_and_setting() {
    let server = BlockServer::start(|_| Answer::Serve).await;
    let rdd = BlockId::Rdd { rdd_id: 0, split_index: 0 };
    let chunk = |reduce_id, chunk_id| BlockId::ShuffleChunk {
        shuffle_id: 0,
        shuffle_merge_id: 1,
        reduce_id,
        chunk_id,
    };
    let cases = [
        ("false", vec![block(0, 0), block(1, 0), block(0, 1)], 9),
        ("false", vec![chunk(0, 0), chunk(1, 0), chunk(0, 1)], 15),
        ("false", vec![rdd], 0),
        ("false", vec![rdd, block(0, 0)], 0),
        ("true", vec![block(0, 0), block(1, 0), block(0, 1)], 0),
    ];
    for (old, blocks, message_type) in cases {
        let client = client(&[("spark.shuffle.useOldFetchProtocol", old)]);
        let fetch = client.fetch_blocks(&server.location(), blocks.clone(), FetchTarget::Memory);
        assert_all(collect(fetch).await, &blocks);
        let message: BlockTransferMessage = server.state.opened.lock().pop().unwrap();
        assert_eq!(message.encode()[0], message_type, "{message:?}");
    }
}

#[tokio::test]
async fn bc_05_files_live_as_long_as_their_buffers() {
    let (_service, _executor, location) = service(3).await;
    let directory = tempfile::tempdir().unwrap();
    let files = || fs::read_dir(directory.path()).unwrap().count();
    let target = FetchTarget::Files(directory.path().to_owned());
    let blocks = [block(0, 1), block(1, 1), block(2, 1)];
    let mut fetch = client(&[]).fetch_blocks(&location, blocks, target);
    let mut buffers = Vec::new();
    while let Some((id, buffer)) = within(fetch.next()).await {
        buffers.push((id, buffer.unwrap()));
    }
    assert_eq!(files(), 3);
    for (id, buffer) in &buffers {
        assert_eq!(buffer.read().await.unwrap(), content(*id));
    }
    let clone = buffers[0].1.clone();
    drop(buffers);
    assert_eq!(files(), 1);
    assert_eq!(clone.read().await.unwrap(), content(block(0, 1)));
    drop(clone);
    assert_eq!(files(), 0);
}

#[tokio::test]
async fn bc_05_directory_that_is_missing_fails_blocks_and_names_it() {
    let (_service, executor, location) = service(1).await;
    let missing = executor.root.path().join("missing");
    let client = client(&[("spark.shuffle.io.maxRetries", "1")]);
    let target = FetchTarget::Files(missing.clone());
    let results = collect(client.fetch_blocks(&location, [block(0, 0), block(0, 1)], target)).await;
    assert_eq!(results.len(), 2);
    for (_, result) in results {
        let error = text(&result.unwrap_err());
        assert!(error.contains(missing.to_str().unwrap()), "{error}");
        assert!(error.contains("No such file"), "{error}");
    }
}

fn any_blocks() -> impl Strategy<Value = Vec<BlockId>> {
    let single = (0..4_i64, 0..4_i32).prop_map(|(map, reduce)| block(map, reduce));
    let batch = (0..4_i64, 0..4_i32, 1..4_i32).prop_map(|(map_id, start_reduce_id, count)| {
        let end_reduce_id = start_reduce_id + count;
        BlockId::ShuffleBatch { shuffle_id: 0, map_id, start_reduce_id, end_reduce_id }
    });
    let chunk = (0..4_i32, 0..4_i32).prop_map(|(reduce_id, chunk_id)| BlockId::ShuffleChunk {
        shuffle_id: 0,
        shuffle_merge_id: 0,
        reduce_id,
        chunk_id,
    });
    let rdd =
        (0..4_i32, 0..4_i32).prop_map(|(rdd_id, split_index)| BlockId::Rdd { rdd_id, split_index });
    prop_oneof![
        prop::collection::vec(single, 1..30),
        prop::collection::vec(batch, 1..30),
        prop::collection::vec(chunk, 1..30),
        prop::collection::vec(rdd, 1..30),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Also if a block is requested twice.
    #[test]
    fn bc_02_each_result_belongs_to_its_block_for_any_list(blocks in any_blocks(), old: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = BlockServer::start(|_| Answer::Serve).await;
            let client = client(&[("spark.shuffle.useOldFetchProtocol", &old.to_string())]);
            let fetch =
                client.fetch_blocks(&server.location(), blocks.clone(), FetchTarget::Memory);
            assert_all(collect(fetch).await, &blocks);
        });
    }
}
