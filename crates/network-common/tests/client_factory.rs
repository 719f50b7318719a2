//! The client factory: Spark's `TransportClientFactorySuite` and `TransportClientSuite` (rows
//! `tcf_01` to `tcf_09` and `tcl_01`), and callers that share a connection attempt.

// Helper functions outside of tests unwrap as well.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use network_common::{
    BoxError, ErrorKind, PeerAddress, RpcHandler, TransportClient, TransportClientBootstrap,
    TransportClientFactory, TransportConf, TransportContext, TransportServer,
    TransportServerBootstrap,
};
use parking_lot::Mutex;
use support::*;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

fn context(settings: &[(&str, &str)]) -> TransportContext {
    TransportContext::new(conf(settings), Handler::new())
}

async fn server_and_factory(
    settings: &[(&str, &str)],
) -> (TransportServer, TransportClientFactory) {
    let context = context(settings);
    (serve(&context).await, context.create_client_factory())
}

/// Returns an address without a listener.
async fn closed_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// Returns an address whose backlog is full, so that connecting hangs. The sockets keep it full.
async fn hanging_port() -> (SocketAddr, impl Sized) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut filling = Vec::new();
    while let Ok(Ok(stream)) =
        timeout(Duration::from_millis(300), tokio::net::TcpStream::connect(address)).await
    {
        filling.push(stream);
        assert!(filling.len() < 100, "the backlog does not fill");
    }
    (address, (listener, filling))
}

