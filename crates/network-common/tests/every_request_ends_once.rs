//! Random requests, handlers and closes, from fixed seeds: every request completes exactly once,
//! and all gauges return to 0.

#![allow(clippy::unwrap_used, reason = "tests")]

mod hostile_support;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use hostile_support::*;
use network_common::{
    BoxError, ErrorKind, ManagedBuffer, MergedBlockMetaCallback, MergedBlockMetaRequest,
    RpcHandler, RpcResponseCallback, StreamBody, StreamManager, TransportClient, TransportConf,
    TransportContext, TransportError,
};
use parking_lot::Mutex;

/// The intended end of a request, encoded in its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Now,
    Later,
    Never,
    Drop,
    Panic,
    Fail,
    Close,
    StopReading,
}

impl Outcome {
    fn random(rng: &mut Rng) -> Self {
        match rng.below(40) {
            0..=17 => Self::Now,
            18..=27 => Self::Later,
            28..=29 => Self::Never,
            30..=32 => Self::Drop,
            33..=34 => Self::Panic,
            35..=37 => Self::Fail,
            38 => Self::Close,
            _ => Self::StopReading,
        }
    }

    fn from_byte(byte: u8) -> Self {
        use Outcome::*;
        [Now, Later, Never, Drop, Panic, Fail, Close, StopReading][byte as usize % 8]
    }
}

#[derive(Default)]
struct RandomHandler {
    active: AtomicUsize,
    inactive: AtomicUsize,
    terminated: AtomicUsize,
    /// RPCs that arrived, and how many of them were given an outcome.
    rpcs: AtomicUsize,
    decided: AtomicUsize,
    kept: Mutex<Vec<RpcResponseCallback>>,
    bodies: LiveCount,
    futures: LiveCount,
}

impl RpcHandler for RandomHandler {
    fn receive(&self, client: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
        self.rpcs.fetch_add(1, Ordering::SeqCst);
        self.decided.fetch_add(1, Ordering::SeqCst);
        match Outcome::from_byte(message[0]) {
            Outcome::Now | Outcome::StopReading => callback.reply(message),
            Outcome::Later => {
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_micros(u64::from(message[1]) * 10)).await;
                    callback.reply(message);
                });
            }
            Outcome::Never => self.kept.lock().push(callback),
            Outcome::Drop => drop(callback),
            Outcome::Panic => panic!("scripted failure"),
            Outcome::Fail => callback.fail("scripted failure"),
            Outcome::Close => {
                client.close();
                callback.reply(message);
            }
        }
    }

    fn receive_one_way(&self, client: &TransportClient, message: Bytes) {
        match Outcome::from_byte(message[0]) {
            Outcome::Panic => panic!("scripted failure"),
            Outcome::Close if message[1] < 32 => client.close(),
            // Sends a request back over the same connection; its response is ignored.
            Outcome::Later => drop(client.send_rpc(vec![0, 0])),
            _ => {}
        }
    }

    fn receive_stream(
        &self,
        client: &TransportClient,
        meta: Bytes,
        mut data: StreamBody,
    ) -> BoxFuture<'static, Result<Bytes, BoxError>> {
        let alive = OnDrop::new(self.futures.up());
        let client = client.clone();
        if Outcome::from_byte(meta[0]) == Outcome::Panic && meta[1] < 128 {
            panic!("scripted failure");
        }
        async move {
            let _alive = alive;
            match Outcome::from_byte(meta[0]) {
                Outcome::Now => return Ok(Bytes::from(data.collect().await?.len().to_string())),
                Outcome::Drop => drop(data),
                Outcome::Panic => panic!("scripted failure"),
                Outcome::StopReading => {
                    data.next_piece().await;
                    return Err("stopped reading".into());
                }
                Outcome::Never => {
                    // Ends with the connection, so that the test leaves no future behind.
                    client.closed().await;
                    return Err("closed".into());
                }
                Outcome::Close => client.close(),
                Outcome::Later | Outcome::Fail => {
                    while let Some(piece) = data.next().await {
                        piece?;
                        tokio::task::yield_now().await;
                    }
                }
            }
            if Outcome::from_byte(meta[0]) == Outcome::Fail {
                Err("scripted failure".into())
            } else {
                Ok(Bytes::from("done"))
            }
        }
        .boxed()
    }

    fn receive_merged_block_meta(
        &self,
        _: &TransportClient,
        request: MergedBlockMetaRequest,
        callback: MergedBlockMetaCallback,
    ) {
        match Outcome::from_byte(request.shuffle_id as u8) {
            Outcome::Now | Outcome::Later | Outcome::Close | Outcome::StopReading => {
                let body = vec![3; request.reduce_id as usize * 20];
                callback.reply(1, ManagedBuffer::from(body).on_release(self.bodies.up()));
            }
            Outcome::Never | Outcome::Drop => drop(callback),
            Outcome::Panic => panic!("scripted failure"),
            Outcome::Fail => callback.fail("scripted failure"),
        }
    }

    fn stream_manager(&self) -> &dyn StreamManager {
        self
    }

    fn on_connected(&self, _: &TransportClient) {
        self.active.fetch_add(1, Ordering::SeqCst);
    }

    fn on_disconnected(&self, _: &TransportClient) {
        self.inactive.fetch_add(1, Ordering::SeqCst);
    }
}

