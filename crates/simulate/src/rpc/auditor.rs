//! Checks the promises of docs/semantics.md against what callers and endpoints saw.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rpc_core::{ErrorKind, RpcCallContext, RpcError, TracePropagator};
use tokio::time::Instant;
use tracing::Span;

use super::messages::{Done, Order};
use crate::outcome::Counts;

/// An ask ends at most this much after its timeout: two ticks of the timer of an environment.
const DEADLINE_SLACK: Duration = Duration::from_millis(110);

/// A token whose clones show which objects still exist at the end of a play.
///
/// An environment has it as its trace context, which its refs, asks and transport hold too.
#[derive(Clone, Default)]
pub(super) struct LifeToken(Arc<()>);

impl TracePropagator for LifeToken {
    fn current_traceparent(&self) -> Option<String> {
        None
    }

    fn start_span(&self, _: &str, _: &str) -> Span {
        Span::none()
    }
}

/// The record of one message.
#[derive(Default)]
struct MessageRecord {
    handled: u64,
    /// The caller got a reply.
    is_ok: bool,
    /// The caller got an error by which the message was certainly not executed.
    is_rejected: bool,
    /// An accepted one-way message that nothing may lose.
    must_arrive: bool,
}

#[derive(Default)]
struct AuditState {
    violations: Vec<String>,
    counts: Counts,
    messages: BTreeMap<u64, MessageRecord>,
    /// The last number that was handled, for each ref.
    last_numbers: BTreeMap<u64, u64>,
    kept: VecDeque<(u64, RpcCallContext<Done>)>,
    keeps_contexts: bool,
    pending: BTreeMap<u64, &'static str>,
}

pub(super) struct Auditor {
    state: Mutex<AuditState>,
    environments: LifeToken,
    endpoints: LifeToken,
}

impl Auditor {
    pub(super) fn new() -> Arc<Self> {
        let state = AuditState { keeps_contexts: true, ..AuditState::default() };
        Arc::new(Self {
            state: Mutex::new(state),
            environments: LifeToken::default(),
            endpoints: LifeToken::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, AuditState> {
        self.state.lock()
    }

    pub(super) fn violation(&self, text: impl Into<String>) {
        self.state().violations.push(text.into());
    }

    pub(super) fn count(&self, name: &str) {
        self.state().counts.add(name, 1);
    }

    pub(super) fn environment_token(&self) -> LifeToken {
        self.environments.clone()
    }

    pub(super) fn endpoint_token(&self) -> LifeToken {
        self.endpoints.clone()
    }

    pub(super) fn on_handled(&self, order: &Order) {
        let mut state = self.state();
        let record = state.messages.entry(order.id).or_default();
        record.handled += 1;
        let handled = record.handled;
        if handled > 1 {
            state.violations.push(format!("message {} was handled {handled} times", order.id));
        }
        if let Some(last) = state.last_numbers.insert(order.holder, order.number)
            && last >= order.number
        {
            let (holder, number) = (order.holder, order.number);
            let text = format!("message {number} of ref {holder} arrived after {last}");
            state.violations.push(text);
        }
    }

    pub(super) fn keep(&self, id: u64, context: RpcCallContext<Done>) {
        let mut state = self.state();
        if state.keeps_contexts {
            state.kept.push_back((id, context));
        } else {
            drop(state);
            // Outside of the lock, because it fails the ask.
            drop(context);
        }
    }

    pub(super) fn take_kept(&self) -> Option<(u64, RpcCallContext<Done>)> {
        self.state().kept.pop_front()
    }

    /// Drops the kept contexts, and those of later messages at once.
    pub(super) fn drop_kept(&self) {
        let kept = {
            let mut state = self.state();
            state.keeps_contexts = false;
            std::mem::take(&mut state.kept)
        };
        drop(kept);
    }

    pub(super) fn on_ask_started(&self, id: u64) {
        self.state().pending.insert(id, "ask");
    }

    /// Checks the end of an ask. `None` is a cancelled ask.
    pub(super) fn on_ask_ended(
        &self,
        id: u64,
        started: Instant,
        timeout: Duration,
        result: Option<Result<Done, RpcError>>,
    ) {
        let elapsed = started.elapsed();
        let mut state = self.state();
        if state.pending.remove(&id).is_none() {
            state.violations.push(format!("ask {id} ended twice"));
        }
        let Some(result) = result else {
            state.counts.add("asks cancelled", 1);
            return;
        };
        if elapsed > timeout + DEADLINE_SLACK {
            let text = format!("ask {id} with a timeout of {timeout:?} ended after {elapsed:?}");
            state.violations.push(text);
        }
        match result {
            Ok(done) => {
                state.counts.add("asks succeeded", 1);
                state.messages.entry(id).or_default().is_ok = true;
                if done.id != id {
                    let text = format!("ask {id} got the reply to ask {}", done.id);
                    state.violations.push(text);
                }
            }
            Err(error) => {
                state.counts.add(&format!("asks failed: {:?}", error.kind()), 1);
                state.messages.entry(id).or_default().is_rejected |= error.is_retryable();
                if error.kind() == ErrorKind::Timeout && elapsed < timeout {
                    let text = format!("ask {id} timed out after {elapsed:?}, not {timeout:?}");
                    state.violations.push(text);
                }
            }
        }
    }

    /// Records whether a one-way message was accepted.
    pub(super) fn on_sent(&self, id: u64, is_accepted: bool, must_arrive: bool) {
        let mut state = self.state();
        state.counts.add(if is_accepted { "sends accepted" } else { "sends rejected" }, 1);
        let record = state.messages.entry(id).or_default();
        record.is_rejected |= !is_accepted;
        record.must_arrive = is_accepted && must_arrive;
    }

    /// Messages may be lost from now on, and those that have not arrived may be lost already.
    pub(super) fn allow_losses(&self, is_affected: impl Fn(u64) -> bool) {
        let mut state = self.state();
        let affected = state.messages.iter_mut().filter(|(id, _)| is_affected(**id));
        affected.for_each(|(_, record)| record.must_arrive = false);
    }

    /// Returns the accepted one-way messages that have not arrived.
    pub(super) fn missing(&self) -> Vec<u64> {
        let state = self.state();
        let missing = state.messages.iter().filter(|(_, one)| one.must_arrive && one.handled == 0);
        missing.map(|(id, _)| *id).collect()
    }

    /// Checks everything that must hold after the play, and returns violations and counts.
    ///
    /// The environments are dropped, and the tasks of the simulation have ended.
    pub(super) fn finish(&self) -> (Vec<String>, Counts) {
        let remaining = |token: &LifeToken| Arc::strong_count(&token.0) - 1;
        let (environments, endpoints) = (remaining(&self.environments), remaining(&self.endpoints));
        let mut state = self.state();
        let state = &mut *state;
        if environments + endpoints > 0 {
            let text = format!(
                "{environments} objects of environments and {endpoints} endpoints still exist"
            );
            state.violations.push(text);
        }
        for (id, kind) in &state.pending {
            state.violations.push(format!("{kind} {id} never ended"));
        }
        for (id, record) in &state.messages {
            let handled = record.handled;
            if record.is_ok && handled != 1 {
                state
                    .violations
                    .push(format!("ask {id} succeeded and was handled {handled} times"));
            }
            if record.is_rejected && handled > 0 {
                state.violations.push(format!("message {id} was rejected, but handled"));
            }
            if record.must_arrive && handled == 0 {
                state.violations.push(format!("message {id} was accepted and lost"));
            }
        }
        (std::mem::take(&mut state.violations), state.counts.clone())
    }
}
