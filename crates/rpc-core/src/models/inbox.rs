//! Models of an inbox with concurrent senders and its message loop.

use std::sync::{Arc, Mutex};

use shuttle::future::{JoinHandle, block_on, spawn, yield_now};
use shuttle::thread;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Barrier;

use super::check;
use crate::address::RpcEndpointAddress;
use crate::ask::{AskResources, EndpointInfo};
use crate::conf::RpcConf;
use crate::endpoint::{
    EndpointContext, RpcCallContext, RpcEndpoint, RpcEndpointRef, RpcMessage, RpcRequest,
    ThreadSafeRpcEndpoint,
};
use crate::error::{ErrorKind, RpcError};
use crate::inbox::ErasedInbox as _;
use crate::inbox::{Inbox, StopCause};
use crate::isolated_executor::IsolatedExecutor;
use crate::limits::{InboxConf, Volume};
use crate::message_loop::{IntoEndpoint, LoopContext};
use crate::trace::Tracer;

/// The id of a message: its sender, and its number among the sender's messages.
type MessageId = (u8, u8);

enum Message {
    Tell(MessageId),
    Ask(MessageId, RpcCallContext<MessageId>),
}

impl RpcMessage for Message {}

struct Tell(MessageId);

impl RpcRequest<Message> for Tell {
    type Reply = ();
    fn into_message(self, _: RpcCallContext<()>) -> Message {
        Message::Tell(self.0)
    }
}

struct Ask(MessageId);

impl RpcRequest<Message> for Ask {
    type Reply = MessageId;
    fn into_message(self, context: RpcCallContext<MessageId>) -> Message {
        Message::Ask(self.0, context)
    }
}

/// The calls that an endpoint has received.
#[derive(Default)]
struct CallHistory {
    started: bool,
    stopped: bool,
    running: usize,
    /// The messages in the order in which their handling started.
    received: Vec<MessageId>,
    /// Violated expectations. They are checked at the end, as the loop catches panics of handlers.
    violations: Vec<&'static str>,
}

impl CallHistory {
    fn expect(&mut self, holds: bool, what: &'static str) {
        if !holds {
            self.violations.push(what);
        }
    }
}

/// Checks the order of the loop's calls, and yields to other threads within each call.
#[derive(Clone, Default)]
struct CallChecker(Arc<Mutex<CallHistory>>);

/// A call of the loop; it ends when this is dropped.
struct Call<'a>(&'a CallChecker);

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.0.lock().unwrap().running -= 1;
    }
}

impl CallChecker {
    fn begin(&self, alone: bool) -> Call<'_> {
        let mut history = self.0.lock().unwrap();
        let (stopped, running) = (history.stopped, history.running);
        history.expect(!stopped, "no call follows on_stop");
        history.expect(!alone || running == 0, "no other call runs at the same time");
        history.running += 1;
        Call(self)
    }

    async fn on_start(&self) -> Result<(), RpcError> {
        let _call = self.begin(true);
        yield_now().await;
        let mut history = self.0.lock().unwrap();
        let started = std::mem::replace(&mut history.started, true);
        history.expect(!started, "on_start is called once");
        Ok(())
    }

    async fn on_stop(&self) -> Result<(), RpcError> {
        let call = self.begin(true);
        yield_now().await;
        drop(call);
        self.0.lock().unwrap().stopped = true;
        Ok(())
    }

    fn received(&self, id: MessageId) {
        let mut history = self.0.lock().unwrap();
        let started = history.started;
        history.expect(started, "on_start is called first");
        history.received.push(id);
    }

    async fn receive(&self, message: Message, alone: bool) -> Result<(), RpcError> {
        let _call = self.begin(alone);
        let (Message::Tell(id) | Message::Ask(id, _)) = message;
        self.received(id);
        yield_now().await;
        match message {
            Message::Ask(id, context) => context.reply(id),
            Message::Tell(_) => Ok(()),
        }
    }

    /// Asserts that each `accepted` message was handled once, and that `on_stop` ran last.
    fn assert_ended(&self, kind: Kind, mut accepted: Vec<MessageId>) {
        let mut history = self.0.lock().unwrap();
        assert_eq!(history.violations, [""; 0]);
        assert!(history.stopped && history.running == 0);
        match kind {
            // The messages of each sender keep their order.
            Kind::Serial | Kind::Concurrent => history.received.sort_by_key(|(sender, _)| *sender),
            // Several threads start messages in any order.
            Kind::Isolated => history.received.sort_unstable(),
        }
        accepted.sort_by_key(|(sender, _)| *sender);
        assert_eq!(history.received, accepted);
    }
}

struct Serial(CallChecker);

