//! One timer task for the deadlines of all asks of an environment.
//!
//! A runtime timer per ask would double the cost of a local ask. Nearly all asks complete long
//! before their deadline, so the cheap operations here are `add` and `cancel`. The task wakes up
//! every [`TICK`], or earlier for an earlier deadline.
//!
//! If the process was suspended, deadlines pass while responses are in the sockets. The task then
//! waits one more tick before it ends asks, so that the responses are read first. Only the task ends
//! asks: an ask that is polled after its deadline is pending until then.
//!
//! The task also detects that the runtime has stopped, because the runtime then drops it.

use std::sync::{Arc, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use slab::Slab;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::sync::{Mutex, Notify};

pub(super) const TICK: Duration = Duration::from_millis(50);

/// The task ends after this many ticks without an entry, because another ask usually follows soon.
const MAX_IDLE_TICKS: u32 = 40;

/// Wakes asks at their deadlines. Entries are named by the keys that [`add`](Self::add) returns.
pub(crate) struct DeadlineTimer {
    state: Mutex<TimerState>,
    /// Wakes the task before its next tick.
    reschedule: Arc<Notify>,
    pub(crate) runtime: Handle,
}

#[derive(Default)]
struct TimerState {
    entries: Slab<DeadlineEntry>,
    /// A lower bound of the deadlines whose entries have not been woken yet.
    earliest: Option<Instant>,
    /// The asks with a deadline up to here have expired.
    reached: Option<Instant>,
    /// `None` while there is no task.
    next_tick: Option<Instant>,
    idle_ticks: u32,
    is_runtime_stopped: bool,
}

struct DeadlineEntry {
    /// `None` if it exceeds the range of the clock.
    deadline: Option<Instant>,
    waker: Waker,
}

/// Why an ask cannot complete any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expiry {
    Elapsed,
    RuntimeStopped,
}

impl DeadlineTimer {
    pub(crate) fn new(runtime: Handle) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), reschedule: Arc::default(), runtime })
    }

    /// Adds a deadline at which `waker` is woken, and returns its key for `poll` and `cancel`.
    pub(crate) fn add(
        self: &Arc<Self>,
        deadline: Option<Instant>,
        waker: &Waker,
    ) -> Result<usize, Expiry> {
        let mut state = self.state.lock();
        if state.is_runtime_stopped {
            return Err(Expiry::RuntimeStopped);
        }
        let key = state.entries.insert(DeadlineEntry { deadline, waker: waker.clone() });
        state.earliest = state.earliest.into_iter().chain(deadline).min();
        match state.next_tick {
            None => {
                state.next_tick = Some(Instant::now());
                state.idle_ticks = 0;
                drop(state);
                self.runtime
                    .spawn(run(TimerTask { timer: Arc::downgrade(self), has_ended: false }));
            }
            Some(next_tick) if deadline.is_some_and(|deadline| deadline < next_tick) => {
                state.next_tick = deadline;
                drop(state);
                self.reschedule.notify_one();
            }
            Some(_) => {}
        }
        Ok(key)
    }

    /// Checks whether the entry has expired; if not, replaces its waker.
    pub(crate) fn poll(&self, key: usize, waker: &Waker) -> Poll<Expiry> {
        let mut state = self.state.lock();
        if state.is_runtime_stopped {
            return Poll::Ready(Expiry::RuntimeStopped);
        }
        let reached = state.reached;
        let Some(entry) = state.entries.get_mut(key) else { return Poll::Pending };
        if entry.deadline.is_some_and(|deadline| reached.is_some_and(|now| deadline <= now)) {
            return Poll::Ready(Expiry::Elapsed);
        }
        if !entry.waker.will_wake(waker) {
            let replaced = std::mem::replace(&mut entry.waker, waker.clone());
            drop(state);
            // Outside the lock, because the waker may own the last reference to a task.
            drop(replaced);
        }
        Poll::Pending
    }

    pub(crate) fn cancel(&self, key: usize) {
        let removed = self.state.lock().entries.try_remove(key);
        // Outside the lock, because the waker may own the last reference to a task.
        drop(removed);
    }

    /// Returns whether the task runs more than a tick later than planned.
    fn is_late(&self) -> bool {
        let next_tick = self.state.lock().next_tick;
        next_tick.is_some_and(|next_tick| Instant::now() > next_tick + TICK)
    }

    /// Wakes the entries that are due. Returns the next tick, or `None` if the task is to end.
    fn wake_due(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut state = self.state.lock();
        state.reached = Some(now);
        let mut due = Vec::new();
        if state.entries.is_empty() {
            state.earliest = None;
            state.idle_ticks += 1;
            if state.idle_ticks == MAX_IDLE_TICKS {
                state.next_tick = None;
                return None;
            }
        } else {
            state.idle_ticks = 0;
            if state.earliest.is_some_and(|earliest| earliest <= now) {
                let mut earliest: Option<Instant> = None;
                for (_, entry) in &state.entries {
                    match entry.deadline {
                        Some(deadline) if deadline <= now => due.push(entry.waker.clone()),
                        later => earliest = earliest.into_iter().chain(later).min(),
                    }
                }
                state.earliest = earliest;
            }
        }
        let tick = now + TICK;
        let next_tick = state.earliest.map_or(tick, |earliest| earliest.min(tick));
        state.next_tick = Some(next_tick);
        drop(state);
        due.into_iter().for_each(Waker::wake);
        Some(next_tick)
    }
}

