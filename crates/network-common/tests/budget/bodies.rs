//! Chunks and streams wait for the budget, fairly.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use network_common::protocol::Message;
use network_common::{
    ByteBudget, ErrorKind, ManagedBuffer, TransportClient, TransportContext, TransportServer,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::*;

const MIB: usize = 1 << 20;

/// A server with a budget, and a factory whose clients count elsewhere.
async fn server(budget: &ByteBudget, handler: Handler) -> (TransportContext, TransportServer) {
    let context = context(conf(&[]), handler).with_byte_budget(budget);
    let server = serve(&context).await;
    (context, server)
}

async fn client(server: &TransportServer) -> TransportClient {
    let context = context(conf(&[]), Handler::new()).with_byte_budget(&ByteBudget::new(u64::MAX));
    let factory = context.create_client_factory();
    within(factory.create_unmanaged_client(server.local_addr())).await.unwrap()
}

/// Returns chunks of `size` bytes.
fn chunks(size: usize) -> Handler {
    Handler::new().on_chunk(move |_, _| Ok(vec![1; size].into()))
}

/// Requests chunks and reads nothing.
async fn unread_peer(server: &TransportServer, count: i32) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    // Small, so that the server sees when the peer reads.
    socket.set_recv_buffer_size(64 << 10).unwrap();
    let mut peer = socket.connect(server.local_addr()).await.unwrap();
    for chunk_index in 0..count {
        let request: Message = Message::ChunkFetchRequest { stream_id: 1, chunk_index };
        peer.write_all(&request.encode().unwrap()).await.unwrap();
    }
    peer
}

#[tokio::test]
async fn fault_m7_body_larger_than_budget_is_sent_alone() {
    let budget = ByteBudget::new(8 << 20);
    let (context, server) = server(&budget, chunks(40 * MIB)).await;
    let client = client(&server).await;
    for index in 0..3 {
        assert_eq!(within(client.fetch_chunk(1, index)).await.unwrap().len(), 40 * MIB);
    }
    let (one, other) = tokio::join!(client.fetch_chunk(1, 3), client.fetch_chunk(1, 4));
    assert_eq!((one.unwrap().len(), other.unwrap().len()), (40 * MIB, 40 * MIB));
    assert_eq!(context.metrics().server().snapshot().closed_for_budget, 0);
    until(|| budget.held() == 0).await;
}

/// Chunks in files are not in memory, so they do not wait.
#[tokio::test(flavor = "multi_thread")]
async fn fault_m7_file_bodies_count_only_their_headers() {
    let file = file_of(&vec![1; 4 * MIB]);
    let path = file.path().to_owned();
    let budget = ByteBudget::new(MIB as u64);
    let handler = Handler::new()
        .on_chunk(move |_, _| Ok(ManagedBuffer::file(path.clone(), 0..4 * MIB as u64)));
    let (context, server) = server(&budget, handler).await;
    let client = client(&server).await;
    let fetches = futures::future::join_all((0..40).map(|index| client.fetch_chunk(1, index)));
    for chunk in within(fetches).await {
        assert_eq!(chunk.unwrap().len(), 4 * MIB);
    }
    assert_eq!(context.metrics().server().snapshot().closed_for_budget, 0);
}

/// Peers that read compete with as many that do not; each of them gets all its chunks.
#[tokio::test(flavor = "multi_thread")]
async fn fault_m7_readers_are_served_beside_peers_that_do_not_read() {
    let budget = ByteBudget::new(32 << 20);
    let (context, server) = server(&budget, chunks(MIB)).await;
    let unread = futures::future::join_all((0..10).map(|_| unread_peer(&server, 60))).await;
    let readers = (0..10).map(|_| async {
        let client = client(&server).await;
        for index in 0..40 {
            assert_eq!(within(client.fetch_chunk(1, index)).await.unwrap().len(), MIB);
        }
    });
    within(futures::future::join_all(readers)).await;
    assert!(context.metrics().server().snapshot().closed_for_budget > 0);
    drop(unread);
    until(|| budget.held() == 0).await;
}

