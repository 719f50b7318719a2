//! Fetches that are dropped at any point leave nothing open.

use std::time::Duration;

use futures::StreamExt;
use network_common::{NoOpRpcHandler, TransportConf, TransportContext, TransportMetrics};
use network_shuffle::client::{BlockClientConf, ExternalBlockStoreClient, FetchTarget};
use network_shuffle::protocol::BlockId;
use tempfile::TempDir;

use crate::server::{Answer, BlockServer, assert_all, block, collect, content, within};
use crate::support::{APP, eventually};

/// A client whose tasks, requests and files are counted.
struct Watched {
    client: ExternalBlockStoreClient,
    metrics: TransportMetrics,
    directory: TempDir,
    tasks: usize,
}

fn alive_tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

impl Watched {
    /// Connects to the server, so that its connection is not counted as new tasks later.
    async fn connect(server: &BlockServer, settings: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut all = vec![
            ("spark.local.dir", directory.path().to_str().unwrap()),
            ("spark.shuffle.io.retryWait", "10ms"),
        ];
        all.extend_from_slice(settings);
        let conf = TransportConf::from_settings("shuffle", all.iter().copied()).unwrap();
        let context = TransportContext::new(conf, NoOpRpcHandler::new());
        let metrics = context.metrics();
        let conf = BlockClientConf::from_settings(all).unwrap();
        let client = ExternalBlockStoreClient::new(context, APP, conf);
        let fetch = client.fetch_blocks(&server.location(), [block(0, 0)], FetchTarget::Memory);
        assert_all(collect(fetch).await, &[block(0, 0)]);
        let watched = Self { client, metrics, directory, tasks: 0 };
        watched.assert_requests_end().await;
        // The task of the fetch ends after its last block.
        let tasks = settled_tasks().await;
        Self { tasks, ..watched }
    }

    async fn assert_requests_end(&self) {
        eventually("no request is pending", || {
            self.metrics.client().snapshot().pending_requests == 0
        })
        .await;
    }

    /// Waits until nothing of the dropped fetches is left.
    async fn assert_nothing_is_left(&self) {
        self.assert_requests_end().await;
        eventually("no task is left", || alive_tasks() <= self.tasks).await;
        let files = || std::fs::read_dir(self.directory.path()).unwrap().count();
        eventually("no file is left", || files() == 0).await;
        assert_eq!(self.metrics.client().snapshot().connections, 1);
    }
}

/// Returns the number of tasks when it has not changed for a while.
async fn settled_tasks() -> usize {
    let (mut tasks, mut same) = (alive_tasks(), 0);
    while same < 20 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        same = if alive_tasks() == tasks { same + 1 } else { 0 };
        tasks = alive_tasks();
    }
    tasks
}

fn blocks(count: i64) -> Vec<BlockId> {
    (0..count).map(|map| block(map, 1)).collect()
}

#[tokio::test]
async fn bc_09_fetch_dropped_after_any_number_of_blocks_leaves_nothing_open() {
    let server = BlockServer::start(|_| Answer::Serve).await;
    let watched = Watched::connect(&server, &[]).await;
    let files = FetchTarget::Files(watched.directory.path().to_owned());
    for target in [FetchTarget::Memory, files] {
        for taken in 0..20 {
            let mut fetch =
                watched.client.fetch_blocks(&server.location(), blocks(20), target.clone());
            for _ in 0..taken {
                within(fetch.next()).await.unwrap().1.unwrap();
            }
            drop(fetch);
            watched.assert_nothing_is_left().await;
        }
        // The connection is as good as before.
        let fetch = watched.client.fetch_blocks(&server.location(), blocks(20), target);
        assert_all(collect(fetch).await, &blocks(20));
    }
}

