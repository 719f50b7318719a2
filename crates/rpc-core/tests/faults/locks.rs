//! Row C4: no lock is held while code of the application runs or is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use rpc_core::{
    EndpointContext, EndpointOptions, ErrorKind, RpcEndpoint, RpcEndpointRef, RpcEnv, RpcError,
    ThreadSafeRpcEndpoint,
};
use tokio::runtime::{Builder, Runtime};

use crate::actions::{Action, Hooks, KINDS, Kind, act, reply, set_up};
use crate::common::{Greeting, Hello, HelloMessage, address, client, hi, server};
use crate::fixture::{LONG, NAME, look_up, promptly, stuck, within};

/// An endpoint whose destructor uses its environment, and then notifies the test.
struct UsesEnvInDrop {
    env: RpcEnv,
    other: RpcEndpointRef<HelloMessage>,
    dropped: Arc<AtomicBool>,
}

impl UsesEnvInDrop {
    fn use_env(&self) {
        drop(self.env.snapshot());
        let _ = self.other.send(hi("from a destructor"));
        self.env.stop(&self.other);
        let _ = self.env.setup_endpoint("from-a-destructor", Hello);
        drop(self.env.shutdown());
        self.dropped.store(true, Ordering::SeqCst);
    }
}

impl Drop for UsesEnvInDrop {
    fn drop(&mut self) {
        self.use_env();
    }
}

impl ThreadSafeRpcEndpoint for UsesEnvInDrop {
    type Message = HelloMessage;
    async fn receive(
        &mut self,
        _: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        Ok(())
    }
}

/// Owns the same endpoint as an [`RpcEndpoint`].
struct Concurrent {
    _endpoint: UsesEnvInDrop,
}

impl RpcEndpoint for Concurrent {
    type Message = HelloMessage;
    async fn receive(
        &self,
        _: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        Ok(())
    }
}

/// Runs `code` on a thread, and fails the test if it has not ended after 10 s.
fn on_thread<T: Send + 'static>(what: &str, code: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(code()));
    let result = receiver.recv_timeout(Duration::from_secs(10));
    result.unwrap_or_else(|_| panic!("{what} does not end within 10 s"))
}

/// Starts an environment with an endpoint, and ends its runtime.
fn env_after_its_runtime() -> (RpcEnv, RpcEndpointRef<HelloMessage>) {
    let runtime: Runtime = Builder::new_multi_thread().enable_all().build().unwrap();
    let env = runtime.block_on(client());
    let other = env.setup_endpoint("other", Hello).unwrap();
    runtime.shutdown_timeout(Duration::from_secs(10));
    (env, other)
}

#[test]
fn fault_c4_setup_after_end_of_runtime_fails_and_may_drop_endpoint() {
    for (is_serial, isolated) in [(true, false), (false, false), (true, true), (false, true)] {
        let (env, other) = env_after_its_runtime();
        let dropped = Arc::new(AtomicBool::new(false));
        let used = (env.clone(), other.clone(), Arc::clone(&dropped));
        let setup = on_thread("setup_endpoint", move || {
            let (env, other, dropped) = used;
            let endpoint = UsesEnvInDrop { env: env.clone(), other, dropped };
            let mut options = EndpointOptions::new();
            if isolated {
                options = options.isolated(1);
            }
            match is_serial {
                true => env.setup_endpoint_with("late", endpoint, options),
                false => {
                    env.setup_endpoint_with("late", Concurrent { _endpoint: endpoint }, options)
                }
            }
        });
        assert_eq!(setup.unwrap_err().kind(), ErrorKind::Stopped);
        let rest = env.clone();
        on_thread("the use of the environment", move || {
            // The endpoint of an isolated thread is dropped by that thread.
            while !dropped.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            assert!(rest.snapshot().endpoints.iter().all(|endpoint| endpoint.name != "late"));
            assert_eq!(other.send(hi("neo")).unwrap_err().error().kind(), ErrorKind::Stopped);
            drop(rest.shutdown());
        });
    }
}

/// An endpoint may use its environment in its destructor, however it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_c4_destructor_of_endpoint_may_use_its_environment() {
    for ends_by in ["stop", "shutdown", "rejection"] {
        let env = client().await;
        let other = env.setup_endpoint("other", Hello).unwrap();
        let dropped = Arc::new(AtomicBool::new(false));
        let make = || UsesEnvInDrop {
            env: env.clone(),
            other: other.clone(),
            dropped: Arc::clone(&dropped),
        };
        match ends_by {
            "stop" => {
                let endpoint = env.setup_endpoint("uses-env", make()).unwrap();
                env.stop(&endpoint);
            }
            "shutdown" => {
                env.setup_endpoint("uses-env", make()).unwrap();
                drop(env.shutdown());
            }
            _ => {
                let error = env.setup_endpoint("other", make()).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::EndpointExists);
            }
        }
        let is_dropped = async {
            while !dropped.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        within(Duration::from_secs(10), &format!("the end by {ends_by}"), is_dropped).await;
        within(Duration::from_secs(10), "the shutdown", env.shutdown()).await;
    }
}

