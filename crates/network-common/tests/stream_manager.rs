//! OneForOneStreamManagerSuite (OFO), over a connection: a stream manager is only asked by one.
//!
//! Spark raises the first error of an iterator from `connectionTerminated`; ours has nobody to
//! raise it to and logs it. What must hold is the rest: buffers are released, the other streams
//! cleaned, no state is left.

// Outside of the test functions themselves too.
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

/// A manager behind a server, and the server's side of the last connection.
struct Managed {
    manager: Arc<OneForOneStreamManager>,
    pair: Pair,
    accepted: mpsc::UnboundedReceiver<TransportClient>,
}

async fn managed() -> (Managed, TransportClient) {
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
    (Managed { manager, pair, accepted }, connection)
}

impl Managed {
    async fn fetch(&self, stream_id: i64, index: i32) -> Result<String, String> {
        fetch(&self.pair.client, stream_id, index).await
    }

    async fn connect(&mut self) -> (TransportClient, TransportClient) {
        let address = self.pair.server.local_addr();
        let client = within(self.pair.factory.create_unmanaged_client(address)).await.unwrap();
        (client, within(self.accepted.recv()).await.unwrap())
    }

    /// Ends the connection and waits until the server has noticed.
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

/// A buffer that counts its release.
fn counted(text: &'static str, released: &Arc<Mutex<Vec<&'static str>>>) -> ManagedBuffer {
    let released = Arc::clone(released);
    ManagedBuffer::from(text).on_release(move || released.lock().push(text))
}

#[tokio::test]
async fn ofo_01_missing_chunk() {
    let (managed, connection) = managed().await;
    let released = Arc::default();
    let buffers: Vec<Result<Option<ManagedBuffer>, BoxError>> = vec![
        Ok(Some(counted("A", &released))),
        Ok(None),
        Ok(Some(counted("B", &released))),
        Ok(None),
        Ok(Some(counted("C", &released))),
    ];
    let options = StreamOptions::default().connection(&connection);
    let id = managed.manager.register_fallible_stream(buffers, options);
    assert_eq!(managed.fetch(id, 0).await, Ok("A".into()));
    let missing = "java.lang.IllegalStateException: Chunk was not found";
    assert_eq!(managed.fetch(id, 1).await, Err(missing.into()));
    assert_eq!(managed.fetch(id, 2).await, Ok("B".into()));
    // A and B were released by being sent.
    until(|| *released.lock() == ["A", "B"]).await;
    assert_eq!(managed.manager.stream_count(), 1);
    managed.terminate().await;
    assert_eq!(*released.lock(), ["A", "B", "C"]);
    assert_eq!(managed.manager.stream_count(), 0);
}

#[tokio::test]
async fn ofo_02_managed_buffers_are_freed_when_connection_is_closed() {
    let (managed, connection) = managed().await;
    let released = Arc::default();
    let buffers = vec![counted("A", &released), counted("B", &released)];
    managed.manager.register_stream(buffers, StreamOptions::default().connection(&connection));
    // Not of this connection: it stays.
    let other =
        managed.manager.register_stream(vec![counted("C", &released)], StreamOptions::default());
    managed.terminate().await;
    assert_eq!(*released.lock(), ["A", "B"]);
    assert_eq!(managed.manager.stream_count(), 1);
    let address = managed.pair.server.local_addr();
    let client = within(managed.pair.factory.create_client(address)).await.unwrap();
    assert_eq!(fetch(&client, other, 0).await, Ok("C".into()));
}

#[tokio::test]
async fn ofo_03_stream_states_are_freed_even_if_the_iterator_fails() {
    let (managed, connection) = managed().await;
    let released = Arc::default();
    for name in ["A", "B"] {
        let mut buffer = Some(counted(name, &released));
        // As in the suite: one buffer, and every further call fails. It never ends by itself.
        let chunks = std::iter::from_fn(move || match buffer.take() {
            Some(buffer) => Some(Ok(Some(buffer))),
            None => Some(Err(BoxError::from("an iterator that fails"))),
        });
        managed
            .manager
            .register_fallible_stream(chunks, StreamOptions::default().connection(&connection));
    }
    let buffers = vec![counted("C", &released)];
    managed.manager.register_stream(buffers, StreamOptions::default().connection(&connection));
    managed.terminate().await;
    let mut released = released.lock().clone();
    released.sort_unstable();
    assert_eq!(released, ["A", "B", "C"]);
    assert_eq!(managed.manager.stream_count(), 0);
}

/// The same where it panics.
#[tokio::test]
async fn ofo_03_stream_states_are_freed_even_if_the_iterator_panics() {
    let (managed, connection) = managed().await;
    let released = Arc::default();
    for name in ["A", "B"] {
        let mut buffer = Some(counted(name, &released));
        let chunks = std::iter::from_fn(move || match buffer.take() {
            Some(buffer) => Some(buffer),
            None => panic!("an iterator that panics"),
        });
        managed.manager.register_stream(chunks, StreamOptions::default().connection(&connection));
    }
    managed.terminate().await;
    let mut released = released.lock().clone();
    released.sort_unstable();
    assert_eq!(released, ["A", "B"]);
    assert_eq!(managed.manager.stream_count(), 0);
}

#[tokio::test]
async fn ofo_04_a_stream_of_one_connection_is_not_read_from_another() {
    let (mut managed, connection) = managed().await;
    let released = Arc::default();
    let options = StreamOptions::default().connection(&connection);
    let id = managed
        .manager
        .register_stream(vec![counted("A", &released), counted("B", &released)], options);
    let (thief, _) = managed.connect().await;
    let refused = fetch(&thief, id, 0).await.unwrap_err();
    assert!(refused.starts_with("java.lang.SecurityException"), "{refused}");
    let by_name = within(thief.stream(&format!("{id}_0"))).await.unwrap_err();
    assert!(by_name.to_string().starts_with("java.lang.SecurityException"), "{by_name}");
    // It has taken nothing from the owner, nor does its end.
    thief.close();
    until(|| managed.pair.context.metrics().server().snapshot().connections == 1).await;
    assert_eq!(managed.fetch(id, 0).await, Ok("A".into()));
    assert_eq!(managed.fetch(id, 1).await, Ok("B".into()));
}

#[tokio::test]
async fn a_stream_of_one_application_is_not_read_by_another() {
    if !is_plain() {
        return; // It plays authentication itself.
    }
    let (mut managed, _) = managed().await;
    let register = |managed: &Managed| {
        let options = StreamOptions::default().app_id("app-1");
        managed.manager.register_stream(vec![ManagedBuffer::from("A")], options)
    };
    let id = register(&managed);
    let (thief, _) = managed.connect().await;
    within(thief.send_rpc("app-2")).await.unwrap();
    let refused = fetch(&thief, id, 0).await.unwrap_err();
    assert!(
        refused.starts_with("java.lang.SecurityException") && refused.contains("app-2"),
        "{refused}"
    );
    // Who was never authenticated is not asked (there is no authentication then).
    assert_eq!(managed.fetch(id, 0).await, Ok("A".into()));
    let id = register(&managed);
    let (owner, _) = managed.connect().await;
    within(owner.send_rpc("app-1")).await.unwrap();
    assert_eq!(fetch(&owner, id, 0).await, Ok("A".into()));
}

#[tokio::test]
async fn chunks_are_served_once_and_in_order() {
    let (managed, _) = managed().await;
    let chunks = ["A", "B", "C"].map(ManagedBuffer::from);
    let id = managed.manager.register_stream(chunks, StreamOptions::default());
    let next =
        managed.manager.register_stream([ManagedBuffer::from("D")], StreamOptions::default());
    assert_eq!(next, id + 1);
    assert_eq!(managed.fetch(id, 0).await, Ok("A".into()));
    for wrong in [0, 2, -1] {
        let text = format!(
            "java.lang.IllegalStateException: Received out-of-order chunk index {wrong} (expected 1)"
        );
        assert_eq!(managed.fetch(id, wrong).await, Err(text));
    }
    assert_eq!(managed.fetch(id, 1).await, Ok("B".into()));
    // The last one ends the stream, before it is asked for again.
    assert_eq!(managed.fetch(id, 2).await, Ok("C".into()));
    let closed = format!(
        "java.lang.IllegalStateException: Requested chunk not available since streamId {id} is closed"
    );
    assert_eq!(managed.fetch(id, 3).await, Err(closed));
    assert_eq!(managed.manager.stream_count(), 1);
    for malformed in ["", "1", "a_0", &format!("{next}_x"), &format!("{next}_0_0")] {
        let error = within(managed.pair.client.stream(malformed)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StreamFailure);
        assert!(error.to_string().contains("IllegalArgument"), "{error}");
    }
    let body = within(managed.pair.client.stream(&format!("{next}_0"))).await.unwrap();
    assert_eq!(within(body.collect()).await.unwrap(), "D");
    assert_eq!(managed.manager.stream_count(), 0);
    // Without a chunk there is no last one.
    let empty = managed.manager.register_stream([], StreamOptions::default());
    let beyond = "java.lang.IllegalStateException: Requested chunk index beyond end 0";
    assert_eq!(managed.fetch(empty, 0).await, Err(beyond.into()));
}

/// With `materialized_on_next`, no chunk is made that was not asked for.
#[tokio::test]
async fn chunks_that_are_made_on_demand_are_not_made_to_be_released() {
    let (managed, connection) = managed().await;
    for (lazy, expected) in [(true, 1), (false, 5)] {
        let made = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&made);
        let chunks = (0..5).map(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            ManagedBuffer::from("chunk")
        });
        // Hides how many there are.
        let chunks = chunks.filter(|_| true);
        let options = StreamOptions::default();
        let options =
            if lazy { options.connection(&connection).materialized_on_next() } else { options };
        let id = managed.manager.register_stream(chunks, options);
        if lazy {
            assert_eq!(managed.fetch(id, 0).await, Ok("chunk".into()));
            managed.terminate().await;
            assert_eq!(managed.manager.stream_count(), 0);
        } else {
            let address = managed.pair.server.local_addr();
            let client = within(managed.pair.factory.create_client(address)).await.unwrap();
            for index in 0..5 {
                assert_eq!(fetch(&client, id, index).await, Ok("chunk".into()));
            }
            assert_eq!(managed.manager.stream_count(), 0, "the last one is known by looking ahead");
        }
        assert_eq!(made.load(Ordering::SeqCst), expected);
    }
}

