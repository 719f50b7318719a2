//! The shared record of a random run: events, violations, handled messages, kept contexts, refs.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rpc_core::{RpcCallContext, RpcEndpointRef, TracePropagator};
use tracing::Span;

use crate::messages::{Done, WorkMessage};
use crate::witness::Life;

pub type Ref = RpcEndpointRef<WorkMessage>;

/// The id of a message: its holder, and its number among the holder's messages.
pub type Mark = (u64, u64);

/// A token that shows what has not been dropped at the end of a run.
///
/// An environment has it as its trace context, which its refs, asks and transport hold too.
#[derive(Clone, Default)]
pub struct Held(Arc<()>);

impl TracePropagator for Held {
    fn current_traceparent(&self) -> Option<String> {
        None
    }

    fn start_span(&self, _: &str, _: &str) -> Span {
        Span::none()
    }
}

#[derive(Default)]
pub struct Book {
    complaints: Mutex<Vec<String>>,
    stage: Mutex<String>,
    holders: AtomicU64,
    /// Accepted messages that may not be lost.
    owed: Mutex<HashSet<Mark>>,
    handled: Mutex<HashSet<Mark>>,
    lives: Mutex<Vec<Arc<Life>>>,
    /// Contexts that endpoints kept; actors reply to them later.
    kept: Mutex<Vec<RpcCallContext<Done>>>,
    /// No actor replies to kept contexts any more, so new ones are dropped.
    closing: AtomicBool,
    happened: Mutex<BTreeMap<&'static str, u64>>,
    environments: Held,
    endpoints: Held,
    /// Refs that every actor may use.
    pub refs: Mutex<Vec<Ref>>,
}

impl Book {
    pub fn complain(&self, what: impl Into<String>) {
        self.complaints.lock().unwrap().push(what.into());
    }

    pub fn complaints(&self) -> Vec<String> {
        self.complaints.lock().unwrap().clone()
    }

    /// Counts an event, so that the tests can check that it still occurs.
    pub fn happened(&self, what: &'static str) {
        *self.happened.lock().unwrap().entry(what).or_default() += 1;
    }

    pub fn all_that_happened(&self) -> BTreeMap<&'static str, u64> {
        self.happened.lock().unwrap().clone()
    }

    /// Returns a token for an environment.
    pub fn environment(&self) -> Held {
        self.environments.clone()
    }

    /// Returns a token for an endpoint.
    pub fn endpoint(&self) -> Held {
        self.endpoints.clone()
    }

    /// Returns the number of tokens that environments and endpoints still hold.
    pub fn left(&self) -> (usize, usize) {
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

    pub fn owe(&self, mark: Mark) {
        self.owed.lock().unwrap().insert(mark);
    }

    pub fn handled(&self, mark: Mark) {
        if !self.handled.lock().unwrap().insert(mark) {
            self.complain(format!("{mark:?} was handled twice"));
        }
    }

    /// Returns the accepted messages that have not been handled and may not be lost.
    pub fn missing(&self) -> Vec<Mark> {
        let handled = self.handled.lock().unwrap();
        self.owed.lock().unwrap().difference(&handled).copied().collect()
    }

    pub fn new_life(&self, life: &Arc<Life>) {
        self.lives.lock().unwrap().push(Arc::clone(life));
    }

    pub fn lives(&self) -> Vec<Arc<Life>> {
        self.lives.lock().unwrap().clone()
    }

    pub fn keep(&self, context: RpcCallContext<Done>) {
        let mut kept = self.kept.lock().unwrap();
        if !self.closing.load(Ordering::Relaxed) {
            kept.push(context);
        }
    }

    pub fn take_kept(&self) -> Option<RpcCallContext<Done>> {
        self.kept.lock().unwrap().pop()
    }

    /// Drops the kept contexts and the shared refs.
    pub fn forget(&self) {
        self.closing.store(true, Ordering::Relaxed);
        // Both are dropped outside the locks, as a dropped context fails its ask.
        let kept = std::mem::take(&mut *self.kept.lock().unwrap());
        let refs = std::mem::take(&mut *self.refs.lock().unwrap());
        drop((kept, refs));
    }

    /// Shares a ref with all actors; it replaces another one if there are 24.
    pub fn offer(&self, offered: Ref) {
        let mut refs = self.refs.lock().unwrap();
        if refs.len() == 24 {
            let place = self.holders.load(Ordering::Relaxed) as usize % refs.len();
            refs[place] = offered;
        } else {
            refs.push(offered);
        }
    }
}
