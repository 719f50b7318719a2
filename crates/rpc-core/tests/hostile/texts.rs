//! Rows M1 and M3, and hostile input for row U5: long and forged texts, names and details of peers
//! in errors, events and log lines.

use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex};

use prost::Message;
use rpc_core::{EndpointContext, ErrorKind, RpcAddress, RpcEnv, RpcError, ThreadSafeRpcEndpoint};
use tokio::sync::{Semaphore, mpsc};
use tracing::subscriber::DefaultGuard;

use crate::common::envelope::{self, Notice, Undelivered};
use crate::common::{Greeting, Hello, HelloMessage, UndeliveredWatch, client, next, setting};
use crate::fixture::{promptly, until};
use crate::raw_peer::{Failure, RawPeer, Response, say_hi};
use crate::raw_server::{Victim, hello};

/// Text that begins a line of its own, controls a terminal, and reorders what follows.
const FORGED: &str = "x\n2026-01-01 ERROR forged\r\u{1b}[2J\u{9b}31m\u{2028}\u{202e}\u{7}";

fn is_clean(text: &str) -> bool {
    !text.chars().any(|c| c.is_control() || "\u{2028}\u{202e}".contains(c))
}

/// Checks each text of an error, and returns the number of bytes of all.
fn assert_clean(error: &RpcError) -> usize {
    let sources = std::iter::successors(error.source(), |&error| error.source());
    let texts = std::iter::once(error.to_string()).chain(sources.map(ToString::to_string));
    let texts: Vec<_> = texts.chain(error.peer().map(ToOwned::to_owned)).collect();
    for text in &texts {
        assert!(is_clean(text), "{text:?}");
        // A text of this crate around two texts of the peer.
        assert!(text.len() <= 2500, "{} bytes", text.len());
    }
    texts.iter().map(String::len).sum()
}

/// The log of this thread, which runs all tasks of a test.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn start() -> (Self, DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .with_writer(move || writer.clone());
        (log, tracing::subscriber::set_default(subscriber.finish()))
    }

    fn assert_clean(&self) -> usize {
        let log = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        for line in log.lines() {
            assert!(is_clean(line) && !line.starts_with("2026-01-01 ERROR forged"), "{line:?}");
            assert!(line.contains("DEBUG") || line.contains("WARN") || line.contains("ERROR"));
        }
        log.len()
    }
}

fn failure(message: &str, causes: usize) -> Failure {
    let causes = vec![message.to_owned(); causes];
    Failure { kind: 0, message: message.to_owned(), causes, retryable: false }
}

fn undelivered(route: u32, path: &str, failure: &Failure) -> Notice {
    let failure = failure.encode_to_vec();
    let undelivered = Some(Undelivered { route, path: path.to_owned(), failure });
    Notice { undelivered, ..Notice::default() }
}

#[tokio::test]
async fn fault_m3_failures_of_peer_are_cut_and_escaped() {
    let (log, _guard) = Log::start();
    let mut victim = Victim::start().await;
    let long = FORGED.repeat(2000);
    for message in [FORGED, &long] {
        for causes in [0, 1, 32, 100] {
            let response = Response { value: None, failure: Some(failure(message, causes)) };
            let asked = victim.ask_and_respond(response.encode_to_vec()).await.0;
            let error = asked.unwrap_err();
            assert!(error.to_string().starts_with("x\\n2026"), "{error}");
            assert!(assert_clean(&error) < 8000);
            // The error of a nested ask becomes the failure of a handler, and is logged.
            let env = client().await;
            let endpoint = env.setup_endpoint("fails", FailsWith(error)).unwrap();
            endpoint.send(crate::common::hi("neo")).unwrap();
            promptly("the shutdown", env.shutdown()).await;
        }
    }
    assert!(log.assert_clean() < 200_000);
    victim.finish().await;
}

struct FailsWith(RpcError);

impl ThreadSafeRpcEndpoint for FailsWith {
    type Message = HelloMessage;
    async fn receive(
        &mut self,
        _: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        Err(self.0.clone())
    }
}

#[tokio::test]
async fn fault_m3_names_in_undelivered_notices_are_cut_and_escaped() {
    let (log, _guard) = Log::start();
    let mut victim = Victim::start().await;
    let (sender, mut errors) = mpsc::unbounded_channel();
    victim.env.setup_endpoint("watch", UndeliveredWatch(sender)).unwrap();
    let route = victim.assert_works().await;
    for text in [FORGED, &FORGED.repeat(20_000)] {
        victim.notify(&undelivered(route, text, &failure(text, 3)));
        let (error, _) = next(&mut errors).await;
        assert!(error.is_remote() && assert_clean(&error) < 8000);
    }
    victim.assert_works().await;
    assert!(log.assert_clean() < 100_000);
}

