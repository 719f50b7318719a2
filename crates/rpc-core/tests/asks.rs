//! Ask variants: abort, blocking asks, retries, timeouts, and asks that would wait for themselves.

mod common;

use std::error::Error;
use std::fmt;
use std::time::Duration;

use common::{Greeting, Hello, HelloMessage, address, bye, client, hi, next, server, soon};
use rpc_core::{
    EndpointContext, EndpointOptions, ErrorKind, RpcCallContext, RpcConf, RpcEndpointRef, RpcEnv,
    RpcError, RpcTimeout, ThreadSafeRpcEndpoint,
};
use tokio::sync::mpsc;

/// An endpoint that sends the context of each `SayHi` to the test and does not reply.
struct Forwarding(mpsc::UnboundedSender<RpcCallContext<Greeting>>);

impl Forwarding {
    fn new() -> (Self, mpsc::UnboundedReceiver<RpcCallContext<Greeting>>) {
        let (contexts, received) = mpsc::unbounded_channel();
        (Self(contexts), received)
    }
}

impl ThreadSafeRpcEndpoint for Forwarding {
    type Message = HelloMessage;
    async fn receive(
        &mut self,
        message: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        if let HelloMessage::SayHi(_, context) = message {
            self.0.send(context).map_err(RpcError::application)?;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct StageCancelled(u32);
impl fmt::Display for StageCancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stage {} was cancelled", self.0)
    }
}
impl Error for StageCancelled {}

#[tokio::test]
async fn rpc_env_07_aborted_ask_fails_with_given_reason() {
    let (server, client) = (server().await, client().await);
    let (endpoint, mut contexts) = Forwarding::new();
    let local = server.setup_endpoint("slow", endpoint).unwrap();
    let remote = soon(client.setup_endpoint_ref(address(&server), "slow")).await.unwrap();
    for endpoint in [local, remote] {
        let mut ask = endpoint.ask(hi("neo"));
        let abort = ask.abort_handle();
        let waiting = tokio::spawn(ask);
        let context = next(&mut contexts).await;

        let other_handle = abort.clone();
        std::thread::spawn(move || other_handle.abort(StageCancelled(7))).join().unwrap();
        abort.abort("a second abort has no effect");
        let error = soon(waiting).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Aborted);
        assert_eq!(error.to_string(), format!("the ask to {endpoint} was aborted"));
        assert_eq!(
            error.source().and_then(|e| e.downcast_ref::<StageCancelled>()).map(|e| e.0),
            Some(7)
        );
        assert!(!error.is_retryable(), "the request may have been handled");
        assert_eq!(error.peer(), Some(endpoint.to_string().as_str()));

        context.reply(Greeting::default()).expect("a late reply is not an error");
        let mut ask = endpoint.ask(hi("trinity"));
        let abort = ask.abort_handle();
        next(&mut contexts).await.reply(Greeting { text: "here".to_owned() }).unwrap();
        assert_eq!(soon(&mut ask).await.unwrap().text, "here");
        abort.abort("after the reply");
    }
}

#[tokio::test]
async fn ask_aborted_before_first_poll_fails_and_is_not_delivered() {
    let env = client().await;
    let (endpoint, mut contexts) = Forwarding::new();
    let endpoint = env.setup_endpoint("slow", endpoint).unwrap();
    let mut ask = endpoint.ask(hi("neo"));
    ask.abort_handle().abort("no longer needed");
    assert_eq!(soon(ask).await.unwrap_err().kind(), ErrorKind::Aborted);
    // The ask was cancelled while it was queued, so the endpoint never received it.
    soon(env.shutdown()).await;
    assert!(contexts.recv().await.is_none());
}

