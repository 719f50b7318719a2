//! Sends arbitrary envelopes and notices to an `RpcEnv` over a raw connection.
//!
//! The raw peer is either a client of an environment that listens, or a server to which an
//! environment connects. Properties: the environment does not panic, every ask completes, the
//! environment holds no messages, asks or routes after the connection has closed, and it still
//! serves another peer.
//!
//! Input: the direction, and the actions of the peer. Time is paused, so timeouts elapse at once.

#![no_main]

#[path = "../../crates/rpc-core/tests/common/envelope.rs"]
#[allow(dead_code, missing_docs, unreachable_pub)]
mod envelope;

use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use arbitrary::Arbitrary;
use bytes::Bytes;
use envelope::{Cancel, Credit, Hello, Notice, RoutedMessage, Undelivered};
use libfuzzer_sys::fuzz_target;
use network_common::{
    RpcHandler, RpcResponseCallback, TransportClient, TransportConf, TransportContext,
};
use prost::Message;
use rpc_core::{
    DecodeBuf, EncodeBuf, EndpointContext, EndpointOptions, EndpointRef, IncomingRequest,
    MemoryNetwork, Method, RpcCallContext, RpcEndpointRef, RpcEnv, RpcError, RpcMessage,
    RpcRequest, ThreadSafeRpcEndpoint,
};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};

const SERVER: &str = "10.0.0.1:7077";
const RAW_SERVER: &str = "10.0.0.2:7077";

/// The message of the fuzzed endpoints: one rpc, whose request and reply have the same type.
struct Echo(Text, RpcCallContext<Text>);

#[derive(Clone, PartialEq, prost::Message)]
struct Text {
    #[prost(string, tag = "1")]
    text: String,
}

impl RpcMessage for Echo {
    const SERVICES: &'static [&'static str] = &["fuzz.Echo"];

    fn decode(mut request: IncomingRequest<'_>) -> Result<Self, RpcError> {
        match request.method() {
            "Echo" => Ok(Self(request.decode()?, request.context())),
            _ => Err(request.unknown_method()),
        }
    }
}

impl RpcRequest<Echo> for Text {
    type Reply = Self;
    const METHOD: Option<Method> = Some(Method::new("/fuzz.Echo/Echo"));

    fn into_message(self, context: RpcCallContext<Self>) -> Echo {
        Echo(self, context)
    }

    fn encode(&self, body: &mut EncodeBuf<'_>) -> Result<(), RpcError> {
        body.put_message(self)
    }

    fn decode_reply(body: DecodeBuf) -> Result<Self, RpcError> {
        body.decode()
    }
}

/// An endpoint that replies only while its gate is open.
struct GatedEndpoint(watch::Receiver<bool>);

impl ThreadSafeRpcEndpoint for GatedEndpoint {
    type Message = Echo;

    async fn receive(&mut self, message: Echo, _: &EndpointContext<Echo>) -> Result<(), RpcError> {
        self.0.wait_for(|is_open| *is_open).await.map_err(RpcError::application)?;
        message.1.reply(message.0)
    }
}

/// The number of a route, mostly one of the lowest.
#[derive(Debug, Arbitrary)]
enum Route {
    Low(u8),
    Any(u32),
}

impl Route {
    fn number(&self) -> u32 {
        match self {
            Self::Low(low) => u32::from(low % 6),
            Self::Any(any) => *any,
        }
    }
}

#[derive(Debug, Arbitrary)]
enum Name {
    None,
    Open,
    Gated,
    Verifier,
    Other(u8),
    Long(u16),
    Any(String),
}

impl Name {
    fn text(&self) -> String {
        match self {
            Self::None => String::new(),
            Self::Open => "open".to_owned(),
            Self::Gated => "gated".to_owned(),
            Self::Verifier => "endpoint-verifier".to_owned(),
            Self::Other(number) => format!("other-{number}"),
            Self::Long(length) => "x".repeat(usize::from(*length) * 20),
            Self::Any(name) => name.clone(),
        }
    }
}

