//! Endpoints and refs within one environment, without a network: rows of the areas
//! `rpc_env` and `inb`, and row `nre_04`.

mod common;

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::{Greeting, Hello, HelloMessage, bye, client, hi, next, setting, soon};
use rpc_core::{
    EndpointContext, ErrorKind, RpcCallContext, RpcEndpoint, RpcEnv, RpcError, RpcMessage,
    RpcRequest, RpcTimeout, SendError, ThreadSafeRpcEndpoint,
};
use tokio::sync::{Notify, Semaphore, mpsc};

/// Reports each call to the test, and fails in the function named by `fail_in`.
struct Probe {
    events: mpsc::UnboundedSender<String>,
    fail_in: &'static str,
}

impl Probe {
    fn new(fail_in: &'static str) -> (Self, mpsc::UnboundedReceiver<String>) {
        let (events, received) = mpsc::unbounded_channel();
        (Self { events, fail_in }, received)
    }

    fn report(&self, call: &str, cx: &EndpointContext<HelloMessage>) -> Result<(), RpcError> {
        let is_stopped = |error: SendError<_>| error.error().kind() == ErrorKind::Stopped;
        let stopped =
            call == "stop" && cx.self_ref().send(common::hi("self")).is_err_and(is_stopped);
        let self_state = if stopped { " without self" } else { "" };
        let _ = self.events.send(format!("{call}{self_state}"));
        if self.fail_in == call {
            Err(RpcError::application(format!("Oops in {call}")))
        } else {
            Ok(())
        }
    }
}

impl ThreadSafeRpcEndpoint for Probe {
    type Message = HelloMessage;

    async fn receive(
        &mut self,
        message: HelloMessage,
        cx: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        match message {
            HelloMessage::SayHi(hi, context) => {
                self.report("receive", cx)?;
                if hi.msg == "panic" {
                    panic!("no hi today");
                }
                context.reply(Greeting { text: hi.msg })
            }
            HelloMessage::SayBye(_, context) => {
                drop(context);
                self.report("dropped", cx)
            }
        }
    }

    async fn on_start(&mut self, cx: &EndpointContext<HelloMessage>) -> Result<(), RpcError> {
        self.report("start", cx)
    }

    async fn on_stop(&mut self, cx: &EndpointContext<HelloMessage>) -> Result<(), RpcError> {
        self.report("stop", cx)
    }

    async fn on_error(
        &mut self,
        error: RpcError,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        let _ = self.events.send(format!("error: {error}"));
        Ok(())
    }
}

/// Messages without an encoding: they can be passed only within the process.
enum Local {
    Same(Same, RpcCallContext<Arc<AtomicBool>>),
    Work(Work, RpcCallContext<usize>),
    OneWay(OneWay),
}
struct Same(Arc<AtomicBool>);
struct Work(usize);
struct OneWay(usize);

impl RpcMessage for Local {}
impl RpcRequest<Local> for Same {
    type Reply = Arc<AtomicBool>;
    fn into_message(self, context: RpcCallContext<Arc<AtomicBool>>) -> Local {
        Local::Same(self, context)
    }
}
impl RpcRequest<Local> for Work {
    type Reply = usize;
    fn into_message(self, context: RpcCallContext<usize>) -> Local {
        Local::Work(self, context)
    }
}
impl RpcRequest<Local> for OneWay {
    type Reply = ();
    const ONE_WAY: bool = true;
    fn into_message(self, _: RpcCallContext<()>) -> Local {
        Local::OneWay(self)
    }
}

/// An endpoint that handles each `Local` message with a closure.
struct Serve<F>(F);

impl<F: FnMut(Local) -> Result<(), RpcError> + Send + 'static> ThreadSafeRpcEndpoint for Serve<F> {
    type Message = Local;
    async fn receive(
        &mut self,
        message: Local,
        _: &EndpointContext<Local>,
    ) -> Result<(), RpcError> {
        (self.0)(message)
    }
}

