//! Row `fault_c1`: an endpoint is stuck in `receive` with messages of remote clients, and is
//! replaced. Its successor must serve the clients although the predecessor holds their credit.

use std::time::{Duration, Instant};

use rpc_core::{
    EndpointOptions, EndpointRef, ErrorKind, OverflowPolicy, RpcEndpointRef, RpcEnv, RpcError,
};
use tokio::task::JoinHandle;

use crate::common::{HelloMessage, SayHi, address, client, hi, server};
use crate::fixture::{
    Gate, LONG, NAME, ask, client_with_queue, fill_queue, look_up, promptly, replace, stuck,
    working,
};

pub type Ref = RpcEndpointRef<HelloMessage>;
pub type HeldAsk = JoinHandle<Result<String, RpcError>>;

/// The messages of one client that the stuck endpoint holds.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// One ask of 64 KiB: it uses up the credit in bytes.
    LargeAsk,
    /// One ask and 63 sends: they use up the credit in messages.
    AskAndSends,
}

pub const LOADS: [Load; 2] = [Load::LargeAsk, Load::AskAndSends];

impl Load {
    /// Sends the messages of this load; the ask comes first.
    pub fn send(self, endpoint: &Ref) -> HeldAsk {
        let (text, sends) = match self {
            Self::LargeAsk => ("x".repeat(64 << 10), 0),
            Self::AskAndSends => ("held".to_owned(), 63),
        };
        let held = tokio::spawn(ask(endpoint, &text));
        for n in 0..sends {
            endpoint.send(hi(&format!("held {n}"))).unwrap();
        }
        held
    }
}

/// A stuck endpoint of `server`, with the load of one client.
pub struct Case {
    pub server: RpcEnv,
    pub client: RpcEnv,
    pub local: Ref,
    /// The client's ref, from before the replacement.
    pub remote: Ref,
    pub gate: Gate,
    pub held: HeldAsk,
}

impl Case {
    async fn start(load: Load, options: EndpointOptions) -> Self {
        let (server, client) = (server().await, client().await);
        let (endpoint, mut gate) = stuck("first");
        let local = server.setup_endpoint_with(NAME, endpoint, options).unwrap();
        let remote = look_up(&client, &server).await;
        let held = load.send(&remote);
        gate.next().await;
        // The reply to a lookup follows the credit that the first message brought.
        look_up(&client, &server).await;
        Self { server, client, local, remote, gate, held }
    }

    pub async fn start_default(load: Load) -> Self {
        Self::start(load, EndpointOptions::new()).await
    }

    pub fn replace(&self) -> (Ref, Gate) {
        let (endpoint, gate) = working("second");
        (replace(&self.server, &self.local, endpoint, EndpointOptions::new()), gate)
    }
}

/// Checks that the endpoint behind `remote` is the one with `label`, and receives asks and sends.
async fn assert_serves(label: &str, gate: &mut Gate, remote: &Ref, what: &str) {
    for n in 0..100 {
        let reply = promptly(&format!("{what}: the reply to ask {n}"), ask(remote, "ask")).await;
        assert_eq!(reply.unwrap(), label, "{what}");
        remote.send(hi(&format!("send {n}"))).unwrap();
        gate.until(&format!("send {n}")).await;
    }
}

pub async fn assert_held_ask_succeeds(held: HeldAsk, label: &str) {
    let reply = promptly("the predecessor's reply to the ask that it holds", held).await.unwrap();
    assert_eq!(reply.unwrap(), label);
}

async fn assert_successor_serves(load: Load, options: EndpointOptions) {
    let mut case = Case::start(load, options).await;
    let (_local, mut second) = case.replace();
    assert_serves("second", &mut second, &case.remote, "the ref from before").await;
    let new = look_up(&case.client, &case.server).await;
    assert_serves("second", &mut second, &new, "a new ref").await;
    assert!(!case.held.is_finished(), "the predecessor has not replied yet");
    case.gate.open();
    assert_held_ask_succeeds(case.held, "first").await;
    assert_serves("second", &mut second, &case.remote, "after the predecessor's end").await;
}

#[tokio::test]
async fn fault_c1_successor_serves_client_whose_64_kib_ask_is_held() {
    assert_successor_serves(Load::LargeAsk, EndpointOptions::new()).await;
}

#[tokio::test]
async fn fault_c1_successor_serves_client_whose_ask_and_63_sends_are_held() {
    assert_successor_serves(Load::AskAndSends, EndpointOptions::new()).await;
}

#[tokio::test]
async fn fault_c1_successor_serves_clients_of_isolated_predecessor() {
    for load in LOADS {
        assert_successor_serves(load, EndpointOptions::new().isolated(1)).await;
    }
}