/// A failing chunk takes its place: the next index is the next one.
#[tokio::test]
async fn a_chunk_that_fails_does_not_end_its_stream() {
    let (managed, _) = managed().await;
    let chunks: Vec<Result<_, BoxError>> =
        vec![Err("disk on fire".into()), Ok(Some(ManagedBuffer::from("B")))];
    let id = managed.manager.register_fallible_stream(chunks, StreamOptions::default());
    assert_eq!(managed.fetch(id, 0).await, Err("disk on fire".into()));
    assert_eq!(managed.fetch(id, 1).await, Ok("B".into()));
}

/// Ids of two managers do not start at the same place, and fit the wire's signed numbers.
#[test]
fn ids_start_at_random() {
    let ids: Vec<i64> = (0..8)
        .map(|_| OneForOneStreamManager::new().register_stream([], StreamOptions::default()))
        .collect();
    assert!(ids.iter().all(|id| *id >= 0));
    assert!(ids.iter().any(|id| *id != ids[0]), "{ids:?}");
}

/// The chunks of a stream are made by the user's code: it may use the manager, and holds up no
/// other stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn making_a_chunk_may_use_the_manager_and_holds_up_its_stream_only() {
    let (managed, connection) = managed().await;
    let (release, gate) = std::sync::mpsc::channel::<()>();
    let (began, mut begun) = mpsc::unbounded_channel();
    let manager = Arc::clone(&managed.manager);
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
        managed.manager.register_stream(made, StreamOptions::default().connection(&connection));
    let other =
        managed.manager.register_stream([ManagedBuffer::from("other")], StreamOptions::default());
    let first = managed.pair.client.fetch_chunk(slow, 0);
    within(begun.recv()).await.unwrap();
    let address = managed.pair.server.local_addr();
    let second = within(managed.pair.factory.create_unmanaged_client(address)).await.unwrap();
    assert_eq!(fetch(&second, other, 0).await.unwrap(), "other");
    release.send(()).unwrap();
    let chunk = within(first).await.unwrap();
    let (index, next) = std::str::from_utf8(&chunk).unwrap().split_once(' ').unwrap();
    assert_eq!(index, "0");
    assert_eq!(managed.fetch(next.parse().unwrap(), 0).await.unwrap(), "next");
    second.close();
    // What was not handed out is made to be released, which may use the manager too.
    managed.terminate().await;
    assert_eq!(managed.manager.stream_count(), 1);
}
