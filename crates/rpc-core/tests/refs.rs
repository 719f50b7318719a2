//! Refs in messages, refs to client-mode environments, stale incarnations, narrowed refs: rows
//! `rpc_env_03` and `nre_05`. The peers are other environments.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{
    Greeting, Hello, HelloMessage, Keep, UndeliveredWatch, address, client, hi, next, server, soon,
};
use rpc_core::{
    EndpointContext, EndpointRef, ErrorKind, IncomingRequest, RpcEndpointRef, RpcEnv, RpcError,
    RpcMessage, ThreadSafeRpcEndpoint,
};
use tokio::sync::mpsc;

mod refs {
    include!("generated/refs.rs");
}

use refs::{Call, Name, Registration, RegistryMessage, Said};

/// An endpoint that keeps the last ref that it received, and asks it on request.
#[derive(Default)]
struct Registry {
    received: Option<EndpointRef>,
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
                self.received = Some(who);
                context.reply(())
            }
            RegistryMessage::Find(_, context) => {
                let known = self
                    .known
                    .as_ref()
                    .ok_or_else(|| RpcError::application("no ref is registered"))?;
                context.reply(Registration { who: Some(EndpointRef::try_from(known)?) })
            }
            RegistryMessage::Call(call, context) => {
                let known = self
                    .known
                    .as_ref()
                    .ok_or_else(|| RpcError::application("no ref is registered"))?;
                let reply =
                    known.ask_with_timeout(hi(&call.text), Duration::from_millis(call.timeout_ms));
                context.reply(Said { text: reply.await?.text })
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
async fn rpc_env_03_ref_in_message_reaches_its_endpoint() {
    let (master, worker, client) = (server().await, server().await, client().await);
    master.setup_endpoint("registry", Registry::default()).unwrap();
    let hello = worker.setup_endpoint("hello", Hello).unwrap();
    soon(registry(&worker, &master).await.ask(registration(&hello))).await.unwrap();

    // The master asks through the ref, and passes it on to the client.
    let registry = registry(&client, &master).await;
    assert_eq!(soon(registry.ask(call("neo"))).await.unwrap().text, "hi, neo");
    let found = soon(registry.ask(Name {})).await.unwrap().who.unwrap();
    assert_eq!((found.name(), found.address()), ("hello", &*address(&worker).host_port()));
    let passed_on = client.resolve::<HelloMessage>(&found).unwrap();
    assert_eq!(passed_on.address(), hello.address());
    assert_eq!(soon(passed_on.ask(hi("trinity"))).await.unwrap().text, "hi, trinity");
    // In its own environment the ref resolves to the local endpoint and uses no connection.
    let own = worker.resolve::<HelloMessage>(&found).unwrap();
    assert_eq!(own, hello);
    assert_eq!(worker.snapshot().client.connections, 1);
    assert_eq!(soon(own.ask(hi("own"))).await.unwrap().text, "hi, own");
}

#[tokio::test]
async fn client_mode_endpoint_is_reached_over_its_own_connection() {
    let (master, driver, other) = (server().await, client().await, client().await);
    master.setup_endpoint("registry", Registry::default()).unwrap();
    let hello = driver.setup_endpoint("hello", Hello).unwrap();
    // An endpoint with the same name in another environment is not equal.
    let namesake = other.setup_endpoint("hello", Hello).unwrap();
    assert_ne!(hello, namesake);
    assert_eq!(hello.to_string(), "spark-client://hello");
    soon(registry(&driver, &master).await.ask(registration(&hello))).await.unwrap();

    let registry = registry(&other, &master).await;
    for _ in 0..100 {
        assert_eq!(soon(registry.ask(call("neo"))).await.unwrap().text, "hi, neo");
    }
    // Only the master has a connection to the driver, so the ref cannot be passed on.
    let error = soon(registry.ask(Name {})).await.unwrap_err();
    assert!(error.to_string().contains("cannot be forwarded"), "{error}");
    let not_passed_on = EndpointRef::try_from(&hello).unwrap();
    let error = other.resolve::<HelloMessage>(&not_passed_on).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Network);

    // The ref fails when the connection has closed.
    driver.shutdown().await;
    let error = soon(registry.ask(call("neo"))).await.unwrap_err();
    assert!(error.to_string().contains("closed"), "{error}");
    let error = soon(registry.ask(registration(&namesake))).await;
    assert!(error.is_ok(), "{error:?}");
    assert_eq!(soon(registry.ask(call("morpheus"))).await.unwrap().text, "hi, morpheus");
}

