//! Support for the tests with hostile peers: raw peers that send bytes, a handler that follows
//! commands in its messages, and waits with a timeout.

#![allow(dead_code, reason = "every test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "test support")]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use network_common::{
    BoxError, ErrorKind, ManagedBuffer, RpcHandler, RpcResponseCallback, StreamBody, StreamManager,
    TransportClient, TransportConf, TransportContext, TransportError, TransportServer,
};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The timeout of every single wait.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(15);

/// Returns the future's output, or panics with `what` after the timeout.
pub(crate) async fn within<F: IntoFuture>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(TIMEOUT, future).await {
        Ok(output) => output,
        Err(_) => panic!("not within {TIMEOUT:?}: {what}"),
    }
}

/// Polls `condition` until it holds, at most for [`TIMEOUT`].
pub(crate) async fn eventually(what: &str, condition: impl FnMut() -> bool) {
    eventually_or(|| what.to_owned(), condition).await;
}

/// Like [`eventually`], with a text that is made only on failure.
pub(crate) async fn eventually_or(
    what: impl FnOnce() -> String,
    mut condition: impl FnMut() -> bool,
) {
    let deadline = Instant::now() + TIMEOUT;
    while !condition() {
        if Instant::now() > deadline {
            panic!("not within {TIMEOUT:?}: {}", what());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A reproducible random number generator (xorshift).
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }
}

// ---- wire bytes, written by hand and not with the crate's own encoder ----

pub(crate) const CHUNK_REQUEST: u8 = 0x00;
pub(crate) const CHUNK_SUCCESS: u8 = 0x01;
pub(crate) const CHUNK_FAILURE: u8 = 0x02;
pub(crate) const RPC_REQUEST: u8 = 0x03;
pub(crate) const RPC_RESPONSE: u8 = 0x04;
pub(crate) const RPC_FAILURE: u8 = 0x05;
pub(crate) const STREAM_REQUEST: u8 = 0x06;
pub(crate) const STREAM_RESPONSE: u8 = 0x07;
pub(crate) const STREAM_FAILURE: u8 = 0x08;
pub(crate) const ONE_WAY: u8 = 0x09;
pub(crate) const UPLOAD: u8 = 0x0a;
pub(crate) const META_REQUEST: u8 = 0x0b;
pub(crate) const META_SUCCESS: u8 = 0x0c;

/// Returns a frame of this type.
pub(crate) fn frame(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let rest: Vec<u8> = parts.concat();
    let mut bytes = (9 + rest.len() as u64).to_be_bytes().to_vec();
    bytes.push(kind);
    bytes.extend(rest);
    bytes
}

/// Returns a string with its 4-byte length in front.
pub(crate) fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
}

pub(crate) fn rpc(id: i64, body: &[u8]) -> Vec<u8> {
    frame(RPC_REQUEST, &[&id.to_be_bytes(), &(body.len() as u32).to_be_bytes(), body])
}

pub(crate) fn rpc_response(id: i64, body: &[u8]) -> Vec<u8> {
    frame(RPC_RESPONSE, &[&id.to_be_bytes(), &(body.len() as u32).to_be_bytes(), body])
}

pub(crate) fn rpc_failure(id: i64, error: &str) -> Vec<u8> {
    frame(RPC_FAILURE, &[&id.to_be_bytes(), &text(error)])
}

pub(crate) fn one_way(body: &[u8]) -> Vec<u8> {
    frame(ONE_WAY, &[&(body.len() as u32).to_be_bytes(), body])
}

pub(crate) fn chunk_request(stream: i64, index: i32) -> Vec<u8> {
    frame(CHUNK_REQUEST, &[&stream.to_be_bytes(), &index.to_be_bytes()])
}

pub(crate) fn chunk_success(stream: i64, index: i32, body: &[u8]) -> Vec<u8> {
    frame(CHUNK_SUCCESS, &[&stream.to_be_bytes(), &index.to_be_bytes(), body])
}

