//! Row C6: encoders and decoders panic in requests and replies that cross the network.

use std::panic::{AssertUnwindSafe, catch_unwind};

use prost::bytes::{Buf, BufMut};
use prost::encoding::{DecodeContext, WireType};
use prost::{DecodeError, Message};
use rpc_core::{
    DecodeBuf, EncodeBuf, EndpointContext, ErrorKind, IncomingRequest, Method, RpcCallContext,
    RpcEndpointRef, RpcEnv, RpcError, RpcMessage, RpcRequest, ThreadSafeRpcEndpoint,
    TracePropagator,
};
use tracing::Span;

use crate::common::{Greeting, Hello, HelloMessage, client, hi, server, setting};
use crate::fixture::{NAME, ask, look_up, promptly, watch_undelivered};

/// The function of a request that panics in the process of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Panics {
    Encode,
    DecodeReply,
    Drop,
}

struct Request(Panics);

impl Drop for Request {
    fn drop(&mut self) {
        assert!(self.0 != Panics::Drop || std::thread::panicking(), "drop panics");
    }
}

impl Clone for Request {
    fn clone(&self) -> Self {
        Self(self.0)
    }
}

macro_rules! impl_request {
    ($request:ty, $panics:expr) => {
        impl RpcRequest<HelloMessage> for $request {
            type Reply = Greeting;
            const METHOD: Option<Method> = Some(Method::new("/hello.Hello/SayHi"));
            fn into_message(self, context: RpcCallContext<Greeting>) -> HelloMessage {
                HelloMessage::SayHi(hi("local"), context)
            }
            fn encode(&self, body: &mut EncodeBuf<'_>) -> Result<(), RpcError> {
                body.put_message(&hi("neo"))?;
                assert!($panics(self) != Panics::Encode, "encode panics");
                Ok(())
            }
            fn decode_reply(body: DecodeBuf) -> Result<Greeting, RpcError> {
                assert!(!std::any::type_name::<Self>().contains("BadDecode"), "decode panics");
                body.decode()
            }
        }
    };
}

impl_request!(Request, |request: &Request| request.0);

#[derive(Clone)]
struct BadDecode;
impl_request!(BadDecode, |_: &BadDecode| Panics::DecodeReply);

async fn start() -> (RpcEnv, RpcEnv, RpcEndpointRef<HelloMessage>) {
    let server = server().await;
    let conf = setting("spark.rpc.ask.maxPending", "4");
    let client = RpcEnv::builder("client").client_mode().conf(conf).start().await.unwrap();
    server.setup_endpoint(NAME, Hello).unwrap();
    let remote = look_up(&client, &server).await;
    (server, client, remote)
}

/// Checks that no ask is counted, and that more asks succeed than may be pending.
async fn assert_goes_on(client: &RpcEnv, remote: &RpcEndpointRef<HelloMessage>) {
    assert_eq!(client.snapshot().pending_asks, 0);
    for _ in 0..10 {
        let text = promptly("the reply to a good ask", ask(remote, "neo")).await.unwrap();
        assert_eq!(text, "hi, neo");
    }
}

#[tokio::test]
async fn fault_c6_asks_are_not_counted_after_encode_or_drop_panics() {
    for panics in [Panics::Encode, Panics::Drop] {
        let (_server, client, remote) = start().await;
        for _ in 0..20 {
            catch_unwind(AssertUnwindSafe(|| remote.ask(Request(panics)))).unwrap_err();
            let _ = catch_unwind(AssertUnwindSafe(|| drop(remote.send(Request(panics)))));
            let (one, two, three) = (remote.clone(), remote.clone(), remote.clone());
            let tasks = [
                tokio::spawn(async move { drop(one.send_wait(Request(panics)).await) }),
                tokio::spawn(async move { drop(two.ask_with_retry(Request(panics)).await) }),
                tokio::task::spawn_blocking(move || {
                    std::thread::spawn(move || drop(three.ask_sync(Request(panics)))).join().ok();
                }),
            ];
            for task in tasks {
                let _ = promptly("a request that panics", task).await;
            }
        }
        assert_goes_on(&client, &remote).await;
    }
}

#[tokio::test]
async fn fault_c6_ask_fails_when_decode_reply_panics() {
    let (_server, client, remote) = start().await;
    for _ in 0..10 {
        let error = promptly("the failure", remote.ask(BadDecode)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Panic, "{error:?}");
        assert!(error.peer().is_some(), "{error:?}");
    }
    assert_goes_on(&client, &remote).await;
}

/// A reply that panics when it is encoded.
#[derive(Debug, Default)]
struct BadReply;

