//! The request timeout with a `connectionTimeout` of 1 s: Spark's `RequestTimeoutIntegrationSuite`
//! (rows `rto_01` to `rto_03`).

// Helper functions outside of tests unwrap as well.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use network_common::{ErrorKind, ManagedBuffer, TransportError};
use parking_lot::Mutex;
use support::*;
use tokio::time::{Instant, sleep};

const TIMEOUT: Duration = Duration::from_secs(1);
const SETTING: (&str, &str) = ("spark.shuffle.io.connectionTimeout", "1s");

/// Returns a handler that echoes, but never replies to `never`.
fn handler() -> Handler {
    let kept = Mutex::new(Vec::new());
    Handler::new().on_rpc(move |_, message, callback| match &message[..] {
        b"never" => kept.lock().push(callback),
        _ => callback.reply(message),
    })
}

fn assert_timeout(error: &TransportError) {
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.is_timeout() && !error.is_remote());
    assert!(error.to_string().contains("spark.shuffle.io.connectionTimeout"), "{error}");
    assert!(error.to_string().contains("1s"), "{error}");
}

#[tokio::test]
async fn rto_01_request_without_response_times_out() {
    let pair = pair_with(handler(), &[], &[SETTING]).await;
    assert_eq!(within(pair.client.send_rpc("at once")).await.unwrap(), "at once");
    let begun = Instant::now();
    let error = within(pair.client.send_rpc("never")).await.unwrap_err();
    assert_timeout(&error);
    // Between one and two timeouts after the last request; the upper bound allows for a busy
    // machine.
    let took = begun.elapsed();
    assert!(took >= TIMEOUT && took < 4 * TIMEOUT, "{took:?}");
    assert_eq!(
        pair.client_context.metrics().client().snapshot().failures,
        [(ErrorKind::Timeout, 1)]
    );
}

#[tokio::test]
async fn rto_02_timeout_closes_client_and_pool_replaces_it() {
    let pair = pair_with(handler(), &[], &[SETTING]).await;
    let error = within(pair.client.send_rpc("never")).await.unwrap_err();
    assert_timeout(&error);
    assert!(!pair.client.is_active());
    assert_eq!(pair.client.pending_requests(), 0);
    assert_timeout(&within(pair.client.closed()).await);
    let client = within(pair.factory.create_client(pair.server.local_addr())).await.unwrap();
    assert_ne!(client.id(), pair.client.id());
    assert_eq!(within(client.send_rpc("again")).await.unwrap(), "again");
    until(|| pair.context.metrics().server().snapshot().connections == 1).await;
}

/// The timeout of all pending requests starts at the last one.
#[tokio::test]
async fn rto_03_further_requests_delay_timeout() {
    let handler =
        Handler::new().on_chunk_later(|_, _| std::future::pending::<Result<ManagedBuffer, _>>());
    let pair = pair_with(handler, &[], &[SETTING]).await;
    let ended = Arc::new(Mutex::new(Vec::new()));
    let fetch = |index| {
        let (chunk, ended) = (pair.client.fetch_chunk(1, index), Arc::clone(&ended));
        tokio::spawn(async move {
            let error = chunk.await.unwrap_err();
            ended.lock().push(Instant::now());
            error
        })
    };
    let first = fetch(0);
    sleep(TIMEOUT * 6 / 10).await;
    let (second, second_sent) = (fetch(1), Instant::now());
    sleep(TIMEOUT * 6 / 10).await;
    assert!(
        !first.is_finished() && !second.is_finished(),
        "1.2 timeouts after the first request, 0.6 after the second"
    );
    for fetch in [first, second] {
        assert_timeout(&within(fetch).await.unwrap());
    }
    let ended = ended.lock();
    assert!(ended[0] >= second_sent + TIMEOUT, "{:?}", ended[0] - second_sent);
    assert!(ended[1] - ended[0] < TIMEOUT / 2, "both requests must fail together");
}

/// Requests of all types fail once, together with the connection.
#[tokio::test]
async fn every_pending_request_fails_with_timeout() {
    let kept = Mutex::new(Vec::new());
    let handler = handler()
        .on_chunk_later(|_, _| std::future::pending::<Result<ManagedBuffer, _>>())
        .on_upload(|_, _| std::future::pending())
        .on_meta(move |_, _, callback| kept.lock().push(callback));
    let pair = pair_with(handler, &[], &[SETTING]).await;
    let client = &pair.client;
    let (rpc, chunk, stream, upload, meta) = within(async {
        tokio::join!(
            client.send_rpc("never"),
            client.fetch_chunk(1, 0),
            client.stream("behind the chunk"),
            client.upload_stream("", "data"),
            client.merged_block_meta("app", 0, 0, 0)
        )
    })
    .await;
    let errors = [rpc.err(), chunk.err(), stream.err(), upload.err(), meta.err()]
        .map(|error| error.unwrap());
    errors.iter().for_each(assert_timeout);
    assert!(!errors.iter().any(TransportError::is_retryable), "the peer may have executed them");
    assert_eq!(client.pending_requests(), 0);
    for error in [
        within(client.send_rpc("too late")).await.unwrap_err(),
        client.send("too late").unwrap_err(),
    ] {
        assert_timeout(&error);
        assert!(error.is_retryable(), "nothing was sent");
    }
}