#[derive(Debug, Arbitrary)]
enum Path {
    Echo,
    CheckExistence,
    Any(String),
}

impl Path {
    fn text(&self) -> &str {
        match self {
            Self::Echo => "/fuzz.Echo/Echo",
            Self::CheckExistence => "/rpc_core.envelope.EndpointVerifier/CheckExistence",
            Self::Any(path) => path,
        }
    }
}

#[derive(Debug, Arbitrary)]
enum Action {
    Greet,
    Hello {
        min_version: u8,
        max_version: u8,
        features: u64,
        incarnation: u8,
        address: String,
        max_routes: u32,
    },
    Message {
        is_ask: bool,
        repeat: u8,
        route: Route,
        name: Name,
        path: Path,
        blocked_by: u32,
        timeout_us: u64,
        traceparent: String,
        body: Vec<u8>,
    },
    Credit {
        route: Route,
        messages: u64,
        bytes: u64,
        keeps_open: bool,
    },
    CloseRoute(Route),
    RouteClosed(Route),
    Cancel(i64),
    Undelivered {
        route: Route,
        path: Path,
        failure: Vec<u8>,
    },
    RawNotice(Vec<u8>),
    RawOneWay(Vec<u8>),
    RawAsk(Vec<u8>),
    /// The raw peer responds to the environment's next request.
    Respond(Vec<u8>),
    /// The environment runs until it is idle.
    Yield,
    OpenGate(bool),
    /// The environment that connects asks or sends.
    Use {
        is_ask: bool,
        is_bound: bool,
        text: u8,
    },
}

fn credit(route: &Route, messages: u64, bytes: u64, keeps_open: bool) -> Option<Credit> {
    Some(Credit { route: route.number(), messages, bytes, keeps_open })
}

/// Passes the requests of the environment to the fuzz target, which responds to some of them.
struct Recorder {
    connected: mpsc::UnboundedSender<TransportClient>,
    requests: mpsc::UnboundedSender<RpcResponseCallback>,
}

impl RpcHandler for Recorder {
    fn receive(&self, _: &TransportClient, _: Bytes, callback: RpcResponseCallback) {
        let _ = self.requests.send(callback);
    }

    fn receive_one_way(&self, _: &TransportClient, _: Bytes) {}

    fn on_connected(&self, client: &TransportClient) {
        let _ = self.connected.send(client.clone());
    }
}

/// The wire format of `rpc_core.EndpointRef`.
#[derive(Clone, PartialEq, prost::Message)]
struct WireRef {
    #[prost(string, tag = "1")]
    address: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, repeated, tag = "3")]
    services: Vec<String>,
    #[prost(fixed64, tag = "4")]
    incarnation: u64,
}

/// The environments that all inputs of the process share.
struct Fixture {
    runtime: Runtime,
    network: MemoryNetwork,
    server: RpcEnv,
    /// The other peer, whose connection to the server stays open. It also connects to raw servers.
    client: RpcEnv,
    open: RpcEndpointRef<Echo>,
    gate: watch::Sender<bool>,
    /// The memory of the routes that the client has opened to the server.
    route_bytes: u64,
}

impl Fixture {
    fn new() -> Self {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("the runtime cannot be created");
        let network = MemoryNetwork::new();
        let (gate, gate_receiver) = watch::channel(false);
        let (_, always_open) = watch::channel(true);
        let (server, client, open) = runtime.block_on(async {
            let server = RpcEnv::builder("server")
                .bind(SERVER)
                .memory_network(&network)
                .start()
                .await
                .expect("the server cannot start");
            server.setup_endpoint("open", GatedEndpoint(always_open)).expect("the name is free");
            let options = EndpointOptions::new().max_messages(4);
            let gated = GatedEndpoint(gate_receiver.clone());
            server.setup_endpoint_with("gated", gated, options.clone()).expect("the name is free");
            let client = RpcEnv::builder("client")
                .client_mode()
                .memory_network(&network)
                .start()
                .await
                .expect("the client cannot start");
            let gated = GatedEndpoint(gate_receiver);
            client.setup_endpoint_with("gated", gated, options).expect("the name is free");
            let address = SERVER;
            let open = client.setup_endpoint_ref::<Echo>(address, "open").await;
            let open = open.expect("the endpoint is registered");
            // The first message opens the route, which stays open.
            open.ask(Text { text: "first".to_owned() }).await.expect("the endpoint replies");
            (server, client, open)
        });
        let route_bytes = server.snapshot().route_bytes;
        Self { runtime, network, server, client, open, gate, route_bytes }
    }

