//! Shuffle reads: many servers, and limits that are checked at the servers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use network_shuffle::client::{BlockLocation, ShuffleBlockStream};
use network_shuffle::protocol::BlockId;
use parking_lot::Mutex;
use proptest::prelude::*;

use crate::server::{Answer, BlockServer, Request, block, client, content, within};
use crate::support::EXEC;

/// What servers have been asked for and the reader has not taken.
#[derive(Default)]
struct InFlight {
    /// The expected sizes by block.
    sizes: HashMap<BlockId, u64>,
    /// The blocks of each request that the reader has not taken, by server.
    requests: Vec<(usize, Vec<BlockId>)>,
    largest: Largest,
}

/// The largest values that were observed while more than one request was in flight.
#[derive(Default, Clone, Copy, Debug)]
struct Largest {
    bytes: u64,
    requests: usize,
    blocks_of_server: usize,
}

impl InFlight {
    fn on_open(&mut self, server: usize, blocks: &[BlockId]) {
        self.requests.push((server, blocks.to_vec()));
        let all = || self.requests.iter().flat_map(|(_, blocks)| blocks);
        let bytes = all().map(|block| self.sizes[block]).sum();
        let of_server = self.requests.iter().filter(|(other, _)| *other == server);
        let blocks_of_server = of_server.map(|(_, blocks)| blocks.len()).sum();
        let largest = &mut self.largest;
        largest.requests = largest.requests.max(self.requests.len());
        largest.blocks_of_server = largest.blocks_of_server.max(blocks_of_server);
        if self.requests.len() > 1 {
            largest.bytes = largest.bytes.max(bytes);
        }
    }

    fn on_taken(&mut self, block: BlockId) {
        for (_, blocks) in &mut self.requests {
            blocks.retain(|other| *other != block);
        }
        self.requests.retain(|(_, blocks)| !blocks.is_empty());
    }
}

/// Servers that count what is in flight.
struct Servers {
    servers: Vec<BlockServer>,
    in_flight: Arc<Mutex<InFlight>>,
}

impl Servers {
    async fn start(
        count: usize,
        script: impl Fn(usize, &Request) -> Answer + Clone + Send + Sync + 'static,
    ) -> Self {
        let in_flight: Arc<Mutex<InFlight>> = Arc::default();
        let mut servers = Vec::new();
        for index in 0..count {
            let (in_flight, script) = (Arc::clone(&in_flight), script.clone());
            let server = BlockServer::start(move |request| {
                if request.chunk.is_none() {
                    in_flight.lock().on_open(index, &request.blocks);
                }
                script(index, request)
            });
            servers.push(server.await);
        }
        Self { servers, in_flight }
    }

    /// Returns the locations with these blocks; the map id of a block is its server.
    fn locations(&self, sizes: &[Vec<u64>]) -> Vec<(BlockLocation, Vec<(BlockId, u64)>)> {
        let mut in_flight = self.in_flight.lock();
        let mut locations = Vec::new();
        for (map, (server, sizes)) in self.servers.iter().zip(sizes).enumerate() {
            let blocks: Vec<_> =
                (0..).zip(sizes).map(|(reduce, size)| (block(map as i64, reduce), *size)).collect();
            in_flight.sizes.extend(blocks.iter().copied());
            locations.push((server.location(), blocks));
        }
        locations
    }

    /// Reads all blocks, checks their contents, and returns how many there are.
    async fn read(&self, mut stream: ShuffleBlockStream) -> usize {
        let mut count = 0;
        while let Some(fetched) = within(stream.next()).await {
            assert_eq!(fetched.result.unwrap().read().await.unwrap(), content(fetched.id));
            self.in_flight.lock().on_taken(fetched.id);
            count += 1;
        }
        assert_eq!((stream.bytes_in_flight(), stream.requests_in_flight()), (0, 0));
        count
    }
}