/// A waker that uses the environment when it is woken and when it is dropped.
struct UsesEnvInWake {
    env: RpcEnv,
    woken: AtomicUsize,
}

impl Wake for UsesEnvInWake {
    fn wake(self: Arc<Self>) {
        self.woken.fetch_add(1, Ordering::SeqCst);
        drop(self.env.snapshot());
    }
}

impl Drop for UsesEnvInWake {
    fn drop(&mut self) {
        drop(self.env.snapshot());
    }
}

/// Asks and sends wait for a connection, for credit, for capacity and for replies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_c4_wakers_may_use_their_environment() {
    let (server, client) = (server().await, client().await);
    let (endpoint, mut gate) = stuck("stuck");
    let local = server.setup_endpoint(NAME, endpoint).unwrap();
    let remote = look_up(&client, &server).await;
    for (env, endpoint) in [(client.clone(), remote), (server.clone(), local)] {
        let waker = move || {
            let waker = UsesEnvInWake { env: env.clone(), woken: AtomicUsize::new(0) };
            let waker = Arc::new(waker);
            (Arc::clone(&waker), Waker::from(waker))
        };
        let mut asks: Vec<_> =
            (0..5000).map(|_| Box::pin(endpoint.ask_with_timeout(hi("neo"), LONG))).collect();
        let polled = std::thread::spawn(move || {
            let mut wakers = Vec::new();
            for ask in &mut asks {
                // The second waker replaces the first one, which is dropped then.
                for _ in 0..2 {
                    let (state, waker) = waker();
                    assert!(ask.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
                    wakers.push(state);
                }
                drop(wakers.remove(wakers.len() - 2));
            }
            (asks, wakers)
        });
        let poll = tokio::task::spawn_blocking(move || polled.join().unwrap());
        let (asks, wakers) = within(Duration::from_secs(20), "polls of asks", poll).await.unwrap();
        // Every second ask is cancelled, some of them in the queue.
        let kept: Vec<_> = asks.into_iter().step_by(2).collect();
        gate.open();
        for ask in kept {
            let reply: Greeting = within(LONG, "the reply", ask).await.unwrap();
            assert_eq!(reply.text, "stuck");
        }
        assert!(wakers.iter().any(|waker| waker.woken.load(Ordering::SeqCst) > 0));
        promptly("the gate closes", gate.close()).await;
    }
    gate.open();
}

#[tokio::test]
async fn fault_c4_stop_in_on_stop_does_not_stop_successor() {
    for kind in KINDS {
        let env = client().await;
        let (go, gate) = tokio::sync::oneshot::channel::<()>();
        let (done, stopped) = tokio::sync::oneshot::channel::<()>();
        let hooks = Hooks::on_stop(|cx| async move {
            gate.await.map_err(RpcError::application)?;
            cx.env().stop(cx.self_ref());
            done.send(()).map_err(|()| RpcError::application("the test has ended"))
        });
        let first = set_up(&env, kind, hooks);
        env.stop(&first);
        let second = set_up(&env, Kind::ThreadSafe, Hooks::default());
        go.send(()).unwrap();
        promptly("on_stop", stopped).await.unwrap();
        env.stop(&first);
        assert_eq!(promptly("the successor's reply", second.ask(reply())).await.unwrap(), 1);
        env.stop(&second);
        assert_eq!(second.ask(reply()).await.unwrap_err().kind(), ErrorKind::Stopped);
        promptly("the shutdown", env.shutdown()).await;
    }
}

/// A clone, a lookup and a message's own ref mean the same endpoint, and stop it.
#[tokio::test]
async fn fault_c4_every_ref_of_an_endpoint_stops_it() {
    let env = server().await;
    let set_up = || set_up(&env, Kind::ThreadSafe, Hooks::default());
    let stopped_by_itself = set_up();
    let stop_self = act(|context, cx| async move {
        cx.env().stop(cx.self_ref());
        context.reply(1)
    });
    promptly("the reply", stopped_by_itself.ask(stop_self)).await.unwrap();
    let first = set_up();
    env.stop(&first.clone());
    set_up();
    let found = env.lookup::<Action>(address(&env), "acts").await.unwrap();
    env.stop(&found);
    set_up();
}
