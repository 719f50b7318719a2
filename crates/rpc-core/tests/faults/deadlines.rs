//! Rows C9 and C10: what the caller gets when a deadline passes at the callee, or was inherited.

use std::time::Duration;

use rpc_core::{
    EndpointContext, ErrorKind, RpcCallContext, RpcEndpoint, RpcEndpointRef, RpcEnv, RpcError,
    ThreadSafeRpcEndpoint,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::common::{Greeting, HelloMessage, bye, client, hi, server};
use crate::fixture::{LONG, NAME, look_up, promptly, stuck, within};

/// The ways to end a request whose deadline has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    /// `receive` waits for the cancellation, and returns `Ok`.
    InReceive,
    /// A task waits for the cancellation, and drops the context.
    InTask,
    /// A task polls `is_cancelled`.
    Polled,
    /// A task waits until no time remains.
    Remaining,
}

/// Drops every context without a reply, once it is cancelled or expired.
struct DropsExpired(Ends);

impl RpcEndpoint for DropsExpired {
    type Message = HelloMessage;
    async fn receive(
        &self,
        message: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        let (HelloMessage::SayHi(_, context) | HelloMessage::SayBye(_, context)) = message;
        if self.0 == Ends::InReceive {
            return tokio::select! {
                () = std::future::pending() => context.reply(Greeting::default()),
                () = context.cancelled() => Ok(()),
            };
        }
        tokio::spawn(drop_expired(self.0, context));
        Ok(())
    }
}

async fn drop_expired(ends: Ends, context: RpcCallContext<Greeting>) {
    let is_expired = || match ends {
        Ends::Polled => context.is_cancelled(),
        _ => context.remaining() == Some(Duration::ZERO),
    };
    if ends == Ends::InTask {
        context.cancelled().await;
    }
    while !is_expired() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_c9_context_dropped_after_deadline_fails_ask_as_timeout() {
    for ends in [Ends::InReceive, Ends::InTask, Ends::Polled, Ends::Remaining] {
        let (server, client) = (server().await, client().await);
        let local = server.setup_endpoint(NAME, DropsExpired(ends)).unwrap();
        let remote = look_up(&client, &server).await;
        let timeout = Duration::from_millis(100);
        let mut asks: Vec<JoinHandle<_>> = Vec::new();
        for n in 0..40 {
            let endpoint = if n % 2 == 0 { &local } else { &remote };
            let ask = endpoint.ask_with_timeout(hi("neo"), timeout);
            asks.push(tokio::spawn(async move {
                // Half of the callers look only when the callee has dropped the context.
                if n % 4 < 2 {
                    tokio::time::sleep(3 * timeout).await;
                }
                ask.await
            }));
        }
        for (n, ask) in asks.into_iter().enumerate() {
            let ended = promptly(&format!("{ends:?}: the end of ask {n}"), ask).await.unwrap();
            let error = ended.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Timeout, "{ends:?} {n}: {error:?}");
            assert!(error.is_timeout() && !error.is_retryable(), "{error:?}");
            assert!(error.to_string().contains("in 100ms"), "{ends:?} {n}: {error}");
        }
    }
}

/// A context that is dropped before the deadline is a request without a reply, as before.
#[tokio::test]
async fn fault_c9_context_dropped_before_deadline_fails_ask_as_no_reply() {
    struct Drops;
    impl ThreadSafeRpcEndpoint for Drops {
        type Message = HelloMessage;
        async fn receive(
            &mut self,
            _: HelloMessage,
            _: &EndpointContext<HelloMessage>,
        ) -> Result<(), RpcError> {
            Ok(())
        }
    }
    let (server, client) = (server().await, client().await);
    let local = server.setup_endpoint(NAME, Drops).unwrap();
    let remote = look_up(&client, &server).await;
    for endpoint in [local, remote] {
        let error = promptly("the failure", endpoint.ask_with_timeout(hi("neo"), LONG)).await;
        assert_eq!(error.unwrap_err().kind(), ErrorKind::NoReply);
    }
}

/// Works for 100 ms, then asks another endpoint with its own timeout.
struct Relay {
    to: RpcEndpointRef<HelloMessage>,
    works: Duration,
    errors: mpsc::UnboundedSender<RpcError>,
}

impl ThreadSafeRpcEndpoint for Relay {
    type Message = HelloMessage;
    async fn receive(
        &mut self,
        message: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        tokio::time::sleep(self.works).await;
        let asked = match &message {
            HelloMessage::SayHi(hi, _) => self.to.ask(hi.clone()).await,
            HelloMessage::SayBye(bye, _) => {
                self.to.ask_with_timeout(bye.clone(), Duration::from_secs(7)).await
            }
        };
        self.errors.send(asked.unwrap_err()).map_err(RpcError::application)
    }
}