#[tokio::test]
async fn nre_05_timeout_of_ask_to_client_names_its_socket() {
    let (master, driver) = (server().await, client().await);
    master.setup_endpoint("registry", Registry::default()).unwrap();
    let (tx, mut kept) = mpsc::unbounded_channel();
    let keep = driver.setup_endpoint("keep", Keep(tx)).unwrap();
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
    // The client receives the cancellation of an ask over such a ref.
    soon(context.cancelled()).await;
}

#[tokio::test]
async fn invalid_ref_in_message_fails_resolve() {
    let (server, client) = (server().await, client().await);
    server.setup_endpoint("registry", Registry::default()).unwrap();
    let registry = registry(&client, &server).await;
    // The ref is of another service.
    let wrong = Registration { who: Some(EndpointRef::try_from(&registry).unwrap()) };
    let error = client.resolve::<HelloMessage>(wrong.who.as_ref().unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ServiceMismatch);
    assert!(
        error.to_string().contains("refs.Registry") && error.to_string().contains("hello.Hello"),
        "{error}"
    );
    // The field is missing, or its address or name is malformed.
    let error = soon(registry.ask(Registration { who: None })).await.unwrap_err();
    assert!(error.to_string().contains("must be provided"), "{error}");
    let hello = server.setup_endpoint("hello", Hello).unwrap();
    let good = EndpointRef::try_from(&hello).unwrap();
    for (field, text) in [(1_u8, "no port"), (1, "host:99999"), (2, ""), (2, "a/b@c")] {
        let error = client
            .resolve::<HelloMessage>(&with_fields(&good, &text_field(field, text)))
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidAddress, "{text}: {error}");
    }
    let many = with_fields(&good, &text_field(3, "x").repeat(10_000));
    let error = client.resolve::<RegistryMessage>(&many).unwrap_err();
    assert!(error.to_string().len() < 1000, "{error}");
}

/// Messages of both services.
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
            Both::Registry(RegistryMessage::Call(call, context)) => {
                context.reply(Said { text: call.text })
            }
            Both::Hello(_) | Both::Registry(_) => Ok(()),
        }
    }
}

