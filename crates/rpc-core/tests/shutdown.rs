//! How an environment ends.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{Greeting, Hello, HelloMessage, address, client, hi, next, server, setting, soon};
use rpc_core::{
    EndpointContext, ErrorKind, MemoryNetwork, RpcEndpointRef, RpcEnv, RpcError,
    ThreadSafeRpcEndpoint,
};
use tokio::sync::{Semaphore, mpsc};

/// Handles a message per permit.
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
    let down = server.shutdown();
    assert_eq!(soon(slow.ask(hi("late"))).await.unwrap_err().kind(), ErrorKind::Stopped);
    assert_eq!(soon(remote.ask(hi("late"))).await.unwrap_err().kind(), ErrorKind::Stopped);
    permits.add_permits(3);
    for ask in accepted {
        soon(ask).await.unwrap();
    }
    let report = soon(down).await;
    assert!(report.is_clean(), "{report:?}");
    let [idle, slow] = &report.endpoints[..] else { panic!("{report:?}") };
    assert_eq!(
        (&*idle.name, idle.finished, idle.refused, idle.abandoned, idle.stopped),
        ("idle", 0, 0, 0, true)
    );
    assert_eq!(
        (&*slow.name, slow.finished, slow.refused, slow.abandoned, slow.stopped),
        ("slow", 3, 2, 0, true)
    );
    // Who asks later gets the same.
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

/// Says goodbye when it stops.
struct Polite(RpcEndpointRef<HelloMessage>);

impl ThreadSafeRpcEndpoint for Polite {
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

struct Tell(mpsc::UnboundedSender<String>);

impl ThreadSafeRpcEndpoint for Tell {
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

/// Also where there is no connection yet.
#[tokio::test]
async fn message_sent_in_on_stop_is_delivered() {
    let (first, client) = (server().await, client().await);
    let (told, _) = mpsc::unbounded_channel();
    first.setup_endpoint("tell", Tell(told)).unwrap();
    let tell =
        soon(client.setup_endpoint_ref::<HelloMessage>(address(&first), "tell")).await.unwrap();
    client.setup_endpoint("polite", Polite(tell)).unwrap();
    let at = address(&first).host_port();
    soon(first.shutdown()).await;
    let second = RpcEnv::builder("second").bind(at).start().await.unwrap();
    let (told, mut heard) = mpsc::unbounded_channel();
    second.setup_endpoint("tell", Tell(told)).unwrap();
    soon(async {
        while client.snapshot().client.connections > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let report = soon(client.shutdown()).await;
    assert_eq!(next(&mut heard).await, "goodbye");
    assert!(report.is_clean(), "{report:?}");
}

/// A shutdown ends only when what was sent has left: the process may end right behind it.
#[test]
fn shutdown_completes_after_on_stop_messages_are_written() {
    /// More than the buffers of a socket hold.
    const LARGE: usize = 32 << 20;
    struct Parting(RpcEndpointRef<HelloMessage>);
    impl ThreadSafeRpcEndpoint for Parting {
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
    let (theirs, ours) = (build(), build());
    let (told, mut heard) = mpsc::unbounded_channel();
    let server = theirs.block_on(server());
    server.setup_endpoint("tell", Tell(told)).unwrap();
    let report = ours.block_on(async {
        let client = client().await;
        let tell = soon(client.setup_endpoint_ref::<HelloMessage>(address(&server), "tell"))
            .await
            .unwrap();
        client.setup_endpoint("parting", Parting(tell)).unwrap();
        soon(client.shutdown()).await
    });
    drop(ours);
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(theirs.block_on(next(&mut heard)).len(), LARGE);
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
    // The first uses up the credit there is; the others wait for more.
    let asks = ["first", "second"].map(|name| stuck.ask(hi(name)));
    stuck.send(hi("third")).unwrap();
    // Nobody would miss this one.
    drop(stuck.ask(hi("given up")));
    let report = client.shutdown().await;
    assert_eq!((report.unsent, report.is_complete, report.is_clean()), (2, true, false));
    let [sent, waiting] = asks;
    assert_eq!(sent.await.unwrap_err().kind(), ErrorKind::Network);
    let error = waiting.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Stopped);
    assert!(error.to_string().contains("dropped because Outbox is stopped"), "{error}");
}

/// Where all goes well there is nothing that anybody should look at.
#[tokio::test]
async fn rpc_env_35_orderly_shutdown_logs_no_warning() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(move || writer.clone())
        .finish();
    // All tasks are on this thread.
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
            // Given up, with the answer on its way.
            drop(hello.ask(hi("neo")));
        }
        let envs = if client_first { [client, other, server] } else { [server, other, client] };
        for env in envs {
            assert!(soon(env.shutdown()).await.is_clean());
        }
    }
    tracing::warn!("a last one, so that this test can fail");
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

/// Shuts its own environment down and waits for that.
struct Suicidal;

impl ThreadSafeRpcEndpoint for Suicidal {
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
    let endpoint = env.setup_endpoint("suicidal", Suicidal).unwrap();
    assert_eq!(soon(endpoint.ask(hi("neo"))).await.unwrap().text, "complete: false");
    let report = soon(env.shutdown()).await;
    assert!(report.is_clean() && report.endpoints[0].stopped, "{report:?}");

    // Another's end can be awaited.
    struct Killer(RpcEnv);
    impl ThreadSafeRpcEndpoint for Killer {
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
    let killer = env.setup_endpoint("killer", Killer(other)).unwrap();
    assert_eq!(soon(killer.ask(hi("neo"))).await.unwrap().text, "complete: true");
}

#[test]
fn ask_after_runtime_is_dropped_fails() {
    let build = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (theirs, ours) = (build(), build());
    let server = theirs.block_on(server());
    server.setup_endpoint("hello", Hello).unwrap();
    let peer = std::thread::spawn({
        let server = server.clone();
        move || theirs.block_on(server.await_termination())
    });
    let hello = ours.block_on(async {
        let client = client().await;
        soon(client.setup_endpoint_ref::<HelloMessage>(address(&server), "hello")).await.unwrap()
    });
    drop(ours);
    let (told, failed) = std::sync::mpsc::channel();
    // It may not hang: not even the thread.
    std::thread::spawn(move || {
        told.send(build().block_on(hello.ask(hi("neo"))).map_err(|e| e.kind()))
    });
    let failed = failed.recv_timeout(std::time::Duration::from_secs(10)).expect("the ask hangs");
    assert_eq!(failed.unwrap_err(), ErrorKind::Stopped);
    drop(server.shutdown());
    peer.join().unwrap();
}