#[tokio::test]
async fn fault_m3_names_in_requests_are_cut_and_escaped() {
    let (log, _guard) = Log::start();
    let server = RpcEnv::builder("server").bind("127.0.0.1:0").start().await.unwrap();
    server.setup_endpoint("hello", Hello).unwrap();
    let mut peer = RawPeer::greeted(&server).await;
    for (n, text) in [FORGED, &FORGED.repeat(2000)].into_iter().enumerate() {
        let route = 10 * (n as u32 + 1);
        let message = |number, endpoint: &str, path: &str, body: &[u8]| {
            envelope::message(route + number, endpoint, path, body)
        };
        let messages = [
            message(0, text, "/hello.Hello/SayHi", b""),
            message(1, "hello", &format!("/hello.Hello/{text}"), b""),
            message(1, "", &format!("/{text}/{text}"), b""),
            message(1, "", text, b"\xff"),
            message(1, text, "/hello.Hello/SayHi", b""),
            message(1, "", "/hello.Hello/SayHi", b"\xff\xff"),
        ];
        for message in messages {
            let error = peer.ask(&message).await.error();
            assert!(is_clean(&error) && error.len() <= 2500, "{error:?}");
            peer.send(&message);
            let failure = peer.next_undelivered().await.failure;
            let failure = Failure::decode(&failure[..]).unwrap();
            assert!(is_clean(&failure.message) && failure.message.len() <= 2500);
        }
        peer.close_route(route + 1);
        peer.settle().await;
    }
    assert!(log.assert_clean() < 200_000);
}

#[tokio::test]
async fn fault_m3_addresses_and_refs_of_peers_are_cut_and_escaped() {
    let (log, _guard) = Log::start();
    let env = client().await;
    for text in [FORGED, &FORGED.repeat(20_000), &"n".repeat(60_000), &"n".repeat(70_000)] {
        let mut hello = hello(1, 1);
        hello.address = text.to_owned();
        let server = RpcEnv::builder("server").bind("127.0.0.1:0").start().await.unwrap();
        server.setup_endpoint("hello", Hello).unwrap();
        let peer = RawPeer::connect(&server).await;
        peer.notify(&Notice { hello: Some(hello), ..Notice::default() });
        let error = peer.ask(&say_hi(1, "hello", "")).await.error();
        assert!(is_clean(&error) && error.len() <= 2500, "{} bytes", error.len());
        for (name, address, services) in [
            (text, "", vec!["hello.Hello".to_owned()]),
            ("hello", text, vec!["hello.Hello".to_owned()]),
            ("hello", "127.0.0.1:1", vec![text.to_owned(); 100]),
            (text, "127.0.0.1:1", vec![text.to_owned(); 100]),
        ] {
            let error = env.resolve::<HelloMessage>(&field(name, address, services, 0));
            assert_clean(&error.unwrap_err());
        }
        // A valid name of any length, of an environment that is not connected.
        let unreachable = field(text, "", vec!["hello.Hello".to_owned()], 77);
        assert_clean(&env.resolve::<HelloMessage>(&unreachable).unwrap_err());
        assert_clean(&text.parse::<RpcAddress>().unwrap_err());
        let uri = format!("spark://{text}@{text}");
        let looked_up = env.setup_endpoint_ref_by_uri::<HelloMessage>(&uri).await;
        assert_clean(&looked_up.unwrap_err());
    }
    assert!(log.assert_clean() < 200_000);
}

/// Makes the ref of a peer, which has no constructor.
fn field(
    name: &str,
    address: &str,
    services: Vec<String>,
    incarnation: u64,
) -> rpc_core::EndpointRef {
    #[derive(Clone, PartialEq, Message)]
    struct Fields {
        #[prost(string, tag = "1")]
        address: String,
        #[prost(string, tag = "2")]
        name: String,
        #[prost(string, repeated, tag = "3")]
        services: Vec<String>,
        #[prost(fixed64, tag = "4")]
        incarnation: u64,
    }
    let fields =
        Fields { address: address.to_owned(), name: name.to_owned(), services, incarnation };
    rpc_core::EndpointRef::decode(&fields.encode_to_vec()[..]).unwrap()
}

/// An endpoint that handles one undelivered-event for each permit.
struct SlowWatch(Arc<Semaphore>, mpsc::UnboundedSender<usize>);

impl ThreadSafeRpcEndpoint for SlowWatch {
    type Message = HelloMessage;
    async fn receive(
        &mut self,
        _: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        Ok(())
    }
    async fn on_undelivered(
        &mut self,
        error: RpcError,
        _: RpcAddress,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        self.0.acquire().await.map_err(RpcError::application)?.forget();
        self.1.send(assert_clean(&error)).map_err(RpcError::application)
    }
}

