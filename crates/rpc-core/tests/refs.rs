//! Refs inside messages, and refs of one of several services.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{Greeting, Hello, HelloMessage, address, client, hi, next, server, soon};
use rpc_core::{
    EndpointContext, EndpointRef, ErrorKind, IncomingRequest, RpcCallContext, RpcEndpointRef, RpcEnv,
    RpcError, RpcMessage, ThreadSafeRpcEndpoint,
};
use tokio::sync::mpsc;

mod refs {
    rpc_core::include_proto!("refs");
}

use refs::{Call, Name, Registration, RegistryMessage, Said};

/// Keeps the ref it was given last, and asks it on request.
#[derive(Default)]
struct Registry {
    told: Option<EndpointRef>,
    known: Option<RpcEndpointRef<HelloMessage>>,
}

impl ThreadSafeRpcEndpoint for Registry {
    type Message = RegistryMessage;

    async fn receive(
        &mut self,
        message: RegistryMessage,
        cx: &EndpointContext<RegistryMessage>,
    ) -> Result<(), RpcError> {
        match message {
            RegistryMessage::Register(registration, context) => {
                let who = registration.who.unwrap_or_default();
                self.known = Some(cx.env().resolve(&who)?);
                self.told = Some(who);
                context.reply(())
            }
            RegistryMessage::Find(_, context) => {
                let known = self.known.as_ref().ok_or_else(|| RpcError::application("nobody"))?;
                context.reply(Registration { who: Some(EndpointRef::try_from(known)?) })
            }
            RegistryMessage::Call(call, context) => {
                let known = self.known.as_ref().ok_or_else(|| RpcError::application("nobody"))?;
                let answer = known.ask_with_timeout(hi(&call.text), Duration::from_millis(call.timeout_ms));
                context.reply(Said { text: answer.await?.text })
            }
        }
    }
}

fn registration<M: RpcMessage>(endpoint: &RpcEndpointRef<M>) -> Registration {
    Registration { who: Some(EndpointRef::try_from(endpoint).unwrap()) }
}

fn call(text: &str) -> Call {
    Call { text: text.to_owned(), timeout_ms: 10_000 }
}

async fn registry(env: &RpcEnv, at: &RpcEnv) -> RpcEndpointRef<RegistryMessage> {
    soon(env.setup_endpoint_ref(address(at), "registry")).await.unwrap()
}

#[tokio::test]
async fn rpc_env_03_send_a_ref() {
    let (master, worker, client) = (server().await, server().await, client().await);
    master.setup_endpoint("registry", Registry::default()).unwrap();
    let hello = worker.setup_endpoint("hello", Hello).unwrap();
    soon(registry(&worker, &master).await.ask(registration(&hello))).await.unwrap();

    // The master uses it, and so does whom it passes it on to.
    let registry = registry(&client, &master).await;
    assert_eq!(soon(registry.ask(call("neo"))).await.unwrap().text, "hi, neo");
    let found = soon(registry.ask(Name {})).await.unwrap().who.unwrap();
    assert_eq!((found.name(), found.address()), ("hello", &*address(&worker).host_port()));
    let passed_on = client.resolve::<HelloMessage>(&found).unwrap();
    assert_eq!(passed_on.address(), hello.address());
    assert_eq!(soon(passed_on.ask(hi("trinity"))).await.unwrap().text, "hi, trinity");
    // In its own environment it is the local one: it goes on when nothing is listened to any more.
    let home = worker.resolve::<HelloMessage>(&found).unwrap();
    assert_eq!(home, hello);
    assert_eq!(worker.snapshot().client.connections, 1);
    assert_eq!(soon(home.ask(hi("home"))).await.unwrap().text, "hi, home");
}