/// The predecessor's inbox drops messages of the client before it is stopped, and frees them once.
#[tokio::test]
async fn fault_c1_successor_serves_clients_of_predecessor_that_drops_messages() {
    let options = EndpointOptions::new().max_messages(1024).overflow(OverflowPolicy::DropOldest);
    for load in LOADS {
        let mut case = Case::start(load, options.clone()).await;
        for _ in 0..1024 {
            case.local.send(hi("local")).unwrap();
        }
        // The dropped sends have returned their credit; these use it up again.
        for _ in 0..63 {
            case.remote.send(hi("queued")).unwrap();
        }
        look_up(&case.client, &case.server).await;
        let (_local, mut second) = case.replace();
        assert_serves("second", &mut second, &case.remote, "the ref from before").await;
        case.gate.open();
        assert_held_ask_succeeds(case.held, "first").await;
        assert_serves("second", &mut second, &case.remote, "after the predecessor's end").await;
    }
}

/// A handler that panics after its replacement releases its messages as a reply does.
#[tokio::test]
async fn fault_c1_successor_serves_clients_while_predecessor_panics() {
    let mut case = Case::start_default(Load::LargeAsk).await;
    let panicking = tokio::spawn(ask(&case.remote, "handler panics"));
    case.server.stop(&case.local);
    let error = promptly("the ask without endpoint", panicking).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::EndpointNotFound);

    let (endpoint, mut gate) = stuck("second");
    let local: Ref = case.server.setup_endpoint(NAME, endpoint).unwrap();
    let held = tokio::spawn(ask(&case.remote, &format!("handler panics{}", "x".repeat(64 << 10))));
    gate.next().await;
    let (endpoint, mut third) = working("third");
    let _local = replace(&case.server, &local, endpoint, EndpointOptions::new());
    assert_serves("third", &mut third, &case.remote, "before the panic").await;
    gate.open();
    let error = promptly("the ask whose handler panicked", held).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Panic);
    case.gate.open();
    assert_held_ask_succeeds(case.held, "first").await;
    assert_serves("third", &mut third, &case.remote, "after the panic").await;
}

/// The successor receives, in order, the messages that were queued at the client for credit.
#[tokio::test]
async fn fault_c1_successor_receives_queued_sends_in_order() {
    for load in LOADS {
        let mut case = Case::start_default(load).await;
        let texts: Vec<_> = (0..500).map(|n| format!("queued {n}")).collect();
        for text in &texts {
            case.remote.send(hi(text)).unwrap();
        }
        let (_local, mut second) = case.replace();
        let reply = promptly("the reply behind the queued sends", ask(&case.remote, "last")).await;
        assert_eq!(reply.unwrap(), "second");
        let at_successor = second.until("last").await;
        case.gate.open();
        assert_held_ask_succeeds(case.held, "first").await;
        let mut all = case.gate.rest().await;
        all.retain(|text| text.starts_with("queued"));
        all.extend(at_successor);
        assert_eq!(all, texts, "{load:?}");
    }
}

#[tokio::test]
async fn fault_c1_pending_send_waits_complete_when_successor_is_set_up() {
    for load in LOADS {
        let mut case = Case::start_default(load).await;
        let client = client_with_queue(16).await;
        let remote = look_up(&client, &case.server).await;
        // The first message causes a grant; the reply to a lookup shows that it has arrived.
        remote.send(hi("first")).unwrap();
        look_up(&client, &case.server).await;
        let accepted = fill_queue(&remote, |n| hi(&format!("accepted {n}")));
        let mut waiting: Vec<_> =
            (0..8).map(|n| Box::pin(remote.send_wait(hi(&format!("waiting {n}"))))).collect();
        for future in &mut waiting {
            assert!(futures::poll!(future.as_mut()).is_pending(), "the queue is full");
        }
        // After this lookup the predecessor holds all that had credit.
        look_up(&client, &case.server).await;
        let (_local, mut second) = case.replace();
        let sent = promptly("the send_waits", futures::future::join_all(waiting)).await;
        assert!(sent.iter().all(Result::is_ok), "{sent:?}");
        let last = promptly("the ask behind them", ask(&remote, "last")).await;
        assert_eq!(last.unwrap(), "second");
        let mut all = second.until("last").await;
        case.gate.open();
        assert_held_ask_succeeds(case.held, "first").await;
        all.extend(case.gate.rest().await);
        let count = |prefix| all.iter().filter(|text| text.starts_with(prefix)).count();
        assert_eq!((count("accepted"), count("waiting")), (accepted, 8), "{load:?}");
    }
}