/// Active requests at the callee do not count as pending, so the callee never closes because of
/// them.
#[tokio::test]
async fn slow_response_does_not_time_out_at_callee() {
    let handler = Handler::new().on_rpc(|_, message, callback| {
        tokio::spawn(async move {
            sleep(TIMEOUT * 5 / 2).await;
            callback.reply(message);
        });
    });
    let pair = pair_with(handler, &[SETTING], &[]).await;
    assert_eq!(within(pair.client.send_rpc("slow")).await.unwrap(), "slow");
}

/// Bytes that move restart the timeout: a slow body is not a stuck request.
#[tokio::test(flavor = "multi_thread")]
async fn slow_body_does_not_time_out() {
    let handler = Handler::new().on_stream(|_| Ok(Some(vec![1; 8 << 20].into())));
    let pair = pair_with(handler, &[], &[SETTING]).await;
    let mut body = within(pair.client.stream("slow reader")).await.unwrap();
    let begun = Instant::now();
    let mut received = 0;
    while let Some(piece) = within(body.next_piece()).await {
        received += piece.unwrap().len();
        if begun.elapsed() < TIMEOUT * 3 {
            sleep(TIMEOUT / 10).await;
        }
    }
    assert_eq!(received, 8 << 20);
    assert!(begun.elapsed() >= TIMEOUT * 2, "the body was not read slowly enough");
    pair.assert_alive().await;
}

/// Idle connections stay open by default and are closed with `close_idle_connections`.
#[tokio::test]
async fn idle_connections_are_closed_only_if_configured() {
    for close_idle in [false, true] {
        let client_context =
            context(conf(&[SETTING]), Handler::new()).close_idle_connections(close_idle);
        let pair = pair_of(context(conf(&[]), handler()), client_context).await;
        within(pair.client.send_rpc("x")).await.unwrap();
        if close_idle {
            assert_eq!(within(pair.client.closed()).await.kind(), ErrorKind::Closed);
            assert!(!pair.client.is_active());
        } else {
            let closed = tokio::time::timeout(TIMEOUT * 2, pair.client.closed()).await;
            assert!(closed.is_err(), "{closed:?}");
            pair.assert_alive().await;
        }
        pair.assert_no_failures();
    }
}

/// A timeout of 0 or less is none.
#[tokio::test]
async fn requests_wait_without_limit_if_timeout_is_disabled() {
    for none in ["0", "-1"] {
        let settings =
            [("spark.network.timeout", "1s"), ("spark.shuffle.io.connectionTimeout", none)];
        let pair = pair_with(handler(), &[], &settings).await;
        let waiting = tokio::time::timeout(TIMEOUT * 5 / 2, pair.client.send_rpc("never")).await;
        assert!(waiting.is_err(), "{waiting:?}");
        pair.assert_alive().await;
    }
}

/// Calls the function at every log event of this crate with this message.
struct OnEvent<F>(&'static str, F);

impl<F: Fn() + Send + Sync + 'static> tracing::Subscriber for OnEvent<F> {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("network_common")
    }

    fn event(&self, event: &tracing::Event<'_>) {
        struct MatchesMessage<'a>(&'a str, bool);
        impl tracing::field::Visit for MatchesMessage<'_> {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.1 |= field.name() == "message" && format!("{value:?}") == self.0;
            }
        }
        let mut matcher = MatchesMessage(self.0, false);
        event.record(&mut matcher);
        if matcher.1 {
            (self.1)();
        }
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// The pool must not return a connection that is being closed as idle. The client is requested in
/// the log event right before the close.
#[tokio::test]
async fn idle_connection_being_closed_is_not_returned_by_pool() {
    let client_context = context(conf(&[SETTING]), Handler::new()).close_idle_connections(true);
    let pair = pair_of(context(conf(&[]), handler()), client_context).await;
    let (results_sender, mut results) = tokio::sync::mpsc::unbounded_channel();
    let (factory, address) = (pair.factory.clone(), pair.server.local_addr());
    let _guard =
        tracing::subscriber::set_default(OnEvent("closing an idle connection", move || {
            results_sender.send(factory.create_client(address).now_or_never()).unwrap();
        }));
    within(pair.client.closed()).await;
    let client = match within(results.recv()).await.unwrap() {
        Some(at_once) => at_once.unwrap(),
        None => within(pair.factory.create_client(address)).await.unwrap(),
    };
    assert_eq!(within(client.send_rpc("x")).await.unwrap(), "x");
}
