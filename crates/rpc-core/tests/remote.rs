//! Endpoints of another environment, over TCP: rows of the areas `rpc_env` and `nre`.

mod common;

mod coverage {
    include!("generated/coverage.rs");
}

use std::cell::RefCell;
use std::error::Error;
use std::fmt;
use std::time::Duration;

use common::{
    Greeting, Hello, HelloMessage, SayHi, address, bye, client, envelope, hi, next, server,
    setting, soon,
};
use coverage::{Key, Mark, Pair, StoreGet, StoreMessage};
use network_common::{NoOpRpcHandler, TransportConf, TransportContext};
use prost::Message;
use rpc_core::{
    DecodeBuf, EncodeBuf, EndpointContext, ErrorKind, IncomingRequest, Method, RpcAddress,
    RpcCallContext, RpcEndpointRef, RpcEnv, RpcError, RpcMessage, RpcRequest,
    ThreadSafeRpcEndpoint,
};
use tokio::sync::mpsc;

/// An endpoint that handles each message of the store with a closure.
struct Store<F>(F);

impl<F: FnMut(StoreMessage) -> Result<(), RpcError> + Send + 'static> ThreadSafeRpcEndpoint
    for Store<F>
{
    type Message = StoreMessage;
    async fn receive(
        &mut self,
        message: StoreMessage,
        _: &EndpointContext<StoreMessage>,
    ) -> Result<(), RpcError> {
        (self.0)(message)
    }
}

fn mark(name: &str) -> Mark {
    Mark { name: name.to_owned() }
}

fn get(name: &str) -> StoreGet {
    StoreGet(Key { name: name.to_owned() })
}

/// Sets up an endpoint at `server`, and returns the ref of `client` to it.
///
/// The receiver yields the name of each `Mark` that the endpoint receives.
async fn store_of_marks(
    server: &RpcEnv,
    client: &RpcEnv,
) -> (RpcEndpointRef<StoreMessage>, mpsc::UnboundedReceiver<String>) {
    let (tx, received) = mpsc::unbounded_channel();
    let store = Store(move |message| {
        if let StoreMessage::Touch(mark) = message {
            let _ = tx.send(mark.name);
        }
        Ok(())
    });
    server.setup_endpoint("store", store).expect("the name is free");
    let store = client.setup_endpoint_ref::<StoreMessage>(address(server), "store");
    (soon(store).await.expect("the endpoint is registered"), received)
}

#[tokio::test]
async fn rpc_env_02_send_delivers_remote_message() {
    let (server, client) = (server().await, client().await);
    let (store, mut received) = store_of_marks(&server, &client).await;
    store.send(mark("hello")).unwrap();
    assert_eq!(next(&mut received).await, "hello");
}

/// Sends a message when it is dropped.
struct SendsOnDrop(RpcEndpointRef<StoreMessage>);

impl Drop for SendsOnDrop {
    fn drop(&mut self) {
        let _ = self.0.send(mark("at thread exit"));
    }
}

/// A thread-local destructor sends when the thread-locals of this crate may already be destroyed.
#[tokio::test]
async fn send_works_during_thread_local_destruction() {
    thread_local! {
        static SENDS_ON_DROP: RefCell<Option<SendsOnDrop>> = const { RefCell::new(None) };
    }
    let (server, client) = (server().await, client().await);
    let (store, mut received) = store_of_marks(&server, &client).await;
    let (end, ends) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        SENDS_ON_DROP.set(Some(SendsOnDrop(store.clone())));
        store.send(mark("before thread exit")).unwrap();
        let _ = ends.recv();
    });
    assert_eq!(next(&mut received).await, "before thread exit");
    drop(end);
    assert_eq!(next(&mut received).await, "at thread exit");
}

