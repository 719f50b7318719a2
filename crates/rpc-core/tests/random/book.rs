//! What happened in a play, and what should not have.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rpc_core::{RpcCallContext, RpcEndpointRef, TracePropagator};
use tracing::Span;

use crate::messages::{Done, WorkMessage};
use crate::witness::Life;

pub type Ref = RpcEndpointRef<WorkMessage>;

/// A message: its holder, and which of the holder's it is.
pub type Mark = (u64, u64);

/// Held by what is to be dropped in the end. An environment has it as its trace context, which its
/// refs, its asks and its transport hold too.
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
    /// Messages that were sent and may not be lost.
    owed: Mutex<HashSet<Mark>>,
    handled: Mutex<HashSet<Mark>>,
    lives: Mutex<Vec<Arc<Life>>>,
    /// Contexts that endpoints kept, for others to answer.
    kept: Mutex<Vec<RpcCallContext<Done>>>,
    /// Nobody will answer what is kept.
    closing: AtomicBool,
    happened: Mutex<BTreeMap<&'static str, u64>>,
    environments: Held,
    endpoints: Held,
    /// Refs that anybody may use.
    pub refs: Mutex<Vec<Ref>>,
}

impl Book {
    pub fn complain(&self, what: impl Into<String>) {
        self.complaints.lock().unwrap().push(what.into());
    }

    pub fn complaints(&self) -> Vec<String> {
        self.complaints.lock().unwrap().clone()
    }

    /// So that it shows if plays no longer come to it.
    pub fn happened(&self, what: &'static str) {
        *self.happened.lock().unwrap().entry(what).or_default() += 1;
    }

    pub fn all_that_happened(&self) -> BTreeMap<&'static str, u64> {
        self.happened.lock().unwrap().clone()
    }

    /// For an environment.
    pub fn environment(&self) -> Held {
        self.environments.clone()
    }

    /// For an endpoint.
    pub fn endpoint(&self) -> Held {
        self.endpoints.clone()
    }

    /// What has not been dropped: parts of environments, and endpoints.
    pub fn left(&self) -> (usize, usize) {
        (Arc::strong_count(&self.environments.0) - 1, Arc::strong_count(&self.endpoints.0) - 1)
    }

    /// What the play is about to do, for when it hangs.
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
            self.complain(format!("{mark:?} is handled twice"));
        }
    }

    /// What was sent and has not been handled.
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

    /// Drops what endpoints and players left behind.
    pub fn forget(&self) {
        self.closing.store(true, Ordering::Relaxed);
        // Outside the locks, as a dropped context fails its asker.
        let kept = std::mem::take(&mut *self.kept.lock().unwrap());
        let refs = std::mem::take(&mut *self.refs.lock().unwrap());
        drop((kept, refs));
    }

    /// Offers a ref to everybody, in the place of another if there are many.
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