impl ThreadSafeRpcEndpoint for Serial {
    type Message = Message;
    async fn receive(
        &mut self,
        message: Message,
        _: &EndpointContext<Message>,
    ) -> Result<(), RpcError> {
        self.0.receive(message, true).await
    }
    async fn on_start(&mut self, _: &EndpointContext<Message>) -> Result<(), RpcError> {
        self.0.on_start().await
    }
    async fn on_stop(&mut self, _: &EndpointContext<Message>) -> Result<(), RpcError> {
        self.0.on_stop().await
    }
}

struct Concurrent(CallChecker);

impl RpcEndpoint for Concurrent {
    type Message = Message;
    async fn receive(
        &self,
        message: Message,
        _: &EndpointContext<Message>,
    ) -> Result<(), RpcError> {
        // Another thread of an isolated endpoint may run here.
        thread::yield_now();
        self.0.receive(message, false).await
    }
    async fn on_start(&self, _: &EndpointContext<Message>) -> Result<(), RpcError> {
        self.0.on_start().await
    }
    async fn on_stop(&self, _: &EndpointContext<Message>) -> Result<(), RpcError> {
        self.0.on_stop().await
    }
}

/// An endpoint that replies to two asks when both are active.
struct RepliesToTwo(Barrier);

impl RpcEndpoint for RepliesToTwo {
    type Message = Message;
    async fn receive(
        &self,
        message: Message,
        _: &EndpointContext<Message>,
    ) -> Result<(), RpcError> {
        self.0.wait().await;
        match message {
            Message::Ask(id, context) => context.reply(id),
            Message::Tell(_) => Ok(()),
        }
    }
}

/// An inbox with a ref and a checker, before its loop starts.
struct Fixture {
    inbox: Arc<Inbox<Message>>,
    endpoint: RpcEndpointRef<Message>,
    checker: CallChecker,
    /// The runtime that the crate requires; it never runs, as no model waits for time.
    runtime: Runtime,
}

impl Fixture {
    fn new(limit: u64) -> Self {
        let runtime = Builder::new_current_thread().build().unwrap();
        let conf = RpcConf::new();
        let usual = conf.inbox().unwrap();
        let limits =
            InboxConf::new(Volume::new(limit, u64::MAX), usual.overflow, usual.slow_threshold);
        let address = RpcEndpointAddress::new(None, "model").unwrap();
        let asks =
            AskResources::new(conf.ask().unwrap(), Tracer::default(), runtime.handle().clone());
        let inbox = Inbox::new(EndpointInfo::new(address, asks, 1), Arc::new(limits));
        let endpoint = inbox.make_ref();
        Self { inbox, endpoint, checker: CallChecker::default(), runtime }
    }

    fn seat(&self, threads: Option<IsolatedExecutor>) -> LoopContext<Message> {
        let cx = EndpointContext::new(self.endpoint.clone(), Arc::new(()));
        LoopContext::new(Arc::clone(&self.inbox), cx, threads)
    }

    /// Starts the message loop of the endpoint as a task.
    fn start(&self, kind: Kind) -> JoinHandle<()> {
        let checker = self.checker.clone();
        match kind {
            Kind::Serial => spawn(Serial(checker).run(self.seat(None))),
            Kind::Concurrent | Kind::Isolated => self.start_concurrent(kind, Concurrent(checker)),
        }
    }

    fn start_concurrent(
        &self,
        kind: Kind,
        endpoint: impl RpcEndpoint<Message = Message>,
    ) -> JoinHandle<()> {
        let threads = match kind {
            Kind::Isolated => IsolatedExecutor::start("model", 2, self.runtime.handle()).unwrap(),
            Kind::Serial | Kind::Concurrent => return spawn(endpoint.run(self.seat(None))),
        };
        let loop_task = threads.spawn(endpoint.run(self.seat(Some(threads.clone()))));
        spawn(async { loop_task.await.unwrap() })
    }

    /// Starts a thread that sends, and returns the results.
    fn sender<T: Send + 'static>(
        &self,
        sender: u8,
        messages: u8,
        send: impl Fn(&RpcEndpointRef<Message>, MessageId) -> T + Send + 'static,
    ) -> thread::JoinHandle<Vec<T>> {
        let endpoint = self.endpoint.clone();
        thread::spawn(move || {
            (0..messages).map(|number| send(&endpoint, (sender, number))).collect()
        })
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Serial,
    Concurrent,
    /// Concurrent on two threads.
    Isolated,
}

/// Sends a one-way message, and returns its id if it was accepted.
fn send(endpoint: &RpcEndpointRef<Message>, id: MessageId) -> Option<MessageId> {
    match endpoint.send(Tell(id)) {
        Ok(()) => Some(id),
        Err(rejected) => {
            assert_eq!(rejected.error().kind(), ErrorKind::Stopped);
            None
        }
    }
}

/// Asks and awaits the outcome, and returns the id of the message if it got a reply.
fn ask(endpoint: &RpcEndpointRef<Message>, id: MessageId) -> Option<MessageId> {
    match block_on(endpoint.ask(Ask(id))) {
        Ok(reply) => {
            assert_eq!(reply, id);
            Some(id)
        }
        Err(error) => {
            // The handler was dropped with its loop.
            let dropped = error.kind() == ErrorKind::NoReply;
            assert!(dropped || error.kind() == ErrorKind::Stopped, "{error:?}");
            None
        }
    }
}