#[tokio::test]
async fn rpc_env_05_ask_returns_remote_reply() {
    let (server, client) = (server().await, client().await);
    server.setup_endpoint("hello", Hello).unwrap();
    let hello =
        soon(client.setup_endpoint_ref::<HelloMessage>(address(&server), "hello")).await.unwrap();
    assert_eq!(hello.to_string(), format!("spark://hello@{}", address(&server)));
    assert_eq!(soon(hello.ask(hi("neo"))).await.unwrap().text, "hi, neo");
    assert_eq!(soon(hello.ask(bye("neo"))).await.unwrap().text, "bye, neo");
}

#[tokio::test]
async fn stop_of_remote_endpoint_has_no_effect() {
    let (first, second) = (server().await, server().await);
    let own = first.setup_endpoint("hello", Hello).unwrap();
    second.setup_endpoint("hello", Hello).unwrap();
    let remote =
        soon(first.setup_endpoint_ref::<HelloMessage>(address(&second), "hello")).await.unwrap();
    first.stop(&remote);
    assert_eq!(soon(remote.ask(hi("remote"))).await.unwrap().text, "hi, remote");
    assert_eq!(soon(own.ask(hi("own"))).await.unwrap().text, "hi, own");
}

#[tokio::test]
async fn rpc_env_06_remote_ask_times_out_and_names_setting() {
    let server = server().await;
    let client = RpcEnv::builder("client")
        .client_mode()
        .conf(setting("spark.rpc.askTimeout", "1ms"))
        .start()
        .await
        .unwrap();
    let mut kept = Vec::new();
    let store = Store(move |message| {
        kept.push(message);
        Ok(())
    });
    server.setup_endpoint("slow", store).unwrap();
    let store =
        soon(client.setup_endpoint_ref::<StoreMessage>(address(&server), "slow")).await.unwrap();
    let error = soon(store.ask(get("x"))).await.unwrap_err();
    assert!(error.is_timeout() && !error.is_remote());
    assert_eq!(error.to_string().matches("spark.rpc.askTimeout").count(), 1, "{error}");
    assert_eq!(error.peer(), Some(format!("spark://slow@{}", address(&server)).as_str()));
}

#[tokio::test]
async fn rpc_env_18_reply_from_another_task_reaches_remote_caller() {
    let (server, client) = (server().await, client().await);
    // The reply comes later, from another task.
    let store = Store(|message| {
        if let StoreMessage::Remove(_, context) = message {
            tokio::spawn(async move { context.reply(()) });
        }
        Ok(())
    });
    server.setup_endpoint("store", store).unwrap();
    let store =
        soon(client.setup_endpoint_ref::<StoreMessage>(address(&server), "store")).await.unwrap();
    soon(store.ask(coverage::StoreRemove(Key::default()))).await.unwrap();
}

#[derive(Debug)]
struct NoBlock(std::io::Error);

impl fmt::Display for NoBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot read the block")
    }
}

impl Error for NoBlock {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

#[tokio::test]
async fn rpc_env_20_failure_reaches_remote_caller() {
    let (server, client) = (server().await, client().await);
    let store = Store(|message| match message {
        StoreMessage::Get(key, context) if key.name == "send_failure" => {
            let cause = NoBlock(std::io::Error::other("disk on fire"));
            context.send_failure(RpcError::application(cause).retryable());
            Ok(())
        }
        StoreMessage::Get(key, _context) if key.name == "panic" => panic!("no {}", key.name),
        StoreMessage::Get(key, _context) if key.name == "drop" => Ok(()),
        _ => Err(RpcError::application("Oops")),
    });
    server.setup_endpoint("store", store).unwrap();
    let store =
        soon(client.setup_endpoint_ref::<StoreMessage>(address(&server), "store")).await.unwrap();

    let error = soon(store.ask(get("?"))).await.unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Application, "Oops"));
    assert!(error.is_remote() && !error.is_retryable());
    assert_eq!(error.peer(), Some(format!("spark://store@{}", address(&server)).as_str()));

    let error = soon(store.ask(get("send_failure"))).await.unwrap_err();
    assert!(error.is_remote() && error.is_retryable());
    assert_eq!(error.to_string(), "cannot read the block");
    assert_eq!(error.source().expect("the cause").to_string(), "disk on fire");

    let error = soon(store.ask(get("panic"))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Panic);
    assert!(error.to_string().contains("no panic"), "{error}");

    let error = soon(store.ask(get("drop"))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoReply);
}

