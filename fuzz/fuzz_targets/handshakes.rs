//! Sends arbitrary messages as a handshake to a server and to a client that require authentication.
//!
//! Properties: neither end panics, no peer is authenticated, and no request reaches the handler. A
//! message that can be decoded is encoded to the same bytes.
//!
//! Input: a byte that selects the protocol, and the messages.

#![no_main]

use std::collections::VecDeque;
use std::sync::{Arc, LazyLock, Mutex};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use network_common::auth::testing::{AuthMessage, SaslMessage};
use network_common::auth::{Secret, SecretStore};
use network_common::{
    MemoryNetwork, NoOpRpcHandler, RpcHandler, RpcResponseCallback, TransportClient, TransportConf,
    TransportContext,
};
use tokio::runtime::{Builder, Runtime};

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_current_thread().enable_all().build().expect("the runtime cannot be created")
});

const PROTOCOLS: [&[(&str, &str)]; 3] = [
    &[],
    &[("spark.network.crypto.enabled", "true")],
    &[("spark.network.crypto.enabled", "true"), ("spark.network.crypto.legacyEngine", "true")],
];

/// A handler that no request must reach.
struct Unreachable;

impl RpcHandler for Unreachable {
    fn receive(&self, client: &TransportClient, _: Bytes, _: RpcResponseCallback) {
        panic!("{client:?} was served");
    }
}

/// Responds to each request with the next message, and then closes the connection.
struct ScriptedResponses(Mutex<VecDeque<Vec<u8>>>);

impl RpcHandler for ScriptedResponses {
    fn receive(&self, client: &TransportClient, _: Bytes, callback: RpcResponseCallback) {
        match self.0.lock().expect("the lock is poisoned").pop_front() {
            Some(response) => callback.reply(response),
            None => client.close(),
        }
    }
}

/// Returns a context without authentication for the attacker.
fn attacker(handler: impl RpcHandler, network: &MemoryNetwork) -> TransportContext {
    TransportContext::new(TransportConf::new("fuzz"), handler).memory_network(network)
}

/// Returns a context that requires authentication by `protocol`.
fn authenticated(protocol: u8, network: &MemoryNetwork) -> TransportContext {
    let settings = PROTOCOLS[usize::from(protocol) % PROTOCOLS.len()];
    let conf = TransportConf::from_settings("fuzz", settings.iter().copied())
        .expect("the settings are valid");
    let secrets = SecretStore::new();
    secrets.register_app("app", Secret::new("secret"));
    let context = TransportContext::new(conf, Unreachable).memory_network(network);
    context.with_auth("app", Arc::new(secrets)).expect("this build supports all protocols")
}

async fn attack(protocol: u8, messages: Vec<Vec<u8>>) {
    let network = MemoryNetwork::new();
    let server = authenticated(protocol, &network);
    let server = server.create_server("10.0.0.1:1").await.expect("the address is free");
    let client = attacker(NoOpRpcHandler::new(), &network).create_client_factory();
    let client = client.create_client(server.local_addr()).await.expect("the server listens");
    for message in &messages {
        let tokens = [message.clone(), SaslMessage::new("app", message.clone()).encode()];
        for message in tokens {
            let _ = client.send_rpc(message).await;
        }
    }

    let server = attacker(ScriptedResponses(Mutex::new(messages.into())), &network);
    let server = server.create_server("10.0.0.2:1").await.expect("the address is free");
    let client = authenticated(protocol, &network).create_client_factory();
    client.create_client(server.local_addr()).await.expect_err("the server has no secret");
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
