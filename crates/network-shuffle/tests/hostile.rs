//! Peers that send what no executor sends, and files that change while they are read.
#![allow(clippy::unwrap_used, reason = "a failure ends the test")]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use network_common::{ErrorKind, TransportClient, TransportError};
use network_shuffle::ShuffleService;
use network_shuffle::protocol::{BlockTransferMessage, IntLists, StringList};
use support::*;

async fn registered(settings: &[(&str, &str)]) -> (ShuffleService, TransportClient, Executor) {
    let (service, executor) = (start(settings).await, Executor::new(1));
    executor.write_map(0, &[b"a", b"bc"]);
    let client = connect(&service).await;
    executor.register(&client).await;
    (service, client, executor)
}

/// Fetches one block of map `map_id`.
async fn fetch(
    client: &TransportClient,
    map_id: i64,
    reduce_id: i32,
) -> Result<bytes::Bytes, TransportError> {
    let (stream, _) = open(client, &fetch_blocks(&[map_id], &[&[reduce_id]], false)).await?;
    client.fetch_chunk(stream, 0).await
}

/// Opens and fetches a block by its text.
async fn fetch_id(client: &TransportClient, id: &str) -> Result<bytes::Bytes, TransportError> {
    let (stream, _) = open(client, &open_blocks(&[id])).await?;
    client.fetch_chunk(stream, 0).await
}

#[tokio::test]
async fn ess_20_traversal_in_any_field_reads_and_deletes_nothing() {
    let (_service, client, executor) = registered(&[]).await;
    let outside = executor.root.path().join("outside");
    fs::write(&outside, "secret").unwrap();
    for id in [
        "../../outside",
        "shuffle_0_0_../../outside",
        "shuffle_0_../../../outside_0",
        "rdd_0_../../outside",
        "rdd_../../outside_0",
        "rdd_0_0/../../../outside",
        "rdd_0_0\0",
        "shuffleChunk_0_0_0_../x",
    ] {
        let error = fetch_id(&client, id).await.unwrap_err();
        assert!(text(&error).contains("Unexpected"), "{id}: {error:#}");
    }
    let names = ["../../outside", "../outside", "/etc/hosts", "a/../../../outside", "..", "."];
    let removed = ask(&client, &remove_blocks(&names)).await.unwrap();
    assert_eq!(removed, BlockTransferMessage::BlocksRemoved { count: 0 });
    // Ids of executors and applications are keys, not paths.
    let message = executor.registration_as("../../app", "../../../exec");
    client.send_rpc(message.encode()).await.unwrap();
    let other = BlockTransferMessage::OpenBlocks {
        app_id: "../../app".to_owned(),
        exec_id: "../../../other".to_owned(),
        block_ids: StringList::from_iter(["shuffle_0_0_0"]),
    };
    let (stream, _) = open(&client, &other).await.unwrap();
    assert!(client.fetch_chunk(stream, 0).await.is_err());
    assert_eq!(fs::read(&outside).unwrap(), b"secret");
    assert_eq!(fetch(&client, 0, 0).await.unwrap(), "a");
}

/// Replaces `path` by a link to a copy of it outside of the executor's directories.
fn replace_by_link(executor: &Executor, path: &Path) {
    let outside = executor.root.path().join("outside");
    fs::create_dir_all(&outside).unwrap();
    let target = outside.join(path.file_name().unwrap());
    fs::rename(path, &target).unwrap();
    symlink(&target, path).unwrap();
}

#[tokio::test]
async fn ess_20_symbolic_links_out_of_local_dirs_are_not_followed() {
    for (name, verify) in [
        ("shuffle_0_0_0.data", true),
        ("shuffle_0_0_0.index", true),
        ("rdd_0_0", true),
        ("shuffle_0_0_0.data", false),
        ("rdd_0_0", false),
    ] {
        let setting = verify.to_string();
        let key = "spark.shuffle.service.verifyBlockPathsAtRead";
        let (_service, client, executor) = registered(&[(key, &setting)]).await;
        executor.write("rdd_0_0", b"a");
        replace_by_link(&executor, &executor.path(name));
        let id = if name.starts_with("rdd") { "rdd_0_0" } else { "shuffle_0_0_0" };
        match fetch_id(&client, id).await {
            Ok(block) => assert!(!verify && block == "a", "{name}"),
            Err(error) => {
                let expected = "outside of the local directories of its executor";
                assert!(verify && text(&error).contains(expected), "{name}: {error:#}");
            }
        }
    }
}