impl RandomHandler {
    async fn body(
        &self,
        outcome: Outcome,
        size: u64,
        client: &TransportClient,
    ) -> Result<ManagedBuffer, BoxError> {
        let _alive = OnDrop::new(self.futures.up());
        match outcome {
            Outcome::Now | Outcome::StopReading => {}
            Outcome::Later => tokio::time::sleep(Duration::from_micros(size % 1000)).await,
            Outcome::Never => std::future::pending().await,
            Outcome::Drop | Outcome::Fail => return Err("scripted failure".into()),
            Outcome::Panic => panic!("scripted failure"),
            Outcome::Close => client.close(),
        }
        let body = ManagedBuffer::from(pattern(size as usize * 100));
        Ok(body.on_release(self.bodies.up()))
    }
}

impl StreamManager for RandomHandler {
    fn get_chunk<'a>(
        &'a self,
        client: &'a TransportClient,
        stream_id: i64,
        chunk_index: i32,
    ) -> BoxFuture<'a, Result<ManagedBuffer, BoxError>> {
        self.body(Outcome::from_byte(stream_id as u8), chunk_index as u64 & 0xfff, client).boxed()
    }

    fn open_stream<'a>(
        &'a self,
        client: &'a TransportClient,
        stream_id: &'a str,
    ) -> BoxFuture<'a, Result<Option<ManagedBuffer>, BoxError>> {
        async move {
            let (outcome, size) = stream_id.split_once(' ').unwrap();
            Ok(Some(self.body(Outcome::from_byte(outcome.parse()?), size.parse()?, client).await?))
        }
        .boxed()
    }

    fn connection_terminated(&self, _: &TransportClient) {
        self.terminated.fetch_add(1, Ordering::SeqCst);
    }
}

/// Counts how the requests ended.
#[derive(Default, Debug)]
struct RequestCounts {
    sent: AtomicU64,
    completed: AtomicU64,
    cancelled: AtomicU64,
}