#[tokio::test]
async fn rpc_env_01_send_delivers_local_message() {
    let env = client().await;
    let (tx, mut received) = mpsc::unbounded_channel();
    let endpoint = env
        .setup_endpoint(
            "local",
            Serve(move |message| {
                if let Local::OneWay(OneWay(n)) = message {
                    let _ = tx.send(n);
                }
                Ok(())
            }),
        )
        .unwrap();
    endpoint.send(OneWay(7)).unwrap();
    assert_eq!(next(&mut received).await, 7);
}

#[tokio::test]
async fn rpc_env_04_ask_returns_local_reply() {
    let env = client().await;
    let hello = env.setup_endpoint("hello", Hello).unwrap();
    assert_eq!(soon(hello.ask(hi("neo"))).await.unwrap().text, "hi, neo");
    assert_eq!(soon(hello.ask(bye("neo"))).await.unwrap().text, "bye, neo");
}

#[tokio::test]
async fn local_message_is_passed_without_encoding() {
    let env = client().await;
    let serve = Serve(|message| match message {
        Local::Same(Same(flag), context) => context.reply(flag),
        _ => Ok(()),
    });
    let endpoint = env.setup_endpoint("same", serve).unwrap();
    let flag = Arc::new(AtomicBool::new(false));
    let back = soon(endpoint.ask(Same(Arc::clone(&flag)))).await.unwrap();
    assert!(Arc::ptr_eq(&flag, &back));
}

#[tokio::test]
async fn rpc_env_06_local_ask_times_out_and_names_setting() {
    let env = RpcEnv::builder("client")
        .client_mode()
        .conf(setting("spark.rpc.askTimeout", "1ms"))
        .start()
        .await
        .unwrap();
    let mut kept = Vec::new();
    let serve = Serve(move |message| {
        kept.push(message);
        Ok(())
    });
    let endpoint = env.setup_endpoint("slow", serve).unwrap();

    let error = soon(endpoint.ask(Work(1))).await.unwrap_err();
    assert!(error.is_timeout());
    assert!(!error.is_retryable(), "it may be running");
    let text = error.to_string();
    assert_eq!(text.matches("spark.rpc.askTimeout").count(), 1, "{text}");
    assert!(text.contains("slow") && text.contains("1ms"), "{text}");

    let timeout = RpcTimeout::new(Duration::from_millis(2), "my.own.setting");
    let error = soon(endpoint.ask_with_timeout(Work(1), timeout)).await.unwrap_err();
    assert!(
        error.to_string().ends_with("in 2ms. This timeout is controlled by my.own.setting"),
        "{error}"
    );
}

#[tokio::test]
async fn rpc_env_08_on_start_runs_first_and_on_stop_last() {
    let env = client().await;
    let (probe, mut events) = Probe::new("");
    let endpoint = env.setup_endpoint("probe", probe).unwrap();
    assert_eq!(next(&mut events).await, "start");
    env.stop(&endpoint);
    assert!(next(&mut events).await.starts_with("stop"));
    assert_eq!(soon(events.recv()).await, None, "the endpoint is dropped after on_stop");
}

#[tokio::test]
async fn rpc_env_14_self_ref_is_none_in_on_stop() {
    let env = client().await;
    let (probe, mut events) = Probe::new("");
    env.setup_endpoint("probe", probe).unwrap();
    soon(env.shutdown()).await;
    for event in ["start", "stop without self"] {
        assert_eq!(next(&mut events).await, event);
    }
}

#[tokio::test]
async fn rpc_env_09_on_error_is_called_when_on_start_fails() {
    let env = client().await;
    let (probe, mut events) = Probe::new("start");
    let endpoint = env.setup_endpoint("probe", probe).unwrap();
    assert_eq!(next(&mut events).await, "start");
    assert_eq!(next(&mut events).await, "error: Oops in start");
    assert_eq!(soon(endpoint.ask(hi("still here"))).await.unwrap().text, "still here");
}

#[tokio::test]
async fn rpc_env_10_on_error_is_called_when_on_stop_fails() {
    let env = client().await;
    let (probe, mut events) = Probe::new("stop");
    env.setup_endpoint("probe", probe).unwrap();
    soon(env.shutdown()).await;
    let mut all = Vec::new();
    while let Some(event) = soon(events.recv()).await {
        all.push(event);
    }
    assert_eq!(all, ["start", "stop without self", "error: Oops in stop"]);
}

