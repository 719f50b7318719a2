//! Shutdown of an environment: accepted messages, messages sent in `on_stop`, the report, and the
//! end of the runtime. The peers are other environments.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{Greeting, Hello, HelloMessage, address, client, hi, next, server, setting, soon};
use rpc_core::{
    EndpointContext, ErrorKind, MemoryNetwork, RpcEndpointRef, RpcEnv, RpcError,
    ThreadSafeRpcEndpoint,
};
use tokio::sync::{Semaphore, mpsc};

/// An endpoint that handles one message for each permit.
struct Gated(std::sync::Arc<Semaphore>);

impl ThreadSafeRpcEndpoint for Gated {
    type Message = HelloMessage;
    async fn receive(
        &mut self,
        message: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        self.0.acquire().await.map_err(RpcError::application)?.forget();
        let (HelloMessage::SayHi(_, context) | HelloMessage::SayBye(_, context)) = message;
        context.reply(Greeting::default())
    }
}

#[tokio::test]
async fn shutdown_handles_accepted_messages_and_rejects_later_ones() {
    let (server, client) = (server().await, client().await);
    let permits = std::sync::Arc::new(Semaphore::new(0));
    let slow = server.setup_endpoint("slow", Gated(std::sync::Arc::clone(&permits))).unwrap();
    server.setup_endpoint("idle", Hello).unwrap();
    let remote =
        soon(client.setup_endpoint_ref::<HelloMessage>(address(&server), "slow")).await.unwrap();
    let accepted: Vec<_> = (0..3).map(|_| slow.ask(hi("neo"))).collect();
    let shutdown = server.shutdown();
    assert_eq!(soon(slow.ask(hi("late"))).await.unwrap_err().kind(), ErrorKind::Stopped);
    assert_eq!(soon(remote.ask(hi("late"))).await.unwrap_err().kind(), ErrorKind::Stopped);
    permits.add_permits(3);
    for ask in accepted {
        soon(ask).await.unwrap();
    }
    let report = soon(shutdown).await;
    assert!(report.is_clean(), "{report:?}");
    let [idle, slow] = &report.endpoints[..] else { panic!("{report:?}") };
    assert_eq!(
        (&*idle.name, idle.finished, idle.rejected, idle.abandoned, idle.stopped),
        ("idle", 0, 0, 0, true)
    );
    assert_eq!(
        (&*slow.name, slow.finished, slow.rejected, slow.abandoned, slow.stopped),
        ("slow", 3, 2, 0, true)
    );
    // A later call returns the same report.
    assert_eq!(soon(server.shutdown()).await.endpoints, report.endpoints);
}

#[tokio::test]
async fn messages_unfinished_at_shutdown_timeout_are_reported() {
    let conf = setting("spark.rpc.shutdownTimeout", "50ms");
    let env = RpcEnv::builder("stuck").client_mode().conf(conf).start().await.unwrap();
    let stuck = env.setup_endpoint("stuck", Gated(std::sync::Arc::new(Semaphore::new(0)))).unwrap();
    let asks: Vec<_> = (0..2).map(|_| tokio::spawn(stuck.ask(hi("neo")))).collect();
    let report = soon(env.shutdown()).await;
    assert!(!report.is_clean());
    let [stuck] = &report.endpoints[..] else { panic!("{report:?}") };
    assert_eq!((stuck.finished, stuck.abandoned, stuck.stopped), (0, 2, false));
    for ask in asks {
        assert!(soon(ask).await.unwrap().is_err());
    }
}

/// An endpoint that sends a message in `on_stop`.
struct SendsInOnStop(RpcEndpointRef<HelloMessage>);

impl ThreadSafeRpcEndpoint for SendsInOnStop {
    type Message = HelloMessage;
    async fn receive(
        &mut self,
        _: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        Ok(())
    }
    async fn on_stop(&mut self, _: &EndpointContext<HelloMessage>) -> Result<(), RpcError> {
        Ok(self.0.send(hi("goodbye"))?)
    }
}

/// An endpoint that sends the text of each `SayHi` to the test.
struct Collect(mpsc::UnboundedSender<String>);