#[tokio::test]
async fn nre_01_lookup_of_missing_endpoint_fails() {
    let (server, client) = (server().await, client().await);
    for env in [&client, &server] {
        let lookup = env.setup_endpoint_ref::<HelloMessage>(address(&server), "missing");
        let error = soon(lookup).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::EndpointNotFound);
        assert_eq!(
            error.to_string(),
            format!("Cannot find endpoint: spark://missing@{}", address(&server))
        );
    }
}

#[tokio::test]
async fn nre_02_advertised_host_can_differ_from_bound_host() {
    let env = RpcEnv::builder("server")
        .bind("127.0.0.1:0")
        .advertise("example.com")
        .start()
        .await
        .unwrap();
    assert!(address(&env).to_string().starts_with("example.com:"));
    assert_ne!(address(&env).port(), 0);
}

#[tokio::test]
async fn wildcard_bind_requires_advertised_host() {
    for bind in ["0.0.0.0:0", "[::]:0"] {
        let error = RpcEnv::builder("server").bind(bind).start().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("advertise"), "{error}");
    }
    let env =
        RpcEnv::builder("server").bind("0.0.0.0:0").advertise("127.0.0.1").start().await.unwrap();
    env.setup_endpoint("hello", Hello).unwrap();
    let client = client().await;
    soon(client.setup_endpoint_ref::<HelloMessage>(address(&env), "hello")).await.unwrap();
}

#[tokio::test]
async fn start_fails_without_mode_or_with_invalid_address() {
    assert_eq!(RpcEnv::builder("none").start().await.unwrap_err().kind(), ErrorKind::Config);
    assert_eq!(
        RpcEnv::builder("bad").bind("no address").start().await.unwrap_err().kind(),
        ErrorKind::InvalidAddress
    );
}

