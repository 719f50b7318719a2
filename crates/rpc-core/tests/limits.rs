//! Limits of inboxes, route queues and messages; credit; cancelled asks. The peers are other
//! environments, and in one test a TCP client with hand-written envelopes.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{
    Greeting, Hello, HelloMessage, Keep, UndeliveredWatch, address, bye, client, envelope, hi,
    next, server, setting, soon,
};
use prost::Message;
use rpc_core::{
    EndpointContext, ErrorKind, RpcAddress, RpcConf, RpcEndpointRef, RpcEnv, RpcError,
    ThreadSafeRpcEndpoint,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};

/// An endpoint that handles one message for each permit, and sends its text to the test.
struct Gated {
    permits: Arc<Semaphore>,
    handled: mpsc::UnboundedSender<String>,
}

impl ThreadSafeRpcEndpoint for Gated {
    type Message = HelloMessage;

    async fn receive(
        &mut self,
        message: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        self.permits.acquire().await.map_err(RpcError::application)?.forget();
        let (text, context) = match message {
            HelloMessage::SayHi(hi, context) => (hi.msg, context),
            HelloMessage::SayBye(bye, context) => (bye.msg, context),
        };
        self.handled.send(text.clone()).map_err(RpcError::application)?;
        context.reply(Greeting { text })
    }
}

struct Gate {
    permits: Arc<Semaphore>,
    handled: mpsc::UnboundedReceiver<String>,
}

fn gated() -> (Gated, Gate) {
    let permits = Arc::new(Semaphore::new(0));
    let (tx, handled) = mpsc::unbounded_channel();
    (Gated { permits: Arc::clone(&permits), handled: tx }, Gate { permits, handled })
}

async fn server_with(conf: RpcConf) -> RpcEnv {
    RpcEnv::builder("server").bind("127.0.0.1:0").conf(conf).start().await.unwrap()
}

async fn lookup(client: &RpcEnv, server: &RpcEnv, name: &str) -> RpcEndpointRef<HelloMessage> {
    soon(client.setup_endpoint_ref::<HelloMessage>(address(server), name)).await.unwrap()
}

#[tokio::test]
async fn full_inbox_returns_sends_and_fails_asks() {
    let env = server_with(setting("spark.rpc.inbox.maxMessages", "3")).await;
    let (endpoint, mut gate) = gated();
    let slow = env.setup_endpoint("slow", endpoint).unwrap();
    for n in 0..3 {
        slow.send(hi(&n.to_string())).unwrap();
    }
    let rejected = slow.send(hi("3")).unwrap_err();
    assert_eq!(rejected.error().kind(), ErrorKind::Limit);
    assert!(rejected.error().is_retryable());
    assert!(rejected.to_string().contains("spark.rpc.inbox.maxMessages"), "{rejected}");
    assert_eq!(rejected.into_message().msg, "3");
    let error = soon(slow.ask(hi("4"))).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Limit, true));

    // A waiting send completes as soon as the inbox has capacity.
    let waiting = slow.clone();
    let waiting =
        tokio::spawn(async move { waiting.send_wait(hi("5")).await.map_err(RpcError::from) });
    gate.permits.add_permits(1);
    soon(waiting).await.unwrap().unwrap();
    gate.permits.add_permits(10);
    for expected in ["0", "1", "2", "5"] {
        assert_eq!(next(&mut gate.handled).await, expected);
    }
}

#[tokio::test]
async fn send_wait_fails_when_endpoint_stops() {
    let env = server_with(setting("spark.rpc.inbox.maxMessages", "1")).await;
    let (endpoint, gate) = gated();
    let slow = env.setup_endpoint("slow", endpoint).unwrap();
    slow.send(hi("0")).unwrap();
    let mut waiting = std::pin::pin!(slow.send_wait(hi("1")));
    assert!(futures::poll!(waiting.as_mut()).is_pending());
    env.stop(&slow);
    assert_eq!(soon(waiting).await.unwrap_err().error().kind(), ErrorKind::Stopped);
    gate.permits.add_permits(1);
}

