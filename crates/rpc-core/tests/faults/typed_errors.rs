//! Row U5: the code and the details of an error are the same for local and for remote callers.
//! Row C12: errors of messages that are nested too deeply.

use prost::Message;
use rpc_core::{
    DecodeBuf, EncodeBuf, EndpointContext, ErrorKind, IncomingRequest, Method, RpcAddress,
    RpcCallContext, RpcConf, RpcEndpointRef, RpcEnv, RpcError, RpcMessage, RpcRequest,
    ThreadSafeRpcEndpoint,
};

use crate::common::{Greeting, HelloMessage, bye, client, hi, server};
use crate::fixture::{NAME, look_up, promptly};

/// A message of the application that describes a failure.
#[derive(Clone, PartialEq, Message)]
struct QueueFull {
    #[prost(uint64, tag = "1")]
    queued: u64,
    #[prost(string, tag = "2")]
    queue: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum Code {
    Full = 3,
    Negative = -7,
}

fn full(queue: &str) -> QueueFull {
    QueueFull { queued: 100, queue: queue.to_owned() }
}

/// Fails `SayHi` by `?` and `SayBye` by `send_failure`. The text chooses the error.
struct Fails;

fn failure(text: &str) -> RpcError {
    let error = RpcError::application(text.to_owned());
    match text {
        "full" => error.with_code(Code::Full).with_details(&full("q")),
        "details first" => error.with_details(&full("q")).with_code(Code::Full),
        "negative" => error.with_code(Code::Negative),
        "zero" => error.with_code(0),
        "details" => error.with_details(&full("q")),
        "empty details" => error.with_details(&QueueFull::default()),
        "retryable" => error.with_code(Code::Full).retryable().with_details(&full("q")),
        "large" => error.with_code(1).with_details(&full(&"x".repeat(60 << 10))),
        "too large" => error.with_code(1).with_details(&full(&"x".repeat(70 << 10))),
        _ => error,
    }
}

impl ThreadSafeRpcEndpoint for Fails {
    type Message = HelloMessage;
    async fn receive(
        &mut self,
        message: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        match message {
            HelloMessage::SayHi(hi, _) => Err(failure(&hi.msg)),
            HelloMessage::SayBye(bye, context) => {
                context.send_failure(failure(&bye.msg));
                Ok(())
            }
        }
    }
}

/// Asks another endpoint, and returns its error by `?`, with a code of its own for `SayBye`.
struct Relays(RpcEndpointRef<HelloMessage>);

impl ThreadSafeRpcEndpoint for Relays {
    type Message = HelloMessage;
    async fn receive(
        &mut self,
        message: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        match message {
            HelloMessage::SayHi(hi, context) => context.reply(self.0.ask(hi).await?),
            HelloMessage::SayBye(bye, context) => match self.0.ask(bye).await {
                Ok(reply) => context.reply(reply),
                Err(error) => Err(error.with_code(77)),
            },
        }
    }
}

/// A local and a remote ref to each of `Fails` and of relays in front of it.
struct Case {
    _envs: [RpcEnv; 2],
    direct: Vec<RpcEndpointRef<HelloMessage>>,
    relayed: Vec<RpcEndpointRef<HelloMessage>>,
}

impl Case {
    async fn start() -> Self {
        let (server, client) = (server().await, client().await);
        let local = server.setup_endpoint(NAME, Fails).unwrap();
        let remote = look_up(&client, &server).await;
        let direct = vec![local.clone(), remote.clone()];
        let far = client.setup_endpoint("far", Relays(remote)).unwrap();
        let near = client.setup_endpoint("near", Relays(far.clone())).unwrap();
        let relayed = vec![server.setup_endpoint("relay", Relays(local)).unwrap(), far, near];
        Self { _envs: [server, client], direct, relayed }
    }
}

#[tokio::test]
async fn fault_u5_code_and_details_are_equal_for_local_and_remote_callers() {
    let case = Case::start().await;
    let details = Some(full("q"));
    let expected = [
        ("full", Some(3), details.clone()),
        ("details first", Some(3), details.clone()),
        ("negative", Some(-7), None),
        ("zero", Some(0), None),
        ("details", None, details.clone()),
        ("empty details", None, Some(QueueFull::default())),
        ("retryable", Some(3), details),
        ("large", Some(1), Some(full(&"x".repeat(60 << 10)))),
        ("too large", Some(1), None),
        ("neither", None, None),
    ];
    for (text, code, details) in &expected {
        for endpoint in case.direct.iter().chain(&case.relayed) {
            let error = promptly(text, endpoint.ask(hi(text))).await.unwrap_err();
            assert_eq!(error.to_string(), *text);
            assert_eq!((error.code(), error.details::<QueueFull>()), (*code, details.clone()));
            assert_eq!(error.kind(), ErrorKind::Application);
        }
        for endpoint in &case.direct {
            let error = promptly(text, endpoint.ask(bye(text))).await.unwrap_err();
            assert_eq!((error.code(), error.details::<QueueFull>()), (*code, details.clone()));
            assert_eq!(error.is_retryable(), *text == "retryable");
            assert_eq!(
                Code::try_from(error.code().unwrap_or(3)).is_ok(),
                *code != Some(0) && *code != Some(1)
            );
        }
        for endpoint in &case.relayed {
            let error = promptly(text, endpoint.ask(bye(text))).await.unwrap_err();
            assert_eq!((error.code(), error.is_retryable()), (Some(77), false));
            assert_eq!(error.details::<QueueFull>(), *details, "the details are kept");
        }
    }
}

/// Fails requests with errors of this crate that the handler caused itself.
struct Misuses;

impl ThreadSafeRpcEndpoint for Misuses {
    type Message = HelloMessage;
    async fn receive(
        &mut self,
        message: HelloMessage,
        cx: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        let HelloMessage::SayHi(hi, context) = message else { return Ok(()) };
        match &hi.msg[..] {
            "exists" => drop(cx.env().setup_endpoint(NAME, Fails)?),
            "address" => drop("driver:http".parse::<RpcAddress>()?),
            "setting" => drop(RpcConf::from_settings([("spark.rpc.askTimeout", "x")])?),
            _ => {}
        }
        context.reply(Greeting { text: hi.msg })
    }
}

#[tokio::test]
async fn fault_u5_errors_of_handlers_have_one_kind_for_local_and_remote_callers() {
    let (server, client) = (server().await, client().await);
    let local = server.setup_endpoint(NAME, Misuses).unwrap();
    let remote = look_up(&client, &server).await;
    for text in ["exists", "address", "setting"] {
        let mut texts = Vec::new();
        for endpoint in [&local, &remote] {
            let error = promptly(text, endpoint.ask(hi(text))).await.unwrap_err();
            assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Application, false));
            texts.push(error.to_string());
        }
        assert_eq!(texts[0], texts[1]);
    }
}

