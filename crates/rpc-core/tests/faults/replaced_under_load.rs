//! Row `fault_c2` of docs/conformance.md: an endpoint is replaced while clients hold credit that
//! it granted.
//!
//! The predecessor or the successor handles each accepted message, or it is reported to
//! its client as undelivered.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rpc_core::{EndpointOptions, ErrorKind, RpcAddress, RpcEndpointRef, RpcEnv, RpcError};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::common::{HelloMessage, client, hi, server};
use crate::fixture::{
    Gate, NAME, ask, client_with_queue, look_up, promptly, replace, stuck, watch_undelivered,
    within, working,
};

type Ref = RpcEndpointRef<HelloMessage>;
const TIMEOUT: Duration = Duration::from_secs(10);

/// A client whose messages contain its number.
struct Sender {
    number: usize,
    env: RpcEnv,
    remote: Ref,
    undelivered: mpsc::UnboundedReceiver<(RpcError, RpcAddress)>,
}

impl Sender {
    async fn start(number: usize, server: &RpcEnv) -> Self {
        let env = client().await;
        let remote = look_up(&env, server).await;
        let undelivered = watch_undelivered(&env);
        Self { number, env, remote, undelivered }
    }

    async fn start_many(count: usize, server: &RpcEnv) -> Vec<Self> {
        let mut senders = Vec::new();
        for number in 0..count {
            senders.push(Self::start(number, server).await);
        }
        senders
    }

    /// Sends the messages `numbers` with `send_wait`, one after the other.
    async fn send(&self, numbers: std::ops::Range<usize>) {
        send_numbered(self.number, &self.remote, numbers).await;
    }

    /// Returns the number of undelivered messages, and the next error that was reported for one.
    fn undelivered(&mut self) -> (u64, Option<RpcError>) {
        (self.env.snapshot().undelivered, self.undelivered.try_recv().ok().map(|(error, _)| error))
    }
}

async fn send_numbered(sender: usize, remote: &Ref, numbers: std::ops::Range<usize>) {
    for n in numbers {
        let sent = remote.send_wait(hi(&format!("{sender}:{n}")));
        within(TIMEOUT, &format!("client {sender}: send_wait {n}"), sent).await.unwrap();
    }
}

/// Returns options with an inbox limit of `messages`.
fn inbox_limit(messages: u64) -> EndpointOptions {
    EndpointOptions::new().max_messages(messages)
}

/// Sends from all clients at the same time.
async fn send_from_all(senders: &[Sender], numbers: std::ops::Range<usize>) {
    let sent = senders.iter().map(|sender| sender.send(numbers.clone()));
    futures::future::join_all(sent).await;
}

/// Asks from each client, and checks that the endpoint with `label` replies.
///
/// A reply shows that this endpoint has handled all earlier messages that it received from the
/// client.
async fn ask_from_all(senders: &[Sender], label: &str) {
    for sender in senders {
        let what = format!("client {}: the reply after its messages", sender.number);
        let reply = within(TIMEOUT, &what, ask(&sender.remote, "last")).await;
        assert_eq!(reply.unwrap(), label);
    }
}

/// Checks that no message was handled twice or out of order, and returns the number of messages.
fn assert_in_order(handled: &[String], senders: usize) -> usize {
    let mut next = vec![0; senders];
    let numbered = handled.iter().filter_map(|text| text.split_once(':'));
    for (sender, n) in numbered {
        let (sender, n): (usize, usize) = (sender.parse().unwrap(), n.parse().unwrap());
        assert!(n >= next[sender], "client {sender}: {n} comes after {}", next[sender]);
        next[sender] = n + 1;
    }
    handled.iter().filter(|text| text.contains(':')).count()
}

/// Stops the endpoint `last`, and returns what all endpoints handled, in registration order.
async fn stop_and_collect(server: &RpcEnv, last: &Ref, gates: &mut [Gate]) -> Vec<String> {
    server.stop(last);
    let mut handled = Vec::new();
    for gate in gates {
        handled.extend(gate.rest().await);
    }
    handled
}

