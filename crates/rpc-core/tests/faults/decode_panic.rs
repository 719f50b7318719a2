//! Row `fault_c3`: `RpcMessage::decode` panics for single requests, and only these requests fail.

use rpc_core::{
    EndpointContext, EndpointRef, ErrorKind, IncomingRequest, RpcEndpointRef, RpcEnv, RpcError,
    RpcMessage, ThreadSafeRpcEndpoint,
};
use tokio::sync::mpsc;

use crate::common::{Greeting, Hello, HelloMessage, SayBye, SayHi, address, client, hi, server};
use crate::fixture::{NAME, ask, look_up, promptly, watch_undelivered};

/// More messages than the initial credit window has.
const MANY: usize = 200;

/// Requests of `hello.Hello` whose decoder panics when the text demands it.
struct PanickingMessage(HelloMessage);

/// The texts for which the decoder panics before and after it takes the context.
const BEFORE_CONTEXT: &str = "panic before context";
const AFTER_CONTEXT: &str = "panic after context";

impl RpcMessage for PanickingMessage {
    const SERVICES: &'static [&'static str] = HelloMessage::SERVICES;

    fn decode(mut request: IncomingRequest<'_>) -> Result<Self, RpcError> {
        let text = match request.method() {
            "SayHi" => request.decode::<SayHi>()?.msg,
            _ => request.decode::<SayBye>()?.msg,
        };
        assert!(!text.starts_with(BEFORE_CONTEXT), "the decoder panics as the message demands");
        let context = request.context();
        assert!(!text.starts_with(AFTER_CONTEXT), "the decoder panics as the message demands");
        Ok(Self(HelloMessage::SayHi(SayHi { msg: text }, context)))
    }
}

/// Replies to each request, and sends its text to the test.
struct Echo(mpsc::UnboundedSender<String>);

impl ThreadSafeRpcEndpoint for Echo {
    type Message = PanickingMessage;

    async fn receive(
        &mut self,
        PanickingMessage(message): PanickingMessage,
        _: &EndpointContext<PanickingMessage>,
    ) -> Result<(), RpcError> {
        let HelloMessage::SayHi(SayHi { msg: text }, context) = message else { return Ok(()) };
        let _ = self.0.send(text.clone());
        context.reply(Greeting { text })
    }
}

struct Case {
    server: RpcEnv,
    client: RpcEnv,
    remote: RpcEndpointRef<HelloMessage>,
    received: mpsc::UnboundedReceiver<String>,
}

impl Case {
    async fn start() -> Self {
        let (server, client) = (server().await, client().await);
        let (sender, received) = mpsc::unbounded_channel();
        server.setup_endpoint(NAME, Echo(sender)).unwrap();
        let remote = look_up(&client, &server).await;
        Self { server, client, remote, received }
    }

    /// Checks that more valid asks and sends arrive than the initial credit covers.
    async fn assert_serves(&mut self) {
        let remote = self.remote.clone();
        assert_serves(&remote, &mut self.received).await;
    }
}

async fn assert_serves(
    remote: &RpcEndpointRef<HelloMessage>,
    received: &mut mpsc::UnboundedReceiver<String>,
) {
    for n in 0..MANY {
        let (asked, sent) = (format!("ask {n}"), format!("send {n}"));
        let reply = promptly(&format!("the reply to good ask {n}"), ask(remote, &asked)).await;
        assert_eq!(reply.unwrap(), asked);
        promptly("send_wait", remote.send_wait(hi(&sent))).await.unwrap();
        for expected in [asked, sent] {
            let text = promptly("the endpoint receives a good message", received.recv()).await;
            assert_eq!(text.unwrap(), expected);
        }
    }
}

/// Asks for a panic of the decoder, and checks that the failure names it.
async fn assert_ask_fails(remote: &RpcEndpointRef<HelloMessage>, n: usize, text: &str) {
    let asked = promptly(&format!("the failure of ask {n} ({text:.20})"), ask(remote, text)).await;
    let error = asked.unwrap_err();
    let unrelated = [ErrorKind::Timeout, ErrorKind::Network, ErrorKind::Limit, ErrorKind::Stopped];
    assert!(error.is_remote() && !unrelated.contains(&error.kind()), "{error:?}");
    assert!(error.to_string().contains("panic"), "{error:?}");
}

async fn assert_asks_fail_alone(text: &str) {
    let mut case = Case::start().await;
    for n in 0..MANY {
        assert_ask_fails(&case.remote, n, text).await;
    }
    case.assert_serves().await;
}