fn any_sizes() -> impl Strategy<Value = Vec<Vec<u64>>> {
    let size = prop_oneof![4 => 0..2000_u64, 1 => 2000..20_000_u64];
    prop::collection::vec(prop::collection::vec(size, 0..40), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn bc_08_limits_hold_at_servers_and_every_block_arrives(
        sizes in any_sizes(),
        max_bytes in 1..20_000_u64,
        max_requests in 1..8_usize,
        max_blocks in 1..10_usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let servers = Servers::start(sizes.len(), |_, _| Answer::Serve).await;
            let client = client(&[
                ("spark.reducer.maxSizeInFlight", &max_bytes.to_string()),
                ("spark.reducer.maxReqsInFlight", &max_requests.to_string()),
                ("spark.reducer.maxBlocksInFlightPerAddress", &max_blocks.to_string()),
            ]);
            let count = servers.read(client.fetch_shuffle(servers.locations(&sizes))).await;
            assert_eq!(count, sizes.iter().map(Vec::len).sum::<usize>());
            let largest = servers.in_flight.lock().largest;
            assert!(largest.bytes <= max_bytes, "{largest:?}");
            assert!(largest.requests <= max_requests, "{largest:?}");
            assert!(largest.blocks_of_server <= max_blocks, "{largest:?}");
        });
    }
}

#[tokio::test]
async fn bc_08_requests_have_a_fifth_of_bytes_in_flight() {
    let servers = Servers::start(6, |_, _| Answer::Serve).await;
    let client = client(&[("spark.reducer.maxSizeInFlight", "5000")]);
    let sizes = vec![vec![250; 40]; 6];
    assert_eq!(servers.read(client.fetch_shuffle(servers.locations(&sizes))).await, 240);
    for server in &servers.servers {
        assert!(server.opened_blocks().iter().all(|blocks| blocks.len() == 4));
    }
    assert_eq!(servers.in_flight.lock().largest.requests, 5);
}

#[tokio::test]
async fn bc_08_block_larger_than_limit_is_requested_alone() {
    let servers = Servers::start(2, |_, _| Answer::Serve).await;
    let client = client(&[("spark.reducer.maxSizeInFlight", "1000")]);
    let sizes = [vec![5000, 5000], vec![5000]];
    assert_eq!(servers.read(client.fetch_shuffle(servers.locations(&sizes))).await, 3);
    assert_eq!(servers.in_flight.lock().largest.requests, 1);
}

#[tokio::test]
async fn bc_08_stalled_server_does_not_stop_others() {
    let hang_first = |server: usize, _: &Request| {
        if server == 0 { Answer::Hang } else { Answer::Serve }
    };
    let servers = Servers::start(3, hang_first).await;
    let client = client(&[
        ("spark.reducer.maxBlocksInFlightPerAddress", "2"),
        ("spark.reducer.maxSizeInFlight", "2000"),
    ]);
    let sizes = vec![vec![100; 30]; 3];
    let mut stream = client.fetch_shuffle(servers.locations(&sizes));
    for _ in 0..60 {
        let fetched = within(stream.next()).await.unwrap();
        assert_ne!(fetched.location, servers.servers[0].location().into());
        fetched.result.unwrap();
    }
    assert_eq!(servers.servers[0].opened_blocks().len(), 1);
    assert_eq!((stream.bytes_in_flight(), stream.requests_in_flight()), (200, 1));
}

#[tokio::test]
async fn bc_08_failed_blocks_do_not_end_the_stream() {
    let fail_first = |server: usize, request: &Request| {
        if server == 0 && request.chunk == Some(1) {
            Answer::Fail("no such block")
        } else {
            Answer::Serve
        }
    };
    let servers = Servers::start(2, fail_first).await;
    let sizes = vec![vec![100; 10]; 2];
    let stream = client(&[]).fetch_shuffle(servers.locations(&sizes));
    let fetched: Vec<_> = within(stream.collect()).await;
    assert_eq!(fetched.len(), 20);
    let failed: Vec<_> = fetched.iter().filter(|fetched| fetched.result.is_err()).collect();
    assert_eq!(failed.len(), 9);
    assert!(failed.iter().all(|failed| *failed.location == servers.servers[0].location()));
}