/// All messages arrive in order, and the number of messages held at the receiver is bounded.
#[tokio::test]
async fn slow_remote_endpoint_slows_down_fast_sender() {
    let conf = setting("spark.rpc.inbox.maxMessages", "100");
    let (server, client) = (server_with(conf).await, client().await);
    let (endpoint, mut gate) = gated();
    server.setup_endpoint("slow", endpoint).unwrap();
    server.setup_endpoint("other", Hello).unwrap();
    let slow = lookup(&client, &server, "slow").await;
    let other = lookup(&client, &server, "other").await;
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let total = 70_000;
    let sender = tokio::spawn(async move {
        for n in 0..total {
            slow.send_wait(hi(&n.to_string())).await.map_err(RpcError::from)?;
            counter.fetch_add(1, Ordering::Relaxed);
        }
        Ok::<_, RpcError>(slow)
    });
    // The sender waits when its route queue is full; other endpoints on the connection reply.
    soon(async {
        while sent.load(Ordering::Relaxed) < 65_536 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(soon(other.ask(hi("neo"))).await.unwrap().text, "hi, neo");
    assert!(sent.load(Ordering::Relaxed) <= 65_536 + 200, "{}", sent.load(Ordering::Relaxed));

    gate.permits.add_permits(total);
    for n in 0..total {
        assert_eq!(next(&mut gate.handled).await, n.to_string());
    }
    let slow = soon(sender).await.unwrap().unwrap();
    gate.permits.add_permits(1);
    assert_eq!(soon(slow.ask(hi("last"))).await.unwrap().text, "last");
}

/// Cancelled asks leave the queue also while no credit arrives.
#[tokio::test]
async fn cancelled_asks_free_capacity_of_route_queue() {
    let server = server_with(setting("spark.rpc.inbox.maxMessages", "1")).await;
    let conf = setting("spark.rpc.route.maxQueuedMessages", "2");
    let client = RpcEnv::builder("client").client_mode().conf(conf).start().await.unwrap();
    let (endpoint, mut gate) = gated();
    server.setup_endpoint("slow", endpoint).unwrap();
    let slow = lookup(&client, &server, "slow").await;
    let first = slow.ask(hi("first"));
    let (second, third) = (slow.ask(hi("second")), slow.ask(hi("third")));
    assert_eq!(slow.send(hi("rejected")).unwrap_err().error().kind(), ErrorKind::Limit);
    let mut waiting = std::pin::pin!(slow.send_wait(hi("fourth")));
    assert!(futures::poll!(waiting.as_mut()).is_pending());
    drop(second);
    soon(waiting).await.unwrap();
    assert_eq!(slow.send(hi("rejected")).unwrap_err().error().kind(), ErrorKind::Limit);
    drop(third);
    slow.send(hi("fifth")).unwrap();
    gate.permits.add_permits(3);
    for expected in ["first", "fourth", "fifth"] {
        assert_eq!(next(&mut gate.handled).await, expected);
    }
    soon(first).await.unwrap();
}

#[tokio::test]
async fn sender_of_rejected_one_way_message_is_notified() {
    let (server, client) = (server().await, client().await);
    let (tx, mut undelivered) = mpsc::unbounded_channel();
    client.setup_endpoint("undelivered", UndeliveredWatch(tx)).unwrap();
    let hello = server.setup_endpoint("hello", Hello).unwrap();
    let remote = lookup(&client, &server, "hello").await;
    server.stop(&hello);
    remote.send(hi("neo")).unwrap();
    let (error, from) = next(&mut undelivered).await;
    assert_eq!((error.kind(), from), (ErrorKind::EndpointNotFound, address(&server)));
    assert!(error.to_string().contains("hello.Hello/SayHi to hello"), "{error}");
    // Rejected messages return their credit: more messages pass than the initial credit covers.
    for _ in 0..200 {
        remote.send(bye("neo")).unwrap();
    }
    for _ in 0..200 {
        assert_eq!(next(&mut undelivered).await.0.kind(), ErrorKind::EndpointNotFound);
    }
}

/// An endpoint that handles one message for each permit, and counts undelivered messages.
struct CountsUndelivered {
    gate: Arc<Semaphore>,
    undelivered: usize,
}

impl ThreadSafeRpcEndpoint for CountsUndelivered {
    type Message = HelloMessage;
    async fn receive(
        &mut self,
        message: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        let (HelloMessage::SayHi(_, context) | HelloMessage::SayBye(_, context)) = message;
        self.gate.acquire().await.map_err(RpcError::application)?.forget();
        context.reply(Greeting { text: self.undelivered.to_string() })
    }
    async fn on_undelivered(
        &mut self,
        _: RpcError,
        _: RpcAddress,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        self.undelivered += 1;
        Ok(())
    }
}

#[tokio::test]
async fn busy_endpoint_queues_at_most_1024_undelivered_notices() {
    let (server, client) = (server().await, client().await);
    let gate = Arc::new(Semaphore::new(0));
    let late = client
        .setup_endpoint("late", CountsUndelivered { gate: Arc::clone(&gate), undelivered: 0 })
        .unwrap();
    let first = late.ask(hi("keeps the endpoint busy"));
    let gone = server.setup_endpoint("gone", Hello).unwrap();
    let remote = lookup(&client, &server, "gone").await;
    server.stop(&gone);
    for _ in 0..3000 {
        soon(remote.send_wait(hi("neo"))).await.unwrap();
    }
    soon(async {
        while client.snapshot().undelivered < 3000 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let last = late.ask(hi("neo"));
    gate.add_permits(2);
    assert_eq!(soon(first).await.unwrap().text, "0");
    assert_eq!(soon(last).await.unwrap().text, "1024");
}

/// The frame of a one-way message (OneWayMessage of Spark's `Message.Type`).
fn one_way(envelope: &[u8]) -> Vec<u8> {
    let mut frame = (13 + envelope.len() as u64).to_be_bytes().to_vec();
    frame.push(9);
    frame.extend((envelope.len() as u32).to_be_bytes());
    frame.extend(envelope);
    frame
}

/// A rejected message causes a notice and returns its credit, so that the peer can flood.
#[tokio::test]
async fn peer_that_does_not_read_cannot_grow_notice_queue() {
    let server = server_with(setting("spark.rpc.io.maxWriteQueueSize", "4k")).await;
    let mut peer = TcpStream::connect(address(&server).host_port()).await.unwrap();
    // One-way messages with a path of 400 bytes, which each notice repeats.
    let path = "x".repeat(400);
    let first = envelope::message(1, "missing", &path, b"").encode_to_vec();
    let others = envelope::message(1, "", &path, b"").encode_to_vec();
    peer.write_all(&one_way(&envelope::hello(7).envelope())).await.unwrap();
    peer.write_all(&one_way(&first)).await.unwrap();
    let frames = one_way(&others).repeat(1000);
    for _ in 0..100 {
        // The server may have closed the connection already.
        if peer.write_all(&frames).await.is_err() {
            break;
        }
    }
    // The peer reads now: a part of the notices, then the end of the connection.
    let mut notices = Vec::new();
    let _ = soon(peer.read_to_end(&mut notices)).await;
    assert!(!notices.is_empty() && notices.len() < 100_000 * 400, "{}", notices.len());
    let (client, endpoint) = (client().await, Hello);
    server.setup_endpoint("hello", endpoint).unwrap();
    assert_eq!(
        soon(lookup(&client, &server, "hello").await.ask(hi("neo"))).await.unwrap().text,
        "hi, neo"
    );
}

#[tokio::test]
async fn context_is_cancelled_when_caller_cancels() {
    let (server, client) = (server().await, client().await);
    let (tx, mut kept) = mpsc::unbounded_channel();
    let local = server.setup_endpoint("keep", Keep(tx)).unwrap();
    let remote = lookup(&client, &server, "keep").await;
    for keep in [&local, &remote] {
        // The caller drops its future.
        let ask = keep.ask(hi("neo"));
        let context = next(&mut kept).await;
        assert!(!context.is_cancelled());
        let remaining = context.remaining().unwrap();
        assert!(
            remaining > Duration::from_secs(110) && remaining <= Duration::from_secs(120),
            "{remaining:?}"
        );
        drop(ask);
        soon(context.cancelled()).await;
        assert!(context.is_cancelled());
        context.reply(Greeting::default()).unwrap();

        // The timeout of the ask elapses.
        let ask = tokio::spawn(keep.ask_with_timeout(hi("neo"), Duration::from_millis(50)));
        let context = next(&mut kept).await;
        soon(context.cancelled()).await;
        assert!(context.is_cancelled());
        assert!(soon(ask).await.unwrap().unwrap_err().is_timeout());
    }
    // The caller's environment shuts down.
    let ask = tokio::spawn(remote.ask(hi("neo")));
    let context = next(&mut kept).await;
    client.shutdown().await;
    soon(context.cancelled()).await;
    assert!(soon(ask).await.unwrap().is_err());

    // A one-way message has no caller that could cancel it.
    local.send(hi("neo")).unwrap();
    let context = next(&mut kept).await;
    assert!(!context.is_cancelled() && context.remaining().is_none());
    assert!(futures::poll!(std::pin::pin!(context.cancelled())).is_pending());
}

#[tokio::test]
async fn cancelled_asks_are_discarded_before_handling() {
    let (server, client) = (server().await, client().await);
    let (endpoint, mut gate) = gated();
    let local = server.setup_endpoint("slow", endpoint).unwrap();
    let remote = lookup(&client, &server, "slow").await;
    for slow in [&local, &remote] {
        let first = tokio::spawn(slow.ask(hi("first")));
        let second = slow.ask(hi("second"));
        let third = slow.ask_with_timeout(hi("third"), Duration::from_millis(20));
        let fourth = tokio::spawn(slow.ask(hi("fourth")));
        assert!(soon(third).await.unwrap_err().is_timeout());
        drop(second);
        // Notices and messages keep their order, so a later reply on the connection shows that the
        // cancel notice has arrived.
        let lookup =
            soon(client.setup_endpoint_ref::<HelloMessage>(address(&server), "slow")).await;
        assert!(lookup.is_ok());
        gate.permits.add_permits(2);
        assert_eq!(next(&mut gate.handled).await, "first");
        assert_eq!(next(&mut gate.handled).await, "fourth");
        assert!(soon(first).await.unwrap().is_ok() && soon(fourth).await.unwrap().is_ok());
    }
}

/// An endpoint that replies with the result of an ask of another endpoint.
struct Forward(RpcEndpointRef<HelloMessage>);

impl ThreadSafeRpcEndpoint for Forward {
    type Message = HelloMessage;
    async fn receive(
        &mut self,
        message: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        let (HelloMessage::SayHi(_, context) | HelloMessage::SayBye(_, context)) = message;
        context.reply(self.0.ask(hi("inner")).await?)
    }
}

#[tokio::test]
async fn nested_ask_inherits_remaining_deadline() {
    let (server, client) = (server().await, client().await);
    let (tx, mut kept) = mpsc::unbounded_channel();
    let keep = server.setup_endpoint("keep", Keep(tx)).unwrap();
    let local = server.setup_endpoint("forward", Forward(keep)).unwrap();
    let remote = lookup(&client, &server, "forward").await;
    for forward in [&local, &remote] {
        let ask = tokio::spawn(forward.ask_with_timeout(hi("outer"), Duration::from_secs(9)));
        let inner = next(&mut kept).await;
        assert!(inner.remaining().unwrap() <= Duration::from_secs(9), "{:?}", inner.remaining());
        inner.reply(Greeting { text: "done".to_owned() }).unwrap();
        assert_eq!(soon(ask).await.unwrap().unwrap().text, "done");
    }
}

/// An endpoint that replies with as many bytes as the request says.
struct Repeat;

impl ThreadSafeRpcEndpoint for Repeat {
    type Message = HelloMessage;
    async fn receive(
        &mut self,
        message: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        let (HelloMessage::SayHi(hi, context), ..) = (message,) else { return Ok(()) };
        let length = hi.msg.parse().unwrap_or(hi.msg.len());
        context.reply(Greeting { text: "x".repeat(length) })
    }
}

/// In Spark the reply cannot be serialized; here it exceeds the maximum message size.
#[tokio::test]
async fn rpc_env_24_oversized_reply_fails_ask() {
    let server = server_with(setting("spark.rpc.message.maxSize", "1")).await;
    let client = client().await;
    let local = server.setup_endpoint("repeat", Repeat).unwrap();
    let remote = lookup(&client, &server, "repeat").await;
    let too_large = (1 << 20).to_string();
    let error = soon(remote.ask(hi(&too_large))).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.is_retryable(), error.is_remote()),
        (ErrorKind::Limit, false, true)
    );
    assert!(error.to_string().contains("spark.rpc.message.maxSize"), "{error}");
    assert_eq!(soon(remote.ask(hi("1000"))).await.unwrap().text.len(), 1000);
    // The limit does not apply to replies within the process.
    assert_eq!(soon(local.ask(hi(&too_large))).await.unwrap().text.len(), 1 << 20);
}

/// An endpoint that fails with an error of as many bytes as the request says.
struct Complain;

impl ThreadSafeRpcEndpoint for Complain {
    type Message = HelloMessage;
    async fn receive(
        &mut self,
        message: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        let (HelloMessage::SayHi(hi, _context), ..) = (message,) else { return Ok(()) };
        Err(RpcError::application("x".repeat(hi.msg.parse().map_err(RpcError::application)?)))
    }
}

#[tokio::test]
async fn rpc_env_24_oversized_failure_fails_ask() {
    let server = server_with(setting("spark.rpc.message.maxSize", "1")).await;
    let client = client().await;
    server.setup_endpoint("complain", Complain).unwrap();
    let remote = lookup(&client, &server, "complain").await;
    let error = soon(remote.ask(hi(&(1 << 20).to_string()))).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.is_retryable(), error.is_remote()),
        (ErrorKind::Limit, false, true)
    );
    assert!(error.to_string().contains("spark.rpc.message.maxSize"), "{error}");
    let error = soon(remote.ask(hi("1000"))).await.unwrap_err();
    assert_eq!((error.kind(), error.to_string().len()), (ErrorKind::Application, 1000));
}

