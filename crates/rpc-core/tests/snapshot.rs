//! Snapshots and their export as metrics, and limits that options set per endpoint.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{Greeting, Hello, HelloMessage, address, client, hi, server, soon};
use rpc_core::{
    EndpointContext, EndpointOptions, EndpointSnapshot, ErrorKind, OverflowPolicy, RpcCallContext,
    RpcEnv, RpcError, ThreadSafeRpcEndpoint,
};
use tokio::sync::mpsc;

/// An endpoint that waits for an outcome from the test for each message: a delay or an error.
struct Slow(mpsc::UnboundedReceiver<Result<Duration, RpcError>>);

impl ThreadSafeRpcEndpoint for Slow {
    type Message = HelloMessage;
    async fn receive(
        &mut self,
        message: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        let (HelloMessage::SayHi(_, context) | HelloMessage::SayBye(_, context)) = message;
        let time =
            self.0.recv().await.ok_or_else(|| RpcError::application("the test has ended"))??;
        tokio::time::sleep(time).await;
        context.reply(Greeting::default())
    }
}

fn endpoint_snapshot(env: &RpcEnv, name: &str) -> EndpointSnapshot {
    env.snapshot().endpoints.into_iter().find(|endpoint| endpoint.name == name).unwrap()
}

async fn wait_until(
    env: &RpcEnv,
    name: &str,
    holds: impl Fn(&EndpointSnapshot) -> bool,
) -> EndpointSnapshot {
    soon(async {
        loop {
            let snapshot = endpoint_snapshot(env, name);
            if holds(&snapshot) {
                return snapshot;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

#[tokio::test]
async fn snapshot_reports_state_of_endpoints() {
    let (server, client) = (server().await, client().await);
    let (release, released) = mpsc::unbounded_channel();
    let options = EndpointOptions::new().max_messages(4);
    let local = server.setup_endpoint_with("slow", Slow(released), options).unwrap();
    let remote =
        soon(client.setup_endpoint_ref::<HelloMessage>(address(&server), "slow")).await.unwrap();
    let asks: Vec<_> = (0..3).map(|_| tokio::spawn(local.ask(hi("x")))).collect();
    let last = remote.ask(hi("y"));
    let waiting =
        wait_until(&server, "slow", |slow| slow.held == 4 && slow.lag > Duration::ZERO).await;
    assert_eq!((waiting.handled, waiting.rejected), (0, 0));
    assert!(waiting.held_bytes > 0);
    assert_eq!((server.snapshot().pending_asks, client.snapshot().pending_asks), (3, 1));
    assert!(server.snapshot().inbox_bytes > 0);
    assert_eq!(local.send(hi("z")).unwrap_err().error().kind(), ErrorKind::Limit);

    release.send(Ok(Duration::from_millis(30))).unwrap();
    release.send(Err(RpcError::application("no"))).unwrap();
    let after = wait_until(&server, "slow", |slow| slow.handled == 2).await;
    assert_eq!((after.failed, after.rejected, after.expired, after.held), (1, 1, 0, 2));
    assert!(after.processing.max() >= Duration::from_millis(30), "{:?}", after.processing);
    drop(last);
    release.send(Ok(Duration::ZERO)).unwrap();
    let idle = wait_until(&server, "slow", |slow| slow.held == 0).await;
    assert_eq!((idle.handled, idle.expired, idle.held_bytes), (3, 1, 0));
    for ask in asks {
        let _ = soon(ask).await.unwrap();
    }
    wait_until(&server, "slow", |slow| slow.lag == Duration::ZERO).await;
    let (server, client) = (server.snapshot(), client.snapshot());
    assert_eq!((server.pending_asks, client.pending_asks, server.inbox_bytes), (0, 0, 0));
    assert_eq!((server.server.connections, client.client.connections), (1, 1));
    let [outbox] = &client.peers[..] else { panic!("{:?}", client.peers) };
    assert_eq!(
        (&outbox.address, outbox.connected, outbox.queued),
        (&server.address.unwrap(), true, 0)
    );
}

/// A connection does not keep a route for each of many short-lived endpoints.
#[tokio::test]
async fn route_count_is_bounded_when_endpoints_come_and_go() {
    let (server, client) = (server().await, client().await);
    let lookup = async |name: String| {
        soon(client.setup_endpoint_ref::<HelloMessage>(address(&server), &name)).await.unwrap()
    };
    for n in 0..300 {
        // Each name is registered twice in turn, and both endpoints reply.
        let name = format!("task-{n}");
        for _ in 0..2 {
            let task = server.setup_endpoint(&name, Hello).unwrap();
            let remote = lookup(name.clone()).await;
            assert_eq!(soon(remote.ask(hi("neo"))).await.unwrap().text, "hi, neo");
            server.stop(&task);
        }
    }
    let keeps = server.setup_endpoint("keeps", Hello).unwrap();
    for _ in 0..300 {
        // This endpoint keeps running while refs to it are created and dropped.
        let remote = lookup("keeps".to_owned()).await;
        for _ in 0..3 {
            assert_eq!(soon(remote.ask(hi("neo"))).await.unwrap().text, "hi, neo");
        }
    }
    let [outbox] = &client.snapshot().peers[..] else { panic!("{:?}", client.snapshot()) };
    assert!(outbox.endpoints <= 65, "{outbox:?}");
    drop(keeps);
}

/// An endpoint that sends each context to the test, and waits for a signal before the next one.
struct KeepAndWait(mpsc::UnboundedReceiver<()>, mpsc::UnboundedSender<RpcCallContext<Greeting>>);

impl ThreadSafeRpcEndpoint for KeepAndWait {
    type Message = HelloMessage;
    async fn receive(
        &mut self,
        message: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        let (HelloMessage::SayHi(_, context) | HelloMessage::SayBye(_, context)) = message;
        self.1.send(context).map_err(RpcError::application)?;
        self.0.recv().await;
        Ok(())
    }
}

#[tokio::test]
async fn drop_oldest_inbox_discards_oldest_queued_message() {
    let env = client().await;
    let (go, gate) = mpsc::unbounded_channel();
    let (tx, mut kept) = mpsc::unbounded_channel();
    let options = EndpointOptions::new().max_messages(3).overflow(OverflowPolicy::DropOldest);
    let endpoint = env.setup_endpoint_with("keep", KeepAndWait(gate, tx), options).unwrap();
    let first = tokio::spawn(endpoint.ask(hi("first")));
    let context = soon(kept.recv()).await.unwrap();
    // The first message is active; the second is the oldest in the queue when the fourth arrives.
    let second = endpoint.ask(hi("second"));
    let third = endpoint.ask(hi("third"));
    let fourth = endpoint.ask(hi("fourth"));
    let error = soon(second).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Limit, true));
    assert_eq!(endpoint_snapshot(&env, "keep").dropped, 1);
    context.reply(Greeting { text: "1".to_owned() }).unwrap();
    go.send(()).unwrap();
    for text in ["3", "4"] {
        soon(kept.recv()).await.unwrap().reply(Greeting { text: text.to_owned() }).unwrap();
        go.send(()).unwrap();
    }
    assert_eq!(soon(first).await.unwrap().unwrap().text, "1");
    assert_eq!(soon(third).await.unwrap().text, "3");
    assert_eq!(soon(fourth).await.unwrap().text, "4");
}

#[tokio::test]
async fn pending_asks_are_limited() {
    let conf = common::setting("spark.rpc.ask.maxPending", "2");
    let env = RpcEnv::builder("few").client_mode().conf(conf).start().await.unwrap();
    let (release, released) = mpsc::unbounded_channel();
    let slow = env.setup_endpoint("slow", Slow(released)).unwrap();
    let (one, _two) = (slow.ask(hi("1")), slow.ask(hi("2")));
    let error = soon(slow.ask(hi("3"))).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Limit, true));
    assert!(error.to_string().contains("spark.rpc.ask.maxPending"), "{error}");
    release.send(Ok(Duration::ZERO)).unwrap();
    soon(one).await.unwrap();
    release.send(Ok(Duration::ZERO)).unwrap();
    release.send(Ok(Duration::ZERO)).unwrap();
    soon(slow.ask(hi("4"))).await.unwrap();
}

/// The recorder keeps the value of each exported metric by name and labels.
#[cfg(feature = "metrics")]
#[tokio::test]
async fn snapshot_can_be_exported_as_metrics() {
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    use metrics::{
        Counter, CounterFn, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, Recorder,
        SharedString, Unit,
    };

    #[derive(Default)]
    struct Values(Arc<Mutex<BTreeMap<String, f64>>>);
    struct Value(String, Arc<Mutex<BTreeMap<String, f64>>>);
    impl CounterFn for Value {
        fn increment(&self, _: u64) {
            unreachable!("counters are exported as absolute values");
        }
        fn absolute(&self, value: u64) {
            self.1.lock().unwrap().insert(self.0.clone(), value as f64);
        }
    }
    impl GaugeFn for Value {
        fn increment(&self, _: f64) {
            unreachable!("gauges are exported as absolute values");
        }
        fn decrement(&self, _: f64) {
            unreachable!("gauges are exported as absolute values");
        }
        fn set(&self, value: f64) {
            self.1.lock().unwrap().insert(self.0.clone(), value);
        }
    }
    fn name(key: &Key) -> String {
        let labels: Vec<_> =
            key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        format!("{} {}", key.name(), labels.join(","))
    }
    impl Recorder for Values {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
            Counter::from_arc(Arc::new(Value(name(key), Arc::clone(&self.0))))
        }
        fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::from_arc(Arc::new(Value(name(key), Arc::clone(&self.0))))
        }
        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::noop()
        }
    }

    let env = server().await;
    let hello = env.setup_endpoint("hello", common::Hello).unwrap();
    soon(hello.ask(hi("neo"))).await.unwrap();
    wait_until(&env, "hello", |hello| hello.handled == 1).await;
    let recorder = Values::default();
    metrics::with_local_recorder(&recorder, || env.snapshot().export());
    let values = recorder.0.lock().unwrap();
    assert_eq!(values["rpc_endpoint_handled_total env=server,endpoint=hello"], 1.0);
    assert_eq!(values["rpc_pending_asks env=server"], 0.0);
    assert_eq!(values["rpc_connections env=server,side=server"], 0.0);
}