/// Checks that a successor handles all messages that were sent with its predecessor's credit.
///
/// The predecessor has the inbox limit `before`, and the clients' credit grows while they send to
/// it. The successor has the inbox limit `after`, and is stuck until all messages are sent.
async fn assert_all_are_handled(before: u64, after: u64, clients: usize, messages: usize) {
    let server = server().await;
    let (endpoint, first) = working("first");
    let local: Ref = server.setup_endpoint_with(NAME, endpoint, inbox_limit(before)).unwrap();
    let mut senders = Sender::start_many(clients, &server).await;
    let warm_up = 10_000 / clients;
    send_from_all(&senders, 0..warm_up).await;
    ask_from_all(&senders, "first").await;

    let (endpoint, second) = stuck("second");
    let local = replace(&server, &local, endpoint, inbox_limit(after));
    send_from_all(&senders, warm_up..warm_up + messages).await;
    // The server responds to a lookup after it has received the messages that had credit.
    for sender in &senders {
        look_up(&sender.env, &server).await;
    }
    let mut gates = [first, second];
    gates[1].open();
    ask_from_all(&senders, "second").await;
    for sender in &mut senders {
        let (undelivered, error) = sender.undelivered();
        assert_eq!(undelivered, 0, "client {}: {error:?}", sender.number);
    }
    let handled = stop_and_collect(&server, &local, &mut gates).await;
    assert_eq!(assert_in_order(&handled, clients), clients * (warm_up + messages));
}

#[tokio::test]
async fn fault_c2_successor_with_smaller_limit_handles_accepted_messages() {
    assert_all_are_handled(65_536, 256, 1, 3000).await;
}

#[tokio::test]
async fn fault_c2_successor_with_limit_of_1_handles_messages_of_4_clients() {
    assert_all_are_handled(65_536, 1, 4, 1000).await;
}

#[tokio::test]
async fn fault_c2_successor_with_equal_limit_handles_messages_of_24_clients() {
    assert_all_are_handled(1024, 1024, 24, 200).await;
}

#[tokio::test]
async fn fault_c2_successor_with_larger_limit_handles_messages_of_24_clients() {
    assert_all_are_handled(512, 1024, 24, 200).await;
}

/// Checks that a successor handles the messages that its stuck predecessor had no credit for.
async fn assert_rest_is_handled(before: u64, after: u64) {
    const CLIENTS: usize = 24;
    const MESSAGES: usize = 200;
    let server = server().await;
    let (endpoint, first) = stuck("first");
    let local: Ref = server.setup_endpoint_with(NAME, endpoint, inbox_limit(before)).unwrap();
    let mut senders = Sender::start_many(CLIENTS, &server).await;
    send_from_all(&senders, 0..MESSAGES).await;
    for sender in &senders {
        look_up(&sender.env, &server).await;
    }
    let (endpoint, second) = working("second");
    let local = replace(&server, &local, endpoint, inbox_limit(after));
    ask_from_all(&senders, "second").await;
    let mut gates = [first, second];
    gates[0].open();
    for sender in &mut senders {
        let (undelivered, error) = sender.undelivered();
        assert_eq!(undelivered, 0, "client {}: {error:?}", sender.number);
    }
    let handled = stop_and_collect(&server, &local, &mut gates).await;
    assert_eq!(assert_in_order(&handled, CLIENTS), CLIENTS * MESSAGES);
}

#[tokio::test]
async fn fault_c2_successor_handles_rest_while_predecessor_is_stuck() {
    for (before, after) in [(1024, 1024), (1024, 16), (256, 4096)] {
        assert_rest_is_handled(before, after).await;
    }
}

