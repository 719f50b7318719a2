//! An inbox, its senders and its loop.

use std::sync::{Arc, Mutex};

use shuttle::future::{JoinHandle, block_on, spawn, yield_now};
use shuttle::thread;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Barrier;

use super::check;
use crate::address::RpcEndpointAddress;
use crate::ask::{AskResources, EndpointInfo};
use crate::conf::RpcConf;
use crate::endpoint::RpcCallContext;
use crate::endpoint::RpcEndpointRef;
use crate::endpoint::{EndpointContext, RpcEndpoint, ThreadSafeRpcEndpoint};
use crate::endpoint::{RpcMessage, RpcRequest};
use crate::error::{ErrorKind, RpcError};
use crate::inbox::ErasedInbox as _;
use crate::inbox::{Inbox, StopCause};
use crate::isolated_executor::IsolatedExecutor;
use crate::limits::{InboxConf, Volume};
use crate::message_loop::{IntoEndpoint, LoopContext};
use crate::trace::Tracer;

/// Which message of which sender.
type Mark = (u8, u8);

enum Message {
    Tell(Mark),
    Ask(Mark, RpcCallContext<Mark>),
}

impl RpcMessage for Message {}

struct Tell(Mark);

impl RpcRequest<Message> for Tell {
    type Reply = ();
    fn into_message(self, _: RpcCallContext<()>) -> Message {
        Message::Tell(self.0)
    }
}

struct Ask(Mark);

impl RpcRequest<Message> for Ask {
    type Reply = Mark;
    fn into_message(self, context: RpcCallContext<Mark>) -> Message {
        Message::Ask(self.0, context)
    }
}

/// What an endpoint has gone through.
#[derive(Default)]
struct Life {
    started: bool,
    stopped: bool,
    running: usize,
    /// In the order in which their handling began.
    received: Vec<Mark>,
    /// What should not have been. Told at the end, as a handler's panic ends nothing but the
    /// handler.
    complaints: Vec<&'static str>,
}

impl Life {
    fn demand(&mut self, holds: bool, what: &'static str) {
        if !holds {
            self.complaints.push(what);
        }
    }
}

/// Looks at what the loop calls and when, and lets others go on in the middle of each call.
#[derive(Clone, Default)]
struct Witness(Arc<Mutex<Life>>);

/// A call of the loop.
struct Call<'a>(&'a Witness);

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.0.lock().unwrap().running -= 1;
    }
}

impl Witness {
    fn begin(&self, alone: bool) -> Call<'_> {
        let mut life = self.0.lock().unwrap();
        let (stopped, running) = (life.stopped, life.running);
        life.demand(!stopped, "nothing comes after on_stop");
        life.demand(!alone || running == 0, "it comes alone");
        life.running += 1;
        Call(self)
    }

    async fn on_start(&self) -> Result<(), RpcError> {
        let _call = self.begin(true);
        yield_now().await;
        let mut life = self.0.lock().unwrap();
        let started = std::mem::replace(&mut life.started, true);
        life.demand(!started, "it starts once");
        Ok(())
    }

    async fn on_stop(&self) -> Result<(), RpcError> {
        let call = self.begin(true);
        yield_now().await;
        drop(call);
        self.0.lock().unwrap().stopped = true;
        Ok(())
    }

    fn received(&self, mark: Mark) {
        let mut life = self.0.lock().unwrap();
        let started = life.started;
        life.demand(started, "on_start comes first");
        life.received.push(mark);
    }

    async fn receive(&self, message: Message, alone: bool) -> Result<(), RpcError> {
        let _call = self.begin(alone);
        let (Message::Tell(mark) | Message::Ask(mark, _)) = message;
        self.received(mark);
        yield_now().await;
        match message {
            Message::Ask(mark, context) => context.reply(mark),
            Message::Tell(_) => Ok(()),
        }
    }

    /// All that was `accepted` has been handled once, then `on_stop` has run.
    fn has_ended(&self, kind: Kind, mut accepted: Vec<Mark>) {
        let mut life = self.0.lock().unwrap();
        assert_eq!(life.complaints, [""; 0]);
        assert!(life.stopped && life.running == 0);
        match kind {
            // In the order of each sender.
            Kind::Serial | Kind::Concurrent => life.received.sort_by_key(|(sender, _)| *sender),
            // Which of several threads comes first is nobody's promise.
            Kind::Isolated => life.received.sort_unstable(),
        }
        accepted.sort_by_key(|(sender, _)| *sender);
        assert_eq!(life.received, accepted);
    }
}

