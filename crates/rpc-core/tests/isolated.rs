//! Isolated endpoints, which have threads of their own: row `rpc_env_36`. No network is
//! involved.

mod common;

use std::cell::RefCell;
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::Duration;

use common::{Greeting, Hello, HelloMessage, bye, client, hi, soon};
use rpc_core::{
    EndpointContext, EndpointOptions, ErrorKind, RpcEndpoint, RpcEndpointRef, RpcError,
    ThreadSafeRpcEndpoint,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

fn isolated(threads: usize) -> EndpointOptions {
    EndpointOptions::new().isolated(threads)
}

fn thread_name() -> String {
    thread::current().name().unwrap_or_default().to_owned()
}

type Events = UnboundedSender<String>;

thread_local! {
    static DROPPED_AT_THREAD_EXIT: RefCell<Option<Events>> = const { RefCell::new(None) };
}

/// An endpoint that blocks its thread in `SayHi` until the test releases it.
///
/// It reports each call and its thread to the test.
struct Blocks {
    release: mpsc::Receiver<()>,
    events: UnboundedSender<String>,
}

struct BlocksTest {
    release: mpsc::Sender<()>,
    events: UnboundedReceiver<String>,
}

impl Blocks {
    fn new() -> (Self, BlocksTest) {
        let (release, released) = mpsc::channel();
        let (events, received) = unbounded_channel();
        (Self { release: released, events }, BlocksTest { release, events: received })
    }

    fn report(&self, call: &str) {
        let _ = self.events.send(format!("{call} on {}", thread_name()));
    }
}

impl BlocksTest {
    async fn next(&mut self) -> Option<String> {
        soon(self.events.recv()).await
    }
}

impl ThreadSafeRpcEndpoint for Blocks {
    type Message = HelloMessage;

    async fn receive(
        &mut self,
        message: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        match message {
            HelloMessage::SayHi(hi, context) => {
                self.report("receive");
                self.release.recv().map_err(RpcError::application)?;
                // Timers and tasks run on the runtime of the environment.
                tokio::time::sleep(Duration::from_millis(1)).await;
                let text =
                    tokio::spawn(async move { hi.msg }).await.map_err(RpcError::application)?;
                context.reply(Greeting { text })
            }
            HelloMessage::SayBye(..) => panic!("no bye today"),
        }
    }

    async fn on_start(&mut self, _: &EndpointContext<HelloMessage>) -> Result<(), RpcError> {
        let events = self.events.clone();
        DROPPED_AT_THREAD_EXIT.with(|end| end.replace(Some(events)));
        self.report("start");
        Ok(())
    }

    async fn on_stop(&mut self, _: &EndpointContext<HelloMessage>) -> Result<(), RpcError> {
        self.report("stop");
        Ok(())
    }

    async fn on_error(
        &mut self,
        _: RpcError,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        self.report("error");
        Ok(())
    }
}

/// The runtime has one thread, and the isolated endpoint has another one.
#[tokio::test]
async fn rpc_env_36_blocked_isolated_endpoint_keeps_others_running() {
    let env = client().await;
    let (blocks, mut test) = Blocks::new();
    let blocked = env.setup_endpoint_with("blocked", blocks, isolated(1)).unwrap();
    let hello = env.setup_endpoint("hello", Hello).unwrap();
    assert_eq!(test.next().await.as_deref(), Some("start on dispatcher-blocked"));

    let waiting = blocked.ask(hi("neo"));
    assert_eq!(test.next().await.as_deref(), Some("receive on dispatcher-blocked"));
    assert_eq!(soon(hello.ask(hi("trinity"))).await.unwrap().text, "hi, trinity");
    let queued = blocked.ask(hi("morpheus"));
    env.stop(&blocked);
    test.release.send(()).unwrap();
    assert_eq!(soon(waiting).await.unwrap().text, "neo");

    // Messages queued before the stop are handled, then on_stop runs, then the thread ends.
    assert_eq!(test.next().await.as_deref(), Some("receive on dispatcher-blocked"));
    test.release.send(()).unwrap();
    assert_eq!(soon(queued).await.unwrap().text, "morpheus");
    assert_eq!(test.next().await.as_deref(), Some("stop on dispatcher-blocked"));
    assert_eq!(test.next().await, None, "the thread still runs");
    assert_eq!(soon(blocked.ask(hi("x"))).await.unwrap_err().kind(), ErrorKind::Stopped);
}

#[tokio::test]
async fn rpc_env_36_panic_fails_only_its_message() {
    let env = client().await;
    let (blocks, mut test) = Blocks::new();
    let endpoint = env.setup_endpoint_with("panics", blocks, isolated(1)).unwrap();
    assert_eq!(soon(endpoint.ask(bye("neo"))).await.unwrap_err().kind(), ErrorKind::Panic);
    test.release.send(()).unwrap();
    assert_eq!(soon(endpoint.ask(hi("alive"))).await.unwrap().text, "alive");
    soon(env.shutdown()).await;
    let name = "dispatcher-panics";
    for event in ["start", "error", "receive", "stop"] {
        assert_eq!(test.next().await, Some(format!("{event} on {name}")));
    }
    assert_eq!(test.next().await, None);
}

/// An endpoint that blocks each message until three messages are active.
struct Meet(Barrier);

impl RpcEndpoint for Meet {
    type Message = HelloMessage;
    async fn receive(
        &self,
        message: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        let HelloMessage::SayHi(_, context) = message else { return Ok(()) };
        self.0.wait();
        context.reply(Greeting { text: thread_name() })
    }
}

#[tokio::test]
async fn rpc_env_36_receives_block_concurrently_on_all_threads() {
    let env = client().await;
    let meet = env.setup_endpoint_with("meet", Meet(Barrier::new(3)), isolated(3)).unwrap();
    for _ in 0..50 {
        let asks = ["a", "b", "c"].map(|name| meet.ask(hi(name)));
        for reply in soon(futures::future::join_all(asks)).await {
            assert_eq!(reply.unwrap().text, "dispatcher-meet");
        }
    }
    soon(env.shutdown()).await;
}

/// An endpoint that blocks on an ask of itself, which another of its threads handles.
struct AsksItself;

impl RpcEndpoint for AsksItself {
    type Message = HelloMessage;
    async fn receive(
        &self,
        message: HelloMessage,
        cx: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        match message {
            HelloMessage::SayHi(_, context) => {
                let self_ref: &RpcEndpointRef<HelloMessage> = cx.self_ref();
                context.reply(self_ref.ask_sync(bye("neo"))?)
            }
            HelloMessage::SayBye(_, context) => context.reply(Greeting { text: "bye".to_owned() }),
        }
    }
}

#[tokio::test]
async fn rpc_env_36_isolated_endpoint_can_block_on_ask_sync() {
    let env = client().await;
    let endpoint = env.setup_endpoint_with("itself", AsksItself, isolated(2)).unwrap();
    for _ in 0..50 {
        assert_eq!(soon(endpoint.ask(hi("neo"))).await.unwrap().text, "bye");
    }
}

#[test]
fn isolated_endpoint_ends_when_runtime_is_dropped() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (endpoint, mut test, running, queued) = runtime.block_on(async {
        let env = client().await;
        let (blocks, mut test) = Blocks::new();
        let endpoint = env.setup_endpoint_with("blocked", blocks, isolated(1)).unwrap();
        let running = endpoint.ask(hi("neo"));
        test.next().await;
        test.next().await;
        let queued = endpoint.ask(hi("trinity"));
        (endpoint, test, running, queued)
    });
    drop(runtime);
    let other = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    other.block_on(async {
        // These asks fail also while the thread is blocked.
        assert_eq!(soon(queued).await.unwrap_err().kind(), ErrorKind::Stopped);
        assert_eq!(soon(endpoint.ask(hi("x"))).await.unwrap_err().kind(), ErrorKind::Stopped);
        test.release.send(()).unwrap();
        assert!(soon(running).await.is_err());
        while test.next().await.is_some() {}
    });
}

#[tokio::test]
async fn invalid_thread_count_is_rejected() {
    let env = client().await;
    let error = env.setup_endpoint_with("none", Hello, isolated(0)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    let error = env.setup_endpoint_with("two", Hello, isolated(2)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(
        error.to_string().contains("two: isolated(2): a ThreadSafeRpcEndpoint handles one"),
        "{error}"
    );
    env.setup_endpoint("two", Hello).expect("the name is free");
}