impl ThreadSafeRpcEndpoint for Collect {
    type Message = HelloMessage;
    async fn receive(
        &mut self,
        message: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        let (HelloMessage::SayHi(hi, _), ..) = (message,) else { return Ok(()) };
        self.0.send(hi.msg).map_err(RpcError::application)
    }
}

/// The message is delivered over a connection that is made for it.
#[tokio::test]
async fn message_sent_in_on_stop_is_delivered() {
    let (first, client) = (server().await, client().await);
    let (tx, _) = mpsc::unbounded_channel();
    first.setup_endpoint("collect", Collect(tx)).unwrap();
    let collect =
        soon(client.setup_endpoint_ref::<HelloMessage>(address(&first), "collect")).await.unwrap();
    client.setup_endpoint("sends-in-on-stop", SendsInOnStop(collect)).unwrap();
    let at = address(&first).host_port();
    soon(first.shutdown()).await;
    let second = RpcEnv::builder("second").bind(at).start().await.unwrap();
    let (tx, mut received) = mpsc::unbounded_channel();
    second.setup_endpoint("collect", Collect(tx)).unwrap();
    soon(async {
        while client.snapshot().client.connections > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let report = soon(client.shutdown()).await;
    assert_eq!(next(&mut received).await, "goodbye");
    assert!(report.is_clean(), "{report:?}");
}

/// A shutdown ends only when all messages are written, so that the process can end after it.
#[test]
fn shutdown_completes_after_on_stop_messages_are_written() {
    /// A size that exceeds the buffers of a socket.
    const LARGE: usize = 32 << 20;
    struct SendsLargeInOnStop(RpcEndpointRef<HelloMessage>);
    impl ThreadSafeRpcEndpoint for SendsLargeInOnStop {
        type Message = HelloMessage;
        async fn receive(
            &mut self,
            _: HelloMessage,
            _: &EndpointContext<HelloMessage>,
        ) -> Result<(), RpcError> {
            Ok(())
        }
        async fn on_stop(&mut self, _: &EndpointContext<HelloMessage>) -> Result<(), RpcError> {
            Ok(self.0.send(hi(&"x".repeat(LARGE)))?)
        }
    }
    let build = || {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    };
    let (server_runtime, client_runtime) = (build(), build());
    let (tx, mut received) = mpsc::unbounded_channel();
    let server = server_runtime.block_on(server());
    server.setup_endpoint("collect", Collect(tx)).unwrap();
    let report = client_runtime.block_on(async {
        let client = client().await;
        let collect = soon(client.setup_endpoint_ref::<HelloMessage>(address(&server), "collect"))
            .await
            .unwrap();
        client.setup_endpoint("sends-large-in-on-stop", SendsLargeInOnStop(collect)).unwrap();
        soon(client.shutdown()).await
    });
    drop(client_runtime);
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(server_runtime.block_on(next(&mut received)).len(), LARGE);
}

#[tokio::test(start_paused = true)]
async fn unsent_messages_are_counted_in_shutdown_report() {
    let network = MemoryNetwork::new();
    let conf = setting("spark.rpc.inbox.maxMessages", "1");
    let server =
        RpcEnv::builder("server").bind("10.0.0.1:7077").memory_network(&network).conf(conf);
    let server = server.start().await.unwrap();
    let client =
        RpcEnv::builder("client").client_mode().memory_network(&network).start().await.unwrap();
    server.setup_endpoint("stuck", Gated(std::sync::Arc::new(Semaphore::new(0)))).unwrap();
    let stuck = client.setup_endpoint_ref::<HelloMessage>(address(&server), "stuck").await.unwrap();
    // The first message uses up the credit; the others are queued for more.
    let asks = ["first", "second"].map(|name| stuck.ask(hi(name)));
    stuck.send(hi("third")).unwrap();
    // A cancelled ask does not count as unsent.
    drop(stuck.ask(hi("cancelled")));
    let report = client.shutdown().await;
    assert_eq!((report.unsent, report.is_complete, report.is_clean()), (2, true, false));
    let [sent, queued] = asks;
    assert_eq!(sent.await.unwrap_err().kind(), ErrorKind::Network);
    let error = queued.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Stopped);
    assert!(error.to_string().contains("dropped because Outbox is stopped"), "{error}");
}

/// A shutdown without lost messages logs nothing at level WARN.
#[tokio::test]
async fn rpc_env_35_orderly_shutdown_logs_no_warning() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(move || writer.clone())
        .finish();
    // The thread-local subscriber sees all tasks, as the runtime has one thread.
    let _default = tracing::subscriber::set_default(subscriber);
    for client_first in [true, false] {
        let (server, other, client) = (server().await, server().await, client().await);
        server.setup_endpoint("hello", Hello).unwrap();
        client.setup_endpoint("hello", Hello).unwrap();
        for env in [&client, &other] {
            let hello = soon(env.setup_endpoint_ref::<HelloMessage>(address(&server), "hello"))
                .await
                .unwrap();
            hello.send(hi("neo")).unwrap();
            soon(hello.ask(hi("neo"))).await.unwrap();
            // The ask is cancelled while its reply is on the way.
            drop(hello.ask(hi("neo")));
        }
        let envs = if client_first { [client, other, server] } else { [server, other, client] };
        for env in envs {
            assert!(soon(env.shutdown()).await.is_clean());
        }
    }
    tracing::warn!("shows that the subscriber records warnings");
    let logged = String::from_utf8(std::mem::take(&mut *log.0.lock().unwrap())).unwrap();
    assert_eq!(logged.lines().count(), 1, "{logged}");
}