/// Endpoints with different limits replace each other while clients send, without a loss.
#[tokio::test]
async fn fault_c2_repeated_replacements_lose_no_message() {
    const CLIENTS: usize = 6;
    const MESSAGES: usize = 2000;
    let server = server().await;
    let (endpoint, gate) = working("first");
    let mut local: Ref = server.setup_endpoint_with(NAME, endpoint, inbox_limit(65_536)).unwrap();
    let mut gates = vec![gate];
    let mut senders = Sender::start_many(CLIENTS, &server).await;
    let mut sending = JoinSet::new();
    let accepted = Arc::new(AtomicUsize::new(0));
    for sender in &senders {
        let (number, remote, accepted) =
            (sender.number, sender.remote.clone(), Arc::clone(&accepted));
        sending.spawn(async move {
            for n in 0..MESSAGES {
                send_numbered(number, &remote, n..n + 1).await;
                accepted.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let limits = [16, 65_536, 1, 4096, 64, 2, 256, 8];
    for (n, after) in limits.into_iter().enumerate() {
        let threshold = n * CLIENTS * MESSAGES / (limits.len() + 1);
        let progress = async {
            while accepted.load(Ordering::Relaxed) < threshold {
                tokio::task::yield_now().await;
            }
        };
        within(TIMEOUT, &format!("{threshold} messages are accepted"), progress).await;
        // The next messages arrive at a stuck endpoint with credit that a working one granted.
        let (endpoint, gate) = stuck("next");
        local = replace(&server, &local, endpoint, inbox_limit(after));
        gates.push(gate);
        look_up(&senders[0].env, &server).await;
        gates.iter_mut().rev().take(2).for_each(Gate::open);
    }
    while let Some(done) = within(TIMEOUT, "the clients' sends", sending.join_next()).await {
        done.unwrap();
    }
    ask_from_all(&senders, "next").await;
    for sender in &mut senders {
        let (undelivered, error) = sender.undelivered();
        assert_eq!(undelivered, 0, "client {}: {error:?}", sender.number);
    }
    let handled = stop_and_collect(&server, &local, &mut gates).await;
    assert_eq!(assert_in_order(&handled, CLIENTS), CLIENTS * MESSAGES);
}

/// Only messages that arrive between the stop and the next registration are reported.
#[tokio::test]
async fn fault_c2_messages_without_endpoint_are_reported_and_counted() {
    // 4 * 600 messages exceed the predecessor's inbox and the clients' initial windows of 64.
    const CLIENTS: usize = 4;
    const MESSAGES: usize = 600;
    let server = server().await;
    let (endpoint, first) = stuck("first");
    let local: Ref = server.setup_endpoint_with(NAME, endpoint, inbox_limit(1024)).unwrap();
    let mut senders = Sender::start_many(CLIENTS, &server).await;
    send_from_all(&senders, 0..MESSAGES).await;
    for sender in &senders {
        look_up(&sender.env, &server).await;
    }
    server.stop(&local);
    for sender in &senders {
        let what = format!("client {}: the failure of an ask without an endpoint", sender.number);
        let error = promptly(&what, ask(&sender.remote, "gap")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::EndpointNotFound);
    }
    let (endpoint, second) = working("second");
    let local = server.setup_endpoint_with(NAME, endpoint, inbox_limit(16)).unwrap();
    send_from_all(&senders, MESSAGES..2 * MESSAGES).await;
    ask_from_all(&senders, "second").await;
    let mut gates = [first, second];
    gates[0].open();
    let handled = stop_and_collect(&server, &local, &mut gates).await;
    let handled = assert_in_order(&handled, CLIENTS);
    assert!(handled >= CLIENTS * MESSAGES, "only {handled} messages were handled");
    let reported: u64 = senders.iter_mut().map(|sender| sender.undelivered().0).sum();
    assert_ne!(reported, 0, "no message arrived while there was no endpoint");
    assert_eq!(handled as u64 + reported, 2 * (CLIENTS * MESSAGES) as u64, "{handled} handled");
    for sender in &mut senders {
        while let Ok((error, _)) = sender.undelivered.try_recv() {
            assert_eq!(error.kind(), ErrorKind::EndpointNotFound, "client {}", sender.number);
        }
    }
}

/// Accepted but unhandled messages stay within the predecessor's credit, the successor's inbox and
/// the client's queue.
#[tokio::test]
async fn fault_c2_send_wait_slows_down_to_smaller_limit_of_successor() {
    const QUEUE: usize = 64;
    // The predecessor grants at most its inbox limit and one initial window, which is a 16th of it.
    const MAX_CREDIT: usize = 1024 + 1024 / 16;
    const MAX_UNHANDLED: usize = MAX_CREDIT + 16 + QUEUE;
    const MESSAGES: usize = 6000;
    let server = server().await;
    let (endpoint, first) = working("first");
    let local: Ref = server.setup_endpoint_with(NAME, endpoint, inbox_limit(1024)).unwrap();
    let client = client_with_queue(QUEUE).await;
    let remote = look_up(&client, &server).await;
    send_numbered(0, &remote, 0..2000).await;
    promptly("the reply after the warm-up", ask(&remote, "last")).await.unwrap();

    let (endpoint, mut second) = stuck("second");
    let local = replace(&server, &local, endpoint, inbox_limit(16));
    let accepted = Arc::new(AtomicUsize::new(0));
    let sending = tokio::spawn({
        let (remote, accepted) = (remote.clone(), Arc::clone(&accepted));
        async move {
            for n in 2000..2000 + MESSAGES {
                send_numbered(0, &remote, n..n + 1).await;
                accepted.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    // The arrival of the first message can grant more credit. The second lookup follows its use.
    look_up(&client, &server).await;
    look_up(&client, &server).await;
    second.open();
    for handled in 0..MESSAGES {
        second.next().await;
        let handled = handled + 1 + second.buffered();
        let unhandled = accepted.load(Ordering::Relaxed).saturating_sub(handled);
        assert!(unhandled <= MAX_UNHANDLED, "{unhandled} messages are accepted and not handled");
    }
    within(TIMEOUT, "the client's sends", sending).await.unwrap();
    assert_eq!(client.snapshot().undelivered, 0, "a message was reported as undelivered");
    let handled = stop_and_collect(&server, &local, &mut [first]).await;
    assert_eq!(assert_in_order(&handled, 1), 2000);
}