#[tokio::test]
async fn an_environment_that_does_not_listen_is_reached_over_its_connection() {
    let (master, driver, other) = (server().await, client().await, client().await);
    master.setup_endpoint("registry", Registry::default()).unwrap();
    let hello = driver.setup_endpoint("hello", Hello).unwrap();
    // One of the same name elsewhere is another endpoint.
    let namesake = other.setup_endpoint("hello", Hello).unwrap();
    assert_ne!(hello, namesake);
    assert_eq!(hello.to_string(), "spark-client://hello");
    soon(registry(&driver, &master).await.ask(registration(&hello))).await.unwrap();

    let registry = registry(&other, &master).await;
    for _ in 0..100 {
        assert_eq!(soon(registry.ask(call("neo"))).await.unwrap().text, "hi, neo");
    }
    // No third has a connection to the driver.
    let error = soon(registry.ask(Name {})).await.unwrap_err();
    assert!(error.to_string().contains("cannot be passed on"), "{error}");
    let stolen = EndpointRef::try_from(&hello).unwrap();
    let error = other.resolve::<HelloMessage>(&stolen).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Network);

    // It ends with the connection.
    driver.shutdown().await;
    let error = soon(registry.ask(call("neo"))).await.unwrap_err();
    assert!(error.to_string().contains("closed"), "{error}");
    let error = soon(registry.ask(registration(&namesake))).await;
    assert!(error.is_ok(), "{error:?}");
    assert_eq!(soon(registry.ask(call("morpheus"))).await.unwrap().text, "hi, morpheus");
}

/// Keeps contexts for the test.
struct Keep(mpsc::UnboundedSender<RpcCallContext<Greeting>>);

impl ThreadSafeRpcEndpoint for Keep {
    type Message = HelloMessage;
    async fn receive(
        &mut self,
        message: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        let (HelloMessage::SayHi(_, context) | HelloMessage::SayBye(_, context)) = message;
        self.0.send(context).map_err(RpcError::application)
    }
}

#[tokio::test]
async fn nre_05_a_timeout_of_a_client_names_its_socket() {
    let (master, driver) = (server().await, client().await);
    master.setup_endpoint("registry", Registry::default()).unwrap();
    let (told, mut kept) = mpsc::unbounded_channel();
    let keep = driver.setup_endpoint("keep", Keep(told)).unwrap();
    let registry = registry(&driver, &master).await;
    soon(registry.ask(registration(&keep))).await.unwrap();
    let asked = tokio::spawn(registry.ask(Call { timeout_ms: 200, ..call("neo") }));
    let context = next(&mut kept).await;
    let socket = master.snapshot().server.connections;
    assert_eq!(socket, 1);
    let error = soon(asked).await.unwrap().unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
    assert!(error.to_string().starts_with("Cannot receive any reply from 127.0.0.1:"), "{error}");
    assert!(error.to_string().contains("in 200ms"), "{error}");
    // Who gave up over such a ref is known too.
    soon(context.cancelled()).await;
}

#[tokio::test]
async fn a_ref_in_a_message_is_checked() {
    let (server, client) = (server().await, client().await);
    server.setup_endpoint("registry", Registry::default()).unwrap();
    let registry = registry(&client, &server).await;
    // Another service.
    let wrong = Registration { who: Some(EndpointRef::try_from(&registry).unwrap()) };
    let error = client.resolve::<HelloMessage>(wrong.who.as_ref().unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ServiceMismatch);
    assert!(
        error.to_string().contains("refs.Registry") && error.to_string().contains("hello.Hello"),
        "{error}"
    );
    // A field that was left out, and whatever a peer may write.
    let error = soon(registry.ask(Registration { who: None })).await.unwrap_err();
    assert!(error.to_string().contains("must be provided"), "{error}");
    let hello = server.setup_endpoint("hello", Hello).unwrap();
    let good = prost::Message::encode_to_vec(&EndpointRef::try_from(&hello).unwrap());
    for (field, text) in [(1_u8, "no port"), (1, "host:99999"), (2, ""), (2, "a/b@c")] {
        // The last occurrence of a field counts.
        let mut bytes = good.clone();
        bytes.extend([field << 3 | 2, text.len() as u8]);
        bytes.extend(text.as_bytes());
        let bad: EndpointRef = prost::Message::decode(&bytes[..]).unwrap();
        let error = client.resolve::<HelloMessage>(&bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Address, "{text}: {error}");
    }
    let mut bytes = good.clone();
    (0..10_000).for_each(|_| bytes.extend(b"\x1a\x01x"));
    let many: EndpointRef = prost::Message::decode(&bytes[..]).unwrap();
    let error = client.resolve::<RegistryMessage>(&many).unwrap_err();
    assert!(error.to_string().len() < 1000, "{error}");
}

