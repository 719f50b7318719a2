//! Whatever clients, handlers and connections do: every request ends, once, and nothing stays
//! outstanding.

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

/// What is to become of a request; told by its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Now,
    Later,
    Never,
    Drop,
    Panic,
    Fail,
    Close,
    GiveUp,
}

impl Fate {
    fn throw(dice: &mut Dice) -> Self {
        match dice.below(40) {
            0..=17 => Self::Now,
            18..=27 => Self::Later,
            28..=29 => Self::Never,
            30..=32 => Self::Drop,
            33..=34 => Self::Panic,
            35..=37 => Self::Fail,
            38 => Self::Close,
            _ => Self::GiveUp,
        }
    }

    fn of(byte: u8) -> Self {
        use Fate::*;
        [Now, Later, Never, Drop, Panic, Fail, Close, GiveUp][byte as usize % 8]
    }
}

#[derive(Default)]
struct Chaos {
    active: AtomicUsize,
    inactive: AtomicUsize,
    terminated: AtomicUsize,
    /// RPCs that came in, and how often the answer to one was decided.
    rpcs: AtomicUsize,
    decided: AtomicUsize,
    kept: Mutex<Vec<RpcResponseCallback>>,
    bodies: Alive,
    futures: Alive,
}

impl RpcHandler for Chaos {
    fn receive(&self, client: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
        self.rpcs.fetch_add(1, Ordering::SeqCst);
        self.decided.fetch_add(1, Ordering::SeqCst);
        match Fate::of(message[0]) {
            Fate::Now | Fate::GiveUp => callback.reply(message),
            Fate::Later => {
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_micros(u64::from(message[1]) * 10)).await;
                    callback.reply(message);
                });
            }
            Fate::Never => self.kept.lock().push(callback),
            Fate::Drop => drop(callback),
            Fate::Panic => panic!("told to"),
            Fate::Fail => callback.fail("told to"),
            Fate::Close => {
                client.close();
                callback.reply(message);
            }
        }
    }

    fn receive_one_way(&self, client: &TransportClient, message: Bytes) {
        match Fate::of(message[0]) {
            Fate::Panic => panic!("told to"),
            Fate::Close if message[1] < 32 => client.close(),
            // Back over the same connection; nobody waits for the answer.
            Fate::Later => drop(client.send_rpc(vec![0, 0])),
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
        if Fate::of(meta[0]) == Fate::Panic && meta[1] < 128 {
            panic!("told to");
        }
        async move {
            let _alive = alive;
            match Fate::of(meta[0]) {
                Fate::Now => return Ok(Bytes::from(data.collect().await?.len().to_string())),
                Fate::Drop => drop(data),
                Fate::Panic => panic!("told to"),
                Fate::GiveUp => {
                    data.next_piece().await;
                    return Err("gave up".into());
                }
                Fate::Never => {
                    // Not for ever: what never ends is the user's own fault here.
                    client.closed().await;
                    return Err("closed".into());
                }
                Fate::Close => client.close(),
                Fate::Later | Fate::Fail => {
                    while let Some(piece) = data.next().await {
                        piece?;
                        tokio::task::yield_now().await;
                    }
                }
            }
            if Fate::of(meta[0]) == Fate::Fail {
                Err("told to".into())
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
        match Fate::of(request.shuffle_id as u8) {
            Fate::Now | Fate::Later | Fate::Close | Fate::GiveUp => {
                let body = vec![3; request.reduce_id as usize * 20];
                callback.reply(1, ManagedBuffer::from(body).on_release(self.bodies.up()));
            }
            Fate::Never | Fate::Drop => drop(callback),
            Fate::Panic => panic!("told to"),
            Fate::Fail => callback.fail("told to"),
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

impl Chaos {
    async fn body(
        &self,
        fate: Fate,
        size: u64,
        client: &TransportClient,
    ) -> Result<ManagedBuffer, BoxError> {
        let _alive = OnDrop::new(self.futures.up());
        match fate {
            Fate::Now | Fate::GiveUp => {}
            Fate::Later => tokio::time::sleep(Duration::from_micros(size % 1000)).await,
            Fate::Never => std::future::pending().await,
            Fate::Drop | Fate::Fail => return Err("told to".into()),
            Fate::Panic => panic!("told to"),
            Fate::Close => client.close(),
        }
        let body = ManagedBuffer::from(pattern(size as usize * 100));
        Ok(body.on_release(self.bodies.up()))
    }
}

impl StreamManager for Chaos {
    fn get_chunk<'a>(
        &'a self,
        client: &'a TransportClient,
        stream_id: i64,
        chunk_index: i32,
    ) -> BoxFuture<'a, Result<ManagedBuffer, BoxError>> {
        self.body(Fate::of(stream_id as u8), chunk_index as u64 & 0xfff, client).boxed()
    }

    fn open_stream<'a>(
        &'a self,
        client: &'a TransportClient,
        stream_id: &'a str,
    ) -> BoxFuture<'a, Result<Option<ManagedBuffer>, BoxError>> {
        async move {
            let (fate, size) = stream_id.split_once(' ').unwrap();
            Ok(Some(self.body(Fate::of(fate.parse()?), size.parse()?, client).await?))
        }
        .boxed()
    }

    fn connection_terminated(&self, _: &TransportClient) {
        self.terminated.fetch_add(1, Ordering::SeqCst);
    }
}

/// Counts how the requests ended.
#[derive(Default, Debug)]
struct Ends {
    asked: AtomicU64,
    ended: AtomicU64,
    dropped: AtomicU64,
}

/// Waits for one request, or gives it up; its end is counted, and must be one that fits.
fn follow<T: Send + 'static>(
    ends: &Arc<Ends>,
    name: String,
    patience: Option<Duration>,
    request: impl Future<Output = Result<T, TransportError>> + Send + 'static,
    check: impl FnOnce(T) -> BoxFuture<'static, ()> + Send + 'static,
) -> tokio::task::JoinHandle<()> {
    ends.asked.fetch_add(1, Ordering::SeqCst);
    let ends = Arc::clone(ends);
    tokio::spawn(async move {
        let result = match patience {
            Some(patience) => match tokio::time::timeout(patience, request).await {
                Ok(result) => result,
                Err(_) => {
                    ends.dropped.fetch_add(1, Ordering::SeqCst);
                    return;
                }
            },
            None => within(&name, request).await,
        };
        ends.ended.fetch_add(1, Ordering::SeqCst);
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
                        | ErrorKind::Refused
                        | ErrorKind::Limit
                ),
                "{name}: {error:?}"
            ),
        }
    })
}