pub(crate) fn chunk_failure(stream: i64, index: i32, error: &str) -> Vec<u8> {
    frame(CHUNK_FAILURE, &[&stream.to_be_bytes(), &index.to_be_bytes(), &text(error)])
}

pub(crate) fn stream_request(id: &str) -> Vec<u8> {
    frame(STREAM_REQUEST, &[&text(id)])
}

/// Returns the frame alone; the body has to follow.
pub(crate) fn stream_response(id: &str, count: i64) -> Vec<u8> {
    frame(STREAM_RESPONSE, &[&text(id), &count.to_be_bytes()])
}

pub(crate) fn stream_failure(id: &str, error: &str) -> Vec<u8> {
    frame(STREAM_FAILURE, &[&text(id), &text(error)])
}

/// Returns the frame alone; the data have to follow.
pub(crate) fn upload(id: i64, meta: &str, count: i64) -> Vec<u8> {
    frame(UPLOAD, &[&id.to_be_bytes(), &text(meta), &count.to_be_bytes()])
}

pub(crate) fn meta_success(id: i64, chunks: i32, body: &[u8]) -> Vec<u8> {
    frame(META_SUCCESS, &[&id.to_be_bytes(), &chunks.to_be_bytes(), body])
}

pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}

/// A received frame: its type, and all bytes after the type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) rest: Vec<u8>,
}

impl Frame {
    pub(crate) fn long(&self, at: usize) -> i64 {
        i64::from_be_bytes(self.rest[at..at + 8].try_into().unwrap())
    }

    pub(crate) fn int(&self, at: usize) -> i32 {
        i32::from_be_bytes(self.rest[at..at + 4].try_into().unwrap())
    }

    pub(crate) fn lossy(&self) -> String {
        String::from_utf8_lossy(&self.rest).into_owned()
    }
}

/// A peer that sends and receives raw bytes.
pub(crate) struct RawPeer(pub(crate) TcpStream);

impl RawPeer {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = within("connecting", TcpStream::connect(address)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }

    pub(crate) async fn accept(listener: &TcpListener) -> Self {
        let (stream, _) = within("a connection", listener.accept()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        within("writing", self.0.write_all(bytes)).await.unwrap();
    }

    /// Returns the next frame, or `None` if the connection ended before the whole frame.
    pub(crate) async fn frame(&mut self) -> Option<Frame> {
        within("a frame", async {
            let length = self.0.read_u64().await.ok()?;
            let kind = self.0.read_u8().await.ok()?;
            let mut rest = vec![0; (length - 9) as usize];
            self.0.read_exact(&mut rest).await.ok()?;
            Some(Frame { kind, rest })
        })
        .await
    }

    /// Sends an RPC and checks that its body is echoed.
    pub(crate) async fn echo(&mut self, body: &[u8]) {
        self.send(&rpc(77, body)).await;
        let answer = self.frame().await.expect("a response on an open connection");
        assert_eq!((answer.kind, answer.long(0), &answer.rest[12..]), (RPC_RESPONSE, 77, body));
    }

    /// Reads to the end of the connection, which may be a reset. Returns the number of bytes and
    /// the first ones.
    pub(crate) async fn read_to_end(&mut self) -> (usize, Vec<u8>) {
        within("the end of the connection", async {
            let (mut count, mut all) = (0, Vec::new());
            let mut buffer = vec![0; 256 << 10];
            while let Ok(read @ 1..) = self.0.read(&mut buffer).await {
                count += read;
                all.extend_from_slice(&buffer[..read.min(4096usize.saturating_sub(all.len()))]);
            }
            (count, all)
        })
        .await
    }

    /// Checks that the peer closes without sending anything.
    pub(crate) async fn assert_closed_without_data(&mut self, what: &str) {
        let (count, bytes) = self.read_to_end().await;
        assert_eq!(count, 0, "{what}: sent {bytes:?}");
    }

    pub(crate) async fn finish_sending(&mut self) {
        self.0.shutdown().await.unwrap();
    }

    /// Closes with a reset instead of an orderly shutdown.
    pub(crate) fn reset(self) {
        socket2::SockRef::from(&self.0).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

// ---- a handler that follows commands in its messages ----

/// One event that the handler saw on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ConnectionEvent {
    Active,
    Exception(ErrorKind, String),
    Terminated,
    Inactive,
}

/// Counts live values, and the most at any time.
#[derive(Debug, Clone, Default)]
pub(crate) struct LiveCount(Arc<AtomicUsize>, Arc<AtomicUsize>);

impl LiveCount {
    pub(crate) fn up(&self) -> impl FnOnce() + Send + Sync + 'static {
        let now = self.0.fetch_add(1, Ordering::SeqCst) + 1;
        self.1.fetch_max(now, Ordering::SeqCst);
        let alive = Arc::clone(&self.0);
        move || {
            alive.fetch_sub(1, Ordering::SeqCst);
        }
    }

    pub(crate) fn now(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    pub(crate) fn peak(&self) -> usize {
        self.1.load(Ordering::SeqCst)
    }
}

/// Runs a closure when dropped.
pub(crate) struct OnDrop<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> OnDrop<F> {
    pub(crate) fn new(hook: F) -> Self {
        Self(Some(hook))
    }
}

impl<F: FnOnce()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        if let Some(hook) = self.0.take() {
            hook();
        }
    }
}

