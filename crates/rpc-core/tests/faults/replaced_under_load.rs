//! Row C2: an endpoint is replaced while clients hold credit of its predecessor. Each accepted
//! message is handled by one of the two, or reported as undelivered.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rpc_core::{EndpointOptions, ErrorKind, RpcEndpointRef, RpcEnv, RpcError};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::common::{HelloMessage, client, hi, server};
use crate::fixture::{
    Gate, NAME, ask, client_with_queue, look_up, promptly, replace, stuck, watch_undelivered,
    within, working,
};

type Ref = RpcEndpointRef<HelloMessage>;
const LIMIT: Duration = Duration::from_secs(10);

/// A client whose messages contain its number.
struct Sender {
    number: usize,
    env: RpcEnv,
    remote: Ref,
    undelivered: mpsc::UnboundedReceiver<RpcError>,
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

    /// Sends the messages `numbers`, and awaits the acceptance of each.
    async fn send(&self, numbers: std::ops::Range<usize>) {
        send_numbered(self.number, &self.remote, numbers).await;
    }

    /// Returns the number of undelivered messages, and the error of one of them.
    fn undelivered(&mut self) -> (u64, Option<RpcError>) {
        (self.env.snapshot().undelivered, self.undelivered.try_recv().ok())
    }
}

async fn send_numbered(sender: usize, remote: &Ref, numbers: std::ops::Range<usize>) {
    for n in numbers {
        let sent = remote.send_wait(hi(&format!("{sender}:{n}")));
        within(LIMIT, &format!("client {sender}: send_wait {n}"), sent).await.unwrap();
    }
}

fn limit(messages: u64) -> EndpointOptions {
    EndpointOptions::new().max_messages(messages)
}

/// Sends from all clients at the same time.
async fn send_from_all(senders: &[Sender], numbers: std::ops::Range<usize>) {
    let sent = senders.iter().map(|sender| sender.send(numbers.clone()));
    futures::future::join_all(sent).await;
}

/// Asks from each client, and awaits the reply, which follows all its earlier messages.
async fn ask_from_all(senders: &[Sender], label: &str) {
    for sender in senders {
        let what = format!("client {}: the reply behind its messages", sender.number);
        let reply = within(LIMIT, &what, ask(&sender.remote, "last")).await;
        assert_eq!(reply.unwrap(), label);
    }
}

/// Checks that no message was handled twice or out of order, and returns their number.
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

/// Stops the last endpoint and returns what all have handled, in the order of their registration.
async fn stop_and_collect(server: &RpcEnv, last: &Ref, gates: &mut [Gate]) -> Vec<String> {
    server.stop(last);
    let mut handled = Vec::new();
    for gate in gates {
        handled.extend(gate.rest().await);
    }
    handled
}

