//! `OneForOneStreamManager` behind a server, through a client: Spark's
//! `OneForOneStreamManagerSuite` (rows `ofo_01` to `ofo_04`).
//!
//! Spark raises an iterator's first error from `connectionTerminated`; ours logs it. The rest must
//! hold: all buffers are released, all streams of the connection removed.

// Helper functions outside of tests unwrap as well.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use network_common::{
    BoxError, ErrorKind, ManagedBuffer, OneForOneStreamManager, StreamOptions, TransportClient,
};
use parking_lot::Mutex;
use support::*;
use tokio::sync::mpsc;

/// A server with a stream manager, and its accepted connections.
struct Fixture {
    manager: Arc<OneForOneStreamManager>,
    pair: Pair,
    accepted: mpsc::UnboundedReceiver<TransportClient>,
}

async fn fixture() -> (Fixture, TransportClient) {
    let manager = Arc::new(OneForOneStreamManager::new());
    let (active, mut accepted) = mpsc::unbounded_channel();
    let handler = Handler::new()
        .with_manager(manager.clone())
        .on_active(move |client| active.send(client.clone()).unwrap())
        .on_rpc(|client, message, callback| {
            client.set_client_id(std::str::from_utf8(&message).unwrap()).unwrap();
            callback.reply("");
        });
    let pair = pair(handler).await;
    let connection = within(accepted.recv()).await.unwrap();
    (Fixture { manager, pair, accepted }, connection)
}

impl Fixture {
    async fn fetch(&self, stream_id: i64, index: i32) -> Result<String, String> {
        fetch(&self.pair.client, stream_id, index).await
    }

    async fn connect(&mut self) -> (TransportClient, TransportClient) {
        let address = self.pair.server.local_addr();
        let client = within(self.pair.factory.create_unmanaged_client(address)).await.unwrap();
        (client, within(self.accepted.recv()).await.unwrap())
    }

    /// Closes the connection and waits until the server has noticed.
    async fn terminate(&self) {
        self.pair.client.close();
        until(|| self.pair.context.metrics().server().snapshot().connections == 0).await;
    }
}

async fn fetch(client: &TransportClient, stream_id: i64, index: i32) -> Result<String, String> {
    match within(client.fetch_chunk(stream_id, index)).await {
        Ok(chunk) => Ok(String::from_utf8(chunk.to_vec()).unwrap()),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ChunkFetchFailure);
            let text = error.to_string();
            Err(text.split_once("]: ").unwrap().1.lines().next().unwrap().to_owned())
        }
    }
}

/// Returns a buffer that records its release.
fn recorded_buffer(text: &'static str, released: &Arc<Mutex<Vec<&'static str>>>) -> ManagedBuffer {
    let released = Arc::clone(released);
    ManagedBuffer::from(text).on_release(move || released.lock().push(text))
}

#[tokio::test]
async fn ofo_01_missing_chunk_fails_without_ending_stream() {
    let (fixture, connection) = fixture().await;
    let released = Arc::default();
    let buffers: Vec<Result<Option<ManagedBuffer>, BoxError>> = vec![
        Ok(Some(recorded_buffer("A", &released))),
        Ok(None),
        Ok(Some(recorded_buffer("B", &released))),
        Ok(None),
        Ok(Some(recorded_buffer("C", &released))),
    ];
    let options = StreamOptions::default().connection(&connection);
    let id = fixture.manager.register_fallible_stream(buffers, options);
    assert_eq!(fixture.fetch(id, 0).await, Ok("A".into()));
    let missing = "java.lang.IllegalStateException: Chunk was not found";
    assert_eq!(fixture.fetch(id, 1).await, Err(missing.into()));
    assert_eq!(fixture.fetch(id, 2).await, Ok("B".into()));
    // A and B were released after they were sent.
    until(|| *released.lock() == ["A", "B"]).await;
    assert_eq!(fixture.manager.stream_count(), 1);
    fixture.terminate().await;
    assert_eq!(*released.lock(), ["A", "B", "C"]);
    assert_eq!(fixture.manager.stream_count(), 0);
}

#[tokio::test]
async fn ofo_02_buffers_are_released_when_connection_closes() {
    let (fixture, connection) = fixture().await;
    let released = Arc::default();
    let buffers = vec![recorded_buffer("A", &released), recorded_buffer("B", &released)];
    fixture.manager.register_stream(buffers, StreamOptions::default().connection(&connection));
    // This stream is not bound to the connection, so it stays.
    let other = fixture
        .manager
        .register_stream(vec![recorded_buffer("C", &released)], StreamOptions::default());
    fixture.terminate().await;
    assert_eq!(*released.lock(), ["A", "B"]);
    assert_eq!(fixture.manager.stream_count(), 1);
    let address = fixture.pair.server.local_addr();
    let client = within(fixture.pair.factory.create_client(address)).await.unwrap();
    assert_eq!(fetch(&client, other, 0).await, Ok("C".into()));
}

