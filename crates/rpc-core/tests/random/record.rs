//! The shared record of a random run: events, violations, handled messages, kept contexts, refs.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rpc_core::{RpcCallContext, RpcEndpointRef, TracePropagator};
use tracing::Span;

use crate::checked_endpoint::CallHistory;
use crate::messages::{Done, WorkMessage};

pub type Ref = RpcEndpointRef<WorkMessage>;

/// The id of a message: its holder, and its number among the holder's messages.
pub type MessageId = (u64, u64);

/// A token whose clones show at the end of a run which objects still exist.
///
/// An environment has it as its trace context, which its refs, asks and transport hold too.
#[derive(Clone, Default)]
pub struct LeakToken(Arc<()>);

impl TracePropagator for LeakToken {
    fn current_traceparent(&self) -> Option<String> {
        None
    }

    fn start_span(&self, _: &str, _: &str) -> Span {
        Span::none()
    }
}

/// The events and violations of one run, and the objects that its actors and endpoints share.
#[derive(Default)]
pub struct RunRecord {
    violations: Mutex<Vec<String>>,
    stage: Mutex<String>,
    holders: AtomicU64,
    /// Accepted messages that may not be lost.
    must_be_handled: Mutex<HashSet<MessageId>>,
    handled: Mutex<HashSet<MessageId>>,
    histories: Mutex<Vec<Arc<CallHistory>>>,
    /// Contexts that endpoints kept; actors reply to them later.
    kept: Mutex<Vec<RpcCallContext<Done>>>,
    /// No actor replies to kept contexts any more, so new ones are dropped.
    closing: AtomicBool,
    events: Mutex<BTreeMap<&'static str, u64>>,
    environments: LeakToken,
    endpoints: LeakToken,
    /// Refs that every actor may use.
    pub refs: Mutex<Vec<Ref>>,
}

impl RunRecord {
    pub fn report_violation(&self, text: impl Into<String>) {
        self.violations.lock().unwrap().push(text.into());
    }

    pub fn violations(&self) -> Vec<String> {
        self.violations.lock().unwrap().clone()
    }

    /// Counts an event, so that the tests can check that it still occurs.
    pub fn count_event(&self, event: &'static str) {
        *self.events.lock().unwrap().entry(event).or_default() += 1;
    }

    pub fn events(&self) -> BTreeMap<&'static str, u64> {
        self.events.lock().unwrap().clone()
    }

    /// Returns a token for an environment.
    pub fn environment_token(&self) -> LeakToken {
        self.environments.clone()
    }

    /// Returns a token for an endpoint.
    pub fn endpoint_token(&self) -> LeakToken {
        self.endpoints.clone()
    }

    /// Returns the number of tokens that environments and endpoints still hold.
    pub fn remaining(&self) -> (usize, usize) {
        (Arc::strong_count(&self.environments.0) - 1, Arc::strong_count(&self.endpoints.0) - 1)
    }

    /// Sets the name of the current stage, which is reported if the run does not end.
    pub fn set_stage(&self, stage: impl Into<String>) {
        *self.stage.lock().unwrap() = stage.into();
    }

    pub fn stage(&self) -> String {
        self.stage.lock().unwrap().clone()
    }

    pub fn new_holder(&self) -> u64 {
        self.holders.fetch_add(1, Ordering::Relaxed)
    }

    pub fn expect_handled(&self, id: MessageId) {
        self.must_be_handled.lock().unwrap().insert(id);
    }

    pub fn on_handled(&self, id: MessageId) {
        if !self.handled.lock().unwrap().insert(id) {
            self.report_violation(format!("{id:?} was handled twice"));
        }
    }

    /// Returns the accepted messages that have not been handled and may not be lost.
    pub fn unhandled(&self) -> Vec<MessageId> {
        let handled = self.handled.lock().unwrap();
        self.must_be_handled.lock().unwrap().difference(&handled).copied().collect()
    }

    pub fn add_history(&self, history: &Arc<CallHistory>) {
        self.histories.lock().unwrap().push(Arc::clone(history));
    }

    pub fn histories(&self) -> Vec<Arc<CallHistory>> {
        self.histories.lock().unwrap().clone()
    }

    pub fn keep_context(&self, context: RpcCallContext<Done>) {
        let mut kept = self.kept.lock().unwrap();
        if !self.closing.load(Ordering::Relaxed) {
            kept.push(context);
        }
    }

    pub fn take_kept_context(&self) -> Option<RpcCallContext<Done>> {
        self.kept.lock().unwrap().pop()
    }

    /// Drops the kept contexts and the shared refs.
    pub fn drop_kept(&self) {
        self.closing.store(true, Ordering::Relaxed);
        // Both are dropped outside the locks, as a dropped context fails its ask.
        let kept = std::mem::take(&mut *self.kept.lock().unwrap());
        let refs = std::mem::take(&mut *self.refs.lock().unwrap());
        drop((kept, refs));
    }

    /// Shares a ref with all actors; it replaces another one if there are 24.
    pub fn share_ref(&self, shared: Ref) {
        let mut refs = self.refs.lock().unwrap();
        if refs.len() == 24 {
            let index = self.holders.load(Ordering::Relaxed) as usize % refs.len();
            refs[index] = shared;
        } else {
            refs.push(shared);
        }
    }
}
