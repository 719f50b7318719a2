//! Row `fault_t4`: streams that are registered after the end of their connection are released at
//! once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use network_common::{
    BoxError, ManagedBuffer, OneForOneStreamManager, RpcHandler, StreamOptions, TransportClient,
    TransportConf, TransportContext, TransportServerBootstrap,
};
use tokio::sync::mpsc;

use crate::support::*;

/// A stream of three chunks that counts the chunks that are not released.
fn chunks(live: &Arc<AtomicUsize>) -> Vec<ManagedBuffer> {
    (0..3)
        .map(|_| {
            live.fetch_add(1, Ordering::Relaxed);
            let live = Arc::clone(live);
            ManagedBuffer::from(Bytes::from_static(&[7; 1000])).on_release(move || {
                live.fetch_sub(1, Ordering::Relaxed);
            })
        })
        .collect()
}

/// Returns the server's handle of a connection that has ended.
async fn ended_client(manager: &Arc<OneForOneStreamManager>) -> TransportClient {
    let (opened, mut clients) = mpsc::unbounded_channel();
    let (closed, mut ends) = mpsc::unbounded_channel();
    let handler = Handler::new()
        .with_manager(Arc::clone(manager) as _)
        .on_active(move |client| opened.send(client.clone()).unwrap())
        .on_inactive(move |_| closed.send(()).unwrap());
    let pair = pair(handler).await;
    let client = within(clients.recv()).await.unwrap();
    pair.client.close();
    within(ends.recv()).await.unwrap();
    client
}

#[tokio::test]
async fn fault_t4_stream_of_ended_connection_is_released_at_once() {
    let (manager, live) = (Arc::new(OneForOneStreamManager::new()), Arc::default());
    let client = ended_client(&manager).await;
    let options = StreamOptions::default().connection(&client);
    for _ in 0..50 {
        manager.register_stream(chunks(&live), options.clone());
        manager.register_fallible_stream(
            chunks(&live).into_iter().map(|c| Ok(Some(c))),
            options.clone(),
        );
        manager.register_stream(chunks(&live), options.clone().materialized_on_next());
    }
    assert_eq!(manager.stream_count(), 0);
    assert_eq!(live.load(Ordering::Relaxed), 0);
    // An iterator that creates its chunks is asked for them only if they exist already.
    let created = Arc::new(AtomicUsize::new(0));
    let creating = |created: &Arc<AtomicUsize>| {
        let created = Arc::clone(created);
        (0..3).map(move |_| {
            created.fetch_add(1, Ordering::Relaxed);
            ManagedBuffer::from("x")
        })
    };
    manager.register_stream(creating(&created), options.clone().materialized_on_next());
    assert_eq!(created.load(Ordering::Relaxed), 0);
    manager.register_stream(creating(&created), options);
    assert_eq!(created.load(Ordering::Relaxed), 3, "existing chunks are released by taking them");
}

/// Handlers register streams on tasks of their own while their clients leave.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_t4_streams_registered_while_clients_leave_are_released() {
    let (manager, live) = (Arc::new(OneForOneStreamManager::new()), Arc::<AtomicUsize>::default());
    let (registered, mut registrations) = mpsc::unbounded_channel();
    let (streams, counted) = (Arc::clone(&manager), Arc::clone(&live));
    let handler = Handler::new().with_manager(Arc::clone(&manager) as _).on_rpc(
        move |client, _, callback| {
            let (client, streams, live) =
                (client.clone(), Arc::clone(&streams), Arc::clone(&counted));
            let registered = registered.clone();
            drop(callback);
            std::thread::spawn(move || {
                for _ in 0..20 {
                    let options = StreamOptions::default().connection(&client);
                    streams.register_stream(chunks(&live), options);
                }
                registered.send(()).unwrap();
            });
        },
    );
    let pair = pair(handler).await;
    for _ in 0..50 {
        let address = pair.server.local_addr();
        let client = within(pair.factory.create_unmanaged_client(address)).await.unwrap();
        drop(client.send_rpc("open"));
        client.close();
        within(registrations.recv()).await.unwrap();
    }
    until(|| manager.stream_count() == 0 && live.load(Ordering::Relaxed) == 0).await;
}

/// Registers a stream for each connection, and rejects the connection.
struct RegistersAndRejects {
    manager: Arc<OneForOneStreamManager>,
    live: Arc<AtomicUsize>,
}

impl TransportServerBootstrap for RegistersAndRejects {
    fn do_bootstrap(
        &self,
        client: &TransportClient,
        _: Arc<dyn RpcHandler>,
    ) -> Result<Arc<dyn RpcHandler>, BoxError> {
        assert!(client.is_accepted());
        let options = StreamOptions::default().connection(client);
        self.manager.register_stream(chunks(&self.live), options);
        Err("rejected".into())
    }
}

#[tokio::test]
async fn fault_t4_stream_of_bootstrap_that_rejects_is_released() {
    let (manager, live) = (Arc::new(OneForOneStreamManager::new()), Arc::<AtomicUsize>::default());
    let handler = Handler::new().with_manager(Arc::clone(&manager) as _);
    let context = TransportContext::new(TransportConf::new("test"), handler);
    let rejects = RegistersAndRejects { manager: Arc::clone(&manager), live: Arc::clone(&live) };
    let server = context.create_server_with("127.0.0.1:0", vec![Arc::new(rejects)]).await.unwrap();
    let factory = context.create_client_factory();
    let client = within(factory.create_client(server.local_addr())).await.unwrap();
    assert!(!client.is_accepted());
    within(client.closed()).await;
    until(|| manager.stream_count() == 0 && live.load(Ordering::Relaxed) == 0).await;
    let registered = context.metrics().server().snapshot().connections_total;
    assert_eq!(registered, 1, "a connection was rejected after it registered a stream");
}

/// A panic in a release hook or iterator neither keeps the stream nor poisons the manager.
#[tokio::test]
async fn fault_t4_panicking_iterator_of_ended_connection_keeps_nothing() {
    let manager = Arc::new(OneForOneStreamManager::new());
    let client = ended_client(&manager).await;
    let options = StreamOptions::default().connection(&client);
    let panicking = (0..3).map(|_| -> ManagedBuffer { panic!("an iterator panics") });
    let registering = std::panic::AssertUnwindSafe(|| manager.register_stream(panicking, options));
    assert!(std::panic::catch_unwind(registering).is_err());
    assert_eq!(manager.stream_count(), 0);
    manager.register_stream(["chunk".into()], StreamOptions::default());
    assert_eq!(manager.stream_count(), 1);
}
