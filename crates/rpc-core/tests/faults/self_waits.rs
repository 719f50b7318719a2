//! Rows C7 and C8: a handler waits for its own endpoint, which cannot go on before the handler
//! ends. The wait fails at once with `Deadlock`.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use rpc_core::{
    EndpointOptions, ErrorKind, RpcEndpointRef, RpcEnv, RpcError, RpcMessage, RpcRequest,
};
use tokio::sync::{Barrier, mpsc, oneshot};

use crate::actions::{Action, Cx, Do, Hooks, KINDS, Kind, act, reply, set_up, set_up_with};
use crate::common::{Hello, HelloMessage, address, client, hi, server};
use crate::fixture::{LONG, promptly, within};

/// Runs `hook` as `on_start`, and returns what it returns.
async fn in_on_start<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    env: &RpcEnv,
    kind: Kind,
    hook: impl FnOnce(Cx) -> F + Send + 'static,
) -> T {
    let (sender, result) = oneshot::channel();
    let hooks = Hooks::on_start(|cx| async move {
        let _ = sender.send(hook(cx).await);
        Err(RpcError::application("makes the endpoint serial"))
    });
    set_up(env, kind, hooks);
    promptly(&format!("{kind:?}: on_start"), result).await.unwrap()
}

/// Runs `handler` as a message of `endpoint`, and returns what it returns.
async fn in_receive<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    endpoint: &RpcEndpointRef<Action>,
    handler: impl FnOnce(Cx) -> F + Send + 'static,
) -> T {
    let (sender, result) = oneshot::channel();
    let request = act(|context, cx| async move {
        let _ = sender.send(handler(cx).await);
        context.reply(1)
    });
    promptly("the handler", endpoint.ask_with_timeout(request, LONG)).await.unwrap();
    result.await.unwrap()
}

async fn ask_self(cx: Cx) -> Result<u32, RpcError> {
    cx.self_ref().ask_with_timeout(reply(), LONG).await
}

/// Checks that the endpoint handles new messages, once its inbox has capacity.
async fn assert_replies(endpoint: &RpcEndpointRef<Action>) {
    let replied = async {
        loop {
            match endpoint.ask(reply()).await {
                Err(full) if full.kind() == ErrorKind::Limit => tokio::task::yield_now().await,
                replied => return replied,
            }
        }
    };
    assert_eq!(promptly("the next reply", replied).await.unwrap(), 1);
}

fn assert_deadlock<T: std::fmt::Debug>(result: Result<T, RpcError>, what: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Deadlock, "{what}: {error:?}");
    assert!(error.to_string().contains("acts") && !error.is_retryable(), "{what}: {error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_c7_ask_of_itself_in_on_start_fails_as_deadlock() {
    for kind in KINDS {
        let env = client().await;
        let asked = in_on_start(&env, kind, ask_self).await;
        assert_deadlock(asked, &format!("{kind:?}"));
        let retried = |cx: Cx| async move { cx.self_ref().ask_with_retry(Cloned).await };
        let env = client().await;
        assert_deadlock(in_on_start(&env, kind, retried).await, &format!("{kind:?}: retry"));
    }
}

/// A request that can be cloned.
#[derive(Clone)]
struct Cloned;

