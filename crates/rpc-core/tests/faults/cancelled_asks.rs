//! Row `fault_m5`: many asks are cancelled at once, and each of their contexts shows it.

use std::future::Future;
use std::time::Duration;

use rpc_core::{RpcCallContext, RpcEndpointRef, RpcEnv};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::common::{Greeting, HelloMessage, Keep, client, hi, server};
use crate::fixture::{LONG, NAME, look_up, within};

const ASKS: usize = 16_000;
const LIMIT: Duration = Duration::from_secs(10);

type Context = RpcCallContext<Greeting>;

/// An endpoint that keeps the contexts of its asks.
struct Case {
    _envs: [RpcEnv; 2],
    remote: RpcEndpointRef<HelloMessage>,
    contexts: mpsc::UnboundedReceiver<Context>,
}

impl Case {
    async fn start() -> Self {
        let (server, client) = (server().await, client().await);
        let (sender, contexts) = mpsc::unbounded_channel();
        server.setup_endpoint(NAME, Keep(sender)).unwrap();
        let remote = look_up(&client, &server).await;
        Self { _envs: [server, client], remote, contexts }
    }

    /// Asks `count` times, and returns the futures with the contexts.
    async fn ask(
        &mut self,
        count: usize,
    ) -> (Vec<impl Future<Output = Result<Greeting, rpc_core::RpcError>> + use<>>, Vec<Context>)
    {
        let asks = (0..count).map(|_| self.remote.ask_with_timeout(hi("neo"), LONG)).collect();
        let mut contexts = Vec::with_capacity(count);
        let received = self.contexts.recv_many(&mut contexts, count);
        assert_ne!(within(LIMIT, "the endpoint receives an ask", received).await, 0);
        while contexts.len() < count {
            let missing = count - contexts.len();
            let received = self.contexts.recv_many(&mut contexts, missing);
            within(LIMIT, "the endpoint receives all asks", received).await;
        }
        (asks, contexts)
    }
}

/// Waits until all tasks have ended, and reports their number if the limit elapses.
async fn assert_all_end(mut waiters: JoinSet<()>) {
    let total = waiters.len();
    let mut ended = 0;
    let all = async {
        while let Some(result) = waiters.join_next().await {
            result.unwrap();
            ended += 1;
        }
    };
    let in_time = tokio::time::timeout(LIMIT, all).await.is_ok();
    assert!(in_time, "after {LIMIT:?}: {ended} of {total} contexts are cancelled");
}

/// Waits until all contexts are cancelled.
///
/// No event announces a change of `is_cancelled`, so this checks every 10 ms.
async fn assert_all_are_cancelled(contexts: &[Context]) {
    let count = || contexts.iter().filter(|context| context.is_cancelled()).count();
    let all = async {
        while count() < contexts.len() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let in_time = tokio::time::timeout(LIMIT, all).await.is_ok();
    assert!(in_time, "after {LIMIT:?}: {} of {} contexts are cancelled", count(), contexts.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_m5_waiting_contexts_end_when_16000_asks_are_dropped() {
    let mut case = Case::start().await;
    let (asks, contexts) = case.ask(ASKS).await;
    let mut waiters = JoinSet::new();
    for context in contexts {
        waiters.spawn(async move { context.cancelled().await });
    }
    drop(asks);
    assert_all_end(waiters).await;
}

/// The handlers start to wait after the cancellation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_m5_contexts_that_wait_late_end_when_16000_asks_are_dropped() {
    let mut case = Case::start().await;
    let (asks, contexts) = case.ask(ASKS).await;
    drop(asks);
    let (last, last_context) = case.ask(1).await;
    drop(last);
    within(LIMIT, "the last context is cancelled", last_context[0].cancelled()).await;
    let mut waiters = JoinSet::new();
    for context in contexts {
        waiters.spawn(async move { context.cancelled().await });
    }
    assert_all_end(waiters).await;
}

/// Asks that the caller still awaits are not affected, and get their replies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_m5_polled_contexts_are_cancelled_when_16000_asks_are_dropped() {
    let mut case = Case::start().await;
    let (kept, kept_contexts) = case.ask(100).await;
    let (asks, contexts) = case.ask(ASKS).await;
    let (later, later_contexts) = case.ask(100).await;
    drop(asks);
    assert_all_are_cancelled(&contexts).await;
    for context in kept_contexts.into_iter().chain(later_contexts) {
        assert!(!context.is_cancelled(), "the caller still awaits this ask");
        context.reply(Greeting { text: "kept".to_owned() }).unwrap();
    }
    for reply in kept.into_iter().chain(later) {
        assert_eq!(within(LIMIT, "the reply to a kept ask", reply).await.unwrap().text, "kept");
    }
}

/// Half of the handlers wait, half of them poll.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_m5_waiting_and_polled_contexts_are_cancelled_together() {
    let mut case = Case::start().await;
    let (asks, mut polled) = case.ask(ASKS).await;
    let mut waiters = JoinSet::new();
    for context in polled.split_off(ASKS / 2) {
        waiters.spawn(async move { context.cancelled().await });
    }
    drop(asks);
    assert_all_are_cancelled(&polled).await;
    assert_all_end(waiters).await;
}

/// A cancelled context stays cancelled after thousands of later cancellations.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_m5_context_stays_cancelled_after_5000_later_cancellations() {
    let mut case = Case::start().await;
    let (first, first_context) = case.ask(1).await;
    drop(first);
    let first_context = &first_context[0];
    within(LIMIT, "the first context is cancelled", first_context.cancelled()).await;
    for n in 0..5000 {
        let (later, context) = case.ask(1).await;
        drop(later);
        within(LIMIT, &format!("later context {n} is cancelled"), context[0].cancelled()).await;
        drop(context);
    }
    // The contexts above have been dropped, so only these are active at the endpoint.
    let (asks, contexts) = case.ask(5000).await;
    drop(asks);
    assert_all_are_cancelled(&contexts).await;
    assert!(first_context.is_cancelled(), "the first context was cancelled before");
    within(LIMIT, "the first context is still cancelled", first_context.cancelled()).await;
}
