//! An actor that performs one random operation after another.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rpc_core::{AbortHandle, AskFuture, EndpointRef, ErrorKind, RpcError};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::checked_endpoint::EndpointKind;
use crate::fixture::{EnvSlot, Fixture, SOON};
use crate::messages::order::Action;
use crate::messages::{Done, Order, WorkDo, WorkNotify};
use crate::record::{MessageId, Ref, RunRecord};

/// The longest time between the timeout of an ask and its end, on a busy machine.
const SLACK: Duration = Duration::from_secs(10);

/// A timeout that no ask should reach: each is replied to, dropped, or fails with its connection
/// before.
const LONG: Duration = Duration::from_secs(10);

const TIMEOUTS: [Duration; 7] = [
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(50),
    LONG,
    LONG,
    LONG,
    LONG,
];

/// Performs random operations with the environments of a run.
pub struct Actor {
    fixture: Arc<Fixture>,
    random: StdRng,
    holders: Vec<Holder>,
    /// Tasks that await pending asks.
    asks: JoinSet<()>,
    aborts: Vec<AbortHandle>,
}

/// A ref whose messages must arrive in the order in which they were sent.
struct Holder {
    id: u64,
    sent: u64,
    endpoint: Ref,
    kind: EndpointKind,
}

/// The outcome that an ask may have.
#[derive(Debug)]
struct Expected {
    action: Action,
    id: MessageId,
    ask_timeout: Duration,
    /// The ask may fail only with `ErrorKind::Limit`.
    must_succeed: bool,
}

impl Actor {
    pub fn new(fixture: Arc<Fixture>, random: StdRng) -> Self {
        Self { fixture, random, holders: Vec::new(), asks: JoinSet::new(), aborts: Vec::new() }
    }

    /// Performs `operations` random operations, and returns the pending asks.
    pub async fn run(mut self, operations: usize) -> JoinSet<()> {
        for _ in 0..operations {
            self.act().await;
            while let Some(ended) = self.asks.try_join_next() {
                ended.unwrap();
            }
        }
        self.asks
    }

    async fn act(&mut self) {
        match self.random.random_range(0..100) {
            0..12 => self.look_up().await,
            12..17 => self.take_shared_ref(),
            17..52 => self.ask(),
            52..70 => self.send(),
            70..78 => self.send_wait().await,
            78..82 => self.complete_kept_context().await,
            82..85 => self.abort_ask(),
            85..93 => {
                tokio::time::sleep(Duration::from_millis(self.random.random_range(0..4))).await
            }
            _ if self.fixture.no_faults => tokio::task::yield_now().await,
            93..96 => self.replace_endpoint(),
            96..99 => self.close_connections(),
            _ => {
                let slot = self.random.random_range(0..self.fixture.slots.len());
                self.fixture.restart(&self.fixture.slots[slot]).await;
            }
        }
    }

    fn add_holder(&mut self, endpoint: Ref) {
        let kind = EndpointKind::of(endpoint.name());
        let holder = Holder { id: self.fixture.record.new_holder(), sent: 0, endpoint, kind };
        if self.holders.len() == 6 {
            let index = self.random.random_range(0..6);
            self.holders[index] = holder;
        } else {
            self.holders.push(holder);
        }
    }

    async fn look_up(&mut self) {
        let fixture = Arc::clone(&self.fixture);
        let from = fixture.slots.choose(&mut self.random).unwrap();
        let to = fixture.slots.choose(&mut self.random).unwrap();
        let proxied =
            to.proxy.as_ref().filter(|_| self.random.random()).map(|proxy| &proxy.address);
        let Some(address) = proxied.or(to.address.as_ref()) else { return };
        let kind = *fixture.kinds().choose(&mut self.random).unwrap();
        let found =
            timeout(SOON, from.env().setup_endpoint_ref(address.clone(), kind.name())).await;
        match found {
            Ok(Ok(endpoint)) => {
                if self.random.random_bool(0.3) {
                    fixture.record.share_ref(endpoint.clone());
                }
                self.add_holder(endpoint);
            }
            Ok(Err(error)) if fixture.no_faults => {
                fixture.record.report_violation(format!(
                    "the lookup of {kind:?} at {address} failed: {error}"
                ));
            }
            Ok(Err(_)) => {}
            Err(_) => fixture
                .record
                .report_violation(format!("the lookup of {kind:?} at {address} does not complete")),
        }
    }

