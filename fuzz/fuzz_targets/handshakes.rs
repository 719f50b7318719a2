//! Any bytes as the messages of a handshake, to a server and to a client: nobody is authenticated,
//! nothing is served, and both ends live on.
//!
//! Input: a byte that chooses the protocol, and the messages.

#![no_main]

use std::collections::VecDeque;
use std::sync::{Arc, LazyLock, Mutex};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use network_common::auth::{AuthMessage, SaslMessage, Secret, SecretStore};
use network_common::{
    MemoryNetwork, NoOpRpcHandler, RpcHandler, RpcResponseCallback, TransportClient, TransportConf,
    TransportContext,
};
use tokio::runtime::{Builder, Runtime};

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_all().build().expect("a runtime"));

const PROTOCOLS: [&[(&str, &str)]; 3] = [
    &[],
    &[("spark.network.crypto.enabled", "true")],
    &[("spark.network.crypto.enabled", "true"), ("spark.network.crypto.legacyEngine", "true")],
];

/// Must not be reached.
struct Unreachable;

impl RpcHandler for Unreachable {
    fn receive(&self, client: &TransportClient, _: Bytes, _: RpcResponseCallback) {
        panic!("{client:?} was served");
    }
}

/// Answers with one message after the other.
struct Answers(Mutex<VecDeque<Vec<u8>>>);

impl RpcHandler for Answers {
    fn receive(&self, client: &TransportClient, _: Bytes, callback: RpcResponseCallback) {
        match self.0.lock().expect("no panic").pop_front() {
            Some(answer) => callback.reply(answer),
            None => client.close(),
        }
    }
}

/// That of an attacker, who speaks the bytes of a protocol and is held by none.
fn attacker(handler: impl RpcHandler, network: &MemoryNetwork) -> TransportContext {
    TransportContext::new(TransportConf::new("fuzz"), handler).memory_network(network)
}

fn authenticated(protocol: u8, network: &MemoryNetwork) -> TransportContext {
    let settings = PROTOCOLS[usize::from(protocol) % PROTOCOLS.len()];
    let conf =
        TransportConf::from_settings("fuzz", settings.iter().copied()).expect("good settings");
    let secrets = SecretStore::new();
    secrets.register_app("app", Secret::new("secret"));
    let context = TransportContext::new(conf, Unreachable).memory_network(network);
    context.with_auth("app", Arc::new(secrets)).expect("this build has all modes")
}

async fn attack(protocol: u8, messages: Vec<Vec<u8>>) {
    let network = MemoryNetwork::new();
    let server = authenticated(protocol, &network);
    let server = server.create_server("10.0.0.1:1").await.expect("a free address");
    let client = attacker(NoOpRpcHandler::new(), &network).create_client_factory();
    let client = client.create_client(server.local_addr()).await.expect("it listens");
    for message in &messages {
        let tokens = [message.clone(), SaslMessage::new("app", message.clone()).encode()];
        for message in tokens {
            let _ = client.send_rpc(message).await;
        }
    }

    let answers = attacker(Answers(Mutex::new(messages.into())), &network);
    let server = answers.create_server("10.0.0.2:1").await.expect("a free address");
    let client = authenticated(protocol, &network).create_client_factory();
    client.create_client(server.local_addr()).await.expect_err("nobody there knows the secret");
}

fuzz_target!(|input: (u8, Vec<Vec<u8>>)| {
    let (protocol, messages) = input;
    for message in &messages {
        if let Ok(decoded) = AuthMessage::decode(message) {
            assert_eq!(decoded.encode(), *message);
        }
        if let Ok(decoded) = SaslMessage::decode(message) {
            assert_eq!(decoded.encode(), *message);
        }
    }
    RUNTIME.block_on(attack(protocol, messages));
});
