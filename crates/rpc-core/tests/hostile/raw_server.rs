//! A server that writes its envelopes by hand, and the environment that connects to it.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use network_common::{
    RpcHandler, RpcResponseCallback, TransportClient, TransportConf, TransportContext,
    TransportServer,
};
use prost::Message;
use rpc_core::{RpcConf, RpcEndpointRef, RpcEnv, RpcError};
use tokio::sync::mpsc;

use crate::common::envelope::{Credit, Hello, Notice, RoutedMessage};
use crate::common::{self, Greeting, HelloMessage, address, hi};
use crate::fixture::{promptly, until};
use crate::raw_peer::Response;

/// The incarnation of raw servers.
pub const INCARNATION: u64 = 99;

#[derive(Clone, PartialEq, Message)]
struct CheckExistenceReply {
    #[prost(bool, tag = "1")]
    exists: bool,
    #[prost(string, repeated, tag = "2")]
    services: Vec<String>,
}

/// A message from the environment other than its Hello and its lookups.
#[derive(Debug)]
pub enum Arrival {
    Ask(RoutedMessage, RpcResponseCallback, TransportClient),
    #[expect(dead_code, reason = "printed when a test fails")]
    OneWay(RoutedMessage, TransportClient),
    Notice(Notice, TransportClient),
}

/// A handler that replies to Hello and lookups, and passes everything else to the test.
struct Handler {
    grants: Arc<AtomicBool>,
    greeting: Arc<Mutex<Option<Hello>>>,
    arrivals: mpsc::UnboundedSender<Arrival>,
}

impl Handler {
    /// Grants the credit that the message consumed.
    fn grant(&self, client: &TransportClient, message: &RoutedMessage) {
        if self.grants.load(Ordering::Relaxed) {
            let bytes = message.encoded_len() as u64;
            let credit =
                Some(Credit { route: message.route, messages: 1, bytes, keeps_open: false });
            // The connection may have closed.
            let _ = client.send(Notice { credit, ..Notice::default() }.envelope());
        }
    }
}

impl RpcHandler for Handler {
    fn receive(&self, client: &TransportClient, body: Bytes, callback: RpcResponseCallback) {
        let message = RoutedMessage::decode(body).expect("the environment writes valid envelopes");
        self.grant(client, &message);
        if message.path == "/rpc_core.envelope.EndpointVerifier/CheckExistence" {
            let reply =
                CheckExistenceReply { exists: true, services: vec!["hello.Hello".to_owned()] };
            return callback.reply(value(&reply.encode_to_vec()));
        }
        // The test may have ended and dropped the receiver.
        let _ = self.arrivals.send(Arrival::Ask(message, callback, client.clone()));
    }

    fn receive_one_way(&self, client: &TransportClient, body: Bytes) {
        let message = RoutedMessage::decode(body).expect("the environment writes valid envelopes");
        let arrival = if message.route == 0 {
            let notice =
                Notice::decode(&message.body[..]).expect("the environment writes valid notices");
            if notice.hello.is_some()
                && let Some(hello) = self.greeting.lock().unwrap().clone()
            {
                let reply = Notice { hello: Some(hello), ..Notice::default() };
                client.send(reply.envelope()).unwrap();
            }
            Arrival::Notice(notice, client.clone())
        } else {
            self.grant(client, &message);
            Arrival::OneWay(message, client.clone())
        };
        let _ = self.arrivals.send(arrival);
    }
}

/// Encodes a response with a value.
pub fn value(bytes: &[u8]) -> Vec<u8> {
    Response { value: Some(bytes.to_vec()), failure: None }.encode_to_vec()
}

/// Encodes a response that the endpoint `Hello` could have sent.
pub fn greeting(text: &str) -> Vec<u8> {
    value(&Greeting { text: text.to_owned() }.encode_to_vec())
}

pub fn hello(min_version: u32, max_version: u32) -> Hello {
    Hello {
        min_version,
        max_version,
        incarnation: INCARNATION,
        max_routes: 65_536,
        ..Hello::default()
    }
}

/// A raw server, the client environment connected to it, and an honest server that the same
/// environment asks.
pub struct Victim {
    pub env: RpcEnv,
    pub target: RpcEndpointRef<HelloMessage>,
    /// The raw server's side of the connection.
    pub peer: TransportClient,
    /// The Hello that the raw server sends on further connections.
    pub greeting: Arc<Mutex<Option<Hello>>>,
    pub at: String,
    /// This is true if the raw server returns the credit of each message.
    pub grants: Arc<AtomicBool>,
    arrivals: mpsc::UnboundedReceiver<Arrival>,
    honest: RpcEndpointRef<HelloMessage>,
    honest_server: RpcEnv,
    _server: TransportServer,
}