    /// Takes one of the shared refs.
    fn take_shared_ref(&mut self) {
        let shared = self.fixture.record.refs.lock().unwrap().choose(&mut self.random).cloned();
        shared.into_iter().for_each(|shared| self.add_holder(shared));
    }

    fn order(&mut self, holder: usize) -> Order {
        let holder = &mut self.holders[holder];
        holder.sent += 1;
        let action = match self.random.random_range(0..40) {
            0..14 => Action::Reply,
            14..18 => Action::Wait,
            18..20 => Action::Keep,
            20..22 => Action::Drop,
            22..24 => Action::Fail,
            24..26 => Action::Panic,
            26..30 => Action::Spawn,
            30..33 => Action::Watch,
            33..36 => Action::AskAnother,
            36..39 => Action::Resolve,
            _ if self.fixture.no_faults => Action::Reply,
            _ => Action::Stop,
        };
        let target = match action {
            Action::Resolve => {
                self.fixture.record.refs.lock().unwrap().choose(&mut self.random).cloned()
            }
            _ => None,
        };
        Order {
            holder: holder.id,
            number: holder.sent,
            action: action.into(),
            millis: self.random.random_range(0..3),
            target: target.and_then(|target| EndpointRef::try_from(&target).ok()),
            payload: vec![0; self.random.random_range(0..300)].into(),
        }
    }

    fn ask(&mut self) {
        if self.holders.is_empty() {
            return;
        }
        let index = self.random.random_range(0..self.holders.len());
        let order = self.order(index);
        let holder = &self.holders[index];
        let ask_timeout = match order.action() {
            // Only its timeout ends such an ask.
            Action::Watch => Duration::from_millis(50),
            _ => *TIMEOUTS.choose(&mut self.random).unwrap(),
        };
        let must_succeed = self.fixture.no_faults
            && holder.kind != EndpointKind::DropsOldest
            && matches!(order.action(), Action::Reply | Action::Wait | Action::Spawn)
            && ask_timeout == LONG;
        let mut expected = Expected {
            action: order.action(),
            id: (order.holder, order.number),
            ask_timeout,
            must_succeed,
        };
        let started = Instant::now();
        let mut ask = holder.endpoint.ask_with_timeout(WorkDo(order), ask_timeout);
        match self.random.random_range(0..8) {
            0 => {
                self.fixture.record.count_event("an ask was dropped");
                drop(ask);
            }
            1 => {
                expected.must_succeed = false;
                self.aborts.push(ask.abort_handle());
                self.spawn_ask(ask, started, expected);
            }
            2 => {
                // The ask is cancelled within 3 ms, whether it has been polled or not.
                let patience = Duration::from_millis(self.random.random_range(0..3));
                self.asks.spawn(async move { drop(timeout(patience, ask).await) });
            }
            _ => self.spawn_ask(ask, started, expected),
        }
    }

    fn spawn_ask(&mut self, ask: AskFuture<Done>, started: Instant, expected: Expected) {
        let record = Arc::clone(&self.fixture.record);
        self.asks.spawn(async move {
            match timeout(expected.ask_timeout + SLACK, ask).await {
                Ok(outcome) => {
                    record.count_event(if outcome.is_ok() {
                        "an ask succeeded"
                    } else {
                        "an ask failed"
                    });
                    expected.check(&record, outcome, started.elapsed());
                }
                Err(_) => {
                    record.report_violation(format!("an ask does not complete: {expected:?}"))
                }
            }
        });
    }

    /// Returns true if every accepted message of this holder must be handled.
    fn must_be_handled(&self, index: usize) -> bool {
        self.fixture.no_faults && self.holders[index].kind != EndpointKind::DropsOldest
    }

