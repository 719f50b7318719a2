//! How an environment ends.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{Greeting, Hello, HelloMessage, address, client, hi, next, server, setting, soon};
use rpc_core::{EndpointContext, ErrorKind, RpcEndpointRef, RpcEnv, RpcError, ThreadSafeRpcEndpoint};
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
async fn a_shutdown_finishes_what_was_accepted_and_refuses_the_rest() {
    let (server, client) = (server().await, client().await);
    let permits = std::sync::Arc::new(Semaphore::new(0));
    let slow = server.setup_endpoint("slow", Gated(std::sync::Arc::clone(&permits))).unwrap();
    server.setup_endpoint("idle", Hello).unwrap();
    let remote = soon(client.setup_endpoint_ref::<HelloMessage>(address(&server), "slow")).await.unwrap();
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
async fn what_is_not_done_in_time_is_abandoned_and_told() {
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
    async fn receive(&mut self, _: HelloMessage, _: &EndpointContext<HelloMessage>) -> Result<(), RpcError> {
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
async fn what_is_sent_in_on_stop_still_goes_out() {
    let (first, client) = (server().await, client().await);
    let (told, _) = mpsc::unbounded_channel();
    first.setup_endpoint("tell", Tell(told)).unwrap();
    let tell = soon(client.setup_endpoint_ref::<HelloMessage>(address(&first), "tell")).await.unwrap();
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
fn what_is_sent_in_on_stop_does_not_need_the_runtime_afterwards() {
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
    let build =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (theirs, ours) = (build(), build());
    let (told, mut heard) = mpsc::unbounded_channel();
    let server = theirs.block_on(server());
    server.setup_endpoint("tell", Tell(told)).unwrap();
    let report = ours.block_on(async {
        let client = client().await;
        let tell = soon(client.setup_endpoint_ref::<HelloMessage>(address(&server), "tell")).await.unwrap();
        client.setup_endpoint("parting", Parting(tell)).unwrap();
        soon(client.shutdown()).await
    });
    drop(ours);
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(theirs.block_on(next(&mut heard)).len(), LARGE);
}

#[tokio::test]
async fn messages_that_cannot_be_sent_any_more_are_counted() {
    let gone = server().await;
    let client = client().await;
    gone.setup_endpoint("hello", Hello).unwrap();
    let hello = soon(client.setup_endpoint_ref::<HelloMessage>(address(&gone), "hello")).await.unwrap();
    soon(gone.shutdown()).await;
    soon(async {
        while client.snapshot().client.connections > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // Nobody listens there any more: it waits for a connection that never comes, or is lost with the attempt.
    let ask = hello.ask(hi("neo"));
    soon(client.shutdown()).await;
    assert!(matches!(soon(ask).await.unwrap_err().kind(), ErrorKind::Network | ErrorKind::Stopped));
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
        context.reply(Greeting { text: format!("complete: {}", report.complete) })
    }
}

#[tokio::test]
async fn an_endpoint_that_awaits_its_own_end_does_not_hang() {
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
            context.reply(Greeting { text: format!("complete: {}", self.0.shutdown().await.complete) })
        }
    }
    let env = client().await;
    let killer = env.setup_endpoint("killer", Killer(other)).unwrap();
    assert_eq!(soon(killer.ask(hi("neo"))).await.unwrap().text, "complete: true");
}

#[test]
fn what_is_sent_after_the_end_of_the_runtime_fails() {
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
    std::thread::spawn(move || told.send(build().block_on(hello.ask(hi("neo"))).map_err(|e| e.kind())));
    let failed = failed.recv_timeout(std::time::Duration::from_secs(10)).expect("the ask hangs");
    assert_eq!(failed.unwrap_err(), ErrorKind::Stopped);
    drop(server.shutdown());
    peer.join().unwrap();
}
