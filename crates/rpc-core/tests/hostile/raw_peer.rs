//! A client that writes its envelopes by hand, connected to an environment that listens.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use network_common::{
    RpcHandler, RpcResponseCallback, TransportClient, TransportClientFactory, TransportConf,
    TransportContext,
};
use prost::Message;
use rpc_core::RpcEnv;
use tokio::sync::mpsc;

use crate::common::address;
use crate::common::envelope::{self, Credit, Hello, Notice, RoutedMessage, Undelivered};
use crate::fixture::promptly;

/// The kinds of `rpc_core.envelope.Failure` that the tests distinguish.
pub const ENDPOINT_NOT_FOUND: i32 = 5;
pub const NOT_DELIVERED: i32 = 6;
pub const LIMIT: i32 = 7;

/// `rpc_core.envelope.Failure`.
#[derive(Clone, PartialEq, Message)]
pub struct Failure {
    #[prost(int32, tag = "1")]
    pub kind: i32,
    #[prost(string, tag = "2")]
    pub message: String,
    #[prost(string, repeated, tag = "3")]
    pub causes: Vec<String>,
    #[prost(bool, tag = "4")]
    pub retryable: bool,
}

/// `rpc_core.envelope.Response`.
#[derive(Clone, PartialEq, Message)]
pub struct Response {
    #[prost(bytes = "vec", optional, tag = "1")]
    pub value: Option<Vec<u8>>,
    #[prost(message, tag = "2")]
    pub failure: Option<Failure>,
}

/// The outcome of an ask of a raw peer.
#[derive(Debug)]
pub enum Outcome {
    Value(Vec<u8>),
    Failure(Failure),
    /// An RpcFailure frame, or the end of the connection.
    Transport(String),
}

impl Outcome {
    /// Returns the reply of the endpoint, or panics.
    #[track_caller]
    pub fn value(self) -> Vec<u8> {
        match self {
            Self::Value(value) => value,
            other => panic!("a reply is expected: {other:?}"),
        }
    }

    #[track_caller]
    pub fn failure(self) -> Failure {
        match self {
            Self::Failure(failure) => failure,
            other => panic!("a failure is expected: {other:?}"),
        }
    }

    /// Returns the text of the failure, of the RpcFailure frame or of the closed connection.
    #[track_caller]
    pub fn error(self) -> String {
        match self {
            Self::Failure(failure) => failure.message,
            Self::Transport(text) => text,
            Self::Value(value) => panic!("an error is expected: {value:?}"),
        }
    }
}

/// Sends the bodies of one-way messages to the test, and fails all requests.
struct Recorder(mpsc::UnboundedSender<RoutedMessage>);

impl RpcHandler for Recorder {
    fn receive(&self, _: &TransportClient, _: Bytes, callback: RpcResponseCallback) {
        callback.fail("a raw peer serves nothing");
    }

    fn receive_one_way(&self, _: &TransportClient, body: Bytes) {
        // The test may have ended and dropped the receiver.
        let _ = self
            .0
            .send(RoutedMessage::decode(body).expect("the environment writes valid envelopes"));
    }
}

pub struct RawPeer {
    client: TransportClient,
    received: mpsc::UnboundedReceiver<RoutedMessage>,
    _factory: TransportClientFactory,
}

impl RawPeer {
    /// Connects and sends nothing.
    pub async fn connect(server: &RpcEnv) -> Self {
        let (sender, received) = mpsc::unbounded_channel();
        // Some tests queue all messages of a flood at once.
        let conf = TransportConf::from_settings("rpc", [("spark.rpc.io.maxWriteQueueSize", "1g")])
            .unwrap();
        let factory = TransportContext::new(conf, Recorder(sender)).create_client_factory();
        let at = address(server);
        let client =
            promptly("the connection", factory.create_unmanaged_client((at.host(), at.port())))
                .await;
        Self { client: client.unwrap(), received, _factory: factory }
    }

    /// Connects, sends a Hello with an incarnation of its own, and waits for that of the
    /// environment.
    pub async fn greeted(server: &RpcEnv) -> Self {
        static INCARNATION: AtomicU64 = AtomicU64::new(1000);
        let mut peer = Self::connect(server).await;
        peer.notify(&envelope::hello(INCARNATION.fetch_add(1, Ordering::Relaxed)));
        peer.next_hello().await;
        peer
    }

    pub fn notify(&self, notice: &Notice) {
        self.send_bytes(notice.envelope());
    }

    pub fn send(&self, message: &RoutedMessage) {
        self.send_bytes(message.encode_to_vec());
    }

    pub fn send_bytes(&self, bytes: Vec<u8>) {
        self.client.send(bytes).expect("the connection is open and its write queue has capacity");
    }