#[test]
fn ask_sync_blocks_outside_runtime_and_is_rejected_inside() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let env = runtime.block_on(client());
    let hello = env.setup_endpoint("hello", Hello).unwrap();
    assert_eq!(hello.ask_sync(hi("neo")).unwrap().text, "hi, neo");

    let (endpoint, mut contexts) = Forwarding::new();
    let slow = env.setup_endpoint("slow", endpoint).unwrap();
    let limit = Duration::from_millis(300);
    let error = slow.ask_sync_with_timeout(hi("neo"), limit).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(contexts.blocking_recv().is_some());

    let inside = runtime.block_on(async { slow.ask_sync(hi("neo")) }).unwrap_err();
    assert_eq!(inside.kind(), ErrorKind::Deadlock);
    assert!(inside.to_string().contains("use `ask(..).await`"), "{inside}");
    let spawned = runtime.block_on(runtime.spawn(async move { slow.ask_sync(hi("neo")) })).unwrap();
    assert_eq!(spawned.unwrap_err().kind(), ErrorKind::Deadlock);
    assert!(contexts.try_recv().is_err(), "nothing was sent");
}

/// An endpoint that fails the first `failures` requests, and replies to later ones.
struct FailsAtFirst {
    failures: u32,
    retryable: bool,
}

impl ThreadSafeRpcEndpoint for FailsAtFirst {
    type Message = HelloMessage;
    async fn receive(
        &mut self,
        message: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        let HelloMessage::SayHi(_, context) = message else { return Ok(()) };
        if self.failures == 0 {
            return context.reply(Greeting { text: "success".to_owned() });
        }
        self.failures -= 1;
        let error = RpcError::application(format!("not yet, {} to go", self.failures));
        Err(if self.retryable { error.retryable() } else { error })
    }
}

#[tokio::test]
async fn ask_with_retry_repeats_only_retryable_failures() {
    let conf =
        RpcConf::from_settings([("spark.rpc.numRetries", "3"), ("spark.rpc.retry.wait", "1ms")])
            .unwrap();
    let client = RpcEnv::builder("client").client_mode().conf(conf).start().await.unwrap();
    let server = server().await;
    let setup = async |name: &str, failures, retryable| {
        server.setup_endpoint(name, FailsAtFirst { failures, retryable }).unwrap();
        soon(client.setup_endpoint_ref::<HelloMessage>(address(&server), name)).await.unwrap()
    };

    let endpoint = setup("two-failures", 2, true).await;
    assert_eq!(soon(endpoint.ask_with_retry(hi("neo"))).await.unwrap().text, "success");

    let endpoint = setup("three-failures", 3, true).await;
    let error = soon(endpoint.ask_with_retry(hi("neo"))).await.unwrap_err();
    assert_eq!(
        format!("{error:#}"),
        format!("{endpoint}: no success after 3 attempts (spark.rpc.numRetries): not yet, 0 to go")
    );
    assert_eq!(error.kind(), ErrorKind::Application);
    assert!(error.is_retryable() && error.is_remote());
    assert_eq!(error.peer(), Some(endpoint.to_string().as_str()));
    assert_eq!(error.source().unwrap().to_string(), "not yet, 0 to go");
    assert_eq!(
        soon(endpoint.ask(hi("neo"))).await.unwrap().text,
        "success",
        "the endpoint has received three requests"
    );

    let endpoint = setup("not-retryable", 1, false).await;
    let error = soon(endpoint.ask_with_retry(hi("neo"))).await.unwrap_err();
    assert_eq!(error.to_string(), "not yet, 0 to go");
    assert_eq!(
        soon(endpoint.ask(hi("neo"))).await.unwrap().text,
        "success",
        "the endpoint has received one request"
    );

    let error = RpcConf::new().with("spark.rpc.numRetries", "0").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("spark.rpc.numRetries is `0`"), "{error}");
}

/// An endpoint that asks itself: it awaits the reply in `receive` or in a spawned task.
struct AsksSelf;

impl ThreadSafeRpcEndpoint for AsksSelf {
    type Message = HelloMessage;
    async fn receive(
        &mut self,
        message: HelloMessage,
        cx: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        let self_ref = cx.self_ref();
        match message {
            HelloMessage::SayBye(_, context) => context.reply(Greeting { text: "bye".to_owned() }),
            HelloMessage::SayHi(hi, context) if hi.msg == "await" => {
                context.reply(self_ref.ask(bye("neo")).await?)
            }
            HelloMessage::SayHi(_, context) => {
                let ask = self_ref.ask(bye("neo"));
                tokio::spawn(async move { context.reply(ask.await?) });
                Ok(())
            }
        }
    }
}