#[tokio::test]
async fn rpc_env_11_on_error_is_called_when_receive_fails() {
    let env = client().await;
    let (probe, mut events) = Probe::new("receive");
    let endpoint = env.setup_endpoint("probe", probe).unwrap();
    endpoint.send(hi("x")).unwrap();
    assert_eq!(next(&mut events).await, "start");
    assert_eq!(next(&mut events).await, "receive");
    assert_eq!(next(&mut events).await, "error: Oops in receive");
}

/// Sends itself a message in the function `sends_in`, and reports received messages to the test.
struct SendsToItself {
    sends_in: &'static str,
    received: mpsc::UnboundedSender<usize>,
}

impl ThreadSafeRpcEndpoint for SendsToItself {
    type Message = Local;
    async fn on_start(&mut self, cx: &EndpointContext<Local>) -> Result<(), RpcError> {
        if self.sends_in == "on_start" {
            cx.self_ref().send(OneWay(1))?;
        }
        Ok(())
    }
    async fn receive(
        &mut self,
        message: Local,
        cx: &EndpointContext<Local>,
    ) -> Result<(), RpcError> {
        let Local::OneWay(OneWay(n)) = message else { return Ok(()) };
        if self.sends_in == "receive" && n == 0 {
            cx.self_ref().send(OneWay(2))?;
        }
        self.received.send(n).map_err(RpcError::application)
    }
}

#[tokio::test]
async fn rpc_env_12_self_ref_is_usable_in_on_start() {
    let env = client().await;
    let (tx, mut received) = mpsc::unbounded_channel();
    env.setup_endpoint("itself", SendsToItself { sends_in: "on_start", received: tx }).unwrap();
    assert_eq!(next(&mut received).await, 1);
}

#[tokio::test]
async fn rpc_env_13_self_ref_is_usable_in_receive() {
    let env = client().await;
    let (tx, mut received) = mpsc::unbounded_channel();
    let itself =
        env.setup_endpoint("itself", SendsToItself { sends_in: "receive", received: tx }).unwrap();
    itself.send(OneWay(0)).unwrap();
    assert_eq!(next(&mut received).await, 0);
    assert_eq!(next(&mut received).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rpc_env_15_thread_safe_endpoint_receives_one_at_a_time() {
    let env = client().await;
    for round in 0..100 {
        let mut counter = 0;
        let serve = Serve(move |message| match message {
            Local::OneWay(_) => {
                counter += 1;
                Ok(())
            }
            Local::Work(_, context) => context.reply(counter),
            Local::Same(..) => Ok(()),
        });
        let endpoint = env.setup_endpoint(&format!("counter-{round}"), serve).unwrap();
        let senders: Vec<_> = (0..10)
            .map(|_| {
                let endpoint = endpoint.clone();
                std::thread::spawn(move || (0..100).for_each(|i| endpoint.send(OneWay(i)).unwrap()))
            })
            .collect();
        for sender in senders {
            sender.join().unwrap();
        }
        assert_eq!(soon(endpoint.ask(Work(0))).await.unwrap(), 1000);
        env.stop(&endpoint);
    }
}

#[tokio::test]
async fn rpc_env_16_second_stop_has_no_effect() {
    let env = client().await;
    let (probe, mut events) = Probe::new("");
    let endpoint = env.setup_endpoint("probe", probe).unwrap();
    env.stop(&endpoint);
    env.stop(&endpoint);
    assert_eq!(next(&mut events).await, "start");
    assert_eq!(next(&mut events).await, "stop without self");
    assert_eq!(soon(events.recv()).await, None);
}

#[tokio::test]
async fn rpc_env_17_reply_from_another_task_reaches_caller() {
    let env = client().await;
    // The reply comes later, from another task.
    let serve = Serve(|message| {
        if let Local::Work(Work(n), context) = message {
            tokio::spawn(async move {
                tokio::task::yield_now().await;
                context.reply(n + 1)
            });
        }
        Ok(())
    });
    let endpoint = env.setup_endpoint("later", serve).unwrap();
    assert_eq!(soon(endpoint.ask(Work(1))).await.unwrap(), 2);
}

#[derive(Debug)]
struct Oops(u32);
impl fmt::Display for Oops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Oops {}", self.0)
    }
}
impl Error for Oops {}