    /// Sends the request at once, and returns a future of its outcome.
    pub fn ask(&self, message: &RoutedMessage) -> impl Future<Output = Outcome> + Send + use<> {
        self.ask_bytes(message.encode_to_vec())
    }

    pub fn ask_bytes(&self, bytes: Vec<u8>) -> impl Future<Output = Outcome> + Send + use<> {
        let pending = self.client.send_rpc(bytes);
        async {
            let response = match promptly("a response", pending).await {
                Ok(bytes) => {
                    Response::decode(bytes).expect("the environment writes valid responses")
                }
                Err(error) => return Outcome::Transport(error.to_string()),
            };
            match (response.value, response.failure) {
                (_, Some(failure)) => Outcome::Failure(failure),
                (value, None) => Outcome::Value(value.unwrap_or_default()),
            }
        }
    }

    /// Asks `hello` over `route`, and returns the outcome if it is not the expected reply.
    pub async fn ask_hello(&self, route: u32, endpoint: &str) -> Result<(), Outcome> {
        match self.ask(&say_hi(route, endpoint, "raw")).await {
            Outcome::Value(value) => {
                assert_eq!(value, b"\x0a\x07hi, raw");
                Ok(())
            }
            other => Err(other),
        }
    }

    pub fn close_route(&self, route: u32) {
        let close_route = Some(Credit { route, ..Credit::default() });
        self.notify(&Notice { close_route, ..Notice::default() });
    }

    /// Returns the next notice of the environment.
    pub async fn next_notice(&mut self) -> Notice {
        let message =
            promptly("a notice", self.received.recv()).await.expect("the connection is open");
        assert_eq!(
            message.route, 0,
            "an environment sends nothing but notices to a peer without endpoints"
        );
        Notice::decode(&message.body[..]).expect("the environment writes valid notices")
    }

    /// Returns the next notice for which `pick` returns `Some`, and discards others.
    pub async fn next_of<T>(&mut self, pick: impl Fn(Notice) -> Option<T>) -> T {
        loop {
            if let Some(found) = pick(self.next_notice().await) {
                return found;
            }
        }
    }

    pub async fn next_hello(&mut self) -> Hello {
        self.next_of(|notice| notice.hello).await
    }

    pub async fn next_undelivered(&mut self) -> Undelivered {
        self.next_of(|notice| notice.undelivered).await
    }

    /// Returns the route of the next RouteClosed.
    pub async fn next_route_closed(&mut self) -> u32 {
        self.next_of(|notice| notice.route_closed).await.route
    }

    /// Returns the next reply to CloseRoute: `Ok` is RouteClosed, `Err` the Credit that keeps the
    /// route open.
    pub async fn next_close_reply(&mut self) -> Result<u32, Credit> {
        self.next_of(|notice| match notice {
            Notice { route_closed: Some(closed), .. } => Some(Ok(closed.route)),
            Notice { credit: Some(credit), .. } if credit.keeps_open => Some(Err(credit)),
            _ => None,
        })
        .await
    }

    /// Closes a route whose requests have been replied to.
    ///
    /// It retries, as the handler of the last request may still be running.
    pub async fn close_idle_route(&mut self, route: u32) {
        let closed = async {
            self.close_route(route);
            while let Err(credit) = self.next_close_reply().await {
                assert_eq!(credit.route, route);
                self.close_route(route);
            }
        };
        promptly("the route is closed", closed).await;
    }

    /// Returns the notices that have arrived and that the test has not taken.
    pub fn arrived_notices(&mut self) -> Vec<Notice> {
        let mut notices = Vec::new();
        while let Ok(message) = self.received.try_recv() {
            notices.push(Notice::decode(&message.body[..]).unwrap());
        }
        notices
    }

    pub fn is_connected(&self) -> bool {
        self.client.is_active()
    }

    /// Waits until the environment has read all sent messages: it responds to a later request.
    pub async fn settle(&self) {
        // No route has this number.
        let outcome = self.ask(&say_hi(u32::MAX - 1, "", "settle")).await;
        assert!(outcome.error().contains("no route"));
    }

    pub fn close(self) {
        self.client.close();
    }
}

/// Returns a `SayHi` request for the endpoint `Hello`.
pub fn say_hi(route: u32, endpoint: &str, text: &str) -> RoutedMessage {
    let body = crate::common::hi(text).encode_to_vec();
    envelope::message(route, endpoint, "/hello.Hello/SayHi", &body)
}

/// Decodes the failure of an Undelivered notice.
pub fn failure_of(undelivered: &Undelivered) -> Failure {
    Failure::decode(&undelivered.failure[..]).expect("a failure")
}