impl Victim {
    /// Connects the environment, whose settings are the defaults, and waits for its Hello.
    pub async fn start() -> Self {
        Self::with(Some(hello(1, 1)), RpcConf::new()).await
    }

    pub async fn with(greeting: Option<Hello>, conf: RpcConf) -> Self {
        let (sender, mut arrivals) = mpsc::unbounded_channel();
        let greeting = Arc::new(Mutex::new(greeting));
        let grants = Arc::new(AtomicBool::new(true));
        let handler = Handler {
            grants: Arc::clone(&grants),
            greeting: Arc::clone(&greeting),
            arrivals: sender,
        };
        let context = TransportContext::new(TransportConf::new("rpc"), handler);
        let server = context.create_server("127.0.0.1:0").await.unwrap();
        let at = server.local_addr().to_string();
        let env = RpcEnv::builder("victim").client_mode().conf(conf).start().await.unwrap();
        let honest_server = common::server().await;
        honest_server.setup_endpoint("hello", common::Hello).unwrap();
        let found = env.setup_endpoint_ref::<HelloMessage>(address(&honest_server), "hello");
        let honest = promptly("the lookup at the honest server", found).await.unwrap();
        let found = env.setup_endpoint_ref::<HelloMessage>(&at, "target");
        let target = promptly("the lookup at the raw server", found).await.unwrap();
        let peer = loop {
            match promptly("the Hello of the environment", arrivals.recv()).await.unwrap() {
                Arrival::Notice(Notice { hello: Some(_), .. }, peer) => break peer,
                other => println!("before Hello: {other:?}"),
            }
        };
        Self {
            grants,
            env,
            target,
            peer,
            greeting,
            at,
            arrivals,
            honest,
            honest_server,
            _server: server,
        }
    }

    pub fn notify(&self, notice: &Notice) {
        self.peer.send(notice.envelope()).unwrap();
    }

    pub async fn next(&mut self) -> Arrival {
        promptly("a message from the environment", self.arrivals.recv())
            .await
            .expect("the server is running")
    }

    /// Returns the next ask, and discards notices and one-way messages.
    pub async fn next_ask(&mut self) -> (RoutedMessage, RpcResponseCallback, TransportClient) {
        loop {
            if let Arrival::Ask(message, callback, client) = self.next().await {
                return (message, callback, client);
            }
        }
    }

    /// Asks the target from the environment, and responds from the raw server with `response`.
    pub async fn ask_and_respond(
        &mut self,
        response: Vec<u8>,
    ) -> (Result<Greeting, RpcError>, RoutedMessage) {
        let ask = self.target.ask(hi("neo"));
        let (message, callback, client) = self.next_ask().await;
        self.peer = client;
        callback.reply(response);
        (promptly("the end of the ask", ask).await, message)
    }

    /// Asserts that asks of the target work, and returns the route that one took.
    pub async fn assert_works(&mut self) -> u32 {
        let (reply, message) = self.ask_and_respond(greeting("fine")).await;
        assert_eq!(reply.unwrap().text, "fine");
        self.assert_honest_works().await;
        message.route
    }

    pub async fn assert_honest_works(&self) {
        assert_eq!(
            promptly("an honest reply", self.honest.ask(hi("neo"))).await.unwrap().text,
            "hi, neo"
        );
    }

    /// Asserts that the shutdown completes and that no memory is held.
    pub async fn finish(self) {
        self.assert_honest_works().await;
        // Endpoints may still handle events.
        until("the events are handled", || self.env.snapshot().inbox_bytes == 0).await;
        assert_eq!(self.env.snapshot().pending_asks, 0);
        promptly("the shutdown", self.env.shutdown()).await;
        let snapshot = self.env.snapshot();
        assert_eq!((snapshot.pending_asks, snapshot.route_bytes), (0, 0), "{snapshot:?}");
        promptly("the shutdown of the honest server", self.honest_server.shutdown()).await;
    }
}

/// Awaits the error of an ask that must fail.
pub async fn error_of<T: std::fmt::Debug>(
    ask: impl Future<Output = Result<T, RpcError>>,
) -> RpcError {
    promptly("the end of the ask", ask).await.unwrap_err()
}