impl RpcRequest<Action> for Cloned {
    type Reply = u32;
    fn into_message(self, context: rpc_core::RpcCallContext<u32>) -> Action {
        reply().into_message(context)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_c7_ask_of_itself_in_serial_receive_fails_as_deadlock() {
    for kind in KINDS {
        let env = client().await;
        let hooks = Hooks::on_start(|_| async { Err(RpcError::application("makes it serial")) });
        let endpoint = set_up(&env, kind, hooks);
        let asked = in_receive(&endpoint, ask_self).await;
        assert_deadlock(asked, &format!("{kind:?}"));
        let replied = promptly("the next reply", endpoint.ask(reply())).await;
        assert_eq!(replied.unwrap(), 1, "{kind:?}");
    }
}

/// Without a failure of `on_start`, the handlers of an `RpcEndpoint` can await each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_c7_ask_of_itself_succeeds_in_concurrent_receive() {
    for kind in [Kind::Concurrent, Kind::Isolated(1), Kind::Isolated(2)] {
        let env = client().await;
        let endpoint = set_up(&env, kind, Hooks::default());
        assert_eq!(in_receive(&endpoint, ask_self).await.unwrap(), 1, "{kind:?}");
    }
}

/// `ask_sync` blocks a thread of the endpoint. The last free one cannot be blocked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_c7_ask_sync_of_itself_fails_when_no_thread_is_left() {
    let sync = |cx: Cx| async move { cx.self_ref().ask_sync_with_timeout(reply(), LONG) };
    for kind in [Kind::IsolatedThreadSafe, Kind::Isolated(1)] {
        let env = client().await;
        let endpoint = set_up(&env, kind, Hooks::default());
        assert_deadlock(in_receive(&endpoint, sync).await, &format!("{kind:?}"));
    }
    for kind in [Kind::IsolatedThreadSafe, Kind::Isolated(1), Kind::Isolated(3)] {
        let env = client().await;
        assert_deadlock(in_on_start(&env, kind, sync).await, &format!("{kind:?} on_start"));
    }
    let env = client().await;
    let endpoint = set_up(&env, Kind::Isolated(2), Hooks::default());
    for _ in 0..3 {
        assert_eq!(in_receive(&endpoint, sync).await.unwrap(), 1, "the other thread replies");
    }
    // All threads ask at the same time: one of the asks fails, which frees its thread.
    let barrier = Arc::new(std::sync::Barrier::new(2));
    let asks: Vec<_> = (0..2)
        .map(|_| {
            let barrier = Arc::clone(&barrier);
            endpoint.ask_with_timeout(
                act(move |context, cx| async move {
                    barrier.wait();
                    match cx.self_ref().ask_sync_with_timeout(reply(), LONG) {
                        Ok(reply) => context.reply(reply),
                        Err(error) => context.reply(u32::from(error.kind() != ErrorKind::Deadlock)),
                    }
                }),
                LONG,
            )
        })
        .collect();
    for ask in asks {
        promptly("the end of a blocking handler", ask).await.unwrap();
    }
    assert_replies(&endpoint).await;
}

/// The endpoint is looked up by another address of its environment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_c7_ask_of_itself_by_other_address_fails_as_deadlock() {
    struct AsksByAddress(mpsc::UnboundedSender<RpcError>);
    impl rpc_core::ThreadSafeRpcEndpoint for AsksByAddress {
        type Message = HelloMessage;
        async fn receive(
            &mut self,
            message: HelloMessage,
            cx: &rpc_core::EndpointContext<HelloMessage>,
        ) -> Result<(), RpcError> {
            let env = cx.env();
            let port = address(&env).port();
            let found = env.lookup::<HelloMessage>(("localhost", port), "asks").await?;
            let error = found.ask_with_timeout(hi("neo"), LONG).await.unwrap_err();
            self.0.send(error).map_err(RpcError::application)?;
            drop(message);
            Ok(())
        }
    }
    let env = server().await;
    let (sender, mut errors) = mpsc::unbounded_channel();
    let endpoint = env.setup_endpoint("asks", AsksByAddress(sender)).unwrap();
    endpoint.send(hi("start")).unwrap();
    let error = promptly("the nested ask", errors.recv()).await.unwrap();
    assert_eq!(error.kind(), ErrorKind::Deadlock, "{error:?}");
}

/// A lookup by another address means the environment itself, also for other endpoints.
#[tokio::test]
async fn fault_c7_lookup_by_other_address_returns_local_ref() {
    let env = server().await;
    let local = env.setup_endpoint("hello", Hello).unwrap();
    let port = address(&env).port();
    let found = env.lookup::<HelloMessage>(("localhost", port), "hello");
    let found = promptly("the lookup", found).await.unwrap();
    assert_eq!(found, local);
    assert_eq!(promptly("the reply", found.ask(hi("neo"))).await.unwrap().text, "hi, neo");
    let missing = env.lookup::<HelloMessage>(("localhost", port), "missing");
    let error = promptly("the lookup", missing).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::EndpointNotFound);
}