/// Returns the kind of the error with which the nested ask of the handler ended.
fn nested_error_kind(error: &RpcError) -> Option<ErrorKind> {
    error.get_ref().and_then(|e| e.downcast_ref::<RpcError>()).map(RpcError::kind)
}

#[tokio::test]
async fn self_ask_awaited_in_receive_fails_at_once_as_deadlock() {
    let env = client().await;
    let endpoint = env.setup_endpoint("itself", AsksSelf).unwrap();
    let error = soon(endpoint.ask(hi("await"))).await.unwrap_err();
    assert_eq!(nested_error_kind(&error), Some(ErrorKind::Deadlock));
    let text = error.to_string();
    let expected = "a handler of spark-client://itself awaits an ask to its own endpoint";
    assert!(text.contains(expected), "{text}");
    assert_eq!(soon(endpoint.ask(hi("spawn"))).await.unwrap().text, "bye");

    let isolated = EndpointOptions::new().isolated(1);
    let endpoint = env.setup_endpoint_with("isolated", AsksSelf, isolated).unwrap();
    let error = soon(endpoint.ask(hi("await"))).await.unwrap_err();
    assert_eq!(nested_error_kind(&error), Some(ErrorKind::Deadlock));
    assert_eq!(soon(endpoint.ask(hi("spawn"))).await.unwrap().text, "bye");

    // A handler can await an ask of another endpoint.
    struct Forwards(RpcEndpointRef<HelloMessage>);
    impl ThreadSafeRpcEndpoint for Forwards {
        type Message = HelloMessage;
        async fn receive(
            &mut self,
            message: HelloMessage,
            _: &EndpointContext<HelloMessage>,
        ) -> Result<(), RpcError> {
            let HelloMessage::SayHi(hi, context) = message else { return Ok(()) };
            context.reply(self.0.ask(hi).await?)
        }
    }
    let forwards = env.setup_endpoint("forwards", Forwards(endpoint)).unwrap();
    assert_eq!(soon(forwards.ask(hi("spawn"))).await.unwrap().text, "bye");
}

#[tokio::test]
async fn rpc_env_33_timed_out_ask_names_its_setting_once() {
    let (server, client) = (server().await, client().await);
    let (never, mut contexts) = Forwarding::new();
    let never_local = server.setup_endpoint("never", never).unwrap();
    let hello_local = server.setup_endpoint("hello", Hello).unwrap();
    let never_remote = soon(client.setup_endpoint_ref(address(&server), "never")).await.unwrap();
    let hello_remote = soon(client.setup_endpoint_ref(address(&server), "hello")).await.unwrap();
    for (hello, never) in [(hello_local, never_local), (hello_remote, never_remote)] {
        let long = RpcTimeout::new(Duration::from_secs(60), "my.long.setting");
        assert_eq!(soon(hello.ask_with_timeout(hi("neo"), long)).await.unwrap().text, "hi, neo");

        let short = RpcTimeout::new(Duration::from_millis(10), "my.short.setting");
        let awaited = never.ask_with_timeout(hi("neo"), short.clone());
        let late = never.ask_with_timeout(hi("neo"), short);
        let errors = [soon(awaited).await.unwrap_err(), {
            // The timeout elapses before the first poll.
            tokio::time::sleep(Duration::from_millis(20)).await;
            soon(late).await.unwrap_err()
        }];
        for error in errors {
            assert!(error.kind() == ErrorKind::Timeout && error.is_timeout());
            let text = error.to_string();
            assert!(
                text.ends_with("in 10ms. This timeout is controlled by my.short.setting"),
                "{text}"
            );
            assert_eq!(text.matches("my.short.setting").count(), 1, "{text}");
        }
    }
    contexts.close();
}