/// Awaits one request, or cancels it after `cancel_after`. Counts its end and checks the result.
fn spawn_request<T: Send + 'static>(
    counts: &Arc<RequestCounts>,
    name: String,
    cancel_after: Option<Duration>,
    request: impl Future<Output = Result<T, TransportError>> + Send + 'static,
    check: impl FnOnce(T) -> BoxFuture<'static, ()> + Send + 'static,
) -> tokio::task::JoinHandle<()> {
    counts.sent.fetch_add(1, Ordering::SeqCst);
    let counts = Arc::clone(counts);
    tokio::spawn(async move {
        let result = match cancel_after {
            Some(cancel_after) => match tokio::time::timeout(cancel_after, request).await {
                Ok(result) => result,
                Err(_) => {
                    counts.cancelled.fetch_add(1, Ordering::SeqCst);
                    return;
                }
            },
            None => within(&name, request).await,
        };
        counts.completed.fetch_add(1, Ordering::SeqCst);
        match result {
            Ok(answer) => within(&name, check(answer)).await,
            Err(error) => assert!(
                matches!(
                    error.kind(),
                    ErrorKind::Remote
                        | ErrorKind::ChunkFetchFailure
                        | ErrorKind::StreamFailure
                        | ErrorKind::Closed
                        | ErrorKind::Io
                        | ErrorKind::AlreadyPending
                        | ErrorKind::Limit
                ),
                "{name}: {error:?}"
            ),
        }
    })
}