    fn send(&mut self) {
        if self.holders.is_empty() {
            return;
        }
        let index = self.random.random_range(0..self.holders.len());
        for _ in 0..self.random.random_range(1..12) {
            let order = self.order(index);
            let id = (order.holder, order.number);
            let endpoint = &self.holders[index].endpoint;
            let sent = if self.random.random() {
                endpoint.send(WorkNotify(order)).map_err(RpcError::from)
            } else {
                endpoint.send(WorkDo(order)).map_err(RpcError::from)
            };
            match sent {
                Ok(()) if self.must_be_handled(index) => self.fixture.record.expect_handled(id),
                Err(error) if self.fixture.no_faults && error.kind() != ErrorKind::Limit => {
                    self.fixture.record.report_violation(format!("a send failed: {error}"));
                }
                _ => {}
            }
        }
    }

    async fn send_wait(&mut self) {
        if self.holders.is_empty() {
            return;
        }
        let index = self.random.random_range(0..self.holders.len());
        let order = self.order(index);
        let id = (order.holder, order.number);
        let patience = if self.random.random_bool(0.2) { Duration::from_millis(1) } else { SOON };
        match timeout(patience, self.holders[index].endpoint.send_wait(WorkNotify(order))).await {
            Ok(Ok(())) if self.must_be_handled(index) => self.fixture.record.expect_handled(id),
            Ok(Err(error)) if self.fixture.no_faults => {
                self.fixture.record.report_violation(format!("a send failed: {}", error.error()));
            }
            Err(_) if patience == SOON => {
                self.fixture.record.report_violation("a send_wait does not complete")
            }
            _ => {}
        }
    }

    async fn complete_kept_context(&mut self) {
        let Some(kept) = self.fixture.record.take_kept_context() else { return };
        match self.random.random_range(0..4) {
            0 => drop(kept),
            1 => kept.send_failure(RpcError::application(crate::INTENDED_FAILURE)),
            2 if kept.is_cancelled() => {
                if timeout(SOON, kept.cancelled()).await.is_err() {
                    self.fixture.record.report_violation(
                        "cancelled() does not complete although is_cancelled() is true",
                    );
                }
            }
            _ => drop(kept.reply(Done::default())),
        }
    }

    fn abort_ask(&mut self) {
        if let Some(abort) = self.aborts.pop() {
            abort.abort(crate::INTENDED_FAILURE);
        }
    }

    fn replace_endpoint(&mut self) {
        let slot: &EnvSlot = self.fixture.slots.choose(&mut self.random).unwrap();
        let kind = *self.fixture.kinds().choose(&mut self.random).unwrap();
        let shared = self.fixture.record.refs.lock().unwrap().choose(&mut self.random).cloned();
        shared.into_iter().for_each(|shared| slot.env().stop(&shared));
        // The setup fails if another endpoint with this name is still registered.
        if let Ok(endpoint) = kind.set_up(&slot.env(), &self.fixture.record) {
            self.fixture.record.count_event("an endpoint was replaced");
            self.fixture.record.share_ref(endpoint);
        }
    }

    fn close_connections(&mut self) {
        let slot: &EnvSlot = self.fixture.slots.choose(&mut self.random).unwrap();
        if let Some(proxy) = &slot.proxy {
            self.fixture.record.count_event("connections were closed");
            proxy.close_all();
        }
    }
}

impl Expected {
    fn check(&self, record: &RunRecord, outcome: Result<Done, RpcError>, elapsed: Duration) {
        let Self { action, id, ask_timeout, must_succeed } = self;
        match outcome {
            // Another actor replied to a kept context.
            Ok(done) if *action == Action::Keep && done == Done::default() => {}
            Ok(done) if (done.holder, done.number) != *id => {
                record.report_violation(format!("{self:?} got the reply {done:?}"));
            }
            Ok(_) => {}
            Err(error) if *must_succeed && error.kind() != ErrorKind::Limit => {
                record.report_violation(format!("{self:?} failed: {error:?}"));
            }
            // The nested ask of a handler has a shorter timeout.
            Err(error) if error.kind() == ErrorKind::Timeout && *action != Action::AskAnother => {
                if elapsed < *ask_timeout || *ask_timeout == LONG {
                    record.report_violation(format!("{self:?} failed after {elapsed:?}: {error}"));
                }
            }
            Err(_) => {}
        }
    }
}