#[tokio::test]
async fn fault_c3_asks_fail_alone_when_decode_panics_before_context() {
    assert_asks_fail_alone(BEFORE_CONTEXT).await;
}

#[tokio::test]
async fn fault_c3_asks_fail_alone_when_decode_panics_after_context() {
    assert_asks_fail_alone(AFTER_CONTEXT).await;
}

/// One message of 64 KiB uses up the initial credit in bytes.
#[tokio::test]
async fn fault_c3_large_ask_fails_alone_when_decode_panics() {
    for kind in [BEFORE_CONTEXT, AFTER_CONTEXT] {
        assert_asks_fail_alone(&format!("{kind}{}", "x".repeat(64 << 10))).await;
    }
}

#[tokio::test]
async fn fault_c3_sends_are_reported_undelivered_when_decode_panics() {
    for text in [BEFORE_CONTEXT, AFTER_CONTEXT] {
        let mut case = Case::start().await;
        let mut undelivered = watch_undelivered(&case.client);
        for n in 0..MANY {
            promptly("send_wait", case.remote.send_wait(hi(text))).await.unwrap();
            let error =
                promptly(&format!("report {n} of an undelivered send"), undelivered.recv()).await;
            let (error, _) = error.unwrap();
            assert!(error.to_string().contains("hello.Hello/SayHi"), "{error}");
        }
        case.assert_serves().await;
        assert_eq!(case.client.snapshot().undelivered, MANY as u64);
    }
}

/// All asks are sent together: each valid one succeeds, each other one fails.
#[tokio::test]
async fn fault_c3_interleaved_good_asks_succeed_when_decode_panics() {
    let mut case = Case::start().await;
    let mut asks = Vec::new();
    for n in 0..MANY {
        asks.push((n, ask(&case.remote, &format!("{BEFORE_CONTEXT} {n}")), true));
        asks.push((n, ask(&case.remote, &format!("good {n}")), false));
        asks.push((n, ask(&case.remote, &format!("{AFTER_CONTEXT} {n}")), true));
        case.remote.send(hi(&format!("{BEFORE_CONTEXT} {n}"))).unwrap();
    }
    for (n, reply, fails) in asks {
        let reply = promptly(&format!("the end of ask {n}, decode panics: {fails}"), reply).await;
        match reply {
            Ok(text) => assert!(!fails && text == format!("good {n}"), "{text}"),
            Err(error) => assert!(fails && !error.is_timeout(), "{error:?}"),
        }
    }
    while case.received.try_recv().is_ok() {}
    case.assert_serves().await;
}

/// Another endpoint on the connection still replies, and so does a successor of the endpoint.
#[tokio::test]
async fn fault_c3_successor_serves_connection_after_decode_panics() {
    let case = Case::start().await;
    case.server.setup_endpoint("other", Hello).unwrap();
    let other = case.client.setup_endpoint_ref::<HelloMessage>(address(&case.server), "other");
    let other = promptly("the lookup", other).await.unwrap();
    for _ in 0..MANY {
        case.remote.send(hi(AFTER_CONTEXT)).unwrap();
        let reply = promptly("another endpoint's reply", ask(&other, "neo")).await;
        assert_eq!(reply.unwrap(), "hi, neo");
    }
    let local = case.server.setup_endpoint_ref::<PanickingMessage>(address(&case.server), NAME);
    let local = promptly("the local lookup", local).await.unwrap();
    case.server.stop(&local);
    let (sender, mut received) = mpsc::unbounded_channel();
    case.server.setup_endpoint(NAME, Echo(sender)).unwrap();
    assert_serves(&case.remote, &mut received).await;
}

/// The endpoint is in a client-mode environment; the server asks over the client's connection.
#[tokio::test]
async fn fault_c3_client_mode_endpoint_goes_on_when_decode_panics() {
    let (master, driver) = (server().await, client().await);
    master.setup_endpoint("hello", Hello).unwrap();
    let hello = driver.setup_endpoint_ref::<HelloMessage>(address(&master), "hello");
    let hello = promptly("the lookup", hello).await.unwrap();
    promptly("the driver's ask", ask(&hello, "connect")).await.unwrap();
    let (sender, mut received) = mpsc::unbounded_channel();
    let local = driver.setup_endpoint(NAME, Echo(sender)).unwrap();
    let field = EndpointRef::try_from(&local).unwrap();
    let remote = master.resolve::<HelloMessage>(&field).unwrap();
    for n in 0..MANY {
        assert_ask_fails(&remote, n, BEFORE_CONTEXT).await;
    }
    assert_serves(&remote, &mut received).await;
}