/// Grows the clients' credit at a predecessor with the limit `before`, then checks that a stuck
/// successor with the limit `after` handles all messages sent with this credit.
async fn assert_all_are_handled(before: u64, after: u64, clients: usize, messages: usize) {
    let server = server().await;
    let (endpoint, first) = working("first");
    let local: Ref = server.setup_endpoint_with(NAME, endpoint, limit(before)).unwrap();
    let mut senders = Sender::start_many(clients, &server).await;
    let warm_up = 10_000 / clients;
    send_from_all(&senders, 0..warm_up).await;
    ask_from_all(&senders, "first").await;

    let (endpoint, second) = stuck("second");
    let local = replace(&server, &local, endpoint, limit(after));
    send_from_all(&senders, warm_up..warm_up + messages).await;
    // A lookup follows the messages that had credit.
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
async fn fault_c2_smaller_successor_handles_every_accepted_message() {
    assert_all_are_handled(65_536, 256, 1, 3000).await;
}

#[tokio::test]
async fn fault_c2_smallest_successor_handles_messages_of_several_clients() {
    assert_all_are_handled(65_536, 1, 4, 1000).await;
}

#[tokio::test]
async fn fault_c2_equal_successor_handles_messages_of_24_clients() {
    assert_all_are_handled(1024, 1024, 24, 200).await;
}

#[tokio::test]
async fn fault_c2_larger_successor_handles_messages_of_24_clients() {
    assert_all_are_handled(512, 1024, 24, 200).await;
}

/// The predecessor is stuck and holds all the credit; the successor handles the other messages.
async fn assert_rest_is_handled(before: u64, after: u64) {
    const CLIENTS: usize = 24;
    const MESSAGES: usize = 200;
    let server = server().await;
    let (endpoint, first) = stuck("first");
    let local: Ref = server.setup_endpoint_with(NAME, endpoint, limit(before)).unwrap();
    let mut senders = Sender::start_many(CLIENTS, &server).await;
    send_from_all(&senders, 0..MESSAGES).await;
    for sender in &senders {
        look_up(&sender.env, &server).await;
    }
    let (endpoint, second) = working("second");
    let local = replace(&server, &local, endpoint, limit(after));
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

/// Endpoints with different limits replace each other while clients send; all of them work.
#[tokio::test]
async fn fault_c2_repeated_replacements_lose_no_message() {
    const CLIENTS: usize = 6;
    const MESSAGES: usize = 2000;
    let server = server().await;
    let (endpoint, gate) = working("first");
    let mut local: Ref = server.setup_endpoint_with(NAME, endpoint, limit(65_536)).unwrap();
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
        let mark = n * CLIENTS * MESSAGES / (limits.len() + 1);
        let progress = async {
            while accepted.load(Ordering::Relaxed) < mark {
                tokio::task::yield_now().await;
            }
        };
        within(LIMIT, &format!("{mark} messages are accepted"), progress).await;
        // The next messages arrive at a stuck endpoint with credit that a working one granted.
        let (endpoint, gate) = stuck("next");
        local = replace(&server, &local, endpoint, limit(after));
        gates.push(gate);
        look_up(&senders[0].env, &server).await;
        gates.iter_mut().rev().take(2).for_each(Gate::open);
    }
    while let Some(done) = within(LIMIT, "the clients' sends", sending.join_next()).await {
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

/// Only the messages that arrive between the stop and the next setup are reported.
#[tokio::test]
async fn fault_c2_messages_without_endpoint_are_reported_and_counted() {
    // The number exceeds the predecessor's inbox and the initial windows of all clients together.
    const CLIENTS: usize = 4;
    const MESSAGES: usize = 600;
    let server = server().await;
    let (endpoint, first) = stuck("first");
    let local: Ref = server.setup_endpoint_with(NAME, endpoint, limit(1024)).unwrap();
    let mut senders = Sender::start_many(CLIENTS, &server).await;
    send_from_all(&senders, 0..MESSAGES).await;
    for sender in &senders {
        look_up(&sender.env, &server).await;
    }
    server.stop(&local);
    for sender in &senders {
        let what = format!("client {}: the failure of an ask without endpoint", sender.number);
        let error = promptly(&what, ask(&sender.remote, "gap")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::EndpointNotFound);
    }
    let (endpoint, second) = working("second");
    let local = server.setup_endpoint_with(NAME, endpoint, limit(16)).unwrap();
    send_from_all(&senders, MESSAGES..2 * MESSAGES).await;
    ask_from_all(&senders, "second").await;
    let mut gates = [first, second];
    gates[0].open();
    let handled = stop_and_collect(&server, &local, &mut gates).await;
    let handled = assert_in_order(&handled, CLIENTS);
    assert!(handled >= CLIENTS * MESSAGES, "the successor handles all that was sent to it");
    let reported: u64 = senders.iter_mut().map(|sender| sender.undelivered().0).sum();
    assert_ne!(reported, 0, "messages arrived without an endpoint");
    assert_eq!(handled as u64 + reported, 2 * (CLIENTS * MESSAGES) as u64, "{handled} handled");
    for sender in &mut senders {
        while let Ok(error) = sender.undelivered.try_recv() {
            assert_eq!(error.kind(), ErrorKind::EndpointNotFound, "client {}", sender.number);
        }
    }
}

/// The number of accepted and unhandled messages stays within the predecessor's credit and the
/// limits of both queues.
#[tokio::test]
async fn fault_c2_send_wait_slows_down_for_smaller_successor() {
    // The largest credit that the predecessor can have granted, plus the limits of the two queues.
    const MAX_HELD: usize = 1024 + 64 + 16 + 64;
    const MESSAGES: usize = 6000;
    let server = server().await;
    let (endpoint, first) = working("first");
    let local: Ref = server.setup_endpoint_with(NAME, endpoint, limit(1024)).unwrap();
    let client = client_with_queue(64).await;
    let remote = look_up(&client, &server).await;
    send_numbered(0, &remote, 0..2000).await;
    promptly("the reply behind the warm-up", ask(&remote, "last")).await.unwrap();

    let (endpoint, mut second) = stuck("second");
    let local = replace(&server, &local, endpoint, limit(16));
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
    // After two lookups the client has used all its credit, also that of the first message.
    look_up(&client, &server).await;
    look_up(&client, &server).await;
    second.open();
    for handled in 0..MESSAGES {
        second.next().await;
        let handled = handled + 1 + second.buffered();
        let ahead = accepted.load(Ordering::Relaxed).saturating_sub(handled);
        assert!(ahead <= MAX_HELD, "{ahead} messages are accepted and not handled");
    }
    within(LIMIT, "the client's sends", sending).await.unwrap();
    assert_eq!(client.snapshot().undelivered, 0, "messages are undelivered");
    let handled = stop_and_collect(&server, &local, &mut [first]).await;
    assert_eq!(assert_in_order(&handled, 1), 2000);
}