fn send_wait(endpoint: &RpcEndpointRef<Message>, id: MessageId) -> Option<MessageId> {
    block_on(endpoint.send_wait(Tell(id))).unwrap();
    Some(id)
}

fn join(
    senders: impl IntoIterator<Item = thread::JoinHandle<Vec<Option<MessageId>>>>,
) -> Vec<MessageId> {
    senders.into_iter().flat_map(|sender| sender.join().unwrap()).flatten().collect()
}

/// A message that is posted while the loop goes to sleep wakes the loop.
fn post_wakes_loop(kind: Kind) {
    let fixture = Fixture::new(100);
    let loop_task = fixture.start(kind);
    let accepted = join([fixture.sender(0, 2, ask), fixture.sender(1, 2, ask)]);
    assert_eq!(accepted.len(), 4);
    fixture.inbox.stop(StopCause::Endpoint);
    block_on(loop_task).unwrap();
    fixture.checker.assert_ended(kind, accepted);
}

/// A message is received while another is being handled.
fn handlers_run_concurrently(kind: Kind) {
    let fixture = Fixture::new(100);
    let loop_task = fixture.start_concurrent(kind, RepliesToTwo(Barrier::new(2)));
    assert_eq!(join([fixture.sender(0, 2, ask), fixture.sender(1, 2, ask)]).len(), 4);
    fixture.inbox.stop(StopCause::Endpoint);
    block_on(loop_task).unwrap();
}

/// Messages accepted during the stop are handled before `on_stop`, rejected ones never.
fn stop_races_with_posts(kind: Kind) {
    let fixture = Fixture::new(100);
    let loop_task = fixture.start(kind);
    let senders =
        [fixture.sender(0, 2, send), fixture.sender(1, 2, send), fixture.sender(2, 1, ask)];
    let inbox = Arc::clone(&fixture.inbox);
    let stopper = thread::spawn(move || inbox.stop(StopCause::Endpoint));
    block_on(loop_task).unwrap();
    stopper.join().unwrap();
    fixture.checker.assert_ended(kind, join(senders));
}

/// A sender that waits for capacity of a full inbox is woken when there is some.
fn capacity_wakes_senders(kind: Kind) {
    let fixture = Fixture::new(1);
    let loop_task = fixture.start(kind);
    let accepted = join([fixture.sender(0, 3, send_wait), fixture.sender(1, 3, send_wait)]);
    fixture.inbox.stop(StopCause::Endpoint);
    block_on(loop_task).unwrap();
    fixture.checker.assert_ended(kind, accepted);
}

/// Every ask ends when the task of the loop is dropped, as it is at the end of its runtime.
fn dropped_task_ends_asks(kind: Kind) {
    let fixture = Fixture::new(100);
    let loop_task = fixture.start(kind);
    let senders = [fixture.sender(0, 2, ask), fixture.sender(1, 2, ask)];
    loop_task.abort();
    let replied = join(senders);
    let history = fixture.checker.0.lock().unwrap();
    assert_eq!(history.violations, [""; 0]);
    assert!(replied.iter().all(|id| history.received.contains(id)));
}

#[test]
fn post_wakes_loop_of_thread_safe_endpoint() {
    check(5000, || post_wakes_loop(Kind::Serial));
}

#[test]
fn post_wakes_loop_of_concurrent_endpoint() {
    check(5000, || post_wakes_loop(Kind::Concurrent));
}

#[test]
fn post_wakes_loop_of_isolated_endpoint() {
    check(2000, || post_wakes_loop(Kind::Isolated));
}

#[test]
fn concurrent_endpoint_receives_message_while_handling_another() {
    check(2000, || handlers_run_concurrently(Kind::Concurrent));
    check(2000, || handlers_run_concurrently(Kind::Isolated));
}

#[test]
fn thread_safe_endpoint_runs_on_stop_last_and_alone() {
    check(5000, || stop_races_with_posts(Kind::Serial));
}

#[test]
fn concurrent_endpoint_runs_on_stop_last_and_alone() {
    check(5000, || stop_races_with_posts(Kind::Concurrent));
}

#[test]
fn isolated_endpoint_runs_on_stop_last_and_alone() {
    check(2000, || stop_races_with_posts(Kind::Isolated));
}

#[test]
fn inbox_capacity_wakes_waiting_senders() {
    check(5000, || capacity_wakes_senders(Kind::Serial));
    check(2000, || capacity_wakes_senders(Kind::Concurrent));
}

#[test]
fn asks_end_when_loop_task_is_dropped() {
    check(5000, || dropped_task_ends_asks(Kind::Serial));
    check(5000, || dropped_task_ends_asks(Kind::Concurrent));
}