impl Message for BadReply {
    fn encode_raw(&self, _: &mut impl BufMut) {
        panic!("the reply cannot be encoded")
    }
    fn merge_field(
        &mut self,
        _: u32,
        _: WireType,
        _: &mut impl Buf,
        _: DecodeContext,
    ) -> Result<(), DecodeError> {
        Ok(())
    }
    fn encoded_len(&self) -> usize {
        2
    }
    fn clear(&mut self) {}
}

/// Replies with a value that cannot be encoded, inside of `receive` or in a task.
struct RepliesBadly;

struct Badly(HelloMessage, Option<RpcCallContext<BadReply>>);

impl RpcMessage for Badly {
    const SERVICES: &'static [&'static str] = HelloMessage::SERVICES;
    fn decode(mut request: IncomingRequest<'_>) -> Result<Self, RpcError> {
        if request.method() == "SayHi" {
            return HelloMessage::decode(request).map(|message| Self(message, None));
        }
        let context = request.context();
        // An unused message: its context belongs to no request.
        Ok(Self(HelloMessage::SayHi(hi("in a task"), request.context()), Some(context)))
    }
}

impl ThreadSafeRpcEndpoint for RepliesBadly {
    type Message = Badly;
    async fn receive(
        &mut self,
        Badly(message, context): Badly,
        _: &EndpointContext<Badly>,
    ) -> Result<(), RpcError> {
        match (message, context) {
            (_, Some(context)) => context.reply(BadReply),
            (HelloMessage::SayHi(hi, context), None) if hi.msg == "fail" => {
                drop(tokio::spawn(async move { context.send_failure(unprintable()) }));
                Ok(())
            }
            (HelloMessage::SayHi(_, context), None) => {
                context.reply(Greeting { text: "good".to_owned() })
            }
            (HelloMessage::SayBye(..), None) => Ok(()),
        }
    }
}

/// Makes an error whose source panics when it is printed.
fn unprintable() -> RpcError {
    #[derive(Debug)]
    struct Outer(Inner);
    #[derive(Debug)]
    struct Inner;
    impl std::fmt::Display for Outer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("outer")
        }
    }
    impl std::error::Error for Outer {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }
    impl std::fmt::Display for Inner {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            panic!("cannot be printed")
        }
    }
    impl std::error::Error for Inner {}
    RpcError::application(Outer(Inner))
}

#[tokio::test]
async fn fault_c6_ask_fails_as_panic_when_its_response_cannot_be_encoded() {
    let (server, client) = (server().await, client().await);
    server.setup_endpoint(NAME, RepliesBadly).unwrap();
    let remote = look_up(&client, &server).await;
    for _ in 0..10 {
        let bad = remote.ask(crate::common::bye("x"));
        let error = promptly("the failure of a bad reply", bad).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Panic, "{error:?}");
        let bad = promptly("the failure of a bad error", ask(&remote, "fail")).await;
        assert_eq!(bad.unwrap_err().kind(), ErrorKind::Panic);
        assert_eq!(promptly("a good ask", ask(&remote, "neo")).await.unwrap(), "good");
    }
    assert_eq!(client.snapshot().pending_asks, 0);
    assert_eq!(server.snapshot().inbox_bytes, 0);
}

/// A propagator that panics for every message that the peer traces.
struct BadTracer {
    is_sender: bool,
}

impl TracePropagator for BadTracer {
    fn current_traceparent(&self) -> Option<String> {
        self.is_sender.then(|| "traced".to_owned())
    }
    fn start_span(&self, _: &str, _: &str) -> Span {
        assert!(self.is_sender, "start_span panics");
        Span::none()
    }
}

#[tokio::test]
async fn fault_c6_messages_fail_alone_when_start_span_panics() {
    let server = RpcEnv::builder("server").bind("127.0.0.1:0");
    let server = server.trace_propagator(BadTracer { is_sender: false }).start().await.unwrap();
    server.setup_endpoint(NAME, Hello).unwrap();
    let traced = RpcEnv::builder("traced").client_mode();
    let traced = traced.trace_propagator(BadTracer { is_sender: true }).start().await.unwrap();
    let untraced = client().await;
    let good = look_up(&untraced, &server).await;
    // A lookup is a message, too, so the ref comes from a field.
    let field = rpc_core::EndpointRef::try_from(&good).unwrap();
    let remote = traced.resolve::<HelloMessage>(&field).unwrap();
    let mut undelivered = watch_undelivered(&traced);
    for _ in 0..200 {
        let error = promptly("the failure", ask(&remote, "neo")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Panic, "{error:?}");
        promptly("send_wait", remote.send_wait(hi("neo"))).await.unwrap();
        promptly("the report", undelivered.recv()).await.unwrap();
    }
    assert_eq!(promptly("an untraced ask", ask(&good, "neo")).await.unwrap(), "hi, neo");
    assert_eq!(server.snapshot().inbox_bytes, 0);
}