/// Serves both services.
enum Both {
    Hello(HelloMessage),
    Registry(RegistryMessage),
}

impl RpcMessage for Both {
    const SERVICES: &'static [&'static str] = &["hello.Hello", "refs.Registry"];
    fn decode(request: IncomingRequest<'_>) -> Result<Self, RpcError> {
        match request.service() {
            "hello.Hello" => HelloMessage::decode(request).map(Self::Hello),
            _ => RegistryMessage::decode(request).map(Self::Registry),
        }
    }
}

impl From<HelloMessage> for Both {
    fn from(message: HelloMessage) -> Self {
        Self::Hello(message)
    }
}

impl From<RegistryMessage> for Both {
    fn from(message: RegistryMessage) -> Self {
        Self::Registry(message)
    }
}

struct Server;

impl ThreadSafeRpcEndpoint for Server {
    type Message = Both;
    async fn receive(&mut self, message: Both, _: &EndpointContext<Both>) -> Result<(), RpcError> {
        match message {
            Both::Hello(HelloMessage::SayHi(hi, context)) => {
                context.reply(Greeting { text: format!("hi, {}", hi.msg) })
            }
            Both::Registry(RegistryMessage::Call(call, context)) => context.reply(Said { text: call.text }),
            Both::Hello(_) | Both::Registry(_) => Ok(()),
        }
    }
}

#[tokio::test]
async fn a_ref_can_be_narrowed_to_one_of_several_services() {
    let (server, client) = (server().await, client().await);
    let local = server.setup_endpoint("both", Server).unwrap();
    let remote: RpcEndpointRef<Both> =
        soon(client.setup_endpoint_ref(address(&server), "both")).await.unwrap();
    for both in [local, remote] {
        let (hello, registry) = (both.narrow::<HelloMessage>(), both.narrow::<RegistryMessage>());
        assert_eq!(soon(hello.ask(hi("neo"))).await.unwrap().text, "hi, neo");
        assert_eq!(soon(registry.ask(call("neo"))).await.unwrap().text, "neo");
        // What is told of it is one service only.
        let told = EndpointRef::try_from(&hello).unwrap();
        assert!(client.resolve::<HelloMessage>(&told).is_ok());
        assert_eq!(client.resolve::<Both>(&told).unwrap_err().kind(), ErrorKind::ServiceMismatch);
    }
    // At home a part must be narrowed, and the error says so.
    let error = soon(server.setup_endpoint_ref::<HelloMessage>(address(&server), "both")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ServiceMismatch);
    assert!(error.to_string().contains("narrow"), "{error}");
}

#[tokio::test]
async fn only_the_environment_of_an_endpoint_stops_it() {
    let (one, other) = (client().await, client().await);
    let hello = one.setup_endpoint("hello", Hello).unwrap();
    let namesake = other.setup_endpoint("hello", Hello).unwrap();
    one.stop(&namesake);
    assert_eq!(soon(hello.ask(hi("neo"))).await.unwrap().text, "hi, neo");
    one.stop(&hello);
    assert_eq!(soon(hello.ask(hi("neo"))).await.unwrap_err().kind(), ErrorKind::Stopped);
}