/// 600 notices of 1 MiB to an environment with busy endpoints.
#[tokio::test]
async fn fault_m1_events_of_long_notices_use_bounded_memory_and_log() {
    const LIMIT: u64 = 64 << 10;
    let (log, _guard) = Log::start();
    let conf = setting("spark.rpc.inbox.maxTotalBytes", &LIMIT.to_string());
    let mut victim = Victim::with(Some(hello(1, 1)), conf).await;
    let permits = Arc::new(Semaphore::new(0));
    let (sender, mut handled) = mpsc::unbounded_channel();
    for name in ["one", "two"] {
        let watch = SlowWatch(Arc::clone(&permits), sender.clone());
        victim.env.setup_endpoint(name, watch).unwrap();
    }
    let route = victim.assert_works().await;
    let text = "refused\n".repeat(1 << 14);
    let notice = undelivered(route, "/hello.Hello/SayHi", &failure(&text, 7)).envelope();
    for n in 1..=600 {
        victim.peer.send(notice.clone()).unwrap();
        // The connection is driven by this thread.
        until("the notice is counted", || victim.env.snapshot().undelivered == n).await;
    }
    let held = victim.env.snapshot().inbox_bytes;
    assert!((LIMIT / 2..LIMIT + (16 << 10)).contains(&held), "{held} bytes");
    assert!(log.assert_clean() < 600 * 8000, "{} bytes of log", log.assert_clean());
    permits.add_permits(10_000);
    until("the events are handled", || victim.env.snapshot().inbox_bytes == 0).await;
    let mut events = 0;
    while handled.try_recv().is_ok() {
        events += 1;
    }
    assert!((2..100).contains(&events), "{events}");
    victim.assert_works().await;
    victim.finish().await;
}

/// Connection events are queued also when other events use all bytes.
#[tokio::test]
async fn fault_m1_connection_events_count_and_are_never_discarded() {
    let permits = Arc::new(Semaphore::new(0));
    let (sender, _handled) = mpsc::unbounded_channel();
    let conf = setting("spark.rpc.inbox.maxTotalBytes", "1k");
    let server = RpcEnv::builder("server").bind("127.0.0.1:0").conf(conf).start().await.unwrap();
    let watch = ConnectionWatch(Arc::clone(&permits), sender);
    server.setup_endpoint("watch", watch).unwrap();
    for _ in 0..20 {
        let peer = RawPeer::greeted(&server).await;
        peer.close();
    }
    until("the events are queued", || server.snapshot().inbox_bytes >= 40 * 256).await;
    permits.add_permits(10_000);
    until("the events are handled", || server.snapshot().inbox_bytes == 0).await;
}

struct ConnectionWatch(Arc<Semaphore>, mpsc::UnboundedSender<RpcAddress>);

impl ThreadSafeRpcEndpoint for ConnectionWatch {
    type Message = HelloMessage;
    async fn receive(
        &mut self,
        _: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        Ok(())
    }
    async fn on_connected(
        &mut self,
        remote: RpcAddress,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        self.0.acquire().await.map_err(RpcError::application)?.forget();
        self.1.send(remote).map_err(RpcError::application)
    }
}

/// `rpc_core.envelope.Failure` with the fields of row U5.
#[derive(Clone, PartialEq, Message)]
struct TypedFailure {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(sint32, optional, tag = "5")]
    code: Option<i32>,
    #[prost(bytes = "vec", optional, tag = "6")]
    details: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct TypedResponse {
    #[prost(message, tag = "2")]
    failure: Option<TypedFailure>,
}

#[tokio::test]
async fn fault_u5_hostile_codes_and_details_are_harmless() {
    let mut victim = Victim::start().await;
    let details: [Vec<u8>; 5] = [
        Vec::new(),
        b"\xff\xff\xff".to_vec(),
        b"\x0a\x7f".to_vec(),
        vec![0; (64 << 10) + 1],
        vec![b'x'; 8 << 20],
    ];
    for kind in [0, 1, 4, 7, 99, -1] {
        for code in [None, Some(0), Some(i32::MIN), Some(i32::MAX)] {
            for details in &details {
                let failure = TypedFailure {
                    kind,
                    message: "no".to_owned(),
                    code,
                    details: Some(details.clone()),
                };
                let response = TypedResponse { failure: Some(failure) }.encode_to_vec();
                let error = victim.ask_and_respond(response).await.0.unwrap_err();
                assert_eq!(error.code(), code);
                let read = error.details::<Greeting>();
                assert_eq!(read.is_some(), details.is_empty(), "{} bytes", details.len());
                assert!(format!("{error:?}").len() < 500);
            }
        }
    }
    // A field of another type makes the response malformed.
    let error = victim.ask_and_respond(b"\x12\x04\x2a\x02ab".to_vec()).await.0.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Decode);
    victim.assert_works().await;
    victim.finish().await;
}