/// A change of a clone does not change the error, and other types are no details.
#[test]
fn fault_u5_shared_error_keeps_its_code_and_details() {
    let error = failure("full");
    let changed = error.clone().with_code(9).with_details(&full("other"));
    assert_eq!((error.code(), error.details::<QueueFull>()), (Some(3), Some(full("q"))));
    assert_eq!((changed.code(), changed.details::<QueueFull>()), (Some(9), Some(full("other"))));
    assert_eq!(error.details::<Greeting>(), None, "the field has another type");
    assert_eq!(RpcError::application("x").details::<QueueFull>(), None);
}

/// A message that contains itself.
#[derive(Clone, PartialEq, Message)]
struct Node {
    #[prost(message, optional, boxed, tag = "1")]
    child: Option<Box<Self>>,
}

/// The service `hello.Hello` with other messages: requests and replies are nodes.
struct Nested(Node, RpcCallContext<Node>);

struct SendNode(usize);

/// Nested more deeply than prost decodes.
const TOO_DEEP: usize = 150;

fn node(depth: usize) -> Node {
    (0..depth).fold(Node::default(), |child, _| Node { child: Some(Box::new(child)) })
}

impl RpcMessage for Nested {
    const SERVICES: &'static [&'static str] = HelloMessage::SERVICES;
    fn decode(mut request: IncomingRequest<'_>) -> Result<Self, RpcError> {
        Ok(Self(request.decode()?, request.context()))
    }
}

impl RpcRequest<Nested> for SendNode {
    type Reply = Node;
    const METHOD: Option<Method> = Some(Method::new("/hello.Hello/SayHi"));
    fn into_message(self, context: RpcCallContext<Node>) -> Nested {
        Nested(node(self.0), context)
    }
    fn encode(&self, body: &mut EncodeBuf<'_>) -> Result<(), RpcError> {
        body.put_message(&node(self.0))
    }
    fn decode_reply(body: DecodeBuf) -> Result<Node, RpcError> {
        body.decode()
    }
}

/// Replies with a node that is too deep.
struct Deep;

impl ThreadSafeRpcEndpoint for Deep {
    type Message = Nested;
    async fn receive(
        &mut self,
        Nested(request, context): Nested,
        _: &EndpointContext<Nested>,
    ) -> Result<(), RpcError> {
        drop(request);
        context.reply(node(TOO_DEEP))
    }
}

#[tokio::test]
async fn fault_c12_errors_of_deep_messages_are_shortened_in_the_middle() {
    let (server, client) = (server().await, client().await);
    server.setup_endpoint(NAME, Deep).unwrap();
    let remote = client.lookup::<Nested>(server.address().unwrap(), NAME);
    let remote = promptly("the lookup", remote).await.unwrap();
    for (depth, kind) in [(TOO_DEEP, ErrorKind::Rejected), (1, ErrorKind::Decode)] {
        let error = promptly("the failure", remote.ask(SendNode(depth))).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error:?}");
        let text = format!("{error:#}");
        assert!(text.len() < 600 && text.matches("child").count() < 30, "{text}");
        assert!(text.contains("failed to decode Protobuf message"), "{text}");
        assert!(text.contains("Node.child") && text.contains("bytes ...]"), "{text}");
        assert!(text.ends_with("recursion limit reached"), "{text}");
    }
}