/// Executes commands in RPC bodies, upload metas and stream ids; see the matches below. Echoes
/// every other RPC.
#[derive(Default)]
pub(crate) struct ScriptedHandler {
    pub(crate) seen: Mutex<HashMap<SocketAddr, Vec<ConnectionEvent>>>,
    pub(crate) kept: Mutex<Vec<RpcResponseCallback>>,
    pub(crate) one_ways: AtomicUsize,
    pub(crate) rpcs: AtomicUsize,
    pub(crate) uploads: Mutex<Vec<Result<u64, String>>>,
    /// Bodies that were handed out and are not released yet.
    pub(crate) bodies: LiveCount,
    /// Futures of stream manager and uploads that have not completed.
    pub(crate) futures: LiveCount,
    pub(crate) file: Mutex<PathBuf>,
}

/// Stream ids that the stream manager knows; a comment gives the meaning of the chunk index.
pub(crate) const BYTES: i64 = 1; // index = length in bytes
pub(crate) const MEBIBYTES: i64 = 2; // chunks of 4 MiB
pub(crate) const FILE: i64 = 3; // index = length in MiB
pub(crate) const NEVER: i64 = 4;
pub(crate) const PANIC: i64 = 5;
pub(crate) const FAIL: i64 = 6;
pub(crate) const LATER: i64 = 7;

impl ScriptedHandler {
    pub(crate) fn note(&self, client: &TransportClient, seen: ConnectionEvent) {
        self.seen.lock().entry(client.peer_addr()).or_default().push(seen);
    }

    pub(crate) fn seen(&self, peer: SocketAddr) -> Vec<ConnectionEvent> {
        self.seen.lock().get(&peer).cloned().unwrap_or_default()
    }

    /// Returns the error of the connection from `peer`, after checking that it was reported once
    /// and in order.
    pub(crate) async fn exception(&self, peer: SocketAddr) -> (ErrorKind, String) {
        eventually_or(
            || format!("the end of {peer}: {:?}", self.seen(peer)),
            || self.seen(peer).last() == Some(&ConnectionEvent::Inactive),
        )
        .await;
        match self.seen(peer).as_slice() {
            [
                ConnectionEvent::Active,
                ConnectionEvent::Exception(kind, text),
                ConnectionEvent::Terminated,
                ConnectionEvent::Inactive,
            ] => (*kind, text.clone()),
            other => panic!("expected one exception and then one end, but {other:?}"),
        }
    }