#[tokio::test]
async fn ofo_03_streams_are_removed_when_their_iterator_fails() {
    let (fixture, connection) = fixture().await;
    let released = Arc::default();
    for name in ["A", "B"] {
        let mut buffer = Some(recorded_buffer(name, &released));
        // Yields one buffer and then only errors, as in Spark's suite.
        let chunks = std::iter::from_fn(move || match buffer.take() {
            Some(buffer) => Some(Ok(Some(buffer))),
            None => Some(Err(BoxError::from("an iterator that fails"))),
        });
        fixture
            .manager
            .register_fallible_stream(chunks, StreamOptions::default().connection(&connection));
    }
    let buffers = vec![recorded_buffer("C", &released)];
    fixture.manager.register_stream(buffers, StreamOptions::default().connection(&connection));
    fixture.terminate().await;
    let mut released = released.lock().clone();
    released.sort_unstable();
    assert_eq!(released, ["A", "B", "C"]);
    assert_eq!(fixture.manager.stream_count(), 0);
}

/// Streams whose iterator panics are removed too.
#[tokio::test]
async fn ofo_03_streams_are_removed_when_their_iterator_panics() {
    let (fixture, connection) = fixture().await;
    let released = Arc::default();
    for name in ["A", "B"] {
        let mut buffer = Some(recorded_buffer(name, &released));
        let chunks = std::iter::from_fn(move || match buffer.take() {
            Some(buffer) => Some(buffer),
            None => panic!("an iterator that panics"),
        });
        fixture.manager.register_stream(chunks, StreamOptions::default().connection(&connection));
    }
    fixture.terminate().await;
    let mut released = released.lock().clone();
    released.sort_unstable();
    assert_eq!(released, ["A", "B"]);
    assert_eq!(fixture.manager.stream_count(), 0);
}

#[tokio::test]
async fn ofo_04_stream_of_connection_cannot_be_read_by_another() {
    let (mut fixture, connection) = fixture().await;
    let released = Arc::default();
    let options = StreamOptions::default().connection(&connection);
    let id = fixture.manager.register_stream(
        vec![recorded_buffer("A", &released), recorded_buffer("B", &released)],
        options,
    );
    let (other_client, _) = fixture.connect().await;
    let error = fetch(&other_client, id, 0).await.unwrap_err();
    assert!(error.starts_with("java.lang.SecurityException"), "{error}");
    let by_name = within(other_client.stream(&format!("{id}_0"))).await.unwrap_err();
    assert!(by_name.to_string().starts_with("java.lang.SecurityException"), "{by_name}");
    // The rejected requests consumed no chunk, and closing their connection does not affect the
    // stream.
    other_client.close();
    until(|| fixture.pair.context.metrics().server().snapshot().connections == 1).await;
    assert_eq!(fixture.fetch(id, 0).await, Ok("A".into()));
    assert_eq!(fixture.fetch(id, 1).await, Ok("B".into()));
}

#[tokio::test]
async fn stream_of_application_cannot_be_read_by_another() {
    if !is_plain() {
        return; // The handler of this test sets the client id itself.
    }
    let (mut fixture, _) = fixture().await;
    let register = |fixture: &Fixture| {
        let options = StreamOptions::default().app_id("app-1");
        fixture.manager.register_stream(vec![ManagedBuffer::from("A")], options)
    };
    let id = register(&fixture);
    let (other_client, _) = fixture.connect().await;
    within(other_client.send_rpc("app-2")).await.unwrap();
    let error = fetch(&other_client, id, 0).await.unwrap_err();
    assert!(error.starts_with("java.lang.SecurityException") && error.contains("app-2"), "{error}");
    // A client without an id passes the check, because there is no authentication.
    assert_eq!(fixture.fetch(id, 0).await, Ok("A".into()));
    let id = register(&fixture);
    let (owner, _) = fixture.connect().await;
    within(owner.send_rpc("app-1")).await.unwrap();
    assert_eq!(fetch(&owner, id, 0).await, Ok("A".into()));
}

#[tokio::test]
async fn chunks_are_served_once_and_in_order() {
    let (fixture, _) = fixture().await;
    let chunks = ["A", "B", "C"].map(ManagedBuffer::from);
    let id = fixture.manager.register_stream(chunks, StreamOptions::default());
    let next =
        fixture.manager.register_stream([ManagedBuffer::from("D")], StreamOptions::default());
    assert_eq!(next, id + 1);
    assert_eq!(fixture.fetch(id, 0).await, Ok("A".into()));
    for wrong in [0, 2, -1] {
        let text = format!(
            "java.lang.IllegalStateException: Received out-of-order chunk index {wrong} \
             (expected 1)"
        );
        assert_eq!(fixture.fetch(id, wrong).await, Err(text));
    }
    assert_eq!(fixture.fetch(id, 1).await, Ok("B".into()));
    // The last chunk ends the stream.
    assert_eq!(fixture.fetch(id, 2).await, Ok("C".into()));
    let closed = format!(
        "java.lang.IllegalStateException: Requested chunk not available since streamId {id} \
         is closed"
    );
    assert_eq!(fixture.fetch(id, 3).await, Err(closed));
    assert_eq!(fixture.manager.stream_count(), 1);
    for malformed in ["", "1", "a_0", &format!("{next}_x"), &format!("{next}_0_0")] {
        let error = within(fixture.pair.client.stream(malformed)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StreamFailure);
        assert!(error.to_string().contains("IllegalArgument"), "{error}");
    }
    let body = within(fixture.pair.client.stream(&format!("{next}_0"))).await.unwrap();
    assert_eq!(within(body.collect()).await.unwrap(), "D");
    assert_eq!(fixture.manager.stream_count(), 0);
    // A request for a chunk of an empty stream fails.
    let empty = fixture.manager.register_stream([], StreamOptions::default());
    let beyond = "java.lang.IllegalStateException: Requested chunk index beyond end 0";
    assert_eq!(fixture.fetch(empty, 0).await, Err(beyond.into()));
}