#[tokio::test]
async fn tcf_01_pool_reuses_clients_up_to_configured_number() {
    for limit in 1..=4_usize {
        let count = limit.to_string();
        let settings = [("spark.shuffle.io.numConnectionsPerPeer", count.as_str())];
        let (server, factory) = server_and_factory(&settings).await;
        let mut clients = Vec::new();
        for _ in 0..limit * 10 {
            clients.push(within(factory.create_client(server.local_addr())).await.unwrap());
        }
        assert!(clients.iter().all(TransportClient::is_active));
        let distinct: HashSet<_> = clients.iter().map(TransportClient::id).collect();
        assert!(distinct.len() <= limit, "{} of {limit}", distinct.len());
        // 20 or more random choices pick only one client with a probability below 1 in 500,000.
        assert!(limit == 1 || distinct.len() > 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tcf_02_pool_reuses_clients_up_to_number_for_concurrent_callers() {
    for limit in 1..=4_usize {
        let count = limit.to_string();
        let settings = [("spark.shuffle.io.numConnectionsPerPeer", count.as_str())];
        let context = context(&settings);
        let server = serve(&context).await;
        let factory = context.create_client_factory();
        let getting: Vec<_> = (0..limit * 10)
            .map(|_| {
                let (factory, address) = (factory.clone(), server.local_addr());
                tokio::spawn(async move { factory.create_client(address).await.unwrap() })
            })
            .collect();
        let clients: Vec<_> =
            within(join_all(getting)).await.into_iter().map(Result::unwrap).collect();
        assert!(clients.iter().all(TransportClient::is_active));
        let distinct: HashSet<_> = clients.iter().map(TransportClient::id).collect();
        assert!(distinct.len() <= limit);
        // No further connection was made.
        assert_eq!(context.metrics().client().snapshot().connections_total, distinct.len() as u64);
        until(|| context.metrics().server().snapshot().connections_total == distinct.len() as u64)
            .await;
    }
}

#[tokio::test]
async fn tcf_03_different_servers_get_different_clients() {
    let context = context(&[]);
    let (one, two) = (serve(&context).await, serve(&context).await);
    let factory = context.create_client_factory();
    let first = within(factory.create_client(one.local_addr())).await.unwrap();
    let second = within(factory.create_client(two.local_addr())).await.unwrap();
    assert!(first.is_active() && second.is_active());
    assert_ne!(first.id(), second.id());
    assert_eq!((first.peer_addr(), second.peer_addr()), (one.local_addr(), two.local_addr()));
}

#[tokio::test]
async fn tcf_04_inactive_client_is_never_returned() {
    let (server, factory) = server_and_factory(&[]).await;
    let first = within(factory.create_client(server.local_addr())).await.unwrap();
    first.close();
    assert!(!first.is_active(), "a closed client must be inactive at once");
    let second = within(factory.create_client(server.local_addr())).await.unwrap();
    assert_ne!(first.id(), second.id());
    assert!(second.is_active());
    // A client marked by `time_out` (Spark's `timeOut`) is replaced too, but still works.
    second.time_out();
    let third = within(factory.create_client(server.local_addr())).await.unwrap();
    assert_ne!(second.id(), third.id());
    assert_eq!(within(second.send_rpc("still works")).await.unwrap(), "still works");
}

#[tokio::test]
async fn tcf_05_closing_factory_closes_pooled_clients() {
    let context = context(&[]);
    let (one, two) = (serve(&context).await, serve(&context).await);
    let factory = context.create_client_factory();
    let first = within(factory.create_client(one.local_addr())).await.unwrap();
    let second = within(factory.create_client(two.local_addr())).await.unwrap();
    let unmanaged = within(factory.create_unmanaged_client(one.local_addr())).await.unwrap();
    factory.close();
    assert!(!first.is_active() && !second.is_active());
    assert_eq!(within(first.closed()).await.kind(), ErrorKind::Closed);
    within(second.closed()).await;
    assert_eq!(within(unmanaged.send_rpc("its caller's")).await.unwrap(), "its caller's");
}

#[tokio::test]
async fn tcf_06_idle_connection_is_closed_after_timeout() {
    let context =
        context(&[("spark.shuffle.io.connectionTimeout", "1s")]).close_idle_connections(true);
    let server = serve(&context).await;
    let factory = context.create_client_factory();
    let client = within(factory.create_client(server.local_addr())).await.unwrap();
    assert!(client.is_active());
    let begun = Instant::now();
    within(client.closed()).await;
    assert!(!client.is_active());
    assert!(begun.elapsed() < Duration::from_secs(10));
    // The pool replaces the closed client.
    let next = within(factory.create_client(server.local_addr())).await.unwrap();
    assert_ne!(client.id(), next.id());
}

#[tokio::test]
async fn tcf_07_closed_factory_creates_no_client() {
    let (server, factory) = server_and_factory(&[]).await;
    factory.close();
    let clone = factory.clone();
    for error in [
        within(factory.create_client(server.local_addr())).await.unwrap_err(),
        within(clone.create_client_fast_fail(server.local_addr())).await.unwrap_err(),
        within(clone.create_unmanaged_client(server.local_addr())).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Closed);
        assert!(error.to_string().contains("factory is closed"), "{error}");
        assert_eq!(error.peer(), Some(server.local_addr().to_string().as_str()));
    }
    factory.close();
}

#[tokio::test]
async fn tcf_08_connecting_fails_fast_within_time_window() {
    let context = context(&[("spark.shuffle.io.retryWait", "1s")]);
    let factory = context.create_client_factory();
    let address = closed_port().await;
    let begun = Instant::now();
    let first = within(factory.create_client_fast_fail(address)).await.unwrap_err();
    assert_eq!(first.kind(), ErrorKind::Connect);
    assert!(first.to_string().starts_with(&format!("Failed to connect to {address}")), "{first}");
    assert!(std::error::Error::source(&first).is_some() && first.is_retryable());
    let second = within(factory.create_client_fast_fail(address)).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_millis(950), "too slow a machine for this test");
    assert_eq!(second.kind(), ErrorKind::FastFail);
    assert_eq!(
        second.to_string(),
        format!("Connecting to {address} failed in the last 950 ms, fail this connection directly")
    );
    // The window applies neither to plain calls nor to another address.
    assert_eq!(
        within(factory.create_client(address)).await.unwrap_err().kind(),
        ErrorKind::Connect
    );
    let other = within(factory.create_client_fast_fail(closed_port().await)).await.unwrap_err();
    assert_eq!(other.kind(), ErrorKind::Connect);
    // The window starts at the last failure; after it the address is tried again.
    tokio::time::sleep(Duration::from_millis(960)).await;
    let later = within(factory.create_client_fast_fail(address)).await.unwrap_err();
    assert_eq!(later.kind(), ErrorKind::Connect);
    // A success ends the window.
    let server = context.create_server(address).await.unwrap();
    within(factory.create_client(address)).await.unwrap().close();
    assert_eq!(within(server.close(Duration::from_secs(10))).await, 0);
    let listening_again = context.create_server(address).await.unwrap();
    within(factory.create_client_fast_fail(listening_again.local_addr())).await.unwrap();
}

#[tokio::test]
async fn tcf_09_unlimited_timeouts_are_respected() {
    let settings = [
        ("spark.network.timeout", "1s"),
        ("spark.shuffle.io.connectionTimeout", "-1"),
        ("spark.shuffle.io.connectionCreationTimeout", "-1"),
    ];
    let context = context(&settings).close_idle_connections(true);
    let server = serve(&context).await;
    let factory = context.create_client_factory();
    let client = within(factory.create_client(server.local_addr())).await.unwrap();
    // More than twice the default timeout.
    let closed = timeout(Duration::from_millis(2500), client.closed()).await;
    assert!(closed.is_err() && client.is_active());
    let error = within(factory.create_client(closed_port().await)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect);
    assert!(std::error::Error::source(&error).is_some());
}

/// Corresponds to Spark's event loop that shuts down: the runtime of the connection is gone.
#[test]
fn tcl_01_client_is_inactive_after_runtime_shutdown() {
    let mine = tokio::runtime::Runtime::new().unwrap();
    let (server, _context) = mine.block_on(async {
        let context = context(&[]);
        (serve(&context).await, context)
    });
    let other = tokio::runtime::Runtime::new().unwrap();
    let factory = context(&[]).create_client_factory();
    let client = other.block_on(factory.create_client(server.local_addr())).unwrap();
    assert!(client.is_active());
    let waiting = client.send_rpc("must end with or without a response");
    other.shutdown_timeout(Duration::from_secs(10));
    assert!(!client.is_active());
    // Pending requests end and new ones fail, also outside of a runtime.
    mine.block_on(within(async {
        let _ = waiting.await;
        assert_eq!(client.send_rpc("new").await.unwrap_err().kind(), ErrorKind::Closed);
        assert_eq!(client.closed().await.kind(), ErrorKind::Closed);
        assert_eq!(client.send("new").unwrap_err().kind(), ErrorKind::Closed);
        // The pool connects again, in the caller's runtime.
        let next = factory.create_client(server.local_addr()).await.unwrap();
        assert_ne!(next.id(), client.id());
        assert_eq!(next.send_rpc("next").await.unwrap(), "next");
    }));
}

/// A connection attempt ends with its runtime, and the next call starts another one.
#[test]
fn connection_attempt_ends_with_its_runtime() {
    let mine = tokio::runtime::Runtime::new().unwrap();
    let (server, _context) = mine.block_on(async {
        let context = context(&[]);
        (serve(&context).await, context)
    });
    let gate = Arc::new(Gate::default());
    let factory = context(&[]).create_client_factory_with(vec![gate.clone()]);
    let other = tokio::runtime::Runtime::new().unwrap();
    let address = server.local_addr();
    let (getting, from_there) = (factory.clone(), mine.handle().clone());
    other.block_on(async {
        let begun = tokio::spawn(async move { getting.create_client(address).await });
        within(gate.reached.notified()).await;
        begun.abort();
    });
    let getting = factory.clone();
    let waiting = from_there.spawn(async move { getting.create_client(address).await });
    other.shutdown_timeout(Duration::from_secs(10));
    gate.open();
    mine.block_on(within(async {
        if let Err(error) = waiting.await.unwrap() {
            assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
        }
        let client = factory.create_client(address).await.unwrap();
        assert_eq!(client.send_rpc("x").await.unwrap(), "x");
    }));
}

/// A bootstrap that can be paused and made to fail.
#[derive(Default)]
struct Gate {
    reached: Notify,
    opened: Notify,
    is_open: AtomicBool,
    fails: AtomicBool,
    entered: AtomicUsize,
}

impl Gate {
    fn open(&self) {
        self.is_open.store(true, Ordering::SeqCst);
        self.opened.notify_waiters();
    }
}

impl TransportClientBootstrap for Gate {
    fn do_bootstrap<'a>(&'a self, _: &'a TransportClient) -> BoxFuture<'a, Result<(), BoxError>> {
        Box::pin(async {
            self.entered.fetch_add(1, Ordering::SeqCst);
            let opened = self.opened.notified();
            let fails = self.fails.load(Ordering::SeqCst);
            self.reached.notify_one();
            if !self.is_open.load(Ordering::SeqCst) {
                opened.await;
            }
            if fails { Err("the gate is shut".into()) } else { Ok(()) }
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_callers_share_one_connection_attempt() {
    let server_context = context(&[]);
    let server = serve(&server_context).await;
    let gate = Arc::new(Gate::default());
    let factory = context(&[]).create_client_factory_with(vec![gate.clone()]);
    let getting: Vec<_> = (0..20)
        .map(|_| {
            let (factory, address) = (factory.clone(), server.local_addr());
            tokio::spawn(async move { factory.create_client(address).await.unwrap() })
        })
        .collect();
    within(gate.reached.notified()).await;
    assert!(getting.iter().all(|get| !get.is_finished()));
    gate.open();
    let clients = within(join_all(getting)).await;
    let distinct: HashSet<_> = clients.into_iter().map(|client| client.unwrap().id()).collect();
    assert_eq!(distinct.len(), 1);
    assert_eq!(gate.entered.load(Ordering::SeqCst), 1);
    assert_eq!(server_context.metrics().server().snapshot().connections_total, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_caller_does_not_affect_other_callers() {
    let server_context = context(&[]);
    let server = serve(&server_context).await;
    let gate = Arc::new(Gate::default());
    let factory = context(&[]).create_client_factory_with(vec![gate.clone()]);
    let get = || {
        let (factory, address) = (factory.clone(), server.local_addr());
        tokio::spawn(async move { factory.create_client(address).await })
    };
    let first = get();
    within(gate.reached.notified()).await;
    let second = get();
    first.abort();
    assert!(within(first).await.unwrap_err().is_cancelled());
    gate.open();
    let client = within(second).await.unwrap().unwrap();
    assert_eq!(within(client.send_rpc("x")).await.unwrap(), "x");
    // The attempt was not repeated for the second caller.
    assert_eq!(server_context.metrics().server().snapshot().connections_total, 1);
}

/// A failed attempt is not reported to later callers; they start their own.
#[tokio::test(flavor = "multi_thread")]
async fn failed_attempt_is_not_reported_to_later_callers() {
    let server = serve(&context(&[])).await;
    let runtime = tokio::runtime::Handle::current().metrics();
    let tasks = runtime.num_alive_tasks();
    for cancelled in [false, true] {
        let gate = Arc::new(Gate::default());
        gate.fails.store(true, Ordering::SeqCst);
        let client_context = context(&[]);
        let factory = client_context.create_client_factory_with(vec![gate.clone()]);
        let (getting, address) = (factory.clone(), server.local_addr());
        let first = tokio::spawn(async move { getting.create_client(address).await });
        within(gate.reached.notified()).await;
        if cancelled {
            first.abort();
            assert!(within(first).await.unwrap_err().is_cancelled());
            gate.open();
        } else {
            gate.open();
            assert_eq!(within(first).await.unwrap().unwrap_err().kind(), ErrorKind::Bootstrap);
        }
        let metrics = client_context.metrics();
        until(|| metrics.client().snapshot().failures == [(ErrorKind::Bootstrap, 1)]).await;
        // The attempt has ended, and so have both ends of its connection.
        until(|| runtime.num_alive_tasks() == tasks).await;
        gate.fails.store(false, Ordering::SeqCst);
        let client = within(factory.create_client(address)).await.unwrap();
        assert_eq!(within(client.send_rpc("x")).await.unwrap(), "x", "cancelled: {cancelled}");
        client.close();
        until(|| runtime.num_alive_tasks() == tasks).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bootstrap_error_opens_no_fast_fail_window() {
    let server_context = context(&[]);
    let server = serve(&server_context).await;
    let gate = Arc::new(Gate::default());
    gate.open();
    gate.fails.store(true, Ordering::SeqCst);
    let factory = context(&[]).create_client_factory_with(vec![gate.clone()]);
    for _ in 0..2 {
        let error = within(factory.create_client_fast_fail(server.local_addr())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Bootstrap, "{error}");
        assert!(!error.is_retryable() && full_text(&error).contains("the gate is shut"));
        assert_eq!(error.peer(), Some(server.local_addr().to_string().as_str()));
    }
    let error = within(factory.create_unmanaged_client(server.local_addr())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Bootstrap);
    // The connections are closed.
    until(|| {
        let now = server_context.metrics().server().snapshot();
        (now.connections, now.connections_total) == (0, 3)
    })
    .await;
    gate.fails.store(false, Ordering::SeqCst);
    within(factory.create_client_fast_fail(server.local_addr())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_factory_ends_active_connection_attempts() {
    let server_context = context(&[]);
    let server = serve(&server_context).await;
    let gate = Arc::new(Gate::default());
    let factory = context(&[]).create_client_factory_with(vec![gate.clone()]);
    let (getting, address) = (factory.clone(), server.local_addr());
    let waiting = tokio::spawn(async move { getting.create_client(address).await });
    within(gate.reached.notified()).await;
    factory.close();
    gate.open();
    assert_eq!(within(waiting).await.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    until(|| server_context.metrics().server().snapshot().connections == 0).await;
    // An unmanaged client is not pooled: the attempt may fail or succeed, but the client must work.
    let gate = Arc::new(Gate::default());
    let factory = context(&[]).create_client_factory_with(vec![gate.clone()]);
    let getting = factory.clone();
    let waiting = tokio::spawn(async move { getting.create_unmanaged_client(address).await });
    within(gate.reached.notified()).await;
    factory.close();
    gate.open();
    if let Ok(client) = within(waiting).await.unwrap() {
        assert_eq!(within(client.send_rpc("its caller's")).await.unwrap(), "its caller's");
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn hanging_connect_times_out_without_delaying_other_callers() {
    let (hanging, _keep) = hanging_port().await;
    let (server, factory) =
        server_and_factory(&[("spark.shuffle.io.connectionCreationTimeout", "2s")]).await;
    let getting = factory.clone();
    let begun = Instant::now();
    let hung = tokio::spawn(async move { getting.create_client(hanging).await });
    tokio::task::yield_now().await;
    let client = within(factory.create_client(server.local_addr())).await.unwrap();
    assert_eq!(within(client.send_rpc("x")).await.unwrap(), "x");
    assert!(!hung.is_finished(), "the connect must still hang");
    let error = within(hung).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectTimeout, "{error}");
    assert!(begun.elapsed() >= Duration::from_secs(2));
    assert!(error.is_timeout() && error.is_retryable());
    assert!(
        error.to_string().starts_with(&format!("Connecting to {hanging} timed out (2000 ms)")),
        "{error}"
    );
    assert!(error.to_string().contains("spark.shuffle.io.connectionCreationTimeout"));
    // A timeout opens the fast-fail window as a rejected connect does.
    let error = within(factory.create_client_fast_fail(hanging)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FastFail);
}

#[tokio::test]
async fn names_are_resolved_and_errors_contain_requested_name() {
    let (server, factory) = server_and_factory(&[]).await;
    let client =
        within(factory.create_client(("localhost", server.local_addr().port()))).await.unwrap();
    assert_eq!(client.peer_addr(), server.local_addr());
    // The key of the pool is the unresolved name.
    let by_address = within(factory.create_client(server.local_addr())).await.unwrap();
    assert_ne!(client.id(), by_address.id());
    let error = within(factory.create_client(("no.such.host.invalid", 7))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect);
    assert!(error.to_string().contains("no.such.host.invalid:7"), "{error}");
    assert_eq!(error.peer(), Some("no.such.host.invalid:7"));
}

/// A bootstrap that records its call and wraps the handler.
struct WrapsHandler {
    name: &'static str,
    seen: Arc<Mutex<Vec<&'static str>>>,
    fails: bool,
}

/// Puts its name around the messages that it forwards.
struct Wrapper {
    name: &'static str,
    inner: Arc<dyn RpcHandler>,
}

impl TransportServerBootstrap for WrapsHandler {
    fn do_bootstrap(
        &self,
        client: &TransportClient,
        handler: Arc<dyn RpcHandler>,
    ) -> Result<Arc<dyn RpcHandler>, BoxError> {
        assert!(client.is_active());
        self.seen.lock().push(self.name);
        if self.fails {
            return Err("not this one".into());
        }
        Ok(Arc::new(Wrapper { name: self.name, inner: handler }))
    }
}

impl RpcHandler for Wrapper {
    fn receive(
        &self,
        client: &TransportClient,
        message: bytes::Bytes,
        callback: network_common::RpcResponseCallback,
    ) {
        let message = [self.name.as_bytes(), b"(", &message, b")"].concat();
        self.inner.receive(client, message.into(), callback);
    }
}

#[tokio::test]
async fn server_bootstraps_wrap_handler_in_order() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let wrapping = |name, fails| -> Arc<dyn TransportServerBootstrap> {
        Arc::new(WrapsHandler { name, seen: seen.clone(), fails })
    };
    let context = context(&[]);
    let bootstraps = vec![wrapping("inner", false), wrapping("outer", false)];
    let server = context.create_server_with("127.0.0.1:0", bootstraps).await.unwrap();
    let factory = context.create_client_factory();
    let client = within(factory.create_client(server.local_addr())).await.unwrap();
    assert_eq!(
        within(client.send_rpc("x")).await.unwrap(),
        "inner(outer(x))",
        "the last wrapper must be called first"
    );
    within(client.send_rpc("x")).await.unwrap();
    assert_eq!(*seen.lock(), ["inner", "outer"], "once per connection, in order");

    // A bootstrap that fails closes the connection; the next one is not called.
    seen.lock().clear();
    let bootstraps = vec![wrapping("fails", true), wrapping("never", false)];
    let server = context.create_server_with("127.0.0.1:0", bootstraps).await.unwrap();
    let client = within(factory.create_client(server.local_addr())).await.unwrap();
    within(client.closed()).await;
    assert_eq!(*seen.lock(), ["fails"]);
    assert_eq!(context.metrics().server().snapshot().failures, [(ErrorKind::Bootstrap, 1)]);
    until(|| context.metrics().server().snapshot().connections == 1).await;
}

/// Client bootstraps run in order before `create_client` returns; a failing one stops the sequence.
#[tokio::test]
async fn client_bootstraps_run_in_order_before_client_is_returned() {
    struct SendsName(&'static str, Arc<Mutex<Vec<&'static str>>>);
    impl TransportClientBootstrap for SendsName {
        fn do_bootstrap<'a>(
            &'a self,
            client: &'a TransportClient,
        ) -> BoxFuture<'a, Result<(), BoxError>> {
            Box::pin(async {
                assert_eq!(client.send_rpc(self.0).await?, self.0);
                self.1.lock().push(self.0);
                if self.0 == "fails" { Err("it does".into()) } else { Ok(()) }
            })
        }
    }
    let server = serve(&context(&[])).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let asks =
        |name| -> Arc<dyn TransportClientBootstrap> { Arc::new(SendsName(name, seen.clone())) };
    let conf = TransportConf::new(MODULE);
    let client_context = TransportContext::new(conf, Handler::new());
    let factory = client_context.create_client_factory_with(vec![asks("one"), asks("two")]);
    within(factory.create_client(server.local_addr())).await.unwrap();
    within(factory.create_client(server.local_addr())).await.unwrap();
    assert_eq!(*seen.lock(), ["one", "two"]);
    let factory = client_context.create_client_factory_with(vec![asks("fails"), asks("never")]);
    within(factory.create_client(server.local_addr())).await.unwrap_err();
    assert_eq!(*seen.lock(), ["one", "two", "fails"]);
}

/// A panic in a bootstrap closes its connection only; the server accepts others.
#[tokio::test]
async fn panicking_bootstrap_rejects_only_its_connection() {
    struct Panics(AtomicBool);
    impl TransportServerBootstrap for Panics {
        fn do_bootstrap(
            &self,
            _: &TransportClient,
            handler: Arc<dyn RpcHandler>,
        ) -> Result<Arc<dyn RpcHandler>, BoxError> {
            assert!(!self.0.load(Ordering::SeqCst), "scripted failure");
            Ok(handler)
        }
    }
    impl TransportClientBootstrap for Panics {
        fn do_bootstrap<'a>(
            &'a self,
            _: &'a TransportClient,
        ) -> BoxFuture<'a, Result<(), BoxError>> {
            assert!(!self.0.load(Ordering::SeqCst), "scripted failure");
            Box::pin(async { Ok(()) })
        }
    }
    let (at_server, at_client) =
        (Arc::new(Panics(AtomicBool::new(true))), Arc::new(Panics(AtomicBool::new(false))));
    let server_context = context(&[]);
    let server =
        server_context.create_server_with("127.0.0.1:0", vec![at_server.clone()]).await.unwrap();
    let factory = context(&[]).create_client_factory_with(vec![at_client.clone()]);
    let client = within(factory.create_client(server.local_addr())).await.unwrap();
    within(client.closed()).await;
    assert_eq!(server_context.metrics().server().snapshot().failures, [(ErrorKind::Bootstrap, 1)]);
    at_server.0.store(false, Ordering::SeqCst);
    let client = within(factory.create_client(server.local_addr())).await.unwrap();
    assert_eq!(within(client.send_rpc("x")).await.unwrap(), "x", "the server must still accept");
    client.close();

    at_client.0.store(true, Ordering::SeqCst);
    for pooled in [true, false] {
        let error = match pooled {
            true => within(factory.create_client(server.local_addr())).await.unwrap_err(),
            false => {
                within(factory.create_unmanaged_client(server.local_addr())).await.unwrap_err()
            }
        };
        assert_eq!(error.kind(), ErrorKind::Bootstrap, "{error}");
        assert!(full_text(&error).contains("panicked"), "{error}");
    }
    until(|| server_context.metrics().server().snapshot().connections == 0).await;
}

#[test]
fn address_keeps_its_ipv6_scope() {
    for text in ["[fe80::1%7]:80", "[fe80::1]:80", "127.0.0.1:80"] {
        let address: SocketAddr = text.parse().unwrap();
        assert_eq!(PeerAddress::from(address).to_string(), text);
    }
}