async fn run_seed(seed: u64) {
    let mut rng = Rng::new(seed);
    let settings = [
        ("spark.test.io.maxWriteQueueSize", ["64k", "1m", "64m"][rng.below(3) as usize]),
        ("spark.test.io.numConnectionsPerPeer", ["1", "3"][rng.below(2) as usize]),
    ];
    let conf = TransportConf::from_settings("test", settings).unwrap();
    let handler = Arc::new(RandomHandler::default());
    let context = TransportContext::with_handler(conf, Arc::clone(&handler) as _);
    let mut server = Some(context.create_server("127.0.0.1:0").await.unwrap());
    let address = server.as_ref().unwrap().local_addr();
    let mut factory = Some(context.create_client_factory());
    let mut clients = Vec::new();
    for _ in 0..1 + rng.below(3) {
        let connecting = factory.as_ref().unwrap().create_client(address);
        clients.push(within("connecting", connecting).await.unwrap());
    }
    let counts = Arc::new(RequestCounts::default());
    let mut following = Vec::new();
    let mut server_closing = None;
    for number in 0..60 {
        let client = clients[rng.below(clients.len() as u64) as usize].clone();
        let outcome = Outcome::random(&mut rng);
        let salt = rng.next() as u8;
        let bound = [10, 100, 3000][rng.below(3) as usize];
        let size = rng.below(bound);
        let cancel_after = (outcome == Outcome::Never || rng.below(5) == 0)
            .then(|| Duration::from_micros(rng.below(3000)));
        let name = format!("seed {seed}, request {number}: {outcome:?} {size}");
        following.push(match rng.below(10) {
            0..=3 => {
                let mut body = vec![outcome as u8, salt];
                body.extend(pattern(size as usize * 10));
                let expected = body.clone();
                spawn_request(&counts, name, cancel_after, client.send_rpc(body), move |answer| {
                    assert_eq!(answer, expected);
                    async {}.boxed()
                })
            }
            4..=5 => {
                let request =
                    client.fetch_chunk(i64::from(number) * 8 + outcome as i64, size as i32);
                spawn_request(&counts, name, cancel_after, request, move |answer| {
                    assert_eq!(answer, pattern(size as usize * 100));
                    async {}.boxed()
                })
            }
            6 => {
                let request = client.stream(&format!("{} {size}", outcome as u8));
                let leave = rng.below(3) == 0;
                spawn_request(&counts, name, cancel_after, request, move |mut body| {
                    async move {
                        let _connection = client;
                        assert_eq!(body.len(), size * 100);
                        let mut got = Vec::new();
                        while let Some(piece) = body.next_piece().await {
                            match piece {
                                Ok(piece) => got.extend_from_slice(&piece),
                                Err(error) => {
                                    assert!(matches!(
                                        error.kind(),
                                        ErrorKind::Closed | ErrorKind::Io
                                    ));
                                    assert!(body.next_piece().await.is_none());
                                    return;
                                }
                            }
                            if leave {
                                return;
                            }
                        }
                        assert_eq!(got, pattern(size as usize * 100));
                    }
                    .boxed()
                })
            }
            7..=8 => {
                let data = ManagedBuffer::from(pattern(size as usize * 100))
                    .on_release(handler.bodies.up());
                let request = client.upload_stream(vec![outcome as u8, salt], data);
                spawn_request(&counts, name, cancel_after, request, move |answer| {
                    if outcome == Outcome::Now {
                        assert_eq!(answer, (size * 100).to_string());
                    }
                    async {}.boxed()
                })
            }
            _ => {
                let request = client.merged_block_meta("app", outcome as i32, 0, size as i32);
                spawn_request(&counts, name, cancel_after, request, move |meta| {
                    assert_eq!((meta.num_chunks, meta.body.len() as u64), (1, size * 20));
                    async {}.boxed()
                })
            }
        });
        match rng.below(150) {
            0..=20 => drop(clients[0].send(vec![rng.next() as u8, rng.next() as u8])),
            21 => clients[0].close(),
            22 => {
                if let Some(factory) = factory.take()
                    && rng.below(2) == 0
                {
                    factory.close();
                }
            }
            23 => drop(server.take()),
            24 => {
                if let Some(server) = server.take() {
                    let deadline = Duration::from_millis(rng.below(20));
                    server_closing = Some(tokio::spawn(server.close(deadline)));
                }
            }
            25..=60 => tokio::task::yield_now().await,
            _ => {}
        }
    }
    // Pending requests end with their connections, at the latest now.
    match rng.below(4) {
        0 => drop(server.take()),
        1 => {
            for client in &clients {
                client.close();
            }
        }
        2 => {
            if let Some(factory) = factory.take() {
                factory.close();
            }
        }
        _ => {
            if let Some(server) = server.take() {
                within("the server to close", server.close(Duration::from_millis(5))).await;
            }
        }
    }
    for client in &clients {
        client.close();
    }
    for follower in following {
        within(&format!("seed {seed}: an end"), follower).await.unwrap();
    }
    if let Some(closing) = server_closing {
        within("the server to close", closing).await.unwrap();
    }
    for client in &clients {
        let error = within("the end of a connection", client.closed()).await;
        assert!(
            matches!(error.kind(), ErrorKind::Closed | ErrorKind::Io),
            "seed {seed}: {error:?}"
        );
        assert_eq!(client.pending_requests(), 0, "seed {seed}");
        assert!(!client.is_active());
    }
    let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
    assert_eq!(
        count(&counts.sent),
        count(&counts.completed) + count(&counts.cancelled),
        "seed {seed}"
    );
    handler.kept.lock().clear();
    let metrics = context.metrics();
    eventually_or(
        || {
            format!(
                "seed {seed}: not all gauges return to 0: {:?} {:?} bodies {:?} futures {:?}",
                metrics.server().snapshot(),
                metrics.client().snapshot(),
                handler.bodies,
                handler.futures
            )
        },
        || {
            [metrics.server(), metrics.client()].iter().all(|side| {
                let now = side.snapshot();
                (now.connections, now.pending_requests, now.active_requests) == (0, 0, 0)
                    && (now.write_queue_bytes, now.chunks_being_transferred) == (0, 0)
            }) && handler.bodies.now() == 0
                && handler.futures.now() == 0
        },
    )
    .await;
    // The server may accept a connection that its client has closed already. Without a server, no
    // connection begins from here on.
    drop(server.take());
    let count = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
    eventually_or(
        || {
            format!(
                "seed {seed}: {} connections began, {} disconnected, {} terminated",
                count(&handler.active),
                count(&handler.inactive),
                count(&handler.terminated)
            )
        },
        || {
            let active = count(&handler.active);
            (count(&handler.inactive), count(&handler.terminated)) == (active, active)
        },
    )
    .await;
}

