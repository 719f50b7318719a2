//! Row C6: code of the application panics in the endpoint's process or in the caller's. That one
//! request fails, nothing stays counted, and the endpoint goes on.

use std::error::Error;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};

use rpc_core::{
    EndpointOptions, ErrorKind, OverflowPolicy, RpcCallContext, RpcEnv, RpcError, RpcMessage,
    RpcRequest,
};

use crate::actions::{Hooks, KINDS, Kind, act, reply, set_up, set_up_with};
use crate::common::client;
use crate::fixture::promptly;

/// A panic payload, or an error, whose destructor panics with another one.
#[derive(Debug)]
struct PanicsInDrop(u32);

impl Drop for PanicsInDrop {
    fn drop(&mut self) {
        if self.0 > 0 && !std::thread::panicking() {
            panic_any(Self(self.0 - 1));
        }
    }
}

impl fmt::Display for PanicsInDrop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("panics in drop")
    }
}

impl Error for PanicsInDrop {}

/// An error with a text, whose source panics when it is printed.
#[derive(Debug)]
struct HasBadSource(BadDisplay);

#[derive(Debug)]
struct BadDisplay;

impl fmt::Display for HasBadSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("has a bad source")
    }
}

impl Error for HasBadSource {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

impl fmt::Display for BadDisplay {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("this error cannot be printed")
    }
}

impl Error for BadDisplay {}

/// The values of the snapshot that must be 0 when no request is pending.
fn assert_nothing_is_held(env: &RpcEnv) {
    let snapshot = env.snapshot();
    assert_eq!((snapshot.pending_asks, snapshot.inbox_bytes), (0, 0));
    for endpoint in snapshot.endpoints {
        assert_eq!((endpoint.held, endpoint.held_bytes), (0, 0), "{}", endpoint.name);
    }
}

#[tokio::test]
async fn fault_c6_endpoint_goes_on_when_destructors_of_panic_payloads_panic() {
    for kind in KINDS {
        let env = client().await;
        let endpoint = set_up(&env, kind, Hooks::default());
        for depth in 0..4 {
            let ask = endpoint.ask(act(move |_, _| async move { panic_any(PanicsInDrop(depth)) }));
            let error = promptly(&format!("{kind:?}: the panic"), ask).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Panic, "{kind:?}");
            let next = promptly(&format!("{kind:?}: the next reply"), endpoint.ask(reply())).await;
            assert_eq!(next.unwrap(), 1);
        }
        env.shutdown().await;
    }
}

#[tokio::test]
async fn fault_c6_endpoint_goes_on_when_errors_of_handlers_panic() {
    for kind in KINDS {
        let env = client().await;
        let endpoint = set_up(&env, kind, Hooks::default());
        let make: [fn() -> RpcError; 2] = [
            || RpcError::application(PanicsInDrop(2)),
            || RpcError::application(HasBadSource(BadDisplay)),
        ];
        for make in make {
            let ask = endpoint.ask(act(move |_, _| async move { Err(make()) }));
            let error = promptly(&format!("{kind:?}: the failure"), ask).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Application, "{kind:?}");
            std::mem::forget(error);
            // The caller of a one-way message does not keep the error.
            endpoint.send(act(move |_, _| async move { Err(make()) })).unwrap();
            let next = promptly(&format!("{kind:?}: the next reply"), endpoint.ask(reply())).await;
            assert_eq!(next.unwrap(), 1);
        }
        env.shutdown().await;
    }
}

#[tokio::test]
async fn fault_c6_on_stop_runs_after_hooks_panic() {
    for kind in KINDS {
        let env = client().await;
        let (sender, mut stopped) = tokio::sync::mpsc::unbounded_channel();
        let hooks = Hooks::on_start(|_| async { panic_any(PanicsInDrop(3)) });
        let endpoint = set_up(&env, kind, hooks);
        assert_eq!(promptly("the reply", endpoint.ask(reply())).await.unwrap(), 1, "{kind:?}");
        env.stop(&endpoint);
        let hooks = Hooks::on_stop(move |_| async move {
            sender.send(()).unwrap();
            panic_any(PanicsInDrop(3))
        });
        let endpoint = set_up(&env, kind, hooks);
        env.stop(&endpoint);
        promptly("on_stop", stopped.recv()).await.unwrap();
        let report = promptly("the shutdown", env.shutdown()).await;
        assert!(report.is_clean(), "{kind:?}: {report:?}");
    }
}

/// A reply whose destructor panics.
struct BadReply;

impl Drop for BadReply {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "the destructor of a reply panics");
    }
}

/// The closure that `into_message` of a [`Build`] runs.
type Builder = Box<dyn FnOnce() + Send>;

/// A request that runs a closure in `into_message`.
struct Build(Builder);

struct Built(RpcCallContext<BadReply>);

impl RpcMessage for Built {}

impl RpcRequest<Built> for Build {
    type Reply = BadReply;
    fn into_message(self, context: RpcCallContext<BadReply>) -> Built {
        (self.0)();
        Built(context)
    }
}

/// Replies to every message.
struct Replies;

impl rpc_core::RpcEndpoint for Replies {
    type Message = Built;
    async fn receive(
        &self,
        Built(context): Built,
        _: &rpc_core::EndpointContext<Built>,
    ) -> Result<(), RpcError> {
        context.reply(BadReply)
    }
}