#[tokio::test]
async fn oversized_message_is_returned_to_sender() {
    let (server, conf) = (server().await, setting("spark.rpc.message.maxSize", "1"));
    let client = RpcEnv::builder("client").client_mode().conf(conf).start().await.unwrap();
    server.setup_endpoint("repeat", Repeat).unwrap();
    let remote = lookup(&client, &server, "repeat").await;
    let large = "x".repeat(1 << 20);
    let rejected = soon(remote.send_wait(hi(&large))).await.unwrap_err();
    assert_eq!(
        (rejected.error().kind(), rejected.error().is_retryable()),
        (ErrorKind::Limit, false)
    );
    assert_eq!(rejected.into_message().msg.len(), 1 << 20);
    let error = soon(remote.ask(hi(&large))).await.unwrap_err();
    assert!(error.to_string().contains("spark.rpc.message.maxSize"), "{error}");
    assert_eq!(soon(remote.ask(hi("fits"))).await.unwrap().text, "xxxx");
}

/// The credit of a message that the transport has skipped must not block the messages behind it.
#[tokio::test]
async fn fault_t6_asks_work_after_one_over_max_request_size() {
    let conf = RpcConf::new().with("spark.rpc.io.maxRequestSize", "1m").unwrap();
    let server = RpcEnv::builder("server").bind("127.0.0.1:0").conf(conf).start().await.unwrap();
    server.setup_endpoint("hello", Hello).unwrap();
    let client = common::client().await;
    let hello = soon(client.lookup::<HelloMessage>(address(&server), "hello")).await.unwrap();
    for round in 0..3 {
        let error = soon(hello.ask(hi(&"x".repeat(2 << 20)))).await.unwrap_err();
        assert!(!error.is_retryable(), "{round}: {error:#}");
        assert!(format!("{error:#}").contains("maxRequestSize"), "{round}: {error:#}");
        // The connection is closed then, and opened again by the next message.
        let small = async {
            loop {
                match hello.ask(hi("neo")).await {
                    Err(error) if error.kind() == ErrorKind::Network => {}
                    reply => return reply,
                }
            }
        };
        assert_eq!(soon(small).await.unwrap().text, "hi, neo");
    }
}