/// Shutdown, the wait for it, and lookups of the own environment end at once in every handler.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_c7_waits_for_own_environment_end_in_every_handler() {
    let wait = |cx: Cx| async move {
        let env = cx.env();
        if env.address().is_some() {
            let _ = env.lookup::<Action>(address(&env), "acts").await;
        }
        env.stop(cx.self_ref());
        let report = env.shutdown().await;
        env.await_termination().await;
        report.is_complete
    };
    for kind in KINDS {
        let env = server().await;
        assert!(!in_on_start(&env, kind, wait).await, "{kind:?}");
        within(Duration::from_secs(10), "the shutdown", env.shutdown()).await;
        let env = server().await;
        let endpoint = set_up(&env, kind, Hooks::default());
        assert!(!in_receive(&endpoint, wait).await, "{kind:?}");
        within(Duration::from_secs(10), "the shutdown", env.shutdown()).await;
        let env = server().await;
        let (sender, result) = oneshot::channel();
        let hooks = Hooks::on_stop(move |cx| async move {
            let asked = cx.self_ref().ask(reply()).await.unwrap_err().kind();
            let sent = cx.self_ref().send_wait(reply()).await.err().map(|e| e.error().kind());
            let _ = sender.send((wait(cx).await, asked, sent));
            Ok(())
        });
        env.stop(&set_up(&env, kind, hooks));
        let result = promptly(&format!("{kind:?}: on_stop"), result).await.unwrap();
        assert_eq!(result, (false, ErrorKind::Stopped, Some(ErrorKind::Stopped)), "{kind:?}");
        within(Duration::from_secs(10), "the shutdown", env.shutdown()).await;
    }
}

fn limited(messages: u64) -> EndpointOptions {
    EndpointOptions::new().max_messages(messages)
}

/// Sends to the own endpoint until that fails. Returns how often it succeeded, and the error.
async fn send_until_error(cx: Cx) -> (usize, Result<(), RpcError>) {
    for sent in 0..100 {
        if let Err(error) = cx.self_ref().send_wait(reply()).await {
            return (sent, Err(error.error().clone()));
        }
    }
    (100, Ok(()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_c8_send_wait_to_own_full_inbox_fails_as_deadlock() {
    for kind in [Kind::ThreadSafe, Kind::IsolatedThreadSafe] {
        for limit in [1, 5] {
            let env = client().await;
            let endpoint = set_up_with(&env, kind, Hooks::default(), limited(limit));
            let (sent, error) = in_receive(&endpoint, send_until_error).await;
            assert_eq!(sent as u64, limit - 1, "{kind:?}: the message itself is in the inbox");
            assert_deadlock(error, &format!("{kind:?}"));
            assert_replies(&endpoint).await;
        }
    }
}

/// Other messages of an `RpcEndpoint` end while one waits, unless there are none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_c8_send_wait_of_concurrent_endpoint_fails_only_without_progress() {
    for kind in [Kind::Concurrent, Kind::Isolated(1), Kind::Isolated(2)] {
        let env = client().await;
        let endpoint = set_up_with(&env, kind, Hooks::default(), limited(1));
        let (sent, error) = in_receive(&endpoint, send_until_error).await;
        assert_eq!(sent, 0, "{kind:?}: the message itself fills the inbox");
        assert_deadlock(error, &format!("{kind:?}"));
        let env = client().await;
        let endpoint = set_up_with(&env, kind, Hooks::default(), limited(2));
        let (sent, result) = in_receive(&endpoint, send_until_error).await;
        assert_eq!(sent, 100, "{kind:?}: {result:?}");
    }
}

/// The inbox is full of messages whose handlers wait for its capacity.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_c8_handlers_that_wait_for_each_other_end() {
    for (limit, waits) in [(2, 1), (10, 1), (10, 3)] {
        let env = client().await;
        let endpoint = set_up_with(&env, Kind::Concurrent, Hooks::default(), limited(limit));
        let barrier = Arc::new(Barrier::new(limit as usize));
        let asks: Vec<_> = (0..limit)
            .map(|_| {
                let barrier = Arc::clone(&barrier);
                let request = act(move |context, cx| async move {
                    barrier.wait().await;
                    // One handler that waits several times counts once.
                    let sends = (0..waits).map(|_| cx.self_ref().send_wait(reply()));
                    let results = futures::future::join_all(sends).await;
                    context.reply(results.iter().filter(|result| result.is_ok()).count() as u32)
                });
                endpoint.ask_with_timeout(request, LONG)
            })
            .collect();
        for ask in asks {
            within(Duration::from_secs(5), "a handler that waits", ask).await.unwrap();
        }
        assert_replies(&endpoint).await;
    }
}

/// The inbox is full in bytes, or `on_start` runs while messages fill it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_c8_send_wait_fails_in_on_start_and_when_bytes_are_full() {
    let env = client().await;
    let options = EndpointOptions::new().max_bytes(1);
    let endpoint = set_up_with(&env, Kind::Concurrent, Hooks::default(), options);
    let (sent, error) = in_receive(&endpoint, send_until_error).await;
    assert_eq!(sent, 0);
    assert_deadlock(error, "a full inbox in bytes");
    for kind in KINDS {
        let env = client().await;
        let (go, gate) = oneshot::channel::<()>();
        let (sender, result) = oneshot::channel();
        let hooks = Hooks::on_start(|cx| async move {
            gate.await.map_err(RpcError::application)?;
            let _ = sender.send(send_until_error(cx).await.1);
            Ok(())
        });
        let endpoint = set_up_with(&env, kind, hooks, limited(3));
        for _ in 0..3 {
            endpoint.send(reply()).unwrap();
        }
        go.send(()).unwrap();
        assert_deadlock(promptly("on_start", result).await.unwrap(), &format!("{kind:?}"));
        let served = within(Duration::from_secs(5), "capacity", endpoint.send_wait(reply())).await;
        served.map_err(|error| error.error().clone()).unwrap();
    }
}