#[tokio::test]
async fn ess_20_links_that_appear_after_the_check_are_not_followed() {
    let (service, client, executor) = registered(&[]).await;
    assert_eq!(fetch(&client, 0, 0).await.unwrap(), "a");
    replace_by_link(&executor, &executor.path("shuffle_0_0_0.data"));
    let error = fetch(&client, 0, 0).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ChunkFetchFailure);
    // The index is in the cache, so only the data file was opened.
    assert_eq!(service.metrics().index_reads, 1);

    // A whole directory is replaced.
    executor.write_map(1, &[b"b"]);
    assert_eq!(fetch(&client, 1, 0).await.unwrap(), "b");
    replace_by_link(&executor, executor.path("shuffle_0_1_0.data").parent().unwrap());
    fetch(&client, 1, 0).await.unwrap_err();
    assert!(connect(&service).await.is_active());
}

#[tokio::test]
async fn ess_20_removal_through_linked_directory_deletes_nothing() {
    let (_service, client, executor) = registered(&[]).await;
    let file = executor.write("rdd_0_0", b"a");
    replace_by_link(&executor, file.parent().unwrap());
    let removed = ask(&client, &remove_blocks(&["rdd_0_0"])).await.unwrap();
    assert_eq!(removed, BlockTransferMessage::BlocksRemoved { count: 0 });
    assert!(file.exists());
}

#[tokio::test]
async fn ess_20_extreme_numbers_are_errors() {
    let (service, client, executor) = registered(&[]).await;
    for (map_id, reduce_id) in [
        (0, -1),
        (0, i32::MIN),
        (0, i32::MAX),
        (0, 2),
        (-1, 0),
        (i64::MIN, 0),
        (i64::MAX, i32::MAX),
    ] {
        let error = fetch(&client, map_id, reduce_id).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ChunkFetchFailure, "{map_id} {reduce_id}");
    }
    for range in [[1, 0], [0, 3], [-1, 1], [i32::MIN, i32::MAX], [2, 2]] {
        let message = fetch_blocks(&[0], &[&range], true);
        let (stream, _) = open(&client, &message).await.unwrap();
        match client.fetch_chunk(stream, 0).await {
            Ok(chunk) => assert!(range == [2, 2] && chunk.is_empty(), "{range:?}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ChunkFetchFailure, "{range:?}"),
        }
    }
    for offsets in [
        &[0, 5, 3][..],
        &[0, u64::MAX, 3],
        &[u64::MAX, u64::MAX - 1, 0],
        &[0, 1 << 40, 1 << 41],
        &[7],
        &[],
    ] {
        executor.write_index(9, offsets);
        executor.write("shuffle_0_9_0.data", b"abc");
        let error = fetch(&client, 9, 1).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ChunkFetchFailure, "{offsets:?}");
        // Another executor id, because the index of the first one stays in the cache.
        executor.register(&client).await;
    }
    assert_eq!(service.metrics().open_streams, 0);
    assert_eq!(fetch(&client, 0, 1).await.unwrap(), "bc");
}

#[tokio::test]
async fn ess_20_files_of_other_kinds_are_errors() {
    let (_service, client, executor) = registered(&[]).await;
    for name in ["shuffle_0_0_0.index", "shuffle_0_0_0.data", "rdd_0_0"] {
        let path = executor.write(name, b"");
        fs::remove_file(&path).unwrap();
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let id = if name.starts_with("rdd") { "rdd_0_0" } else { "shuffle_0_0_0" };
        assert_eq!(fetch_id(&client, id).await.unwrap_err().kind(), ErrorKind::ChunkFetchFailure);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(fetch_id(&client, id).await.unwrap_err().kind(), ErrorKind::ChunkFetchFailure);
        fs::remove_dir(&path).unwrap();
        executor.write_map(0, &[b"a"]);
        executor.register(&client).await;
    }
}