    /// Checks that the connection ended once and without an exception.
    pub(crate) async fn assert_ended_without_error(&self, peer: SocketAddr) {
        eventually("the end", || self.seen(peer).last() == Some(&ConnectionEvent::Inactive)).await;
        assert_eq!(
            self.seen(peer),
            [ConnectionEvent::Active, ConnectionEvent::Terminated, ConnectionEvent::Inactive]
        );
    }
}

impl RpcHandler for ScriptedHandler {
    fn receive(&self, client: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
        self.rpcs.fetch_add(1, Ordering::SeqCst);
        let command = std::str::from_utf8(&message[..message.len().min(32)]).unwrap_or_default();
        match command.split_once(' ').unwrap_or((command, "")) {
            ("never", _) => self.kept.lock().push(callback),
            ("drop", _) => drop(callback),
            ("panic", _) => panic!("scripted failure"),
            ("fail", _) => callback.fail("scripted failure"),
            ("close", _) => {
                client.close();
                self.kept.lock().push(callback);
            }
            ("later", _) => {
                tokio::spawn(async move {
                    tokio::task::yield_now().await;
                    callback.reply(message);
                });
            }
            ("big", size) => {
                let body = vec![7_u8; size.parse().unwrap()];
                let alive = OnDrop::new(self.bodies.up());
                callback.reply(Bytes::from_owner(Owned(body, Mutex::new(Box::new(alive)))));
            }
            _ => callback.reply(message),
        }
    }

    fn receive_one_way(&self, client: &TransportClient, message: Bytes) {
        self.one_ways.fetch_add(1, Ordering::SeqCst);
        match &message[..] {
            b"panic" => panic!("scripted failure"),
            b"close" => client.close(),
            _ => {}
        }
    }

    fn receive_stream(
        &self,
        _: &TransportClient,
        meta: Bytes,
        mut data: StreamBody,
    ) -> BoxFuture<'static, Result<Bytes, BoxError>> {
        let alive = OnDrop::new(self.futures.up());
        let meta = String::from_utf8_lossy(&meta).into_owned();
        if meta == "panic" {
            panic!("scripted failure");
        }
        async move {
            let _alive = alive;
            let (command, number) = meta.split_once(' ').unwrap_or((&meta, "0"));
            let number: u64 = number.parse().unwrap();
            let mut read = 0;
            match command {
                "early" => return Ok(Bytes::from("early")),
                "hold" => {
                    let _data = data;
                    std::future::pending::<()>().await;
                }
                "panic-later" => panic!("scripted failure"),
                "stop-after" => {
                    while read < number {
                        read += data.next_piece().await.ok_or("too short")??.len() as u64;
                    }
                    drop(data);
                    return Err("stopped reading".into());
                }
                _ => {
                    while let Some(piece) = data.next_piece().await {
                        read += piece?.len() as u64;
                    }
                }
            }
            if command == "post-fail" {
                return Err("scripted failure".into());
            }
            Ok(Bytes::from(read.to_string()))
        }
        .boxed()
    }

    fn stream_manager(&self) -> &dyn StreamManager {
        self
    }

    fn on_connected(&self, client: &TransportClient) {
        self.note(client, ConnectionEvent::Active);
    }

    fn on_disconnected(&self, client: &TransportClient) {
        self.note(client, ConnectionEvent::Inactive);
    }

    fn on_network_error(&self, error: &TransportError, client: &TransportClient) {
        self.note(client, ConnectionEvent::Exception(error.kind(), format!("{error:#}")));
    }
}