/// Another endpoint, or a task, may wait for the capacity that the handler's end gives back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_c8_other_senders_still_wait_for_capacity() {
    let env = client().await;
    let endpoint = set_up_with(&env, Kind::ThreadSafe, Hooks::default(), limited(1));
    let (go, gate) = oneshot::channel::<()>();
    let (spawned, mut tasks) = mpsc::unbounded_channel();
    let request: Do = act(move |context, cx| async move {
        let own = cx.self_ref().clone();
        let sent = tokio::spawn(async move { own.send_wait(reply()).await.is_ok() });
        spawned.send(sent).map_err(RpcError::application)?;
        gate.await.map_err(RpcError::application)?;
        context.reply(1)
    });
    let ask = endpoint.ask_with_timeout(request, LONG);
    let task = promptly("the task", tasks.recv()).await.unwrap();
    let other = endpoint.clone();
    let sender = tokio::spawn(async move { other.send_wait(reply()).await.is_ok() });
    go.send(()).unwrap();
    promptly("the handler", ask).await.unwrap();
    assert!(promptly("the task of the handler", task).await.unwrap());
    assert!(promptly("the other sender", sender).await.unwrap());
}

/// A ref to a part of the messages waits for the same inbox.
#[tokio::test]
async fn fault_c8_narrowed_ref_waits_for_its_own_endpoint() {
    struct Part(Do, rpc_core::RpcCallContext<u32>);
    impl RpcMessage for Part {}
    impl From<Part> for Action {
        fn from(Part(request, context): Part) -> Self {
            request.into_message(context)
        }
    }
    struct DoPart(Do);
    impl RpcRequest<Part> for DoPart {
        type Reply = u32;
        fn into_message(self, context: rpc_core::RpcCallContext<u32>) -> Part {
            Part(self.0, context)
        }
    }
    let env = client().await;
    let endpoint = set_up_with(&env, Kind::ThreadSafe, Hooks::default(), limited(1));
    let results = in_receive(&endpoint, |cx| async move {
        let narrow = cx.self_ref().narrow::<Part>();
        let sent = narrow.send_wait(DoPart(reply())).await.map_err(|e| e.error().clone());
        let asked = narrow.ask_with_timeout(DoPart(reply()), LONG).await;
        (sent, asked)
    });
    let (sent, asked) = results.await;
    assert_deadlock(sent, "send_wait");
    // The full inbox rejects the ask.
    assert_eq!(asked.unwrap_err().kind(), ErrorKind::Limit);
}