#[tokio::test]
async fn ess_20_huge_index_file_is_not_kept_in_memory() {
    let (service, client, executor) = registered(&[]).await;
    let path = executor.write_index(5, &[0, 3]);
    fs::File::options().write(true).open(path).unwrap().set_len(8 << 30).unwrap();
    executor.write("shuffle_0_5_0.data", b"abc");
    assert_eq!(fetch(&client, 5, 0).await.unwrap(), "abc");
    assert_eq!(fetch(&client, 5, 1_000_000_000).await.unwrap(), "");
    assert_eq!(service.metrics().index_cache_bytes, 0);
}

#[tokio::test]
async fn ess_09_index_cache_is_bounded_with_its_keys() {
    const LIMIT: u64 = 64 << 10;
    let size = LIMIT.to_string();
    let settings = [("spark.shuffle.service.index.cache.size", size.as_str())];
    let (service, client, executor) = registered(&settings).await;
    for map_id in 0..500 {
        executor.write_map(map_id, &[b"abc"]);
        assert_eq!(fetch(&client, map_id, 0).await.unwrap(), "abc");
    }
    let metrics = service.metrics();
    assert_eq!(metrics.index_reads, 500);
    // An entry has at least 16 bytes of offsets and 176 bytes for its key and its place.
    assert!((LIMIT / 2..=LIMIT).contains(&metrics.index_cache_bytes), "{metrics:?}");
    assert_eq!(fetch(&client, 499, 0).await.unwrap(), "abc");
    assert_eq!(service.metrics().index_reads, 500);
}

#[tokio::test]
async fn ess_20_vanished_directory_fails_its_blocks_only() {
    let (service, client, executor) = registered(&[]).await;
    let other = Executor::new(1);
    other.write_map(0, &[b"other"]);
    client.send_rpc(other.registration_as("app-2", EXEC).encode()).await.unwrap();
    assert_eq!(fetch(&client, 0, 0).await.unwrap(), "a");
    fs::remove_dir_all(&executor.dirs[0]).unwrap();
    // The first index is in the cache, the second one is not.
    for map_id in [0, 1] {
        let error = fetch(&client, map_id, 0).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ChunkFetchFailure, "{error:#}");
        assert!(text(&error).contains("No such file or directory"), "{error:#}");
    }
    let message = BlockTransferMessage::FetchShuffleBlocks {
        app_id: "app-2".to_owned(),
        exec_id: EXEC.to_owned(),
        shuffle_id: 0,
        map_ids: vec![0],
        reduce_ids: IntLists::from_iter([vec![0]]),
        batch: false,
    };
    let (stream, _) = open(&client, &message).await.unwrap();
    assert_eq!(client.fetch_chunk(stream, 0).await.unwrap(), "other");
    assert_eq!(service.metrics().open_streams, 0);
}

#[tokio::test]
async fn ess_20_file_that_shrinks_fails_its_block_and_not_the_service() {
    let (service, client, executor) = registered(&[]).await;
    let block = vec![7; 64 << 20];
    executor.write_map(1, &[&block]);
    let path = executor.path("shuffle_0_1_0.data");
    let (stream, _) = open(&client, &fetch_blocks(&[1], &[&[0]], false)).await.unwrap();
    // The body is larger than all buffers, so most of it is not sent before it is read.
    let mut body = client.stream(&format!("{stream}_0")).await.unwrap();
    let first = body.next_piece().await.unwrap().unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(100).unwrap();
    let mut received = first.len();
    let error = loop {
        match body.next_piece().await {
            Some(Ok(piece)) => received += piece.len(),
            Some(Err(error)) => break error,
            None => panic!("all {received} bytes were received"),
        }
    };
    assert_eq!(error.kind(), ErrorKind::Closed, "{error:#}");

    // A file that is too short before it is sent fails its chunk only.
    let client = connect(&service).await;
    let error = fetch(&client, 1, 0).await.unwrap_err();
    assert!(text(&error).contains("Reached EOF before filling buffer"), "{error:#}");
    assert_eq!(fetch(&client, 0, 0).await.unwrap(), "a");
}