struct Owned(Vec<u8>, #[allow(dead_code, reason = "for its drop")] Mutex<Box<dyn Send>>);

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl StreamManager for ScriptedHandler {
    fn get_chunk<'a>(
        &'a self,
        _: &'a TransportClient,
        stream_id: i64,
        chunk_index: i32,
    ) -> BoxFuture<'a, Result<ManagedBuffer, BoxError>> {
        let alive = OnDrop::new(self.futures.up());
        async move {
            let _alive = alive;
            let body = match stream_id {
                BYTES => pattern(usize::try_from(chunk_index)?).into(),
                MEBIBYTES => vec![chunk_index as u8; 4 << 20].into(),
                FILE => {
                    ManagedBuffer::file(self.file.lock().clone(), 0..(chunk_index as u64) << 20)
                }
                NEVER => std::future::pending().await,
                PANIC => panic!("scripted failure"),
                LATER => {
                    tokio::task::yield_now().await;
                    pattern(usize::try_from(chunk_index)?).into()
                }
                _ => return Err(format!("no stream {stream_id}").into()),
            };
            Ok(body.on_release(self.bodies.up()))
        }
        .boxed()
    }

    fn open_stream<'a>(
        &'a self,
        _: &'a TransportClient,
        stream_id: &'a str,
    ) -> BoxFuture<'a, Result<Option<ManagedBuffer>, BoxError>> {
        let alive = OnDrop::new(self.futures.up());
        async move {
            let _alive = alive;
            let (command, number) = stream_id.split_once(' ').unwrap_or((stream_id, "0"));
            let body = match command {
                "bytes" => ManagedBuffer::from(pattern(number.parse()?)),
                "file" => ManagedBuffer::file(self.file.lock().clone(), 0..number.parse()?),
                "never" => std::future::pending().await,
                "panic" => panic!("scripted failure"),
                "fail" => return Err("scripted failure".into()),
                _ => return Ok(None),
            };
            Ok(Some(body.on_release(self.bodies.up())))
        }
        .boxed()
    }

    fn connection_terminated(&self, client: &TransportClient) {
        self.note(client, ConnectionEvent::Terminated);
    }
}

/// A server with a [`ScriptedHandler`].
pub(crate) struct Fixture {
    pub(crate) handler: Arc<ScriptedHandler>,
    pub(crate) context: TransportContext,
    pub(crate) server: Option<TransportServer>,
    pub(crate) address: SocketAddr,
}

impl Fixture {
    pub(crate) async fn new(settings: &[(&str, &str)]) -> Self {
        let conf = TransportConf::from_settings("test", settings.iter().copied()).unwrap();
        let handler = Arc::new(ScriptedHandler::default());
        let context = TransportContext::with_handler(conf, Arc::clone(&handler) as _);
        let server = context.create_server("127.0.0.1:0").await.unwrap();
        let address = server.local_addr();
        Self { handler, context, server: Some(server), address }
    }

    pub(crate) async fn raw(&self) -> RawPeer {
        RawPeer::connect(self.address).await
    }

    /// Checks that the server serves new connections.
    pub(crate) async fn assert_serves(&self) {
        self.raw().await.echo(b"are you there?").await;
    }
}

/// Returns a raw server connection, and the client of this crate at its other end.
pub(crate) async fn raw_server() -> (RawPeer, TransportClient, TransportContext) {
    raw_server_with(&[]).await
}

pub(crate) async fn raw_server_with(
    settings: &[(&str, &str)],
) -> (RawPeer, TransportClient, TransportContext) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let conf = TransportConf::from_settings("test", settings.iter().copied()).unwrap();
    let context = TransportContext::new(conf, ScriptedHandler::default());
    let factory = context.create_client_factory();
    let address = listener.local_addr().unwrap();
    let client = within("connecting", factory.create_unmanaged_client(address)).await.unwrap();
    (RawPeer::accept(&listener).await, client, context)
}

/// Returns a regular file of `length` zero bytes, which use no disk space.
pub(crate) fn sparse_file(length: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(length).unwrap();
    file
}

/// Checks that the error is that of a lost connection and names the peer.
pub(crate) fn assert_lost(error: &TransportError, peer: SocketAddr) {
    assert!(matches!(error.kind(), ErrorKind::Closed | ErrorKind::Io), "{error:?}");
    assert!(error.to_string().contains(&peer.to_string()), "{error} does not name {peer}");
    assert_eq!(error.peer(), Some(peer.to_string().as_str()));
}

/// The address by which the handler records this connection.
pub(crate) fn local(raw: &RawPeer) -> SocketAddr {
    raw.0.local_addr().unwrap()
}