#[tokio::test]
async fn ref_can_be_narrowed_to_one_service() {
    let (server, client) = (server().await, client().await);
    let local = server.setup_endpoint("both", Server).unwrap();
    let remote: RpcEndpointRef<Both> =
        soon(client.setup_endpoint_ref(address(&server), "both")).await.unwrap();
    for both in [local, remote] {
        let (hello, registry) = (both.narrow::<HelloMessage>(), both.narrow::<RegistryMessage>());
        assert_eq!(soon(hello.ask(hi("neo"))).await.unwrap().text, "hi, neo");
        assert_eq!(soon(registry.ask(call("neo"))).await.unwrap().text, "neo");
        // A narrowed ref in a message has one service only.
        let in_message = EndpointRef::try_from(&hello).unwrap();
        assert!(client.resolve::<HelloMessage>(&in_message).is_ok());
        assert_eq!(
            client.resolve::<Both>(&in_message).unwrap_err().kind(),
            ErrorKind::ServiceMismatch
        );
    }
    // In the own environment, a ref to one service must be narrowed from the full type, and the
    // error says so; also when a message contained a narrowed ref.
    let own: RpcEndpointRef<Both> =
        server.setup_endpoint_ref(address(&server), "both").await.unwrap();
    let in_message = EndpointRef::try_from(&own.narrow::<HelloMessage>()).unwrap();
    let error = server.resolve::<HelloMessage>(&in_message).unwrap_err();
    assert!(error.to_string().contains("narrow"), "{error}");
    let part = server.resolve::<Both>(&in_message).unwrap().narrow::<HelloMessage>();
    assert_eq!(soon(part.ask(hi("neo"))).await.unwrap().text, "hi, neo");
    let error = soon(server.setup_endpoint_ref::<HelloMessage>(address(&server), "both"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ServiceMismatch);
    assert!(error.to_string().contains("narrow"), "{error}");
}

#[tokio::test]
async fn stop_affects_only_endpoints_of_own_environment() {
    let (one, other) = (client().await, client().await);
    let hello = one.setup_endpoint("hello", Hello).unwrap();
    let namesake = other.setup_endpoint("hello", Hello).unwrap();
    one.stop(&namesake);
    assert_eq!(soon(hello.ask(hi("neo"))).await.unwrap().text, "hi, neo");
    one.stop(&hello);
    assert_eq!(soon(hello.ask(hi("neo"))).await.unwrap_err().kind(), ErrorKind::Stopped);
}

/// Returns `endpoint` with the encoded fields `more` appended: the last occurrence of a field
/// counts.
fn with_fields(endpoint: &EndpointRef, more: &[u8]) -> EndpointRef {
    let mut bytes = prost::Message::encode_to_vec(endpoint);
    bytes.extend(more);
    prost::Message::decode(&bytes[..]).unwrap()
}

/// Encodes a string field of a protobuf message.
fn text_field(field: u8, text: &str) -> Vec<u8> {
    let mut bytes = vec![field << 3 | 2];
    prost::encode_length_delimiter(text.len(), &mut bytes).unwrap();
    bytes.extend(text.as_bytes());
    bytes
}

#[tokio::test]
async fn ref_resolved_in_its_own_environment_is_local() {
    let (own, elsewhere) = (server().await, client().await);
    let hello = own.setup_endpoint("hello", Hello).unwrap();
    // A ref from a lookup has no incarnation.
    let looked_up: RpcEndpointRef<HelloMessage> =
        soon(elsewhere.setup_endpoint_ref(address(&own), "hello")).await.unwrap();
    let in_message = EndpointRef::try_from(&looked_up).unwrap();
    let resolved = own.resolve::<HelloMessage>(&in_message).unwrap();
    assert_eq!(resolved, hello);
    assert_eq!(soon(resolved.ask(hi("neo"))).await.unwrap().text, "hi, neo");
    assert_eq!(own.snapshot().client.connections, 0);
}

#[tokio::test]
async fn ref_without_address_and_incarnation_fails_resolve() {
    let (server, client) = (server().await, client().await);
    let hello = server.setup_endpoint("hello", Hello).unwrap();
    // The server has a connection on which it has sent no message.
    let remote: RpcEndpointRef<HelloMessage> =
        soon(client.setup_endpoint_ref(address(&server), "hello")).await.unwrap();
    soon(remote.ask(hi("neo"))).await.unwrap();
    let in_message = EndpointRef::try_from(&hello).unwrap();
    let unresolvable = with_fields(&in_message, b"\x0a\x00\x21\0\0\0\0\0\0\0\0");
    let error = client.resolve::<HelloMessage>(&unresolvable).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidAddress, "{error}");
}

#[tokio::test]
async fn refs_can_be_resolved_and_dropped_repeatedly() {
    let (master, driver) = (server().await, client().await);
    let hello = driver.setup_endpoint("hello", Hello).unwrap();
    let there = master.setup_endpoint("hello", Hello).unwrap();
    soon(driver.setup_endpoint_ref::<HelloMessage>(address(&master), "hello")).await.unwrap();
    let (with_address, without) =
        (EndpointRef::try_from(&there).unwrap(), EndpointRef::try_from(&hello).unwrap());
    for (env, in_message) in [(&driver, with_address), (&master, without)] {
        for _ in 0..100 {
            let known = env.resolve::<HelloMessage>(&in_message).unwrap();
            for _ in 0..3 {
                assert_eq!(soon(known.ask(hi("neo"))).await.unwrap().text, "hi, neo");
            }
        }
    }
}