#[tokio::test]
async fn rpc_env_19_failure_reaches_local_caller_as_same_object() {
    let env = client().await;
    let serve = Serve(|message| {
        if let Local::Work(Work(n), context) = message {
            if n == 0 {
                return Err(RpcError::application(Oops(0)));
            }
            context.send_failure(RpcError::application(Oops(1)).retryable());
        }
        Ok(())
    });
    let endpoint = env.setup_endpoint("oops", serve).unwrap();
    let error = soon(endpoint.ask(Work(1))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Application);
    assert!(error.is_retryable() && !error.is_remote());
    assert_eq!(error.get_ref().and_then(|e| e.downcast_ref::<Oops>()).map(|oops| oops.0), Some(1));
    // An error that `receive` returns also reaches the caller as the same object.
    let error = soon(endpoint.ask(Work(0))).await.unwrap_err();
    assert_eq!(error.get_ref().and_then(|e| e.downcast_ref::<Oops>()).map(|oops| oops.0), Some(0));
}

#[tokio::test]
async fn nre_04_panic_fails_only_its_message() {
    let env = client().await;
    let (probe, mut events) = Probe::new("");
    let endpoint = env.setup_endpoint("probe", probe).unwrap();
    for _ in 0..2 {
        let error = soon(endpoint.ask(hi("panic"))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Panic);
        assert!(error.to_string().contains("no hi today"), "{error}");
    }
    assert_eq!(soon(endpoint.ask(hi("alive"))).await.unwrap().text, "alive");
    let expected = ["start", "receive", "error: the endpoint's handler panicked: no hi today"];
    for event in expected {
        assert_eq!(next(&mut events).await, event);
    }
}

#[tokio::test]
async fn dropped_context_fails_ask_at_once() {
    let env = client().await;
    let (probe, _events) = Probe::new("");
    let endpoint = env.setup_endpoint("probe", probe).unwrap();
    assert_eq!(soon(endpoint.ask(bye("x"))).await.unwrap_err().kind(), ErrorKind::NoReply);

    // A context that was kept and is dropped by a later `receive` fails its ask too.
    let mut kept = Vec::new();
    let endpoint = env
        .setup_endpoint(
            "keeps",
            Serve(move |message| {
                match message {
                    Local::Work(Work(0), context) => kept.push(context),
                    _ => {
                        kept.clear();
                        return Err(RpcError::application("only the second ask fails with this"));
                    }
                }
                Ok(())
            }),
        )
        .unwrap();
    let first = endpoint.ask(Work(0));
    let second = endpoint.ask(Work(1));
    assert_eq!(soon(first).await.unwrap_err().kind(), ErrorKind::NoReply);
    assert_eq!(soon(second).await.unwrap_err().to_string(), "only the second ask fails with this");
}

#[tokio::test]
async fn inb_01_queued_messages_are_handled_before_stop() {
    let env = client().await;
    let (probe, mut events) = Probe::new("");
    let endpoint = env.setup_endpoint("probe", probe).unwrap();
    // The message loop has not run yet, as this thread has not awaited anything since.
    endpoint.send(hi("x")).unwrap();
    env.stop(&endpoint);
    let rejected = endpoint.send(hi("late")).unwrap_err();
    assert_eq!(rejected.error().kind(), ErrorKind::Stopped);
    assert_eq!(rejected.into_message().msg, "late", "the error returns the message");
    for event in ["start", "receive", "stop without self"] {
        assert_eq!(next(&mut events).await, event);
    }
    assert_eq!(soon(events.recv()).await, None);
}

