//! The order in which connections ask their stream managers for bodies.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::oneshot;

use super::byte_budget::{
    BodyPermit, ByteBudget, ConnectionAccount, STEP, WaitingBodies, WaitingBody,
};

/// The estimate for the first body of a connection; at most a quarter of the limit.
const UNKNOWN_SIZE: u64 = 64 << 20;

impl Drop for BodyPermit {
    fn drop(&mut self) {
        self.budget.0.requested.fetch_sub(self.estimate, Ordering::SeqCst);
        if self.is_exception {
            self.budget.0.waiting.lock().has_exception = false;
        }
        self.budget.admit_waiting();
    }
}

impl ConnectionAccount {
    /// Waits until the connection may ask for a body of about `estimate` bytes.
    ///
    /// `None` if the connection has not asked for a body yet.
    ///
    /// # Cancel safety
    /// Cancel safe: dropping the future leaves the queue.
    pub(crate) async fn admit_body(self: &Arc<Self>, estimate: Option<u64>) -> BodyPermit {
        let budget = &self.budget;
        if budget.0.waiting_count.load(Ordering::SeqCst) == 0
            && let Some(permit) = budget.try_admit(self, estimate)
        {
            return permit;
        }
        loop {
            let (admission, admitted) = oneshot::channel();
            {
                let mut waiting = budget.0.waiting.lock();
                let account = Arc::clone(self);
                waiting.queue.push_back(WaitingBody { account, estimate, admission });
                budget.0.waiting_count.store(waiting.queue.len(), Ordering::SeqCst);
            }
            // Bytes may have been released before this entry was in the queue.
            budget.admit_waiting();
            budget.start_monitor();
            // The queue drops no sender of a future that waits.
            if let Ok(permit) = admitted.await {
                return permit;
            }
        }
    }
}

impl ByteBudget {
    /// Returns the limit for bodies whose estimate is not small.
    fn body_limit(&self) -> u64 {
        self.limit() / 4 * 3
    }

    /// Returns the bytes that an estimate reserves.
    ///
    /// Below the limit, so that a larger body is admitted while little else is held.
    fn reserved_for(&self, estimate: Option<u64>) -> u64 {
        match estimate {
            Some(estimate) => estimate.min(self.limit() / 2),
            None => UNKNOWN_SIZE.min(self.limit() / 4),
        }
    }

    /// Reserves an estimate if it fits.
    fn try_admit(&self, account: &ConnectionAccount, estimate: Option<u64>) -> Option<BodyPermit> {
        let bytes = self.reserved_for(estimate);
        let before = self.0.requested.fetch_add(bytes, Ordering::SeqCst) + self.held();
        let fits = match bytes <= STEP && account.held() < STEP {
            // As the response to an RPC.
            true => before <= self.limit(),
            false => before + bytes <= self.body_limit() && self.is_fair(account, before),
        };
        if fits {
            return Some(BodyPermit { budget: self.clone(), estimate: bytes, is_exception: false });
        }
        self.0.requested.fetch_sub(bytes, Ordering::SeqCst);
        None
    }

    /// Returns whether a connection holds no more than what is free.
    ///
    /// So one connection gets at most half of the budget, and `n` leave 1/(n + 1) of it.
    fn is_fair(&self, account: &ConnectionAccount, total: u64) -> bool {
        account.held() <= self.limit().saturating_sub(total)
    }

    /// Returns the connections that wait for a body although they hold no more than their share.
    pub(super) fn waiting_fairly(&self) -> Vec<usize> {
        let total = self.held() + self.0.requested.load(Ordering::SeqCst);
        let waiting = self.0.waiting.lock();
        let open = waiting.queue.iter().filter(|entry| !entry.admission.is_closed());
        let fair = open.filter(|entry| self.is_fair(&entry.account, total));
        fair.map(|entry| entry.account.key()).collect()
    }

    /// Admits the connections for whose next body the budget has capacity.
    ///
    /// Large bodies do not overtake each other. Small ones overtake large ones, and connections
    /// that hold more than their share are passed over.
    pub(super) fn admit_waiting(&self) {
        if self.0.waiting_count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut admitted = Vec::new();
        {
            let mut waiting = self.0.waiting.lock();
            let WaitingBodies { queue, has_exception } = &mut *waiting;
            let mut is_blocked = false;
            let mut index = 0;
            while let Some(entry) = queue.get(index) {
                let is_small = entry.estimate.is_some_and(|estimate| estimate <= STEP);
                let total = self.held() + self.0.requested.load(Ordering::SeqCst);
                let mut permit = None;
                if !entry.admission.is_closed() {
                    if !is_small && (is_blocked || !self.is_fair(&entry.account, total)) {
                        index += 1;
                        continue;
                    }
                    permit = self.try_admit(&entry.account, entry.estimate);
                    // The size is unknown, and the estimate is large: one is tried at a time.
                    let is_exception = entry.estimate.is_none() && !*has_exception;
                    if permit.is_none() && is_exception && total < self.body_limit() {
                        *has_exception = true;
                        let budget = self.clone();
                        permit = Some(BodyPermit { budget, estimate: 0, is_exception: true });
                    }
                    if permit.is_none() {
                        is_blocked |= !is_small;
                        index += 1;
                        continue;
                    }
                }
                admitted.extend(queue.remove(index).map(|entry| (entry.admission, permit)));
            }
            self.0.waiting_count.store(queue.len(), Ordering::SeqCst);
        }
        // Outside of the lock, because dropping a permit takes it.
        for (admission, permit) in admitted {
            if let Some(permit) = permit {
                let _ = admission.send(permit);
            }
        }
    }
}