/// All connections request much more than the budget at once, and take turns.
#[tokio::test(flavor = "multi_thread")]
async fn fault_m7_connections_take_turns() {
    let budget = ByteBudget::new(8 << 20);
    let (_context, server) = server(&budget, chunks(MIB)).await;
    let (most, least) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
    let finished = AtomicUsize::new(0);
    let counts: Vec<_> = (0..8).map(|_| AtomicUsize::new(0)).collect();
    let readers = counts.iter().map(|count| async {
        let client = client(&server).await;
        let fetches = futures::stream::iter((0..100).map(|index| client.fetch_chunk(1, index)));
        let mut buffered = fetches.buffer_unordered(16);
        while let Some(chunk) = within(buffered.next()).await {
            assert_eq!(chunk.unwrap().len(), MIB);
            count.fetch_add(1, Ordering::Relaxed);
        }
        if finished.fetch_add(1, Ordering::Relaxed) == 0 {
            // The first one has finished: the others must be nearly as far.
            for count in &counts {
                most.fetch_max(count.load(Ordering::Relaxed), Ordering::Relaxed);
                least.fetch_min(count.load(Ordering::Relaxed), Ordering::Relaxed);
            }
        }
    });
    within(futures::future::join_all(readers)).await;
    let (most, least) = (most.into_inner(), least.into_inner());
    assert!(least * 2 >= most, "one connection got {most} chunks, another {least}");
    until(|| budget.held() == 0).await;
}

/// The stream manager is asked for no more than the budget allows.
#[tokio::test(flavor = "multi_thread")]
async fn fault_m7_stream_manager_is_not_asked_beyond_budget() {
    let asked = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&asked);
    let handler = Handler::new().on_chunk(move |_, _| {
        counted.fetch_add(1, Ordering::Relaxed);
        Ok(vec![1; 4 * MIB].into())
    });
    let budget = ByteBudget::new(64 << 20);
    let (_context, server) = server(&budget, handler).await;
    let peers = futures::future::join_all((0..40).map(|_| unread_peer(&server, 5))).await;
    until(|| budget.held() > 40 << 20).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let count = asked.load(Ordering::Relaxed);
    // What the sockets took is not held any more.
    assert!(count < 40, "{count} of 200 chunks of 4 MiB were requested");
    assert!(budget.held() <= 64 << 20, "{}", budget.held());
    drop(peers);
    until(|| budget.held() == 0).await;
}

/// A peer that reads slowly is not closed while its kernel takes bytes each second.
#[tokio::test(flavor = "multi_thread")]
async fn fault_m7_slow_reader_is_not_closed() {
    let budget = ByteBudget::new(8 << 20);
    let send_buffer = ("spark.shuffle.io.sendBuffer", "64k");
    let context = context(conf(&[send_buffer]), chunks(7 * MIB)).with_byte_budget(&budget);
    let server = serve(&context).await;
    let mut slow = unread_peer(&server, 1).await;
    until(|| budget.held() > 6 << 20).await;
    let client = client(&server).await;
    let fetching = tokio::spawn(async move { client.fetch_chunk(1, 0).await });
    let mut block = vec![0; 256 << 10];
    let (start, mut received) = (Instant::now(), 0);
    // 1 MiB a second for 3 s, while the client waits for the budget.
    while start.elapsed() < Duration::from_secs(3) {
        received += slow.read(&mut block).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(context.metrics().server().snapshot().closed_for_budget, 0);
    while received < 7 * MIB {
        received += within(slow.read(&mut block)).await.unwrap();
    }
    assert_eq!(within(fetching).await.unwrap().unwrap().len(), 7 * MIB);
}

/// The error says what happened, in the log and in the failure of own requests.
#[tokio::test(flavor = "multi_thread")]
async fn fault_m7_closed_connection_names_budget() {
    let (connected, mut clients) = tokio::sync::mpsc::unbounded_channel();
    let budget = ByteBudget::new(16 << 20);
    let handler = chunks(12 * MIB).on_active(move |client| drop(connected.send(client.clone())));
    let (context, server) = server(&budget, handler).await;
    let _unread = unread_peer(&server, 2).await;
    let at_server = within(clients.recv()).await.unwrap();
    let pending = at_server.send_rpc("never answered");
    until(|| budget.held() > 10 << 20).await;
    let reader = client(&server).await;
    assert_eq!(within(reader.fetch_chunk(1, 0)).await.unwrap().len(), 12 * MIB);
    let error = within(pending).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    let text = error.to_string();
    for part in ["spark.network.maxHeldBytes", "16777216", "bytes unread", "held"] {
        assert!(text.contains(part), "{part} is missing: {text}");
    }
    let metrics = context.metrics().server().snapshot();
    assert_eq!(metrics.closed_for_budget, 1);
    assert!(metrics.failures.contains(&(ErrorKind::Io, 1)), "{metrics:?}");
}

/// A connection stays open while no other one needs its bytes.
#[tokio::test(flavor = "multi_thread")]
async fn fault_m7_unread_connection_stays_open_within_budget() {
    let budget = ByteBudget::new(64 << 20);
    let (context, server) = server(&budget, chunks(16 * MIB)).await;
    let _unread = unread_peer(&server, 8).await;
    let reader = client(&server).await;
    until(|| budget.held() > 20 << 20).await;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        assert_eq!(within(reader.send_rpc("x")).await.unwrap(), "x");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(context.metrics().server().snapshot().closed_for_budget, 0);
}
