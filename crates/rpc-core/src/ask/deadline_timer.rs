//! The time limits of an environment's asks, kept by one task.
//!
//! A timer of the runtime per ask costs as much as the rest of a local ask. Nearly all asks are
//! answered long before their time is over, so putting a limit in and taking it out again is what
//! must be cheap. The task looks every [`TICK`], or earlier if one is due earlier.
//!
//! It also tells the end of the runtime, to askers that live on another one: it is dropped with it.

use std::sync::{Arc, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use slab::Slab;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::sync::{Mutex, Notify};

const TICK: Duration = Duration::from_millis(50);

/// With nothing to wait for, the task ends after this many looks; not at once, as the next ask is
/// usually near.
const IDLE_TICKS: u32 = 40;

pub(crate) struct DeadlineTimer {
    state: Mutex<TimerState>,
    /// Tells the task to look earlier than it means to.
    sooner: Arc<Notify>,
    pub(crate) runtime: Handle,
}

#[derive(Default)]
struct TimerState {
    waiting: Slab<DeadlineEntry>,
    /// Nothing in `waiting` that was not woken yet is due before.
    earliest: Option<Instant>,
    /// When the task looks; none if there is no task.
    next_look: Option<Instant>,
    idle_looks: u32,
    runtime_gone: bool,
}

struct DeadlineEntry {
    /// None: beyond what the clock can count.
    due: Option<Instant>,
    waker: Waker,
}

/// Why there is nothing more to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expiry {
    Elapsed,
    RuntimeStopped,
}

impl DeadlineTimer {
    pub(crate) fn new(runtime: Handle) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), sooner: Arc::default(), runtime })
    }

    /// Has `waker` woken when it is over, until [`cancel`](Self::cancel) with the key returned.
    pub(crate) fn add(
        self: &Arc<Self>,
        due: Option<Instant>,
        waker: &Waker,
    ) -> Result<usize, Expiry> {
        let mut state = self.state.lock();
        if state.runtime_gone {
            return Err(Expiry::RuntimeStopped);
        }
        let key = state.waiting.insert(DeadlineEntry { due, waker: waker.clone() });
        state.earliest = state.earliest.into_iter().chain(due).min();
        match state.next_look {
            None => {
                state.next_look = Some(Instant::now());
                state.idle_looks = 0;
                drop(state);
                self.runtime
                    .spawn(run(TimerTask { deadlines: Arc::downgrade(self), ended: false }));
            }
            Some(next_look) if due.is_some_and(|due| due < next_look) => {
                state.next_look = due;
                drop(state);
                self.sooner.notify_one();
            }
            Some(_) => {}
        }
        Ok(key)
    }

    /// Whether it is over; if not, `waker` is woken instead of the one given before.
    pub(crate) fn poll(&self, key: usize, waker: &Waker) -> Poll<Expiry> {
        let mut state = self.state.lock();
        if state.runtime_gone {
            return Poll::Ready(Expiry::RuntimeStopped);
        }
        let Some(waiting) = state.waiting.get_mut(key) else { return Poll::Pending };
        // Under the lock: the task may just have woken the waker given before.
        if waiting.due.is_some_and(|due| due <= Instant::now()) {
            return Poll::Ready(Expiry::Elapsed);
        }
        waiting.waker.clone_from(waker);
        Poll::Pending
    }

    pub(crate) fn cancel(&self, key: usize) {
        let removed = self.state.lock().waiting.try_remove(key);
        // Outside the lock: the waker may be the last handle on a task.
        drop(removed);
    }

    /// Wakes what is due. Gives the time to do so again; none if the task is to end.
    fn wake_due(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut state = self.state.lock();
        let mut due = Vec::new();
        if state.waiting.is_empty() {
            state.earliest = None;
            state.idle_looks += 1;
            if state.idle_looks == IDLE_TICKS {
                state.next_look = None;
                return None;
            }
        } else {
            state.idle_looks = 0;
            if state.earliest.is_some_and(|earliest| earliest <= now) {
                let mut earliest: Option<Instant> = None;
                for (_, waiting) in &state.waiting {
                    match waiting.due {
                        Some(time) if time <= now => due.push(waiting.waker.clone()),
                        later => earliest = earliest.into_iter().chain(later).min(),
                    }
                }
                state.earliest = earliest;
            }
        }
        let tick = now + TICK;
        let next_look = state.earliest.map_or(tick, |earliest| earliest.min(tick));
        state.next_look = Some(next_look);
        drop(state);
        due.into_iter().for_each(Waker::wake);
        Some(next_look)
    }
}

struct TimerTask {
    deadlines: Weak<DeadlineTimer>,
    ended: bool,
}

impl Drop for TimerTask {
    fn drop(&mut self) {
        let Some(deadlines) = self.deadlines.upgrade().filter(|_| !self.ended) else { return };
        let mut state = deadlines.state.lock();
        state.runtime_gone = true;
        let wakers: Vec<Waker> =
            state.waiting.iter().map(|(_, waiting)| waiting.waker.clone()).collect();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}

async fn run(mut task: TimerTask) {
    while let Some(deadlines) = task.deadlines.upgrade() {
        let Some(next_look) = deadlines.wake_due() else {
            task.ended = true;
            return;
        };
        let sooner = Arc::clone(&deadlines.sooner);
        drop(deadlines);
        // Either way it is time to look.
        let _ = tokio::time::timeout_at(next_look, sooner.notified()).await;
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    async fn wait_for_tick(deadlines: &Arc<DeadlineTimer>, limit: Duration) -> Duration {
        let started = Instant::now();
        let mut key = None;
        let over = poll_fn(|cx| match key {
            Some(key) => deadlines.poll(key, cx.waker()),
            None => match deadlines.add(Some(started + limit), cx.waker()) {
                Ok(new) => {
                    key = Some(new);
                    Poll::Pending
                }
                Err(over) => Poll::Ready(over),
            },
        })
        .await;
        assert_eq!(over, Expiry::Elapsed);
        key.into_iter().for_each(|key| deadlines.cancel(key));
        started.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn each_is_woken_when_it_is_due() {
        let deadlines = DeadlineTimer::new(Handle::current());
        let limits = [7_000, 5_000, 1, 49, 120_000, 0, 51, 7_000].map(Duration::from_millis);
        let waits =
            futures::future::join_all(limits.map(|limit| wait_for_tick(&deadlines, limit))).await;
        for (limit, waited) in limits.into_iter().zip(waits) {
            assert!(
                waited >= limit && waited <= limit + Duration::from_millis(2),
                "{limit:?}: {waited:?}"
            );
        }
        assert!(deadlines.state.lock().waiting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_task_ends_when_idle_and_starts_again() {
        let deadlines = DeadlineTimer::new(Handle::current());
        for _ in 0..2 {
            let limit = Duration::from_secs(5);
            let waited = wait_for_tick(&deadlines, limit).await;
            assert!(waited <= limit + Duration::from_millis(2), "{waited:?}");
            tokio::time::sleep(TICK * (IDLE_TICKS + 2)).await;
            assert_eq!(deadlines.state.lock().next_look, None);
        }
    }
}