/// A relay in front of an endpoint that does not reply, local or remote.
struct Case {
    _envs: [RpcEnv; 2],
    relay: RpcEndpointRef<HelloMessage>,
    errors: mpsc::UnboundedReceiver<RpcError>,
    received: crate::fixture::Gate,
}

impl Case {
    async fn start(works: Duration, is_local: bool) -> Self {
        let (server, client) = (server().await, client().await);
        let (slow, received) = stuck::<HelloMessage>("slow");
        let local = server.setup_endpoint(NAME, slow).unwrap();
        let remote = look_up(&client, &server).await;
        let (env, to) = if is_local { (&server, local) } else { (&client, remote) };
        let (sender, errors) = mpsc::unbounded_channel();
        let relay = env.setup_endpoint("relay", Relay { to, works, errors: sender }).unwrap();
        Self { _envs: [server, client], relay, errors, received }
    }

    async fn error(&mut self) -> RpcError {
        promptly("the relay's own ask", self.errors.recv()).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_c10_timeout_of_nested_ask_says_that_it_was_inherited() {
    for is_local in [true, false] {
        let mut case = Case::start(Duration::from_millis(20), is_local).await;
        for (is_hi, own) in [(true, "120s (spark.rpc.askTimeout)"), (false, "7s")] {
            let limit = Duration::from_millis(300);
            let outer = if is_hi {
                case.relay.ask_with_timeout(hi("neo"), limit)
            } else {
                case.relay.ask_with_timeout(bye("neo"), limit)
            };
            let error = case.error().await;
            assert!(error.kind() == ErrorKind::Timeout && error.is_timeout(), "{error:?}");
            let text = error.to_string();
            assert!(text.contains("inherited the deadline of the request"), "{text}");
            assert!(text.contains(&format!("its own timeout is {own}")), "{text}");
            assert!(!text.contains("controlled by"), "the setting did not end it: {text}");
            let outer = promptly("the outer ask", outer).await.unwrap_err();
            assert!(outer.to_string().contains("in 300ms"), "{outer}");
            assert!(!outer.to_string().contains("inherited"), "{outer}");
        }
        assert!(case.received.buffered() > 0, "the nested ask was sent");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_c10_nested_ask_without_time_is_not_sent_and_says_so() {
    for is_local in [true, false] {
        let mut case = Case::start(Duration::from_millis(150), is_local).await;
        let outer = case.relay.ask_with_timeout(hi("neo"), Duration::from_millis(50));
        let error = case.error().await;
        assert!(error.kind() == ErrorKind::Timeout && error.is_timeout(), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("was not sent") && text.contains("has passed"), "{text}");
        assert!(text.contains("inherited") && !text.contains("0ns"), "{text}");
        assert!(promptly("the outer ask", outer).await.unwrap_err().is_timeout());
        assert_eq!(case.received.buffered(), 0, "the nested ask was not sent");
    }
}

#[tokio::test]
async fn fault_c10_ask_with_timeout_zero_is_not_sent_and_says_so() {
    let (server, client) = (server().await, client().await);
    let (slow, received) = stuck::<HelloMessage>("slow");
    let local = server.setup_endpoint(NAME, slow).unwrap();
    let remote = look_up(&client, &server).await;
    for endpoint in [local, remote] {
        let ask = endpoint.ask_with_timeout(hi("neo"), Duration::ZERO);
        let text = promptly("the ask", ask).await.unwrap_err().to_string();
        assert!(text.contains("was not sent") && text.contains("is zero"), "{text}");
        assert!(!text.contains("0ns") && !text.contains("inherited"), "{text}");
    }
    assert_eq!(received.buffered(), 0);
}

/// Asks wait for credit until their deadline has passed. Their callers have not polled them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_c10_queued_ask_is_not_sent_after_its_deadline() {
    let (server, client) = (server().await, client().await);
    let (slow, mut gate) = stuck::<HelloMessage>("slow");
    server.setup_endpoint(NAME, slow).unwrap();
    let remote = look_up(&client, &server).await;
    // More than the initial credit, so that the rest is queued.
    for n in 0..1000 {
        remote.send(hi(&format!("first {n}"))).unwrap();
    }
    gate.next().await;
    let timeout = Duration::from_millis(100);
    let asks: Vec<_> =
        (0..10).map(|n| remote.ask_with_timeout(hi(&format!("late {n}")), timeout)).collect();
    tokio::time::sleep(2 * timeout).await;
    gate.open();
    remote.send(hi("last")).unwrap();
    let before = within(LONG, "the last message", gate.until("last")).await;
    assert_eq!(before.iter().filter(|text| text.starts_with("late")).count(), 0);
    for ask in asks {
        let error = promptly("the end of a queued ask", ask).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
        assert!(error.to_string().contains("in 100ms"), "{error}");
    }
}