    fn target(&self, is_bound: bool) -> RpcEndpointRef<Echo> {
        let wire = WireRef {
            address: RAW_SERVER.to_owned(),
            name: "open".to_owned(),
            services: vec!["fuzz.Echo".to_owned()],
            incarnation: if is_bound { 7 } else { 0 },
        };
        let field = EndpointRef::decode(&wire.encode_to_vec()[..]).expect("the ref is valid");
        self.client.resolve(&field).expect("the ref is remote")
    }

    /// Performs `actions` with a raw peer that connects to the server.
    async fn attack_server(&self, actions: Vec<Action>) {
        let (connected, _) = mpsc::unbounded_channel();
        let (requests, received) = mpsc::unbounded_channel();
        let context =
            TransportContext::new(TransportConf::new("fuzz"), Recorder { connected, requests });
        let factory = context.memory_network(&self.network).create_client_factory();
        let peer = factory.create_unmanaged_client(("10.0.0.1", 7077)).await;
        let peer = peer.expect("the server listens");
        self.perform(actions, &peer, received).await;
        peer.close();
        self.assert_nothing_remains(&self.server, self.route_bytes).await;
    }

    /// Performs `actions` with a raw server to which the client connects.
    async fn attack_client(&self, actions: Vec<Action>) {
        let (connected, mut connections) = mpsc::unbounded_channel();
        let (requests, received) = mpsc::unbounded_channel();
        let context =
            TransportContext::new(TransportConf::new("fuzz"), Recorder { connected, requests });
        let server = context
            .memory_network(&self.network)
            .create_server(RAW_SERVER)
            .await
            .expect("the address is free");
        let first = self
            .target(false)
            .ask_with_timeout(Text { text: "first".to_owned() }, Duration::from_secs(1));
        let peer = connections.recv().await.expect("the client connects");
        self.perform(actions, &peer, received).await;
        peer.close();
        drop(server);
        // The ask completes with a reply or an error.
        let _ = first.await;
        self.assert_nothing_remains(&self.client, 0).await;
    }