fn run_seeds(seeds: std::ops::Range<u64>, workers: usize) {
    // Handlers panic on purpose; the hook prints only other panics.
    static QUIET: std::sync::Once = std::sync::Once::new();
    QUIET.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let expected = info
                .payload()
                .downcast_ref::<&str>()
                .is_some_and(|text| *text == "scripted failure");
            if !expected {
                usual(info);
            }
        }));
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
        .unwrap();
    let alive = || runtime.metrics().num_alive_tasks();
    for seed in seeds {
        let before = alive();
        runtime.block_on(async {
            run_seed(seed).await;
            eventually_or(
                || format!("seed {seed}: {} tasks, {before} before", alive()),
                || alive() <= before,
            )
            .await;
        });
    }
}

#[test]
fn rsp_03_every_request_ends_once() {
    run_seeds(0..120, 2);
}

#[test]
fn rsp_03_every_request_ends_once_on_one_worker_thread() {
    run_seeds(1000..1100, 1);
}

/// Counts its wake-ups.
struct WakeCounter(AtomicUsize);

impl Wake for WakeCounter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn future_polled_by_several_tasks_wakes_last_one() {
    let (mut raw, client, _context) = raw_server().await;
    for kind in [RPC_REQUEST, CHUNK_REQUEST] {
        let mut call =
            if kind == RPC_REQUEST { client.send_rpc("x") } else { client.fetch_chunk(1, 1) };
        let request = raw.frame().await.unwrap();
        let woken: Vec<_> = (0..3).map(|_| Arc::new(WakeCounter(AtomicUsize::new(0)))).collect();
        for waker in &woken {
            let waker = Waker::from(Arc::clone(waker));
            assert!(Pin::new(&mut call).poll(&mut Context::from_waker(&waker)).is_pending());
        }
        let answer = match kind {
            RPC_REQUEST => rpc_response(request.long(0), b"y"),
            _ => chunk_success(1, 1, b"y"),
        };
        raw.send(&answer).await;
        eventually("the last waker is woken", || woken[2].0.load(Ordering::SeqCst) > 0).await;
        let polled = Pin::new(&mut call).poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(polled, Poll::Ready(Ok(body)) if body == "y"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn received_response_is_delivered_after_connection_ended() {
    let (mut raw, client, _context) = raw_server().await;
    let calls = [client.send_rpc("1"), client.send_rpc("2"), client.fetch_chunk(1, 1)];
    let first = raw.frame().await.unwrap().long(0);
    raw.frame().await.unwrap();
    raw.frame().await.unwrap();
    raw.send(&[rpc_response(first, b"in time"), chunk_success(1, 1, b"too")].concat()).await;
    drop(raw);
    within("the end", client.closed()).await;
    let [first, second, chunk] = calls;
    assert_eq!(within("the first", first).await.unwrap(), "in time");
    assert_lost(&within("the second", second).await.unwrap_err(), client.peer_addr());
    assert_eq!(within("the chunk", chunk).await.unwrap(), "too");
}

/// Rejects every second connection.
#[derive(Default)]
struct RejectsEverySecond(AtomicUsize);

impl network_common::TransportServerBootstrap for RejectsEverySecond {
    fn do_bootstrap(
        &self,
        _: &TransportClient,
        handler: Arc<dyn RpcHandler>,
    ) -> Result<Arc<dyn RpcHandler>, BoxError> {
        match self.0.fetch_add(1, Ordering::SeqCst) % 2 {
            0 => Ok(handler),
            _ => Err("rejected".into()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_rejected_by_bootstrap_is_never_reported() {
    let handler = Arc::new(ScriptedHandler::default());
    let context =
        TransportContext::with_handler(TransportConf::new("test"), Arc::clone(&handler) as _);
    let server = context
        .create_server_with("127.0.0.1:0", vec![Arc::new(RejectsEverySecond::default())])
        .await
        .unwrap();
    for _ in 0..5 {
        let mut accepted = RawPeer::connect(server.local_addr()).await;
        accepted.echo(b"hello").await;
        let mut rejected = RawPeer::connect(server.local_addr()).await;
        let peer = local(&rejected);
        rejected.assert_closed_without_data("rejected").await;
        let metrics = context.metrics();
        eventually("one connection is open", || metrics.server().snapshot().connections == 1).await;
        // A bootstrap may have registered streams, so the stream manager gets the end.
        assert_eq!(handler.seen(peer), [ConnectionEvent::Terminated], "nothing else is reported");
        let peer = local(&accepted);
        drop(accepted);
        handler.assert_ended_without_error(peer).await;
        eventually("the gauge returns to 0", || metrics.server().snapshot().connections == 0).await;
    }
}

/// Panics in the release hook of every meta body.
struct PanicsOnRelease;

impl RpcHandler for PanicsOnRelease {
    fn receive(&self, _: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
        callback.reply(message);
    }

    fn receive_merged_block_meta(
        &self,
        _: &TransportClient,
        _: MergedBlockMetaRequest,
        callback: MergedBlockMetaCallback,
    ) {
        callback.reply(
            1,
            ManagedBuffer::from(vec![1; 10_000]).on_release(|| panic!("scripted failure")),
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn panicking_release_hook_leaves_no_request_pending() {
    let context = TransportContext::new(TransportConf::new("test"), PanicsOnRelease);
    let server = context.create_server("127.0.0.1:0").await.unwrap();
    let factory = context.create_client_factory();
    for _ in 0..5 {
        let client = within("connecting", factory.create_unmanaged_client(server.local_addr()))
            .await
            .unwrap();
        let metas: Vec<_> = (0..20).map(|_| client.merged_block_meta("app", 1, 2, 3)).collect();
        let calls: Vec<_> = (0..20).map(|_| client.send_rpc("x")).collect();
        for meta in metas {
            drop(within("the end", meta).await);
        }
        for call in calls {
            drop(within("the end", call).await);
        }
    }
    let metrics = context.metrics();
    eventually("the gauges return to 0", || {
        let (server, client) = (metrics.server().snapshot(), metrics.client().snapshot());
        (server.connections, client.connections, client.pending_requests) == (0, 0, 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_server_rejects_new_requests_and_answers_earlier_ones() {
    let mut fixture = Fixture::new(&[]).await;
    let mut raw = fixture.raw().await;
    raw.send(&rpc(1, b"never")).await;
    let handler = Arc::clone(&fixture.handler);
    eventually("the request is active", || handler.kept.lock().len() == 1).await;
    let closing = tokio::spawn(fixture.server.take().unwrap().close(TIMEOUT));
    // Repeats until the server rejects; requests before that are still served.
    let mut open = true;
    while open {
        raw.send(&rpc(2, b"late")).await;
        let answer = raw.frame().await.unwrap();
        open = answer.kind == RPC_RESPONSE;
    }
    let requests = [
        chunk_request(BYTES, 5),
        stream_request("bytes 5"),
        upload(3, "sum", 4),
        b"data".to_vec(),
        frame(META_REQUEST, &[&4_i64.to_be_bytes(), &text("app"), &[0; 12]]),
        one_way(b"ignored"),
        rpc(5, b"late"),
    ];
    raw.send(&requests.concat()).await;
    let mut kinds = Vec::new();
    for _ in 0..5 {
        let answer = raw.frame().await.unwrap();
        assert!(answer.lossy().contains("shutting down"), "{} {}", answer.kind, answer.lossy());
        kinds.push(answer.kind);
    }
    kinds.sort_unstable();
    assert_eq!(kinds, [CHUNK_FAILURE, RPC_FAILURE, RPC_FAILURE, RPC_FAILURE, STREAM_FAILURE]);
    assert_eq!(handler.one_ways.load(Ordering::SeqCst), 0);
    // The reply to the earlier request ends the connection.
    handler.kept.lock().pop().unwrap().reply("at last");
    let answer = raw.frame().await.unwrap();
    assert_eq!((answer.long(0), &answer.rest[12..]), (1, &b"at last"[..]));
    raw.assert_closed_without_data("drained").await;
    assert_eq!(within("closing", closing).await.unwrap(), 0, "no connection may be closed early");
}
