//! [`RetryBudget`]: how many failed requests to one peer may be repeated.

use std::sync::atomic::{AtomicU64, Ordering};

/// Tokens are counted in thousandths.
const TOKEN: u64 = 1000;
/// A success returns a tenth of a token.
const TOKENS_OF_SUCCESS: u64 = TOKEN / 10;

/// Limits how many requests to one peer are repeated, so that a dead peer is not stormed.
///
/// The rule is that of gRPC's retry throttling: the budget begins with all its tokens; each failure
/// that may be repeated takes one, each success returns a tenth of one, and requests are repeated
/// only while more than half of the tokens are left. So if more than one in eleven requests fails
/// for long, no request is repeated. First attempts are never limited.
///
/// The owner of a peer's state holds its budget, and all users of the peer share it.
///
/// ```
/// use network_common::{RetryBudget, RetryPolicy};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let budget = RetryBudget::new(10);
/// let policy = RetryPolicy::new().attempts(100).first_wait(std::time::Duration::ZERO);
/// let mut attempts = 0;
/// let result: Result<(), _> = policy
///     .run(
///         |attempt| {
///             attempts = attempt.number;
///             async { Err("the peer is dead") }
///         },
///         |_| budget.on_failure(),
///     )
///     .await;
/// assert_eq!((result, attempts), (Err("the peer is dead"), 5));
/// # }
/// ```
#[derive(Debug)]
pub struct RetryBudget {
    /// In thousandths of a token.
    max: u64,
    left: AtomicU64,
    refused: AtomicU64,
}

impl RetryBudget {
    /// Creates a budget that has all its `tokens`. A budget of 0 tokens permits no repetition.
    #[must_use]
    pub const fn new(tokens: u32) -> Self {
        let max = tokens as u64 * TOKEN;
        Self { max, left: AtomicU64::new(max), refused: AtomicU64::new(0) }
    }

    /// Takes a token for a failure, and returns whether the request may be repeated.
    ///
    /// To be called only for failures that would be repeated without a budget.
    #[must_use]
    pub fn on_failure(&self) -> bool {
        let take = |left: u64| Some(left.saturating_sub(TOKEN));
        // Relaxed, because no other memory depends on the number.
        let before = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        let permits = before.unwrap_or_default().saturating_sub(TOKEN) > self.max / 2;
        if !permits {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        permits
    }

    /// Returns whether more than half of the tokens are left, so that requests are repeated.
    #[must_use]
    pub fn permits_retries(&self) -> bool {
        self.left.load(Ordering::Relaxed) > self.max / 2
    }

    /// Returns how often [`on_failure`](Self::on_failure) did not permit a repetition.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Returns a tenth of a token for a request that succeeded.
    pub fn on_success(&self) {
        // The budget is full nearly always; then this is a read without a write.
        let add = |left: u64| (left < self.max).then(|| (left + TOKENS_OF_SUCCESS).min(self.max));
        let _ = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }
}