struct TimerTask {
    timer: Weak<DeadlineTimer>,
    /// The task ended because there were no entries.
    has_ended: bool,
}

/// A task that is dropped before it has ended was dropped by its runtime.
impl Drop for TimerTask {
    fn drop(&mut self) {
        let Some(timer) = self.timer.upgrade().filter(|_| !self.has_ended) else { return };
        let mut state = timer.state.lock();
        state.is_runtime_stopped = true;
        let wakers: Vec<Waker> =
            state.entries.iter().map(|(_, entry)| entry.waker.clone()).collect();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}

async fn run(mut task: TimerTask) {
    let mut has_waited = false;
    while let Some(timer) = task.timer.upgrade() {
        if !has_waited && timer.is_late() {
            has_waited = true;
            drop(timer);
            tokio::time::sleep(TICK).await;
            continue;
        }
        has_waited = false;
        let Some(next_tick) = timer.wake_due() else {
            task.has_ended = true;
            return;
        };
        let reschedule = Arc::clone(&timer.reschedule);
        drop(timer);
        // Both outcomes lead to the next tick.
        let _ = tokio::time::timeout_at(next_tick, reschedule.notified()).await;
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// Waits until `timeout` has passed; returns how long that took.
    async fn wait_for_deadline(timer: &Arc<DeadlineTimer>, timeout: Duration) -> Duration {
        let started = Instant::now();
        let mut key = None;
        let expiry = poll_fn(|cx| match key {
            Some(key) => timer.poll(key, cx.waker()),
            None => match timer.add(Some(started + timeout), cx.waker()) {
                Ok(new) => {
                    key = Some(new);
                    Poll::Pending
                }
                Err(expiry) => Poll::Ready(expiry),
            },
        })
        .await;
        assert_eq!(expiry, Expiry::Elapsed);
        key.into_iter().for_each(|key| timer.cancel(key));
        started.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn timer_wakes_each_entry_at_its_deadline() {
        let timer = DeadlineTimer::new(Handle::current());
        let timeouts = [7_000, 5_000, 1, 49, 120_000, 0, 51, 7_000].map(Duration::from_millis);
        let waits =
            futures::future::join_all(timeouts.map(|timeout| wait_for_deadline(&timer, timeout)))
                .await;
        for (timeout, waited) in timeouts.into_iter().zip(waits) {
            assert!(
                waited >= timeout && waited <= timeout + Duration::from_millis(2),
                "{timeout:?}: {waited:?}"
            );
        }
        assert!(timer.state.lock().entries.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn timer_task_ends_when_idle_and_starts_again() {
        let timer = DeadlineTimer::new(Handle::current());
        for _ in 0..2 {
            let timeout = Duration::from_secs(5);
            let waited = wait_for_deadline(&timer, timeout).await;
            assert!(waited <= timeout + Duration::from_millis(2), "{waited:?}");
            tokio::time::sleep(TICK * (MAX_IDLE_TICKS + 2)).await;
            assert_eq!(timer.state.lock().next_tick, None);
        }
    }
}