    async fn perform(
        &self,
        actions: Vec<Action>,
        peer: &TransportClient,
        mut requests: mpsc::UnboundedReceiver<RpcResponseCallback>,
    ) {
        let mut asks = Vec::new();
        for action in actions {
            let notice = match action {
                Action::Greet => envelope::hello(7),
                Action::Hello {
                    min_version,
                    max_version,
                    features,
                    incarnation,
                    address,
                    max_routes,
                } => {
                    let (min_version, max_version) = (min_version.into(), max_version.into());
                    let incarnation = incarnation.into();
                    let hello = Hello {
                        min_version,
                        max_version,
                        features,
                        incarnation,
                        address,
                        max_routes,
                    };
                    Notice { hello: Some(hello), ..Notice::default() }
                }
                Action::Message {
                    is_ask,
                    repeat,
                    route,
                    name,
                    path,
                    blocked_by,
                    timeout_us,
                    traceparent,
                    body,
                } => {
                    let mut message = RoutedMessage {
                        blocked_by,
                        timeout_us,
                        traceparent,
                        ..RoutedMessage::default()
                    };
                    (message.route, message.endpoint) = (route.number(), name.text());
                    (message.path, message.body) = (path.text().to_owned(), body);
                    for _ in 0..=repeat % 100 {
                        if is_ask {
                            drop(peer.send_rpc(message.encode_to_vec()));
                        } else {
                            let _ = peer.send(message.encode_to_vec());
                        }
                        // The following messages use the route that this one has opened.
                        message.endpoint.clear();
                    }
                    continue;
                }
                Action::Credit { route, messages, bytes, keeps_open } => Notice {
                    credit: credit(&route, messages, bytes, keeps_open),
                    ..Notice::default()
                },
                Action::CloseRoute(route) => {
                    Notice { close_route: credit(&route, 0, 0, false), ..Notice::default() }
                }
                Action::RouteClosed(route) => {
                    Notice { route_closed: credit(&route, 0, 0, false), ..Notice::default() }
                }
                Action::Cancel(request_id) => {
                    Notice { cancel: Some(Cancel { request_id }), ..Notice::default() }
                }
                Action::Undelivered { route, path, failure } => {
                    let undelivered = Undelivered {
                        route: route.number(),
                        path: path.text().to_owned(),
                        failure,
                    };
                    Notice { undelivered: Some(undelivered), ..Notice::default() }
                }
                Action::RawNotice(body) => {
                    let _ = peer
                        .send(RoutedMessage { body, ..RoutedMessage::default() }.encode_to_vec());
                    continue;
                }
                Action::RawOneWay(bytes) => {
                    let _ = peer.send(bytes);
                    continue;
                }
                Action::RawAsk(bytes) => {
                    drop(peer.send_rpc(bytes));
                    continue;
                }
                Action::Respond(bytes) => {
                    if let Ok(callback) = requests.try_recv() {
                        callback.reply(bytes);
                    }
                    continue;
                }
                Action::Yield => {
                    settle().await;
                    continue;
                }
                Action::OpenGate(open) => {
                    self.gate.send_replace(open);
                    continue;
                }
                Action::Use { is_ask, is_bound, text } => {
                    let (target, text) =
                        (self.target(is_bound), Text { text: "x".repeat(text.into()) });
                    if is_ask {
                        asks.push(target.ask_with_timeout(text, Duration::from_secs(1)));
                    } else {
                        let _ = target.send(text);
                    }
                    continue;
                }
            };
            let _ = peer.send(notice.envelope());
        }
        settle().await;
        drop(requests);
        for ask in asks {
            // The ask completes with a reply or an error.
            let _ = ask.await;
        }
    }

    async fn assert_nothing_remains(&self, env: &RpcEnv, route_bytes: u64) {
        self.gate.send_replace(true);
        let mut held = env.snapshot();
        for _ in 0..1000 {
            if (held.inbox_bytes, held.pending_asks) == (0, 0) && held.route_bytes <= route_bytes {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
            held = env.snapshot();
        }
        assert!(held.inbox_bytes == 0 && held.route_bytes <= route_bytes, "{held:?}");
        assert!(held.endpoints.iter().all(|endpoint| endpoint.held == 0), "{held:?}");
        assert_eq!(held.pending_asks, 0, "{held:?}");
        self.gate.send_replace(false);
        let reply = self
            .open
            .ask_with_timeout(Text { text: "neo".to_owned() }, Duration::from_secs(5))
            .await;
        assert_eq!(reply.expect("the other peer gets a reply").text, "neo");
    }
}

/// Runs all tasks until they wait for a timer or an event.
async fn settle() {
    tokio::time::sleep(Duration::from_micros(1)).await;
}

static FIXTURE: LazyLock<Mutex<Fixture>> = LazyLock::new(|| Mutex::new(Fixture::new()));

fuzz_target!(|input: (bool, Vec<Action>)| {
    let (is_from_server, actions) = input;
    let fixture = FIXTURE.lock().expect("the lock is poisoned");
    fixture.runtime.block_on(async {
        if is_from_server {
            fixture.attack_client(actions).await;
        } else {
            fixture.attack_server(actions).await;
        }
    });
});