#[tokio::test]
async fn fault_c1_held_ask_keeps_its_timeout_after_replacement() {
    let mut case = Case::start_default(Load::LargeAsk).await;
    let timeout = Duration::from_millis(1500);
    let (other, started) = (client().await, Instant::now());
    let other_ref = look_up(&other, &case.server).await;
    let short = tokio::spawn(other_ref.ask_with_timeout(hi(&"x".repeat(64 << 10)), timeout));
    look_up(&other, &case.server).await;
    let (_local, mut second) = case.replace();
    for remote in [&case.remote, &other_ref] {
        assert_serves("second", &mut second, remote, "the ref from before").await;
    }
    let error = promptly("the timeout of the held ask", short).await.unwrap().unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
    assert!(started.elapsed() >= timeout, "after {:?}", started.elapsed());
    assert!(!case.held.is_finished(), "an ask with a longer timeout goes on");
    case.gate.open();
    assert_held_ask_succeeds(case.held, "first").await;
}

#[tokio::test]
async fn fault_c1_successor_serves_several_clients() {
    let mut case = Case::start_default(Load::LargeAsk).await;
    let mut others = Vec::new();
    for n in 0..6 {
        let client = client().await;
        let remote = look_up(&client, &case.server).await;
        let held = LOADS[n % 2].send(&remote);
        look_up(&client, &case.server).await;
        others.push((client, remote, held));
    }
    let (_local, mut second) = case.replace();
    assert_serves("second", &mut second, &case.remote, "the first client").await;
    for (n, (_, remote, _)) in others.iter().enumerate() {
        assert_serves("second", &mut second, remote, &format!("client {n}")).await;
    }
    case.gate.open();
    assert_held_ask_succeeds(case.held, "first").await;
    for (_client, _remote, held) in others {
        assert_held_ask_succeeds(held, "first").await;
    }
}

#[tokio::test]
async fn fault_c1_fourth_successor_serves_ref_of_first() {
    for load in LOADS {
        let mut case = Case::start_default(load).await;
        let (mut local, mut stuck_ones) = (case.local, Vec::new());
        for label in ["second", "third", "fourth"] {
            let (endpoint, mut gate) = stuck(label);
            local = replace(&case.server, &local, endpoint, EndpointOptions::new());
            let held = load.send(&case.remote);
            gate.next().await;
            stuck_ones.push((label, gate, held));
        }
        let (endpoint, mut last) = working("last");
        local = replace(&case.server, &local, endpoint, EndpointOptions::new());
        assert_serves("last", &mut last, &case.remote, "the ref of the first").await;
        for (label, mut gate, held) in stuck_ones.into_iter().rev() {
            gate.open();
            assert_held_ask_succeeds(held, label).await;
        }
        case.gate.open();
        assert_held_ask_succeeds(case.held, "first").await;
        assert_serves("last", &mut last, &case.remote, "after the predecessors' end").await;
        case.server.stop(&local);
    }
}

/// The endpoint is in a client-mode environment; its caller uses the connection made by it, and a
/// ref out of a message.
#[tokio::test]
async fn fault_c1_successor_in_client_mode_env_serves_ref_out_of_message() {
    for load in LOADS {
        let (master, driver) = (server().await, client().await);
        let (hello, _hello_gate) = working::<HelloMessage>("hello");
        master.setup_endpoint("hello", hello).unwrap();
        let lookup = driver.setup_endpoint_ref::<HelloMessage>(address(&master), "hello");
        let hello = promptly("the lookup", lookup).await.unwrap();
        promptly("the driver's ask", ask(&hello, "connect")).await.unwrap();

        let (endpoint, mut first) = stuck("first");
        let local: Ref = driver.setup_endpoint(NAME, endpoint).unwrap();
        let field = EndpointRef::try_from(&local).unwrap();
        let remote = master.resolve::<HelloMessage>(&field).unwrap();
        let held = load.send(&remote);
        first.next().await;
        let (endpoint, mut second) = working("second");
        let _local = replace(&driver, &local, endpoint, EndpointOptions::new());
        assert_serves("second", &mut second, &remote, "the ref out of a message").await;
        first.open();
        assert_held_ask_succeeds(held, "first").await;
    }
}

/// A request as large as the ask that is held needs no more credit than a small one.
#[tokio::test]
async fn fault_c1_successor_serves_large_asks_of_held_ref() {
    let mut case = Case::start_default(Load::LargeAsk).await;
    let (_local, _second) = case.replace();
    let large = || SayHi { msg: "y".repeat(1 << 20) };
    for n in 0..8 {
        let reply = case.remote.ask_with_timeout(large(), LONG);
        let reply = promptly(&format!("the reply to large ask {n}"), reply).await.unwrap();
        assert_eq!(reply.text, "second");
    }
    case.gate.open();
    assert_held_ask_succeeds(case.held, "first").await;
}