/// With `materialized_on_next`, chunks that were not requested are never created.
#[tokio::test]
async fn unrequested_chunks_are_not_created_for_release() {
    let (fixture, connection) = fixture().await;
    for (lazy, expected) in [(true, 1), (false, 5)] {
        let made = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&made);
        let chunks = (0..5).map(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            ManagedBuffer::from("chunk")
        });
        // The filter hides the length of the iterator.
        let chunks = chunks.filter(|_| true);
        let options = StreamOptions::default();
        let options =
            if lazy { options.connection(&connection).materialized_on_next() } else { options };
        let id = fixture.manager.register_stream(chunks, options);
        if lazy {
            assert_eq!(fixture.fetch(id, 0).await, Ok("chunk".into()));
            fixture.terminate().await;
            assert_eq!(fixture.manager.stream_count(), 0);
        } else {
            let address = fixture.pair.server.local_addr();
            let client = within(fixture.pair.factory.create_client(address)).await.unwrap();
            for index in 0..5 {
                assert_eq!(fetch(&client, id, index).await, Ok("chunk".into()));
            }
            assert_eq!(fixture.manager.stream_count(), 0, "the manager must notice the last chunk");
        }
        assert_eq!(made.load(Ordering::SeqCst), expected);
    }
}

/// A failing chunk consumes its index; the next chunk is served.
#[tokio::test]
async fn failing_chunk_does_not_end_its_stream() {
    let (fixture, _) = fixture().await;
    let chunks: Vec<Result<_, BoxError>> =
        vec![Err("disk on fire".into()), Ok(Some(ManagedBuffer::from("B")))];
    let id = fixture.manager.register_fallible_stream(chunks, StreamOptions::default());
    assert_eq!(fixture.fetch(id, 0).await, Err("disk on fire".into()));
    assert_eq!(fixture.fetch(id, 1).await, Ok("B".into()));
}

/// Stream ids of two managers start at different numbers and are not negative.
#[test]
fn stream_ids_start_at_random_numbers() {
    let ids: Vec<i64> = (0..8)
        .map(|_| OneForOneStreamManager::new().register_stream([], StreamOptions::default()))
        .collect();
    assert!(ids.iter().all(|id| *id >= 0));
    assert!(ids.iter().any(|id| *id != ids[0]), "{ids:?}");
}

/// User code creates the chunks of a stream: it may use the manager, and must not block other
/// streams.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn creating_chunk_can_use_manager_and_blocks_only_its_stream() {
    let (fixture, connection) = fixture().await;
    let (release, gate) = std::sync::mpsc::channel::<()>();
    let (began, mut begun) = mpsc::unbounded_channel();
    let manager = Arc::clone(&fixture.manager);
    let mut gate = Some(gate);
    let made = (0..2).map(move |index| {
        began.send(()).unwrap();
        if let Some(gate) = gate.take() {
            tokio::task::block_in_place(|| gate.recv().unwrap());
        }
        let next = manager.register_stream([ManagedBuffer::from("next")], StreamOptions::default());
        ManagedBuffer::from(format!("{index} {next}").into_bytes())
    });
    let slow =
        fixture.manager.register_stream(made, StreamOptions::default().connection(&connection));
    let other =
        fixture.manager.register_stream([ManagedBuffer::from("other")], StreamOptions::default());
    let first = fixture.pair.client.fetch_chunk(slow, 0);
    within(begun.recv()).await.unwrap();
    let address = fixture.pair.server.local_addr();
    let second = within(fixture.pair.factory.create_unmanaged_client(address)).await.unwrap();
    assert_eq!(fetch(&second, other, 0).await.unwrap(), "other");
    release.send(()).unwrap();
    let chunk = within(first).await.unwrap();
    let (index, next) = std::str::from_utf8(&chunk).unwrap().split_once(' ').unwrap();
    assert_eq!(index, "0");
    assert_eq!(fixture.fetch(next.parse().unwrap(), 0).await.unwrap(), "next");
    second.close();
    // Chunks that were not fetched are created only to be released; that may use the manager too.
    fixture.terminate().await;
    assert_eq!(fixture.manager.stream_count(), 1);
}