#[tokio::test]
async fn lookup_fails_when_service_differs() {
    let (server, client) = (server().await, client().await);
    server.setup_endpoint("hello", Hello).unwrap();
    let error = soon(client.setup_endpoint_ref::<StoreMessage>(address(&server), "hello"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ServiceMismatch);
    let text = error.to_string();
    assert!(text.contains("serves hello.Hello, not coverage.Store"), "{text}");
    // A lookup in the own environment compares message types and fails too.
    let error = soon(server.setup_endpoint_ref::<StoreMessage>(address(&server), "hello"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ServiceMismatch);
}

/// The messages of two services.
enum Both {
    Hello(HelloMessage),
    Store(StoreMessage),
}

impl RpcMessage for Both {
    const SERVICES: &'static [&'static str] = &["hello.Hello", "coverage.Store"];
    fn decode(request: IncomingRequest<'_>) -> Result<Self, RpcError> {
        match request.service() {
            "hello.Hello" => HelloMessage::decode(request).map(Self::Hello),
            _ => StoreMessage::decode(request).map(Self::Store),
        }
    }
}

struct ServesBoth;

impl ThreadSafeRpcEndpoint for ServesBoth {
    type Message = Both;
    async fn receive(&mut self, message: Both, _: &EndpointContext<Both>) -> Result<(), RpcError> {
        match message {
            Both::Hello(HelloMessage::SayHi(hi, context)) => {
                context.reply(Greeting { text: hi.msg })
            }
            Both::Store(StoreMessage::Get(_, context)) => {
                context.reply(coverage::Value { value: 42 })
            }
            _ => Ok(()),
        }
    }
}

#[tokio::test]
async fn endpoint_can_serve_several_services() {
    let (server, client) = (server().await, client().await);
    server.setup_endpoint("both", ServesBoth).unwrap();
    let hello =
        soon(client.setup_endpoint_ref::<HelloMessage>(address(&server), "both")).await.unwrap();
    let store =
        soon(client.setup_endpoint_ref::<StoreMessage>(address(&server), "both")).await.unwrap();
    assert_eq!(soon(hello.ask(hi("x"))).await.unwrap().text, "x");
    assert_eq!(soon(store.ask(get("x"))).await.unwrap().value, 42);
}

#[tokio::test]
async fn remote_lookup_of_local_only_message_type_fails() {
    struct LocalOnly;
    impl RpcMessage for LocalOnly {}
    let (server, client) = (server().await, client().await);
    let error =
        soon(client.setup_endpoint_ref::<LocalOnly>(address(&server), "hello")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LocalOnly);
}

#[tokio::test]
async fn lookup_in_own_environment_returns_local_ref() {
    let server = server().await;
    let thread = std::thread::current().id();
    let store = Store(move |message| {
        // The runtime of this test has one thread.
        assert_eq!(std::thread::current().id(), thread);
        match message {
            StoreMessage::Get(_, context) => context.reply(coverage::Value { value: 1 }),
            _ => Ok(()),
        }
    });
    let direct = server.setup_endpoint("store", store).unwrap();
    let found =
        soon(server.setup_endpoint_ref::<StoreMessage>(address(&server), "store")).await.unwrap();
    assert_eq!(direct, found);
    assert_eq!(soon(found.ask(get("x"))).await.unwrap().value, 1);
    server.stop(&direct);
    // A send over a local ref fails at once when the endpoint has stopped.
    assert_eq!(found.send(get("x")).unwrap_err().error().kind(), ErrorKind::Stopped);
}

/// A request of an rpc that the schema of the endpoint does not have, as a newer peer sends it.
struct UnknownMethod(&'static str);

impl RpcRequest<HelloMessage> for UnknownMethod {
    type Reply = Greeting;
    const METHOD: Option<Method> = Some(Method::new("/hello.Hello/SayNothing"));
    fn into_message(self, context: RpcCallContext<Greeting>) -> HelloMessage {
        HelloMessage::SayHi(hi(self.0), context)
    }
    fn encode(&self, body: &mut EncodeBuf<'_>) -> Result<(), RpcError> {
        body.put_message(&hi(self.0))
    }
    fn decode_reply(body: DecodeBuf) -> Result<Greeting, RpcError> {
        body.decode()
    }
}

/// A request of `SayHi` whose body is a message of another type with more fields.
struct OtherMessage;

impl RpcRequest<HelloMessage> for OtherMessage {
    type Reply = Greeting;
    const METHOD: Option<Method> = Some(Method::new("/hello.Hello/SayHi"));
    fn into_message(self, context: RpcCallContext<Greeting>) -> HelloMessage {
        HelloMessage::SayHi(SayHi::default(), context)
    }
    fn encode(&self, body: &mut EncodeBuf<'_>) -> Result<(), RpcError> {
        // Field 1 is a message, where SayHi has a string; field 3 is not UTF-8.
        let key = Key { name: "\u{7f}\u{7f}".to_owned() };
        body.put_message(&Pair { key: Some(key), payload: vec![0xff; 3].into(), ..Pair::default() })
    }
    fn decode_reply(body: DecodeBuf) -> Result<Greeting, RpcError> {
        body.decode()
    }
}

#[tokio::test]
async fn unknown_method_fails_only_its_ask() {
    let (server, client) = (server().await, client().await);
    let endpoint = server.setup_endpoint("hello", Hello).unwrap();
    let hello =
        soon(client.setup_endpoint_ref::<HelloMessage>(address(&server), "hello")).await.unwrap();
    let error = soon(hello.ask(UnknownMethod("x"))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(error.is_remote());
    assert!(error.to_string().contains("hello.Hello has no method SayNothing"), "{error}");
    hello.send(UnknownMethod("x")).unwrap();
    assert_eq!(soon(hello.ask(hi("neo"))).await.unwrap().text, "hi, neo");

    // An endpoint that has stopped since the lookup also fails only the ask.
    server.stop(&endpoint);
    let error = soon(hello.ask(hi("neo"))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::EndpointNotFound);
    assert!(error.to_string().contains("Could not find hello."), "{error}");
}

#[tokio::test]
async fn malformed_envelope_fails_only_its_request() {
    let server = server().await;
    server.setup_endpoint("hello", Hello).unwrap();
    let context = TransportContext::new(TransportConf::new("rpc"), NoOpRpcHandler::new());
    let factory = context.create_client_factory();
    let at = address(&server);
    let client = soon(factory.create_client((at.host(), at.port()))).await.unwrap();
    client.send(envelope::hello(7).envelope()).unwrap();
    let request =
        |endpoint, path, body: &[u8]| envelope::message(1, endpoint, path, body).encode_to_vec();
    // A truncated varint, a length beyond the end, a path that is not UTF-8, no route, a route
    // that is not open, an endpoint that does not exist.
    let rejected: [(&[u8], &str); 7] = [
        (b"\xff", "not a valid envelope"),
        (b"\x7a\xff\xff\xff\xff\x0f", "not a valid envelope"),
        (b"\x1a\x01\xff", "not a valid envelope"),
        (b"", "no route 0 has been opened"),
        (&request("", "/hello.Hello/SayHi", b""), "no route 1 has been opened"),
        (&request("hallo", "/hello.Hello/SayHi", b""), "Could not find hallo."),
        (&request("", "/hallo.Hello/SayHi", b""), "Could not find hallo."),
    ];
    for (bytes, text) in rejected {
        let response = match soon(client.send_rpc(bytes.to_vec())).await {
            Ok(response) => String::from_utf8_lossy(&response).into_owned(),
            Err(error) => error.to_string(),
        };
        assert!(response.contains(text), "{bytes:?}: {response}");
    }
    let path = "/other.Service/SayHi";
    let response = soon(client.send_rpc(envelope::message(2, "hello", path, b"").encode_to_vec()))
        .await
        .unwrap();
    assert!(String::from_utf8_lossy(&response).contains("serves hello.Hello, not"), "{response:?}");
    let request = |path: &str, body: &[u8]| envelope::message(2, "", path, body).encode_to_vec();
    // The error does not repeat the name of an unknown method of 1 MiB.
    let long = format!("/hello.Hello/{}", "x".repeat(1 << 20));
    let response = soon(client.send_rpc(request(&long, b""))).await.unwrap();
    assert!(response.len() < 1000, "{}", response.len());
    // The request of a known method is truncated.
    let response = soon(client.send_rpc(request("/hello.Hello/SayHi", b"\x0a\x7f"))).await.unwrap();
    assert!(
        String::from_utf8_lossy(&response).contains("/hello.Hello/SayHi cannot be decoded"),
        "{response:?}"
    );
    assert!(client.is_active());
}

#[tokio::test]
async fn unknown_request_fields_are_ignored() {
    let (server, client) = (server().await, client().await);
    server.setup_endpoint("hello", Hello).unwrap();
    let hello =
        soon(client.setup_endpoint_ref::<HelloMessage>(address(&server), "hello")).await.unwrap();
    // Field 1 of Pair decodes as the string of SayHi, which has no field 3.
    let text = soon(hello.ask(OtherMessage)).await.unwrap().text;
    assert!(text.starts_with("hi, "), "{text}");
}

#[tokio::test]
async fn remote_sends_and_asks_arrive_in_order() {
    let (server, client) = (server().await, client().await);
    let mut seen = Vec::new();
    let store = Store(move |message| match message {
        StoreMessage::Touch(mark) => {
            seen.push(mark.name.parse::<usize>().map_err(RpcError::application)?);
            Ok(())
        }
        StoreMessage::Get(key, context) => {
            seen.push(key.name.parse::<usize>().map_err(RpcError::application)?);
            let sorted = seen.is_sorted();
            context.reply(coverage::Value { value: if sorted { seen.len() as i64 } else { -1 } })
        }
        _ => Ok(()),
    });
    server.setup_endpoint("order", store).unwrap();
    let store =
        soon(client.setup_endpoint_ref::<StoreMessage>(address(&server), "order")).await.unwrap();
    let mut asks = Vec::new();
    for n in 0..2000 {
        if n % 10 == 9 {
            asks.push(store.ask(get(&n.to_string())));
        } else {
            store.send(mark(&n.to_string())).unwrap();
        }
    }
    assert_eq!(soon(asks.pop().unwrap()).await.unwrap().value, 2000);
}

#[tokio::test]
async fn full_route_queue_returns_message() {
    let server = server().await;
    let client = RpcEnv::builder("client")
        .client_mode()
        .conf(setting("spark.rpc.route.maxQueuedBytes", "4k"))
        .start()
        .await
        .unwrap();
    let mut received = 0;
    let store = Store(move |message| match message {
        StoreMessage::Touch(_) => {
            received += 1;
            Ok(())
        }
        StoreMessage::Get(_, context) => context.reply(coverage::Value { value: received }),
        _ => Ok(()),
    });
    server.setup_endpoint("store", store).unwrap();
    let store =
        soon(client.setup_endpoint_ref::<StoreMessage>(address(&server), "store")).await.unwrap();
    // No credit arrives before the test awaits something, as the runtime has one thread.
    let mut sent = 0;
    let rejected = loop {
        match store.send(mark(&"x".repeat(1000))) {
            Ok(()) => sent += 1,
            Err(rejected) => break rejected,
        }
        assert!(sent < 100, "the queue has no limit");
    };
    assert_eq!(rejected.error().kind(), ErrorKind::Limit);
    assert!(rejected.error().is_retryable());
    assert_eq!(rejected.into_message().name.len(), 1000);
    assert_eq!(soon(store.ask(get(&"x".repeat(1000)))).await.unwrap_err().kind(), ErrorKind::Limit);
    // The accepted messages are sent, and the queue has capacity again.
    let count = soon(async {
        loop {
            match store.ask(get("x")).await {
                Ok(count) => break count.value,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    })
    .await;
    assert_eq!(count, sent);
}

#[tokio::test]
async fn unreachable_peer_fails_asks_and_is_reconnected() {
    let client = client().await;
    let server = server().await;
    server.setup_endpoint("hello", Hello).unwrap();
    let at = address(&server);
    let hello = soon(client.setup_endpoint_ref::<HelloMessage>(at.clone(), "hello")).await.unwrap();
    soon(server.shutdown()).await;

    let error = soon(async {
        loop {
            // The client may not have noticed the close of the connection yet.
            match hello.ask(hi("neo")).await {
                Err(error) if error.is_retryable() => break error,
                _ => {}
            }
        }
    })
    .await;
    assert_eq!(error.kind(), ErrorKind::Network);
    assert!(error.to_string().contains(&at.to_string()), "{error}");

    let again = soon(async {
        loop {
            match RpcEnv::builder("again").bind(at.to_string()).start().await {
                Ok(env) => break env,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    })
    .await;
    again.setup_endpoint("hello", Hello).unwrap();
    soon(async {
        // The transport may reject new attempts for a moment after a failed one.
        while hello.ask(hi("neo")).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn asks_fail_when_either_environment_shuts_down() {
    let mut kept = Vec::new();
    let (tx, mut arrived) = mpsc::unbounded_channel();
    let store = Store(move |message| {
        kept.push(message);
        let _ = tx.send(());
        Ok(())
    });
    let (server, client) = (server().await, client().await);
    server.setup_endpoint("keeps", store).unwrap();
    let store =
        soon(client.setup_endpoint_ref::<StoreMessage>(address(&server), "keeps")).await.unwrap();
    let ask = store.ask(get("x"));
    next(&mut arrived).await;
    soon(server.shutdown()).await;
    // The endpoint was dropped together with the messages that it kept.
    let error = soon(ask).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NoReply | ErrorKind::Network), "{error:?}");

    soon(client.shutdown()).await;
    let rejected = store.send(mark("late")).unwrap_err();
    assert_eq!(rejected.error().kind(), ErrorKind::Stopped);
    assert_eq!(rejected.into_message().name, "late");
    assert_eq!(soon(store.ask(get("late"))).await.unwrap_err().kind(), ErrorKind::Stopped);
}

#[tokio::test]
async fn sender_address_is_advertised_address_or_socket() {
    let (first, second, client) = (server().await, server().await, client().await);
    let (tx, mut senders) = mpsc::unbounded_channel();
    let store = Store(move |message| {
        if let StoreMessage::Get(_, context) = message {
            let _ = tx.send(context.sender_address().cloned());
        }
        Ok(())
    });
    first.setup_endpoint("store", store).unwrap();
    for env in [&second, &client] {
        let store =
            soon(env.setup_endpoint_ref::<StoreMessage>(address(&first), "store")).await.unwrap();
        store.send(get("x")).unwrap();
        let sender = next(&mut senders).await.expect("known");
        match env.address() {
            Some(address) => assert_eq!(&sender, address),
            None => assert_eq!(sender.host(), "127.0.0.1"),
        }
    }
}

#[tokio::test]
async fn timed_out_lookup_names_its_setting() {
    // The listener accepts connections in its backlog and sends nothing.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = RpcAddress::from(listener.local_addr().unwrap());
    let client = RpcEnv::builder("client")
        .client_mode()
        .conf(setting("spark.rpc.lookupTimeout", "20ms"))
        .start()
        .await
        .unwrap();
    let started = std::time::Instant::now();
    let error = soon(client.setup_endpoint_ref::<HelloMessage>(silent, "hello")).await.unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
    assert!(error.to_string().contains("spark.rpc.lookupTimeout"), "{error}");
    assert!(started.elapsed() >= Duration::from_millis(20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_ask_ends_while_environments_shut_down() {
    for round in 0..20 {
        let (server, client) = (server().await, client().await);
        server.setup_endpoint("hello", Hello).unwrap();
        let hello = soon(client.setup_endpoint_ref::<HelloMessage>(address(&server), "hello"))
            .await
            .unwrap();
        let callers: Vec<_> = (0..4)
            .map(|_| {
                let hello = hello.clone();
                tokio::spawn(async move {
                    let (mut replied, mut failed) = (0, 0);
                    for n in 0..200 {
                        let ask = hello.ask(hi("neo"));
                        // One ask in seven is cancelled.
                        if n % 7 == 0 {
                            continue;
                        }
                        match ask.await {
                            Ok(greeting) => {
                                assert_eq!(greeting.text, "hi, neo");
                                replied += 1;
                            }
                            Err(_) => failed += 1,
                        }
                    }
                    (replied, failed)
                })
            })
            .collect();
        if round % 2 == 0 {
            soon(server.shutdown()).await;
        } else {
            soon(client.shutdown()).await;
        }
        for caller in callers {
            let (replied, failed) = soon(caller).await.unwrap();
            assert_eq!(replied + failed, 200 - 29);
        }
    }
}

#[tokio::test]
async fn stop_of_another_client_mode_endpoint_has_no_effect() {
    let (one, other) = (client().await, client().await);
    let own = one.setup_endpoint("hello", Hello).unwrap();
    let foreign = other.setup_endpoint("hello", Hello).unwrap();
    one.stop(&foreign);
    for endpoint in [&own, &foreign] {
        assert_eq!(soon(endpoint.ask(hi("neo"))).await.unwrap().text, "hi, neo");
    }
    one.stop(&own);
    assert_eq!(soon(own.ask(hi("neo"))).await.unwrap_err().kind(), ErrorKind::Stopped);
}