#[derive(Clone, Default)]
struct Log(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// An endpoint that shuts its own environment down and awaits the shutdown.
struct ShutsDownOwnEnv;

impl ThreadSafeRpcEndpoint for ShutsDownOwnEnv {
    type Message = HelloMessage;
    async fn receive(
        &mut self,
        message: HelloMessage,
        cx: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        let (HelloMessage::SayHi(_, context) | HelloMessage::SayBye(_, context)) = message;
        let report = cx.env().shutdown().await;
        cx.env().await_termination().await;
        context.reply(Greeting { text: format!("complete: {}", report.is_complete) })
    }
}

#[tokio::test]
async fn endpoint_that_awaits_its_own_shutdown_does_not_hang() {
    let (env, other) = (client().await, client().await);
    let endpoint = env.setup_endpoint("shuts-down-own-env", ShutsDownOwnEnv).unwrap();
    assert_eq!(soon(endpoint.ask(hi("neo"))).await.unwrap().text, "complete: false");
    let report = soon(env.shutdown()).await;
    assert!(report.is_clean() && report.endpoints[0].stopped, "{report:?}");

    // An endpoint can await the shutdown of another environment.
    struct ShutsDownOther(RpcEnv);
    impl ThreadSafeRpcEndpoint for ShutsDownOther {
        type Message = HelloMessage;
        async fn receive(
            &mut self,
            message: HelloMessage,
            _: &EndpointContext<HelloMessage>,
        ) -> Result<(), RpcError> {
            let (HelloMessage::SayHi(_, context) | HelloMessage::SayBye(_, context)) = message;
            context.reply(Greeting {
                text: format!("complete: {}", self.0.shutdown().await.is_complete),
            })
        }
    }
    let env = client().await;
    let endpoint = env.setup_endpoint("shuts-down-other", ShutsDownOther(other)).unwrap();
    assert_eq!(soon(endpoint.ask(hi("neo"))).await.unwrap().text, "complete: true");
}

#[test]
fn ask_after_runtime_is_dropped_fails() {
    let build = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (server_runtime, client_runtime) = (build(), build());
    let server = server_runtime.block_on(server());
    server.setup_endpoint("hello", Hello).unwrap();
    let peer = std::thread::spawn({
        let server = server.clone();
        move || server_runtime.block_on(server.await_termination())
    });
    let hello = client_runtime.block_on(async {
        let client = client().await;
        soon(client.setup_endpoint_ref::<HelloMessage>(address(&server), "hello")).await.unwrap()
    });
    drop(client_runtime);
    let (tx, failed) = std::sync::mpsc::channel();
    // The ask must not block the thread either.
    std::thread::spawn(move || {
        tx.send(build().block_on(hello.ask(hi("neo"))).map_err(|e| e.kind()))
    });
    let failed = failed.recv_timeout(std::time::Duration::from_secs(10)).expect("the ask hangs");
    assert_eq!(failed.unwrap_err(), ErrorKind::Stopped);
    drop(server.shutdown());
    peer.join().unwrap();
}