#[tokio::test]
async fn bc_09_shuffle_read_dropped_at_any_time_leaves_nothing_open() {
    let server = BlockServer::start(|_| Answer::Serve).await;
    let settings = [
        ("spark.reducer.maxSizeInFlight", "5000"),
        ("spark.network.maxRemoteBlockSizeFetchToMem", "1200"),
    ];
    let watched = Watched::connect(&server, &settings).await;
    // Some requests go to memory and some to files.
    let sized = || {
        let sizes = [100, 700, 1500].into_iter().cycle();
        vec![(server.location(), blocks(200).into_iter().zip(sizes).collect::<Vec<_>>())]
    };
    for micros in (0..60).map(|step| step * step * 10) {
        let mut stream = watched.client.fetch_shuffle(sized());
        let read = async {
            while let Some(fetched) = stream.next().await {
                assert_eq!(fetched.result.unwrap().read().await.unwrap(), content(fetched.id));
            }
        };
        let _ = tokio::time::timeout(Duration::from_micros(micros), read).await;
        drop(stream);
        watched.assert_nothing_is_left().await;
    }
    let stream = watched.client.fetch_shuffle(sized());
    assert_eq!(within(stream.count()).await, 200);
}

#[tokio::test]
async fn bc_09_next_block_can_be_cancelled_without_loss() {
    let server = BlockServer::start(|_| Answer::Serve).await;
    let watched = Watched::connect(&server, &[("spark.reducer.maxSizeInFlight", "5000")]).await;
    let sized = blocks(100).into_iter().map(|block| (block, 500)).collect();
    let mut stream = watched.client.fetch_shuffle([(server.location(), sized)]);
    let (mut count, mut cancelled) = (0, 0);
    loop {
        // A future that is polled once and dropped.
        let next = within(async { futures::poll!(stream.next()) }).await;
        match next {
            std::task::Poll::Pending => {
                cancelled += 1;
                tokio::task::yield_now().await;
            }
            std::task::Poll::Ready(Some(fetched)) => {
                fetched.result.unwrap();
                count += 1;
            }
            std::task::Poll::Ready(None) => break,
        }
    }
    assert_eq!(count, 100);
    assert!(cancelled > 0, "no future was cancelled");
}

#[tokio::test]
async fn bc_09_fetch_dropped_in_retry_wait_is_not_repeated() {
    let server =
        BlockServer::start(|request| if request.open == 0 { Answer::Serve } else { Answer::Close })
            .await;
    let watched = Watched::connect(&server, &[("spark.shuffle.io.retryWait", "60s")]).await;
    let fetch = watched.client.fetch_blocks(&server.location(), blocks(2), FetchTarget::Memory);
    let closed = || watched.metrics.client().snapshot().connections == 0;
    eventually("the connection is lost", closed).await;
    let tasks = settled_tasks().await;
    drop(fetch);
    eventually("the task of the fetch has ended", || alive_tasks() < tasks).await;
    assert_eq!(server.opened_blocks().len(), 2);
}

#[tokio::test]
async fn bc_09_hanging_request_is_cancelled_with_its_fetch() {
    let server = BlockServer::start(|request| {
        if request.open > 0 && request.chunk == Some(3) { Answer::Hang } else { Answer::Serve }
    })
    .await;
    let watched = Watched::connect(&server, &[]).await;
    let mut fetch =
        watched.client.fetch_blocks(&server.location(), blocks(20), FetchTarget::Memory);
    for _ in 0..3 {
        within(fetch.next()).await.unwrap().1.unwrap();
    }
    assert!(futures::poll!(fetch.next()).is_pending());
    let tasks = settled_tasks().await;
    drop(fetch);
    // The task of the fetch ends; the one that serves the chunk at the server goes on.
    eventually("the task of the fetch has ended", || alive_tasks() < tasks).await;
}

#[test]
fn bc_09_blocks_fail_if_their_runtime_stops() {
    let background = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let fetch = background.block_on(async {
        let server = BlockServer::start(|_| Answer::Hang).await;
        let conf = TransportConf::new("shuffle");
        let context = TransportContext::new(conf, NoOpRpcHandler::new());
        let client = ExternalBlockStoreClient::new(context, APP, BlockClientConf::default());
        client.fetch_blocks(&server.location(), blocks(3), FetchTarget::Memory)
    });
    background.shutdown_timeout(Duration::from_secs(10));
    let reader = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let results = reader.block_on(fetch.collect::<Vec<_>>());
    assert_eq!(results.len(), 3);
    assert!(results.iter().all(|(_, result)| result.is_err()));
}
