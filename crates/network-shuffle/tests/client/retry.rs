//! Repeated fetches (Spark's `RetryingBlockTransferorSuite`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use network_common::auth::{Secret, SecretStore};
use network_common::{ErrorKind, NoOpRpcHandler, TransportConf, TransportContext};
use network_shuffle::client::{
    BlockClientConf, BlockError, BlockLocation, ExternalBlockStoreClient, FetchTarget,
};
use network_shuffle::protocol::BlockId;

use crate::server::{Answer, BlockServer, Request, assert_all, block, client, collect, text};
use crate::support::{APP, EXEC};

/// Closes the connection at chunk 1 of the first `closes` streams.
fn closing(closes: usize) -> impl Fn(&Request) -> Answer {
    move |request| {
        if request.open < closes && request.chunk == Some(1) {
            Answer::Close
        } else {
            Answer::Serve
        }
    }
}

fn kind(error: &BlockError) -> ErrorKind {
    match error {
        BlockError::Transport { source, .. } => source.kind(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn bc_03_only_missing_blocks_are_requested_again_after_lost_connection() {
    for files in [false, true] {
        let server = BlockServer::start(closing(2)).await;
        let directory = tempfile::tempdir().unwrap();
        let target = if files {
            FetchTarget::Files(directory.path().to_owned())
        } else {
            FetchTarget::Memory
        };
        let blocks: Vec<BlockId> = (0..5).map(|map| block(map, 0)).collect();
        let fetch = client(&[]).fetch_blocks(&server.location(), blocks.clone(), target);
        assert_all(collect(fetch).await, &blocks);
        assert_eq!(server.opened_blocks(), [&blocks[..], &blocks[1..], &blocks[2..]]);
    }
}

#[tokio::test]
async fn bc_03_missing_blocks_fail_after_max_retries() {
    let server = BlockServer::start(closing(usize::MAX)).await;
    let blocks: Vec<BlockId> = (0..9).map(|map| block(map, 0)).collect();
    let client = client(&[("spark.shuffle.io.maxRetries", "2")]);
    let results =
        collect(client.fetch_blocks(&server.location(), blocks, FetchTarget::Memory)).await;
    // One block arrives in each attempt, which does not reset the count.
    assert_eq!(results.iter().filter(|(_, result)| result.is_ok()).count(), 3);
    assert_eq!(results.len(), 9);
    for (_, result) in &results[3..] {
        assert_eq!(kind(result.as_ref().unwrap_err()), ErrorKind::Closed);
    }
    assert_eq!(server.opened_blocks().len(), 3);
}

#[tokio::test]
async fn bc_03_zero_retries_mean_one_attempt() {
    let server = BlockServer::start(|_| Answer::Close).await;
    let client = client(&[("spark.shuffle.io.maxRetries", "0")]);
    let results =
        collect(client.fetch_blocks(&server.location(), [block(0, 0)], FetchTarget::Memory)).await;
    assert_eq!(kind(results[0].1.as_ref().unwrap_err()), ErrorKind::Closed);
    assert_eq!(server.opened_blocks().len(), 1);
}

#[tokio::test]
async fn bc_03_failures_that_peer_reports_are_not_repeated() {
    for chunk in [None, Some(0), Some(2)] {
        let fail = move |request: &Request| {
            if request.chunk == chunk { Answer::Fail("no such block") } else { Answer::Serve }
        };
        let server = BlockServer::start(fail).await;
        let blocks: Vec<BlockId> = (0..5).map(|map| block(map, 0)).collect();
        let fetch = client(&[]).fetch_blocks(&server.location(), blocks, FetchTarget::Memory);
        let results = collect(fetch).await;
        assert_eq!(results.len(), 5);
        // The blocks behind the failed one have failed, too.
        let arrived = chunk.unwrap_or_default() as usize;
        assert!(results[..arrived].iter().all(|(_, result)| result.is_ok()));
        for (_, result) in &results[arrived..] {
            let error = result.as_ref().unwrap_err();
            let expected =
                if chunk.is_some() { ErrorKind::ChunkFetchFailure } else { ErrorKind::Remote };
            assert_eq!(kind(error), expected);
            assert!(text(error).contains("no such block"), "{error:#}");
        }
        assert_eq!(server.opened_blocks().len(), 1);
    }
}

#[tokio::test]
async fn bc_03_stream_failures_are_not_repeated_and_leave_no_file() {
    let fail = |request: &Request| {
        if request.chunk == Some(1) { Answer::Fail("no such block") } else { Answer::Serve }
    };
    let server = BlockServer::start(fail).await;
    let directory = tempfile::tempdir().unwrap();
    let target = FetchTarget::Files(directory.path().to_owned());
    let blocks = [block(0, 0), block(1, 0), block(2, 0)];
    let results = collect(client(&[]).fetch_blocks(&server.location(), blocks, target)).await;
    assert!(results[0].1.is_ok());
    for (_, result) in &results[1..] {
        assert_eq!(kind(result.as_ref().unwrap_err()), ErrorKind::StreamFailure);
    }
    drop(results);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn bc_03_server_that_starts_later_is_reached_by_retry() {
    // Holds the port until the server starts.
    let reserved = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = reserved.local_addr().unwrap().port();
    drop(reserved);
    let location = BlockLocation::new(("127.0.0.1", port), EXEC);
    let client = client(&[("spark.shuffle.io.maxRetries", "100")]);
    let fetch = client.fetch_blocks(&location, [block(0, 0)], FetchTarget::Memory);
    let results = tokio::spawn(collect(fetch));
    // Several attempts fail; the count of attempts is not visible from outside.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let _server = BlockServer::start_on(port, |_| Answer::Serve).await;
    assert_all(results.await.unwrap(), &[block(0, 0)]);
}

#[tokio::test]
async fn bc_03_attempts_are_retry_wait_apart() {
    let server = BlockServer::start(|_| Answer::Close).await;
    let client =
        client(&[("spark.shuffle.io.maxRetries", "2"), ("spark.shuffle.io.retryWait", "150ms")]);
    let start = Instant::now();
    collect(client.fetch_blocks(&server.location(), [block(0, 0)], FetchTarget::Memory)).await;
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
    assert_eq!(server.opened_blocks().len(), 3);
}

#[tokio::test]
async fn bc_10_closed_client_fails_fetches_without_repeating_them() {
    let opened = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&opened);
    let server = BlockServer::start(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        Answer::Hang
    })
    .await;
    let client = client(&[("spark.shuffle.io.maxRetries", "1000")]);
    let blocks = [block(0, 0), block(1, 0)];
    let fetch = client.fetch_blocks(&server.location(), blocks, FetchTarget::Memory);
    crate::support::eventually("the fetch is pending", || opened.load(Ordering::Relaxed) == 1)
        .await;
    client.close();
    let results = collect(fetch).await;
    assert!(
        results.iter().all(|(_, result)| kind(result.as_ref().unwrap_err()) == ErrorKind::Closed)
    );
    let late = client.fetch_blocks(&server.location(), blocks, FetchTarget::Memory);
    assert!(collect(late).await.iter().all(|(_, result)| result.is_err()));
    assert_eq!(opened.load(Ordering::Relaxed), 1);
}

/// Fetches from a server that never answers the authentication; returns the connections it got.
///
/// It keeps the first `silent` connections open, and closes the later ones.
async fn connections_of_failed_authentication(
    silent: usize,
    enable_retries: &str,
    max_retries: &str,
) -> usize {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let location = BlockLocation::new(listener.local_addr().unwrap(), EXEC);
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&accepted);
    let server = tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((socket, _)) = listener.accept().await {
            if count.fetch_add(1, Ordering::Relaxed) < silent {
                open.push(socket);
            }
        }
    });
    let settings = [
        ("spark.authenticate", "true"),
        ("spark.network.crypto.enabled", "true"),
        ("spark.network.auth.rpcTimeout", "200ms"),
        ("spark.shuffle.io.retryWait", "20ms"),
        ("spark.shuffle.io.maxRetries", max_retries),
        ("spark.shuffle.sasl.enableRetries", enable_retries),
    ];
    let secrets = SecretStore::new();
    secrets.register_app(APP, Secret::new("secret"));
    let conf = TransportConf::from_settings("shuffle", settings).unwrap();
    let context = TransportContext::new(conf, NoOpRpcHandler::new());
    let context = context.with_auth(APP, Arc::new(secrets)).unwrap();
    let conf = BlockClientConf::from_settings(settings).unwrap();
    let client = ExternalBlockStoreClient::new(context, APP, conf);
    let fetch = client.fetch_blocks(&location, [block(0, 0)], FetchTarget::Memory);
    let results = collect(fetch).await;
    assert_eq!(kind(results[0].1.as_ref().unwrap_err()), ErrorKind::Bootstrap);
    server.abort();
    accepted.load(Ordering::Relaxed)
}

#[tokio::test]
async fn bc_03_authentication_timeouts_are_repeated_only_if_enabled() {
    assert_eq!(connections_of_failed_authentication(usize::MAX, "false", "2").await, 1);
    assert_eq!(connections_of_failed_authentication(usize::MAX, "true", "2").await, 3);
}

#[tokio::test]
async fn bc_03_authentication_timeouts_do_not_count_when_another_error_follows() {
    // One that times out, one that is closed, and its one repetition.
    assert_eq!(connections_of_failed_authentication(1, "true", "1").await, 3);
    assert_eq!(connections_of_failed_authentication(0, "true", "1").await, 2);
}