#[tokio::test]
async fn asks_to_client_fail_when_its_connection_closes() {
    let (master, driver) = (server().await, client().await);
    master.setup_endpoint("hello", Hello).unwrap();
    let (tx, mut kept) = mpsc::unbounded_channel();
    let keep = driver.setup_endpoint("keep", Keep(tx)).unwrap();
    soon(driver.setup_endpoint_ref::<HelloMessage>(address(&master), "hello")).await.unwrap();
    let known = master.resolve::<HelloMessage>(&EndpointRef::try_from(&keep).unwrap()).unwrap();
    assert_eq!(known.to_string(), "spark-client://keep");
    let pending = tokio::spawn(known.ask(hi("neo")));
    let _kept = next(&mut kept).await;
    // Most of these asks are queued for credit; they fail as well.
    let queued: Vec<_> = (0..1000).map(|_| known.ask(hi("trinity"))).collect();
    let shutdown = tokio::spawn(driver.shutdown());
    let error = soon(pending).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Network, "{error}");
    for ask in queued {
        let error = soon(ask).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Network | ErrorKind::Stopped), "{error}");
    }
    soon(shutdown).await.unwrap();
    // No new connection is made to a client-mode environment.
    let rejected = soon(known.send_wait(hi("neo"))).await.unwrap_err();
    assert_eq!(
        (rejected.error().kind(), rejected.error().is_retryable()),
        (ErrorKind::Network, false)
    );
    assert!(rejected.to_string().contains("Connection from 127.0.0.1:"), "{rejected}");
    assert_eq!(rejected.into_message().msg, "neo");
    assert_eq!(soon(known.ask(hi("neo"))).await.unwrap_err().kind(), ErrorKind::Network);
    assert_eq!(master.snapshot().client.connections, 0);
}

#[tokio::test]
async fn messages_for_stale_incarnation_are_rejected() {
    let (first, client) = (server().await, client().await);
    let there = address(&first);
    let hello = first.setup_endpoint("hello", Hello).unwrap();
    let in_message = EndpointRef::try_from(&hello).unwrap();
    let bound = client.resolve::<HelloMessage>(&in_message).unwrap();
    let looked_up: RpcEndpointRef<HelloMessage> =
        soon(client.setup_endpoint_ref(there.clone(), "hello")).await.unwrap();
    assert_eq!(soon(bound.ask(hi("neo"))).await.unwrap().text, "hi, neo");

    soon(first.shutdown()).await;
    let second = RpcEnv::builder("second").bind(there.host_port()).start().await.unwrap();
    second.setup_endpoint("hello", Hello).unwrap();
    assert_eq!(soon(looked_up.ask(hi("trinity"))).await.unwrap().text, "hi, trinity");
    let error = soon(bound.ask(hi("neo"))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Stopped);
    // The sender knows the incarnation of the connected peer, so nothing is sent.
    assert!(!error.is_remote() && !error.is_retryable(), "{error:?}");
    assert!(error.to_string().contains("earlier run"), "{error}");
    let rejected = bound.send(hi("neo")).unwrap_err();
    assert_eq!(rejected.error().kind(), ErrorKind::Stopped);
    // An environment without a connection accepts the message, and reports it undelivered later.
    let other = common::client().await;
    let (undelivered_tx, mut undelivered) = mpsc::unbounded_channel();
    other.setup_endpoint("undelivered", UndeliveredWatch(undelivered_tx)).unwrap();
    let other_bound = other.resolve::<HelloMessage>(&in_message).unwrap();
    other_bound.send(hi("neo")).unwrap();
    assert_eq!(next(&mut undelivered).await.0.kind(), ErrorKind::Stopped);
    assert_eq!(soon(other_bound.ask(hi("neo"))).await.unwrap_err().kind(), ErrorKind::Stopped);
    // The second environment detects a ref with its own address and another incarnation.
    let error = second.resolve::<HelloMessage>(&in_message).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Stopped);
    // A ref that is passed on keeps the incarnation of the first run.
    let passed_on = EndpointRef::try_from(&bound).unwrap();
    assert_eq!(second.resolve::<HelloMessage>(&passed_on).unwrap_err().kind(), ErrorKind::Stopped);
}

#[tokio::test]
async fn errors_truncate_text_from_peer() {
    let (server, client) = (server().await, client().await);
    let hello = server.setup_endpoint("hello", Hello).unwrap();
    let good = EndpointRef::try_from(&hello).unwrap();
    let long = "a".repeat(100_000);
    let addresses = [long.clone(), format!("{long}:7077"), format!("{long} ")];
    let names = [long.clone(), format!("{long}/")];
    let wrong = addresses.iter().map(|text| (1, text)).chain(names.iter().map(|text| (2, text)));
    for (field, text) in wrong {
        let wrong = with_fields(&good, &text_field(field, text));
        let error = client.resolve::<HelloMessage>(&wrong).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidAddress);
        assert!(error.to_string().len() < 1000, "{error}");
    }
    let served = with_fields(&good, &text_field(3, &long));
    let error = client.resolve::<RegistryMessage>(&served).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ServiceMismatch);
    assert!(error.to_string().len() < 1000, "{error}");
}
