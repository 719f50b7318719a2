//! The long time limits of asks, kept by one task on a coarse tick.
//!
//! A timer of the runtime per ask costs as much as the rest of a local ask. Nearly all time limits are long and
//! nearly all asks are answered long before, so putting one in and taking it out again is what must be cheap.

use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::Duration;

use parking_lot::Mutex;
use slab::Slab;
use tokio::runtime::Handle;
use tokio::time::Instant;

const TICK: Duration = Duration::from_millis(50);

/// Time limits from here on may be late by a tick, which is one per cent then.
pub(crate) const COARSE_FROM: Duration = Duration::from_secs(5);

/// With nothing to wait for, the task ends after this many ticks; not at once, as the next ask is usually near.
const IDLE_TICKS: u32 = 40;

pub(crate) struct Deadlines {
    state: Mutex<State>,
    runtime: Handle,
}

struct State {
    waiting: Slab<Waiting>,
    /// Nothing in `waiting` is due before.
    earliest: Option<Instant>,
    ticking: bool,
    idle_ticks: u32,
}

struct Waiting {
    due: Instant,
    waker: Waker,
}

impl Deadlines {
    pub(crate) fn new(runtime: Handle) -> Arc<Self> {
        let state = State { waiting: Slab::new(), earliest: None, ticking: false, idle_ticks: 0 };
        Arc::new(Self { state: Mutex::new(state), runtime })
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Has `waker` woken at `due` or a little later, until [`cancel`](Self::cancel) with the key returned.
    pub(crate) fn add(self: &Arc<Self>, due: Instant, waker: &Waker) -> usize {
        let mut state = self.state.lock();
        let key = state.waiting.insert(Waiting { due, waker: waker.clone() });
        state.earliest = Some(state.earliest.map_or(due, |earliest| earliest.min(due)));
        if !state.ticking {
            state.ticking = true;
            state.idle_ticks = 0;
            drop(state);
            self.runtime.spawn(tick(Arc::downgrade(self)));
        }
        key
    }

    /// Has `waker` woken instead of the one given before.
    pub(crate) fn update(&self, key: usize, waker: &Waker) {
        if let Some(waiting) = self.state.lock().waiting.get_mut(key) {
            waiting.waker.clone_from(waker);
        }
    }

    pub(crate) fn cancel(&self, key: usize) {
        let removed = self.state.lock().waiting.try_remove(key);
        // Outside the lock: the waker may be the last handle on a task.
        drop(removed);
    }

    /// Wakes what is due. False if the task is to end.
    fn expire(&self) -> bool {
        let now = Instant::now();
        let mut state = self.state.lock();
        if state.waiting.is_empty() {
            state.earliest = None;
            state.idle_ticks += 1;
            state.ticking = state.idle_ticks < IDLE_TICKS;
            return state.ticking;
        }
        state.idle_ticks = 0;
        if state.earliest.is_some_and(|earliest| earliest > now) {
            return true;
        }
        let due: Vec<Waker> = state
            .waiting
            .iter()
            .filter(|(_, waiting)| waiting.due <= now)
            .map(|(_, waiting)| waiting.waker.clone())
            .collect();
        state.earliest = state.waiting.iter().map(|(_, waiting)| waiting.due).min();
        drop(state);
        due.into_iter().for_each(Waker::wake);
        true
    }
}

async fn tick(deadlines: Weak<Deadlines>) {
    loop {
        tokio::time::sleep(TICK).await;
        match deadlines.upgrade() {
            Some(deadlines) if deadlines.expire() => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    async fn wait(deadlines: &Arc<Deadlines>, limit: Duration) -> Duration {
        let started = Instant::now();
        let due = started + limit;
        let mut key = None;
        poll_fn(|cx| {
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            match key {
                Some(key) => deadlines.update(key, cx.waker()),
                None => key = Some(deadlines.add(due, cx.waker())),
            }
            Poll::Pending
        })
        .await;
        key.into_iter().for_each(|key| deadlines.cancel(key));
        started.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn each_is_woken_within_a_tick() {
        let deadlines = Deadlines::new(Handle::current());
        let limits = [7, 5, 120].map(Duration::from_secs);
        let waits = futures::future::join_all(limits.map(|limit| wait(&deadlines, limit))).await;
        for (limit, waited) in limits.into_iter().zip(waits) {
            assert!(waited >= limit && waited <= limit + 2 * TICK, "{limit:?}: {waited:?}");
        }
        assert!(deadlines.state.lock().waiting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_task_ends_when_idle_and_starts_again() {
        let deadlines = Deadlines::new(Handle::current());
        for _ in 0..2 {
            let waited = wait(&deadlines, COARSE_FROM).await;
            assert!(waited <= COARSE_FROM + 2 * TICK, "{waited:?}");
            tokio::time::sleep(TICK * (IDLE_TICKS + 2)).await;
            assert!(!deadlines.state.lock().ticking);
        }
    }
}
