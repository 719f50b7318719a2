//! Closes the connections whose peers do not read while others need their bytes.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::byte_budget::{Budget, ByteBudget, ConnectionAccount, STEP};

/// The time without progress after which a connection is closed if the budget needs its bytes.
///
/// The sockets of both ends hold some MiB, so that the progress of a slow reader is seen in bursts.
const GRACE: Duration = Duration::from_secs(2);
/// The interval between two checks.
const TICK: Duration = Duration::from_millis(100);
/// The fewest bytes in [`GRACE`] that are progress.
const MIN_PROGRESS: u64 = STEP;

/// The progress of one connection since the task has checked it first.
struct Progress {
    transferred: u64,
    since: Instant,
}

/// Lets another task start when the runtime drops this one.
struct MonitorGuard(Weak<Budget>);

impl Drop for MonitorGuard {
    fn drop(&mut self) {
        if let Some(budget) = self.0.upgrade() {
            budget.monitor.lock().last_tick = None;
        }
    }
}

impl ByteBudget {
    /// Starts the task that checks the connections, unless it runs; called by tasks of a runtime.
    pub(crate) fn start_monitor(&self) {
        let now = Instant::now();
        let mut monitor = self.0.monitor.lock();
        if monitor.last_tick.is_some_and(|last| now.duration_since(last) < 2 * GRACE) {
            return;
        }
        monitor.last_tick = Some(now);
        drop(monitor);
        tokio::spawn(watch(Arc::downgrade(&self.0)));
    }

    /// Closes the connections that hold the most bytes, if the limit is exceeded.
    ///
    /// Prefers connections without progress. Must not be called under the lock of a session.
    #[inline]
    pub(crate) fn close_largest_if_exceeded(&self) {
        if self.held() > self.limit() {
            self.close_largest();
        }
    }

    #[cold]
    fn close_largest(&self) {
        let mut open = self.holders();
        let closing: u64 = open.iter().filter(|one| one.is_closed()).map(|one| one.held()).sum();
        open.retain(|account| !account.is_closed());
        open.sort_by_key(|account| (account.is_stalled.load(Ordering::Relaxed), account.held()));
        // One body that is larger than the limit is sent nevertheless, beside little else.
        let large = self.limit() / 4 * 3;
        let is_stalled = |one: &ConnectionAccount| one.is_stalled.load(Ordering::Relaxed);
        let exempt = open.pop_if(|one| one.held() > large && !is_stalled(one));
        let exempt = exempt.map_or(0, |one| one.held());
        let allowed = self.limit().max(exempt + self.limit() / 4);
        let mut excess = self.held().saturating_sub(closing).saturating_sub(allowed);
        while let Some(largest) = open.pop().filter(|_| excess > 0) {
            excess = excess.saturating_sub(largest.held());
            largest.close(None);
        }
    }

    /// Returns the connections that hold counted bytes.
    fn holders(&self) -> Vec<Arc<ConnectionAccount>> {
        let accounts = self.0.accounts.lock();
        let all = accounts.iter().filter_map(|(_, account)| account.upgrade());
        // Kept until the lock is released: dropping the last handle of an account takes it.
        let all: Vec<_> = all.collect();
        drop(accounts);
        all.into_iter().filter(|account| account.held() >= STEP).collect()
    }

    /// Closes connections without progress, whose bytes others have needed since `needed_since`.
    fn check_progress(
        &self,
        seen: &mut HashMap<usize, Progress>,
        needed_since: Option<Instant>,
        has_refused: bool,
    ) {
        let now = Instant::now();
        let needed = needed_since.map(|since| now.duration_since(since)).unwrap_or_default();
        let (mut stalled, mut next) = (Vec::new(), HashMap::new());
        let holders = self.holders();
        for account in holders.iter().filter(|account| !account.is_closed()) {
            let transferred = account.transferred();
            let new = Progress { transferred, since: now };
            let progress = match seen.remove(&account.key()) {
                Some(old) if transferred.abs_diff(old.transferred) < MIN_PROGRESS => old,
                _ => new,
            };
            let quiet = now.duration_since(progress.since);
            account.is_stalled.store(quiet >= GRACE, Ordering::Relaxed);
            if quiet.min(needed) >= GRACE {
                stalled.push((account, quiet));
            }
            next.insert(account.key(), progress);
        }
        *seen = next;
        // The most bytes for the longest time.
        stalled.sort_by_key(|(account, quiet)| {
            Reverse(u128::from(account.held()) * quiet.as_millis())
        });
        let mut excess = self.held().saturating_sub(self.usual_limit());
        for (account, quiet) in &stalled {
            if excess == 0 {
                break;
            }
            excess = excess.saturating_sub(account.held());
            account.close(Some(*quiet));
        }
        let waiting = self.waiting_fairly();
        let needed_by_others = |account: &ConnectionAccount| {
            has_refused || waiting.iter().any(|key| *key != account.key())
        };
        let mut open = stalled.iter().filter(|(account, _)| !account.is_closed());
        if let Some((account, quiet)) = open.find(|(account, _)| needed_by_others(account)) {
            account.close(Some(*quiet));
        }
    }
}

/// Checks the connections while the limit is near.
async fn watch(budget: Weak<Budget>) {
    let guard = MonitorGuard(budget);
    let mut seen = HashMap::new();
    let (mut refused, mut needed_since, mut active) = (None, None, Instant::now());
    loop {
        sleep(TICK).await;
        let Some(budget) = guard.0.upgrade().map(ByteBudget) else { return };
        // Also removes the entries of connections that have ended.
        budget.admit_waiting();
        let now = Instant::now();
        if budget.0.has_refused.swap(false, Ordering::Relaxed) {
            refused = Some(now);
        }
        let has_refused = refused.is_some_and(|at: Instant| now.duration_since(at) < 2 * GRACE);
        if has_refused || budget.is_exhausted() || !budget.waiting_fairly().is_empty() {
            needed_since.get_or_insert(now);
            active = now;
        } else {
            needed_since = None;
        }
        if budget.is_nearly_used() {
            active = now;
        } else if now.duration_since(active) >= GRACE {
            budget.0.monitor.lock().last_tick = None;
            // A request that began to wait before did not start another task.
            if !budget.waiting_fairly().is_empty() {
                budget.start_monitor();
            }
            return;
        }
        budget.0.monitor.lock().last_tick = Some(now);
        budget.check_progress(&mut seen, needed_since, has_refused);
    }
}