#[tokio::test]
async fn fault_c6_ask_is_not_counted_after_destructor_of_unread_reply_panics() {
    let env = client().await;
    let endpoint = env.setup_endpoint("replies", Replies).unwrap();
    for _ in 0..10 {
        let ask = endpoint.ask(Build(Box::new(|| {})));
        let handled = async {
            while env.snapshot().endpoints[0].held > 0 {
                tokio::task::yield_now().await;
            }
        };
        promptly("the reply to an ask that is not polled", handled).await;
        catch_unwind(AssertUnwindSafe(|| drop(ask))).unwrap_err();
        assert_nothing_is_held(&env);
    }
}

#[tokio::test]
async fn fault_c6_message_is_not_counted_after_into_message_panics() {
    for overflow in [OverflowPolicy::Reject, OverflowPolicy::DropOldest] {
        let env = client().await;
        let options = EndpointOptions::new().max_messages(2).overflow(overflow);
        let endpoint = env.setup_endpoint_with("replies", Replies, options).unwrap();
        let bad = || Build(Box::new(|| panic!("into_message panics")));
        for _ in 0..10 {
            catch_unwind(AssertUnwindSafe(|| endpoint.ask(bad()))).unwrap_err();
            catch_unwind(AssertUnwindSafe(|| endpoint.send(bad()).err())).unwrap_err();
            let wait = endpoint.clone();
            let waited = tokio::spawn(async move { wait.send_wait(bad()).await.err() });
            assert!(promptly("send_wait", waited).await.unwrap_err().is_panic());
            assert_nothing_is_held(&env);
        }
        let good = promptly("a good ask", endpoint.ask(Build(Box::new(|| {})))).await;
        std::mem::forget(good.unwrap());
        // The endpoint stops although messages were never built.
        assert!(promptly("the shutdown", env.shutdown()).await.is_clean());
    }
}

/// `into_message` is code of the application: no lock is held while it runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_c4_into_message_may_use_its_endpoint_and_environment() {
    let env = client().await;
    let endpoint = env.setup_endpoint("replies", Replies).unwrap();
    let (inner_env, inner) = (env.clone(), endpoint.clone());
    let ask = tokio::task::spawn_blocking(move || {
        let other = inner.clone();
        inner.ask(Build(Box::new(move || {
            drop(inner_env.snapshot());
            other.send(Build(Box::new(|| {}))).unwrap();
            // The message was accepted before the stop, so it is handled.
            inner_env.stop(&other);
        })))
    });
    let ask = promptly("into_message", ask).await.unwrap();
    std::mem::forget(promptly("the reply", ask).await.unwrap());
    assert!(promptly("the shutdown", env.shutdown()).await.is_clean());
}

/// `Kind::ThreadSafe` is enough: handlers of all kinds are dropped by the same code.
#[tokio::test]
async fn fault_c6_asks_fail_when_destructors_of_queued_messages_panic() {
    let env = client().await;
    let endpoint = set_up_with(
        &env,
        Kind::ThreadSafe,
        Hooks::default(),
        EndpointOptions::new().max_messages(3).overflow(OverflowPolicy::DropOldest),
    );
    let (sender, gate) = tokio::sync::oneshot::channel::<()>();
    let (started, starts) = tokio::sync::oneshot::channel();
    let gated = act(|_, _| async {
        started.send(()).unwrap();
        gate.await.map_err(RpcError::application)
    });
    endpoint.send(gated).unwrap();
    promptly("the first message starts", starts).await.unwrap();
    let bad = || {
        let payload = PanicsInDrop(2);
        act(move |context, _| async move {
            std::mem::forget(payload);
            context.reply(1)
        })
    };
    let asks: Vec<_> = (0..10).map(|_| endpoint.ask(bad())).collect();
    sender.send(()).unwrap();
    let mut dropped = 0;
    for ask in asks {
        match promptly("the end of an ask", ask).await {
            Ok(reply) => assert_eq!(reply, 1),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Limit);
                dropped += 1;
            }
        }
    }
    assert_eq!(dropped, 8);
    assert_eq!(promptly("the next reply", endpoint.ask(reply())).await.unwrap(), 1);
    assert!(promptly("the shutdown", env.shutdown()).await.is_clean());
}

/// Handlers that are dropped with their runtime, or at the end of a shutdown, panic in destructors.
#[test]
fn fault_c6_asks_end_when_dropped_handlers_panic() {
    for kind in KINDS {
        for by_shutdown in [true, false] {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            let (env, endpoint) = runtime.block_on(async {
                let conf = crate::common::setting("spark.rpc.shutdownTimeout", "100ms");
                let env = RpcEnv::builder("client").client_mode().conf(conf).start().await.unwrap();
                let endpoint = set_up(&env, kind, Hooks::default());
                (env, endpoint)
            });
            let (started, starts) = std::sync::mpsc::channel();
            let asks: Vec<_> = (0..4)
                .map(|_| {
                    let started = started.clone();
                    endpoint.ask_with_timeout(
                        act(move |_context, _| async move {
                            let _payload = PanicsInDrop(1);
                            started.send(()).map_err(RpcError::application)?;
                            std::future::pending().await
                        }),
                        crate::fixture::LONG,
                    )
                })
                .collect();
            starts.recv_timeout(std::time::Duration::from_secs(5)).unwrap();
            if by_shutdown {
                drop(env.shutdown());
            } else {
                runtime.shutdown_timeout(std::time::Duration::from_secs(5));
            }
            let waits = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            for ask in asks {
                let ended = waits.block_on(promptly(&format!("{kind:?}: an ask"), ask));
                let error = ended.unwrap_err();
                let kinds = [ErrorKind::NoReply, ErrorKind::Stopped];
                assert!(kinds.contains(&error.kind()), "{kind:?}: {error:?}");
            }
            assert_eq!(env.snapshot().pending_asks, 0);
        }
    }
}