#[tokio::test]
async fn ess_20_open_streams_are_bounded_and_end_with_their_connections() {
    let settings = [("spark.shuffle.service.maxOpenStreamsSize", "64k")];
    let (service, client, _executor) = registered(&settings).await;
    let message = fetch_blocks(&[0], &[&[0, 1]], false);
    let mut opened = 0;
    let error = loop {
        match open(&client, &message).await {
            Ok(_) => opened += 1,
            Err(error) => break error,
        }
        assert!(opened < 1000);
    };
    assert!(text(&error).contains("spark.shuffle.service.maxOpenStreamsSize"), "{error:#}");
    assert!(opened > 100, "{opened}");
    let other = connect(&service).await;
    assert!(open(&other, &message).await.is_err());
    client.close();
    eventually("the streams are released", || service.metrics().open_streams == 0).await;
    assert_eq!(service.metrics().open_streams_bytes, 0);
    open(&other, &message).await.unwrap();
}

#[tokio::test]
async fn ess_20_million_block_ids_need_the_memory_of_their_message() {
    const COUNT: usize = 1_000_000;
    let (service, _client, _executor) = registered(&[]).await;
    let old = BlockTransferMessage::OpenBlocks {
        app_id: APP.to_owned(),
        exec_id: EXEC.to_owned(),
        block_ids: (0..COUNT).map(|_| "shuffle_0_0_0").collect(),
    };
    let new = BlockTransferMessage::FetchShuffleBlocks {
        app_id: APP.to_owned(),
        exec_id: EXEC.to_owned(),
        shuffle_id: 0,
        map_ids: vec![0; COUNT],
        reduce_ids: (0..COUNT).map(|_| vec![1]).collect(),
        batch: false,
    };
    for (message, expected) in [(old, "a"), (new, "bc")] {
        let client = connect(&service).await;
        let len = message.encode().len() as u64;
        let (stream, chunks) = open(&client, &message).await.unwrap();
        assert_eq!(chunks as usize, COUNT);
        let held = service.metrics().open_streams_bytes;
        // The ids of maps are copied.
        assert!((len..3 * len / 2 + 1000).contains(&held), "{held} bytes for {len}");
        for index in 0..100 {
            assert_eq!(client.fetch_chunk(stream, index).await.unwrap(), expected);
        }
        let rejected = client.fetch_chunk(stream, 999_999).await.unwrap_err();
        assert!(text(&rejected).contains("expected 100"), "{rejected}");
        client.close();
        eventually("the stream is released", || service.metrics().open_streams == 0).await;
    }
}

#[tokio::test]
async fn ess_20_pending_requests_of_a_connection_are_limited() {
    let settings = [("spark.shuffle.service.maxPendingRequestsPerConnection", "0")];
    let (service, executor) = (start(&settings).await, Executor::new(1));
    let client = connect(&service).await;
    let error = client.send_rpc(executor.registration().encode()).await.unwrap_err();
    let expected = "spark.shuffle.service.maxPendingRequestsPerConnection";
    assert!(text(&error).contains(expected), "{error:#}");
    assert_eq!(service.metrics().registered_executors, 0);
}

#[tokio::test]
async fn ess_20_texts_of_peers_are_cut_and_escaped_in_errors() {
    let (_service, client, _executor) = registered(&[]).await;
    let long = format!("line\nbreak\u{202e}{}", "x".repeat(1 << 20));
    for message in [
        open_blocks(&[&long]),
        BlockTransferMessage::GetLocalDirsForExecutors {
            app_id: long.clone(),
            exec_ids: StringList::from_iter([&long]),
        },
    ] {
        // The client cuts and escapes texts, too, so its text is compared before that.
        let error = client.send_rpc(message.encode()).await.unwrap_err();
        let text = text(&error);
        assert!(text.len() < 1000 && !text.contains(['\n', '\u{202e}']), "{text}");
        assert!(text.contains("..."), "{text}");
    }
}