struct Serial(Witness);

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

struct Concurrent(Witness);

impl RpcEndpoint for Concurrent {
    type Message = Message;
    async fn receive(
        &self,
        message: Message,
        _: &EndpointContext<Message>,
    ) -> Result<(), RpcError> {
        // Of an isolated endpoint that is another thread.
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

/// Answers two asks when both have come.
struct Meeting(Barrier);

impl RpcEndpoint for Meeting {
    type Message = Message;
    async fn receive(
        &self,
        message: Message,
        _: &EndpointContext<Message>,
    ) -> Result<(), RpcError> {
        self.0.wait().await;
        match message {
            Message::Ask(mark, context) => context.reply(mark),
            Message::Tell(_) => Ok(()),
        }
    }
}

/// An inbox and what is around it, but for its loop.
struct Room {
    inbox: Arc<Inbox<Message>>,
    endpoint: RpcEndpointRef<Message>,
    witness: Witness,
    /// It never runs: nothing here waits for time.
    runtime: Runtime,
}

impl Room {
    fn new(limit: u64) -> Self {
        let runtime = Builder::new_current_thread().build().unwrap();
        let conf = RpcConf::new();
        let usual = conf.inbox().unwrap();
        let limits = InboxConf::new(Volume::new(limit, u64::MAX), usual.overflow, usual.slow);
        let address = RpcEndpointAddress::new(None, "model").unwrap();
        let asks =
            AskResources::new(conf.ask().unwrap(), Tracer::default(), runtime.handle().clone());
        let inbox = Inbox::new(EndpointInfo::new(address, asks, 1), Arc::new(limits));
        let endpoint = inbox.make_ref();
        Self { inbox, endpoint, witness: Witness::default(), runtime }
    }

    fn seat(&self, threads: Option<IsolatedExecutor>) -> LoopContext<Message> {
        let cx = EndpointContext::new(self.endpoint.clone(), Arc::new(()));
        LoopContext::new(Arc::clone(&self.inbox), cx, threads)
    }

    /// Runs the endpoint's loop as a task.
    fn start(&self, kind: Kind) -> JoinHandle<()> {
        let witness = self.witness.clone();
        match kind {
            Kind::Serial => spawn(Serial(witness).run(self.seat(None))),
            Kind::Concurrent | Kind::Isolated => self.start_concurrent(kind, Concurrent(witness)),
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
        let life = threads.spawn(endpoint.run(self.seat(Some(threads.clone()))));
        spawn(async { life.await.unwrap() })
    }

    /// Sends from a thread of its own.
    fn sender<T: Send + 'static>(
        &self,
        sender: u8,
        messages: u8,
        send: impl Fn(&RpcEndpointRef<Message>, Mark) -> T + Send + 'static,
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

/// A ref's send; gives what was accepted.
fn send(endpoint: &RpcEndpointRef<Message>, mark: Mark) -> Option<Mark> {
    match endpoint.send(Tell(mark)) {
        Ok(()) => Some(mark),
        Err(refused) => {
            assert_eq!(refused.error().kind(), ErrorKind::Stopped);
            None
        }
    }
}

/// A ref's ask to its end; gives what was answered.
fn ask(endpoint: &RpcEndpointRef<Message>, mark: Mark) -> Option<Mark> {
    match block_on(endpoint.ask(Ask(mark))) {
        Ok(answer) => {
            assert_eq!(answer, mark);
            Some(mark)
        }
        Err(error) => {
            // The handler was dropped with its loop.
            let dropped = error.kind() == ErrorKind::NoReply;
            assert!(dropped || error.kind() == ErrorKind::Stopped, "{error:?}");
            None
        }
    }
}

fn send_wait(endpoint: &RpcEndpointRef<Message>, mark: Mark) -> Option<Mark> {
    block_on(endpoint.send_wait(Tell(mark))).unwrap();
    Some(mark)
}

fn join(senders: impl IntoIterator<Item = thread::JoinHandle<Vec<Option<Mark>>>>) -> Vec<Mark> {
    senders.into_iter().flat_map(|sender| sender.join().unwrap()).flatten().collect()
}

/// Who posts while the loop goes to sleep wakes it: an ask has nothing else to end it.
fn posts_wake_the_loop(kind: Kind) {
    let room = Room::new(100);
    let life = room.start(kind);
    let accepted = join([room.sender(0, 2, ask), room.sender(1, 2, ask)]);
    assert_eq!(accepted.len(), 4);
    room.inbox.stop(StopCause::EndpointStopped);
    block_on(life).unwrap();
    room.witness.has_ended(kind, accepted);
}

/// A message is received while another is being handled.
fn handlers_meet(kind: Kind) {
    let room = Room::new(100);
    let life = room.start_concurrent(kind, Meeting(Barrier::new(2)));
    assert_eq!(join([room.sender(0, 2, ask), room.sender(1, 2, ask)]).len(), 4);
    room.inbox.stop(StopCause::EndpointStopped);
    block_on(life).unwrap();
}

/// What is accepted while the endpoint is stopped is handled before `on_stop`; what is refused
/// never.
fn stop_races_with_posts(kind: Kind) {
    let room = Room::new(100);
    let life = room.start(kind);
    let senders = [room.sender(0, 2, send), room.sender(1, 2, send), room.sender(2, 1, ask)];
    let inbox = Arc::clone(&room.inbox);
    let stopper = thread::spawn(move || inbox.stop(StopCause::EndpointStopped));
    block_on(life).unwrap();
    stopper.join().unwrap();
    room.witness.has_ended(kind, join(senders));
}

/// Who waits for room in a full inbox is told of it.
fn room_wakes_senders(kind: Kind) {
    let room = Room::new(1);
    let life = room.start(kind);
    let accepted = join([room.sender(0, 3, send_wait), room.sender(1, 3, send_wait)]);
    room.inbox.stop(StopCause::EndpointStopped);
    block_on(life).unwrap();
    room.witness.has_ended(kind, accepted);
}

/// When the loop's task is dropped, as its runtime does in the end, every ask still ends.
fn the_end_of_the_runtime_ends_asks(kind: Kind) {
    let room = Room::new(100);
    let life = room.start(kind);
    let senders = [room.sender(0, 2, ask), room.sender(1, 2, ask)];
    life.abort();
    let answered = join(senders);
    let life = room.witness.0.lock().unwrap();
    assert_eq!(life.complaints, [""; 0]);
    assert!(answered.iter().all(|mark| life.received.contains(mark)));
}

#[test]
fn post_wakes_loop_of_thread_safe_endpoint() {
    check(5000, || posts_wake_the_loop(Kind::Serial));
}

#[test]
fn post_wakes_loop_of_concurrent_endpoint() {
    check(5000, || posts_wake_the_loop(Kind::Concurrent));
}

#[test]
fn post_wakes_loop_of_isolated_endpoint() {
    check(2000, || posts_wake_the_loop(Kind::Isolated));
}

#[test]
fn concurrent_endpoint_receives_message_while_handling_another() {
    check(2000, || handlers_meet(Kind::Concurrent));
    check(2000, || handlers_meet(Kind::Isolated));
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
    check(5000, || room_wakes_senders(Kind::Serial));
    check(2000, || room_wakes_senders(Kind::Concurrent));
}

#[test]
fn asks_end_when_loop_task_is_dropped() {
    check(5000, || the_end_of_the_runtime_ends_asks(Kind::Serial));
    check(5000, || the_end_of_the_runtime_ends_asks(Kind::Concurrent));
}