#[tokio::test]
async fn inb_02_ask_is_received_once() {
    let env = client().await;
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let serve = Serve(move |message| {
        counted.fetch_add(1, Ordering::Relaxed);
        match message {
            Local::Work(Work(n), context) => context.reply(n),
            _ => Ok(()),
        }
    });
    let endpoint = env.setup_endpoint("once", serve).unwrap();
    assert_eq!(soon(endpoint.ask(Work(3))).await.unwrap(), 3);
    soon(env.shutdown()).await;
    assert_eq!(count.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inb_03_concurrent_sends_during_stop_are_handled_or_rejected() {
    for round in 0..50 {
        let env = client().await;
        let received = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&received);
        let serve = Serve(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        let endpoint = env.setup_endpoint("busy", serve).unwrap();
        let rejected = Arc::new(AtomicUsize::new(0));
        let senders: Vec<_> = (0..10)
            .map(|_| {
                let (endpoint, rejected) = (endpoint.clone(), Arc::clone(&rejected));
                std::thread::spawn(move || {
                    for n in 0..100 {
                        if endpoint.send(OneWay(n)).is_err() {
                            rejected.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        if round % 2 == 0 {
            env.stop(&endpoint);
        }
        soon(env.shutdown()).await;
        for sender in senders {
            sender.join().unwrap();
        }
        assert_eq!(received.load(Ordering::Relaxed) + rejected.load(Ordering::Relaxed), 1000);
    }
}

/// Counts how many `receive` calls run at the same time; each one completes with a permit.
struct CountsConcurrent {
    inside: Arc<AtomicUsize>,
    gate: Arc<Semaphore>,
    fail_start: bool,
    arrived: Arc<Notify>,
}

impl RpcEndpoint for CountsConcurrent {
    type Message = Local;
    async fn on_start(&self, _: &EndpointContext<Local>) -> Result<(), RpcError> {
        if self.fail_start { Err(RpcError::application("no")) } else { Ok(()) }
    }
    async fn receive(&self, message: Local, _: &EndpointContext<Local>) -> Result<(), RpcError> {
        let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.arrived.notify_one();
        let permit = self.gate.acquire().await.map_err(RpcError::application)?;
        permit.forget();
        self.inside.fetch_sub(1, Ordering::SeqCst);
        match message {
            Local::Work(_, context) => context.reply(inside),
            _ => Ok(()),
        }
    }
    async fn on_stop(&self, _: &EndpointContext<Local>) -> Result<(), RpcError> {
        assert_eq!(self.inside.load(Ordering::SeqCst), 0, "on_stop runs alone");
        Ok(())
    }
    async fn on_error(&self, error: RpcError, _: &EndpointContext<Local>) -> Result<(), RpcError> {
        assert!(self.fail_start, "{error}");
        Ok(())
    }
}

#[tokio::test]
async fn concurrent_endpoint_starts_messages_while_others_await() {
    let env = client().await;
    let (inside, gate, arrived) =
        (Arc::default(), Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
    let counting = CountsConcurrent {
        inside: Arc::clone(&inside),
        gate: Arc::clone(&gate),
        fail_start: false,
        arrived: Arc::clone(&arrived),
    };
    let endpoint = env.setup_endpoint("counting", counting).unwrap();
    let asks: Vec<_> = (0..10).map(|n| endpoint.ask(Work(n))).collect();
    soon(async {
        while inside.load(Ordering::SeqCst) < 10 {
            arrived.notified().await;
        }
    })
    .await;
    // The shutdown starts while all ten wait; on_stop runs after they have completed.
    let shutdown = env.shutdown();
    gate.add_permits(10);
    for (n, ask) in asks.into_iter().enumerate() {
        assert_eq!(soon(ask).await.unwrap(), n + 1, "messages start in order");
    }
    soon(shutdown).await;
}

/// The first message waits for the second one.
///
/// Its reply is the number of messages whose handling had started by then.
#[tokio::test]
async fn woken_receive_continues_before_long_queue_is_started() {
    struct Rendezvous {
        started: AtomicUsize,
        met: Notify,
    }
    impl RpcEndpoint for Rendezvous {
        type Message = Local;
        async fn receive(
            &self,
            message: Local,
            _: &EndpointContext<Local>,
        ) -> Result<(), RpcError> {
            self.started.fetch_add(1, Ordering::Relaxed);
            match message {
                Local::Work(_, context) => {
                    self.met.notified().await;
                    context.reply(self.started.load(Ordering::Relaxed))
                }
                Local::OneWay(_) => {
                    self.met.notify_one();
                    Ok(())
                }
                Local::Same(..) => Ok(()),
            }
        }
    }
    let env = client().await;
    let rendezvous = Rendezvous { started: AtomicUsize::new(0), met: Notify::new() };
    let endpoint = env.setup_endpoint("rendezvous", rendezvous).unwrap();
    let first = endpoint.ask(Work(0));
    for n in 0..10_000 {
        endpoint.send(OneWay(n)).unwrap();
    }
    let started = soon(first).await.unwrap();
    assert!(started < 1000, "{started} messages were started before the first one continued");
}

#[tokio::test]
async fn concurrent_endpoint_is_serial_after_on_start_fails() {
    let env = client().await;
    let counting = CountsConcurrent {
        inside: Arc::default(),
        gate: Arc::new(Semaphore::new(10)),
        fail_start: true,
        arrived: Arc::new(Notify::new()),
    };
    let endpoint = env.setup_endpoint("counting", counting).unwrap();
    let asks: Vec<_> = (0..10).map(|n| endpoint.ask(Work(n))).collect();
    for ask in asks {
        assert_eq!(soon(ask).await.unwrap(), 1, "no other receive runs at the same time");
    }
}

#[tokio::test]
async fn endpoint_name_is_unique_until_stop() {
    let env = client().await;
    let first = env.setup_endpoint("hello", Hello).unwrap();
    let error = env.setup_endpoint("hello", Hello).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::EndpointExists);
    assert_eq!(error.to_string(), "There is already an RpcEndpoint called hello");
    env.stop(&first);
    let second = env.setup_endpoint("hello", Hello).unwrap();
    assert_eq!(soon(second.ask(hi("again"))).await.unwrap().text, "hi, again");
    assert_eq!(soon(first.ask(hi("old"))).await.unwrap_err().kind(), ErrorKind::Stopped);
}

#[tokio::test]
async fn sends_and_asks_over_one_ref_arrive_in_order() {
    let env = client().await;
    let mut seen = Vec::new();
    let serve = Serve(move |message| {
        match message {
            Local::OneWay(OneWay(n)) => seen.push(n),
            Local::Work(Work(n), context) => {
                seen.push(n);
                context.reply(usize::from(seen.is_sorted()) * seen.len())?;
            }
            Local::Same(..) => {}
        }
        Ok(())
    });
    let endpoint = env.setup_endpoint("order", serve).unwrap();
    let mut asks = Vec::new();
    for n in 0..1000 {
        if n % 10 == 9 {
            // The ask is queued when it is called, before its first poll.
            asks.push(endpoint.ask(Work(n)));
        } else {
            endpoint.send(OneWay(n)).unwrap();
        }
    }
    assert_eq!(soon(asks.pop().unwrap()).await.unwrap(), 1000);
}

#[tokio::test]
async fn shutdown_can_be_started_by_endpoint_and_awaited_repeatedly() {
    struct ShutsDown;
    impl ThreadSafeRpcEndpoint for ShutsDown {
        type Message = Local;
        async fn receive(&mut self, _: Local, cx: &EndpointContext<Local>) -> Result<(), RpcError> {
            drop(cx.env().shutdown());
            Ok(())
        }
    }
    let env = client().await;
    let endpoint = env.setup_endpoint("shuts-down", ShutsDown).unwrap();
    let waiting = tokio::spawn(env.await_termination());
    endpoint.send(OneWay(0)).unwrap();
    soon(waiting).await.unwrap();
    soon(env.shutdown()).await;
    soon(env.await_termination()).await;
    assert_eq!(env.setup_endpoint("late", Hello).unwrap_err().kind(), ErrorKind::Stopped);
    let error = soon(endpoint.ask(Work(1))).await.unwrap_err();
    assert!(error.to_string().contains("RpcEnv already stopped"), "{error}");
}

#[test]
fn asks_fail_when_runtime_is_dropped() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (env, endpoint, waiting, entered) = runtime.block_on(async {
        let env = client().await;
        let (tx, mut entered) = mpsc::unbounded_channel();
        struct Stuck(mpsc::UnboundedSender<()>);
        impl ThreadSafeRpcEndpoint for Stuck {
            type Message = Local;
            async fn receive(
                &mut self,
                _message: Local,
                _: &EndpointContext<Local>,
            ) -> Result<(), RpcError> {
                let _ = self.0.send(());
                std::future::pending().await
            }
        }
        let endpoint = env.setup_endpoint("stuck", Stuck(tx)).unwrap();
        let waiting = [endpoint.ask(Work(0)), endpoint.ask(Work(1))];
        next(&mut entered).await;
        (env, endpoint, waiting, entered)
    });
    drop(runtime);
    drop(entered);
    let other = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    other.block_on(async {
        let [running, queued] = waiting;
        assert_eq!(soon(running).await.unwrap_err().kind(), ErrorKind::NoReply);
        assert_eq!(soon(queued).await.unwrap_err().kind(), ErrorKind::Stopped);
        assert_eq!(soon(endpoint.ask(Work(2))).await.unwrap_err().kind(), ErrorKind::Stopped);
        soon(env.shutdown()).await;
    });
}

#[test]
fn asks_with_any_timeout_fail_when_runtime_is_dropped() {
    for limit in [Duration::from_secs(3), Duration::from_secs(600), Duration::MAX] {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let other = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (endpoint, mut polled, unpolled, contexts) = runtime.block_on(async {
            let env = client().await;
            let (tx, mut contexts) = mpsc::unbounded_channel();
            let serve = Serve(move |message| {
                let _ = tx.send(message);
                Ok(())
            });
            let endpoint = env.setup_endpoint("keeps", serve).unwrap();
            let asks = [0, 1].map(|n| endpoint.ask_with_timeout(Work(n), limit));
            let contexts = [next(&mut contexts).await, next(&mut contexts).await];
            let [polled, unpolled] = asks;
            (endpoint, polled, unpolled, contexts)
        });
        other.block_on(async { assert!(futures::poll!(&mut polled).is_pending()) });
        drop(runtime);
        other.block_on(async {
            for ask in [polled, unpolled, endpoint.ask_with_timeout(Work(2), limit)] {
                assert_eq!(soon(ask).await.unwrap_err().kind(), ErrorKind::Stopped);
            }
        });
        drop(contexts);
    }
}

#[test]
fn dropped_request_fails_when_runtime_drops_its_receive() {
    struct DropsAndHangs(mpsc::UnboundedSender<()>);
    impl ThreadSafeRpcEndpoint for DropsAndHangs {
        type Message = HelloMessage;
        async fn receive(
            &mut self,
            message: HelloMessage,
            _: &EndpointContext<HelloMessage>,
        ) -> Result<(), RpcError> {
            drop(message);
            let _ = self.0.send(());
            std::future::pending().await
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ask = runtime.block_on(async {
        let (tx, mut dropped) = mpsc::unbounded_channel();
        let endpoint = client().await.setup_endpoint("hangs", DropsAndHangs(tx)).unwrap();
        let ask = endpoint.ask(hi("neo"));
        next(&mut dropped).await;
        [ask]
    });
    drop(runtime);
    let other = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let [ask] = ask;
    let error = other.block_on(async { soon(ask).await }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoReply, "{error}");
}

/// A panic replaces the fatal error (JVM `Error`) of Spark's test; the handler no longer counts as
/// running.
#[tokio::test]
async fn inb_07_panicked_handler_does_not_count_as_running() {
    struct Panics(mpsc::UnboundedSender<()>);
    impl RpcEndpoint for Panics {
        type Message = HelloMessage;
        async fn receive(
            &self,
            _: HelloMessage,
            _: &EndpointContext<HelloMessage>,
        ) -> Result<(), RpcError> {
            tokio::task::yield_now().await;
            panic!("out of memory");
        }
        async fn on_stop(&self, _: &EndpointContext<HelloMessage>) -> Result<(), RpcError> {
            self.0.send(()).map_err(RpcError::application)
        }
    }
    let env = client().await;
    let (tx, mut stopped) = mpsc::unbounded_channel();
    let endpoint = env.setup_endpoint("panics", Panics(tx)).unwrap();
    let asks = ["a", "b", "c"].map(|name| endpoint.ask(hi(name)));
    env.stop(&endpoint);
    for ask in asks {
        assert_eq!(soon(ask).await.unwrap_err().kind(), ErrorKind::Panic);
    }
    // on_stop is called only when no handler is running.
    next(&mut stopped).await;
}