async fn one_round(seed: u64) {
    let mut dice = Dice::new(seed);
    let settings = [
        ("spark.test.io.maxWriteQueueSize", ["64k", "1m", "64m"][dice.below(3) as usize]),
        ("spark.test.io.numConnectionsPerPeer", ["1", "3"][dice.below(2) as usize]),
    ];
    let conf = TransportConf::from_settings("test", settings).unwrap();
    let handler = Arc::new(Chaos::default());
    let context = TransportContext::with_handler(conf, Arc::clone(&handler) as _);
    let mut server = Some(context.create_server("127.0.0.1:0").await.unwrap());
    let address = server.as_ref().unwrap().local_addr();
    let mut factory = Some(context.create_client_factory());
    let mut clients = Vec::new();
    for _ in 0..1 + dice.below(3) {
        let connecting = factory.as_ref().unwrap().create_client(address);
        clients.push(within("connecting", connecting).await.unwrap());
    }
    let ends = Arc::new(Ends::default());
    let mut following = Vec::new();
    let mut server_closing = None;
    for number in 0..60 {
        let client = clients[dice.below(clients.len() as u64) as usize].clone();
        let fate = Fate::throw(&mut dice);
        let salt = dice.next() as u8;
        let bound = [10, 100, 3000][dice.below(3) as usize];
        let size = dice.below(bound);
        let patience = (fate == Fate::Never || dice.below(5) == 0)
            .then(|| Duration::from_micros(dice.below(3000)));
        let name = format!("seed {seed}, request {number}: {fate:?} {size}");
        following.push(match dice.below(10) {
            0..=3 => {
                let mut body = vec![fate as u8, salt];
                body.extend(pattern(size as usize * 10));
                let expected = body.clone();
                follow(&ends, name, patience, client.send_rpc(body), move |answer| {
                    assert_eq!(answer, expected);
                    async {}.boxed()
                })
            }
            4..=5 => {
                let request = client.fetch_chunk(i64::from(number) * 8 + fate as i64, size as i32);
                follow(&ends, name, patience, request, move |answer| {
                    assert_eq!(answer, pattern(size as usize * 100));
                    async {}.boxed()
                })
            }
            6 => {
                let request = client.stream(&format!("{} {size}", fate as u8));
                let leave = dice.below(3) == 0;
                follow(&ends, name, patience, request, move |mut body| {
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
                let request = client.upload_stream(vec![fate as u8, salt], data);
                follow(&ends, name, patience, request, move |answer| {
                    if fate == Fate::Now {
                        assert_eq!(answer, (size * 100).to_string());
                    }
                    async {}.boxed()
                })
            }
            _ => {
                let request = client.merged_block_meta("app", fate as i32, 0, size as i32);
                follow(&ends, name, patience, request, move |meta| {
                    assert_eq!((meta.num_chunks, meta.body.len() as u64), (1, size * 20));
                    async {}.boxed()
                })
            }
        });
        match dice.below(150) {
            0..=20 => drop(clients[0].send(vec![dice.next() as u8, dice.next() as u8])),
            21 => clients[0].close(),
            22 => {
                if let Some(factory) = factory.take() {
                    if dice.below(2) == 0 {
                        factory.close();
                    }
                }
            }
            23 => drop(server.take()),
            24 => {
                if let Some(server) = server.take() {
                    let deadline = Duration::from_millis(dice.below(20));
                    server_closing = Some(tokio::spawn(server.close(deadline)));
                }
            }
            25..=60 => tokio::task::yield_now().await,
            _ => {}
        }
    }
    // Requests that are never answered end with their connection, at the latest now.
    match dice.below(4) {
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
    assert_eq!(count(&ends.asked), count(&ends.ended) + count(&ends.dropped), "seed {seed}");
    handler.kept.lock().clear();
    let metrics = context.metrics();
    eventually_or(
        || {
            format!(
                "seed {seed}: nothing is left: {:?} {:?} bodies {:?} futures {:?}",
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
    let count = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
    assert_eq!(
        count(&handler.active),
        count(&handler.inactive),
        "seed {seed}: one end per beginning"
    );
    assert_eq!(count(&handler.active), count(&handler.terminated), "seed {seed}");
}

fn rounds(seeds: std::ops::Range<u64>, workers: usize) {
    // Panics of handlers are part of it.
    static QUIET: std::sync::Once = std::sync::Once::new();
    QUIET.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let told = info.payload().downcast_ref::<&str>().is_some_and(|text| *text == "told to");
            if !told {
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
            one_round(seed).await;
            eventually_or(
                || format!("seed {seed}: {} tasks, {before} before", alive()),
                || alive() <= before,
            )
            .await;
        });
    }
}

#[test]
fn rsp_03_every_request_ends_once_whatever_happens() {
    rounds(0..120, 2);
}

#[test]
fn rsp_03_every_request_ends_once_on_one_worker_too() {
    rounds(1000..1100, 1);
}

/// Counts its wake-ups.
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_future_that_moves_between_tasks_wakes_the_last_one() {
    let (mut raw, client, _context) = raw_server().await;
    for kind in [RPC_REQUEST, CHUNK_REQUEST] {
        let mut call =
            if kind == RPC_REQUEST { client.send_rpc("x") } else { client.fetch_chunk(1, 1) };
        let request = raw.frame().await.unwrap();
        let woken: Vec<_> = (0..3).map(|_| Arc::new(Woken(AtomicUsize::new(0)))).collect();
        for waker in &woken {
            let waker = Waker::from(Arc::clone(waker));
            assert!(Pin::new(&mut call).poll(&mut Context::from_waker(&waker)).is_pending());
        }
        let answer = match kind {
            RPC_REQUEST => rpc_response(request.long(0), b"y"),
            _ => chunk_success(1, 1, b"y"),
        };
        raw.send(&answer).await;
        eventually("the last is woken", || woken[2].0.load(Ordering::SeqCst) > 0).await;
        let polled = Pin::new(&mut call).poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(polled, Poll::Ready(Ok(body)) if body == "y"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_arrived_is_delivered_though_the_connection_ended_meanwhile() {
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

/// Refuses every other connection.
#[derive(Default)]
struct Fussy(AtomicUsize);

impl network_common::TransportServerBootstrap for Fussy {
    fn do_bootstrap(
        &self,
        _: &TransportClient,
        handler: Arc<dyn RpcHandler>,
    ) -> Result<Arc<dyn RpcHandler>, BoxError> {
        match self.0.fetch_add(1, Ordering::SeqCst) % 2 {
            0 => Ok(handler),
            _ => Err("not you".into()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_refused_by_a_bootstrap_was_never_active() {
    let handler = Arc::new(Obedient::default());
    let context =
        TransportContext::with_handler(TransportConf::new("test"), Arc::clone(&handler) as _);
    let server =
        context.create_server_with("127.0.0.1:0", vec![Arc::new(Fussy::default())]).await.unwrap();
    for _ in 0..5 {
        let mut accepted = Raw::connect(server.local_addr()).await;
        accepted.echo(b"hello").await;
        let mut refused = Raw::connect(server.local_addr()).await;
        let peer = local(&refused);
        refused.assert_closed_silently("refused").await;
        let metrics = context.metrics();
        eventually("the gauge knows", || metrics.server().snapshot().connections == 1).await;
        assert_eq!(handler.seen(peer), [], "neither beginning nor end");
        let peer = local(&accepted);
        drop(accepted);
        handler.assert_ended_quietly(peer).await;
        eventually("the gauge is back", || metrics.server().snapshot().connections == 0).await;
    }
}

/// Panics when the connection's bodies are released.
struct PanickingHooks;

impl RpcHandler for PanickingHooks {
    fn receive(&self, _: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
        callback.reply(message);
    }

    fn receive_merged_block_meta(
        &self,
        _: &TransportClient,
        _: MergedBlockMetaRequest,
        callback: MergedBlockMetaCallback,
    ) {
        callback.reply(1, ManagedBuffer::from(vec![1; 10_000]).on_release(|| panic!("told to")));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_that_panics_leaves_nobody_waiting() {
    let context = TransportContext::new(TransportConf::new("test"), PanickingHooks);
    let server = context.create_server("127.0.0.1:0").await.unwrap();
    let factory = context.create_client_factory();
    for _ in 0..5 {
        let client = within("connecting", factory.create_unmanaged_client(server.local_addr()))
            .await
            .unwrap();
        let metas: Vec<_> = (0..20).map(|_| client.merged_block_meta("app", 1, 2, 3)).collect();
        let calls: Vec<_> = (0..20).map(|_| client.send_rpc("x")).collect();
        for meta in metas {
            drop(within("an end", meta).await);
        }
        for call in calls {
            drop(within("an end", call).await);
        }
    }
    let metrics = context.metrics();
    eventually("the gauges are back", || {
        let (server, client) = (metrics.server().snapshot(), metrics.client().snapshot());
        (server.connections, client.connections, client.pending_requests) == (0, 0, 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_requests_of_every_kind_fail_while_the_server_closes_and_earlier_ones_are_answered() {
    let mut fixture = Fixture::new(&[]).await;
    let mut raw = fixture.raw().await;
    raw.send(&rpc(1, b"never")).await;
    let handler = Arc::clone(&fixture.handler);
    eventually("it is being served", || handler.kept.lock().len() == 1).await;
    let closing = tokio::spawn(fixture.server.take().unwrap().close(LIMIT));
    // Until the first is refused; asked while it was open, it is served.
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
    // The earlier one is answered, and that ends it.
    handler.kept.lock().pop().unwrap().reply("at last");
    let answer = raw.frame().await.unwrap();
    assert_eq!((answer.long(0), &answer.rest[12..]), (1, &b"at last"[..]));
    raw.assert_closed_silently("drained").await;
    assert_eq!(within("closing", closing).await.unwrap(), 0, "nothing was cut");
}
