//! [`BudgetShare`]: bytes that code above the transport holds for peers.

use std::sync::atomic::{AtomicU64, Ordering};

use super::byte_budget::{ByteBudget, STEP};

/// A count of bytes that are held outside of connections, such as queued messages.
///
/// [`ByteBudget::share`] creates it. Dropping it returns its bytes.
///
/// ```
/// use network_common::ByteBudget;
///
/// let budget = ByteBudget::new(1 << 20);
/// let share = budget.share();
/// share.update(300_000);
/// assert_eq!(budget.held(), 300_000);
/// share.update(300_001); // A difference below 64 KiB is not counted.
/// assert_eq!(budget.held(), 300_000);
/// drop(share);
/// assert_eq!(budget.held(), 0);
/// ```
#[derive(Debug)]
pub struct BudgetShare {
    budget: ByteBudget,
    /// The number of bytes that the budget counts.
    counted: AtomicU64,
}

impl ByteBudget {
    /// Returns a count of bytes that are held outside of connections, which starts with 0.
    #[must_use]
    pub fn share(&self) -> BudgetShare {
        BudgetShare::new(self.clone())
    }
}

impl BudgetShare {
    fn new(budget: ByteBudget) -> Self {
        Self { budget, counted: AtomicU64::new(0) }
    }

    /// Returns the budget.
    #[must_use]
    pub fn budget(&self) -> &ByteBudget {
        &self.budget
    }

    /// Changes the number of bytes, unless the difference is below 64 KiB and it is not 0.
    #[inline]
    pub fn update(&self, bytes: u64) {
        let counted = self.counted.load(Ordering::Relaxed);
        if bytes.abs_diff(counted) >= STEP || (bytes == 0 && counted > 0) {
            self.set(bytes);
        }
    }

    fn set(&self, bytes: u64) {
        let before = self.counted.swap(bytes, Ordering::Relaxed);
        if bytes > before {
            self.budget.add(bytes - before);
        } else if bytes < before {
            self.budget.subtract(before - bytes);
        }
    }
}

impl Drop for BudgetShare {
    fn drop(&mut self) {
        self.set(0);
    }
}