#[tokio::test]
async fn bc_08_requests_above_memory_limit_are_fetched_to_files() {
    let directory = tempfile::tempdir().unwrap();
    let servers = Servers::start(1, |_, _| Answer::Serve).await;
    let client = client(&[
        ("spark.network.maxRemoteBlockSizeFetchToMem", "1000"),
        ("spark.reducer.maxSizeInFlight", "5000"),
        ("spark.local.dir", directory.path().to_str().unwrap()),
    ]);
    // Two requests: one of 1000 bytes, and one of 1001.
    let mut stream = client.fetch_shuffle(servers.locations(&[vec![1000, 1001]]));
    let mut buffers = Vec::new();
    while let Some(fetched) = within(stream.next()).await {
        let buffer = fetched.result.unwrap();
        assert_eq!(buffer.read().await.unwrap(), content(fetched.id));
        let is_file = format!("{buffer:?}").contains("file=");
        assert_eq!(is_file, fetched.expected_size == 1001, "{buffer:?}");
        buffers.push(buffer);
    }
    assert_eq!(buffers.len(), 2);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    drop(buffers);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn bc_08_blocks_larger_than_expected_wait_for_their_reader() {
    const LEN: usize = 1 << 20;
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    let servers = Servers::start(1, move |_, request| {
        if request.chunk.is_some() {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if request.chunk.is_some() { Answer::Bytes(vec![7; LEN].into()) } else { Answer::Serve }
    })
    .await;
    let mut stream = client(&[]).fetch_shuffle(servers.locations(&[vec![1000; 100]]));
    let (mut taken, mut ahead) = (0, 0);
    while let Some(fetched) = within(stream.next()).await {
        assert_eq!(fetched.result.unwrap().len(), LEN as u64);
        taken += 1;
        ahead = ahead.max(served.load(Ordering::Relaxed) - taken);
        // The server gets time to serve what it was asked for.
        tokio::time::sleep(Duration::from_millis(1)).await;
        ahead = ahead.max(served.load(Ordering::Relaxed) - taken);
    }
    assert_eq!(taken, 100);
    assert!((2..=8).contains(&ahead), "{ahead} blocks were read ahead");
}

#[tokio::test]
async fn bc_08_corrupt_block_is_fetched_again_within_limits() {
    let servers = Servers::start(1, |_, request| {
        // The first content of chunk 0 is wrong.
        if request.open == 0 && request.chunk == Some(0) {
            Answer::Bytes("corrupt".into())
        } else {
            Answer::Serve
        }
    })
    .await;
    let mut stream = client(&[]).fetch_shuffle(servers.locations(&[vec![10; 3]]));
    let (mut good, mut corrupt) = (0, 0);
    while let Some(fetched) = within(stream.next()).await {
        let bytes = fetched.result.as_ref().unwrap().read().await.unwrap();
        if bytes == content(fetched.id) {
            good += 1;
        } else {
            corrupt += 1;
            stream.fetch_again(fetched);
        }
    }
    assert_eq!((good, corrupt), (3, 1));
    assert_eq!(servers.servers[0].opened_blocks().len(), 2);
}

#[tokio::test]
async fn bc_08_blocks_of_several_shuffles_and_kinds_arrive() {
    let server = BlockServer::start(|_| Answer::Serve).await;
    let mut blocks: Vec<BlockId> = (0..4)
        .flat_map(|id| {
            [
                BlockId::Shuffle { shuffle_id: id % 2, map_id: 3, reduce_id: id },
                BlockId::Rdd { rdd_id: id, split_index: 1 },
                BlockId::ShuffleBatch {
                    shuffle_id: 0,
                    map_id: i64::from(id),
                    start_reduce_id: 1,
                    end_reduce_id: 3,
                },
            ]
        })
        .collect();
    let sized = blocks.iter().map(|block| (*block, 10)).collect();
    let stream = client(&[]).fetch_shuffle([(server.location(), sized)]);
    let mut fetched: Vec<BlockId> = within(
        stream
            .then(|fetched| async move {
                assert_eq!(fetched.result.unwrap().read().await.unwrap(), content(fetched.id));
                fetched.id
            })
            .collect(),
    )
    .await;
    blocks.sort_by_key(ToString::to_string);
    fetched.sort_by_key(ToString::to_string);
    assert_eq!(fetched, blocks);
}

#[tokio::test]
async fn bc_08_nothing_to_read_ends_at_once() {
    let stream =
        client(&[]).fetch_shuffle([(BlockLocation::new(("127.0.0.1", 1), EXEC), Vec::new())]);
    assert_eq!(within(stream.collect::<Vec<_>>()).await.len(), 0);
}
